import LMKernels
import LMKernelsReference
import Testing

@testable import lmk

/// Tolerances as relative Euclidean errors. Measured over every test of this file and of edges, for
/// float32, bfloat16 and float16: o 8.4e-7, 2.0e-3, 2.4e-4; gradients of that storage type 8.2e-7,
/// 2.0e-3, 3.1e-4; states 5.7e-7; gradients that are float32 always 7.3e-7. Keys of width 1:
/// 1.6e-6. States of bfloat16 in chunks on tiles: 2.7e-5.
private func limit(_ name: String, _ type: StorageType, onTiles: Bool) -> Double {
    switch (["o", "dq", "dk", "dv", "da", "db"].contains(name), type) {
    case (false, .bfloat16) where onTiles && name.hasPrefix("state"): 5e-5
    case (false, _), (true, .float32): 2e-6
    case (true, .bfloat16): 4e-3
    case (true, .float16): 6e-4
    }
}

extension DeltaRuleProblem {
    /// Compares with the reference on every instruction set.
    func check(
        _ label: String, forms: [DeltaRule.Form] = [.recurrent, .chunked],
        hasGradients: Bool = true
    ) throws {
        let type = Element.storageType
        let outputs = expectedOutputs()
        let gradients = hasGradients ? expectedGradients() : [:]
        // States of one row: what a reflection leaves of it may be next to nothing.
        let floor: Double = shape.keyWidth == 1 ? 1 : 0
        try withEachInstructionSet(of: .deltaRule(type)) { set in
            func check(
                _ found: Found, _ expected: [String: [Double]], _ label: String,
                onTiles: Bool = false
            ) {
                #expect(found.isFillerKept, "\(label)")
                for (name, values) in found.arrays where !values.isEmpty {
                    let error = relativeError(
                        values.map { Double($0) }, expected[name]!, floor: floor)
                    let limit = limit(name, type, onTiles: onTiles)
                    #expect(error < limit, "\(label): \(name) \(error)")
                }
            }
            for form in forms {
                var problem = self
                problem.options.form = form
                check(
                    try problem.forward(), outputs, "\(label) \(type) \(set) \(form)",
                    onTiles: set == .amx && form != .recurrent)
            }
            guard hasGradients else { return }
            check(try backward(), gradients, "\(label) \(type) \(set)")
        }
    }
}

extension KernelSuite {
    @Suite struct DeltaRuleTests {
        private func everyOption<Element: StorageValue>(
            _ decay: DeltaRule.Decay, choice: Int, of type: Element.Type
        ) throws {
            for (steps, isGeneralized) in [(1, false), (2, false), (3, false), (1, true)] {
                var problem = DeltaRuleProblem<Element>(
                    batch: 2, tokens: 37 / steps, steps: steps, heads: 4, keyHeads: 2,
                    keyWidth: 19, valueWidth: 21, decay: decay, isGeneralized: isGeneralized,
                    seed: UInt64(choice))
                problem.options.threads = 1 + choice % 3
                problem.options.scale = choice % 5 == 0 ? nil : 0.7
                problem.layout = [.tokenMajor, .headMajor, .apart][choice % 3]
                problem.choose(choice, seed: UInt64(choice))
                let kind = isGeneralized ? "generalised" : "\(steps) steps"
                try problem.check("\(decay) \(kind) choice \(choice)")
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases, 0..<16)
        func everyCombinationOfOptions(decay: DeltaRule.Decay, choice: Int) throws {
            try everyOption(decay, choice: choice, of: Float.self)
            if choice % 3 == 0 { try everyOption(decay, choice: choice, of: BFloat16.self) }
            if choice % 3 == 1 { try everyOption(decay, choice: choice, of: Float16.self) }
        }

        private func widths<Element: StorageValue>(
            _ keyWidth: Int, _ valueWidth: Int, of type: Element.Type
        ) throws {
            let isLarge = keyWidth * valueWidth > 1 << 14
            for decay in DeltaRule.Decay.allCases {
                for isGeneralized in [false, true] {
                    var problem = DeltaRuleProblem<Element>(
                        tokens: isLarge ? 18 : 35, keyWidth: keyWidth, valueWidth: valueWidth,
                        decay: decay, isGeneralized: isGeneralized,
                        seed: UInt64(keyWidth * 600 + valueWidth))
                    problem.options.threads = 2
                    problem.addStates(seed: 9)
                    try problem.check(
                        "\(keyWidth) x \(valueWidth) \(decay)"
                            + (isGeneralized ? " generalised" : ""))
                }
            }
        }

        @Test(arguments: [1, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 512])
        func widthsAroundBlockEdges(width: Int) throws {
            try widths(width, 16, of: Float.self)
            try widths(16, width, of: Float.self)
            try widths(width, width <= 128 ? width : 40, of: Float.self)
            try widths(width <= 64 ? width : 40, width, of: BFloat16.self)
            try widths(width, 17, of: Float16.self)
        }

        @Test(arguments: [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 130])
        func tokensAroundChunks(tokens: Int) throws {
            for decay in DeltaRule.Decay.allCases {
                for steps in 1...4 {
                    var problem = DeltaRuleProblem<Float>(
                        batch: 2, tokens: tokens, steps: steps, heads: 2, keyWidth: 24,
                        valueWidth: 33, decay: decay, seed: UInt64(tokens))
                    problem.options.threads = 2
                    problem.choose(5, seed: 4)
                    try problem.check(
                        "\(tokens) tokens of \(steps) \(decay)", forms: DeltaRule.Form.allCases)
                }
                var problem = DeltaRuleProblem<Float>(
                    batch: 2, tokens: tokens, heads: 2, keyWidth: 24, valueWidth: 33,
                    decay: decay, isGeneralized: true, seed: UInt64(tokens))
                problem.choose(5, seed: 4)
                try problem.check("\(tokens) tokens \(decay) generalised")
            }
        }

        @Test func groupedHeads() throws {
            for (heads, keyHeads) in [(2, 1), (6, 2), (6, 3), (8, 8), (5, 1)] {
                for decay in DeltaRule.Decay.allCases {
                    for isGeneralized in [false, true] {
                        var problem = DeltaRuleProblem<Float>(
                            tokens: 40, heads: heads, keyHeads: keyHeads, keyWidth: 16,
                            valueWidth: 48, decay: decay, isGeneralized: isGeneralized,
                            seed: UInt64(heads))
                        problem.options.threads = 3
                        problem.addStates(seed: 3)
                        try problem.check("\(heads) heads on \(keyHeads) \(decay)")
                    }
                }
            }
        }

        @Test(arguments: DeltaRule.Decay.allCases)
        func packed(decay: DeltaRule.Decay) throws {
            for offsets in [[0, 0, 17, 17, 33, 70], [0, 70], [0, 1, 2, 3, 70, 70]] {
                for steps in [1, 2, 3] {
                    var problem = DeltaRuleProblem<Float>(
                        tokens: 70, steps: steps, heads: 2, keyWidth: 16, valueWidth: 20,
                        decay: decay, offsets: offsets, seed: 11)
                    problem.options.threads = 2
                    problem.choose(5, seed: 1)
                    try problem.check("\(offsets) \(steps) \(decay)")
                }
            }
        }

        /// Rates of 0 to 1, as DeltaNet has them: states that are corrected and never reflected.
        @Test func positiveEigenvalues() throws {
            for decay in DeltaRule.Decay.allCases {
                var problem = DeltaRuleProblem<Float>(
                    tokens: 200, heads: 2, keyWidth: 32, valueWidth: 32, decay: decay, seed: 3)
                problem.setRates(0...1, seed: 4)
                problem.addStates(seed: 5)
                try problem.check("\(decay)")
            }
        }

        @Test func chunkedIsRecurrent() throws {
            for (rates, limit) in [(Float(0)...1, 2e-6), (0...2, 3e-6)] {
                for steps in [1, 2] {
                    var problem = DeltaRuleProblem<Float>(
                        tokens: 512, steps: steps, heads: 2, keyWidth: 64, valueWidth: 64,
                        decay: .token, seed: 8)
                    problem.setRates(rates, seed: 9)
                    problem.setDecays(-0.05...0, seed: 10)
                    problem.options.form = .recurrent
                    let expected = try problem.forward().output.map { Double($0) }
                    problem.options.form = .chunked
                    let error = relativeError(try problem.forward().output, expected)
                    #expect(error < limit, "\(rates), \(steps): \(error)")
                }
            }
        }

        /// What the form is makes no difference to gradients.
        @Test func formsHaveTheSameGradients() throws {
            for decay in DeltaRule.Decay.allCases {
                var problem = DeltaRuleProblem<Float>(
                    tokens: 50, steps: 2, heads: 2, keyWidth: 24, valueWidth: 40, decay: decay)
                problem.addStates(seed: 1)
                let expected = try problem.backward()
                for form in [DeltaRule.Form.recurrent, .chunked] {
                    problem.options.form = form
                    let found = try problem.backward()
                    #expect(found.difference(from: expected) == nil, "\(decay) \(form)")
                }
            }
        }
    }
}
