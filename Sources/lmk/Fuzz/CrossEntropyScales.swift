import Foundation
import LMKernels

/// What rounding errors of each output of a cross-entropy problem are measured against: the sum of
/// the magnitudes that went into it, each times its sensitivity to the logits it came from.
///
/// The error of a logit is measured against |e| |c| summed over the features, plus |bias|. Where
/// rounding a logit changes probabilities by more than a little, all that can be asked of a row is
/// that its results are finite (scale infinity); where float32 may overflow, nothing (NaN).
struct CrossEntropyScales {
    /// For each row; losses in two parts, before any reduction.
    private(set) var crossEntropy: [Double]
    private(set) var zPenalty: [Double]
    private(set) var logSumExp: [Double]
    private(set) var entropy: [Double]
    private(set) var targetLogit: [Double]
    /// Gradients, dense.
    private(set) var hidden: [Double]
    private(set) var classifier: [Double]
    private(set) var bias: [Double]
    /// z, [rows, vocabulary], and the scale of its errors.
    private(set) var logits: [Double]
    private(set) var logitErrors: [Double]

    /// Beyond this, float32 may have overflowed on the way.
    static let overflow = 1e37

    /// A denormal number loses 2^-150 whatever its size: in units of a tolerance of 10^-5.
    private static let underflow = 0x1p-132

    private let problem: CrossEntropyCase
    private let upstream: Upstream

    init(_ problem: CrossEntropyCase, _ upstream: Upstream) {
        self.problem = problem
        self.upstream = upstream
        let (rows, vocabulary) = (problem.rows, problem.vocabulary)
        func zeros(_ count: Int) -> [Double] { Array(repeating: 0, count: count) }
        crossEntropy = zeros(rows)
        zPenalty = zeros(rows)
        logSumExp = zeros(rows)
        entropy = zeros(rows)
        targetLogit = zeros(rows)
        hidden = Array(repeating: Self.underflow, count: rows * problem.features)
        classifier = Array(
            repeating: Self.underflow
                + (problem.accumulate.contains(.classifier)
                    ? Double(problem.initial.magnitude) : 0),
            count: vocabulary * problem.features)
        bias = Array(
            repeating: Self.underflow
                + (problem.accumulate.contains(.bias) ? Double(problem.initial.magnitude) : 0),
            count: vocabulary)
        if problem.accumulate.contains(.hidden) {
            hidden = hidden.map { $0 + Double(problem.initial.magnitude) }
        }
        logits = zeros(rows * vocabulary)
        logitErrors = logits
        for i in 0..<rows { measure(row: i) }
    }

    /// Upstream gradients of each row, as the reduction makes them: of the two parts of the loss, of
    /// lse and of the entropy. 0 where the row is ignored or nothing comes.
    struct Upstream {
        var target: [Int?]
        var crossEntropy: [Double]
        var zPenalty: [Double]
        var logSumExp: [Double]
        var entropy: [Double]
    }
}

// MARK: - Rows

extension CrossEntropyScales {
    private mutating func measure(row i: Int) {
        let row = CrossEntropyLogits(problem, row: i)
        let vocabulary = problem.vocabulary
        logits.replaceSubrange(i * vocabulary..<(i + 1) * vocabulary, with: row.z)
        logitErrors.replaceSubrange(i * vocabulary..<(i + 1) * vocabulary, with: row.error)
        let target = upstream.target[i]
        if let target { targetLogit[i] = row.error[target] + row.z[target].magnitude }
        switch row.quality {
        case .proportional:
            measure(i, row, target)
        case .uncertain:
            set(row: i, to: .infinity)
            // lse is no further off than the worst of its logits.
            let finite = row.z.indices.filter { row.z[$0] > -.infinity }
            logSumExp[i] =
                finite.map { row.z[$0].magnitude + row.error[$0] }.max()! + log(Double(vocabulary))
            if hasGradient(i), gradientBound(i, row) > Self.overflow {
                setGradients(row: i, to: .nan)
            }
        case .notFinite:
            // Kinds are compared.
            set(row: i, to: 1)
            if let target {
                if !row.z[target].isFinite { targetLogit[i] = 1 }
                // So is the loss of a class that counts for nothing.
                let share = 1 - Double(problem.options.labelSmoothing)
                if problem.weight(target) * share == 0 { crossEntropy[i] = .nan }
            }
        case .mayOverflow:
            set(row: i, to: .nan)
            targetLogit[i] = .nan
        }
    }

    private mutating func set(row i: Int, to scale: Double) {
        crossEntropy[i] = scale
        zPenalty[i] = scale
        logSumExp[i] = scale
        entropy[i] = scale
        guard hasGradient(i) else { return }
        setGradients(row: i, to: isOpen(i) ? .nan : scale)
    }

    /// What a row without a target and without upstream gradients makes of NaN and infinity is left
    /// open: 0 times NaN, or nothing because nobody looks.
    private func isOpen(_ i: Int) -> Bool {
        [.special, .masked].contains(problem.values) && upstream.target[i] == nil
            && upstream.logSumExp[i] == 0 && upstream.entropy[i] == 0
    }

    private mutating func setGradients(row i: Int, to scale: Double) {
        let features = problem.features
        for k in 0..<features { hidden[i * features + k] += scale }
        for at in classifier.indices { classifier[at] += scale }
        for j in bias.indices { bias[j] += scale }
    }

    /// What a row can add to a gradient at most, whatever its probabilities.
    private func gradientBound(_ i: Int, _ row: CrossEntropyLogits) -> Double {
        let options = problem.options
        let largest = row.z.filter { $0 > -.infinity }.map(\.magnitude).max()!
        let g = upstream.crossEntropy[i].magnitude
        let factor =
            g * (problem.totalWeight + Double(options.labelSmoothing))
            + upstream.zPenalty[i].magnitude * 2 * Double(options.zLoss) * largest
            + upstream.logSumExp[i].magnitude + upstream.entropy[i].magnitude * 4 * largest
        let operand = (problem.hidden + problem.classifier).map { Double($0.magnitude) }.max() ?? 0
        return factor * Double(options.logitScale.magnitude) * max(1, operand)
            * Double(max(problem.rows, problem.vocabulary))
    }

    private func hasGradient(_ i: Int) -> Bool {
        upstream.target[i] != nil || problem.logSumExpGradients != nil
            || problem.entropyGradients != nil
    }

    private mutating func measure(_ i: Int, _ row: CrossEntropyLogits, _ target: Int?) {
        let options = problem.options
        let finite = row.z.indices.filter { row.z[$0] > -.infinity }
        let largest = finite.map { row.z[$0] }.max()!
        let sum = finite.reduce(0) { $0 + exp(row.z[$1] - largest) }
        let lse = largest + log(sum)
        let p = row.z.map { exp($0 - lse) }
        let H = finite.reduce(0) { $0 - p[$1] * (row.z[$1] - lse) }

        var lseScale = 1 + lse.magnitude
        var entropyScale = 1 + H.magnitude
        for j in finite {
            let distance = largest - row.z[j]
            lseScale += p[j] * (row.error[j] + distance)
            entropyScale += p[j] * (row.z[j] - lse + H).magnitude * row.error[j]
            entropyScale += p[j] * distance * (1 + distance)
        }
        logSumExp[i] = lseScale
        entropy[i] = entropyScale

        // Of log p_y: it comes from the other classes alone, so that it may be close to 0.
        var others = 0.0
        if let y = target, row.z[y] > -.infinity {
            let second = finite.filter { $0 != y }.map { row.z[$0] }.max() ?? row.z[y]
            for j in finite where j != y {
                let distances = (second - row.z[j]) + (second - row.z[y]).magnitude
                others += p[j] * (1 + row.error[j] + row.error[y] + distances)
            }
            let weight = (1 - Double(options.labelSmoothing)) * problem.weight(y)
            crossEntropy[i] = weight * ((lse - row.z[y]).magnitude + others) + 16 * Self.underflow
        }
        if target != nil {
            let share = Double(options.labelSmoothing) / Double(problem.vocabulary)
            for j in finite {
                crossEntropy[i] +=
                    share * problem.weight(j) * (row.z[j].magnitude + row.error[j] + 2 * lseScale)
            }
            zPenalty[i] = Double(options.zLoss) * lse.magnitude * (lse.magnitude + 2 * lseScale)
        }
        guard hasGradient(i) else { return }
        guard !isOpen(i) else {
            setGradients(row: i, to: .nan)
            return
        }

        // Of G, then of A = G slope.
        let g = upstream.crossEntropy[i].magnitude
        let share = g * Double(options.labelSmoothing) / Double(problem.vocabulary)
        let own = target.map { g * (1 - Double(options.labelSmoothing)) * problem.weight($0) } ?? 0
        let common =
            share * problem.totalWeight + upstream.logSumExp[i].magnitude
            + upstream.zPenalty[i].magnitude * 2 * Double(options.zLoss)
            * (lse.magnitude + lseScale)
        let gH = upstream.entropy[i].magnitude
        var a = Array(repeating: 0.0, count: problem.vocabulary)
        var largestFactor = 0.0
        for j in a.indices {
            var G = share * problem.weight(j)
            if row.z[j] > -.infinity {
                let rounding = 1 + row.error[j] + lseScale + (largest - row.z[j])
                let centered =
                    row.z[j].magnitude + lse.magnitude + H.magnitude + row.error[j] + entropyScale
                let factor = common + gH * (centered + lseScale)
                largestFactor = max(largestFactor, factor + own)
                G += p[j] * rounding * (j == target ? factor : own + factor)
                // The rest of the target's factor is what rounding leaves of a difference.
                if j == target { G += own * (1 - p[j] + others + (factor > 0 ? p[j] : 0)) }
            } else if j == target {
                G += own
            }
            a[j] = G * row.slope[j] * row.slopeError[j]
        }
        let floor =
            Self.underflow * (1 + largestFactor) * (1 + Double(options.logitScale.magnitude))
        guard largestFactor < Self.overflow else {
            setGradients(row: i, to: .nan)
            return
        }
        add(row: i, a.map { $0 + floor })
    }

    /// Adds |A| |C| and |A| |E|.
    private mutating func add(row i: Int, _ a: [Double]) {
        let features = problem.features
        for j in a.indices {
            bias[j] += a[j]
            for k in 0..<features {
                hidden[i * features + k] +=
                    a[j] * Double(problem.classifier[j * features + k].magnitude) + Self.underflow
                classifier[j * features + k] +=
                    a[j] * Double(problem.hidden[i * features + k].magnitude) + Self.underflow
            }
        }
    }
}

extension CrossEntropyCase {
    func weight(_ j: Int) -> Double { classWeights.map { Double($0[j]) } ?? 1 }

    /// Of the rows that are not ignored.
    func weight(of targets: [Int?]) -> Double {
        targets.reduce(0) { sum, target in sum + (target.map { self.weight($0) } ?? 0) }
    }

    var totalWeight: Double {
        classWeights?.reduce(0) { $0 + Double($1) } ?? Double(vocabulary)
    }
}
