import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// What changes no bit.
    @Suite struct DeltaRuleBitsTests {
        private typealias Problem = DeltaRuleProblem<Float>

        private static let forms: [DeltaRule.Form] = [.recurrent, .chunked]

        /// Few sequences and heads, so that threads cut columns; many; packed; one long sequence;
        /// the generalised form.
        private static func problems(_ decay: DeltaRule.Decay) -> [(String, Problem)] {
            var wide = Problem(tokens: 50, keyWidth: 65, valueWidth: 200, decay: decay, seed: 1)
            wide.addStates(seed: 1)
            var many = Problem(
                batch: 2, tokens: 70, steps: 2, heads: 6, keyHeads: 2, keyWidth: 33,
                valueWidth: 34, decay: decay, seed: 2)
            many.choose(11, seed: 2)
            var packed = Problem(
                tokens: 90, steps: 3, heads: 2, keyWidth: 64, valueWidth: 64, decay: decay,
                offsets: [0, 40, 40, 41, 90], seed: 3)
            packed.choose(5, seed: 3)
            var long = Problem(
                tokens: 2100, keyWidth: 16, valueWidth: 40, decay: decay, seed: 4)
            long.addStates(seed: 4)
            long.options.stateStride = 500
            var generalized = Problem(
                batch: 2, tokens: 60, heads: 2, keyHeads: 1, keyWidth: 40, valueWidth: 72,
                decay: decay, isGeneralized: true, seed: 5)
            generalized.choose(7, seed: 5)
            return [
                ("wide", wide), ("many", many), ("packed", packed), ("long", long),
                ("generalised", generalized),
            ]
        }

        /// Forward and backward.
        private struct Both {
            let (forward, backward): (Problem.Found, Problem.Found)

            init(_ problem: Problem, workspace: Workspace = Workspace()) throws {
                forward = try problem.forward(workspace: workspace)
                backward = try problem.backward(workspace: workspace)
            }

            func difference(from other: Both) -> String? {
                forward.difference(from: other.forward)
                    ?? backward.difference(from: other.backward)
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func threads(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for (name, problem) in Self.problems(decay) {
                var problem = problem
                problem.options.form = form
                problem.options.threads = 1
                let one = try Both(problem)
                for threads in [2, 3, 8] {
                    problem.options.threads = threads
                    #expect(
                        try Both(problem).difference(from: one) == nil,
                        "\(name), \(threads) threads")
                }
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, forms)
        func instructionSets(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for (name, problem) in Self.problems(decay) {
                var problem = problem
                problem.options.form = form
                var first: Both?
                try withEachInstructionSet(fusedSets, of: .deltaRule(.float32)) { set in
                    let found = try Both(problem)
                    #expect(found.difference(from: first ?? found) == nil, "\(name) \(set)")
                    first = first ?? found
                }
            }
        }

        @Test(arguments: forms)
        func layoutsAndMemory(form: DeltaRule.Form) throws {
            for (name, problem) in Self.problems(.key) {
                var problem = problem
                problem.options.form = form
                let expected = try Both(problem)
                for layout in [Problem.Layout.tokenMajor, .headMajor] {
                    problem.layout = layout
                    #expect(
                        try Both(problem).difference(from: expected) == nil, "\(name) \(layout)")
                }
                for budget in [1, 10_000, 1 << 20] {
                    problem.options.memoryBudget = budget
                    #expect(
                        try Both(problem).difference(from: expected) == nil,
                        "\(name) budget \(budget)")
                }
            }
        }

        /// A workspace that other calls have used holds nothing that matters.
        @Test(arguments: forms)
        func workspaceIsScratch(form: DeltaRule.Form) throws {
            let workspace = Workspace()
            for (name, problem) in Self.problems(.token) {
                var problem = problem
                problem.options.form = form
                let expected = try Both(problem)
                for _ in 0..<2 {
                    let found = try Both(problem, workspace: workspace)
                    #expect(found.difference(from: expected) == nil, "\(name)")
                }
            }
        }

        /// What is not asked for makes no difference to the rest.
        @Test func gradientsOneAtATime() throws {
            for isGeneralized in [false, true] {
                var problem = Problem(
                    tokens: 40, heads: 2, keyHeads: 1, keyWidth: 20, valueWidth: 24, decay: .key,
                    isGeneralized: isGeneralized)
                problem.addStates(seed: 4)
                problem.layout = .tokenMajor
                let all = try problem.backward()
                let (query, key, value) = (problem.query, problem.key, problem.value)
                let (beta, a, b) = (problem.beta, problem.a, problem.b)
                let (logDecay, state) = (problem.logDecay, problem.initialState)
                let (upstream, stateGradient) =
                    (problem.outputGradient, problem.finalStateGradient)
                for (name, expected) in all.arrays where !expected.isEmpty {
                    var one = [Float](repeating: .nan, count: expected.count)
                    let buffer = UnsafeMutableBufferPointer<Float>.allocate(
                        capacity: one.count)
                    defer { unsafe buffer.deallocate() }
                    func part(_ which: String) -> UnsafeMutableBufferPointer<Float>? {
                        which == name ? unsafe buffer : nil
                    }
                    let (dq, dk, dv) = unsafe (part("dq"), part("dk"), part("dv"))
                    let (dbeta, da, db) = unsafe (part("dbeta"), part("da"), part("db"))
                    let (dg, ds) = unsafe (part("dg"), part("dS"))
                    try unsafe DeltaRule.backward(
                        query: query.span, key: key.span, value: value.span, beta: beta?.span,
                        a: a?.span, b: b?.span, logDecay: logDecay?.span,
                        initialState: state?.span, outputGradient: upstream.span,
                        finalStateGradient: stateGradient?.span, queryGradient: dq?.mutableSpan,
                        keyGradient: dk?.mutableSpan, valueGradient: dv?.mutableSpan,
                        betaGradient: dbeta?.mutableSpan, aGradient: da?.mutableSpan,
                        bGradient: db?.mutableSpan, logDecayGradient: dg?.mutableSpan,
                        initialStateGradient: ds?.mutableSpan, shape: problem.shape,
                        options: problem.options, workspace: Workspace())
                    unsafe one = Array(buffer)
                    #expect(place(one, expected) == nil, "\(name)")
                }
            }
        }

        // MARK: - Tokens

        private static func sequence(
            _ decay: DeltaRule.Decay, _ form: DeltaRule.Form, steps: Int, tokens: Int = 70
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, steps: max(steps, 1), heads: 2, keyHeads: 1, keyWidth: 24,
                valueWidth: 40, decay: decay, isGeneralized: steps == 0, seed: 21)
            problem.addStates(seed: 8)
            problem.options.form = form
            problem.options.threads = 2
            return problem
        }

        @Test(arguments: DeltaRule.Decay.allCases, forms)
        func prefixes(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for steps in 0...3 {
                let whole = Self.sequence(decay, form, steps: steps)
                let expected = try whole.forward().output
                for count in [1, 2, 3, 15, 16, 17, 31, 33, 64, 69] {
                    // Nothing follows, and something else does.
                    let first = Array(expected.prefix(count * 80))
                    let short = try whole.part(0..<count).forward().output
                    #expect(place(short, first) == nil, "\(steps): \(count) tokens alone")
                    for other in [Float.nan, 1e30] {
                        var changed = whole
                        func spoil(_ x: inout [Float]) {
                            for i in x.count / 70 * count..<x.count { x[i] = other }
                        }
                        spoil(&changed.query)
                        spoil(&changed.key)
                        spoil(&changed.value)
                        if changed.beta != nil { spoil(&changed.beta!) }
                        if changed.a != nil { spoil(&changed.a!) }
                        if changed.b != nil { spoil(&changed.b!) }
                        if let g = whole.logDecay {
                            for i in g.count / 70 * count..<g.count {
                                changed.logDecay![i] = other.isNaN ? -.infinity : -0.001
                            }
                        }
                        let found = Array(try changed.forward().output.prefix(count * 80))
                        #expect(place(found, first) == nil, "\(steps): \(count) before \(other)")
                    }
                }
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, forms)
        func splitAndResume(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for steps in 0...3 {
                let whole = Self.sequence(decay, form, steps: steps)
                let expected = try whole.forward()
                for split in 0...70 {
                    let start = try whole.part(0..<split).forward()
                    var second = whole.part(split..<70)
                    second.initialState = start.finalState
                    let end = try second.forward()
                    let output = start.output + end.output
                    for (found, all) in [
                        (output, expected.output), (end.finalState, expected.finalState),
                    ] {
                        let error = relativeError(found, all.map { Double($0) })
                        #expect(error < 3e-6, "\(steps) steps, split at \(split): \(error)")
                    }
                }
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, forms)
        func packedEqualsLoop(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for steps in 0...3 {
                let offsets = [0, 5, 5, 38, 70]
                var packed = Self.sequence(decay, form, steps: steps)
                packed.offsets = offsets
                packed.addStates(seed: 30)
                packed.options.stateStride = 7
                let forward = try packed.forward()
                let backward = try packed.backward()
                var loop = Problem.Found()
                var slopes = Problem.Found()
                for n in 0..<offsets.count - 1 {
                    var one = packed.part(offsets[n]..<offsets[n + 1])
                    one.offsets = nil
                    func state(_ x: [Float]?) -> [Float]? {
                        let size = 2 * 24 * 40
                        return x.map { Array($0[n * size..<(n + 1) * size]) }
                    }
                    one.initialState = state(packed.initialState)
                    one.finalStateGradient = state(packed.finalStateGradient)
                    let found = try one.forward()
                    loop.output += found.output
                    loop.finalState += found.finalState
                    loop.states += found.states
                    let gradients = try one.backward()
                    slopes.query += gradients.query
                    slopes.key += gradients.key
                    slopes.value += gradients.value
                    slopes.beta += gradients.beta
                    slopes.a += gradients.a
                    slopes.b += gradients.b
                    slopes.logDecay += gradients.logDecay
                    slopes.initialState += gradients.initialState
                }
                #expect(forward.difference(from: loop) == nil, "\(steps) steps")
                #expect(backward.difference(from: slopes) == nil, "\(steps) steps")
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, forms)
        func statesOnTheWay(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            for steps in 0...3 {
                var problem = Self.sequence(decay, form, steps: steps)
                let plain = try problem.forward()
                let size = problem.stateCount
                for stride in [2, 3, 16, 33, 70, 71] {
                    problem.options.stateStride = stride
                    let found = try problem.forward()
                    #expect(place(found.output, plain.output) == nil, "stride \(stride)")
                    #expect(place(found.finalState, plain.finalState) == nil, "stride \(stride)")
                    for i in 0..<70 / stride {
                        var first = problem.part(0..<(i + 1) * stride)
                        first.options.stateStride = 1
                        let end = try first.forward().finalState
                        let state = Array(found.states[i * size..<(i + 1) * size])
                        let error = relativeError(state, end.map { Double($0) })
                        #expect(error < 1e-6, "\(steps): stride \(stride), \(i): \(error)")
                    }
                }
            }
        }

        // MARK: - The state in place

        @Test(arguments: DeltaRule.Decay.allCases, DeltaRule.Form.allCases)
        func inPlace(decay: DeltaRule.Decay, form: DeltaRule.Form) throws {
            // Columns go to different threads.
            for (tokens, steps, width) in [
                (1, 1, 16), (1, 1, 48), (1, 1, 200), (1, 0, 64), (1, 2, 64), (1, 3, 80),
                (2, 1, 64), (2, 0, 112), (70, 1, 200), (70, 2, 33),
            ] {
                var problem = Problem(
                    tokens: tokens, steps: max(steps, 1), keyWidth: 64, valueWidth: width,
                    decay: decay, isGeneralized: steps == 0, seed: 5)
                problem.addStates(seed: 5)
                problem.options.form = form
                try withEachInstructionSet(of: .deltaRule(.float32)) { set in
                    problem.options.threads = 1
                    let apart = try problem.forward()
                    for threads in [1, 2, 8] {
                        problem.options.threads = threads
                        let found = try problem.forwardInPlace()
                        let label = "\(set): \(tokens) tokens of \(steps), \(threads) threads"
                        #expect(place(found.output, apart.output) == nil, "\(label)")
                        #expect(place(found.finalState, apart.finalState) == nil, "\(label)")
                    }
                }
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, 0...3)
        func stepsAreTheRecurrence(decay: DeltaRule.Decay, steps: Int) throws {
            var whole = Problem(
                batch: 3, tokens: 20, steps: max(steps, 1), heads: 4, keyHeads: 2, keyWidth: 40,
                valueWidth: 33, decay: decay, isGeneralized: steps == 0, seed: 12)
            whole.addStates(seed: 2)
            whole.options.form = .recurrent
            whole.options.threads = 2
            let expected = try whole.forward()
            var state = whole.initialState!
            var outputs: [Float] = []
            let workspace = Workspace()
            var shape = whole.shape
            shape.tokens = 1
            /// Token t of every sequence.
            func token(_ x: [Float], _ t: Int) -> [Float] {
                let row = x.count / 60
                return (0..<3).flatMap { b in x[(b * 20 + t) * row..<(b * 20 + t + 1) * row] }
            }
            for t in 0..<20 {
                let (q, k, v) = (token(whole.query, t), token(whole.key, t), token(whole.value, t))
                let beta = whole.beta.map { token($0, t) }
                let (a, b) = (whole.a.map { token($0, t) }, whole.b.map { token($0, t) })
                let g = whole.logDecay.map { token($0, t) }
                var output = [Float](repeating: .nan, count: 3 * 4 * 33)
                var span = state.mutableSpan
                try DeltaRule.step(
                    query: q.span, key: k.span, value: v.span, beta: beta?.span, a: a?.span,
                    b: b?.span, logDecay: g?.span, state: &span, output: output.mutableSpan,
                    shape: shape, options: whole.options, workspace: workspace)
                outputs += output
            }
            let inOrder = (0..<20).flatMap { token(expected.output, $0) }
            let error = relativeError(outputs, inOrder.map { Double($0) })
            #expect(error < 1e-6, "\(error)")
            let ofState = relativeError(state, expected.finalState.map { Double($0) })
            #expect(ofState < 1e-6, "\(ofState)")
        }
    }
}
