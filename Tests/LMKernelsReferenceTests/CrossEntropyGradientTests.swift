import LMKernelsReference
import Testing

/// The formula of `backward` against finite differences of `forward` and `reduce`, for every
/// combination of options.
@Suite struct CrossEntropyGradientTests {
    /// What is differentiated: per-row losses times their gradients, or 1.7 times a reduced one.
    enum Loss: CaseIterable {
        case perRow, mean, sum

        var reduction: CrossEntropy.Reduction? {
            switch self {
            case .perRow: nil
            case .mean: .mean
            case .sum: .sum
            }
        }
    }

    /// Two sequences of 4 rows, 3 features, 5 classes, two ignored targets; options by bit.
    static func problem(options: Int) -> CrossEntropy.Problem {
        var generator = SeededGenerator(seed: UInt64(options))
        func option(_ bit: Int) -> Bool { options >> bit & 1 == 1 }
        return CrossEntropy.Problem(
            rows: 8, features: 3, vocabulary: 5,
            hidden: generator.numbers(24, in: -1...1),
            classifier: generator.numbers(15, in: -1...1),
            bias: option(0) ? generator.numbers(5, in: -1...1) : nil,
            classWeights: option(1) ? generator.numbers(5, in: 0.5...2) : nil,
            targets: [3, 0, -1, 2, 4, 1, 3, -1],
            ignoreIndex: -1,
            softcap: option(2) ? 1.5 : nil,
            labelSmoothing: option(3) ? 0.3 : 0,
            zLoss: option(4) ? 0.2 : 0,
            logitScale: option(5) ? 1.4 : 1,
            targetShift: option(6) ? 1 : 0,
            tokensPerSequence: 4)
    }

    static let optionCount = 7

    /// Whether the upstream gradients of lse and entropy are there, and which.
    struct Upstream {
        var loss: [Double]
        var logSumExp: [Double]?
        var entropy: [Double]?

        init(logSumExp: Bool, entropy: Bool) {
            var generator = SeededGenerator(seed: 77)
            loss = generator.numbers(8, in: -1...1)
            self.logSumExp = logSumExp ? generator.numbers(8, in: -1...1) : nil
            self.entropy = entropy ? generator.numbers(8, in: -1...1) : nil
        }
    }

    static func objective(
        _ problem: CrossEntropy.Problem, _ loss: Loss, _ upstream: Upstream
    ) -> Double {
        let output = CrossEntropy.forward(problem)
        var total = 0.0
        if let reduction = loss.reduction {
            total = 1.7 * CrossEntropy.reduce(output, of: problem, by: reduction)
        } else {
            for (g, x) in zip(upstream.loss, output.loss) { total += g * x }
        }
        for (g, x) in zip(upstream.logSumExp ?? [], output.logSumExp) { total += g * x }
        for (g, x) in zip(upstream.entropy ?? [], output.entropy) { total += g * x }
        return total
    }

    /// Central differences of fourth order: the step's error is of the order 1e-13, that of
    /// rounding 1e-12.
    static func differences(
        of objective: (CrossEntropy.Problem) -> Double, at problem: CrossEntropy.Problem,
        along path: WritableKeyPath<CrossEntropy.Problem, [Double]>
    ) -> [Double] {
        let step = 0x1p-10
        return problem[keyPath: path].indices.map { index in
            func value(_ steps: Double) -> Double {
                var moved = problem
                moved[keyPath: path][index] += steps * step
                return objective(moved)
            }
            return (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * step)
        }
    }

    @Test(arguments: Loss.allCases)
    func matchFiniteDifferences(loss: Loss) {
        for options in 0..<(1 << Self.optionCount) {
            for statistics in 0..<4 {
                let upstream = Upstream(
                    logSumExp: statistics & 1 != 0, entropy: statistics & 2 != 0)
                let problem = Self.problem(options: options)
                let gradients =
                    if let reduction = loss.reduction {
                        CrossEntropy.backward(
                            problem, reduction: reduction, lossGradient: 1.7,
                            logSumExpGradient: upstream.logSumExp,
                            entropyGradient: upstream.entropy)
                    } else {
                        CrossEntropy.backward(
                            problem, lossGradient: upstream.loss,
                            logSumExpGradient: upstream.logSumExp,
                            entropyGradient: upstream.entropy)
                    }

                // The derivative in the bias is there without a bias too.
                var withBias = problem
                withBias.bias = problem.bias ?? Array(repeating: 0, count: 5)
                func differences(
                    _ path: WritableKeyPath<CrossEntropy.Problem, [Double]>
                ) -> [Double] {
                    Self.differences(
                        of: { Self.objective($0, loss, upstream) }, at: withBias, along: path)
                }
                let errors = [
                    worstError(gradients.hidden, differences(\.hidden)),
                    worstError(gradients.classifier, differences(\.classifier)),
                    worstError(gradients.bias, differences(\.bias!)),
                ]
                // Measured over all combinations: 2.8e-12 per row, 3.7e-12 mean, 1.5e-11 sum.
                for error in errors {
                    #expect(error < 1e-10, "options \(options), statistics \(statistics)")
                }
            }
        }
    }
}
