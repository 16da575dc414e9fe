import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

extension KernelSuite {
    /// Pieces of a sequence, for several machines.
    @Suite struct LinearAttentionSegmentTests {
        private typealias Problem = LinearAttentionProblem<Float>

        private func segment(
            _ problem: Problem, _ tokens: Range<Int>, threads: Int = 2
        ) throws -> LinearAttention.Segment {
            var shape = problem.shape
            let all = shape.tokens
            shape.tokens = tokens.count
            func rows(_ x: [Float]) -> [Float] {
                let width = x.count / all
                return Array(x[tokens.lowerBound * width..<tokens.upperBound * width])
            }
            let (k, v) = (rows(problem.key), rows(problem.value))
            let isOfTokens = problem.options.decay == .token || problem.options.decay == .key
            let g = isOfTokens ? problem.logDecay.map(rows) : problem.logDecay
            var options = problem.options
            options.threads = threads
            return try LinearAttention.partialState(
                key: k.span, value: v.span, logDecay: g?.span, shape: shape, options: options,
                workspace: Workspace())
        }

        @Test(arguments: LinearAttention.Decay.allCases)
        func partialStateIsTheReferences(decay: LinearAttention.Decay) throws {
            for isNormalized in [false, true] {
                for offsets in [nil, [0, 0, 17, 70]] as [[Int]?] {
                    var problem = Problem(
                        batch: offsets == nil ? 2 : 1, tokens: 70, heads: 4, keyHeads: 2,
                        keyWidth: 17, valueWidth: 33, decay: decay, isNormalized: isNormalized,
                        offsets: offsets, seed: 3)
                    problem.options.threads = 2
                    let reference = problem.reference
                    let expected = ReferenceLinearAttention.partialState(
                        shape: reference.shape, key: reference.key, value: reference.value,
                        decay: reference.decay, offsets: offsets)
                    try withEachInstructionSet(of: .linearAttention(.float32)) { set in
                        let found = try LinearAttention.partialState(
                            key: problem.key.span, value: problem.value.span,
                            logDecay: problem.logDecay?.span, offsets: offsets?.span,
                            shape: problem.shape, options: problem.options,
                            workspace: Workspace())
                        #expect(relativeError(found.state, expected.state) < 1e-6, "\(set)")
                        #expect(relativeError(found.decay, expected.decay) < 2e-6, "\(set)")
                        if isNormalized {
                            let error = relativeError(found.normalizer, expected.normalizer)
                            #expect(error < 1e-6, "\(set): \(error)")
                        } else {
                            #expect(found.normalizer.isEmpty)
                        }
                    }
                }
            }
        }

        /// Sequences cut over machines: each makes its piece, starts come from the pieces before.
        @Test(arguments: LinearAttention.Decay.allCases)
        func piecesOfASequence(decay: LinearAttention.Decay) throws {
            var problem = Problem(
                tokens: 100, heads: 2, keyWidth: 16, valueWidth: 24, decay: decay,
                isNormalized: true, seed: 7)
            problem.addStates(seed: 4)
            problem.layout = .tokenMajor
            let whole = try problem.forward()
            var start = try LinearAttention.Segment(
                states: 2, keyWidth: 16, valueWidth: 24, state: problem.initialState!,
                normalizer: problem.initialNormalizer!)
            let pieces = try [0..<30, 30..<31, 31..<31, 31..<100].map { try segment(problem, $0) }
            for piece in pieces { start = try LinearAttention.combine(start, piece) }
            #expect(relativeError(start.state, whole.finalState.map { Double($0) }) < 1e-6)
            #expect(
                relativeError(start.normalizer, whole.finalNormalizer.map { Double($0) }) < 1e-6)
            // From the right first.
            var last = pieces[3]
            for piece in pieces[..<3].reversed() {
                last = try LinearAttention.combine(piece, last)
            }
            let all = try segment(problem, 0..<100)
            #expect(relativeError(last.state, all.state.map { Double($0) }) < 1e-6)
            #expect(relativeError(last.decay, all.decay.map { Double($0) }) < 1e-6)
            let alone = try segment(problem, 0..<100, threads: 1)
            #expect(alone == all)
        }

        /// A product of decays below the normal numbers is 0; one above is kept.
        @Test(arguments: [LinearAttention.Decay.head, .token, .key])
        func decayOfNextToNothing(decay: LinearAttention.Decay) throws {
            var problem = Problem(
                tokens: 100, heads: 2, keyWidth: 17, valueWidth: 3, decay: decay, seed: 8)
            for (g, isZero) in [(Float(-0.9), true), (-0.8, false)] {
                problem.logDecay = problem.logDecay!.map { _ in g }
                try withEachInstructionSet(of: .linearAttention(.float32)) { set in
                    let found = try segment(problem, 0..<100).decay
                    #expect(found.allSatisfy { ($0 == 0) == isZero }, "\(g) \(set)")
                }
            }
        }

        @Test func appendInPlace() throws {
            let first = try LinearAttention.Segment(
                states: 1, keyWidth: 2, valueWidth: 1, decay: [0.5, 0.25], state: [1, 2])
            var sum = first
            try sum.append(first)
            #expect(sum.decay == [0.25, 0.0625])
            #expect(sum.state == [1.5, 2.5])
            let combined = try LinearAttention.combine(first, first)
            #expect(sum == combined)
        }

        @Test func refusals() throws {
            func error(_ call: () throws -> Void) -> KernelError? {
                do {
                    try call()
                    return nil
                } catch { return error as? KernelError }
            }
            func make(
                _ states: Int, _ keyWidth: Int, decay: Int? = nil, state: Int,
                normalizer: Int? = nil
            ) throws -> LinearAttention.Segment {
                func array(_ count: Int) -> [Float] { [Float](repeating: 0, count: count) }
                return try LinearAttention.Segment(
                    states: states, keyWidth: keyWidth, valueWidth: 2, decay: decay.map(array),
                    state: array(state), normalizer: normalizer.map(array))
            }
            #expect(
                error { _ = try make(-1, 3, state: 0) }
                    == .outOfRange(argument: "states", allowed: ">= 0", actual: "-1"))
            #expect(
                error { _ = try make(2, 3, state: 11) }
                    == .countMismatch(argument: "state", expected: 12, actual: 11))
            #expect(
                error { _ = try make(2, 3, decay: 5, state: 12) }
                    == .countMismatch(argument: "decay", expected: 6, actual: 5))
            #expect(
                error { _ = try make(2, 3, state: 12, normalizer: 7) }
                    == .countMismatch(argument: "normalizer", expected: 6, actual: 7))
            #expect(
                error { _ = try make(.max / 2, 3, state: 12) } == .overflow(argument: "decay"))
            let one = try make(2, 3, state: 12)
            for other in [
                try make(1, 3, state: 6), try make(3, 2, state: 12),
                try make(2, 3, state: 12, normalizer: 6),
            ] {
                #expect(
                    error { _ = try LinearAttention.combine(one, other) }
                        == .conflict(argument: "segment", reason: "both have the same shape"))
            }
            var options = LinearAttention.Options(isBidirectional: true)
            let shape = LinearAttention.Shape(tokens: 1, heads: 1, keyWidth: 1, valueWidth: 1)
            let x: [Float] = [1]
            func refusal() -> KernelError? {
                error {
                    _ = try LinearAttention.partialState(
                        key: x.span, value: x.span, shape: shape, options: options,
                        workspace: Workspace())
                }
            }
            #expect(
                refusal()
                    == .conflict(argument: "isBidirectional", reason: "a state needs an order"))
            options = .init(decay: .token)
            #expect(
                refusal() == .conflict(argument: "logDecay", reason: "needed with a decay"))
        }
    }
}
