// How calls with Householder products are cut into blocks, panels and slots, and what they share.
//
// Vectors are worked on in panels of 32, [dim][32], whichever side they stand on: x P is the
// transpose of P^T x^T. A panel goes through all blocks of factors before the next ones do.
#ifndef LMK_HOUSEHOLDER_INTERNAL_H
#define LMK_HOUSEHOLDER_INTERNAL_H

#include "kernels/product_tables.h"
#include "lmk_tile.h"

/// Panels that go through a block one after the other, while its factors are in cache.
#define GROUP_PANELS ((size_t)4)

/// Multiply-adds below which a call stays on its thread.
#define SERIAL_PRODUCTS ((size_t)1 << 18)

#define ALIGNMENT ((size_t)64)

/// A workspace has fewer floats: a quarter of what 63 bits can count in bytes, so that rounding up
/// does not overflow.
#define MOST_FLOATS 0x1p58

/// A block's factors as tiles read them.
typedef struct factor_block {
    /// The first factor, and how many.
    size_t first, count;
    /// Dimensions in which any of them is not zero: `dims` from `dim` on.
    size_t dim, dims;
    /// Where those two are kept.
    size_t *extent;
    /// k with factors in lanes, [dims][BLOCK_FACTORS]; in packed panels of dimensions, over
    /// factors.
    float *reads, *writes;
    /// [count][BLOCK_FACTORS]: see product_kernels.invert.
    float *later, *earlier;
} factor_block;

typedef struct householder_plan {
    /// Blocks of factors.
    lmk_parts blocks;
    /// Factors of the largest.
    size_t block;
    size_t panels;
    unsigned threads;
    /// Whether slots are whole items of the batch, each with blocks of its own.
    int over_items;
    /// Floats of one block, and of those of an item.
    size_t block_floats, item_floats;
} householder_plan;

/// What all slots of a call read.
typedef struct householder_call {
    const lmk_householder *product;
    householder_plan plan;
    const lmk_tile_kernels *tiles;
    const product_kernels *kernels;
    /// Which inverses blocks have.
    int has_later, has_earlier;
} householder_call;

householder_plan lmk_householder_plan(const lmk_householder *product, size_t vectors);

householder_call lmk_householder_call(const lmk_householder *product, size_t vectors);

/// Block `j` in an item's memory, where it has been prepared.
factor_block lmk_householder_block(const householder_call *call, size_t j, float *memory);

/// Packs a block of an item and inverts.
void lmk_householder_prepare(const householder_call *call, size_t item, size_t j, float *memory);

/// Rows of a left operand: packed in panels, or `lane_stride` apart with `stride` from step to
/// step.
typedef struct tile_rows {
    const float *data;
    int is_packed;
    size_t stride, lane_stride;
} tile_rows;

/// c (+)= a b of `depth` steps; b has whole vectors of 16 columns.
void lmk_householder_multiply(const lmk_tile_kernels *tiles, tile_rows a, size_t rows,
                              const float *b, size_t b_stride, size_t columns, size_t depth,
                              float *c, size_t c_stride, int accumulate);

/// What one block makes of a panel, rows of 32 for each factor: K x, the inverse times that, and
/// that times -beta.
typedef struct block_rows {
    float *products, *solved, *corrections;
} block_rows;

#define BLOCK_ROWS_FLOATS (3 * BLOCK_FACTORS * PANEL_VECTORS)

static inline block_rows block_rows_at(float *memory) {
    return (block_rows){memory, memory + BLOCK_FACTORS * PANEL_VECTORS,
                        memory + 2 * BLOCK_FACTORS * PANEL_VECTORS};
}

/// Fills `rows` for `width` (16 or 32) vectors of a panel.
void lmk_householder_correct(const householder_call *call, const factor_block *block,
                             const float *beta, int is_transposed, const float *panel, size_t width,
                             const block_rows *rows);

/// panel += K^T corrections
void lmk_householder_add(const householder_call *call, const factor_block *block,
                         const float *corrections, size_t width, float *panel);

/// Vectors of item `item` that are in `panels` panels from `panel` on.
vector_panel lmk_householder_vectors(const lmk_householder_application *a, const void *x,
                                     size_t stride, size_t batch_stride, size_t item, size_t panel,
                                     size_t panels, float *memory);

/// Vectors of a panel whose columns are computed.
static inline size_t panel_width(size_t count) { return count <= PANEL_VECTORS / 2 ? 16 : 32; }

static inline const float *householder_beta(const lmk_householder *p, size_t item) {
    return p->beta + p->beta_batch_stride * item;
}

static inline void load_vectors(const householder_call *call, const vector_panel *v,
                                lmk_householder_side side) {
    const lmk_dtype dtype = call->product->dtype;
    (side == LMK_HOUSEHOLDER_LEFT ? call->kernels->load_columns
                                  : call->kernels->load_rows)[dtype](v);
}

static inline void store_vectors(const householder_call *call, const vector_panel *v,
                                 lmk_householder_side side) {
    const lmk_dtype dtype = call->product->dtype;
    (side == LMK_HOUSEHOLDER_LEFT ? call->kernels->store_columns
                                  : call->kernels->store_rows)[dtype](v);
}

/// Whether the panels of vectors see P^T: on the left what is asked for, on the right the opposite.
static inline int sees_transposed(const lmk_householder_application *a) {
    return (a->is_transposed != 0) != (a->side == LMK_HOUSEHOLDER_RIGHT);
}

/// The block that comes `i`-th: P^T begins with the first, P with the last.
static inline size_t block_order(const householder_plan *plan, int is_transposed, size_t i) {
    return is_transposed ? i : plan->blocks.count - 1 - i;
}

// ---- Validation

/// One operand: a batch of matrices.
typedef struct matrix_argument {
    const char *name, *stride_name, *batch_stride_name;
    const void *data;
    size_t rows, columns, stride, batch_stride;
    lmk_dtype dtype;
    /// Matrices of a batch must not overlap.
    int is_output;
} matrix_argument;

lmk_status lmk_householder_check_matrix(size_t batch, const matrix_argument *matrix,
                                        lmk_error *error);
lmk_status lmk_householder_check(const lmk_householder *product, lmk_error *error);
lmk_status lmk_householder_check_application(const lmk_householder_application *application,
                                             lmk_error *error);
lmk_status lmk_householder_check_workspace(const void *workspace, size_t size, size_t needed,
                                           lmk_error *error);

/// The first float of a workspace at a line.
static inline float *aligned_floats(void *workspace) {
    return (float *)(void *)(((uintptr_t)workspace + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/// A matrix argument of vectors, in the shape of x.
static inline matrix_argument vectors_argument(const lmk_householder_application *a,
                                               const char *name, const char *stride_name,
                                               const char *batch_stride_name, const void *data,
                                               size_t stride, size_t batch_stride, int is_output) {
    const int is_left = a->side == LMK_HOUSEHOLDER_LEFT;
    return (matrix_argument){name,
                             stride_name,
                             batch_stride_name,
                             data,
                             is_left ? a->product.dim : a->vectors,
                             is_left ? a->vectors : a->product.dim,
                             stride,
                             batch_stride,
                             a->product.dtype,
                             is_output};
}

#endif
