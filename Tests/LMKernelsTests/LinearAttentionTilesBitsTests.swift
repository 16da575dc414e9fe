import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// What changes no bit of linear attention in bfloat16, which amx computes by chunks of 64
    /// tokens on tiles. What other instruction sets promise holds there as well, and tests run on
    /// others too.
    @Suite struct LinearAttentionTilesBitsTests {
        private typealias Problem = LinearAttentionProblem<BFloat16>
        private typealias Decay = LinearAttention.Decay
        private typealias Form = LinearAttention.Form

        /// Tokens whose multiples cut a sequence without a trace in the chunked form.
        private static func chunk(_ set: InstructionSet, _ decay: Decay) -> Int {
            set == .amx && decay != .key ? 64 : 16
        }

        /// Whether a call of so many tokens computes as a longer one does: the automatic form takes
        /// short ones another way.
        private static func isAlike(
            _ set: InstructionSet, _ decay: Decay, _ form: Form, _ tokens: Int
        ) -> Bool {
            form != .automatic || tokens >= (chunk(set, decay) == 64 ? 32 : 8)
        }

        // MARK: - Tokens

        /// Something else in the tokens from `count` on.
        private static func changes(
            _ whole: Problem, from count: Int
        ) -> [(label: String, problem: Problem)] {
            let tokens = whole.shape.tokens
            func changed(_ x: [Float], _ other: Float) -> [Float] {
                x.firstTokens(count, of: tokens)
                    + Array(repeating: other, count: x.count / tokens * (tokens - count))
            }
            var found: [(String, Problem)] = []
            for other in [Float.nan, -Float.infinity, 1e30] {
                var all = whole
                all.query = changed(whole.query, other)
                var problem = whole
                problem.query = all.query
                found.append(("q \(other)", problem))
                problem = whole
                problem.key = changed(whole.key, other)
                all.key = problem.key
                found.append(("k \(other)", problem))
                problem = whole
                problem.value = changed(whole.value, other)
                all.value = problem.value
                found.append(("v \(other)", problem))
                problem = whole
                for column in [0, 37, 71] {
                    problem.value[count * whole.shape.valueWidth + column] = other
                }
                found.append(("columns \(other)", problem))
                if whole.options.decay == .token || whole.options.decay == .key {
                    problem = whole
                    problem.logDecay = changed(whole.logDecay!, other == 1e30 ? -0.001 : other)
                    all.logDecay = problem.logDecay
                    found.append(("decay \(other)", problem))
                }
                found.append(("all \(other)", all))
            }
            return found
        }

        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func prefixes(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let whole = Problem.sequence(decay, form)
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Problem.setsAroundTiles) { set in
                let expected = try whole.forward().output
                for count in [16, 17, 33, 47, 63, 64, 65, 100, 128]
                where Self.isAlike(set, decay, form, count) {
                    let short = try whole.prefix(count).forward()
                    let first = bits(expected.firstTokens(count, of: tokens))
                    #expect(bits(short.output) == first, "\(set): \(count) tokens alone")
                    for (label, problem) in Self.changes(whole, from: count) {
                        var problem = problem
                        problem.options.stateStride = count
                        let found = try problem.forward()
                        let label = "\(set): \(count) tokens before \(label)"
                        #expect(
                            bits(found.output.firstTokens(count, of: tokens)) == first, "\(label)")
                        #expect(
                            bits(Array(found.states.prefix(short.finalState.count)))
                                == bits(short.finalState), "\(label)")
                    }
                }
            }
        }

        /// Special values of two kinds in one chunk: what the later one is does not reach the
        /// tokens before it.
        @Test(arguments: [Decay.none, .token])
        func prefixesWithSpecialValues(decay: LinearAttention.Decay) throws {
            var whole = Problem.sequence(decay, .chunked)
            let (width, columns) = (whole.shape.keyWidth, whole.shape.valueWidth)
            whole.value[20 * columns + 40] = .nan
            whole.key[30 * width + 3] = .infinity
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Problem.setsAroundTiles) { set in
                let expected = try whole.forward().output
                for count in [20, 21, 29, 30, 31, 45, 64, 70] {
                    let first = bits(expected.firstTokens(count, of: tokens))
                    let short = try whole.prefix(count).forward().output
                    #expect(bits(short) == first, "\(set): \(count) tokens alone")
                    for (label, problem) in Self.changes(whole, from: count) {
                        let found = try problem.forward().output.firstTokens(count, of: tokens)
                        #expect(bits(found) == first, "\(set): \(count) tokens before \(label)")
                    }
                }
            }
        }

        /// Measured where bits differ: o 2.0e-4, states 3.0e-6 with amx; 2.9e-5 and 2.5e-7 with
        /// others.
        @Test(arguments: Decay.allCases, Form.allCases)
        func splitAndResume(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let whole = Problem.sequence(decay, form)
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Problem.setsAroundTiles) { set in
                let expected = try whole.forward()
                for split in [0, 1, 15, 16, 17, 48, 63, 64, 65, 100, 127, 128, 149, 150] {
                    let start = try whole.prefix(split).forward()
                    var second = whole.suffix(from: split)
                    second.initialState = start.finalState
                    let end = try second.forward()
                    let output = start.output + end.output
                    let label = "\(set): split at \(split) of \(tokens)"
                    if form == .recurrent || form == .chunked && split % Self.chunk(set, decay) == 0
                    {
                        #expect(bits(output) == bits(expected.output), "\(label)")
                        #expect(bits(end.finalState) == bits(expected.finalState), "\(label)")
                    } else {
                        let error = relativeError(output, expected.output.map { Double($0) })
                        #expect(error < 5e-4, "\(label): o \(error)")
                        let stateError = relativeError(
                            end.finalState, expected.finalState.map { Double($0) })
                        #expect(stateError < 4e-6, "\(label): state \(stateError)")
                    }
                }
            }
        }

        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func packedEqualsLoop(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var packed = Problem.sequence(decay, form, tokens: 343)
            packed.offsets = [0, 0, 5, 21, 84, 148, 213, 343]
            packed.addStates(seed: 30)
            packed.options.stateStride = 7
            try withEachInstructionSet(Problem.setsAroundTiles) { set in
                for threads in [1, 3] {
                    packed.options.threads = threads
                    let found = try packed.forward()
                    var loop = Problem.Found()
                    for n in 0..<7 {
                        let one = try packed.sequence(n).forward()
                        loop.output += one.output
                        loop.finalState += one.finalState
                        loop.states += one.states
                    }
                    #expect(found.bits == loop.bits, "\(set) \(threads) threads")
                }
            }
        }

        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func statesOnTheWay(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Problem.sequence(decay, form)
            let size = problem.states * problem.shape.valueWidth
            try withEachInstructionSet(Problem.setsAroundTiles) { set in
                problem.options.stateStride = 1
                let plain = try problem.forward()
                for stride in [3, 16, 33, 64, 70, 150, 151] {
                    problem.options.stateStride = stride
                    let found = try problem.forward()
                    #expect(bits(found.output) == bits(plain.output), "\(set) stride \(stride)")
                    #expect(bits(found.finalState) == bits(plain.finalState), "\(set) \(stride)")
                    for i in 0..<problem.shape.tokens / stride {
                        let tokens = (i + 1) * stride
                        guard Self.isAlike(set, decay, form, tokens) else { continue }
                        var part = problem.prefix(tokens)
                        part.options.stateStride = 1
                        let end = try part.forward()
                        let state = Array(found.states[i * size..<(i + 1) * size])
                        #expect(bits(state) == bits(end.finalState), "\(set) \(stride), \(i)")
                    }
                }
            }
        }

        /// The state ends as it began, unless an entry is below the normal numbers.
        @Test(arguments: [Decay.none, .token, .key], [Form.automatic, .chunked])
        func maskedTokensDoNothing(
            decay: LinearAttention.Decay, form: LinearAttention.Form
        ) throws {
            for tokens in [1, 16, 64, 100] {
                var problem = Problem.sequence(decay, form, tokens: tokens)
                problem.key = problem.key.map { _ in 0 }
                problem.logDecay = problem.logDecay?.map { _ in 0 }
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
                    let found = try problem.forward().finalState
                    #expect(bits(found) == bits(problem.initialState!), "\(set) \(tokens) tokens")
                }
            }
        }

        // MARK: - Threads and memory

        private static func shapes(_ decay: Decay) -> [(String, Problem)] {
            // One head, whose columns go to different threads.
            var wide = Problem(tokens: 150, keyWidth: 65, valueWidth: 200, decay: decay, seed: 1)
            wide.addStates(seed: 1)
            wide.options.stateStride = 33
            var special = wide
            special.value[70 * 200 + 150] = .nan
            special.value[20 * 200 + 3] = -.infinity
            var many = Problem(
                batch: 2, tokens: 90, heads: 6, keyHeads: 2, keyWidth: 33, valueWidth: 34,
                decay: decay, seed: 2)
            many.choose(13, seed: 2)
            var packed = Problem(
                tokens: 190, heads: 2, keyWidth: 64, valueWidth: 64, decay: decay,
                offsets: [0, 70, 70, 71, 190], seed: 3)
            packed.choose(9, seed: 3)
            // In segments.
            var long = Problem(tokens: 4200, keyWidth: 16, valueWidth: 40, decay: decay, seed: 4)
            long.addStates(seed: 4)
            long.options.stateStride = 1000
            var longSpecial = long
            longSpecial.value[3000 * 40 + 5] = .infinity
            return [
                ("wide", wide), ("wide, special", special), ("many", many), ("packed", packed),
                ("long", long), ("long, special", longSpecial),
            ]
        }

        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func threads(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            for (name, problem) in Self.shapes(decay)
            where form == .chunked || !name.starts(with: "long") {
                var problem = problem
                problem.options.form = form
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
                    problem.options.threads = 1
                    let one = try problem.forward().bits
                    for threads in [2, 3, 8] {
                        problem.options.threads = threads
                        let found = try problem.forward().bits
                        #expect(found == one, "\(set) \(name) \(threads) threads")
                    }
                }
            }
        }

        /// Layouts, what the workspace held, and other calls' states in it.
        @Test(arguments: Decay.allCases)
        func layoutsAndMemory(decay: LinearAttention.Decay) throws {
            for (name, problem) in Self.shapes(decay) {
                var problem = problem
                problem.options.threads = 2
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
                    problem.layout = .apart
                    let expected = try problem.forward()
                    #expect(expected.isFillerKept, "\(set) \(name)")
                    var poison = problem
                    poison.query = problem.query.map { _ in .nan }
                    poison.key = problem.key.map { _ in .infinity }
                    poison.value = problem.value.map { _ in .nan }
                    poison.initialState = problem.initialState?.map { _ in .nan }
                    let workspace = Workspace()
                    _ = try poison.forward(workspace: workspace)
                    for layout in Problem.Layout.allCases {
                        problem.layout = layout
                        let found = try problem.forward(workspace: workspace)
                        #expect(found.bits == expected.bits, "\(set) \(name) \(layout)")
                    }
                }
            }
        }

        @Test(arguments: Decay.allCases, Form.allCases)
        func inPlace(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            for (tokens, width) in [(70, 200), (130, 33), (4200, 40)]
            where tokens < 1000 || form != .recurrent {
                var problem = Problem(
                    tokens: tokens, keyWidth: 50, valueWidth: width, decay: decay, seed: 5)
                problem.addStates(seed: 5)
                problem.options.form = form
                problem.layout = .tokenMajor
                let (q, k, v) = (
                    problem.query.map { BFloat16($0) }, problem.key.map { BFloat16($0) },
                    problem.value.map { BFloat16($0) }
                )
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
                    problem.options.threads = 1
                    let apart = try problem.forward()
                    for threads in [1, 2, 8] {
                        problem.options.threads = threads
                        var state = problem.initialState!
                        var output = [BFloat16](repeating: .init(.nan), count: apart.output.count)
                        var span = state.mutableSpan
                        try LinearAttention.forward(
                            query: q.span, key: k.span, value: v.span,
                            logDecay: problem.logDecay?.span, inPlace: &span,
                            output: output.mutableSpan, shape: problem.shape,
                            options: problem.options, workspace: Workspace())
                        let label = "\(set) \(tokens) tokens, \(threads) threads"
                        #expect(bits(output.map { Float($0) }) == bits(apart.output), "\(label)")
                        #expect(bits(state) == bits(apart.finalState), "\(label)")
                    }
                }
            }
        }

        /// The outputs alone, the states alone, for which no query is read, and the piece of a
        /// sequence, which has none.
        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func oneResultAtATime(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Problem.sequence(decay, form)
            problem.layout = .tokenMajor
            problem.options.stateStride = 35
            let (q, k, v) = (
                problem.query.map { BFloat16($0) }, problem.key.map { BFloat16($0) },
                problem.value.map { BFloat16($0) }
            )
            let nothing = [BFloat16](repeating: .init(.nan), count: q.count)
            for epsilon in [nil, Float(1e-3)] {
                problem.options.unitLengthEpsilon = epsilon
                var fromZero = problem
                fromZero.initialState = nil
                fromZero.options.form = .chunked
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
                    let expected = try problem.forward()
                    var output = [BFloat16](repeating: .init(.nan), count: expected.output.count)
                    try LinearAttention.forward(
                        query: q.span, key: k.span, value: v.span,
                        logDecay: problem.logDecay?.span, initialState: problem.initialState?.span,
                        output: output.mutableSpan, shape: problem.shape, options: problem.options,
                        workspace: Workspace())
                    #expect(bits(output.map { Float($0) }) == bits(expected.output), "\(set)")
                    var states = [Float](repeating: .nan, count: expected.states.count)
                    var final = [Float](repeating: .nan, count: expected.finalState.count)
                    try LinearAttention.forward(
                        query: nothing.span, key: k.span, value: v.span,
                        logDecay: problem.logDecay?.span, initialState: problem.initialState?.span,
                        finalState: final.mutableSpan, states: states.mutableSpan,
                        shape: problem.shape, options: problem.options, workspace: Workspace())
                    #expect(bits(states) == bits(expected.states), "\(set)")
                    #expect(bits(final) == bits(expected.finalState), "\(set)")
                    let piece = try LinearAttention.partialState(
                        key: k.span, value: v.span, logDecay: problem.logDecay?.span,
                        shape: problem.shape, options: fromZero.options, workspace: Workspace())
                    #expect(bits(piece.state) == bits(try fromZero.forward().finalState), "\(set)")
                }
            }
        }
    }
}
