// What the entry points and the kernels of softmax share: how a row is computed in passes, and the
// table of each instruction set.
#ifndef LMK_SOFTMAX_TABLES_H
#define LMK_SOFTMAX_TABLES_H

#include "lmk_check.h"
#include "lmk_softmax.h"

/// Passes that reduce a slice of a row to a few numbers.
typedef enum reduction {
    REDUCE_MAX,
    /// The sum of exp(u - max), given max; the second stores the exponentials.
    REDUCE_SUM,
    REDUCE_SUM_STORE,
    /// Both at once.
    REDUCE_ONLINE,
    REDUCE_PAIRS,
    /// The sum of s(u); the second stores s(u).
    REDUCE_STABLE_SUM,
    REDUCE_STABLE_STORE,
    /// For gradients: the sums of y dy, of dy; of s(u) and s(u) dy, of s(u) and dy.
    REDUCE_DOT,
    REDUCE_GRADIENT,
    REDUCE_STABLE_DOT,
    REDUCE_STABLE_GRADIENT,
    REDUCTIONS,
} reduction;

/// Passes that write a slice of a row, given what its reductions found.
typedef enum writing {
    WRITE_SOFTMAX,
    WRITE_LOG_SOFTMAX,
    /// Scales what was stored.
    WRITE_SCALED,
    WRITE_STABLE_MAX,
    WRITE_LOG_STABLE_MAX,
    WRITE_SOFTMAX_GRADIENT,
    WRITE_LOG_SOFTMAX_GRADIENT,
    WRITE_LOG_SUM_EXP_GRADIENT,
    WRITE_STABLE_MAX_GRADIENT,
    WRITE_LOG_STABLE_MAX_GRADIENT,
    WRITINGS,
} writing;

/// What the reductions found of a row, or of a slice of it.
typedef struct row_state {
    /// The largest u, or any number near it that exp(u - max) was taken with.
    float max;
    /// The smallest u, where the largest was looked for.
    float min;
    /// Of exponentials, or of s(u).
    float sum;
    /// Of y dy or dy.
    float gradient;
} row_state;

/// One call: forward has y, backward has dy and dx.
typedef struct softmax_job {
    const lmk_softmax *softmax;
    void *y;
    size_t y_stride;
    const void *dy;
    size_t dy_stride;
    void *dx;
    size_t dx_stride;
    /// Whether the gradient of scale is asked for.
    int has_scale_gradient;
    /// Write past the caches.
    int is_streaming;
    /// Not zero: the second pass over a row, which finds it in a cache, fetches the row so many
    /// later. Zero: each pass fetches what it reads next.
    size_t later_rows;
} softmax_job;

/// Where passes store exponentials or s(u), in float32: y itself or memory in cache. The first row
/// of a call's.
typedef struct row_store {
    float *data;
    size_t stride;
} row_store;

/// Slices begin..<end of `rows` rows from `row` on; `states` and `results` have an entry for each.
typedef void (*reduce_function)(const softmax_job *job, size_t row, size_t rows, size_t begin,
                                size_t end, const row_state *states, row_store store,
                                row_state *results);

/// `scale_sums`, if the gradient of scale is asked for, receives sum_j x_j du_j.
typedef void (*write_function)(const softmax_job *job, size_t row, size_t rows, size_t begin,
                               size_t end, const row_state *states, row_store store,
                               float *scale_sums);

/// Indices: whether u differs from x; the storage type.
typedef struct softmax_kernels {
    reduce_function reduce[REDUCTIONS][2][3];
    write_function write[WRITINGS][2][3];
    /// Takes the next slice of each row into what those before it gave.
    void (*combine)(reduction kind, row_state *to, const row_state *from, size_t rows);
    void (*log_sum_exp)(const row_state *states, float *log_sum_exp, size_t rows);
    void (*top_k)(const lmk_top_k *top_k, size_t row, size_t rows, int32_t *indices, void *gates);
    void (*top_k_gradient)(const lmk_top_k *top_k, size_t row, size_t rows, const int32_t *indices,
                           const void *gates, const void *dgates, void *dx, size_t dx_stride,
                           float *dscale);
    void (*shift_max)(const lmk_shift_max *shift_max, size_t row, size_t rows, int32_t *y,
                      size_t y_stride);
    /// Takes scores into max and sum, scales values to the new max, and leaves exp(score - max) in
    /// `weights`, [rows, count].
    void (*accumulate)(const lmk_accumulator *accumulator, const lmk_accumulator_block *block,
                       size_t row, size_t rows, float *weights);
    void (*merge)(const lmk_accumulator *accumulator, const lmk_accumulator *other, size_t row,
                  size_t rows);
    void (*finish)(const lmk_accumulator *accumulator, float *log_sum_exp, float *output,
                   size_t output_stride, size_t row, size_t rows);
} softmax_kernels;

extern const softmax_kernels softmax_kernels_generic;
#if defined(__x86_64__)
extern const softmax_kernels softmax_kernels_avx2;
extern const softmax_kernels softmax_kernels_avx512;
#elif defined(__aarch64__)
extern const softmax_kernels softmax_kernels_neon;
#endif

const softmax_kernels *lmk_softmax_kernels(void);

/// Entries of row `row` that take part: those before this column.
static inline size_t softmax_row_count(const lmk_softmax *s, size_t row) {
    int64_t count = (int64_t)s->columns;
    if (s->lengths && s->lengths[row] < count) count = s->lengths[row];
    if (s->is_causal) {
        const size_t position = s->rows_per_sequence ? row % s->rows_per_sequence : row;
        // Offsets are checked to be far from overflow.
        const int64_t visible = (int64_t)position + s->causal_offset + 1;
        if (visible < count) count = visible;
    }
    return count > 0 ? (size_t)count : 0;
}

#endif
