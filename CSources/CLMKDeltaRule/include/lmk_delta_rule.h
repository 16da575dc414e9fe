// lmk_delta_rule.h: states that are written by correction.
//
// Each sequence has, for every query head, a state S [key_dim, value_dim], and each token R steps.
// With q_t [key_dim], k_tj [key_dim], v_tj [value_dim], a rate beta_tj, a decay D_t and a start
// S_0:
//
//     S <- D_t S;  then for j = 1 ... R:  u = beta_tj (v_tj - S^T k_tj),  S <- S + k_tj u^T
//     o_t = scale S^T q_t
//
// A step is S <- (I - beta k k^T) S + beta k v^T: with a k of unit length and beta in [0, 1]
// DeltaNet, in [0, 2] a generalised Householder reflection; R > 1 is DeltaProduct; with D_t =
// exp(g_t) it is Gated DeltaNet, with D_t = diag(exp(g_t)) Kimi Delta Attention. Keys longer than
// sqrt(2 / beta) make the state grow without bound: that is the caller's to know. Options:
//
// * Generalised form (RWKV-7), R = 1 and without beta, from a_t and b_t [key_dim]: what is read
//   comes before the decay,
//       z = S^T a_t,  S <- D_t S + b_t z^T + k_t v_t^T
// * Decay: none, of a token or of its keys, see lmk_decay. A log-decay of -infinity is a reset: the
//   factor is 0, and no gradient passes it.
// * Rates as they are, or from logits x: sigmoid(x), or 2 sigmoid(x).
// * Unit length: q and k are divided by sqrt(sum of squares + epsilon) as they are read.
//
// Query head h uses key and value head h / (heads / key_heads), and a and b of that head; rates and
// decays are a query head's own. A token of beta = 0 and log-decay 0 leaves the state as it is.
//
// float32 results have the same bits for any number of threads and on AVX2, AVX-512 and NEON, and
// those of a token do not depend on the tokens after it. States are kept divided by up to 1024
// where there are decays: entries of a state, k or v beyond 3e35 may overflow.
//
// Under the instruction set amx forward takes q, k and v of bfloat16 in chunks on tiles, unless
// decays are per key, the form is generalised or the recurrence is asked for. What is not bfloat16
// there, the state among it, is a sum of two or three such numbers: o is rounded once as ever
// (1.7e-3), a state is right to 2e-5 over 512 steps of rates near 2 and to 6e-5 where keys are
// nearly the same, where the recurrence has 1e-6 and 3e-5. Numbers below 2^-126 count as 0.
// Backward is that of other sets.
#ifndef LMK_DELTA_RULE_H
#define LMK_DELTA_RULE_H

#include "lmk_core.h"
#include "lmk_linear_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// Largest key_dim and value_dim.
#define LMK_DELTA_RULE_DIM ((size_t)512)

/// What the numbers of `beta` are.
typedef enum LMK_CLOSED_ENUM lmk_beta {
    /// The rates.
    LMK_BETA_RATE = 0,
    /// x, with rates sigmoid(x) in [0, 1].
    LMK_BETA_SIGMOID = 1,
    /// x, with rates 2 sigmoid(x) in [0, 2].
    LMK_BETA_TWICE_SIGMOID = 2,
} lmk_beta;

/// How the recurrence is computed; the results agree to rounding.
typedef enum LMK_CLOSED_ENUM lmk_delta_rule_form {
    /// The recurrence; chunks where they run on tiles and there are at least 32 steps.
    /// CONTRIBUTING.md has the figures.
    LMK_DELTA_RULE_AUTOMATIC = 0,
    /// Two steps at a time, in one pass over the state.
    LMK_DELTA_RULE_RECURRENT = 1,
    /// 16 steps at a time, as matrix products and a forward substitution; 64 on tiles.
    LMK_DELTA_RULE_CHUNKED = 2,
} lmk_delta_rule_form;

/// Sequences, and what is computed of them. N is the number of states of each head: `sequences`
/// where they are packed, else `batch`. A tensor of steps has `steps` rows for each token, one
/// after the other: its token stride is that from step to step.
typedef struct lmk_delta_rule {
    lmk_delta_rule_form form;
    /// Storage of q, k, v, a, b, o and their gradients; everything else is float32, and so is all
    /// arithmetic.
    lmk_dtype dtype;
    /// Not that of a head.
    lmk_decay decay;
    lmk_beta beta_kind;
    /// `steps` is R, at least 1.
    size_t batch, tokens, steps, heads, key_heads, key_dim, value_dim;
    /// [batch, tokens, heads, key_dim]
    const void *LMK_NULLABLE q;
    lmk_token_strides q_strides;
    /// [batch, tokens * steps, key_heads, key_dim]
    const void *LMK_NULLABLE k;
    lmk_token_strides k_strides;
    /// [batch, tokens * steps, key_heads, value_dim]
    const void *LMK_NULLABLE v;
    lmk_token_strides v_strides;
    /// [batch, tokens * steps, heads]; null in the generalised form.
    const float *LMK_NULLABLE beta;
    lmk_token_strides beta_strides;
    /// [batch, tokens, heads] or [batch, tokens, heads, key_dim]
    const float *LMK_NULLABLE log_decay;
    lmk_token_strides log_decay_strides;
    /// Nonzero: the generalised form, with a and b [batch, tokens, key_heads, key_dim].
    int is_generalized;
    const void *LMK_NULLABLE a;
    lmk_token_strides a_strides;
    const void *LMK_NULLABLE b;
    lmk_token_strides b_strides;
    /// Finite; a factor of o.
    float scale;
    /// Nonzero: q and k are brought to unit length, with this epsilon, at least 0.
    int has_unit_length;
    float epsilon;
    /// Packed sequences, with batch 1: [sequences + 1], in tokens, from 0 to `tokens`, not
    /// descending. Null: each of the batch is one.
    const int64_t *LMK_NULLABLE offsets;
    size_t sequences;
    /// S_0 [N, heads, key_dim, value_dim], dense; null: 0.
    const float *LMK_NULLABLE initial_state;
    /// Bytes that backward may use for states that it keeps; 0: as many as are fastest.
    size_t memory_budget;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_delta_rule;

/// What forward computes; what is null is not.
typedef struct lmk_delta_rule_results {
    /// [batch, tokens, heads, value_dim]. Must not overlap an input.
    void *LMK_NULLABLE o;
    lmk_token_strides o_strides;
    /// S after the last token, S_0 for a sequence without tokens; may be initial_state itself.
    float *LMK_NULLABLE final_state;
    /// S after state_stride, 2 state_stride, ... tokens of a sequence, as far as it goes, sequence
    /// by sequence: [sum over n of tokens_n / state_stride, heads, key_dim, value_dim].
    float *LMK_NULLABLE states;
    /// At least 1 where there are states.
    size_t state_stride;
} lmk_delta_rule_results;

/// Bytes of workspace for forward. 0 when an argument is wrong: the call says which.
size_t lmk_delta_rule_workspace_size(const lmk_delta_rule *rule);

/// Recurrent: with z = S^T k and y = S^T q known, the pass over 32 columns of S that writes two
/// steps also reads z and y of the next two. Cost: (4 R + 2) key_dim value_dim operations for a
/// token and head; columns are independent, so that few heads still use every thread.
///
/// Chunk of n = 16 steps, E_ij the decay from j to i:
///
///     (I + L) u = beta (v - (D_1..i k) S)        L_ij = beta_i <k_i, k_j> E_ij,  j < i
///     o = scale [ (D_1..i q) S + tril(q k^T o E) u ]        S+ = D_1..n S + (D_j+1..n k)^T u
///
/// solved by forward substitution; (I + L)^-1 is never formed.
///
/// Yang, Wang, Zhang, Shen and Kim, "Parallelizing Linear Transformers with the Delta Rule over
/// Sequence Length", 2024; Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2025; Grazzi et
/// al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", 2025; Siems et al.,
/// "DeltaProduct", 2025; Kimi Team, "Kimi Linear", 2025; Peng et al., "RWKV-7", 2025.
lmk_status lmk_delta_rule_forward(const lmk_delta_rule *rule, const lmk_delta_rule_results *results,
                                  void *LMK_NULLABLE workspace, size_t workspace_size,
                                  lmk_error *LMK_NULLABLE error);

/// Gradients of  <do, o> + <dS, final state>.
typedef struct lmk_delta_rule_gradients {
    /// [batch, tokens, heads, value_dim]
    const void *LMK_NULLABLE output;
    lmk_token_strides output_strides;
    /// [N, heads, key_dim, value_dim]; null: 0.
    const float *LMK_NULLABLE final_state;
    /// In the shapes of the inputs; what is null is not computed. None may overlap an input.
    void *LMK_NULLABLE q;
    lmk_token_strides q_strides;
    void *LMK_NULLABLE k;
    lmk_token_strides k_strides;
    void *LMK_NULLABLE v;
    lmk_token_strides v_strides;
    /// Of what `beta` holds: of logits where it holds logits.
    float *LMK_NULLABLE beta;
    lmk_token_strides beta_strides;
    float *LMK_NULLABLE log_decay;
    lmk_token_strides log_decay_strides;
    void *LMK_NULLABLE a;
    lmk_token_strides a_strides;
    void *LMK_NULLABLE b;
    lmk_token_strides b_strides;
    /// May be final_state itself.
    float *LMK_NULLABLE initial_state;
} lmk_delta_rule_gradients;

size_t lmk_delta_rule_backward_workspace_size(const lmk_delta_rule *rule);

/// Chunks from last to first, whatever `form` says, after a recurrence that keeps what each step
/// corrected and the state at intervals that the memory budget allows. The gradient of a log-decay
/// is a sum of its own terms, without those that cancel.
lmk_status lmk_delta_rule_backward(const lmk_delta_rule *rule,
                                   const lmk_delta_rule_gradients *gradients,
                                   void *LMK_NULLABLE workspace, size_t workspace_size,
                                   lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
