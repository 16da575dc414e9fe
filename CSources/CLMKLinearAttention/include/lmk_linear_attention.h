// lmk_linear_attention.h: attention without a softmax, by a state of fixed size.
//
// Each sequence has, for every query head, a state S [key_dim, value_dim]. With q_t and k_t
// [key_dim], v_t [value_dim], a decay D_t and a start S_0:
//
//     S_t = D_t S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t
//
// Decay, then write, then read. Query head h uses key and value head h / (heads / key_heads).
// Options:
//
// * Decay: see lmk_decay. A log-decay of -infinity is a reset: the factor is 0, and no gradient
//   passes it.
// * Bonus u for the current token (RWKV-6). The read comes before the decay and the write of its
//   token, and the state never sees u:
//       o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t
// * Normaliser: o_t is divided by z_t . q_t, where z_t = D_t z_{t-1} + k_t is read as S is, with
//   the bonus if there is one. The scale cancels. Nothing is added to the divisor: 0 gives NaN or
//   an infinity.
// * Bidirectional: o_t = scale (sum_j k_j v_j^T)^T q_t over the whole sequence, divided by
//   sum_j k_j . q_t with a normaliser. No decay, bonus or states.
// * Unit length: q and k are divided by sqrt(sum of squares + epsilon) as they are read.
//
// A token of k = 0 and log-decay 0 leaves the state as it is, to the bit but for the sign of 0.
//
// float32 results have the same bits for any number of threads and on AVX2, AVX-512 and NEON, and
// those of a token do not depend on the tokens after it: computed in the same form, for the
// automatic one chooses by the number of tokens. That is so of bfloat16 too, but under amx its
// forward pass has bits of its own, see lmk_linear_attention_forward. States are kept divided by up
// to 1024 where there are decays: entries of a state, k or v beyond 3e35 may overflow.
#ifndef LMK_LINEAR_ATTENTION_H
#define LMK_LINEAR_ATTENTION_H

#include "lmk_core.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// Largest key_dim and value_dim.
#define LMK_LINEAR_ATTENTION_DIM ((size_t)512)

/// D_t, given by its natural logarithm, at most 0.
typedef enum LMK_CLOSED_ENUM lmk_decay {
    /// The identity.
    LMK_DECAY_NONE = 0,
    /// exp(g_h), [heads]: RetNet, Lightning Attention, TransNormer.
    LMK_DECAY_HEAD = 1,
    /// exp(g_th), [batch, tokens, heads]: Mamba-2, simple GLA.
    LMK_DECAY_TOKEN = 2,
    /// diag(exp(g_th)), [batch, tokens, heads, key_dim]: GLA, HGRN2, RWKV-6.
    LMK_DECAY_KEY = 3,
} lmk_decay;

/// How the recurrence is computed; the results agree to rounding.
typedef enum LMK_CLOSED_ENUM lmk_linear_attention_form {
    /// Whichever is fastest: one token or several in each pass over the state, or chunks;
    /// CONTRIBUTING.md has the figures.
    LMK_LINEAR_ATTENTION_AUTOMATIC = 0,
    /// Token by token: for decoding. A sequence that is cut anywhere has the same bits.
    LMK_LINEAR_ATTENTION_RECURRENT = 1,
    /// 16 tokens at a time, as matrix products: with a normaliser, and where segments of a long
    /// sequence are computed side by side. 64 at a time in bfloat16 under amx.
    LMK_LINEAR_ATTENTION_CHUNKED = 2,
} lmk_linear_attention_form;

/// Where rows of a tensor [batch, tokens, heads, width] begin; the width is contiguous. Strides of
/// [batch, heads, tokens, width] describe a head-major tensor.
typedef struct lmk_token_strides {
    size_t batch, token, head;
} lmk_token_strides;

/// Sequences, and what is computed of them. N is the number of states of each head: `sequences`
/// where they are packed, else `batch`.
typedef struct lmk_linear_attention {
    lmk_linear_attention_form form;
    /// Storage of q, k, v, o and their gradients; everything else is float32, and so is all
    /// arithmetic: the others are widened as they are read.
    lmk_dtype dtype;
    lmk_decay decay;
    size_t batch, tokens, heads, key_heads, key_dim, value_dim;
    /// [batch, tokens, heads, key_dim]
    const void *LMK_NULLABLE q;
    lmk_token_strides q_strides;
    /// [batch, tokens, key_heads, key_dim]
    const void *LMK_NULLABLE k;
    lmk_token_strides k_strides;
    /// [batch, tokens, key_heads, value_dim]
    const void *LMK_NULLABLE v;
    lmk_token_strides v_strides;
    /// As `decay` says; of a [heads] nothing but the head's stride is used.
    const float *LMK_NULLABLE log_decay;
    lmk_token_strides log_decay_strides;
    /// Finite; a factor of o.
    float scale;
    /// u [heads, key_dim], or null.
    const float *LMK_NULLABLE bonus;
    int is_bidirectional, is_normalized;
    /// Nonzero: q and k are brought to unit length, with this epsilon, at least 0.
    int has_unit_length;
    float epsilon;
    /// Packed sequences, with batch 1: [sequences + 1], from 0 to tokens, not descending; sequence
    /// n has the tokens offsets[n] ..< offsets[n + 1], maybe none. Null: each of the batch is one.
    const int64_t *LMK_NULLABLE offsets;
    size_t sequences;
    /// S_0 [N, heads, key_dim, value_dim], dense; null: 0.
    const float *LMK_NULLABLE initial_state;
    /// z_0 [N, heads, key_dim], with a normaliser; null: 0.
    const float *LMK_NULLABLE initial_normalizer;
    /// Bytes that backward may use for states that it keeps; 0: as many as are fastest.
    size_t memory_budget;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_linear_attention;

/// What forward computes; what is null is not.
typedef struct lmk_linear_attention_results {
    /// [batch, tokens, heads, value_dim]. Must not overlap an input.
    void *LMK_NULLABLE o;
    lmk_token_strides o_strides;
    /// S after the last token, S_0 for a sequence without tokens; may be initial_state itself.
    float *LMK_NULLABLE final_state;
    /// [N, heads, key_dim]; may be initial_normalizer itself.
    float *LMK_NULLABLE final_normalizer;
    /// S after state_stride, 2 state_stride, ... tokens of a sequence, as far as it goes, sequence
    /// by sequence: [sum over n of tokens_n / state_stride, heads, key_dim, value_dim].
    float *LMK_NULLABLE states;
    /// z at the same places.
    float *LMK_NULLABLE normalizers;
    /// At least 1 where there are states.
    size_t state_stride;
} lmk_linear_attention_results;

/// Bytes of workspace for forward with these results. 0 when an argument is wrong: the call says
/// which.
size_t lmk_linear_attention_workspace_size(const lmk_linear_attention *attention);

/// Chunk of n = 16 tokens, P = tril(q k^T o E), E_ij the decay from j to i:
///
///     o = scale [ (D_1..i q) S + P v ]          S+ = D_1..n S + (D_j+1..n k)^T v
///
/// E is made of running products of decays, never of differences of sums, so that -infinity and
/// strong decays cost no accuracy. Cost: 4 key_dim value_dim + 24 (key_dim + value_dim) operations
/// for a token and head. Where one head has few value slices and many tokens, segments of a
/// sequence go to different threads: their states are computed first, in 2 key_dim value_dim more.
/// Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024.
///
/// bfloat16 under amx: n = 64 on tiles, where there is neither bonus nor normaliser and no decay,
/// or one per head or token, in the chunked form, and in the automatic one from 32 tokens on. P, S
/// as it is read and k with its decays are sums of two bfloat16 there, each within 2^-17 of what it
/// stands for; sums are float32. S is right to about 3e-6 of its norm where other sets have 1e-6, o
/// to 2^-16 of the magnitudes that it sums before it is rounded to bfloat16. Numbers below 2^-126
/// count as 0. q is multiplied with S before decays, length and scale: a product beyond the range
/// of float32 is infinite, or NaN where the decay is 0, even if the scale would bring it back. From
/// the first token of a chunk on that holds or makes a number that is not finite, the chunk goes
/// through the kernels of AVX-512. The bits differ from those of other sets; they depend neither on
/// threads nor on later tokens, and a sequence that is cut at a multiple of 64 tokens, 16 under
/// other sets, has the same ones in the chunked form. Backward is that of other sets.
lmk_status lmk_linear_attention_forward(const lmk_linear_attention *attention,
                                        const lmk_linear_attention_results *results,
                                        void *LMK_NULLABLE workspace, size_t workspace_size,
                                        lmk_error *LMK_NULLABLE error);

/// Gradients of  <do, o> + <dS, final state> + <dz, final normalizer>.
typedef struct lmk_linear_attention_gradients {
    /// [batch, tokens, heads, value_dim]
    const void *LMK_NULLABLE output;
    lmk_token_strides output_strides;
    /// [N, heads, key_dim, value_dim]; null: 0.
    const float *LMK_NULLABLE final_state;
    /// [N, heads, key_dim]; null: 0.
    const float *LMK_NULLABLE final_normalizer;
    /// In the shapes of the inputs; what is null is not computed. None may overlap an input.
    void *LMK_NULLABLE q;
    lmk_token_strides q_strides;
    void *LMK_NULLABLE k;
    lmk_token_strides k_strides;
    void *LMK_NULLABLE v;
    lmk_token_strides v_strides;
    float *LMK_NULLABLE log_decay;
    lmk_token_strides log_decay_strides;
    float *LMK_NULLABLE bonus;
    /// May be final_state itself.
    float *LMK_NULLABLE initial_state;
    /// May be final_normalizer itself.
    float *LMK_NULLABLE initial_normalizer;
} lmk_linear_attention_gradients;

size_t lmk_linear_attention_backward_workspace_size(const lmk_linear_attention *attention);

/// Chunks from last to first, whatever `form` says. States at the chunks' starts are kept at
/// intervals that the memory budget allows and computed again in between. The gradient of a
/// log-decay is a sum of its own terms, without those that cancel. Long sequences are cut into
/// segments as in forward, except with a normaliser, whose gradients need the states that segments
/// are there to find.
lmk_status lmk_linear_attention_backward(const lmk_linear_attention *attention,
                                         const lmk_linear_attention_gradients *gradients,
                                         void *LMK_NULLABLE workspace, size_t workspace_size,
                                         lmk_error *LMK_NULLABLE error);

// MARK: Pieces of a long sequence, for several machines

/// What a run of tokens does to the state, whatever came before it:
///
///     S_end = diag(decay) S_start + state        z_end = diag(decay) z_start + normalizer
///
/// All are dense float32; `decay` is the product of the factors, equal along key_dim unless the
/// decay is per key, and 0 below 2^-126. Sun et al., "LASP-2: Rethinking Sequence Parallelism for
/// Linear Attention", 2025.
typedef struct lmk_linear_attention_piece {
    /// [N, heads, key_dim]
    float *LMK_NULLABLE decay;
    /// [N, heads, key_dim, value_dim]
    float *LMK_NULLABLE state;
    /// [N, heads, key_dim]; null: not computed.
    float *LMK_NULLABLE normalizer;
} lmk_linear_attention_piece;

/// The piece that the tokens of each sequence make, from k, v and the decay alone. The workspace is
/// forward's.
lmk_status lmk_linear_attention_partial_state(const lmk_linear_attention *attention,
                                              const lmk_linear_attention_piece *piece,
                                              void *LMK_NULLABLE workspace, size_t workspace_size,
                                              lmk_error *LMK_NULLABLE error);

/// The piece of two runs, one after the other; associative, not commutative. `states` is N heads.
/// `result` may be either of the two.
///
///     decay = first.decay second.decay        state = diag(second.decay) first.state +
///     second.state
lmk_status lmk_linear_attention_combine(size_t states, size_t key_dim, size_t value_dim,
                                        const lmk_linear_attention_piece *first,
                                        const lmk_linear_attention_piece *second,
                                        const lmk_linear_attention_piece *result,
                                        lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
