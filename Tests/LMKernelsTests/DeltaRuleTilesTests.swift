import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// bfloat16 in chunks of 64 steps, as they are on tiles; the promises hold everywhere.
    @Suite struct DeltaRuleTilesTests {
        private typealias Problem = DeltaRuleProblem<BFloat16>

        private static let decays: [DeltaRule.Decay] = [.none, .token]

        private static func sequence(
            _ decay: DeltaRule.Decay, steps: Int = 1, tokens: Int = 150, keyWidth: Int = 24,
            valueWidth: Int = 40
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, steps: steps, heads: 2, keyHeads: 1, keyWidth: keyWidth,
                valueWidth: valueWidth, decay: decay, seed: 31)
            problem.addStates(seed: 9)
            problem.options.form = .chunked
            problem.options.threads = 2
            return problem
        }

        // MARK: - The reference

        @Test(arguments: decays, 0..<16)
        func everyCombinationOfOptions(decay: DeltaRule.Decay, choice: Int) throws {
            for (steps, tokens) in [(1, 131), (2, 70), (3, 45)] {
                var problem = Problem(
                    batch: 2, tokens: tokens, steps: steps, heads: 4, keyHeads: 2,
                    keyWidth: [19, 48][choice % 2], valueWidth: [21, 70][choice / 2 % 2],
                    decay: decay, seed: UInt64(choice))
                problem.options.threads = 1 + choice % 3
                problem.layout = [.tokenMajor, .headMajor, .apart][choice % 3]
                problem.choose(choice, seed: UInt64(choice))
                if choice & 4 != 0 { problem.options.stateStride = 41 }
                try problem.check(
                    "\(decay) \(choice) \(steps)", forms: [.chunked, .automatic],
                    hasGradients: false)
            }
        }

        @Test(arguments: [1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129])
        func widths(width: Int) throws {
            for (key, value) in [(max(width, 2), 40), (24, width)] {
                var problem = Problem(
                    tokens: 90, keyWidth: key, valueWidth: value, decay: .token,
                    seed: UInt64(width))
                problem.addStates(seed: 2)
                try problem.check("\(key) x \(value)", forms: [.chunked], hasGradients: false)
            }
        }

        @Test(arguments: [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129])
        func tokensAroundChunks(tokens: Int) throws {
            let problem = Self.sequence(.token, tokens: tokens)
            try problem.check(
                "\(tokens)", forms: [.chunked, .automatic],
                hasGradients: false)
        }

        /// Decays that leave nothing, at the start, in the middle and at the end of a chunk.
        @Test func resets() throws {
            for reset in [-Float.infinity, -1e4, -30] {
                var problem = Self.sequence(.token)
                for t in [0, 20, 63, 64, 100] { problem.logDecay![2 * t] = reset }
                try problem.check("\(reset)", forms: [.chunked], hasGradients: false)
            }
        }

        // MARK: - What changes no bit

        @Test(arguments: decays, 1...3)
        func prefixes(decay: DeltaRule.Decay, steps: Int) throws {
            let whole = Self.sequence(decay, steps: steps)
            let expected = try whole.forward().output
            for count in [1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 149] {
                // Nothing follows, and something else does.
                let first = Array(expected.prefix(count * 80))
                let short = try whole.part(0..<count).forward().output
                #expect(place(short, first) == nil, "\(count) tokens alone")
                for other in [Float.nan, .infinity, 1e30] {
                    for spoilt in 0..<5 {
                        var changed = whole
                        func spoil(_ x: inout [Float]) {
                            for i in x.count / 150 * count..<x.count { x[i] = other }
                        }
                        switch spoilt {
                        case 0: spoil(&changed.query)
                        case 1: spoil(&changed.key)
                        case 2: spoil(&changed.value)
                        case 3: spoil(&changed.beta!)
                        default: changed.value[changed.value.count / 150 * count + 35] = other
                        }
                        let found = Array(try changed.forward().output.prefix(count * 80))
                        #expect(
                            place(found, first) == nil, "\(count) before \(other) in \(spoilt)")
                    }
                }
            }
        }

        /// A number that is not finite stays in its column, whoever computes the others.
        @Test func specialColumns() throws {
            var problem = Self.sequence(.token, keyWidth: 65, valueWidth: 200)
            let plain = try problem.forward().output
            problem.value[200 * 70 + 70] = .nan
            var one: [Float]?
            for threads in [1, 2, 3, 8] {
                problem.options.threads = threads
                let found = try problem.forward().output
                if let one { #expect(place(found, one) == nil, "\(threads) threads") }
                one = one ?? found
            }
            for (i, (found, expected)) in zip(one!, plain).enumerated() {
                let (token, column) = (i / 400, i % 200)
                if column == 70 && token >= 70 {
                    #expect(found.isNaN, "token \(token)")
                } else if column / 32 != 70 / 32 || token < 70 {
                    #expect(found.bitPattern == expected.bitPattern, "\(token), \(column)")
                } else {
                    // Measured: 2.5e-4, of numbers up to 2.1.
                    #expect(abs(found - expected) < 5e-4, "\(token), \(column)")
                }
            }
        }

        /// What is not finite is not finite with AVX-512 either, and the rest is close to it.
        @Test func specialNumbers() throws {
            guard InstructionSet.avx512.isSupported else { return }
            for (other, at) in [(Float.infinity, 3), (.nan, 80), (-.infinity, 64)] {
                for spoilt in 0..<3 {
                    var problem = Self.sequence(.token)
                    switch spoilt {
                    case 0: problem.query[48 * at] = other
                    case 1: problem.key[24 * at + 5] = other
                    default: problem.value[40 * at + 7] = other
                    }
                    var first: Problem.Found?
                    try withEachInstructionSet([.avx512, .amx]) { set in
                        let found = try problem.forward()
                        let expected = first ?? found
                        let label = "\(other) in \(spoilt)"
                        for ((name, ours), (_, theirs)) in zip(found.arrays, expected.arrays) {
                            #expect(
                                ours.map(\.isFinite) == theirs.map(\.isFinite),
                                "\(label): special values in \(name)")
                            let error = relativeError(finite(ours), finite(theirs))
                            // Measured: 2.1e-5, states 5.3e-6.
                            let limit = name == "o" ? 5e-5 : 1e-5
                            #expect(error < limit, "\(label): \(name) \(error)")
                        }
                        first = expected
                    }
                }
            }
        }

        @Test(arguments: decays, 1...3)
        func splitAndResume(decay: DeltaRule.Decay, steps: Int) throws {
            let whole = Self.sequence(decay, steps: steps)
            let expected = try whole.forward()
            for split in [0, 1, 16, 63, 64, 65, 100, 128, 150] {
                let start = try whole.part(0..<split).forward()
                var second = whole.part(split..<150)
                second.initialState = start.finalState
                let end = try second.forward()
                let output = relativeError(
                    start.output + end.output, expected.output.map { Double($0) })
                let state = relativeError(end.finalState, expected.finalState.map { Double($0) })
                // Measured: 2.5e-4 and 8.6e-6.
                #expect(output < 5e-4 && state < 2e-5, "\(split): \(output), \(state)")
                guard split % 64 == 0 else { continue }
                #expect(place(start.output + end.output, expected.output) == nil, "\(split)")
                #expect(place(end.finalState, expected.finalState) == nil, "\(split)")
            }
        }

        @Test(arguments: decays, 1...3)
        func packedEqualsLoop(decay: DeltaRule.Decay, steps: Int) throws {
            let offsets = [0, 5, 5, 21, 84, 149, 150]
            var packed = Self.sequence(decay, steps: steps)
            packed.offsets = offsets
            packed.addStates(seed: 30)
            packed.options.stateStride = 7
            let found = try packed.forward()
            var loop = Problem.Found()
            for n in 0..<offsets.count - 1 {
                var one = packed.part(offsets[n]..<offsets[n + 1])
                one.offsets = nil
                one.initialState = packed.initialState.map {
                    Array($0[n * 2 * 24 * 40..<(n + 1) * 2 * 24 * 40])
                }
                let part = try one.forward()
                loop.output += part.output
                loop.finalState += part.finalState
                loop.states += part.states
            }
            #expect(found.difference(from: loop) == nil)
        }

        @Test(arguments: decays, 1...3)
        func statesOnTheWay(decay: DeltaRule.Decay, steps: Int) throws {
            var problem = Self.sequence(decay, steps: steps)
            let plain = try problem.forward()
            let size = problem.stateCount
            for stride in [3, 16, 33, 64, 70, 150, 151] {
                problem.options.stateStride = stride
                let found = try problem.forward()
                #expect(place(found.output, plain.output) == nil, "stride \(stride)")
                #expect(place(found.finalState, plain.finalState) == nil, "stride \(stride)")
                for i in 0..<150 / stride {
                    let end = try problem.part(0..<(i + 1) * stride).forward().finalState
                    let state = Array(found.states[i * size..<(i + 1) * size])
                    #expect(place(state, end) == nil, "stride \(stride), \(i)")
                }
            }
        }

        @Test(arguments: decays, 1...3)
        func threadsLayoutsAndMemory(decay: DeltaRule.Decay, steps: Int) throws {
            let wide = Self.sequence(decay, steps: steps, keyWidth: 65, valueWidth: 200)
            var many = Problem(
                batch: 3, tokens: 100, steps: steps, heads: 6, keyHeads: 2, keyWidth: 33,
                valueWidth: 34, decay: decay, seed: 2)
            many.addStates(seed: 1)
            many.options.form = .automatic
            let workspace = Workspace()
            for var problem in [wide, many] {
                problem.options.threads = 1
                let one = try problem.forward()
                for threads in [2, 3, 8] {
                    problem.options.threads = threads
                    for layout in [Problem.Layout.tokenMajor, .headMajor, .apart] {
                        problem.layout = layout
                        let found = try problem.forward(workspace: workspace)
                        #expect(
                            found.difference(from: one) == nil, "\(threads) threads, \(layout)")
                    }
                }
                let inPlace = try problem.forwardInPlace()
                #expect(place(inPlace.output, one.output) == nil)
            }
        }
    }
}
