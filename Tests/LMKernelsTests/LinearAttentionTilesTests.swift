import LMKernels
import Testing

@testable import lmk

extension KernelSuite {
    /// Linear attention in bfloat16, which amx computes by chunks of 64 tokens on tiles: against
    /// the reference, and special values.
    @Suite struct LinearAttentionTilesTests {
        private typealias Problem = LinearAttentionProblem<BFloat16>
        private typealias Decay = LinearAttention.Decay
        private typealias Form = LinearAttention.Form

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

        @Test(arguments: [15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 192, 200])
        func tokensAroundTiles(tokens: Int) throws {
            for decay in [Decay.none, .head, .token] {
                var problem = Problem(
                    batch: 2, tokens: tokens, heads: 2, keyHeads: 1, keyWidth: 24, valueWidth: 40,
                    decay: decay, seed: UInt64(tokens))
                problem.options.threads = 2
                problem.choose(tokens % 2 == 0 ? 9 : 13, seed: 4)
                try problem.checkForward("\(tokens) tokens \(decay)", forms: Form.allCases)
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
            var problem = Problem.sequence(.token, form, tokens: 130)
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
                var heads = Problem.sequence(.head, form, tokens: 130)
                heads.logDecay = [g, -0.1]
                try heads.checkForward("\(g) of a head")
            }
        }

        /// Terms that all but cancel: of the state's entries and of the pairs more than 8 bits are
        /// left. Measured: 1.9e-3.
        @Test(arguments: [Decay.none, .token])
        func termsThatCancel(decay: LinearAttention.Decay) throws {
            var problem = Problem.sequence(decay, .chunked, tokens: 64)
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
            problem = Problem.sequence(.token, .chunked, tokens: 64)
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

        /// Finite where AVX-512 is, and close to it there: measured o 7.8e-4, states 4.9e-6.
        /// Whether infinities meet as such, or have come to NaN before, depends on where chunks
        /// begin.
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
                    let error = relativeError(finite(ours), finite(theirs), floor: floor)
                    #expect(error < (name == "o" ? 2e-3 : 1e-5), "\(label): \(name) \(error)")
                }
            }
        }

        @Test(arguments: [Decay.none, .head, .token], [Form.automatic, .chunked])
        func specialValues(decay: LinearAttention.Decay, form: LinearAttention.Form) throws {
            var random = SeededGenerator(seed: 77)
            for other in [Float.nan, Float.infinity, -Float.infinity] {
                for _ in 0..<8 {
                    for name in ["q", "k", "v", "state", "decay"] {
                        var problem = Problem.sequence(decay, form)
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
            let plain = Problem.sequence(decay, form)
            let columns = plain.shape.valueWidth
            for (token, column) in [(0, 0), (10, 33), (63, 71), (64, 31), (149, 64)] {
                var problem = plain
                problem.value[token * columns + column] = .nan
                try withEachInstructionSet(Problem.setsAroundTiles) { set in
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
                let plain = Problem.sequence(decay, form)
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
                    var problem = Problem.sequence(decay, form)
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
