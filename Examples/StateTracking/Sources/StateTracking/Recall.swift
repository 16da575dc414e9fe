import Foundation
import LMKernels

/// Keys are given values, and later other values: which does a state answer with?
///
/// 64 dimensions for keys and values, all of them random and of unit length. Each key is written
/// twice, all writes in random order, and then asked for. The answer is right when of all values
/// that were written, old and new, the last one of that key is the nearest.
struct Recall {
    static let pairs = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    static let width = 64
    /// Of each number of pairs.
    private static let trials = 16

    var additive: [Double] = []
    var delta: [Double] = []
    /// With the decay, and for the delta rule the rate, that turn out best.
    var bestAdditive: [Double] = []
    var bestDelta: [Double] = []

    init() throws {
        for pairs in Self.pairs {
            let problems = (0..<Self.trials).map { Problem(pairs, seed: UInt64($0)) }
            additive.append(try Self.additive(problems, decay: 1))
            delta.append(try Self.delta(problems, rate: 1, decay: 1))
            let decays: [Float] = [1, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9]
            bestAdditive.append(
                try decays.map { try Self.additive(problems, decay: $0) }.max()!)
            bestDelta.append(
                try [0.25, 0.5, 0.75, 1].flatMap { rate in
                    try decays.map { try Self.delta(problems, rate: rate, decay: $0) }
                }.max()!)
        }
    }

    /// Tokens write, and then others ask.
    private struct Problem {
        var pairs: Int
        /// [2 pairs, width]: values in the order in which they are written.
        var values: [Float]
        /// [3 pairs, width]: of writes, then of questions.
        var keys: [Float]
        /// Of each question, the place of its value in `values`.
        var answers: [Int]

        init(_ pairs: Int, seed: UInt64) {
            var generator = SplitMix64(seed: 1000 * UInt64(pairs) + seed)
            self.pairs = pairs
            let distinct = (0..<pairs).map { _ in generator.direction(width).map(Float.init) }
            let order = (0..<2 * pairs).map { $0 % pairs }.shuffled(using: &generator)
            values = order.flatMap { _ in generator.direction(width).map(Float.init) }
            keys = (order.map { distinct[$0] } + distinct).flatMap { $0 }
            answers = (0..<pairs).map { order.lastIndex(of: $0)! }
        }

        /// The share of answers that are right.
        ///
        /// - Parameter outputs: Of all tokens, [3 pairs, width].
        func share(_ outputs: ArraySlice<Float>) throws -> Double {
            let found = Array(outputs.suffix(pairs * width))
            var likeness = [Float](repeating: 0, count: pairs * 2 * pairs)
            var span = likeness.mutableSpan
            try Matmul.multiply(
                found.span, values.span, into: &span,
                shape: .init(rows: pairs, columns: 2 * pairs, depth: width), layout: .nt,
                workspace: Workspace())
            let right = answers.indices.count {
                largest(likeness[$0 * 2 * pairs..<($0 + 1) * 2 * pairs]) == answers[$0]
            }
            return Double(right) / Double(pairs)
        }
    }

    private static func additive(_ problems: [Problem], decay: Float) throws -> Double {
        try share(problems) { keys, values, isWrite, output in
            let logDecay = isWrite.map { $0 ? log(decay) : 0 }
            try LinearAttention.forward(
                query: keys.span, key: keys.span, value: values.span, logDecay: logDecay.span,
                output: output.mutableSpan,
                shape: .init(
                    batch: problems.count, tokens: isWrite.count / problems.count, heads: 1,
                    keyWidth: width, valueWidth: width), options: .init(decay: .token),
                workspace: Workspace())
        }
    }

    private static func delta(_ problems: [Problem], rate: Float, decay: Float) throws -> Double {
        try share(problems) { keys, values, isWrite, output in
            let beta = isWrite.map { $0 ? rate : 0 }
            let logDecay = isWrite.map { $0 ? log(decay) : 0 }
            try DeltaRule.forward(
                query: keys.span, key: keys.span, value: values.span, beta: beta.span,
                logDecay: logDecay.span, output: output.mutableSpan,
                shape: .init(
                    batch: problems.count, tokens: isWrite.count / problems.count, heads: 1,
                    keyWidth: width, valueWidth: width), options: .init(decay: .token),
                workspace: Workspace())
        }
    }

    /// The mean share of what is right.
    ///
    /// - Parameter answer: Gets keys, values and whether a token writes, of all problems, one
    ///   after the other, and puts in place of the last what is read. A question has a value of 0.
    private static func share(
        _ problems: [Problem],
        _ answer: ([Float], [Float], [Bool], inout [Float]) throws -> Void
    ) throws -> Double {
        let pairs = problems[0].pairs
        let values = problems.flatMap { $0.values + [Float](repeating: 0, count: pairs * width) }
        let isWrite = problems.flatMap { _ in (0..<3 * pairs).map { $0 < 2 * pairs } }
        var output = values
        try answer(problems.flatMap(\.keys), values, isWrite, &output)
        let size = 3 * pairs * width
        let shares = try problems.enumerated().map { n, problem in
            try problem.share(output[n * size..<(n + 1) * size])
        }
        return shares.reduce(0, +) / Double(shares.count)
    }
}
