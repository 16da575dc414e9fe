/// Something to keep track of: each token is one of a few inputs and changes an answer.
///
/// A head of the delta rule follows it by its keys alone. It writes no values: S starts as the
/// identity, and a token's steps, S <- (I - beta k k^T) S, turn it. With beta = 2 and k of unit
/// length a step is a reflection, S a product of reflections, and the answer can be read off. With
/// beta in [0, 1] a step is a projection at most: what it takes away is gone.
struct Task: Sendable {
    var name: String
    /// Of a picture.
    var title: String
    /// Of keys and values.
    var width: Int
    /// R, of a token.
    var steps: Int
    /// Keys [R, width] of each input, of unit length, or 0 where a step leaves S as it is.
    var keys: [[Float]]
    /// The answers to a sequence of inputs, [tokens, places], each in 0 ..< classes.
    var answers: @Sendable ([Int]) -> [Int]
    /// How many numbers an answer is made of.
    var places = 1
    var classes: Int
    /// The answer by S, [width, width].
    var read: @Sendable (ArraySlice<Float>) -> [Int]

    func sequence(_ tokens: Int, using generator: inout SplitMix64) -> [Int] {
        (0..<tokens).map { _ in Int.random(in: 0..<keys.count, using: &generator) }
    }
}

extension Task {
    /// Whether the ones so far are odd in number. A one turns the sign of S.
    static let parity = Task(
        name: "parity", title: "parity of bits", width: 1, steps: 1, keys: [[0], [1]],
        answers: { bits in count(bits, modulo: 2) }, classes: 2,
        read: { [$0.first! < 0 ? 1 : 0] })

    /// The ones so far, modulo 3. A one turns three places round by two swaps, (0 1) and (1 2).
    static let modulo3 = Task(
        name: "modulo 3", title: "ones modulo 3", width: 3, steps: 2,
        keys: [[0, 0, 0, 0, 0, 0], swap(0, 1, of: 3) + swap(1, 2, of: 3)],
        answers: { bits in count(bits, modulo: 3) }, classes: 3,
        // The first row of S is the row of the identity that has come to the first place.
        read: { [largest($0.prefix(3))] })

    /// Five items, of which two neighbours swap at every token: which is at which place?
    static let permutations = Task(
        name: "S5", title: "five items, swapped (S5)", width: 5, steps: 1,
        keys: (0..<4).map { swap($0, $0 + 1, of: 5) },
        answers: { swaps in
            var items = [0, 1, 2, 3, 4]
            return swaps.flatMap { i in
                items.swapAt(i, i + 1)
                return items
            }
        }, places: 5, classes: 5,
        read: { state in (0..<5).map { largest(state.dropFirst(5 * $0).prefix(5)) } })

    private static func count(_ bits: [Int], modulo divisor: Int) -> [Int] {
        var sum = 0
        return bits.map { bit in
            sum += bit
            return sum % divisor
        }
    }

    /// The key that swaps places i and j by a reflection.
    private static func swap(_ i: Int, _ j: Int, of width: Int) -> [Float] {
        let length = Float(0.5).squareRoot()
        return (0..<width).map { $0 == i ? length : $0 == j ? -length : 0 }
    }
}

/// The place of the largest number.
func largest(_ row: ArraySlice<Float>) -> Int {
    row.indices.max { row[$0] < row[$1] }! - row.startIndex
}
