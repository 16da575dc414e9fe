import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// What changes no bit.
    @Suite struct LinearAttentionBitsTests {
        private typealias Problem = LinearAttentionProblem<Float>

        /// Few sequences and heads, so that threads cut columns; many; packed; one long sequence,
        /// which is cut into segments.
        private static func problems(_ decay: LinearAttention.Decay) -> [(String, Problem)] {
            var wide = Problem(
                tokens: 50, keyWidth: 65, valueWidth: 200, decay: decay, seed: 1)
            wide.addStates(seed: 1)
            var many = Problem(
                batch: 2, tokens: 70, heads: 6, keyHeads: 2, keyWidth: 33, valueWidth: 34,
                decay: decay, isNormalized: true, seed: 2)
            many.choose(11, seed: 2)
            var packed = Problem(
                tokens: 90, heads: 2, keyWidth: 64, valueWidth: 64, decay: decay,
                offsets: [0, 40, 40, 41, 90], seed: 3)
            packed.choose(9, seed: 3)
            var long = Problem(
                tokens: 4200, keyWidth: 16, valueWidth: 40, decay: decay, seed: 4)
            long.addStates(seed: 4)
            long.options.stateStride = 1000
            return [("wide", wide), ("many", many), ("packed", packed), ("long", long)]
        }

        private func allBits(_ problem: Problem) throws -> [[UInt32]] {
            try problem.forward().bits + problem.backward().bits
        }

        @Test(arguments: LinearAttention.Decay.allCases)
        func threads(decay: LinearAttention.Decay) throws {
            for (name, problem) in Self.problems(decay) {
                for form in LinearAttention.Form.allCases where name != "long" || form == .automatic
                {
                    var problem = problem
                    problem.options.form = form
                    problem.options.threads = 1
                    let one = try allBits(problem)
                    for threads in [2, 3, 8] {
                        problem.options.threads = threads
                        #expect(try allBits(problem) == one, "\(name) \(form) \(threads) threads")
                    }
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases)
        func instructionSets(decay: LinearAttention.Decay) throws {
            for (name, problem) in Self.problems(decay) {
                for form in LinearAttention.Form.allCases where name != "long" || form != .recurrent
                {
                    var problem = problem
                    problem.options.form = form
                    var first: [[UInt32]]?
                    try withEachInstructionSet(fusedSets, of: .linearAttention(.float32)) { set in
                        let found = try allBits(problem)
                        #expect(found == first ?? found, "\(name) \(form) \(set)")
                        first = first ?? found
                    }
                }
            }
            for isNormalized in [false, true] {
                var both = Problem(
                    tokens: 100, heads: 2, keyWidth: 33, valueWidth: 65,
                    isNormalized: isNormalized, seed: 6)
                both.options.isBidirectional = true
                both.options.unitLengthEpsilon = 1e-6
                var first: [[UInt32]]?
                try withEachInstructionSet(fusedSets, of: .linearAttention(.float32)) { set in
                    let found = try allBits(both)
                    #expect(found == first ?? found, "bidirectional \(set)")
                    first = first ?? found
                }
            }
        }

        @Test func layoutsAndMemory() throws {
            for (name, problem) in Self.problems(.key) {
                var problem = problem
                let expected = try allBits(problem)
                for layout in [Problem.Layout.tokenMajor, .headMajor] {
                    problem.layout = layout
                    #expect(try allBits(problem) == expected, "\(name) \(layout)")
                }
                for budget in [1, 10_000, 1 << 20] {
                    problem.options.memoryBudget = budget
                    #expect(try allBits(problem) == expected, "\(name) budget \(budget)")
                }
            }
        }

        /// A workspace that other calls have used holds nothing that matters.
        @Test func workspaceIsScratch() throws {
            let workspace = Workspace()
            for (name, problem) in Self.problems(.token) {
                let expected = try allBits(problem)
                for _ in 0..<2 {
                    let found =
                        try problem.forward(workspace: workspace).bits
                        + problem.backward(workspace: workspace).bits
                    #expect(found == expected, "\(name)")
                }
            }
        }

        // MARK: - Tokens

        /// Whether a call of so many tokens computes as a longer one does: the automatic form takes
        /// short ones another way.
        private static func isAlike(_ form: LinearAttention.Form, _ tokens: Int) -> Bool {
            form != .automatic || tokens >= 8
        }

        private static func sequence(
            _ decay: LinearAttention.Decay, _ form: LinearAttention.Form, tokens: Int = 70
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 24, valueWidth: 40, decay: decay,
                isNormalized: decay == .head, seed: 21)
            problem.addStates(seed: 8)
            problem.options.form = form
            problem.options.threads = 2
            return problem
        }

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func prefixes(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let whole = Self.sequence(decay, form)
            let tokens = whole.shape.tokens
            let expected = try whole.forward().output
            for count in [1, 2, 15, 16, 17, 31, 33, 64, 69] where Self.isAlike(form, count) {
                // Nothing follows, and something else does.
                let short = try whole.prefix(count).forward().output
                let first = expected.firstTokens(count, of: tokens)
                #expect(bits(short) == bits(first), "\(count) tokens alone")
                for other in [Float.nan, 1e30] {
                    var changed = whole
                    let widths = changed.shape
                    for i in count * widths.heads * widths.keyWidth..<changed.query.count {
                        changed.query[i] = other
                    }
                    for i in count * widths.keyWidth..<changed.key.count { changed.key[i] = other }
                    for i in count * widths.valueWidth..<changed.value.count {
                        changed.value[i] = other
                    }
                    if decay == .token || decay == .key {
                        let perToken = changed.logDecay!.count / tokens
                        for i in count * perToken..<changed.logDecay!.count {
                            changed.logDecay![i] = other.isNaN ? -.infinity : -0.001
                        }
                    }
                    let found = try changed.forward().output.firstTokens(count, of: tokens)
                    #expect(bits(found) == bits(first), "\(count) tokens before \(other)")
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func splitAndResume(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let whole = Self.sequence(decay, form)
            let tokens = whole.shape.tokens
            let expected = try whole.forward()
            for split in 0...tokens {
                let first = whole.prefix(split)
                var second = whole.suffix(from: split)
                let start = try first.forward()
                second.initialState = start.finalState
                if whole.options.isNormalized { second.initialNormalizer = start.finalNormalizer }
                let end = try second.forward()
                let output = start.output + end.output
                if form == .recurrent || form == .chunked && split % 16 == 0 {
                    #expect(bits(output) == bits(expected.output), "split at \(split)")
                    #expect(bits(end.finalState) == bits(expected.finalState), "at \(split)")
                    #expect(bits(end.finalNormalizer) == bits(expected.finalNormalizer))
                } else {
                    let error = relativeError(output, expected.output.map { Double($0) })
                    #expect(error < 1e-6, "split at \(split): \(error)")
                    let stateError = relativeError(
                        end.finalState, expected.finalState.map { Double($0) })
                    #expect(stateError < 1e-6, "split at \(split): \(stateError)")
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func packedEqualsLoop(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let offsets = [0, 5, 5, 38, 70]
            var packed = Self.sequence(decay, form)
            packed.offsets = offsets
            packed.addStates(seed: 30)
            packed.options.stateStride = 7
            let forward = try packed.forward()
            let backward = try packed.backward()
            var loop = Problem.Found()
            var slopes = Problem.Found()
            for n in 0..<offsets.count - 1 {
                let part = packed.sequence(n)
                let found = try part.forward()
                loop.output += found.output
                loop.finalState += found.finalState
                loop.finalNormalizer += found.finalNormalizer
                loop.states += found.states
                loop.normalizers += found.normalizers
                let gradients = try part.backward()
                slopes.query += gradients.query
                slopes.key += gradients.key
                slopes.value += gradients.value
                slopes.initialState += gradients.initialState
                slopes.initialNormalizer += gradients.initialNormalizer
                if decay != .head { slopes.logDecay += gradients.logDecay }
            }
            if decay == .head { slopes.logDecay = backward.logDecay }
            #expect(forward.bits == loop.bits)
            #expect(backward.bits == slopes.bits)
        }

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func statesOnTheWay(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Self.sequence(decay, form)
            let plain = try problem.forward()
            let size = problem.states * problem.shape.valueWidth
            for stride in [1, 3, 16, 33, 70, 71] {
                problem.options.stateStride = max(stride, 2)
                let found = try problem.forward()
                #expect(bits(found.output) == bits(plain.output), "stride \(stride)")
                #expect(bits(found.finalState) == bits(plain.finalState), "stride \(stride)")
                for i in 0..<70 / problem.options.stateStride {
                    let tokens = (i + 1) * problem.options.stateStride
                    guard Self.isAlike(form, tokens) else { continue }
                    var part = problem.prefix(tokens)
                    part.options.stateStride = 1
                    let end = try part.forward()
                    let state = Array(found.states[i * size..<(i + 1) * size])
                    #expect(bits(state) == bits(end.finalState), "stride \(stride), \(i)")
                    if problem.options.isNormalized {
                        let rows = i * problem.states..<(i + 1) * problem.states
                        #expect(
                            bits(Array(found.normalizers[rows])) == bits(end.finalNormalizer))
                    }
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func maskedTokensDoNothing(
            decay: LinearAttention.Decay, form: LinearAttention.Form
        ) throws {
            guard decay != .head else { return }
            for tokens in [1, 16, 50] {
                var problem = Self.sequence(decay, form, tokens: tokens)
                problem.key = problem.key.map { _ in 0 }
                problem.logDecay = problem.logDecay?.map { _ in 0 }
                let found = try problem.forward()
                #expect(bits(found.finalState) == bits(problem.initialState!), "\(tokens) tokens")
            }
            // Here and there.
            guard form != .automatic else { return }
            let sparse = Self.sequence(decay, .recurrent)
            var masked = sparse
            masked.shape.tokens = 2 * sparse.shape.tokens
            func spread(_ x: [Float], fill: Float?) -> [Float] {
                let width = x.count / sparse.shape.tokens
                return (0..<sparse.shape.tokens).flatMap { t -> [Float] in
                    let row = Array(x[t * width..<(t + 1) * width])
                    return row + row.map { fill ?? $0 }
                }
            }
            masked.query = spread(sparse.query, fill: nil)
            masked.value = spread(sparse.value, fill: nil)
            masked.key = spread(sparse.key, fill: 0)
            masked.outputGradient = spread(sparse.outputGradient, fill: nil)
            masked.logDecay = sparse.logDecay.map { spread($0, fill: 0) }
            #expect(
                bits(try masked.forward().finalState) == bits(try sparse.forward().finalState))
        }

        // MARK: - The state in place

        @Test(arguments: LinearAttention.Decay.allCases, LinearAttention.Form.allCases)
        func inPlace(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            // Columns go to different threads, and segments.
            for (tokens, width) in [(1, 200), (70, 200), (4200, 40)] {
                for isNormalized in [false, true]
                where tokens * width < 1 << 17 || form != .recurrent {
                    var problem = Problem(
                        tokens: tokens, keyWidth: 64, valueWidth: width, decay: decay,
                        isNormalized: isNormalized, seed: 5)
                    problem.addStates(seed: 5)
                    problem.options.form = form
                    problem.options.threads = 1
                    problem.layout = .tokenMajor
                    let apart = try problem.forward()
                    for threads in [1, 2, 8] {
                        problem.options.threads = threads
                        var state = problem.initialState!
                        var normalizer = problem.initialNormalizer
                        var output = [Float](repeating: .nan, count: apart.output.count)
                        var span = state.mutableSpan
                        try LinearAttention.forward(
                            query: problem.query.span, key: problem.key.span,
                            value: problem.value.span, logDecay: problem.logDecay?.span,
                            inPlace: &span, normalizer: normalizer?.mutableSpan,
                            output: output.mutableSpan, shape: problem.shape,
                            options: problem.options, workspace: Workspace())
                        let label = "\(tokens) tokens, \(threads) threads, \(isNormalized)"
                        #expect(bits(output) == bits(apart.output), "\(label)")
                        #expect(bits(state) == bits(apart.finalState), "\(label)")
                        #expect(bits(normalizer ?? []) == bits(apart.finalNormalizer), "\(label)")
                    }
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases)
        func stepsEqualRecurrence(decay: LinearAttention.Decay) throws {
            for isNormalized in [false, true] {
                var whole = Problem(
                    batch: 3, tokens: 20, heads: 4, keyHeads: 2, keyWidth: 40, valueWidth: 33,
                    decay: decay, isNormalized: isNormalized, seed: 12)
                whole.addStates(seed: 2)
                whole.addBonus(seed: 3)
                whole.options.form = .recurrent
                whole.options.threads = 2
                let expected = try whole.forward()
                var state = whole.initialState!
                var normalizer = whole.initialNormalizer
                let workspace = Workspace()
                var shape = whole.shape
                shape.tokens = 1
                let width = shape.heads * shape.valueWidth
                for t in 0..<20 {
                    /// Token t of every sequence.
                    func token(_ x: [Float]) -> [Float] {
                        let row = x.count / 60
                        return (0..<3).flatMap { b in
                            x[(b * 20 + t) * row..<(b * 20 + t + 1) * row]
                        }
                    }
                    let (q, k, v) = (token(whole.query), token(whole.key), token(whole.value))
                    let g = decay == .head ? whole.logDecay : whole.logDecay.map(token)
                    var output = [Float](repeating: .nan, count: 3 * width)
                    var span = state.mutableSpan
                    try LinearAttention.step(
                        query: q.span, key: k.span, value: v.span, logDecay: g?.span,
                        bonus: whole.bonus?.span, state: &span,
                        normalizer: normalizer?.mutableSpan, output: output.mutableSpan,
                        shape: shape, options: whole.options, workspace: workspace)
                    #expect(bits(output) == bits(token(expected.output)), "token \(t)")
                }
                #expect(bits(state) == bits(expected.finalState))
                #expect(bits(normalizer ?? []) == bits(expected.finalNormalizer))
            }
        }
    }
}
