// lmk_self_referential.h: the self-referential weight matrix, which writes itself.
//
// Each sequence has, for every head, a matrix W [rows, D] with rows = E + 2 D + 4, in four blocks
// of E, D, D and 4 rows that make the output, the key, the query and four rates. With inputs x_t
// [D] and phi the softmax over D entries:
//
//     [y_t, k_t, q_t, beta_t] = W_{t-1} phi(x_t)
//     v_t = W_{t-1} phi(q_t)        u_t = W_{t-1} phi(k_t)
//     W_t = W_{t-1} + rate_t (v_t - u_t) phi(k_t)^T        row by row
//
// rate_t is sigmoid(beta_t,1) in the rows of y, sigmoid(beta_t,2) in those of k, sigmoid(beta_t,3)
// in those of q and sigmoid(beta_t,4) in those of beta. y_t comes before the change.
//
// These are the equations of Irie, Schlag, Csordas and Schmidhuber, "A Modern Self-Referential
// Weight Matrix That Learns to Modify Itself", 2022, with a rate for each block as their published
// code has it. That code has E = D, holds the blocks as matrices [D, rows] in the order y, q, k,
// beta with rates in that order, and leaves phi(x) to the caller, who may leave it out.
//
// v_t - u_t is computed as W_{t-1} (phi(q_t) - phi(k_t)). float32 results have the same bits for
// any number of threads and on AVX2, AVX-512 and NEON, and those of a token do not depend on the
// tokens after it.
#ifndef LMK_SELF_REFERENTIAL_H
#define LMK_SELF_REFERENTIAL_H

#include "lmk_core.h"
#include "lmk_linear_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// Sequences of tokens. N is the number of matrices of each head: `sequences` where they are
/// packed, else `batch`.
typedef struct lmk_self_referential {
    /// Storage of x, y and their gradients; everything else is float32, and so is all arithmetic.
    lmk_dtype dtype;
    /// key_dim is D, value_dim is E, each in 1...512.
    size_t batch, tokens, heads, key_dim, value_dim;
    /// [batch, tokens, heads, key_dim]
    const void *LMK_NULLABLE x;
    lmk_token_strides x_strides;
    /// Nonzero: phi is applied to x. Zero: x_t stands in place of phi(x_t).
    int has_input_softmax;
    /// W_0 [N, heads, rows, key_dim], dense; or [heads, rows, key_dim] where all sequences share
    /// it.
    const float *LMK_NULLABLE initial_matrix;
    int shares_initial_matrix;
    /// Packed sequences, with batch 1: [sequences + 1], in tokens, from 0 to `tokens`, not
    /// descending. Null: each of the batch is one.
    const int64_t *LMK_NULLABLE offsets;
    size_t sequences;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_self_referential;

/// E + 2 D + 4.
size_t lmk_self_referential_rows(size_t key_dim, size_t value_dim);

/// Bytes of workspace for forward: W and a few rows for each thread. 0 when an argument is wrong:
/// the call says which.
size_t lmk_self_referential_workspace_size(const lmk_self_referential *matrix);

/// y [batch, tokens, heads, value_dim]; must not overlap x. `final_matrix` [N, heads, rows,
/// key_dim], if given, receives W after the last token, W_0 for a sequence without tokens; may be
/// initial_matrix itself, unless that is shared.
///
/// Cost: 6 rows key_dim operations for a token and head, in two passes over W. Sequences and heads
/// go to different threads.
lmk_status lmk_self_referential_forward(const lmk_self_referential *matrix, void *LMK_NULLABLE y,
                                        lmk_token_strides y_strides,
                                        float *LMK_NULLABLE final_matrix,
                                        void *LMK_NULLABLE workspace, size_t workspace_size,
                                        lmk_error *LMK_NULLABLE error);

/// Gradients of  <dy, y> + <dW, final matrix>; what is null is not computed.
typedef struct lmk_self_referential_gradients {
    /// [batch, tokens, heads, value_dim]
    const void *LMK_NULLABLE dy;
    lmk_token_strides dy_strides;
    /// [N, heads, rows, key_dim]; null: 0.
    const float *LMK_NULLABLE dfinal_matrix;
    /// [batch, tokens, heads, key_dim]; must not overlap an input.
    void *LMK_NULLABLE dx;
    lmk_token_strides dx_strides;
    /// In the shape of initial_matrix: summed over sequences, in order, where they share it. May be
    /// dfinal_matrix itself, unless they do.
    float *LMK_NULLABLE dinitial_matrix;
} lmk_self_referential_gradients;

/// Bytes of workspace for backward: for each thread 5/8 sqrt(T) matrices and 8 rows each of
/// 2 sqrt(T) tokens, T being the tokens of the longest sequence.
size_t lmk_self_referential_backward_workspace_size(const lmk_self_referential *matrix);

/// W is kept every 2 sqrt(T) tokens and computed again in between, where it is kept every 16; for a
/// token it is the last of them with what was written since. From the last token to the first, with
/// W = W_{t-1}, f = phi(x_t), G the gradient of W_t and p = rate (v - u):
///
///     dp = G phi(k)        dd = rate dp        dbeta_i = sigmoid' sum of (v - u) dp over block i
///     dphi(q) = W^T dd        dphi(k) = G^T p - W^T dd        dr = [dy, dk, dq, dbeta]
///     G <- G + dd (phi(q) - phi(k))^T + dr f^T        df = W^T dr
///
/// Cost: 24 rows key_dim operations for a token and head, half of them forward, and 30 (rows +
/// key_dim) on average for what was written since.
///
/// Where an initial matrix is shared and its gradient is asked for, only heads go to different
/// threads.
lmk_status lmk_self_referential_backward(const lmk_self_referential *matrix,
                                         const lmk_self_referential_gradients *gradients,
                                         void *LMK_NULLABLE workspace, size_t workspace_size,
                                         lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
