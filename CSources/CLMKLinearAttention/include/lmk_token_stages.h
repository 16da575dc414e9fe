// lmk_token_stages.h: the stages around linear attention, with their gradients. An elementwise
// recurrence, a short causal convolution, feature maps of queries and keys, and normalisations.
//
// Tensors are [batch, tokens, channels] or [batch, tokens, heads, columns] by strides, of which the
// first form uses no head's; the last dimension is contiguous, and rows do not overlap. What is
// given a dtype is stored in it, everything else is float32, and so is all arithmetic, with one
// rounding at the end. Outputs must not overlap inputs unless it is said that they may.
//
// Packed sequences, with batch 1: sequence n has the tokens offsets[n] ..< offsets[n + 1], maybe
// none, offsets being [sequences + 1] from 0 to tokens, not descending. Without offsets each of the
// batch is one. N is the number of sequences in either case.
//
// float32 results have the same bits for any number of threads and on AVX2, AVX-512 and NEON.
#ifndef LMK_TOKEN_STAGES_H
#define LMK_TOKEN_STAGES_H

#include "lmk_core.h"
#include "lmk_linear_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

// MARK: Elementwise recurrence

/// h_t = exp(g_t) h_{t-1} + x_t of independent channels: HGRN, RG-LRU, QRNN.
///
/// The log-decay g is at most 0, which is not looked at; -infinity is a reset, a factor of 0. 0
/// times an infinite or NaN state is NaN, so that a reset does not hide one.
///
/// A long sequence of few channels is cut into segments whose number depends on sizes alone. What a
/// segment makes of the state before it is state -> A state + L, with A the product of its decays
/// and L its last h from a state of 0; segments start from those in order. Where a state is
/// infinite A may be 0 by underflow, and the next segment then has NaN where it could be infinite.
typedef struct lmk_elementwise_recurrence {
    /// Storage of x, h and their gradients.
    lmk_dtype dtype;
    size_t batch, tokens, channels;
    /// [batch, tokens, channels]
    const void *LMK_NULLABLE x;
    lmk_token_strides x_strides;
    /// g, [batch, tokens, channels]
    const float *LMK_NULLABLE log_decay;
    lmk_token_strides log_decay_strides;
    const int64_t *LMK_NULLABLE offsets;
    size_t sequences;
    /// h_0, [N, channels]; null: 0.
    const float *LMK_NULLABLE initial_state;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_elementwise_recurrence;

/// Bytes of workspace for forward and backward: 8 for each channel of each segment, 0 where none is
/// cut. 0 when an argument is wrong: the call says which.
size_t lmk_elementwise_recurrence_workspace_size(const lmk_elementwise_recurrence *recurrence);

/// h [batch, tokens, channels]; may be x itself, with the same strides. `final_state` [N,
/// channels], if given, receives the h after the last token before it is rounded to its storage,
/// h_0 for a sequence without tokens; may be initial_state itself.
///
/// Cost: a read of x and g and a write of h. Where segments go to different threads, x and g are
/// read twice.
lmk_status lmk_elementwise_recurrence_forward(const lmk_elementwise_recurrence *recurrence,
                                              void *LMK_NULLABLE h, lmk_token_strides h_strides,
                                              float *LMK_NULLABLE final_state,
                                              void *LMK_NULLABLE workspace, size_t workspace_size,
                                              lmk_error *LMK_NULLABLE error);

/// Gradients of  <dh, h> + <dfinal_state, final state>; what is null is not computed.
typedef struct lmk_elementwise_recurrence_gradients {
    /// What forward returned, for dlog_decay.
    const void *LMK_NULLABLE h;
    lmk_token_strides h_strides;
    const void *LMK_NULLABLE dh;
    lmk_token_strides dh_strides;
    /// [N, channels]; null: 0.
    const float *LMK_NULLABLE dfinal_state;
    /// May be dh itself, with the same strides.
    void *LMK_NULLABLE dx;
    lmk_token_strides dx_strides;
    float *LMK_NULLABLE dlog_decay;
    lmk_token_strides dlog_decay_strides;
    /// [N, channels]; may be dfinal_state itself.
    float *LMK_NULLABLE dinitial_state;
} lmk_elementwise_recurrence_gradients;

/// From the last token to the first, x not used, with e_T the gradient of the final state:
///
///     dx_t = dh_t + e_t        e_{t-1} = exp(g_t) dx_t        dg_t = e_{t-1} h_{t-1}
///
/// The gradient of h_0 is e_0.
lmk_status
lmk_elementwise_recurrence_backward(const lmk_elementwise_recurrence *recurrence,
                                    const lmk_elementwise_recurrence_gradients *gradients,
                                    void *LMK_NULLABLE workspace, size_t workspace_size,
                                    lmk_error *LMK_NULLABLE error);

// MARK: Short convolution

/// Causal convolution of each channel by itself. With the inputs before the first token in a state
/// of width - 1 of them, the oldest first:
///
///     z_td = b_d + sum_j w_dj x_{t-width+1+j, d},  j = 0 ..< width        y = z, or z sigmoid(z)
///
/// w_d,width-1 multiplies the current token. Sums go from b_d up in j.
typedef struct lmk_short_convolution {
    /// Storage of x, y and their gradients.
    lmk_dtype dtype;
    size_t batch, tokens, channels;
    /// 2...8
    size_t width;
    /// [batch, tokens, channels]
    const void *LMK_NULLABLE x;
    lmk_token_strides x_strides;
    /// w [channels, width], dense.
    const float *LMK_NULLABLE weight;
    /// b [channels]; null: 0.
    const float *LMK_NULLABLE bias;
    /// Nonzero: y = z sigmoid(z).
    int has_silu;
    const int64_t *LMK_NULLABLE offsets;
    size_t sequences;
    /// The inputs before each sequence, [N, width - 1, channels]; null: 0.
    const float *LMK_NULLABLE initial_state;
    unsigned threads;
} lmk_short_convolution;

/// y [batch, tokens, channels]. `final_state` [N, width - 1, channels], if given, receives the last
/// inputs of each sequence, which reach back into the initial state where it is shorter; may be
/// initial_state itself.
///
/// Cost: a read of x and a write of y.
lmk_status lmk_short_convolution_forward(const lmk_short_convolution *convolution,
                                         void *LMK_NULLABLE y, lmk_token_strides y_strides,
                                         float *LMK_NULLABLE final_state,
                                         lmk_error *LMK_NULLABLE error);

/// Gradients of  <dy, y> + <dfinal_state, final state>; what is null is not computed.
typedef struct lmk_short_convolution_gradients {
    const void *LMK_NULLABLE dy;
    lmk_token_strides dy_strides;
    /// [N, width - 1, channels]; null: 0.
    const float *LMK_NULLABLE dfinal_state;
    void *LMK_NULLABLE dx;
    lmk_token_strides dx_strides;
    /// [channels, width]
    float *LMK_NULLABLE dweight;
    /// [channels]
    float *LMK_NULLABLE dbias;
    /// [N, width - 1, channels]; must not be dfinal_state.
    float *LMK_NULLABLE dinitial_state;
} lmk_short_convolution_gradients;

/// Bytes of workspace for backward: 4 (width + 1) for each channel of at most 64 blocks of tokens.
size_t lmk_short_convolution_backward_workspace_size(const lmk_short_convolution *convolution);

/// With dz = dy, or dy silu'(z), z computed again:
///
///     db_d = sum_t dz_td        dw_dj = sum_t dz_td x_{t-width+1+j, d}
///     dx_{t-width+1+j, d} += w_dj dz_td        and dfinal_state, for inputs in the final state
///
/// Sums over tokens are taken in blocks, which are added in order.
lmk_status lmk_short_convolution_backward(const lmk_short_convolution *convolution,
                                          const lmk_short_convolution_gradients *gradients,
                                          void *LMK_NULLABLE workspace, size_t workspace_size,
                                          lmk_error *LMK_NULLABLE error);

// MARK: Normalisation

/// Rows [batch, tokens, heads, columns] that are divided by their length or root mean square.
/// Squares and their sum are float32: entries above 1e19 make it infinite and the row 0, and what
/// is below 1e-19 counts as 0. NaN makes its row NaN, an infinity is NaN in its place among zeros.
typedef struct lmk_row_norm {
    /// Storage of x, gate, y and their gradients.
    lmk_dtype dtype;
    size_t batch, tokens, heads, columns;
    const void *LMK_NULLABLE x;
    lmk_token_strides x_strides;
    /// At least 0.
    float epsilon;
    unsigned threads;
} lmk_row_norm;

/// y_j = r x_j, r = 1 / sqrt(sum_j x_j^2 + epsilon). A row of zeros stays zero, and is NaN with an
/// epsilon of 0. y may be x itself, with the same strides.
lmk_status lmk_l2_normalize_forward(const lmk_row_norm *norm, void *LMK_NULLABLE y,
                                    lmk_token_strides y_strides, lmk_error *LMK_NULLABLE error);

/// dx_j = r (dy_j - r^2 x_j sum_i x_i dy_i). dx may be dy itself, with the same strides.
lmk_status lmk_l2_normalize_backward(const lmk_row_norm *norm, const void *LMK_NULLABLE dy,
                                     lmk_token_strides dy_strides, void *LMK_NULLABLE dx,
                                     lmk_token_strides dx_strides, lmk_error *LMK_NULLABLE error);

/// What the output stage has beside x.
typedef struct lmk_norm_gate {
    /// [batch, tokens, heads, columns]
    const void *LMK_NULLABLE gate;
    lmk_token_strides gate_strides;
    /// w [columns]
    const float *LMK_NULLABLE weight;
} lmk_norm_gate;

/// y_j = r x_j w_j gate_j sigmoid(gate_j), r = 1 / sqrt(mean_j x_j^2 + epsilon), columns at least
/// 1. y may be x or the gate itself, with the same strides.
lmk_status lmk_gated_rms_norm_forward(const lmk_row_norm *norm, const lmk_norm_gate *gate,
                                      void *LMK_NULLABLE y, lmk_token_strides y_strides,
                                      lmk_error *LMK_NULLABLE error);

/// What is null is not computed.
typedef struct lmk_gated_rms_norm_gradients {
    const void *LMK_NULLABLE dy;
    lmk_token_strides dy_strides;
    void *LMK_NULLABLE dx;
    lmk_token_strides dx_strides;
    void *LMK_NULLABLE dgate;
    lmk_token_strides dgate_strides;
    /// [columns]
    float *LMK_NULLABLE dweight;
} lmk_gated_rms_norm_gradients;

/// Bytes of workspace for backward: 4 for each column of at most 64 blocks of rows.
size_t lmk_gated_rms_norm_backward_workspace_size(const lmk_row_norm *norm);

/// With t_j = dy_j w_j silu(gate_j):
///
///     dx_j = r (t_j - r^2 x_j (sum_i x_i t_i) / columns)
///     dgate_j = dy_j r x_j w_j silu'(gate_j)        dw_j = sum of dy_j r x_j silu(gate_j)
///
/// The sum over rows is taken in blocks, which are added in order.
lmk_status lmk_gated_rms_norm_backward(const lmk_row_norm *norm, const lmk_norm_gate *gate,
                                       const lmk_gated_rms_norm_gradients *gradients,
                                       void *LMK_NULLABLE workspace, size_t workspace_size,
                                       lmk_error *LMK_NULLABLE error);

// MARK: Feature maps

/// phi, of rows x of K columns.
typedef enum LMK_CLOSED_ENUM lmk_features {
    /// x
    LMK_FEATURES_IDENTITY = 0,
    /// x + 1 where x > 0, exp(x) elsewhere.
    LMK_FEATURES_ELU_PLUS_ONE = 1,
    /// max(x, 0), with derivative 0 at 0.
    LMK_FEATURES_RELU = 2,
    /// max(x, 0)^2
    LMK_FEATURES_SQUARED_RELU = 3,
    /// exp(x_j) / sum_i exp(x_i). NaN and +infinity make their row NaN, and so does a row of
    /// -infinity.
    LMK_FEATURES_SOFTMAX = 4,
    /// [exp(x), exp(-x)]: Hedgehog.
    LMK_FEATURES_EXP_PAIR = 5,
    /// [softmax(x), softmax(-x)]
    LMK_FEATURES_SOFTMAX_PAIR = 6,
    /// [1, a, (a a^T) / sqrt(2)] with a = x K^-1/4, row by row: Based.
    LMK_FEATURES_TAYLOR = 7,
    /// |r| r^p / |r^p| with r = max(x, 0) + epsilon, 0 where r is: FLatten. NaN and +infinity make
    /// their row NaN.
    LMK_FEATURES_FOCUSED = 8,
    /// [r cos a, r sin a] with r = max(x, 0), a = pi position / (2 length): cosFormer.
    LMK_FEATURES_COSINE = 9,
} lmk_features;

typedef struct lmk_feature_map {
    lmk_features features;
    /// Storage of x, phi and their gradients.
    lmk_dtype dtype;
    /// columns is K, at least 1; below 2^31 for the Taylor map.
    size_t batch, tokens, heads, columns;
    /// [batch, tokens, heads, columns]
    const void *LMK_NULLABLE x;
    lmk_token_strides x_strides;
    /// p, finite and at least 1, of the focused map. An integer up to 16 is computed by products.
    float power;
    /// Finite and at least 0, of the focused map.
    float epsilon;
    /// [batch, tokens], in 0...length, of the cosine map.
    const int64_t *LMK_NULLABLE positions;
    /// At least 1.
    int64_t length;
    unsigned threads;
} lmk_feature_map;

/// Features of a row: K, 2K for the pairs and the cosine map, 1 + K + K^2 for the Taylor map.
size_t lmk_feature_count(lmk_features features, size_t columns);

/// phi [batch, tokens, heads, features].
lmk_status lmk_feature_map_forward(const lmk_feature_map *map, void *LMK_NULLABLE phi,
                                   lmk_token_strides phi_strides, lmk_error *LMK_NULLABLE error);

/// dx [batch, tokens, heads, columns], of  <dphi, phi>. Everything is computed from x again.
lmk_status lmk_feature_map_backward(const lmk_feature_map *map, const void *LMK_NULLABLE dphi,
                                    lmk_token_strides dphi_strides, void *LMK_NULLABLE dx,
                                    lmk_token_strides dx_strides, lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
