import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

/// Tolerances as relative Euclidean errors. Measured over every test of this file, for float32,
/// bfloat16 and float16: o 5.0e-7, 2.0e-3 (amx: 3.1e-3), 2.2e-4; gradients of q, k
/// and v 9.8e-7, 1.9e-3, 2.4e-4; states 8.4e-7; gradients of log-decays 6.7e-7, of a head's
/// 2.7e-5; other gradients 1.0e-6.
private struct Tolerance {
    /// Of o, and of the gradients of q, k and v.
    var output, gradient: Double
    /// Of states, and of gradients that are float32 always.
    let float32 = 2e-6
    /// Of states that amx makes of bfloat16 on tiles. Measured here and in
    /// LinearAttentionTilesTests: 3.5e-6.
    let tiledState = 5e-6
    /// Of gradients of a head's decay: sums over all tokens, of terms of either sign.
    let headDecay = 6e-5

    init(_ type: StorageType) {
        switch type {
        case .float32: (output, gradient) = (1e-6, 2e-6)
        case .bfloat16: (output, gradient) = (4e-3, 4e-3)
        case .float16: (output, gradient) = (6e-4, 6e-4)
        }
    }

    func limit(_ name: String, _ options: LinearAttention.Options, isTiled: Bool) -> Double {
        switch name {
        case "o": output
        case "dq", "dk", "dv": gradient
        case "dg" where options.decay == .head: headDecay
        case "state" where isTiled, "states" where isTiled: tiledState
        default: float32
        }
    }
}

extension LinearAttentionProblem {
    /// Compares with the reference on every instruction set.
    ///
    /// - Parameter tolerance: Of everything.
    func check(_ label: String, tolerance: Double? = nil) throws {
        let expected = expectedOutputs().merging(expectedGradients()) { $1 }
        try withEachInstructionSet(of: .linearAttention(Element.storageType)) { set in
            let label = "\(label) \(Element.storageType) \(set)"
            compare(try forward(), expected, label, tolerance)
            compare(try backward(), expected, label, tolerance)
        }
    }

    /// The same without gradients.
    ///
    /// - Parameters:
    ///   - forms: Of the problem alone, if nil.
    ///   - tolerance: Of o, which alone is compared then.
    func checkForward(
        _ label: String, forms: [LinearAttention.Form]? = nil, tolerance: Double? = nil
    ) throws {
        let expected = expectedOutputs()
        for form in forms ?? [options.form] {
            var problem = self
            problem.options.form = form
            try withEachInstructionSet(of: .linearAttention(Element.storageType)) { set in
                let label = "\(label) \(form) \(Element.storageType) \(set)"
                var found = try problem.forward()
                if tolerance != nil { (found.finalState, found.states) = ([], []) }
                compare(found, expected, label, tolerance)
            }
        }
    }

    private func compare(
        _ found: Found, _ expected: [String: [Double]], _ label: String, _ tolerance: Double? = nil
    ) {
        let tolerances = Tolerance(Element.storageType)
        let isTiled = Element.storageType == .bfloat16 && InstructionSet.current == .amx
        // What a token reads of itself alone is v: divided by z, it has no gradient of q and k.
        let floor = options.isNormalized ? 0.05 : 0
        #expect(found.isFillerKept, "\(label)")
        for (name, values) in found.arrays where !values.isEmpty {
            let error = relativeError(
                values.map { Double($0) }, expected[name]!,
                floor: name == "dq" || name == "dk" ? floor : 0)
            let limit = tolerance ?? tolerances.limit(name, options, isTiled: isTiled)
            #expect(error < limit, "\(label): \(name) \(error)")
        }
    }
}

extension KernelSuite {
    @Suite struct LinearAttentionTests {
        private func everyOption<Element: StorageValue>(
            _ decay: LinearAttention.Decay, choice: Int, of type: Element.Type
        ) throws {
            for form in LinearAttention.Form.allCases {
                // With a normaliser the automatic form is the chunked one.
                for isNormalized in form == .automatic ? [false] : [false, true] {
                    var problem = LinearAttentionProblem<Element>(
                        batch: 2, tokens: 37, heads: 4, keyHeads: 2, keyWidth: 19, valueWidth: 21,
                        decay: decay, isNormalized: isNormalized, seed: UInt64(choice))
                    problem.options.form = form
                    problem.options.threads = 1 + choice % 3
                    problem.options.scale = choice % 5 == 0 ? nil : 0.7
                    problem.layout = [.tokenMajor, .headMajor, .apart][choice % 3]
                    problem.choose(choice, seed: UInt64(choice))
                    try problem.check(
                        "\(decay) \(form) choice \(choice)\(isNormalized ? " normalized" : "")")
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases, 0..<16)
        func everyCombinationOfOptions(decay: LinearAttention.Decay, choice: Int) throws {
            try everyOption(decay, choice: choice, of: Float.self)
            if choice % 3 == 0 { try everyOption(decay, choice: choice, of: BFloat16.self) }
            if choice % 3 == 1 { try everyOption(decay, choice: choice, of: Float16.self) }
        }

        private func widths<Element: StorageValue>(
            _ keyWidth: Int, _ valueWidth: Int, of type: Element.Type
        ) throws {
            let isLarge = keyWidth * valueWidth > 1 << 14
            for decay in LinearAttention.Decay.allCases {
                for form in [LinearAttention.Form.recurrent, .chunked] {
                    var problem = LinearAttentionProblem<Element>(
                        tokens: isLarge ? 18 : 35, keyWidth: keyWidth, valueWidth: valueWidth,
                        decay: decay, seed: UInt64(keyWidth * 600 + valueWidth))
                    problem.options.form = form
                    problem.options.threads = 2
                    problem.addStates(seed: 9)
                    try problem.check("\(keyWidth) x \(valueWidth) \(decay) \(form)")
                }
            }
        }

        @Test(arguments: [1, 7, 15, 16, 17, 33, 64, 65, 128, 512])
        func widthsAroundBlockEdges(width: Int) throws {
            try widths(width, 16, of: Float.self)
            try widths(16, width, of: Float.self)
            try widths(width, width <= 128 ? width : 40, of: Float.self)
            try widths(width <= 128 ? width : 40, width, of: BFloat16.self)
            try widths(width, 17, of: Float16.self)
        }

        /// The normaliser is one more column of values in backward: in a panel with others, or in
        /// its own.
        @Test(arguments: [15, 16, 17, 32, 48])
        func normalizerBehindValues(width: Int) throws {
            for decay in LinearAttention.Decay.allCases {
                var problem = LinearAttentionProblem<Float>(
                    batch: 2, tokens: 35, heads: 2, keyWidth: 20, valueWidth: width, decay: decay,
                    isNormalized: true, seed: UInt64(width))
                problem.addStates(seed: 9)
                try problem.check("\(width) columns \(decay)")
            }
            var both = LinearAttentionProblem<Float>(
                tokens: 35, heads: 2, keyWidth: 20, valueWidth: width, isNormalized: true,
                seed: UInt64(width))
            both.options.isBidirectional = true
            try both.check("\(width) columns, both ways")
        }

        @Test(arguments: [0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 130])
        func tokensAroundChunks(tokens: Int) throws {
            for decay in LinearAttention.Decay.allCases {
                for form in LinearAttention.Form.allCases {
                    var problem = LinearAttentionProblem<Float>(
                        batch: 2, tokens: tokens, heads: 2, keyWidth: 24, valueWidth: 33,
                        decay: decay, seed: UInt64(tokens))
                    problem.options.form = form
                    problem.options.threads = 2
                    problem.choose(tokens % 2 == 0 ? 9 : 11, seed: 4)
                    try problem.check("\(tokens) tokens \(decay) \(form)")
                }
            }
        }

        @Test(arguments: 0..<8)
        func bidirectional(choice: Int) throws {
            for tokens in [1, 15, 16, 17, 100] {
                var problem = LinearAttentionProblem<Float>(
                    batch: 2, tokens: tokens, heads: 4, keyHeads: 2, keyWidth: 20, valueWidth: 40,
                    isNormalized: choice & 1 != 0, seed: UInt64(choice))
                if choice & 2 != 0 { problem.options.unitLengthEpsilon = 1e-6 }
                problem.options.isBidirectional = true
                problem.options.threads = 1 + choice / 4
                try problem.check("\(tokens) tokens, choice \(choice)")
            }
            var packed = LinearAttentionProblem<BFloat16>(
                tokens: 60, heads: 2, keyHeads: 2, keyWidth: 20, valueWidth: 24,
                isNormalized: choice & 1 != 0, offsets: [0, 0, 17, 18, 60], seed: 5)
            packed.options.isBidirectional = true
            try packed.check("packed, choice \(choice)")
        }

        @Test func groupedHeads() throws {
            for (heads, keyHeads) in [(2, 1), (6, 2), (6, 3), (8, 8), (5, 1)] {
                for decay in LinearAttention.Decay.allCases {
                    var problem = LinearAttentionProblem<Float>(
                        tokens: 40, heads: heads, keyHeads: keyHeads, keyWidth: 16, valueWidth: 48,
                        decay: decay, seed: UInt64(heads))
                    problem.options.threads = 3
                    problem.addStates(seed: 3)
                    try problem.check("\(heads) heads on \(keyHeads) \(decay)")
                }
            }
        }

        @Test(arguments: LinearAttention.Decay.allCases)
        func packed(decay: LinearAttention.Decay) throws {
            for offsets in [[0, 0, 17, 17, 33, 70], [0, 70], [0, 1, 2, 3, 70, 70]] {
                var problem = LinearAttentionProblem<Float>(
                    tokens: 70, heads: 2, keyWidth: 16, valueWidth: 20, decay: decay,
                    isNormalized: offsets.count == 2, offsets: offsets, seed: 11)
                problem.options.threads = 2
                problem.choose(9, seed: 1)
                try problem.check("\(offsets) \(decay)")
            }
        }

        @Test func schedules() {
            for heads in [0, 1, 2, 6, 8, 12, 17] {
                typealias Schedules = ReferenceLinearAttention.Decay
                func same(_ found: [Float], _ expected: [Double]) -> Bool {
                    found == expected.map { Float($0) }
                }
                #expect(
                    same(
                        LinearAttention.Decay.retention(heads: heads),
                        Schedules.retention(heads: heads)))
                #expect(
                    same(
                        LinearAttention.Decay.lightning(heads: heads),
                        Schedules.lightning(heads: heads)))
                for (layer, layers) in [(0, 1), (0, 4), (3, 4)] {
                    #expect(
                        same(
                            LinearAttention.Decay.transNormer(
                                heads: heads, layer: layer, layers: layers),
                            Schedules.transNormer(heads: heads, layer: layer, layers: layers)))
                }
            }
        }
    }
}
