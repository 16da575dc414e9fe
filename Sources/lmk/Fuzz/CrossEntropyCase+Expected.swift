import LMKernels
import LMKernelsReference

typealias ReferenceCrossEntropy = LMKernelsReference.CrossEntropy

extension CrossEntropyCase {
    /// What the reference makes of a problem, and scales of errors.
    struct Expected {
        var targets: [Int?]
        var output: ReferenceCrossEntropy.Output
        var targetLogit: [Double]
        var loss = 0.0
        var lossScale = 0.0
        var gradients: ReferenceCrossEntropy.Gradients
        var scales: CrossEntropyScales

        init(_ problem: CrossEntropyCase) {
            var reference = problem.reference
            let targets = (0..<problem.rows).map { reference.target(ofRow: $0) }
            self.targets = targets
            let upstream = problem.upstream(targets)
            let scales = CrossEntropyScales(problem, upstream)
            self.scales = scales
            let vocabulary = problem.vocabulary
            targetLogit = targets.enumerated().map { i, target in
                target.map { scales.logits[i * vocabulary + $0] } ?? 0
            }
            // A logit of +inf makes NaN of its row. The reference is content with lse = +inf.
            for i in 0..<problem.rows {
                let row = i * vocabulary..<(i + 1) * vocabulary
                guard scales.logits[row].contains(.infinity) else { continue }
                for k in 0..<problem.features { reference.hidden[i * problem.features + k] = .nan }
            }
            output = ReferenceCrossEntropy.forward(reference)
            // 0 times NaN in the reference.
            if reference.zLoss == 0 { output.zPenalty = output.zPenalty.map { _ in 0 } }
            let logSumExp = problem.logSumExpGradients?.map { Double($0) }
            let entropy = problem.entropyGradients?.map { Double($0) }
            if let reduction = problem.reduction {
                loss = ReferenceCrossEntropy.reduce(output, of: reference, by: reduction)
                gradients = ReferenceCrossEntropy.backward(
                    reference, reduction: reduction, lossGradient: Double(problem.lossGradient),
                    logSumExpGradient: logSumExp, entropyGradient: entropy)
                let weight = problem.weight(of: targets)
                let count = Double(targets.lazy.filter { $0 != nil }.count)
                let isMean = reduction == .mean
                let sums = (
                    scales.crossEntropy.reduce(0, +), scales.zPenalty.reduce(0, +)
                )
                lossScale =
                    (isMean ? (weight > 0 ? sums.0 / weight : 0) : sums.0)
                    + (isMean ? (count > 0 ? sums.1 / count : 0) : sums.1)
            } else {
                gradients = ReferenceCrossEntropy.backward(
                    reference, lossGradient: problem.lossGradients.map { Double($0) },
                    logSumExpGradient: logSumExp, entropyGradient: entropy)
            }
        }
    }

    private var reduction: ReferenceCrossEntropy.Reduction? {
        switch options.reduction {
        case .none: nil
        case .mean: .mean
        case .sum: .sum
        }
    }

    private var reference: ReferenceCrossEntropy.Problem {
        ReferenceCrossEntropy.Problem(
            rows: rows, features: features, vocabulary: vocabulary,
            hidden: hidden.map { Double($0) }, classifier: classifier.map { Double($0) },
            bias: bias?.map { Double($0) }, classWeights: classWeights?.map { Double($0) },
            targets: targets, ignoreIndex: options.ignoreIndex,
            softcap: options.softcap.map { Double($0) },
            labelSmoothing: Double(options.labelSmoothing), zLoss: Double(options.zLoss),
            logitScale: Double(options.logitScale), targetShift: options.targetShift,
            tokensPerSequence: options.tokensPerSequence)
    }

    private func upstream(_ targets: [Int?]) -> CrossEntropyScales.Upstream {
        let weight = weight(of: targets)
        let count = Double(targets.lazy.filter { $0 != nil }.count)
        func ofRow(_ i: Int, _ divisor: Double) -> Double {
            guard targets[i] != nil else { return 0 }
            switch options.reduction {
            case .none: return Double(lossGradients[i])
            case .sum: return Double(lossGradient)
            case .mean: return divisor > 0 ? Double(lossGradient) / divisor : 0
            }
        }
        func orZeros(_ array: [Float]?) -> [Double] {
            array?.map { Double($0) } ?? Array(repeating: 0, count: rows)
        }
        return .init(
            target: targets, crossEntropy: (0..<rows).map { ofRow($0, weight) },
            zPenalty: (0..<rows).map { ofRow($0, count) }, logSumExp: orZeros(logSumExpGradients),
            entropy: orZeros(entropyGradients))
    }
}
