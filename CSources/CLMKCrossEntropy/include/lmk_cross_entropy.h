// lmk_cross_entropy.h: cut cross-entropy. The loss of a linear classifier over a large vocabulary,
// and its gradients, without ever holding the rows x vocabulary logits.
//
//     a_ij = hidden_i . classifier_j + bias_j       s_ij = softcap tanh(a_ij / softcap), or a_ij
//     z_ij = logit_scale s_ij lse_i = log sum_j exp z_ij         p_ij = exp(z_ij - lse_i) entropy_i
//     = lse_i - sum_j p_ij z_ij loss_i = (1 - e) w_y (lse_i - z_iy) + (e / V) sum_j w_j (lse_i -
//     z_ij) + z_loss lse_i^2
//
// with y the target of row i, e the label smoothing, w the class weights (1 without), V the
// vocabulary. After Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024.
#ifndef LMK_CROSS_ENTROPY_H
#define LMK_CROSS_ENTROPY_H

#include "lmk_core.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// How the losses of the rows become one.
typedef enum LMK_CLOSED_ENUM lmk_reduction {
    /// They do not: a loss and an upstream gradient per row. The summary's loss is 0.
    LMK_REDUCTION_NONE = 0,
    /// The cross-entropy part over the sum of the targets' class weights, plus the z-loss part over
    /// the number of rows that are
    /// not ignored. A quotient whose divisor is 0 is 0: the mean of no rows.
    LMK_REDUCTION_MEAN = 1,
    LMK_REDUCTION_SUM = 2,
} lmk_reduction;

typedef enum LMK_CLOSED_ENUM lmk_target_type {
    LMK_TARGET_INT64 = 0,
    LMK_TARGET_INT32 = 1,
} lmk_target_type;

/// How logits were held while gradients were computed.
typedef enum LMK_CLOSED_ENUM lmk_cross_entropy_mode {
    /// Nothing held: forward only.
    LMK_MODE_FORWARD = 0,
    /// A block of rows keeps its logits over the whole vocabulary: 6 N V D operations for loss and
    /// gradients.
    LMK_MODE_PANEL = 1,
    /// Logits are computed again: 8 N V D operations, the least memory.
    LMK_MODE_RECOMPUTE = 2,
} lmk_cross_entropy_mode;

/// The problem: inputs and options. Zero-initialise, then fill in; a zero logit_scale is an error.
typedef struct lmk_cross_entropy {
    /// N, D, V.
    size_t rows, features, vocabulary;
    /// [rows, features]
    const float *LMK_NULLABLE hidden;
    size_t hidden_stride;
    /// [vocabulary, features]; may be an embedding table (tied weights).
    const float *LMK_NULLABLE classifier;
    size_t classifier_stride;
    /// [vocabulary], or null. An entry of -inf removes a class.
    const float *LMK_NULLABLE bias;
    /// [vocabulary], finite and >= 0, or null for 1.
    const float *LMK_NULLABLE class_weights;
    /// [rows] of int64 or int32; each in 0..<vocabulary or equal to ignore_index.
    const void *LMK_NULLABLE targets;
    lmk_target_type target_type;
    int64_t ignore_index;
    /// With a shift s > 0 the target of a row at position t of its sequence is the one stored at t
    /// + s; the last s rows of every sequence are ignored. Rows are whole sequences of
    /// `tokens_per_sequence`.
    size_t target_shift, tokens_per_sequence;
    /// 0: none.
    float softcap;
    float logit_scale;
    /// In [0, 1].
    float label_smoothing;
    /// >= 0.
    float z_loss;
    lmk_reduction reduction;
    /// Bytes that the workspace may take beyond 64 for each row; 0:
    /// LMK_CROSS_ENTROPY_DEFAULT_BUDGET. It decides block sizes and mode, never a bit of the
    /// results.
    size_t memory_budget;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_cross_entropy;

#define LMK_CROSS_ENTROPY_DEFAULT_BUDGET ((size_t)128 << 20)

/// What forward leaves of a row for backward: the largest logit, sum_j exp(z_j - max), and lse -
/// z_y (0 when ignored). A row that was not computed has sum 0.
typedef struct lmk_cross_entropy_row {
    float max, sum, target_loss;
} lmk_cross_entropy_row;

/// Outputs of forward; each may be null and is then not computed. When log_sum_exp, entropy and
/// predicted are all null, ignored rows cost nothing.
typedef struct lmk_cross_entropy_outputs {
    /// [rows]; 0 where ignored.
    float *LMK_NULLABLE loss;
    /// [rows]
    float *LMK_NULLABLE log_sum_exp;
    /// [rows]
    float *LMK_NULLABLE entropy;
    /// [rows]; the class with the largest logit, the lowest on ties, -1 when a logit is NaN or none
    /// is above -inf.
    int64_t *LMK_NULLABLE predicted;
    /// [rows]; z_iy, 0 where ignored.
    float *LMK_NULLABLE target_logit;
    /// [rows]
    lmk_cross_entropy_row *LMK_NULLABLE row_states;
} lmk_cross_entropy_outputs;

typedef struct lmk_cross_entropy_summary {
    /// By the reduction; 0 for LMK_REDUCTION_NONE.
    double loss;
    /// Rows that are not ignored, and the sum of their targets' class weights.
    size_t valid_rows;
    double weight;
    /// Valid rows whose predicted class is the target; counted when `predicted` is asked for, else
    /// 0.
    size_t correct;
    lmk_cross_entropy_mode mode;
    /// Rows of a block, and classes of its panel.
    size_t block_rows, block_vocabulary;
} lmk_cross_entropy_summary;

/// Upstream gradients in, gradients out; an output that is null is not computed.
typedef struct lmk_cross_entropy_gradients {
    /// Upstream gradient of the reduced loss, for mean and sum.
    float loss_gradient;
    /// [rows] upstream gradient of each row's loss, for LMK_REDUCTION_NONE, where it is needed
    /// unless one of the next two is given.
    const float *LMK_NULLABLE loss_gradients;
    /// [rows] upstream gradients of lse and entropy, or null. They act on ignored rows too: lse and
    /// entropy do not depend on targets.
    const float *LMK_NULLABLE log_sum_exp_gradients;
    const float *LMK_NULLABLE entropy_gradients;
    /// [rows, features]
    float *LMK_NULLABLE hidden;
    size_t hidden_stride;
    /// [vocabulary, features]
    float *LMK_NULLABLE classifier;
    size_t classifier_stride;
    /// [vocabulary]
    float *LMK_NULLABLE bias;
    /// Nonzero: add to what is there.
    int accumulate_hidden, accumulate_classifier, accumulate_bias;
} lmk_cross_entropy_gradients;

/// Bytes of workspace that a call with these arguments needs: at most the budget and 64 for each
/// row. Pass the outputs and gradients that the call will have, null for those it has not. 0 when
/// an argument is wrong: the call says which.
size_t lmk_cross_entropy_workspace_size(const lmk_cross_entropy *problem,
                                        const lmk_cross_entropy_gradients *LMK_NULLABLE gradients);

/// Losses and the other outputs. 2 N V D operations.
///
/// `outputs` must not overlap inputs or each other. A row with a NaN or +inf logit has NaN loss,
/// lse and entropy.
lmk_status lmk_cross_entropy_forward(const lmk_cross_entropy *problem,
                                     const lmk_cross_entropy_outputs *outputs,
                                     lmk_cross_entropy_summary *LMK_NULLABLE summary,
                                     void *LMK_NULLABLE workspace, size_t workspace_size,
                                     lmk_error *LMK_NULLABLE error);

/// Gradients, from the row states that forward left for the same problem: recompute mode. 6 N V D
/// operations for both gradients.
///
///     G_ij = p_ij (g_i alpha_i + gl_i) - [j = y] g_i (1 - e) w_y - g_i (e / V) w_j - gh_i p_ij
///     (z_ij - lse_i + entropy_i) alpha_i = (1 - e) w_y + (e / V) W + 2 z_loss lse_i          A_ij
///     = G_ij (1 - (s_ij / softcap)^2) logit_scale d hidden = A classifier          d classifier =
///     A^T hidden          d bias_j = sum_i A_ij
lmk_status lmk_cross_entropy_backward(const lmk_cross_entropy *problem,
                                      const lmk_cross_entropy_row *LMK_NULLABLE row_states,
                                      const float *LMK_NULLABLE entropy,
                                      const lmk_cross_entropy_gradients *gradients,
                                      lmk_cross_entropy_summary *LMK_NULLABLE summary,
                                      void *LMK_NULLABLE workspace, size_t workspace_size,
                                      lmk_error *LMK_NULLABLE error);

/// Losses and gradients in one call: panel mode where the budget holds the panel, else recompute
/// mode.
lmk_status lmk_cross_entropy_forward_backward(const lmk_cross_entropy *problem,
                                              const lmk_cross_entropy_outputs *outputs,
                                              const lmk_cross_entropy_gradients *gradients,
                                              lmk_cross_entropy_summary *LMK_NULLABLE summary,
                                              void *LMK_NULLABLE workspace, size_t workspace_size,
                                              lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
