/// Cut cross-entropy: the loss of a linear classifier over a large vocabulary, and its gradients,
/// without ever holding the logits of all rows.
///
/// Row i of the hidden states meets every row j of the classifier:
///
///     a[i, j] = sum_k hidden[i, k] classifier[j, k] + bias[j]
///     s[i, j] = softcap tanh(a[i, j] / softcap), or a[i, j] without a softcap
///     z[i, j] = logitScale s[i, j]
///     lse[i] = log sum_j exp z[i, j]          p[i, j] = exp(z[i, j] - lse[i])
///     entropy[i] = lse[i] - sum_j p[i, j] z[i, j]
///
/// With y the row's target, e the label smoothing, V the vocabulary and w the class weights (1
/// without them), the row's loss is
///
///     loss[i] = (1 - e) w[y] (lse[i] - z[i, y]) + (e / V) sum_j w[j] (lse[i] - z[i, j])
///               + zLoss lse[i]^2
///
/// and its logits' gradient, with g, gl and gh the upstream gradients of loss, lse and entropy,
///
///     dz[i, j] = p[i, j] (g alpha[i] + gl) - [j = y] g (1 - e) w[y] - g (e / V) w[j]
///                - gh p[i, j] (z[i, j] - lse[i] + entropy[i])
///     alpha[i] = (1 - e) w[y] + (e / V) sum_j w[j] + 2 zLoss lse[i]
///     da[i, j] = dz[i, j] (1 - (s[i, j] / softcap)^2) logitScale
///
/// There are two ways to the gradients. `forwardBackward` gives losses and gradients in one call;
/// it needs to know the upstream gradient beforehand. `forward` leaves a `RowState` of three
/// numbers for each row, from which `backward` finds the gradients later. Both are exact: nothing
/// is filtered. float32 results have the same bits for any number of threads, any memory budget,
/// and on every instruction set with fused multiply-add.
///
/// Everything is accumulated in float32, sums over rows in float64.
///
/// After Wijmans, Huval, Hertzberg, Koltun and Krähenbühl, "Cut Your Losses in Large-Vocabulary
/// Language Models", 2024 (arXiv 2411.09009).
public enum CrossEntropy {
    /// How the losses of the rows become one.
    public enum Reduction: Sendable, Hashable, CaseIterable {
        /// They do not: a loss and an upstream gradient for each row. `Result.loss` is 0.
        case none
        /// The cross-entropy part over the sum of the targets' class weights, plus the z-loss part
        /// over the number of rows that are not ignored. A quotient whose divisor is 0 is 0: the
        /// mean of no rows.
        case mean
        case sum
    }

    /// How logits were held while gradients were computed.
    public enum Mode: Sendable, Hashable, CaseIterable {
        /// Not at all: there were no gradients.
        case forward
        /// A block of rows kept its logits over the whole vocabulary: 6 N V D operations for loss
        /// and gradients, with N rows, V classes and D features.
        case panel
        /// Logits were computed again: 8 N V D operations, the least memory.
        case recompute
    }

    /// Sizes and strides. Strides are in elements; nil is that of a dense array.
    public struct Shape: Sendable, Hashable {
        /// Number of tokens N. 0 is valid: the losses are 0, the gradients too.
        public var rows: Int
        /// Width D of a hidden state, at least 1.
        public var features: Int
        /// Number of classes V, at least 1.
        public var vocabulary: Int
        /// From one row of `hidden` to the next.
        public var hiddenStride: Int?
        /// From one row of `classifier` to the next.
        public var classifierStride: Int?

        public init(
            rows: Int, features: Int, vocabulary: Int, hiddenStride: Int? = nil,
            classifierStride: Int? = nil
        ) {
            self.rows = rows
            self.features = features
            self.vocabulary = vocabulary
            self.hiddenStride = hiddenStride
            self.classifierStride = classifierStride
        }
    }

    /// What shapes the loss, and how much memory and how many threads its computation may take.
    public struct Options: Sendable, Hashable {
        /// The target that takes a row out of the loss.
        public var ignoreIndex: Int
        /// The row at position t of its sequence is scored against the target at t + targetShift
        /// and ignored where that lies beyond the sequence. 1 predicts the next token.
        public var targetShift: Int
        /// Length of every sequence, a divisor of the rows; matters with a shift. nil: one
        /// sequence of all rows.
        public var tokensPerSequence: Int?
        /// Bound of the logits before `logitScale`, above 0; nil for none.
        public var softcap: Float?
        /// Factor of the logits, after the softcap; not 0.
        public var logitScale: Float
        /// Share e of the loss that goes to all classes instead of the target, in 0 ... 1.
        public var labelSmoothing: Float
        /// Factor of the squared log-sum-exp, at least 0.
        public var zLoss: Float
        public var reduction: Reduction
        /// Bytes that the workspace may take beyond 64 for each row, above 0; nil for 128 MB. It
        /// decides block sizes and mode, never a bit of the results.
        public var memoryBudget: Int?
        /// Threads at most; 0 is the default of the runtime.
        public var threads: Int

        public init(
            ignoreIndex: Int = -100, targetShift: Int = 0, tokensPerSequence: Int? = nil,
            softcap: Float? = nil, logitScale: Float = 1, labelSmoothing: Float = 0,
            zLoss: Float = 0, reduction: Reduction = .mean, memoryBudget: Int? = nil,
            threads: Int = 0
        ) {
            self.ignoreIndex = ignoreIndex
            self.targetShift = targetShift
            self.tokensPerSequence = tokensPerSequence
            self.softcap = softcap
            self.logitScale = logitScale
            self.labelSmoothing = labelSmoothing
            self.zLoss = zLoss
            self.reduction = reduction
            self.memoryBudget = memoryBudget
            self.threads = threads
        }
    }

    /// Arrays with an entry for each row that a call can return.
    ///
    /// `logSumExp`, `entropy` and `predicted` do not depend on targets, so asking for one of them
    /// makes ignored rows cost as much as others; without them they cost nothing.
    public struct Outputs: OptionSet, Sendable, Hashable {
        public let rawValue: Int

        public init(rawValue: Int) { self.rawValue = rawValue }

        /// `Result.losses`
        public static let loss = Outputs(rawValue: 1 << 0)
        /// `Result.logSumExp`
        public static let logSumExp = Outputs(rawValue: 1 << 1)
        /// `Result.entropy`
        public static let entropy = Outputs(rawValue: 1 << 2)
        /// `Result.predicted`, and with it `Result.correct` and `Result.accuracy`
        public static let predicted = Outputs(rawValue: 1 << 3)
        /// `Result.targetLogit`
        public static let targetLogit = Outputs(rawValue: 1 << 4)
        /// `Result.rowStates`, for `backward`
        public static let rowStates = Outputs(rawValue: 1 << 5)
    }

    /// The gradients of a call.
    public struct Gradients: OptionSet, Sendable, Hashable {
        public let rawValue: Int

        public init(rawValue: Int) { self.rawValue = rawValue }

        public static let hidden = Gradients(rawValue: 1 << 0)
        public static let classifier = Gradients(rawValue: 1 << 1)
        public static let bias = Gradients(rawValue: 1 << 2)
    }

    /// What `forward` leaves of a row for `backward`.
    @frozen public struct RowState: Sendable, Hashable, BitwiseCopyable {
        /// The largest logit.
        public var max: Float
        /// sum_j exp(z[j] - max); 0 for a row that was not computed.
        public var sum: Float
        /// lse - z[y], 0 where ignored.
        public var targetLoss: Float

        public init(max: Float, sum: Float, targetLoss: Float) {
            self.max = max
            self.sum = sum
            self.targetLoss = targetLoss
        }
    }

    /// What a call came to. Arrays that were not asked for are empty.
    public struct Result: Sendable {
        /// The reduced loss, 0 for `Reduction.none`. From `backward`, which computes none: 0.
        public internal(set) var loss = 0.0
        /// Rows that are not ignored.
        public internal(set) var validRows = 0
        /// Sum of their targets' class weights.
        public internal(set) var weight = 0.0
        /// Valid rows whose predicted class is the target; 0 unless `predicted` was asked for.
        public internal(set) var correct = 0
        /// `correct` over `validRows`; nil unless `predicted` was asked for and a row is valid.
        public internal(set) var accuracy: Double?
        public internal(set) var mode = Mode.forward
        /// Rows of a block.
        public internal(set) var blockRows = 0
        /// Classes whose logits a block held at a time; 0 without gradients.
        public internal(set) var blockVocabulary = 0

        /// [rows], not reduced; 0 where ignored.
        public internal(set) var losses: [Float] = []
        /// [rows]
        public internal(set) var logSumExp: [Float] = []
        /// [rows], in nats
        public internal(set) var entropy: [Float] = []
        /// [rows]; the class with the largest logit, the lowest on ties, -1 when a logit is NaN or
        /// none is above -inf.
        public internal(set) var predicted: [Int] = []
        /// [rows]; the target's logit, 0 where ignored.
        public internal(set) var targetLogit: [Float] = []
        /// [rows]
        public internal(set) var rowStates: [RowState] = []
    }
}

/// A type that class indices are stored in: `Int32`, `Int64` or `Int`.
///
/// The kernels know these; do not conform other types.
public protocol TargetElement: FixedWidthInteger, BitwiseCopyable, Sendable {}

extension Int32: TargetElement {}
extension Int64: TargetElement {}
extension Int: TargetElement {}
