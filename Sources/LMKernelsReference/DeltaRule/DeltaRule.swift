/// The delta rule by its recurrence, one token at a time, in Double.
///
/// Each sequence has, per query head, a state S [K, V] (key dimension by value dimension). With
/// q_t [K], a decay D_t, a start S_0, and R Householder steps per token, each with k_tj [K],
/// v_tj [V] and a number beta_tj:
///
///     S <- D_t S
///     for j = 1 ... R:    u = beta_tj (v_tj - S^T k_tj)        S <- S + k_tj u^T
///     o_t = scale S^T q_t
///
/// A step is S <- (I - beta k k^T) S + beta k v^T: it moves what S answers to k towards v, all the
/// way where beta |k|^2 = 1, and reflects it where beta |k|^2 = 2. The decay acts once per token,
/// before its first step; the read follows its last step. Query head h uses key and value head
/// floor(h / (H / G)), with a beta of its own. beta in (0, 1) is DeltaNet (Yang et al.), in (0, 2)
/// DeltaNet with negative eigenvalues (Grazzi et al.), R > 1 DeltaProduct (Siems et al.); a decay
/// per token is Gated DeltaNet (Yang et al.), per key Kimi Delta Attention. Options:
///
/// * Decay: see `Decay`. The factor of a log-decay g is exp(g). -inf is a reset: factor 0, and no
///   gradient passes it. 0 times an infinite or NaN state is NaN, so a reset does not hide one.
/// * Beta: a number, or a logit, see `Beta`. No range is required of either.
/// * Unit length: q and k are first divided by sqrt(sum of squares + epsilon), each on its own.
/// * The general form of RWKV-7 (Peng et al.), with vectors a_t and b_t [K] in place of beta, and
///   R = 1. What a reads is from before the decay, so it passes a reset:
///
///       S_t = D_t S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T        o_t = scale S_t^T q_t
///
///   The delta rule with R = 1 is a = D_t k, b = -beta k and beta v in place of v.
///
/// Arrays are dense and row-major. A batch [B, T] holds B sequences of T tokens, or, with offsets
/// and B = 1, N sequences one after the other. N is B in the first case. The R steps of a token
/// are R rows of [B, T R], in their order.
public enum DeltaRule {
    /// The extents of the arrays.
    public struct Shape: Sendable, Equatable {
        /// B.
        public var batch: Int
        /// T, of all sequences together where they are packed.
        public var tokens: Int
        /// H, the number of query heads.
        public var heads: Int
        /// G, the number of key and value heads, a divisor of H.
        public var keyHeads: Int
        /// K, at least 1.
        public var keyWidth: Int
        /// V, at least 1.
        public var valueWidth: Int
        /// R, at least 1.
        public var householderSteps: Int

        public init(
            batch: Int, tokens: Int, heads: Int, keyHeads: Int, keyWidth: Int, valueWidth: Int,
            householderSteps: Int = 1
        ) {
            self.batch = batch
            self.tokens = tokens
            self.heads = heads
            self.keyHeads = keyHeads
            self.keyWidth = keyWidth
            self.valueWidth = valueWidth
            self.householderSteps = householderSteps
        }
    }

    /// D_t, by its natural logarithm, at most 0.
    public enum Decay: Sendable, Equatable {
        /// The identity.
        case none
        /// exp(g_th), [B, T, H].
        case token([Double])
        /// diag(exp(g_th)), [B, T, H, K].
        case key([Double])

        /// The log-decays, none of them for the identity.
        public var logarithms: [Double] {
            switch self {
            case .none: []
            case .token(let g), .key(let g): g
            }
        }
    }

    /// beta, [B, T R, H].
    public enum Beta: Sendable, Equatable {
        /// x.
        case value([Double])
        /// 1 / (1 + exp(-x)), in (0, 1).
        case sigmoid([Double])
        /// 2 / (1 + exp(-x)), in (0, 2).
        case twiceSigmoid([Double])

        /// x.
        public var inputs: [Double] {
            switch self {
            case .value(let x), .sigmoid(let x), .twiceSigmoid(let x): x
            }
        }
    }

    /// How a token changes the state.
    public enum Update: Sendable, Equatable {
        /// By the delta rule.
        case delta(Beta)
        /// By a and b, [B, T, G, K] each: the general form, with R = 1.
        case general(a: [Double], b: [Double])
    }

    /// The inputs.
    public struct Problem: Sendable {
        /// The extents of the arrays below.
        public var shape: Shape
        /// q, [B, T, H, K].
        public var query: [Double]
        /// k, [B, T R, G, K].
        public var key: [Double]
        /// v, [B, T R, G, V].
        public var value: [Double]
        /// beta, or a and b.
        public var update: Update
        /// D_t.
        public var decay: Decay
        /// Factor of the output. K^-1/2 when absent.
        public var scale: Double?
        /// The epsilon of unit length, at least 0, published as 1e-6. q and k as they are when
        /// absent. a and b always are.
        public var unitLengthEpsilon: Double?
        /// S_0, [N, H, K, V]; zero when absent.
        public var initialState: [Double]?
        /// Sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe none, [N + 1].
        public var offsets: [Int]?
        /// Ask for the states after every multiple of this number of tokens of a sequence.
        public var stateStride: Int?

        public init(
            shape: Shape, query: [Double], key: [Double], value: [Double], update: Update,
            decay: Decay = .none, scale: Double? = nil, unitLengthEpsilon: Double? = nil,
            initialState: [Double]? = nil, offsets: [Int]? = nil, stateStride: Int? = nil
        ) {
            self.shape = shape
            self.query = query
            self.key = key
            self.value = value
            self.update = update
            self.decay = decay
            self.scale = scale
            self.unitLengthEpsilon = unitLengthEpsilon
            self.initialState = initialState
            self.offsets = offsets
            self.stateStride = stateStride
        }
    }

    /// What `forward` computes.
    public struct Output: Sendable, Equatable {
        /// o, [B, T, H, V].
        public var output: [Double]
        /// S after the last token, [N, H, K, V]; S_0 for a sequence without tokens.
        public var finalState: [Double]
        /// S after stride, 2 stride, ... tokens of a sequence, as far as it goes, sequence by
        /// sequence: [sum_n floor(tokens_n / stride), H, K, V]. Empty without a stride.
        public var states: [Double]
    }

    /// The derivative of a scalar with respect to each input, in the input's shape. The initial
    /// state has one when absent too, where it is the derivative at zero.
    public struct Gradients: Sendable, Equatable {
        /// [B, T, H, K].
        public var query: [Double]
        /// [B, T R, G, K].
        public var key: [Double]
        /// [B, T R, G, V].
        public var value: [Double]
        /// Of beta or of its logits, whichever is given, [B, T R, H]; empty in the general form.
        public var beta: [Double]
        /// [B, T, G, K], or empty unless in the general form.
        public var a: [Double]
        /// [B, T, G, K], or empty unless in the general form.
        public var b: [Double]
        /// Of the log-decays, in their shape.
        public var decay: [Double]
        /// [N, H, K, V].
        public var initialState: [Double]
    }
}
