import Foundation
import Testing

@testable import WordModel

@Suite struct TextTests {
    @Test func tokens() {
        #expect(
            tokenize("\"_You_ don't,\" said father-in-law--_he_! (12 o’clock)") == [
                "“", "You", "don't", ",", "”", "said", "father", "-", "in", "-", "law", "--", "he",
                "!", "(", "12", "o'clock", ")",
            ])
        #expect(tokenize("") == [])
    }

    @Test func tokensBecomeText() {
        let text = "“You don't,” said father-in-law--he! (12 o'clock); yes."
        #expect(detokenize(tokenize(text)) == text)
    }

    @Test func vocabularyCountsWordsInAnyCase() {
        let tokens = tokenize("The cat saw the dog. THE dog saw Jane. Jane ran")
        let vocabulary = Vocabulary(of: tokens, minimumCount: 2)
        // Three of "the" in three spellings: the first in order stands for them.
        #expect(vocabulary.words == ["<unk>", "THE", ".", "dog", "Jane", "saw"])
        #expect(vocabulary.encode(["the", "JANE", "cat"]) == [1, 4, Vocabulary.unknown])
    }

    @Test func lastTenthIsHeldOut() {
        let corpus = Corpus([String(repeating: "a b ", count: 50), "b b b b b b b b b c"])
        #expect(corpus.training.count == 99)
        #expect(corpus.heldOut.count == 11)
        #expect(corpus.heldOut.last == Vocabulary.unknown)
        // 45 of a, 54 of b and a made-up <unk>.
        #expect(corpus.logFrequencies == [0.01, 0.54, 0.45].map { Float(log($0 as Double)) })
    }
}
