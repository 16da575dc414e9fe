/// Attention without a softmax, by a state of fixed size: time and memory grow with the number of
/// tokens, not with its square.
///
/// Each sequence has, for every query head, a state S [keyWidth, valueWidth]. With q_t and k_t
/// [keyWidth], v_t [valueWidth], a decay D_t and a start S_0:
///
///     S_t = D_t S_{t-1} + k_t v_t^T        o_t = scale S_t^T q_t
///
/// Decay, then write, then read. Query head h uses key and value head h / (heads / keyHeads).
/// Options:
///
/// * Decay, see `Decay`: given by its logarithm g, at most 0. -inf is a reset: the factor is 0, and
///   no gradient passes it.
/// * Bonus u for the current token, as RWKV-6 has it. The read comes before the decay and the write
///   of its token, and the state never sees u:
///
///       o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t
///
/// * Normaliser: o_t is divided by z_t . q_t, where z_t = D_t z_{t-1} + k_t is read as S is, with
///   the bonus if there is one. The scale cancels. Nothing is added to the divisor: 0 gives NaN or
///   an infinity.
/// * Bidirectional: o_t = scale (sum_j k_j v_j^T)^T q_t over the whole sequence, divided by
///   sum_j k_j . q_t with a normaliser. No decay, bonus or states.
/// * Unit length: q and k are divided by sqrt(sum of squares + epsilon) as they are read.
///
/// q, k, v, o and their gradients are float32, bfloat16 or float16; everything else is float32, and
/// so is every sum. A token of k = 0 and g = 0 leaves the state as it is, to the bit but for the
/// sign of 0. float32 results have the same bits for any number of threads and on every instruction
/// set with fused multiply-add, and those of a token do not depend on the tokens after it: computed
/// in the same form, for the automatic one chooses by the number of tokens. That is so of bfloat16
/// too, but with `InstructionSet.amx` its forward pass has bits of its own, see `forward`. States
/// are kept divided by up to 1024 where there are decays: entries of a state, k
/// or v beyond 3e35 may overflow.
///
/// A batch [batch, tokens] holds `batch` sequences of `tokens` tokens, or, with offsets and a batch
/// of 1, packed sequences one after the other. N is the number of sequences.
///
/// Katharopoulos, Vyas, Pappas and Fleuret, "Transformers are RNNs", 2020; Yang, Wang, Shen, Panda
/// and Kim, "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024.
public enum LinearAttention {
    /// The largest `keyWidth` and `valueWidth`.
    public static let maximumWidth = 512

    public typealias Strides = TokenStrides

    /// Sizes and strides; strides that are nil are those of a dense tensor, token-major.
    public struct Shape: Sendable, Hashable {
        /// Sequences, or 1 where they are packed.
        public var batch: Int
        /// Of each sequence, or of all together where they are packed. 0 is valid.
        public var tokens: Int
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
        /// Of log-decays of tokens and keys.
        public var logDecayStrides: Strides?
        public var outputStrides: Strides?
        public var outputGradientStrides: Strides?
        public var queryGradientStrides: Strides?
        public var keyGradientStrides: Strides?
        public var valueGradientStrides: Strides?
        public var logDecayGradientStrides: Strides?

        /// - Parameter keyHeads: nil: as many as `heads`.
        public init(
            batch: Int = 1, tokens: Int, heads: Int, keyHeads: Int? = nil, keyWidth: Int,
            valueWidth: Int
        ) {
            self.batch = batch
            self.tokens = tokens
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
        /// exp(g_h), [heads]: RetNet, Lightning Attention, TransNormer.
        case head
        /// exp(g_th), [batch, tokens, heads]: Mamba-2, simple GLA.
        case token
        /// diag(exp(g_th)), [batch, tokens, heads, keyWidth]: GLA, HGRN2, RWKV-6.
        case key
    }

    /// How the recurrence is computed; results agree to rounding.
    public enum Form: Sendable, Hashable, CaseIterable {
        /// Whichever is fastest: one token or several in each pass over the state, or chunks.
        case automatic
        /// Token by token: for decoding. A sequence that is cut anywhere has the same bits.
        case recurrent
        /// 16 tokens at a time, as matrix products: with a normaliser, and where segments of a long
        /// sequence are computed side by side. 64 at a time in bfloat16 on AMX tiles.
        case chunked
    }

    /// What is computed, and how.
    public struct Options: Sendable, Hashable {
        public var form: Form
        public var decay: Decay
        /// Factor of o, finite; nil is keyWidth^-1/2.
        public var scale: Float?
        public var isNormalized: Bool
        public var isBidirectional: Bool
        /// Brings q and k to unit length, with this epsilon, at least 0; nil leaves them.
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
            form: Form = .automatic, decay: Decay = .none, scale: Float? = nil,
            isNormalized: Bool = false, isBidirectional: Bool = false,
            unitLengthEpsilon: Float? = nil, stateStride: Int = 1, memoryBudget: Int? = nil,
            threads: Int = 0
        ) {
            self.form = form
            self.decay = decay
            self.scale = scale
            self.isNormalized = isNormalized
            self.isBidirectional = isBidirectional
            self.unitLengthEpsilon = unitLengthEpsilon
            self.stateStride = stateStride
            self.memoryBudget = memoryBudget
            self.threads = threads
        }
    }
}

extension LinearAttention.Shape {
    /// The same sizes with every tensor [batch, heads, tokens, width], dense.
    public var headMajor: Self {
        func strides(_ heads: Int, _ width: Int) -> LinearAttention.Strides {
            .headMajor(tokens: tokens, heads: heads, width: width)
        }
        var shape = self
        shape.queryStrides = strides(heads, keyWidth)
        shape.queryGradientStrides = shape.queryStrides
        shape.keyStrides = strides(keyHeads, keyWidth)
        shape.keyGradientStrides = shape.keyStrides
        shape.valueStrides = strides(keyHeads, valueWidth)
        shape.valueGradientStrides = shape.valueStrides
        shape.outputStrides = strides(heads, valueWidth)
        shape.outputGradientStrides = shape.outputStrides
        return shape
    }

    /// The number of states that `forward` stores at a stride: [storedStates, heads, keyWidth,
    /// valueWidth]. `stride` is at least 1.
    public func storedStates(stride: Int, offsets: Span<Int>? = nil) -> Int {
        statesOnTheWay(stride: stride, offsets)
    }
}
