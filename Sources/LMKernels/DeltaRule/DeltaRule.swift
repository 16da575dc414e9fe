/// States that are written by correction: DeltaNet, Gated DeltaNet, Kimi Delta Attention,
/// DeltaProduct, RWKV-7.
///
/// Each sequence has, for every query head, a state S [keyWidth, valueWidth], and each token R
/// steps. With q_t [keyWidth], k_tj [keyWidth], v_tj [valueWidth], a rate beta_tj, a decay D_t and
/// a start S_0:
///
///     S <- D_t S;  then for j = 1 ... R:  u = beta_tj (v_tj - S^T k_tj),  S <- S + k_tj u^T
///     o_t = scale S^T q_t
///
/// The decay acts once per token, before its first step; the read follows its last. A step is
/// S <- (I - beta k k^T) S + beta k v^T: it moves what S answers to k towards v. With k of unit
/// length and beta in [0, 1] that is DeltaNet; in [0, 2] a generalised Householder reflection, with
/// eigenvalues in [-1, 1], which can count and permute; with R > 1 DeltaProduct; with a decay of
/// tokens Gated DeltaNet, of keys Kimi Delta Attention. Keys longer than sqrt(2 / beta) make the
/// state grow without bound: nothing here prevents that. Options:
///
/// * Decay, see `Decay`: given by its logarithm g, at most 0. -inf is a reset: the factor is 0, and
///   no gradient passes it.
/// * Rates as they are, or from logits, see `Rates`.
/// * Unit length: q and k are divided by sqrt(sum of squares + epsilon) as they are read.
/// * The generalised form of RWKV-7, with vectors a_t and b_t [keyWidth] in place of beta, and R = 1.
///   What a reads is from before the decay:
///
///       z = S^T a_t        S <- D_t S + b_t z^T + k_t v_t^T        o_t = scale S^T q_t
///
///   The delta rule is a = D_t k, b = -beta k and beta v in place of v.
///
/// Query head h uses key and value head h / (heads / keyHeads), and a and b of that head; rates and
/// decays are a query head's own.
///
/// q, k, v, a, b, o and their gradients are float32, bfloat16 or float16; everything else is
/// float32, and so is every sum. A token of beta = 0 and g = 0 leaves the state as it is. float32
/// results have the same bits for any number of threads and on every instruction set with fused
/// multiply-add, and those of a token do not depend on the tokens after it. States are kept divided
/// by up to 1024 where there are decays: entries of a state, k or v beyond 3e35 may overflow.
///
/// With ``InstructionSet/amx`` forward takes bfloat16 in chunks on tiles, unless decays are per key,
/// the form is generalised or the recurrence is asked for. What is not bfloat16 there, the state
/// among it, is a sum of two or three such numbers: o is rounded once as ever (1.7e-3), a state is
/// right to 2e-5 over 512 steps of rates near 2 and to 6e-5 where keys are nearly the same, where the
/// recurrence has 1e-6 and 3e-5. Numbers below 2^-126 count as 0. Backward is that of other sets.
///
/// A batch [batch, tokens] holds `batch` sequences of `tokens` tokens, or, with offsets and a batch
/// of 1, packed sequences one after the other. N is the number of sequences. The R steps of a token
/// are R rows, one after the other.
///
/// Yang, Wang, Zhang, Shen and Kim, "Parallelizing Linear Transformers with the Delta Rule over
/// Sequence Length", 2024; Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2025; Grazzi et
/// al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", 2025; Siems et al.,
/// "DeltaProduct", 2025; Kimi Team, "Kimi Linear", 2025; Peng et al., "RWKV-7", 2025.
public enum DeltaRule {
    /// The largest `keyWidth` and `valueWidth`.
    public static let maximumWidth = 512

    /// Of a tensor of steps, `token` is the stride from step to step.
    public typealias Strides = TokenStrides

    /// Sizes and strides; strides that are nil are those of a dense tensor, token-major.
    public struct Shape: Sendable, Hashable {
        /// Sequences, or 1 where they are packed.
        public var batch: Int
        /// Of each sequence, or of all together where they are packed. 0 is valid.
        public var tokens: Int
        /// R, steps of a token, at least 1.
        public var steps: Int
        /// Query heads.
        public var heads: Int
        /// Key and value heads, a divisor of `heads`.
        public var keyHeads: Int
        /// From 1 to `maximumWidth`, as is `valueWidth`.
        public var keyWidth: Int
        public var valueWidth: Int
        public var queryStrides: Strides?
        public var keyStrides: Strides?
        public var valueStrides: Strides?
        public var betaStrides: Strides?
        public var logDecayStrides: Strides?
        public var aStrides: Strides?
        public var bStrides: Strides?
        public var outputStrides: Strides?
        public var outputGradientStrides: Strides?
        public var queryGradientStrides: Strides?
        public var keyGradientStrides: Strides?
        public var valueGradientStrides: Strides?
        public var betaGradientStrides: Strides?
        public var logDecayGradientStrides: Strides?
        public var aGradientStrides: Strides?
        public var bGradientStrides: Strides?

        /// - Parameter keyHeads: nil: as many as `heads`.
        public init(
            batch: Int = 1, tokens: Int, steps: Int = 1, heads: Int, keyHeads: Int? = nil,
            keyWidth: Int, valueWidth: Int
        ) {
            self.batch = batch
            self.tokens = tokens
            self.steps = steps
            self.heads = heads
            self.keyHeads = keyHeads ?? heads
            self.keyWidth = keyWidth
            self.valueWidth = valueWidth
        }
    }

    /// D_t, whose logarithm g is an array of float32, at most 0.
    public enum Decay: Sendable, Hashable, CaseIterable {
        /// The identity; no array.
        case none
        /// exp(g_th), [batch, tokens, heads]: Gated DeltaNet.
        case token
        /// diag(exp(g_th)), [batch, tokens, heads, keyWidth]: Kimi Delta Attention, RWKV-7.
        case key
    }

    /// What the numbers of `beta` are.
    public enum Rates: Sendable, Hashable, CaseIterable {
        /// The rates.
        case rate
        /// x, with rates sigmoid(x) in [0, 1].
        case sigmoid
        /// x, with rates 2 sigmoid(x) in [0, 2].
        case twiceSigmoid
    }

    /// How the recurrence is computed; results agree to rounding. `backward` has one form.
    public enum Form: Sendable, Hashable, CaseIterable {
        /// The recurrence; chunks where they run on tiles and there are at least 32 steps.
        case automatic
        /// Two steps at a time, in one pass over the state.
        case recurrent
        /// 16 steps at a time, as matrix products and a forward substitution; 64 on tiles.
        case chunked
    }

    /// What is computed, and how.
    public struct Options: Sendable, Hashable {
        public var form: Form
        public var decay: Decay
        /// Without effect on the generalised form.
        public var rates: Rates
        /// Factor of o, finite; nil is keyWidth^-1/2.
        public var scale: Float?
        /// Brings q and k to unit length, with this epsilon, at least 0; nil leaves them. a and b
        /// stay as they are.
        public var unitLengthEpsilon: Float?
        /// Tokens from one state to the next where `forward` is asked for states on the way; at
        /// least 1.
        public var stateStride: Int
        /// Bytes that `backward` may use for states that it keeps, at least 1; nil: as many as are
        /// fastest.
        public var memoryBudget: Int?
        /// Threads at most; 0 is the default of the runtime.
        public var threads: Int

        public init(
            form: Form = .automatic, decay: Decay = .none, rates: Rates = .rate,
            scale: Float? = nil, unitLengthEpsilon: Float? = nil, stateStride: Int = 1,
            memoryBudget: Int? = nil, threads: Int = 0
        ) {
            self.form = form
            self.decay = decay
            self.rates = rates
            self.scale = scale
            self.unitLengthEpsilon = unitLengthEpsilon
            self.stateStride = stateStride
            self.memoryBudget = memoryBudget
            self.threads = threads
        }
    }
}

extension DeltaRule.Shape {
    /// The same sizes with every tensor [batch, heads, tokens, width] or [batch, heads, tokens R,
    /// width], dense, but for rates and log-decays.
    public var headMajor: Self {
        func strides(_ tokens: Int, _ heads: Int, _ width: Int) -> TokenStrides {
            .headMajor(tokens: tokens, heads: heads, width: width)
        }
        var shape = self
        shape.queryStrides = strides(tokens, heads, keyWidth)
        shape.queryGradientStrides = shape.queryStrides
        shape.keyStrides = strides(tokens * steps, keyHeads, keyWidth)
        shape.keyGradientStrides = shape.keyStrides
        shape.valueStrides = strides(tokens * steps, keyHeads, valueWidth)
        shape.valueGradientStrides = shape.valueStrides
        shape.aStrides = strides(tokens, keyHeads, keyWidth)
        shape.aGradientStrides = shape.aStrides
        shape.bStrides = shape.aStrides
        shape.bGradientStrides = shape.aStrides
        shape.outputStrides = strides(tokens, heads, valueWidth)
        shape.outputGradientStrides = shape.outputStrides
        return shape
    }

    /// The number of states that `forward` stores at a stride: [storedStates, heads, keyWidth,
    /// valueWidth]. `stride` is at least 1.
    public func storedStates(stride: Int, offsets: Span<Int>? = nil) -> Int {
        statesOnTheWay(stride: stride, offsets)
    }
}
