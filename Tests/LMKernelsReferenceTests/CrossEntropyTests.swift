import LMKernelsReference
import Testing

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

@Suite struct CrossEntropyTests {
    /// One feature of value 1, so that the classifier holds the logits of every row.
    static func logits(
        _ logits: [Double], targets: [Int], bias: [Double]? = nil
    ) -> CrossEntropy.Problem {
        CrossEntropy.Problem(
            rows: targets.count, features: 1, vocabulary: logits.count,
            hidden: Array(repeating: 1, count: targets.count), classifier: logits, bias: bias,
            targets: targets)
    }

    // MARK: - By hand

    /// Logits 0 and log 3: probabilities 1/4 and 3/4.
    @Test func twoClasses() {
        let problem = Self.logits([0, log(3)], targets: [0, 1])
        let output = CrossEntropy.forward(problem)
        #expect(worstError(output.loss, [log(4), log(4.0 / 3)]) < rounding)
        #expect(output.crossEntropy == output.loss)
        #expect(output.zPenalty == [0, 0])
        #expect(worstError(output.logSumExp, [log(4), log(4)]) < rounding)
        let entropy = log(4.0) - 0.75 * log(3.0)
        #expect(worstError(output.entropy, [entropy, entropy]) < rounding)
        #expect(output.predicted == [1, 1])
        #expect(output.targetLogit == [0, log(3)])
        #expect(output.isValid == [true, true])
        #expect(CrossEntropy.accuracy(output, of: problem) == (correct: 1, valid: 2))

        // G is p - [j = y]: (-3/4, 3/4) for the first row, (1/4, -1/4) for the second.
        let gradients = CrossEntropy.backward(problem, lossGradient: [1, 10])
        #expect(worstError(gradients.hidden, [0.75 * log(3), -2.5 * log(3)]) < rounding)
        #expect(worstError(gradients.classifier, [1.75, -1.75]) < rounding)
        #expect(worstError(gradients.bias, [1.75, -1.75]) < rounding)
    }

    /// The same with weights 2 and 5, smoothing 0.2 and z-loss 0.1:
    /// crossEntropy = 0.8 w_y nll_y + 0.1 (2 nll_0 + 5 nll_1).
    @Test func weightsSmoothingAndZLoss() {
        var problem = Self.logits([0, log(3)], targets: [0, 1, -100])
        problem.classWeights = [2, 5]
        problem.labelSmoothing = 0.2
        problem.zLoss = 0.1
        let (first, second) = (log(4.0), log(4.0 / 3))
        let smooth = 0.1 * (2 * first + 5 * second)
        let z = 0.1 * first * first

        let output = CrossEntropy.forward(problem)
        let crossEntropy = [1.6 * first + smooth, 4 * second + smooth, 0]
        #expect(worstError(output.crossEntropy, crossEntropy) < rounding)
        #expect(worstError(output.zPenalty, [z, z, 0]) < rounding)
        #expect(worstError(output.loss, [crossEntropy[0] + z, crossEntropy[1] + z, 0]) < rounding)

        // The cross-entropy part over 2 + 5, the z part over 2 rows.
        let sum = crossEntropy[0] + crossEntropy[1]
        let mean = CrossEntropy.reduce(output, of: problem, by: .mean)
        #expect(relativeError(mean, sum / 7 + z) < rounding)
        #expect(
            relativeError(CrossEntropy.reduce(output, of: problem, by: .sum), sum + 2 * z)
                < rounding)

        // d crossEntropy / dz_0 = 0.8 w_y (p_0 - [y = 0]) + 0.1 (7 p_0 - 2), 0.2 lse p_0 beside it.
        let cross = 0.8 * 2 * -0.75 + 0.8 * 5 * 0.25 + 2 * 0.1 * (7 * 0.25 - 2)
        let gradients = CrossEntropy.backward(problem, reduction: .mean, lossGradient: 3)
        let expected = 3 * (cross / 7 + 0.2 * log(4) * 0.25)
        #expect(relativeError(gradients.bias[0], expected) < rounding)
    }

    /// cap tanh(a / cap) with cap 2 and tanh 1/2, slope 3/4; then the scale.
    @Test func softcapAndScale() {
        var problem = Self.logits([0, 2 * atanh(0.5)], targets: [1])
        problem.softcap = 2
        problem.logitScale = 3
        let output = CrossEntropy.forward(problem)
        #expect(worstError(output.logSumExp, [log(1 + exp(3))]) < rounding)
        #expect(relativeError(output.targetLogit[0], 3) < rounding)

        let p = 1 / (1 + exp(3.0))
        let gradients = CrossEntropy.backward(problem, lossGradient: [1])
        #expect(worstError(gradients.bias, [3 * p, -3 * 0.75 * p]) < rounding)
    }

    /// Upstream gradients of the statistics act on rows without a target too.
    @Test func statisticsOfIgnoredRows() {
        let problem = Self.logits([0, log(3)], targets: [-100])
        let output = CrossEntropy.forward(problem)
        #expect(output.loss == [0])
        #expect(output.targetLogit == [0])
        #expect(output.isValid == [false])
        #expect(relativeError(output.logSumExp[0], log(4)) < rounding)
        #expect(output.predicted == [1])

        let ofLoss = CrossEntropy.backward(problem, lossGradient: [5])
        #expect(ofLoss.bias == [0, 0])
        let ofLogSumExp = CrossEntropy.backward(
            problem, lossGradient: [5], logSumExpGradient: [2])
        #expect(worstError(ofLogSumExp.bias, [0.5, 1.5]) < rounding)
        // dH/dz_0 = -p_0 (log p_0 + H) with H = log 4 - 3/4 log 3.
        let ofEntropy = CrossEntropy.backward(problem, lossGradient: [5], entropyGradient: [2])
        #expect(worstError(ofEntropy.bias, [0.375 * log(3), -0.375 * log(3)]) < rounding)
    }

    @Test func shiftStaysWithinItsSequence() {
        var problem = Self.logits([0, 1, 2, 3], targets: [0, 1, 2, 3, 2, -100])
        problem.targetShift = 1
        problem.tokensPerSequence = 3
        #expect((0..<6).map { problem.target(ofRow: $0) } == [1, 2, nil, 2, nil, nil])
        problem.tokensPerSequence = nil
        #expect((0..<6).map { problem.target(ofRow: $0) } == [1, 2, 3, 2, nil, nil])
        problem.tokensPerSequence = 2
        problem.targetShift = 2
        #expect((0..<6).allSatisfy { problem.target(ofRow: $0) == nil })

        problem.targetShift = 1
        let loss = CrossEntropy.forward(problem).loss
        let explicit = Self.logits([0, 1, 2, 3], targets: [1, -100, 3, -100, -100, -100])
        #expect(loss == CrossEntropy.forward(explicit).loss)
    }

    @Test func tiesPredictTheLowestClass() {
        let problem = Self.logits([1, 4, 4, 0, 4], targets: [1, 2])
        let output = CrossEntropy.forward(problem)
        #expect(output.predicted == [1, 1])
        #expect(CrossEntropy.accuracy(output, of: problem) == (correct: 1, valid: 2))
        #expect(output.loss[0] == output.loss[1])
    }

    @Test func uniformLogitsHaveTheLargestEntropy() {
        let problem = Self.logits(Array(repeating: 3, count: 7), targets: [-100])
        #expect(relativeError(CrossEntropy.forward(problem).entropy[0], log(7)) < rounding)
        let gradients = CrossEntropy.backward(
            problem, lossGradient: [0], entropyGradient: [1])
        #expect(worstError(gradients.bias, Array(repeating: 0, count: 7)) < rounding)
    }

    /// The definitions as they stand in the type's comment, without any care for rounding.
    @Test func forwardIsTheDefinition() {
        var worst = 0.0
        for options in 0..<(1 << CrossEntropyGradientTests.optionCount) {
            let problem = CrossEntropyGradientTests.problem(options: options)
            let output = CrossEntropy.forward(problem)
            for i in 0..<8 {
                let z = (0..<5).map { j in
                    var a = problem.bias?[j] ?? 0
                    for d in 0..<3 {
                        a += problem.hidden[3 * i + d] * problem.classifier[3 * j + d]
                    }
                    let s = problem.softcap.map { $0 * tanh(a / $0) } ?? a
                    return s * problem.logitScale
                }
                let w = problem.classWeights ?? Array(repeating: 1, count: 5)
                let e = problem.labelSmoothing
                let lse = log(z.map { exp($0) }.reduce(0, +))
                let entropy = lse - z.map { exp($0 - lse) * $0 }.reduce(0, +)
                var loss = 0.0
                if let y = problem.target(ofRow: i) {
                    let weighted = zip(w, z).map { $0 * $1 }.reduce(0, +)
                    loss = (1 - e) * w[y] * (lse - z[y])
                    loss += e / 5 * (w.reduce(0, +) * lse - weighted)
                    loss += problem.zLoss * lse * lse
                    worst = max(worst, abs(output.targetLogit[i] - z[y]))
                }
                worst = max(worst, abs(output.logSumExp[i] - lse))
                worst = max(worst, abs(output.entropy[i] - entropy))
                worst = max(worst, abs(output.loss[i] - loss))
            }
        }
        // Measured: 1.8e-15. The definition loses a few digits that `forward` keeps.
        #expect(worst < 1e-14)
    }

    // MARK: - Extremes

    @Test func oneClass() {
        var problem = Self.logits([5], targets: [0])
        problem.labelSmoothing = 0.1
        problem.classWeights = [3]
        let output = CrossEntropy.forward(problem)
        #expect(output.loss == [0])
        #expect(output.logSumExp == [5])
        #expect(output.entropy == [0])
        #expect(output.predicted == [0])
        let gradients = CrossEntropy.backward(
            problem, lossGradient: [1], logSumExpGradient: [0], entropyGradient: [1])
        #expect(gradients.hidden == [0])
        #expect(gradients.classifier == [0])
        #expect(gradients.bias == [0])
    }

    @Test func allIgnored() {
        var problem = Self.logits([1, 2], targets: [-100, -100])
        problem.zLoss = 0.1
        let output = CrossEntropy.forward(problem)
        #expect(output.loss == [0, 0])
        #expect(CrossEntropy.accuracy(output, of: problem) == (correct: 0, valid: 0))
        for reduction in CrossEntropy.Reduction.allCases {
            #expect(CrossEntropy.reduce(output, of: problem, by: reduction) == 0)
            let gradients = CrossEntropy.backward(problem, reduction: reduction)
            #expect(gradients.hidden == [0, 0])
            #expect(gradients.classifier == [0, 0])
            #expect(gradients.bias == [0, 0])
        }
    }

    @Test func noRows() {
        let problem = CrossEntropy.Problem(
            rows: 0, features: 2, vocabulary: 3, hidden: [],
            classifier: Array(repeating: 1, count: 6), targets: [])
        let output = CrossEntropy.forward(problem)
        #expect(output.loss == [] && output.logSumExp == [] && output.predicted == [])
        #expect(CrossEntropy.reduce(output, of: problem, by: .mean) == 0)
        let gradients = CrossEntropy.backward(problem, reduction: .mean)
        #expect(gradients.hidden == [])
        #expect(gradients.classifier == Array(repeating: 0, count: 6))
        #expect(gradients.bias == [0, 0, 0])
    }

    @Test func noFeatures() {
        let problem = CrossEntropy.Problem(
            rows: 1, features: 0, vocabulary: 2, hidden: [], classifier: [], bias: [0, log(3)],
            targets: [1])
        #expect(worstError(CrossEntropy.forward(problem).loss, [log(4) - log(3)]) < rounding)
        let gradients = CrossEntropy.backward(problem, reduction: .sum)
        #expect(worstError(gradients.bias, [0.25, -0.25]) < rounding)
    }

    /// A class masked by its bias is as if it were not there.
    @Test func maskedClass() {
        let masked = Self.logits([1, 9, 2], targets: [0, 2], bias: [0, -.infinity, 0])
        let without = Self.logits([1, 2], targets: [0, 1])
        let output = CrossEntropy.forward(masked)
        let expected = CrossEntropy.forward(without)
        #expect(output.loss == expected.loss)
        #expect(output.entropy == expected.entropy)
        #expect(output.predicted == [2, 2])

        let upstream = [1.0, 0.5]
        let gradients = CrossEntropy.backward(
            masked, lossGradient: upstream, logSumExpGradient: upstream, entropyGradient: upstream)
        let reduced = CrossEntropy.backward(
            without, lossGradient: upstream, logSumExpGradient: upstream,
            entropyGradient: upstream)
        #expect(gradients.bias == [reduced.bias[0], 0, reduced.bias[1]])
        #expect(gradients.hidden == reduced.hidden)
    }

    @Test func maskedTarget() {
        var problem = Self.logits([1, 9, 2], targets: [1], bias: [0, -.infinity, 0])
        #expect(CrossEntropy.forward(problem).loss == [.infinity])
        #expect(CrossEntropy.forward(problem).targetLogit == [-.infinity])
        let gradients = CrossEntropy.backward(problem, lossGradient: [1])
        #expect(gradients.bias[1] == -1)
        #expect(worstError([gradients.bias[0] + gradients.bias[2]], [1]) < rounding)

        // A weight of 0 takes it out of the loss, also as part of the smoothing.
        problem.classWeights = [1, 0, 1]
        #expect(CrossEntropy.forward(problem).loss == [0])
        problem.labelSmoothing = 0.3
        #expect(CrossEntropy.forward(problem).loss[0].isFinite)
        problem.classWeights = nil
        problem.targets = [0]
        #expect(CrossEntropy.forward(problem).loss == [.infinity])
    }

    @Test func everyClassMasked() {
        let bias = Array(repeating: -Double.infinity, count: 3)
        let problem = Self.logits([1, 2, 3], targets: [0], bias: bias)
        let output = CrossEntropy.forward(problem)
        #expect(output.logSumExp == [-.infinity])
        #expect(output.loss[0].isNaN)
        #expect(output.entropy[0].isNaN)
        #expect(output.predicted == [0])
    }

    @Test func notANumberStaysInItsRow() {
        var problem = Self.logits([1, 2], targets: [0, 1, -100])
        problem.hidden[0] = .nan
        problem.hidden[2] = .nan
        let output = CrossEntropy.forward(problem)
        #expect(output.loss[0].isNaN && output.logSumExp[0].isNaN && output.entropy[0].isNaN)
        #expect(output.loss[1].isFinite)
        #expect(output.loss[2] == 0)

        // An ignored row is not looked at; a row with a target is.
        #expect(CrossEntropy.backward(problem, reduction: .sum).bias[0].isNaN)
        problem.hidden[0] = 1
        let gradients = CrossEntropy.backward(problem, reduction: .sum)
        #expect(gradients.classifier.allSatisfy { $0.isFinite })
        #expect(gradients.hidden[2] == 0)
    }

    /// A loss of e^-40 is far below the rounding of lse, which is 40.
    @Test func sureRow() {
        let problem = Self.logits([40, 0], targets: [0])
        let output = CrossEntropy.forward(problem)
        let p = exp(-40.0)
        #expect(relativeError(output.loss[0], p) < rounding)
        #expect(relativeError(output.entropy[0], 41 * p) < rounding)
        let gradients = CrossEntropy.backward(problem, lossGradient: [1])
        #expect(relativeError(gradients.bias[0], -p) < rounding)
        #expect(relativeError(gradients.bias[1], p) < rounding)
    }

    @Test func hugeLogits() {
        let problem = Self.logits([1e5, -1e5, 1e5], targets: [0, 1])
        let output = CrossEntropy.forward(problem)
        #expect(relativeError(output.loss[0], log(2)) < rounding)
        #expect(relativeError(output.loss[1], 2e5 + log(2)) < rounding)
        #expect(worstError(output.entropy, [log(2), log(2)]) < rounding)
        let gradients = CrossEntropy.backward(problem, lossGradient: [1, 1])
        #expect(worstError(gradients.bias, [0, -1, 1]) < rounding)
    }

    /// The slope of the softcap, 1 - tanh^2 x, at x = 25: 4 e^-50 (1 + ...), which 1 - 1 is not.
    @Test func saturatedSoftcap() {
        var problem = Self.logits([25, 0], targets: [-100])
        problem.softcap = 1
        let gradients = CrossEntropy.backward(
            problem, lossGradient: [0], logSumExpGradient: [1])
        let p = exp(1.0) / (exp(1.0) + 1)
        #expect(relativeError(gradients.bias[0], p * 4 * exp(-50.0)) < rounding)

        // No slope is left at the ends, where cosh overflows.
        problem.classifier = [1e4, -.infinity]
        let none = CrossEntropy.backward(problem, lossGradient: [0], logSumExpGradient: [1])
        #expect(none.bias == [0, 0])
    }
}
