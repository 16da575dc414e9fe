import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// Linear attention in bfloat16, which amx computes by chunks of 64 tokens on tiles. What other
    /// instruction sets promise holds there as well, and tests run on others too.
    @Suite struct LinearAttentionTilesTests {
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

        /// amx, and one that stands for those without tiles.
        private static let sets: [InstructionSet] = [.avx512, .amx, .neon]

        /// Two groups of 32 columns and a part of one.
        private static func sequence(
            _ decay: Decay, _ form: Form, tokens: Int = 150
        ) -> Problem {
            var problem = Problem(
                tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 40, valueWidth: 72, decay: decay,
                seed: 21)
            problem.addStates(seed: 8)
            problem.options.form = form
            problem.options.threads = 2
            return problem
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
            let whole = Self.sequence(decay, form)
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Self.sets) { set in
                let expected = try whole.forward().output
                for count in [17, 33, 64, 65, 128] where Self.isAlike(set, decay, form, count) {
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

        /// Special values of two kinds in one chunk: what the later one is does not reach the tokens
        /// before it.
        @Test(arguments: [Decay.none, .token])
        func prefixesWithSpecialValues(decay: LinearAttention.Decay) throws {
            var whole = Self.sequence(decay, .chunked)
            let (width, columns) = (whole.shape.keyWidth, whole.shape.valueWidth)
            whole.value[20 * columns + 40] = .nan
            whole.key[30 * width + 3] = .infinity
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Self.sets) { set in
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

        /// Measured where bits differ: o 2.0e-4, states 3.0e-6 with amx and 2.5e-7 with others.
        @Test(arguments: Decay.allCases, Form.allCases)
        func splitAndResume(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let whole = Self.sequence(decay, form)
            let tokens = whole.shape.tokens
            try withEachInstructionSet(Self.sets) { set in
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
                        #expect(error < 4e-3, "\(label): o \(error)")
                        let stateError = relativeError(
                            end.finalState, expected.finalState.map { Double($0) })
                        #expect(stateError < 4e-6, "\(label): state \(stateError)")
                    }
                }
            }
        }

        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func packedEqualsLoop(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var packed = Self.sequence(decay, form, tokens: 343)
            packed.offsets = [0, 0, 5, 21, 84, 148, 213, 343]
            packed.addStates(seed: 30)
            packed.options.stateStride = 7
            try withEachInstructionSet(Self.sets) { set in
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
            var problem = Self.sequence(decay, form)
            let size = problem.states * problem.shape.valueWidth
            try withEachInstructionSet(Self.sets) { set in
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
                var problem = Self.sequence(decay, form, tokens: tokens)
                problem.key = problem.key.map { _ in 0 }
                problem.logDecay = problem.logDecay?.map { _ in 0 }
                try withEachInstructionSet(Self.sets) { set in
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
                try withEachInstructionSet(Self.sets) { set in
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
                try withEachInstructionSet(Self.sets) { set in
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
                try withEachInstructionSet(Self.sets) { set in
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

        /// The outputs alone, and the states alone, for which no query is read.
        @Test(arguments: Decay.allCases, [Form.automatic, .chunked])
        func oneResultAtATime(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var problem = Self.sequence(decay, form)
            problem.layout = .tokenMajor
            problem.options.stateStride = 35
            let (q, k, v) = (
                problem.query.map { BFloat16($0) }, problem.key.map { BFloat16($0) },
                problem.value.map { BFloat16($0) }
            )
            try withEachInstructionSet(Self.sets) { set in
                let expected = try problem.forward()
                var output = [BFloat16](repeating: .init(.nan), count: expected.output.count)
                try LinearAttention.forward(
                    query: q.span, key: k.span, value: v.span, logDecay: problem.logDecay?.span,
                    initialState: problem.initialState?.span, output: output.mutableSpan,
                    shape: problem.shape, options: problem.options, workspace: Workspace())
                #expect(bits(output.map { Float($0) }) == bits(expected.output), "\(set)")
                var states = [Float](repeating: .nan, count: expected.states.count)
                var final = [Float](repeating: .nan, count: expected.finalState.count)
                let nothing = [BFloat16](repeating: .init(.nan), count: q.count)
                try LinearAttention.forward(
                    query: nothing.span, key: k.span, value: v.span,
                    logDecay: problem.logDecay?.span, initialState: problem.initialState?.span,
                    finalState: final.mutableSpan, states: states.mutableSpan,
                    shape: problem.shape, options: problem.options, workspace: Workspace())
                #expect(bits(states) == bits(expected.states), "\(set)")
                #expect(bits(final) == bits(expected.finalState), "\(set)")
            }
        }

        // MARK: - The reference

        @Test(arguments: [1, 5, 17, 31, 33, 63, 65, 200])
        func widths(width: Int) throws {
            for decay in [Decay.none, .head, .token] {
                for (keyWidth, valueWidth) in [(width, 20), (20, width), (width, max(4, width))] {
                    for tokens in [1, 33, 64, 95] where width < 100 || tokens == 95 {
                        var problem = Problem(
                            tokens: tokens, keyWidth: keyWidth, valueWidth: valueWidth,
                            decay: decay, seed: UInt64(width))
                        problem.options.form = .chunked
                        problem.addStates(seed: 9)
                        try problem.checkForward("\(keyWidth) x \(valueWidth) \(decay) \(tokens)")
                    }
                }
            }
        }

        @Test(arguments: [16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 129, 200])
        func tokensAroundTiles(tokens: Int) throws {
            for decay in [Decay.none, .head, .token] {
                for form in Form.allCases {
                    var problem = Problem(
                        batch: 2, tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 24,
                        valueWidth: 40, decay: decay, seed: UInt64(tokens))
                    problem.options.form = form
                    problem.options.threads = 2
                    problem.choose(tokens % 2 == 0 ? 9 : 13, seed: 4)
                    try problem.checkForward("\(tokens) tokens \(decay) \(form)")
                }
            }
        }

        @Test func groupedHeads() throws {
            for (heads, keyHeads) in [(2, 1), (6, 2), (6, 3), (8, 8), (5, 1)] {
                var problem = Problem(
                    tokens: 80, heads: heads, keyHeads: keyHeads, keyWidth: 16, valueWidth: 48,
                    decay: .token, seed: UInt64(heads))
                problem.options.threads = 3
                problem.addStates(seed: 3)
                try problem.checkForward("\(heads) heads on \(keyHeads)")
            }
        }

        /// Decays that leave nothing, next to nothing, and something, and rows of unit length.
        @Test(arguments: [Form.automatic, .chunked])
        func decays(form: LinearAttention.Form) throws {
            var problem = Self.sequence(.token, form, tokens: 130)
            for range in [Float(-0.01)...0, -5...0, -30...0, -30...(-20)] {
                problem.setDecays(range, seed: 1)
                try problem.checkForward("\(range)")
                var unit = problem
                unit.options.unitLengthEpsilon = 1e-6
                unit.options.scale = 3
                try unit.checkForward("\(range), unit length")
            }
            for stride in [1, 2, 7, 16, 40] {
                problem.setDecays(-0.2...0, seed: 1)
                for t in Swift.stride(from: stride - 1, to: 130, by: stride) {
                    problem.logDecay![2 * t] = -.infinity
                    problem.logDecay![2 * t + 1] = -1e4
                }
                try problem.checkForward("reset every \(stride)")
            }
            for g in [0, -0.0, -1e-3, -20, -1e4, -Float.infinity] {
                var heads = Self.sequence(.head, form, tokens: 130)
                heads.logDecay = [g, -0.1]
                try heads.checkForward("\(g) of a head")
            }
        }

        /// Terms that all but cancel: of the state's entries and of the pairs more than 8 bits are
        /// left. Measured: 1.9e-3.
        @Test(arguments: [Decay.none, .token])
        func termsThatCancel(decay: LinearAttention.Decay) throws {
            var problem = Self.sequence(decay, .chunked, tokens: 64)
            let (width, columns) = (problem.shape.keyWidth, problem.shape.valueWidth)
            problem.logDecay = problem.logDecay?.map { _ in -0x1p-9 }
            // What queries read of the state: differences of neighbouring rows.
            for row in stride(from: 0, to: problem.query.count, by: 2) {
                problem.query[row + 1] = -problem.query[row]
            }
            for row in stride(from: 0, to: 2 * width, by: 2) {
                for e in 0..<columns {
                    let above = problem.initialState![row * columns + e]
                    problem.initialState![(row + 1) * columns + e] = above * (1 + 0x1p-8)
                }
            }
            for i in problem.key.indices { problem.key[i] = 0 }
            try problem.checkForward("the state", tolerance: 6e-3)
            // The same of pairs, whose keys differ by a decay and whose values by their sign.
            problem = Self.sequence(.token, .chunked, tokens: 64)
            problem.initialState = nil
            problem.logDecay = problem.logDecay?.map { _ in -0x1p-8 }
            for token in stride(from: 0, to: 64, by: 2) {
                for d in 0..<width {
                    problem.key[(token + 1) * width + d] = problem.key[token * width + d]
                }
                for e in 0..<columns {
                    problem.value[(token + 1) * columns + e] = -problem.value[token * columns + e]
                }
                // Those that stand between a pair read nothing.
                for d in 0..<2 * width { problem.query[2 * token * width + d] = 0 }
            }
            try problem.checkForward("pairs", tolerance: 6e-3)
        }

        // MARK: - Special values

        /// Finite where AVX-512 is, and close to it there: measured o 7.8e-4, states 4.9e-6. Whether infinities meet as such, or have
        /// come to NaN before, depends on where chunks begin.
        private func expectLikeAVX512(
            _ problem: Problem, _ label: String, floor: Double = 0, hasSameKinds: Bool = false
        ) throws {
            var others: Problem.Found?
            try withEachInstructionSet([.avx512]) { _ in others = try problem.forward() }
            guard let others else { return }
            try withEachInstructionSet([.amx]) { _ in
                let found = try problem.forward()
                for ((name, ours), (_, theirs)) in zip(found.arrays, others.arrays) {
                    let isAlike = zip(ours, theirs).allSatisfy {
                        hasSameKinds ? hasSameKind($0, Double($1)) : $0.isFinite == $1.isFinite
                    }
                    #expect(isAlike, "\(label): special values in \(name)")
                    func finite(_ x: [Float]) -> [Double] {
                        x.lazy.filter(\.isFinite).map { Double($0) }
                    }
                    let error = relativeError(finite(ours), finite(theirs), floor: floor)
                    #expect(error < (name == "o" ? 4e-3 : 1e-5), "\(label): \(name) \(error)")
                }
            }
        }

        @Test(arguments: [Decay.none, .head, .token], [Form.automatic, .chunked])
        func specialValues(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var random = SeededGenerator(seed: 77)
            for other in [Float.nan, Float.infinity, -Float.infinity] {
                for _ in 0..<8 {
                    for name in ["q", "k", "v", "state", "decay"] {
                        var problem = Self.sequence(decay, form)
                        problem.options.stateStride = 40
                        func place(_ x: [Float]) -> Int {
                            Int.random(in: x.indices, using: &random)
                        }
                        switch name {
                        case "q": problem.query[place(problem.query)] = other
                        case "k": problem.key[place(problem.key)] = other
                        case "v": problem.value[place(problem.value)] = other
                        case "state": problem.initialState![place(problem.initialState!)] = other
                        default:
                            guard decay != .none, other != .infinity else { continue }
                            problem.logDecay![place(problem.logDecay!)] = other
                        }
                        try expectLikeAVX512(
                            problem, "\(other) in \(name)",
                            hasSameKinds: other.isNaN || !["q", "v"].contains(name))
                    }
                }
            }
        }

        /// A NaN in one column stays there; columns outside its group of 32 keep their bits.
        @Test(arguments: [Decay.none, .token], [Form.automatic, .chunked])
        func oneColumn(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            let plain = Self.sequence(decay, form)
            let columns = plain.shape.valueWidth
            for (token, column) in [(0, 0), (10, 33), (63, 71), (64, 31), (149, 64)] {
                var problem = plain
                problem.value[token * columns + column] = .nan
                try withEachInstructionSet(Self.sets) { set in
                    let (found, expected) = (try problem.forward(), try plain.forward())
                    for (ours, theirs) in [
                        (found.output, expected.output), (found.finalState, expected.finalState),
                    ] {
                        let rows = ours.count / columns
                        for e in 0..<columns where e / 32 != column / 32 {
                            let isKept = (0..<rows).allSatisfy {
                                ours[$0 * columns + e].bitPattern
                                    == theirs[$0 * columns + e].bitPattern
                            }
                            #expect(isKept, "\(set): column \(e) beside \(token), \(column)")
                        }
                        for i in ours.indices where i % columns != column {
                            #expect(ours[i].isFinite)
                        }
                    }
                }
            }
        }

        /// Numbers at the ends of the range. bfloat16 below 2^-126 counts as 0 on tiles.
        @Test(arguments: [Decay.none, .token], [Form.automatic, .chunked])
        func largeAndSmall(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            func scaled(_ x: [Float], _ factor: Float) -> [Float] {
                x.map { Float(BFloat16($0 * factor)) }
            }
            for factor in [Float(1e30), 1e-20, 1e-38] {
                let plain = Self.sequence(decay, form)
                let floor = factor == 1e-38 ? 0x1p-126 * 64 * 1e6 : 0
                for name in ["q", "k", "v"] {
                    var problem = plain
                    problem.initialState = problem.initialState?.map { $0 * factor }
                    switch name {
                    case "q":
                        problem.query = scaled(plain.query, factor)
                        problem.initialState = plain.initialState
                    case "k": problem.key = scaled(plain.key, factor)
                    default: problem.value = scaled(plain.value, factor)
                    }
                    try expectLikeAVX512(problem, "\(name) \(factor)", floor: floor)
                }
            }
            // Here and there, which overflows and comes to NaN.
            for name in ["q", "k", "v", "state"] {
                var random = SeededGenerator(seed: 5)
                for _ in 0..<10 {
                    var problem = Self.sequence(decay, form)
                    func place(_ x: [Float]) -> Int { Int.random(in: x.indices, using: &random) }
                    switch name {
                    case "q": problem.query[place(problem.query)] = 1e30
                    case "k": problem.key[place(problem.key)] = 1e30
                    case "v": problem.value[place(problem.value)] = 1e30
                    default: problem.initialState![place(problem.initialState!)] = 1e30
                    }
                    try expectLikeAVX512(problem, "1e30 in \(name)")
                }
            }
        }
    }
}
