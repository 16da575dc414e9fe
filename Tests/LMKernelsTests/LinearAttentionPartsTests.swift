import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// Calls that ask for a part of what there is, and the memory that calls work in.
    @Suite struct LinearAttentionPartsTests {
        private typealias Problem = LinearAttentionProblem<Float>

        private static func problem(
            _ decay: LinearAttention.Decay, tokens: Int = 40, isNormalized: Bool = false
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, heads: 2, keyWidth: 24, valueWidth: 100, decay: decay,
                isNormalized: isNormalized, seed: 31)
            problem.addStates(seed: 32)
            problem.addBonus(seed: 33)
            problem.layout = .tokenMajor
            return problem
        }

        // MARK: - Parts

        /// The outputs alone, though there is an initial state: columns go to different threads.
        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func outputAlone(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            for isNormalized in [false, true] {
                var problem = Self.problem(decay, isNormalized: isNormalized)
                problem.options.form = form
                let expected = try problem.forward().output
                for threads in [1, 3, 8] {
                    problem.options.threads = threads
                    var output = [Float](repeating: .nan, count: expected.count)
                    try LinearAttention.forward(
                        query: problem.query.span, key: problem.key.span,
                        value: problem.value.span, logDecay: problem.logDecay?.span,
                        bonus: problem.bonus?.span, initialState: problem.initialState?.span,
                        initialNormalizer: problem.initialNormalizer?.span,
                        output: output.mutableSpan, shape: problem.shape,
                        options: problem.options, workspace: Workspace())
                    #expect(bits(output) == bits(expected), "\(threads) threads, \(isNormalized)")
                }
            }
        }

        /// The states alone, at a stride: nothing is read.
        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func statesAlone(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Self.problem(decay)
            problem.options.form = form
            problem.options.stateStride = 7
            let expected = try problem.forward()
            for threads in [1, 3, 8] {
                problem.options.threads = threads
                var states = [Float](repeating: .nan, count: expected.states.count)
                var final = [Float](repeating: .nan, count: expected.finalState.count)
                try LinearAttention.forward(
                    query: problem.query.span, key: problem.key.span, value: problem.value.span,
                    logDecay: problem.logDecay?.span, bonus: problem.bonus?.span,
                    initialState: problem.initialState?.span, finalState: final.mutableSpan,
                    states: states.mutableSpan, shape: problem.shape, options: problem.options,
                    workspace: Workspace())
                #expect(bits(states) == bits(expected.states), "\(threads) threads")
                #expect(bits(final) == bits(expected.finalState), "\(threads) threads")
            }
        }

        /// Each gradient by itself.
        @Test(arguments: LinearAttention.Decay.allCases)
        func oneGradientAtATime(decay: LinearAttention.Decay) throws {
            let problem = Self.problem(decay, isNormalized: true)
            let expected = try problem.backward().arrays.filter { !$0.values.isEmpty }
            for (name, values) in expected {
                func empty(_ other: String) -> [Float]? {
                    name == other ? [Float](repeating: .nan, count: values.count) : nil
                }
                var (dq, dk, dv) = (empty("dq"), empty("dk"), empty("dv"))
                var (dg, du) = (empty("dg"), empty("du"))
                var (dS, dz) = (empty("dS"), empty("dz"))
                try LinearAttention.backward(
                    query: problem.query.span, key: problem.key.span, value: problem.value.span,
                    logDecay: problem.logDecay?.span, bonus: problem.bonus?.span,
                    initialState: problem.initialState?.span,
                    initialNormalizer: problem.initialNormalizer?.span,
                    outputGradient: problem.outputGradient.span,
                    finalStateGradient: problem.finalStateGradient?.span,
                    finalNormalizerGradient: problem.finalNormalizerGradient?.span,
                    queryGradient: dq?.mutableSpan, keyGradient: dk?.mutableSpan,
                    valueGradient: dv?.mutableSpan, logDecayGradient: dg?.mutableSpan,
                    bonusGradient: du?.mutableSpan, initialStateGradient: dS?.mutableSpan,
                    initialNormalizerGradient: dz?.mutableSpan,
                    shape: problem.shape, options: problem.options, workspace: Workspace())
                let found = [dq, dk, dv, dg, du, dS, dz].compactMap(\.self)
                #expect(found.map { bits($0) } == [bits(values)], "\(name)")
            }
        }

        // MARK: - Zeros

        /// A state of -0 that tokens of -0 come to: how many tokens a pass takes is not seen.
        @Test func signOfZero() throws {
            for tokens in 4...9 {
                var problem = Problem(
                    tokens: tokens, keyWidth: 5, valueWidth: 40, decay: .token, seed: 37)
                problem.key = problem.key.map { _ in 0 }
                problem.value = problem.value.map { _ in -1 }
                problem.initialState = [Float](repeating: -0.0, count: 200)
                var first: [UInt32]?
                try withEachInstructionSet(fusedSets, of: .linearAttention(.float32)) { set in
                    let found = bits(try problem.forward().finalState)
                    #expect(found == first ?? found, "\(tokens) tokens \(set)")
                    first = first ?? found
                }
            }
        }

        // MARK: - Memory

        /// What other calls left in a workspace is not read, be it NaN.
        @Test(arguments: LinearAttention.Decay.allCases)
        func workspaceOfNaN(decay: LinearAttention.Decay) throws {
            for valueWidth in [16, 40] {
                for isNormalized in [false, true] {
                    for choice in 0..<3 {
                        guard choice < 2 || decay == .none else { continue }
                        // Two sequences of 37 tokens, a long one in segments, and both ways.
                        var problem = Problem(
                            batch: choice == 1 ? 1 : 2, tokens: choice == 1 ? 2100 : 37, heads: 2,
                            keyWidth: 20, valueWidth: valueWidth, decay: decay,
                            isNormalized: isNormalized, seed: 34)
                        problem.options.isBidirectional = choice == 2
                        if choice < 2 { problem.addStates(seed: 35) }
                        let expected = try problem.forward().bits + problem.backward().bits
                        var poison = problem
                        func fill(_ x: inout [Float]) { x = x.map { _ in .nan } }
                        fill(&poison.query)
                        fill(&poison.key)
                        fill(&poison.value)
                        fill(&poison.outputGradient)
                        let workspace = Workspace()
                        _ = try poison.forward(workspace: workspace)
                        let forward = try problem.forward(workspace: workspace).bits
                        _ = try poison.backward(workspace: workspace)
                        let backward = try problem.backward(workspace: workspace).bits
                        let label = "\(valueWidth) columns, \(isNormalized), \(choice)"
                        #expect(forward + backward == expected, "\(label)")
                    }
                }
            }
        }

        /// A budget takes from the states that backward keeps: of one long sequence, which has more
        /// chunks to a block, and of heads side by side.
        @Test func memoryBudget() throws {
            for (tokens, heads) in [(4096, 1), (128, 8)] {
                var problem = Problem(
                    tokens: tokens, heads: heads, keyHeads: heads, keyWidth: 32, valueWidth: 32,
                    isNormalized: true, seed: 36)
                func bytes(_ budget: Int?) throws -> Int {
                    problem.options.memoryBudget = budget
                    let workspace = Workspace()
                    _ = try problem.backward(workspace: workspace)
                    return workspace.byteCount
                }
                #expect(try bytes(1) < bytes(nil), "\(tokens) tokens, \(heads) heads")
            }
        }
    }
}
