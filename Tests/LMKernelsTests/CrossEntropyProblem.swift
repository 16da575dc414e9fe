import LMKernels
import LMKernelsReference

/// A random problem, as the kernel and as the reference see it. Rows of matrices are apart by more
/// than they are long; the gaps hold NaN, which no result may depend on.
struct CrossEntropyProblem {
    var shape: CrossEntropy.Shape
    var options = CrossEntropy.Options(threads: 1)
    var hidden: [Float]
    var classifier: [Float]
    var bias: [Float]?
    var classWeights: [Float]?
    var targets: [Int]
    var lossGradient: Float = 0.75
    var lossGradients: [Float]
    var logSumExpGradients: [Float]?
    var entropyGradients: [Float]?

    static let gap = 3

    init(rows: Int, features: Int, vocabulary: Int, seed: UInt64, spread: Float = 2) {
        var random = SeededGenerator(seed: seed)
        let stride = features + Self.gap
        shape = .init(
            rows: rows, features: features, vocabulary: vocabulary, hiddenStride: stride,
            classifierStride: stride)
        func matrix(_ rows: Int, _ range: ClosedRange<Float>) -> [Float] {
            var x = [Float](repeating: .nan, count: rows * stride)
            for i in 0..<rows {
                for k in 0..<features { x[i * stride + k] = .random(in: range, using: &random) }
            }
            return x
        }
        hidden = matrix(rows, -1...1)
        // Logits spread over a few units whatever the number of features.
        let size = spread / Float(features).squareRoot()
        classifier = matrix(vocabulary, -size...size)
        targets = (0..<rows).map { _ in
            Int.random(in: 0..<5, using: &random) == 0
                ? -100 : Int.random(in: 0..<vocabulary, using: &random)
        }
        lossGradients = (0..<rows).map { _ in .random(in: -1...1, using: &random) }
        options.ignoreIndex = -100
    }

    /// Options and arrays drawn by the bits of `choice`, so that a loop over numbers meets each.
    mutating func choose(_ choice: Int, seed: UInt64) {
        var random = SeededGenerator(seed: seed &+ 77)
        let (rows, vocabulary) = (shape.rows, shape.vocabulary)
        if choice & 1 != 0 {
            bias = (0..<vocabulary).map { _ in .random(in: -1...1, using: &random) }
        }
        if choice & 2 != 0 { options.softcap = 2.5 }
        if choice & 4 != 0 {
            classWeights = (0..<vocabulary).map { _ in .random(in: 0...2, using: &random) }
        }
        if choice & 8 != 0 { options.labelSmoothing = 0.15 }
        if choice & 16 != 0 { options.zLoss = 0.01 }
        if choice & 32 != 0 { options.logitScale = 0.5 }
        if choice & 64 != 0 {
            logSumExpGradients = (0..<rows).map { _ in .random(in: -1...1, using: &random) }
        }
        if choice & 128 != 0 {
            entropyGradients = (0..<rows).map { _ in .random(in: -1...1, using: &random) }
        }
        options.reduction = [.none, .mean, .sum][choice % 3]
    }

    // MARK: - The kernel

    /// Everything a call gives.
    struct Found {
        var result: CrossEntropy.Result
        var hidden: [Float]
        var classifier: [Float]
        var bias: [Float]
    }

    enum Way: CaseIterable {
        /// Losses and gradients in one call.
        case together
        /// Forward, then backward from the row states.
        case apart
    }

    static let allOutputs: CrossEntropy.Outputs = [
        .loss, .logSumExp, .entropy, .predicted, .targetLogit, .rowStates,
    ]

    func run(
        _ way: Way = .together, accumulate: CrossEntropy.Gradients = [], initial: Float = .nan,
        workspace: Workspace = Workspace()
    ) throws(KernelError) -> Found {
        let stride = shape.features + Self.gap
        var hiddenGradient = [Float](repeating: initial, count: shape.rows * stride)
        var classifierGradient = [Float](repeating: initial, count: shape.vocabulary * stride)
        var biasGradient = [Float](repeating: initial, count: shape.vocabulary)
        let upstream = options.reduction == .none ? lossGradients : nil
        let result: CrossEntropy.Result
        switch way {
        case .together:
            result = try CrossEntropy.forwardBackward(
                hidden: hidden.span, classifier: classifier.span, bias: bias?.span,
                classWeights: classWeights?.span, targets: targets.span, shape: shape,
                options: options, lossGradient: lossGradient, lossGradients: upstream?.span,
                logSumExpGradients: logSumExpGradients?.span,
                entropyGradients: entropyGradients?.span,
                hiddenGradient: hiddenGradient.mutableSpan, hiddenGradientStride: stride,
                classifierGradient: classifierGradient.mutableSpan,
                classifierGradientStride: stride, biasGradient: biasGradient.mutableSpan,
                accumulate: accumulate, outputs: Self.allOutputs, workspace: workspace)
        case .apart:
            let forward = try CrossEntropy.forward(
                hidden: hidden.span, classifier: classifier.span, bias: bias?.span,
                classWeights: classWeights?.span, targets: targets.span, shape: shape,
                options: options, outputs: Self.allOutputs, workspace: workspace)
            try CrossEntropy.backward(
                hidden: hidden.span, classifier: classifier.span, bias: bias?.span,
                classWeights: classWeights?.span, targets: targets.span, shape: shape,
                options: options, rowStates: forward.rowStates.span,
                entropy: forward.entropy.span,
                lossGradient: lossGradient, lossGradients: upstream?.span,
                logSumExpGradients: logSumExpGradients?.span,
                entropyGradients: entropyGradients?.span,
                hiddenGradient: hiddenGradient.mutableSpan, hiddenGradientStride: stride,
                classifierGradient: classifierGradient.mutableSpan,
                classifierGradientStride: stride, biasGradient: biasGradient.mutableSpan,
                accumulate: accumulate, workspace: workspace)
            result = forward
        }
        return Found(
            result: result, hidden: hiddenGradient, classifier: classifierGradient,
            bias: biasGradient)
    }

    // MARK: - The reference

    struct Expected {
        var output: ReferenceCrossEntropy.Output
        var loss: Double
        var correct: Int
        var gradients: ReferenceCrossEntropy.Gradients
    }

    func dense(_ x: [Float], rows: Int) -> [Double] {
        let stride = shape.features + Self.gap
        return (0..<rows).flatMap { i in
            (0..<shape.features).map { Double(x[i * stride + $0]) }
        }
    }

    func expected() -> Expected {
        let problem = ReferenceCrossEntropy.Problem(
            rows: shape.rows, features: shape.features, vocabulary: shape.vocabulary,
            hidden: dense(hidden, rows: shape.rows),
            classifier: dense(classifier, rows: shape.vocabulary), bias: bias?.map { Double($0) },
            classWeights: classWeights?.map { Double($0) }, targets: targets,
            ignoreIndex: options.ignoreIndex, softcap: options.softcap.map { Double($0) },
            labelSmoothing: Double(options.labelSmoothing), zLoss: Double(options.zLoss),
            logitScale: Double(options.logitScale), targetShift: options.targetShift,
            tokensPerSequence: options.tokensPerSequence)
        let output = ReferenceCrossEntropy.forward(problem)
        let lse = logSumExpGradients?.map { Double($0) }
        let entropy = entropyGradients?.map { Double($0) }
        let reduction: ReferenceCrossEntropy.Reduction? =
            switch options.reduction {
            case .none: nil
            case .mean: .mean
            case .sum: .sum
            }
        let gradients =
            if let reduction {
                ReferenceCrossEntropy.backward(
                    problem, reduction: reduction, lossGradient: Double(lossGradient),
                    logSumExpGradient: lse, entropyGradient: entropy)
            } else {
                ReferenceCrossEntropy.backward(
                    problem, lossGradient: lossGradients.map { Double($0) }, logSumExpGradient: lse,
                    entropyGradient: entropy)
            }
        return Expected(
            output: output,
            loss: reduction.map {
                ReferenceCrossEntropy.reduce(output, of: problem, by: $0)
            } ?? 0,
            correct: ReferenceCrossEntropy.accuracy(output, of: problem).correct,
            gradients: gradients)
    }
}

/// ||found - expected|| / ||expected||, or ||found|| where nothing is expected. Entries that are
/// not finite must be equal in kind and place, and are left out.
func relativeError(_ found: [Double], _ expected: [Double]) -> Double {
    guard found.count == expected.count else { return .infinity }
    var difference = 0.0
    var norm = 0.0
    for (x, y) in zip(found, expected) {
        if !y.isFinite {
            guard x == y || (x.isNaN && y.isNaN) else { return .infinity }
            continue
        }
        difference += (x - y) * (x - y)
        norm += y * y
    }
    if difference.isNaN { return .infinity }
    return norm < 1e-60 ? difference.squareRoot() : (difference / norm).squareRoot()
}

func relativeError(_ found: [Float], _ expected: [Double]) -> Double {
    relativeError(found.map { Double($0) }, expected)
}

extension CrossEntropyProblem {
    /// The largest error of the row outputs and of the gradients.
    func errors(of found: Found, against expected: Expected) -> (outputs: Double, gradients: Double)
    {
        let result = found.result
        let outputs = [
            relativeError(result.losses, expected.output.loss),
            relativeError(result.logSumExp, expected.output.logSumExp),
            relativeError(result.entropy, expected.output.entropy),
            relativeError(result.targetLogit, expected.output.targetLogit),
            relativeError([result.loss], [expected.loss]),
        ]
        let gradients = [
            relativeError(dense(found.hidden, rows: shape.rows), expected.gradients.hidden),
            relativeError(
                dense(found.classifier, rows: shape.vocabulary), expected.gradients.classifier),
            relativeError(found.bias, expected.gradients.bias),
        ]
        return (outputs.max()!, gradients.max()!)
    }

    /// Whether the gaps between rows still hold what was there.
    func gapsKept(in gradient: [Float]) -> Bool {
        let stride = shape.features + Self.gap
        return gradient.indices.allSatisfy { $0 % stride < shape.features || gradient[$0].isNaN }
    }
}

/// The bits of everything that a call gave.
func allBits(_ found: CrossEntropyProblem.Found) -> [[UInt32]] {
    let result = found.result
    return [
        bits(result.losses), bits(result.logSumExp), bits(result.entropy), bits(result.targetLogit),
        result.predicted.map { UInt32(truncatingIfNeeded: $0) },
        bits(result.rowStates.flatMap { [$0.max, $0.sum, $0.targetLoss] }),
        bits(found.hidden), bits(found.classifier), bits(found.bias),
        [UInt32(truncatingIfNeeded: result.loss.bitPattern), UInt32(result.loss.bitPattern >> 32)],
    ]
}
