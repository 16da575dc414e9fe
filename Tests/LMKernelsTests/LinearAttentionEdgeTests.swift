import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

extension KernelSuite {
    /// Strong decays, resets, nothing, and long sequences. Measured over all of them: o 5.5e-7,
    /// states 8.3e-7, gradients of q, k and v 1.3e-6, of log-decays 8.0e-7, of states and
    /// normalisers 1.8e-6.
    @Suite struct LinearAttentionEdgeTests {
        private typealias Problem = LinearAttentionProblem<Float>

        private static let decays: [LinearAttention.Decay] = [.token, .key]
        private static let forms = LinearAttention.Form.allCases

        private static func problem(
            _ decay: LinearAttention.Decay, _ form: LinearAttention.Form, tokens: Int = 64
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, heads: 2, keyWidth: 32, valueWidth: 32, decay: decay, seed: 40)
            problem.addStates(seed: 41)
            problem.options.form = form
            return problem
        }

        /// exp of a sum over a chunk is out of the range of float32 here, its inverse too.
        @Test(arguments: decays, forms)
        func strongDecay(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Self.problem(decay, form)
            problem.setDecays(-5...0, seed: 1)
            try problem.check("mean -2.5", tolerance: 4e-6)
            problem.setDecays(-30...0, seed: 1)
            try problem.check("mean -15", tolerance: 4e-6)
            problem.addBonus(seed: 2)
            try problem.check("with a bonus", tolerance: 4e-6)
        }

        @Test(arguments: decays, forms)
        func resets(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            for reset in [-Float.infinity, -1e4] {
                for stride in [1, 2, 7, 16, 40] {
                    var problem = Self.problem(decay, form)
                    let perToken = problem.logDecay!.count / 64
                    for t in Swift.stride(from: stride - 1, to: 64, by: stride) {
                        for i in 0..<perToken { problem.logDecay![t * perToken + i] = reset }
                    }
                    try problem.check("\(reset) every \(stride)", tolerance: 4e-6)
                }
                // Every other key.
                var problem = Self.problem(decay, form)
                for i in stride(from: 0, to: problem.logDecay!.count, by: 2) {
                    problem.logDecay![i] = reset
                }
                try problem.check("\(reset) at every other", tolerance: 4e-6)
            }
        }

        /// Where next to nothing is left, the gradient of the gate is next to nothing, and right.
        @Test(arguments: decays, forms)
        func gradientOfClosedGates(
            decay: LinearAttention.Decay, form: LinearAttention.Form
        ) throws {
            var problem = Self.problem(decay, form)
            problem.logDecay = problem.logDecay!.map { _ in -20 }
            try problem.check("all at -20", tolerance: 4e-6)
            // Among open ones each by itself.
            problem.setDecays(-0.1...0, seed: 3)
            let perToken = problem.logDecay!.count / 64
            let closed = Swift.stride(from: 5, to: 64, by: 9).flatMap { t in
                (0..<perToken).map { t * perToken + $0 }
            }
            for i in closed { problem.logDecay![i] = -20 }
            let expected = problem.expectedGradients()["dg"]!
            try withEachInstructionSet(of: .linearAttention(.float32)) { set in
                let found = try problem.backward().logDecay
                let error = relativeError(closed.map { found[$0] }, closed.map { expected[$0] })
                #expect(error < 4e-6, "\(set): \(error)")
                let all = relativeError(found, expected)
                #expect(all < 4e-6, "\(set): \(all)")
            }
        }

        @Test func headDecayOfZeroAndInfinity() throws {
            for form in Self.forms {
                for g in [0, -0.0, -1e-3, -20, -1e4, -Float.infinity] {
                    var problem = Problem(
                        tokens: 40, heads: 3, keyWidth: 16, valueWidth: 16, decay: .head, seed: 2)
                    problem.addStates(seed: 2)
                    problem.logDecay = [g, -0.1, g]
                    problem.options.form = form
                    try problem.check("\(g) \(form)", tolerance: 4e-6)
                }
            }
        }

        // MARK: - Nothing

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func noTokens(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            for (batch, offsets) in [(2, nil), (0, nil), (1, [0]), (1, [0, 0, 0])]
                as [(Int, [Int]?)]
            {
                for hasState in [false, true] {
                    var problem = Problem(
                        batch: batch, tokens: 0, heads: 2, keyWidth: 3, valueWidth: 5,
                        decay: decay, isNormalized: hasState, offsets: offsets)
                    problem.options.form = form
                    if hasState { problem.addStates(seed: 1) }
                    let found = try problem.forward()
                    let zeros = [Float](repeating: 0, count: problem.states * 5)
                    #expect(found.finalState == problem.initialState ?? zeros)
                    #expect(found.finalNormalizer == problem.initialNormalizer ?? [])
                    let slopes = try problem.backward()
                    #expect(slopes.initialState == problem.finalStateGradient ?? zeros)
                    if decay == .head { #expect(slopes.logDecay == [0, 0]) }
                }
            }
        }

        @Test func bidirectionalOfNothing() throws {
            var problem = Problem(tokens: 0, keyWidth: 3, valueWidth: 5, offsets: [0, 0])
            problem.options.isBidirectional = true
            #expect(try problem.forward().output.isEmpty)
            #expect(try problem.backward().query.isEmpty)
        }

        /// Nothing is added to a divisor of 0.
        @Test func divisorOfZero() throws {
            for form in LinearAttention.Form.allCases {
                var problem = Problem(
                    tokens: 20, keyWidth: 4, valueWidth: 4, isNormalized: true, seed: 1)
                for i in 0..<4 { problem.key[i] = 0 }
                problem.options.form = form
                try withEachInstructionSet(of: .linearAttention(.float32)) { _ in
                    let found = try problem.forward().output
                    #expect(found.prefix(4).allSatisfy { $0.isNaN })
                    #expect(found.dropFirst(4).allSatisfy { $0.isFinite })
                }
            }
        }

        // MARK: - Long sequences

        /// One head: segments of the sequence run side by side.
        @Test(arguments: LinearAttention.Decay.allCases)
        func longSequence(decay: LinearAttention.Decay) throws {
            var problem = Problem(
                tokens: 4200, keyWidth: 16, valueWidth: 20, decay: decay,
                isNormalized: decay == .none || decay == .key, seed: 50)
            if decay != .none { problem.setDecays(-0.02...0, seed: 5) }
            problem.addStates(seed: 51)
            problem.options.stateStride = 1500
            problem.options.threads = 2
            try problem.check("4200 tokens", tolerance: 4e-6)
        }

        /// Heads that share keys, odd widths, and what has sums over segments.
        @Test(arguments: LinearAttention.Decay.allCases)
        func longGroupedHeads(decay: LinearAttention.Decay) throws {
            var problem = Problem(
                tokens: 2100, heads: 2, keyWidth: 21, valueWidth: 19, decay: decay, seed: 54)
            if decay != .none { problem.setDecays(-0.02...0, seed: 5) }
            problem.addStates(seed: 55)
            problem.addBonus(seed: 56)
            problem.options.unitLengthEpsilon = 1e-3
            problem.options.stateStride = 700
            problem.options.threads = 2
            try problem.check("2 heads of 2100 tokens", tolerance: 4e-6)
        }

        @Test func longPackedSequences() throws {
            var problem = Problem(
                tokens: 7000, keyWidth: 16, valueWidth: 16, decay: .token,
                offsets: [0, 10, 3000, 3000, 7000], seed: 52)
            problem.setDecays(-0.05...0, seed: 5)
            problem.addStates(seed: 51)
            problem.options.threads = 3
            try problem.check("packed", tolerance: 4e-6)
        }

        @Test func longBidirectional() throws {
            for isNormalized in [false, true] {
                var problem = Problem(
                    tokens: 5000, keyWidth: 16, valueWidth: 24, isNormalized: isNormalized,
                    seed: 53)
                problem.options.isBidirectional = true
                problem.options.threads = 2
                try problem.check("bidirectional", tolerance: 4e-6)
            }
        }
    }
}
