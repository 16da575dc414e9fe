// What the entry points and the kernels of Householder products share: panels of vectors, and the
// table of each instruction set. Products of matrices are the core's tiles.
#ifndef LMK_PRODUCT_TABLES_H
#define LMK_PRODUCT_TABLES_H

#include "lmk_check.h"
#include "lmk_householder.h"

/// Vectors of a panel: the columns of the widest tile.
#define PANEL_VECTORS ((size_t)32)

/// Most factors of a block, and from row to row of matrices of a block.
#define BLOCK_FACTORS ((size_t)32)

/// Vectors from a matrix in memory and back, `count` of them in panels of 32, one after the other;
/// those that are not there are 0.
typedef struct vector_panel {
    /// [dim, 32] each.
    float *panel;
    /// The first element of the first vector.
    void *data;
    size_t stride, dim, count;
} vector_panel;

/// Indices are storage types.
typedef struct product_kernels {
    /// Vectors are columns of the matrix, or rows.
    void (*load_columns[3])(const vector_panel *panel);
    void (*store_columns[3])(const vector_panel *panel);
    void (*load_rows[3])(const vector_panel *panel);
    void (*store_rows[3])(const vector_panel *panel);
    /// Rows of `columns` entries, [rows, columns], widened to rows of `to_stride`, which is a
    /// multiple of 16; what is past the columns is 0. And back.
    void (*widen[3])(const void *from, size_t stride, size_t rows, size_t columns, float *to,
                     size_t to_stride);
    void (*narrow[3])(const float *from, size_t from_stride, size_t rows, size_t columns, void *to,
                      size_t stride);
    /// The inverses of I + triu(gram) diag(beta), `later`, and of I + diag(beta) triu(gram),
    /// `earlier`, with triu strictly above the diagonal: T = diag(beta) later = earlier diag(beta).
    /// Matrices [count][BLOCK_FACTORS]; either may be null. Zero below the diagonal and beyond
    /// `count`.
    void (*invert)(const float *gram, const float *beta, size_t count, float *later,
                   float *earlier);
    /// to[i][] = -beta[i] x[i][], rows of 32.
    void (*scale)(const float *x, const float *beta, size_t count, float *to);
    /// x [count][32] to [32][BLOCK_FACTORS], 0 from `count` on up to a multiple of 16.
    void (*transpose)(const float *x, size_t count, float *to);
    /// sums[i][] += x[i][] y[i][], in 16 lanes.
    void (*dot)(const float *x, const float *y, size_t count, float *sums);
    /// to[i] = -sum of sums[i][], in 16 lanes.
    void (*total)(const float *sums, size_t count, float *to);
    /// to += from
    void (*add)(const float *from, float *to, size_t count);
    /// [rows][BLOCK_FACTORS] to [columns][to_stride], columns <= BLOCK_FACTORS.
    void (*turn)(const float *from, size_t rows, size_t columns, float *to, size_t to_stride);
    /// Both triangles of a matrix [count][BLOCK_FACTORS] from what is above its diagonal, or below;
    /// the diagonal is 0.
    void (*mirror)(const float *from, size_t count, int is_lower, float *to);
} product_kernels;

extern const product_kernels product_kernels_generic;
#if defined(__x86_64__)
extern const product_kernels product_kernels_avx2;
extern const product_kernels product_kernels_avx512;
#elif defined(__aarch64__)
extern const product_kernels product_kernels_neon;
#endif

const product_kernels *lmk_product_kernels(void);

#endif
