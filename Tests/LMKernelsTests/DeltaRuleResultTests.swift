import LMKernels
import Testing

extension KernelSuite {
    /// What decides how a call is computed and changes nothing: which results are asked for, and
    /// which heads go together.
    @Suite struct DeltaRuleResultTests {
        private typealias Problem = DeltaRuleProblem<Float>

        /// A call on dense arrays; `isAsked` says whether for o, the last state, and all states.
        private func forward(
            _ problem: Problem, _ isAsked: (Bool, Bool, Bool)
        ) throws -> Problem.Found {
            let shape = problem.shape
            let states = problem.stateCount * shape.tokens
            func empty(_ count: Int, _ isThere: Bool) -> [Float]? {
                isThere ? [Float](repeating: .nan, count: count) : nil
            }
            let outputs = shape.batch * shape.tokens * shape.heads * shape.valueWidth
            var output = empty(outputs, isAsked.0)
            var last = empty(problem.stateCount, isAsked.1)
            var all = empty(states, isAsked.2)
            let (query, key, value) = (problem.query, problem.key, problem.value)
            let (beta, a, b) = (problem.beta, problem.a, problem.b)
            let (logDecay, start) = (problem.logDecay, problem.initialState)
            try DeltaRule.forward(
                query: query.span, key: key.span, value: value.span, beta: beta?.span, a: a?.span,
                b: b?.span, logDecay: logDecay?.span, initialState: start?.span,
                output: output?.mutableSpan, finalState: last?.mutableSpan,
                states: all?.mutableSpan, shape: shape, options: problem.options,
                workspace: Workspace())
            return Problem.Found(
                output: output ?? [], finalState: last ?? [], states: all ?? [])
        }

        /// A dimension that is never written, with a state of -0 in it.
        private func clearFirstKey(_ problem: inout Problem) {
            let width = problem.shape.keyWidth
            for i in stride(from: 0, to: problem.key.count, by: width) {
                problem.key[i] = 0
                problem.b?[i] = 0
            }
            guard let count = problem.initialState?.count else { return }
            for i in 0..<count where i / problem.shape.valueWidth % width == 0 {
                problem.initialState![i] = -0.0
            }
        }

        /// A single token, which may be a step on the state where it lies, or not; and several.
        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func resultsOneAtATime(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for (tokens, steps) in [(1, 0), (1, 1), (1, 2), (20, 0), (20, 1), (20, 2)] {
                for hasStart in [false, true] {
                    var problem = Problem(
                        batch: 2, tokens: tokens, steps: max(steps, 1), heads: 2, keyHeads: 1,
                        keyWidth: 24, valueWidth: 112, decay: decay, isGeneralized: steps == 0,
                        seed: 6)
                    if hasStart { problem.addStates(seed: 7) }
                    clearFirstKey(&problem)
                    problem.options.form = form
                    let label = "\(tokens) tokens of \(steps), start \(hasStart)"
                    try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                        let all = try forward(problem, (true, true, true))
                        #expect(all.arrays.allSatisfy { $0.values.allSatisfy(\.isFinite) })
                        // The last state of each sequence and head is the last of all.
                        let size = 2 * 24 * 112
                        let last = (1...2).flatMap { n in
                            all.states[(n * tokens - 1) * size..<n * tokens * size]
                        }
                        let error = relativeError(all.finalState, last.map { Double($0) })
                        #expect(error < 1e-6, "\(set) \(label): \(error)")
                        for choice in 1..<7 {
                            let isAsked = (choice & 1 != 0, choice & 2 != 0, choice & 4 != 0)
                            let found = try forward(problem, isAsked)
                            let expected = Problem.Found(
                                output: isAsked.0 ? all.output : [],
                                finalState: isAsked.1 ? all.finalState : [],
                                states: isAsked.2 ? all.states : [])
                            #expect(
                                found.difference(from: expected) == nil,
                                "\(set) \(label), results \(choice)")
                        }
                    }
                }
            }
        }

        /// Three heads, which go by two: one is left over.
        @Test(arguments: [false, true])
        func headsThatAreLeftOver(isGeneralized: Bool) throws {
            var problem = Problem(
                batch: 3, tokens: 40, heads: 6, keyHeads: 3, keyWidth: 32, valueWidth: 40,
                decay: .token, isGeneralized: isGeneralized, seed: 8)
            problem.addStates(seed: 9)
            problem.options.threads = 2
            try problem.check(isGeneralized ? "generalised" : "3 heads")
        }

        /// What a call on NaN leaves in a workspace reaches no other.
        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func workspaceAfterNaN(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for (tokens, steps, heads) in [(37, 0, 1), (37, 1, 1), (37, 2, 2), (150, 1, 2)] {
                var problem = Problem(
                    tokens: tokens, steps: max(steps, 1), heads: heads, keyWidth: 17,
                    valueWidth: 16, decay: decay, isGeneralized: steps == 0, seed: 10)
                problem.choose(7, seed: 11)
                problem.options.form = form
                var spoiled = problem
                func spoil(_ x: inout [Float]) { for i in x.indices { x[i] = .nan } }
                spoil(&spoiled.query)
                spoil(&spoiled.key)
                spoil(&spoiled.value)
                spoil(&spoiled.initialState!)
                try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                    let expected = (try problem.forward(), try problem.backward())
                    let workspace = Workspace()
                    _ = try spoiled.backward(workspace: workspace)
                    let slopes = try problem.backward(workspace: workspace)
                    _ = try spoiled.forward(workspace: workspace)
                    let found = try problem.forward(workspace: workspace)
                    let label = "\(set): \(tokens) tokens of \(steps)"
                    #expect(found.difference(from: expected.0) == nil, "\(label)")
                    #expect(slopes.difference(from: expected.1) == nil, "\(label)")
                }
            }
        }
    }
}
