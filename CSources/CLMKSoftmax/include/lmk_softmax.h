// lmk_softmax.h: functions of rows that add up to one, their logarithms and gradients; the largest
// entries of a row; an accumulator for rows that arrive in blocks.
//
// With u_j = scale x_j + mask_j over the entries j of a row that take part:
//
//     m = max_j u_j            S = sum_j exp(u_j - m)          log_sum_exp = m + log S
//     softmax_j = exp(u_j - m) / S                             log_softmax_j = (u_j - m) - log S
//     s(u) = u + 1 for u >= 0, 1 / (1 - u) below               stable_max_j = s(u_j) / sum_k s(u_k)
//
// Entries that a length or causality leaves out have probability 0 and log-probability -infinity,
// their gradient is 0, and what x holds there is never read; a row with no entry left is all of
// that. An entry of -infinity has probability 0; a row of nothing else gives NaN, and its
// log_sum_exp is -infinity. NaN and +infinity give NaN in the whole row; for the stable functions
// NaN does, and +infinity gives NaN in its own place.
//
// float32 results have the same bits for any number of threads and on AVX2, AVX-512 and NEON. Rows
// are reduced in slices of LMK_SOFTMAX_SLICE columns, which are combined in order.
#ifndef LMK_SOFTMAX_H
#define LMK_SOFTMAX_H

#include "lmk_core.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

#define LMK_SOFTMAX_SLICE ((size_t)16384)

/// What is made of a row.
typedef enum LMK_CLOSED_ENUM lmk_row_function {
    LMK_SOFTMAX = 0,
    LMK_LOG_SOFTMAX = 1,
    /// y has one float32 for each row.
    LMK_LOG_SUM_EXP = 2,
    /// StableMax: Prieto et al., "Grokking at the Edge of Numerical Stability", 2025.
    LMK_STABLE_MAX = 3,
    LMK_LOG_STABLE_MAX = 4,
} lmk_row_function;

/// How m and S are found; the results agree to rounding. The stable functions have no m and one
/// way.
typedef enum LMK_CLOSED_ENUM lmk_softmax_algorithm {
    /// By the number of columns, the storage type and the function; CONTRIBUTING.md has the
    /// figures.
    LMK_SOFTMAX_AUTOMATIC = 0,
    /// Largest entry, then the sum, then the result. The sum stores the exponentials of a softmax
    /// where a cache may hold them, and the third pass scales them; otherwise it computes them
    /// again, to the same bits.
    LMK_SOFTMAX_THREE_PASS = 1,
    /// One pass keeps m and S in each lane and scales S when m grows, a second writes: Milakov and
    /// Gimelshein, "Online normalizer calculation for softmax", 2018.
    LMK_SOFTMAX_ONLINE = 2,
    /// One pass adds exponentials as pairs of a mantissa and an exponent, which needs no largest
    /// entry, a second writes: Dukhan and Ablavatski, "The Two-Pass Softmax Algorithm", 2020. Rows
    /// whose largest entry is beyond +-2^20 are left to the online algorithm, without fused
    /// multiply-add those beyond +-2^7.
    LMK_SOFTMAX_TWO_PASS = 3,
} lmk_softmax_algorithm;

/// Rows, and which of their entries take part.
typedef struct lmk_softmax {
    lmk_row_function function;
    lmk_softmax_algorithm algorithm;
    /// Storage of x, y and their gradients.
    lmk_dtype dtype;
    size_t rows, columns;
    /// [rows, columns]
    const void *LMK_NULLABLE x;
    size_t x_stride;
    /// Finite: 1 / temperature.
    float scale;
    /// [rows], in 0...columns: entries from lengths[r] on are left out. Null: none are.
    const int64_t *LMK_NULLABLE lengths;
    /// Nonzero: the row at position t of its sequence keeps entries j <= t + causal_offset. The
    /// position of row r is r modulo rows_per_sequence (0: r).
    int is_causal;
    int64_t causal_offset;
    size_t rows_per_sequence;
    /// Added to scale x: [mask_rows, columns], row r uses row r modulo mask_rows. Or null.
    const float *LMK_NULLABLE mask;
    size_t mask_stride, mask_rows;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_softmax;

/// Bytes of workspace for forward and backward: 20 for each slice of rows that are cut; 256 KB at
/// most for each thread where three passes keep exponentials beside a row, which they do with
/// two-byte storage and where no cache holds the output; rounded up to whole lines, and 64 more. 0
/// where none is needed, and when function, algorithm or storage type is wrong: the call says
/// which.
size_t lmk_softmax_workspace_size(const lmk_softmax *softmax);

/// y [rows, columns], or [rows] for log_sum_exp. y may be x itself, with the same stride; otherwise
/// they must not overlap. `log_sum_exp`, if given, receives the [rows] of softmax and log_softmax.
///
/// softmax and log_softmax need columns > 0; log_sum_exp of nothing is -infinity.
///
/// Error of float32 softmax, three-pass and online: against the float32 differences u - m, 4.1 ulp
/// where u - m >= -10, 5.2 where >= -40; against the exact function, 36 ulp at -40, most of it the
/// rounding of u - m. log_softmax 1.5 ulp, log_sum_exp 1.5 ulp; CONTRIBUTING.md. Cost: a read and a
/// write of a row that fits a cache, two reads and a write of one that does not.
lmk_status lmk_softmax_forward(const lmk_softmax *softmax, void *LMK_NULLABLE y, size_t y_stride,
                               float *LMK_NULLABLE log_sum_exp, void *LMK_NULLABLE workspace,
                               size_t workspace_size, lmk_error *LMK_NULLABLE error);

/// The gradients of a function's input, from that of its output.
typedef struct lmk_softmax_gradients {
    /// What forward returned, for softmax and log_softmax; the others compute from x.
    const void *LMK_NULLABLE y;
    size_t y_stride;
    /// [rows, columns]; [rows] of float32 for log_sum_exp.
    const void *LMK_NULLABLE dy;
    size_t dy_stride;
    /// [rows, columns]; may be dy itself, or y, or x, with the same stride. Null: not computed.
    void *LMK_NULLABLE dx;
    size_t dx_stride;
    /// [rows]: the gradient of scale from each row. Null: not computed, and softmax and log_softmax
    /// do not need x.
    float *LMK_NULLABLE dscale;
} lmk_softmax_gradients;

/// With p = softmax, q_j = 1 / (1 + |u_j|):
///
///     softmax          du_j = y_j (dy_j - sum_k y_k dy_k)
///     log_softmax      du_j = dy_j - p_j sum_k dy_k
///     log_sum_exp      du_j = p_j dy
///     stable_max       du_j = q_j y_j (dy_j - sum_k y_k dy_k)
///     log_stable_max   du_j = q_j (dy_j - stable_max_j sum_k dy_k)
///     dx_j = scale du_j          dscale = sum_j x_j du_j
///
/// The gradient of the mask is du. An entry of u = -infinity adds nothing to dscale. Cost: two
/// reads of y and dy (the second from cache where the row fits) and a write.
lmk_status lmk_softmax_backward(const lmk_softmax *softmax, const lmk_softmax_gradients *gradients,
                                void *LMK_NULLABLE workspace, size_t workspace_size,
                                lmk_error *LMK_NULLABLE error);

// MARK: The largest entries

/// The `count` largest entries of each row, largest first, the lowest index first among equal ones,
/// with softmax over them: the gates of a mixture of experts.
typedef struct lmk_top_k {
    lmk_dtype dtype;
    /// 1 <= count <= columns; columns below 2^31.
    size_t rows, columns, count;
    const void *LMK_NULLABLE x;
    size_t x_stride;
    /// Finite; a factor of x in the softmax, not in the choice.
    float scale;
    unsigned threads;
} lmk_top_k;

/// indices [rows, count] and gates [rows, count] = softmax of scale x over them, in x's storage,
/// both dense. NaN counts as larger than any number; the gates of its row are NaN. -0 and 0 are
/// equal. Reads x once.
lmk_status lmk_top_k_forward(const lmk_top_k *top_k, int32_t *LMK_NULLABLE indices,
                             void *LMK_NULLABLE gates, lmk_error *LMK_NULLABLE error);

/// dx [rows, columns]: scale gates_i (dgates_i - sum_k gates_k dgates_k) at indices_i, 0 elsewhere.
/// dscale [rows], if given, needs x. indices and gates are what forward returned, an index outside
/// the row is an error.
lmk_status lmk_top_k_backward(const lmk_top_k *top_k, const int32_t *LMK_NULLABLE indices,
                              const void *LMK_NULLABLE gates, const void *LMK_NULLABLE dgates,
                              void *LMK_NULLABLE dx, size_t dx_stride, float *LMK_NULLABLE dscale,
                              lmk_error *LMK_NULLABLE error);

// MARK: Integers

/// Shiftmax: Li and Gu, "I-ViT: Integer-only Quantization for Efficient Vision Transformer
/// Inference", 2023. x stands for x / inverse_scale; y for y / 2^(output_bits - 1).
typedef struct lmk_shift_max {
    size_t rows, columns;
    const int32_t *LMK_NULLABLE x;
    size_t x_stride;
    /// 1 <= inverse_scale < 2^24: the nearest integer to 1 / scale.
    int32_t inverse_scale;
    /// 2...16
    unsigned output_bits;
    /// M, 31...62. The paper has 31, which loses more of a row the closer its sum comes to 2^31;
    /// past that, 62 is taken.
    unsigned dividend_bits;
    unsigned threads;
} lmk_shift_max;

/// Integer arithmetic throughout, with >> an arithmetic shift, I0 = inverse_scale and d = x - max:
///
///     p = d + (d >> 1) - (d >> 4)         about d log2 e
///     q = -p div I0, r = -p mod I0        e^(d / I0) is about 2^(-q - r / I0)
///     e = ((-r >> 1) + I0) << 15 >> q     2^(-f) is about 1 - f / 2
///     y = (2^M div sum e) e >> (M + 1 - output_bits)
///
/// y may be x itself, with the same stride.
lmk_status lmk_shift_max_run(const lmk_shift_max *shift_max, int32_t *LMK_NULLABLE y,
                             size_t y_stride, lmk_error *LMK_NULLABLE error);

// MARK: Rows that arrive in blocks

/// For each row the largest score so far, the sum of exp(score - max), and the sum of
/// exp(score - max) values. A fresh one is made by `lmk_accumulator_clear`.
typedef struct lmk_accumulator {
    size_t rows, width;
    /// [rows]
    float *LMK_NULLABLE max;
    /// [rows]
    float *LMK_NULLABLE sum;
    /// [rows, width], or null if width is 0.
    float *LMK_NULLABLE values;
} lmk_accumulator;

lmk_status lmk_accumulator_clear(const lmk_accumulator *accumulator, lmk_error *LMK_NULLABLE error);

/// A block of scores with their values.
typedef struct lmk_accumulator_block {
    lmk_dtype dtype;
    /// Scores for each row.
    size_t count;
    /// [rows, count]
    const void *LMK_NULLABLE scores;
    size_t scores_stride;
    /// [count, width], shared by the rows.
    const void *LMK_NULLABLE values;
    size_t values_stride;
    float scale;
    unsigned threads;
} lmk_accumulator_block;

size_t lmk_accumulator_workspace_size(const lmk_accumulator *accumulator,
                                      const lmk_accumulator_block *block);

/// Takes in a block: 2 rows count width operations by the tile product.
lmk_status lmk_accumulator_push(const lmk_accumulator *accumulator,
                                const lmk_accumulator_block *block, void *LMK_NULLABLE workspace,
                                size_t workspace_size, lmk_error *LMK_NULLABLE error);

/// Takes in what `other`, of the same rows and width, holds.
lmk_status lmk_accumulator_merge(const lmk_accumulator *accumulator, const lmk_accumulator *other,
                                 lmk_error *LMK_NULLABLE error);

/// log_sum_exp [rows] and output [rows, width] = sum_j softmax_j values_j; either may be null. A
/// row that received no score above -infinity has log_sum_exp -infinity and output 0.
lmk_status lmk_accumulator_finish(const lmk_accumulator *accumulator,
                                  float *LMK_NULLABLE log_sum_exp, float *LMK_NULLABLE output,
                                  size_t output_stride, lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
