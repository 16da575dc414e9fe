import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

extension KernelSuite {
    /// Strong decays, resets, nothing, keys near one another.
    @Suite struct DeltaRuleEdgeTests {
        private typealias Problem = DeltaRuleProblem<Float>

        private static let decays: [DeltaRule.Decay] = [.token, .key]

        private static func problem(
            _ decay: DeltaRule.Decay, _ kind: Int, tokens: Int = 64
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, steps: kind == 1 ? 2 : 1, heads: 2, keyWidth: 32, valueWidth: 32,
                decay: decay, isGeneralized: kind == 2, seed: 40)
            problem.addStates(seed: 41)
            return problem
        }

        /// exp of a sum over a chunk is out of the range of float32 here, its inverse too.
        @Test(arguments: decays, 0..<3)
        func strongDecay(decay: DeltaRule.Decay, kind: Int) throws {
            var problem = Self.problem(decay, kind)
            problem.setDecays(-5...0, seed: 1)
            try problem.check("mean -2.5")
            problem.setDecays(-30...0, seed: 1)
            try problem.check("mean -15")
        }

        @Test(arguments: decays, 0..<3)
        func resets(decay: DeltaRule.Decay, kind: Int) throws {
            for reset in [-Float.infinity, -1e4] {
                for stride in [1, 2, 3, 7, 16, 40] {
                    var problem = Self.problem(decay, kind)
                    let perToken = problem.logDecay!.count / 64
                    for t in Swift.stride(from: stride - 1, to: 64, by: stride) {
                        for i in 0..<perToken { problem.logDecay![t * perToken + i] = reset }
                    }
                    try problem.check("\(reset) every \(stride)")
                }
                // Every other key.
                var problem = Self.problem(decay, kind)
                for i in stride(from: 0, to: problem.logDecay!.count, by: 2) {
                    problem.logDecay![i] = reset
                }
                try problem.check("\(reset) at every other")
            }
        }

        /// Where next to nothing is left, the gradient of the gate is next to nothing, and right.
        @Test(arguments: decays, 0..<3)
        func gradientOfClosedGates(decay: DeltaRule.Decay, kind: Int) throws {
            var problem = Self.problem(decay, kind)
            problem.logDecay = problem.logDecay!.map { _ in -20 }
            try problem.check("all at -20")
            // Among open ones each by itself.
            problem.setDecays(-0.1...0, seed: 3)
            let perToken = problem.logDecay!.count / 64
            let closed = Swift.stride(from: 5, to: 64, by: 9).flatMap { t in
                (0..<perToken).map { t * perToken + $0 }
            }
            for i in closed { problem.logDecay![i] = -20 }
            let expected = problem.expectedGradients()["dg"]!
            try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                let found = try problem.backward().logDecay
                let error = relativeError(closed.map { found[$0] }, closed.map { expected[$0] })
                #expect(error < 1.6e-6, "\(set): \(error)")
                let all = relativeError(found, expected)
                #expect(all < 1.6e-6, "\(set): \(all)")
            }
        }

        /// Rates at the ends of their range, and logits far beyond where sigmoid is one of them.
        @Test func ratesAtTheEnds() throws {
            for rate in [Float(0), 1, 2] {
                for steps in [1, 2] {
                    var problem = Problem(
                        tokens: 50, steps: steps, heads: 2, keyWidth: 20, valueWidth: 24, seed: 3)
                    problem.addStates(seed: 2)
                    problem.beta = problem.beta!.map { _ in rate }
                    try problem.check("rate \(rate), \(steps) steps")
                }
            }
            for kind in [DeltaRule.Rates.sigmoid, .twiceSigmoid] {
                var problem = Problem(tokens: 50, heads: 2, keyWidth: 20, valueWidth: 24, seed: 3)
                problem.addStates(seed: 2)
                problem.setLogits(kind, seed: 1)
                for (i, x) in [Float(-100), -20, 0, 20, 100].enumerated() {
                    problem.beta![i * 7] = x
                }
                try problem.check("\(kind)")
            }
        }

        /// Unit length of rows that are 0, or far from 1.
        @Test func lengths() throws {
            for size in [Float(1e-15), 1e-3, 1e3, 1e15] {
                var problem = Problem(tokens: 40, heads: 2, keyWidth: 20, valueWidth: 24, seed: 3)
                problem.addStates(seed: 2)
                problem.key = problem.key.map { $0 * size }
                problem.query = problem.query.map { $0 * size }
                problem.options.unitLengthEpsilon = size < 1 ? 0 : 1e-6
                try problem.check("keys of length \(size)")
            }
            var problem = Problem(tokens: 40, heads: 2, keyWidth: 20, valueWidth: 24, seed: 3)
            problem.options.unitLengthEpsilon = 1e-6
            for i in 0..<60 { problem.key[i] = 0 }
            for i in 40..<120 { problem.query[i] = 0 }
            try problem.check("some of length 0")
        }

        // MARK: - Nothing

        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func noTokens(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for (batch, offsets) in [(2, nil), (0, nil), (1, [0]), (1, [0, 0, 0])]
                as [(Int, [Int]?)]
            {
                for (hasState, isGeneralized) in [(false, false), (true, false), (true, true)] {
                    var problem = Problem(
                        batch: batch, tokens: 0, heads: 2, keyWidth: 3, valueWidth: 5,
                        decay: decay, isGeneralized: isGeneralized, offsets: offsets)
                    problem.options.form = form
                    if hasState { problem.addStates(seed: 1) }
                    let found = try problem.forward()
                    let zeros = [Float](repeating: 0, count: problem.stateCount)
                    #expect(found.finalState == problem.initialState ?? zeros)
                    let inPlace = try problem.forwardInPlace()
                    #expect(inPlace.finalState == problem.initialState ?? zeros)
                    let slopes = try problem.backward()
                    #expect(slopes.initialState == problem.finalStateGradient ?? zeros)
                }
            }
        }

        /// A token of beta = 0 and g = 0 leaves the state as it is.
        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func maskedTokensDoNothing(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for tokens in [1, 2, 16, 50] {
                for steps in [1, 2, 3] {
                    var problem = Problem(
                        tokens: tokens, steps: steps, heads: 2, keyHeads: 1, keyWidth: 24,
                        valueWidth: 40, decay: decay, seed: 21)
                    problem.addStates(seed: 8)
                    problem.options.form = form
                    problem.beta = problem.beta!.map { _ in 0 }
                    problem.logDecay = problem.logDecay?.map { _ in 0 }
                    try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                        let found = try problem.forward()
                        #expect(
                            place(found.finalState, problem.initialState!) == nil,
                            "\(set), \(tokens) tokens of \(steps)")
                    }
                }
            }
        }

        // MARK: - Long sequences

        /// One head: threads share its columns.
        @Test(arguments: DeltaRule.Decay.allCases)
        func longSequence(decay: DeltaRule.Decay) throws {
            var problem = Problem(
                tokens: 2100, steps: 2, keyWidth: 16, valueWidth: 40, decay: decay, seed: 50)
            if decay != .none { problem.setDecays(-0.02...0, seed: 5) }
            problem.addStates(seed: 51)
            problem.options.stateStride = 750
            problem.options.threads = 2
            try problem.check("2100 tokens of 2 steps")
        }

        @Test func longPackedSequences() throws {
            var problem = Problem(
                tokens: 3000, keyWidth: 16, valueWidth: 16, decay: .token,
                offsets: [0, 10, 1300, 1300, 3000], seed: 52)
            problem.setDecays(-0.05...0, seed: 5)
            problem.addStates(seed: 51)
            problem.options.threads = 3
            try problem.check("packed")
        }

        // MARK: - Keys near one another

        /// Keys c + noise, at unit length, with rates near 2: every step reflects at nearly the
        /// same plane, and (I + L)^-1 has entries near 2 all over a chunk. Measured errors of o:
        /// 7.3e-7 by the recurrence and 2.1e-6 in chunks; of states 8.9e-7 and 2.4e-6; of
        /// gradients, which go in chunks, 5.2e-6.
        @Test(arguments: [Float(0.1), 0.01, 0.001, 0])
        func nearlyCollinearKeys(noise: Float) throws {
            var problem = Problem(
                tokens: 512, heads: 2, keyWidth: 64, valueWidth: 64, seed: 60)
            var random = SeededGenerator(seed: 61)
            let common = unitRows(
                (0..<64).map { _ in .random(in: -1...1, using: &random) }, 64, Float.self)
            let keys = (0..<512 * 64).map { i in
                common[i % 64] + noise * .random(in: -1...1, using: &random)
            }
            problem.key = unitRows(keys, 64, Float.self)
            problem.setRates(1.9...2, seed: 62)
            problem.addStates(seed: 63)
            let expected = problem.expectedOutputs()
            let gradients = problem.expectedGradients()
            try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                for (form, limit) in [(DeltaRule.Form.recurrent, 1.5e-6), (.chunked, 4e-6)] {
                    problem.options.form = form
                    for (name, values) in try problem.forward().arrays where !values.isEmpty {
                        let error = relativeError(values, expected[name]!)
                        #expect(error < limit, "\(set) \(form): \(name) \(error)")
                    }
                }
                for (name, values) in try problem.backward().arrays where !values.isEmpty {
                    let error = relativeError(values, gradients[name]!)
                    #expect(error < 1e-5, "\(set): \(name) \(error)")
                }
            }
        }
    }
}
