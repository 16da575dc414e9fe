#if canImport(Darwin)
    internal import Darwin
#elseif canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#endif

/// A linear layer followed by cross-entropy, written as the dense formula in Double.
///
/// Row i of the hidden states E meets every row j of the classifier C:
///
///     a_ij = E_i . C_j + b_j         s_ij = cap tanh(a_ij / cap), or a_ij without a softcap
///     z_ij = logitScale s_ij         lse_i = log sum_j exp z_ij
///     p_ij = exp(z_ij - lse_i)       H_i = lse_i - sum_j p_ij z_ij
///
/// With y the target of the row, e the label smoothing, V the size of the vocabulary, w the class
/// weights (1 without them) and W their sum, the loss of the row has two parts:
///
///     crossEntropy_i = (1-e) w_y (lse_i - z_iy) + (e/V) (W lse_i - sum_j w_j z_ij)
///     zPenalty_i = zLoss lse_i^2
///
/// A logit of -inf (from a bias of -inf) has probability 0 and adds nothing to the entropy; as a
/// target it makes the loss +inf. A row whose logits are all -inf has lse = -inf and no
/// probabilities: its loss, entropy and gradients are NaN, as NaN inputs give too. Under a softcap
/// no logit is below -cap, so a bias of -inf does not mask there.
public enum CrossEntropy {
    /// The inputs. Matrices are row-major and dense.
    public struct Problem: Sendable {
        /// Number of tokens N, sequences one after the other.
        public var rows: Int
        /// Width D of a hidden state. 0 leaves the bias alone.
        public var features: Int
        /// Number of classes V, at least 1.
        public var vocabulary: Int
        /// Hidden states E, [rows, features].
        public var hidden: [Double]
        /// Classifier C, [vocabulary, features].
        public var classifier: [Double]
        /// Added to the logits before the softcap, [vocabulary].
        public var bias: [Double]?
        /// What each class counts for in the loss, [vocabulary]; all 1 when absent.
        public var classWeights: [Double]?
        /// Class of each token, [rows]: `ignoreIndex` or in 0 ..< vocabulary. See `targetShift`.
        public var targets: [Int]
        /// The target that takes a row out of the loss.
        public var ignoreIndex: Int
        /// Bound of the logits before `logitScale`, positive; none when absent.
        public var softcap: Double?
        /// Share e of the loss that goes to all classes instead of the target, in 0 ... 1.
        public var labelSmoothing: Double
        /// Factor of the squared log-sum-exp.
        public var zLoss: Double
        /// Factor of the logits, after the softcap.
        public var logitScale: Double
        /// The row at position t of its sequence is scored against the target at t + targetShift,
        /// and ignored where that lies beyond the sequence. 1 predicts the next token.
        public var targetShift: Int
        /// Length of every sequence, a divisor of `rows`; one sequence of all rows when absent.
        public var tokensPerSequence: Int?

        public init(
            rows: Int, features: Int, vocabulary: Int, hidden: [Double], classifier: [Double],
            bias: [Double]? = nil, classWeights: [Double]? = nil, targets: [Int],
            ignoreIndex: Int = -100, softcap: Double? = nil, labelSmoothing: Double = 0,
            zLoss: Double = 0, logitScale: Double = 1, targetShift: Int = 0,
            tokensPerSequence: Int? = nil
        ) {
            self.rows = rows
            self.features = features
            self.vocabulary = vocabulary
            self.hidden = hidden
            self.classifier = classifier
            self.bias = bias
            self.classWeights = classWeights
            self.targets = targets
            self.ignoreIndex = ignoreIndex
            self.softcap = softcap
            self.labelSmoothing = labelSmoothing
            self.zLoss = zLoss
            self.logitScale = logitScale
            self.targetShift = targetShift
            self.tokensPerSequence = tokensPerSequence
        }

        /// The class that a row is scored against, or nil where the row is ignored.
        public func target(ofRow row: Int) -> Int? {
            let sequence = tokensPerSequence ?? rows
            let position = row % sequence
            guard targetShift < sequence - position else { return nil }
            let target = targets[row + targetShift]
            guard target != ignoreIndex else { return nil }
            precondition((0..<vocabulary).contains(target), "target \(target) is not a class")
            return target
        }
    }

    /// What `forward` computes, one entry per row.
    public struct Output: Sendable, Equatable {
        /// crossEntropy + zPenalty; 0 for an ignored row.
        public var loss: [Double] = []
        /// The loss without the z part; 0 for an ignored row.
        public var crossEntropy: [Double] = []
        /// zLoss lse^2; 0 for an ignored row.
        public var zPenalty: [Double] = []
        /// lse, for every row.
        public var logSumExp: [Double] = []
        /// H in nats, for every row.
        public var entropy: [Double] = []
        /// The class with the largest logit, the lowest of equal ones, for every row.
        public var predicted: [Int] = []
        /// z_iy; 0 for an ignored row.
        public var targetLogit: [Double] = []
        /// Whether the row has a target.
        public var isValid: [Bool] = []
    }

    /// How the losses of the rows become one number.
    public enum Reduction: Sendable, CaseIterable {
        /// (sum of crossEntropy) / (sum of w_y) + (sum of zPenalty) / (number of valid rows), over
        /// the valid rows. A quotient whose divisor is 0 is 0.
        case mean
        /// The sum of the losses.
        case sum
    }

    /// The derivative of a scalar with respect to each input, in the input's shape.
    public struct Gradients: Sendable, Equatable {
        /// dE, [rows, features].
        public var hidden: [Double]
        /// dC, [vocabulary, features].
        public var classifier: [Double]
        /// db, [vocabulary]; given without a bias too, where it is the derivative at bias 0.
        public var bias: [Double]
    }

    /// The loss and the statistics of every row.
    public static func forward(_ problem: Problem) -> Output {
        check(problem)
        let vocabulary = problem.vocabulary
        let smoothing = problem.labelSmoothing

        var output = Output()
        for i in 0..<problem.rows {
            let row = Row(i, of: problem)
            output.logSumExp.append(row.logSumExp)
            output.entropy.append(row.entropy)
            output.predicted.append(row.predicted)

            var crossEntropy = 0.0
            var zPenalty = 0.0
            let target = problem.target(ofRow: i)
            if let y = target {
                // With log p = z - lse, the smoothing term W lse - sum w z is -sum w log p.
                let w = problem.weight(ofClass: y)
                crossEntropy = -times((1 - smoothing) * w, row.logProbabilities[y])
                for j in 0..<vocabulary {
                    let share = smoothing / Double(vocabulary) * problem.weight(ofClass: j)
                    crossEntropy -= times(share, row.logProbabilities[j])
                }
                zPenalty = times(problem.zLoss, row.logSumExp * row.logSumExp)
            }
            output.crossEntropy.append(crossEntropy)
            output.zPenalty.append(zPenalty)
            output.loss.append(crossEntropy + zPenalty)
            output.targetLogit.append(target.map { row.logits[$0] } ?? 0)
            output.isValid.append(target != nil)
        }
        return output
    }

    /// The losses of `forward(problem)` as one number.
    public static func reduce(
        _ output: Output, of problem: Problem, by reduction: Reduction
    ) -> Double {
        let (weight, count) = totals(problem)
        guard count > 0 else { return 0 }
        let crossEntropy = output.crossEntropy.reduce(0, +)
        let zPenalty = output.zPenalty.reduce(0, +)
        switch reduction {
        case .mean: return (weight > 0 ? crossEntropy / weight : 0) + zPenalty / Double(count)
        case .sum: return crossEntropy + zPenalty
        }
    }

    /// How many valid rows predict their target, and how many rows are valid.
    public static func accuracy(
        _ output: Output, of problem: Problem
    ) -> (correct: Int, valid: Int) {
        var correct = 0
        var valid = 0
        for i in 0..<problem.rows {
            guard let y = problem.target(ofRow: i) else { continue }
            valid += 1
            if output.predicted[i] == y { correct += 1 }
        }
        return (correct, valid)
    }

    /// Gradients of  sum_i (g_i loss_i + gl_i lse_i + gH_i H_i).
    ///
    /// - Parameters:
    ///   - lossGradient: g, [rows]. The entry of an ignored row has no effect.
    ///   - logSumExpGradient: gl, [rows]; acts on ignored rows too. 0 when absent.
    ///   - entropyGradient: gH, [rows]; acts on ignored rows too. 0 when absent.
    public static func backward(
        _ problem: Problem, lossGradient: [Double], logSumExpGradient: [Double]? = nil,
        entropyGradient: [Double]? = nil
    ) -> Gradients {
        backward(
            problem, crossEntropyGradient: lossGradient, zPenaltyGradient: lossGradient,
            logSumExpGradient: logSumExpGradient, entropyGradient: entropyGradient)
    }

    /// Gradients of  g reduce(loss) + sum_i (gl_i lse_i + gH_i H_i).
    ///
    /// - Parameters:
    ///   - reduction: How the losses became one number.
    ///   - lossGradient: g, the upstream gradient of that number.
    ///   - logSumExpGradient: gl, [rows], as above.
    ///   - entropyGradient: gH, [rows], as above.
    public static func backward(
        _ problem: Problem, reduction: Reduction, lossGradient: Double = 1,
        logSumExpGradient: [Double]? = nil, entropyGradient: [Double]? = nil
    ) -> Gradients {
        var crossEntropyGradient = lossGradient
        var zPenaltyGradient = lossGradient
        if reduction == .mean {
            let (weight, count) = totals(problem)
            crossEntropyGradient = weight > 0 ? crossEntropyGradient / weight : 0
            zPenaltyGradient = count > 0 ? zPenaltyGradient / Double(count) : 0
        }
        return backward(
            problem,
            crossEntropyGradient: Array(repeating: crossEntropyGradient, count: problem.rows),
            zPenaltyGradient: Array(repeating: zPenaltyGradient, count: problem.rows),
            logSumExpGradient: logSumExpGradient, entropyGradient: entropyGradient)
    }

    /// With G_ij the gradient of z_ij and A_ij that of a_ij:
    ///
    ///     G_ij = g_i (1-e) w_y (p_ij - [j = y]) + g_i (e/V) (W p_ij - w_j)     crossEntropy
    ///          + gz_i 2 zLoss lse_i p_ij                                       zPenalty
    ///          + gl_i p_ij                                                     lse
    ///          - gH_i p_ij (log p_ij + H_i)                                    entropy
    ///     A_ij = G_ij logitScale (1 - tanh^2(a_ij / cap))
    ///     dE_i = sum_j A_ij C_j        dC_j = sum_i A_ij E_i        db_j = sum_i A_ij
    ///
    /// An ignored row has the last two terms of G alone. Where they are zero the row is not looked
    /// at, so that padding may hold anything, NaN included.
    private static func backward(
        _ problem: Problem, crossEntropyGradient: [Double], zPenaltyGradient: [Double],
        logSumExpGradient: [Double]?, entropyGradient: [Double]?
    ) -> Gradients {
        check(problem)
        let (rows, features, vocabulary) = (problem.rows, problem.features, problem.vocabulary)
        precondition(crossEntropyGradient.count == rows, "lossGradient has one entry per row")
        precondition(
            (logSumExpGradient?.count ?? rows) == rows, "logSumExpGradient: one entry per row")
        precondition((entropyGradient?.count ?? rows) == rows, "entropyGradient: one entry per row")
        let smoothing = problem.labelSmoothing
        let totalWeight = problem.classWeights?.reduce(0, +) ?? Double(vocabulary)

        var gradients = Gradients(
            hidden: Array(repeating: 0, count: rows * features),
            classifier: Array(repeating: 0, count: vocabulary * features),
            bias: Array(repeating: 0, count: vocabulary))
        for i in 0..<rows {
            let target = problem.target(ofRow: i)
            let g = crossEntropyGradient[i]
            let gz = zPenaltyGradient[i]
            let gl = logSumExpGradient?[i] ?? 0
            let gH = entropyGradient?[i] ?? 0
            if target == nil && gl == 0 && gH == 0 { continue }

            let row = Row(i, of: problem)
            for j in 0..<vocabulary {
                let p = row.probabilities[j]
                let logP = row.logProbabilities[j]
                var logitGradient = gl * p - gH * times(p, logP + row.entropy)
                if let y = target {
                    // p - 1 would round to 0 long before the loss does.
                    let error = j == y ? expm1(logP) : p
                    logitGradient += g * (1 - smoothing) * problem.weight(ofClass: y) * error
                    let spread = totalWeight * p - problem.weight(ofClass: j)
                    logitGradient += g * smoothing / Double(vocabulary) * spread
                    logitGradient += gz * 2 * problem.zLoss * row.logSumExp * p
                }
                let gradient = logitGradient * row.slopes[j]
                for d in 0..<features {
                    gradients.hidden[i * features + d] +=
                        gradient * problem.classifier[j * features + d]
                    gradients.classifier[j * features + d] +=
                        gradient * problem.hidden[i * features + d]
                }
                gradients.bias[j] += gradient
            }
        }
        return gradients
    }

    /// One row of logits and its softmax.
    private struct Row {
        /// z_ij, [vocabulary].
        var logits: [Double] = []
        /// dz_ij / da_ij, [vocabulary].
        var slopes: [Double] = []
        /// log p_ij, [vocabulary].
        var logProbabilities: [Double] = []
        /// p_ij, [vocabulary].
        var probabilities: [Double] = []
        var logSumExp: Double
        var entropy: Double
        var predicted: Int

        init(_ i: Int, of problem: Problem) {
            let (features, vocabulary) = (problem.features, problem.vocabulary)
            let scale = problem.logitScale

            for j in 0..<vocabulary {
                var a = problem.bias?[j] ?? 0
                for d in 0..<features {
                    a += problem.hidden[i * features + d] * problem.classifier[j * features + d]
                }
                if let cap = problem.softcap {
                    // 1 / cosh^2 is 1 - tanh^2 without the cancellation near saturation.
                    let x = a / cap
                    logits.append(cap * tanh(x) * scale)
                    slopes.append(scale / (cosh(x) * cosh(x)))
                } else {
                    logits.append(a * scale)
                    slopes.append(scale)
                }
            }

            predicted = 0
            for j in 1..<vocabulary where logits[j] > logits[predicted] { predicted = j }
            let largest = logits[predicted]

            // The largest logit adds exactly 1 to sum_j exp(z_j - largest). Kept apart from the
            // others, it leaves their sum exact however small, and with it log p of a sure row.
            var others = 0.0
            for j in 0..<vocabulary where j != predicted {
                others += logits[j] == -.infinity ? 0 : exp(logits[j] - largest)
            }
            let logSum = log1p(others)
            logSumExp = largest + logSum

            entropy = 0
            for j in 0..<vocabulary {
                let logP = (logits[j] - largest) - logSum
                logProbabilities.append(logP)
                probabilities.append(exp(logP))
                entropy -= times(exp(logP), logP)
            }
        }
    }

    /// Weight of the valid rows' targets, and number of valid rows.
    private static func totals(_ problem: Problem) -> (weight: Double, count: Int) {
        var weight = 0.0
        var count = 0
        for i in 0..<problem.rows {
            guard let y = problem.target(ofRow: i) else { continue }
            weight += problem.weight(ofClass: y)
            count += 1
        }
        return (weight, count)
    }

    private static func check(_ problem: Problem) {
        let (rows, features, vocabulary) = (problem.rows, problem.features, problem.vocabulary)
        precondition(rows >= 0 && features >= 0, "rows and features >= 0")
        precondition(vocabulary >= 1, "vocabulary >= 1")
        precondition(problem.hidden.count == rows * features, "hidden is [rows, features]")
        precondition(
            problem.classifier.count == vocabulary * features,
            "classifier is [vocabulary, features]")
        precondition((problem.bias?.count ?? vocabulary) == vocabulary, "bias is [vocabulary]")
        precondition(
            (problem.classWeights?.count ?? vocabulary) == vocabulary,
            "classWeights is [vocabulary]")
        precondition(problem.targets.count == rows, "targets is [rows]")
        precondition((problem.softcap ?? 1) > 0, "softcap > 0")
        precondition(problem.targetShift >= 0, "targetShift >= 0")
        if let tokens = problem.tokensPerSequence {
            precondition(tokens >= 1 && rows % tokens == 0, "tokensPerSequence divides rows")
        }
    }
}

extension CrossEntropy.Problem {
    fileprivate func weight(ofClass j: Int) -> Double {
        classWeights?[j] ?? 1
    }
}

/// The product in which 0 times infinity is 0: a class of weight or probability 0 adds nothing,
/// though its log-probability may be -inf.
private func times(_ factor: Double, _ x: Double) -> Double {
    factor == 0 && x.isInfinite ? 0 : factor * x
}
