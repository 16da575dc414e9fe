import Foundation

/// Words and punctuation marks of a text, in order, spelled as they stand there.
///
/// A word is a run of letters and digits, with apostrophes inside: "don't". A double hyphen is one
/// mark, straight double quotes become “ and ”, and underscores (emphasis in plain text) are dropped.
func tokenize(_ text: String) -> [String] {
    let characters = Array(text)
    var tokens: [String] = []
    var position = 0
    func isWord(_ index: Int) -> Bool {
        index < characters.count && (characters[index].isLetter || characters[index].isNumber)
    }
    while position < characters.count {
        let start = position
        let character = characters[position]
        position += 1
        if isWord(start) {
            while isWord(position)
                || (position < characters.count && "'’".contains(characters[position])
                    && isWord(position + 1))
            {
                position += 1
            }
            tokens.append(String(characters[start..<position]).replacing("’", with: "'"))
        } else if character == "-", position < characters.count, characters[position] == "-" {
            while position < characters.count, characters[position] == "-" { position += 1 }
            tokens.append("--")
        } else if character == "\"" {
            let before = start == 0 ? " " : characters[start - 1]
            tokens.append(before.isWhitespace || "(-_".contains(before) ? "“" : "”")
        } else if !character.isWhitespace, character != "_" {
            tokens.append(String(character))
        }
    }
    return tokens
}

/// Tokens put together again as a reader expects them: spaces, and capitals where sentences begin.
func detokenize(_ tokens: [String]) -> String {
    var text = ""
    var last = "."
    for token in tokens {
        let isAttached = ",.;:!?)”--".contains(token) || ["“", "(", "-", "--"].contains(last)
        if !text.isEmpty, !isAttached { text += " " }
        text += ".!?“".contains(last) ? token.prefix(1).uppercased() + token.dropFirst() : token
        last = token
    }
    return text
}

/// Words by number. Number 0 stands for every word that is not in the vocabulary.
struct Vocabulary {
    static let unknown: Int32 = 0

    /// Each as it is spelled most often: "the", "Elizabeth".
    private(set) var words = ["<unk>"]
    private var numbers: [String: Int32] = [:]

    /// The words that occur at least `minimumCount` times, whatever their case, frequent ones first.
    init(of tokens: [String], minimumCount: Int) {
        var spellings: [String: [String: Int]] = [:]
        for token in tokens { spellings[token.lowercased(), default: [:]][token, default: 0] += 1 }
        func order(_ a: (key: String, count: Int), _ b: (key: String, count: Int)) -> Bool {
            (-a.count, a.key) < (-b.count, b.key)
        }
        let frequent = spellings.map { (key: $0, count: $1.values.reduce(0, +)) }
            .filter { $0.count >= minimumCount }.sorted(by: order)
        for (word, _) in frequent {
            numbers[word] = Int32(words.count)
            let usual = spellings[word]!.map { (key: $0, count: $1) }.min(by: order)!
            words.append(usual.key)
        }
    }

    var count: Int { words.count }

    func encode(_ tokens: [String]) -> [Int32] {
        tokens.map { numbers[$0.lowercased()] ?? Self.unknown }
    }

    func decode(_ numbers: [Int32]) -> String {
        detokenize(numbers.map { words[Int($0)] })
    }
}

/// Texts as numbers: the first nine tenths of each to learn from, the rest to be tested on.
struct Corpus {
    let vocabulary: Vocabulary
    let training: [Int32]
    let heldOut: [Int32]

    init(_ texts: [String], minimumCount: Int = 2) {
        let tokens = texts.map(tokenize)
        let learned = tokens.flatMap { $0.prefix($0.count * 9 / 10) }
        vocabulary = Vocabulary(of: learned, minimumCount: minimumCount)
        training = vocabulary.encode(learned)
        heldOut = vocabulary.encode(tokens.flatMap { $0.dropFirst($0.count * 9 / 10) })
    }

    /// Log of each word's share of the training text: the unigram model.
    var logFrequencies: [Float] {
        var counts = [Int](repeating: 0, count: vocabulary.count)
        for word in training { counts[Int(word)] += 1 }
        // <unk> may have no count where every word is in the vocabulary.
        let total = Double(max(counts[0], 1) + training.count - counts[0])
        return counts.map { Float(log(Double(max($0, 1)) / total)) }
    }
}
