// The compact WY form of a Householder product: T by block columns.
#include "householder.h"

#include <string.h>

/// Factors of a block: the columns of a panel of T.
#define WY_BLOCK PANEL_VECTORS
#define WY_LOCAL (2 * WY_BLOCK * BLOCK_FACTORS)

typedef struct wy_call {
    const lmk_householder *product;
    const lmk_tile_kernels *tiles;
    const product_kernels *kernels;
    size_t blocks, item;
    float *t;
    size_t t_stride, t_batch_stride;
    /// k as float32, [factors, width], and transposed, panels [dim][32]; <k_i, k_j> for j in or
    /// after the block of i, [factors, padded]; the inverse of each block; T in panels of columns,
    /// [blocks][padded][32].
    float *k, *columns, *gram, *later, *panels;
    size_t width, padded;
    /// Two [32][32] for each worker.
    float *local;
} wy_call;

static unsigned threads_of(const lmk_householder *p) {
    const double n = (double)p->factors, work = (double)p->batch * n * n * ((double)p->dim + n / 3);
    return work < (double)SERIAL_PRODUCTS ? 1 : lmk_thread_count(p->threads);
}

/// Where everything lies; without memory only the floats that it takes.
static size_t lay_out(const lmk_householder *p, wy_call *call, float *memory) {
    const size_t padded = lmk_round_up(p->factors, WY_BLOCK), width = lmk_round_up(p->dim, 16);
    call->blocks = padded / WY_BLOCK;
    call->padded = padded;
    call->width = width;
    const struct {
        float **matrix;
        size_t floats;
    } parts[] = {{&call->k, padded * width},       {&call->columns, padded * p->dim},
                 {&call->gram, padded * padded},   {&call->later, padded * BLOCK_FACTORS},
                 {&call->panels, padded * padded}, {&call->local, threads_of(p) * WY_LOCAL}};
    size_t floats = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (memory) *parts[i].matrix = memory + floats;
        floats += lmk_round_up(parts[i].floats, 16);
    }
    return floats;
}

static size_t workspace_bytes(const lmk_householder *p) {
    if (p->batch == 0 || p->factors == 0) return 0;
    wy_call call;
    return sizeof(float) * lay_out(p, &call, 0) + ALIGNMENT;
}

/// Bytes of the workspace must be countable.
static lmk_status check(const lmk_householder *p, lmk_error *error) {
    const lmk_status status = lmk_householder_check(p, error);
    if (status != LMK_OK) return status;
    const double n = (double)p->factors + WY_BLOCK, dim = (double)p->dim + WY_BLOCK;
    if (2 * n * (dim + n + BLOCK_FACTORS) > MOST_FLOATS) return lmk_fail_overflow(error, "factors");
    return LMK_OK;
}

size_t lmk_householder_wy_workspace_size(const lmk_householder *p) {
    return check(p, 0) == LMK_OK ? workspace_bytes(p) : 0;
}

static size_t count_of(const wy_call *call, size_t block) {
    return lmk_min(WY_BLOCK, call->product->factors - WY_BLOCK * block);
}

/// k of a block, as rows and as columns.
static void widen_block(void *context, size_t block, unsigned worker) {
    (void)worker;
    const wy_call *const call = context;
    const lmk_householder *const p = call->product;
    const size_t first = WY_BLOCK * block, count = count_of(call, block),
                 offset = p->k_batch_stride * call->item + p->k_stride * first;
    char *const k = (char *)(uintptr_t)p->k + lmk_dtype_size(p->dtype) * offset;
    call->kernels->widen[p->dtype](k, p->k_stride, count, p->dim, call->k + call->width * first,
                                   call->width);
    const vector_panel panel = {call->columns + p->dim * first, k, p->k_stride, p->dim, count};
    call->kernels->load_rows[p->dtype](&panel);
}

/// Products of a block's factors with those in and after it, and the block's inverse.
static void multiply_block(void *context, size_t block, unsigned worker) {
    const wy_call *const call = context;
    const lmk_householder *const p = call->product;
    const size_t first = WY_BLOCK * block, count = count_of(call, block);
    const tile_rows k = {call->k + call->width * first, 0, 1, call->width};
    float *const gram = call->gram + call->padded * first;
    for (size_t other = block; other < call->blocks; other++) {
        lmk_householder_multiply(call->tiles, k, count, call->columns + p->dim * WY_BLOCK * other,
                                 PANEL_VECTORS, PANEL_VECTORS, p->dim, gram + WY_BLOCK * other,
                                 call->padded, 0);
    }
    float *const own = call->local + worker * WY_LOCAL;
    for (size_t i = 0; i < count; i++)
        memcpy(own + BLOCK_FACTORS * i, gram + call->padded * i + first, WY_BLOCK * sizeof(float));
    call->kernels->invert(own, householder_beta(p, call->item) + first, count,
                          call->later + BLOCK_FACTORS * first, 0);
}

/// One panel of columns of T, from the diagonal up:
///
///     T_bc = -diag(beta_b) later_b sum_{b < l <= c} gram_bl T_lc
static void solve_columns(void *context, size_t column, unsigned worker) {
    const wy_call *const call = context;
    const lmk_householder *const p = call->product;
    const size_t columns = count_of(call, column);
    const float *const beta = householder_beta(p, call->item);
    float *const panel = call->panels + call->padded * PANEL_VECTORS * column, *const local =
                                                                                   call->local +
                                                                                   worker *
                                                                                       WY_LOCAL;
    for (size_t block = column + 1; block-- > 0;) {
        const size_t first = WY_BLOCK * block, count = count_of(call, block);
        float *const rows = panel + PANEL_VECTORS * first;
        const float *const later = call->later + BLOCK_FACTORS * first;
        // Negated, because scaling multiplies with -beta.
        for (size_t i = 0; block == column && i < count; i++) {
            for (size_t j = 0; j < PANEL_VECTORS; j++) {
                const float x = j < count ? later[BLOCK_FACTORS * i + j] : 0;
                local[PANEL_VECTORS * i + j] = x == 0 ? 0 : -x;
            }
        }
        if (block < column) {
            const size_t next = first + WY_BLOCK, depth = WY_BLOCK * column + columns - next;
            const tile_rows gram = {call->gram + call->padded * first + next, 0, 1, call->padded};
            float *const sums = local + WY_BLOCK * PANEL_VECTORS;
            lmk_householder_multiply(call->tiles, gram, count, panel + PANEL_VECTORS * next,
                                     PANEL_VECTORS, PANEL_VECTORS, depth, sums, PANEL_VECTORS, 0);
            lmk_householder_multiply(call->tiles, (tile_rows){later, 0, 1, BLOCK_FACTORS}, count,
                                     sums, PANEL_VECTORS, PANEL_VECTORS, count, local,
                                     PANEL_VECTORS, 0);
        }
        call->kernels->scale(local, beta + first, count, rows);
    }
}

/// The rows of a block of T to their place.
static void store_block(void *context, size_t block, unsigned worker) {
    (void)worker;
    const wy_call *const call = context;
    for (size_t i = 0; i < count_of(call, block); i++) {
        const size_t row = WY_BLOCK * block + i;
        float *const to = call->t + call->t_batch_stride * call->item + call->t_stride * row;
        for (size_t column = block; column < call->blocks; column++) {
            const float *const from = call->panels + PANEL_VECTORS * (call->padded * column + row);
            memcpy(to + WY_BLOCK * column, from, count_of(call, column) * sizeof(float));
        }
        // In its own block there may be zeros of either sign.
        memset(to, 0, row * sizeof(float));
    }
}

lmk_status lmk_householder_wy(const lmk_householder *p, float *t, size_t t_stride,
                              size_t t_batch_stride, void *workspace, size_t workspace_size,
                              lmk_error *error) {
    lmk_status status = check(p, error);
    const matrix_argument output = {"t",         "t_stride", "t_batch_stride", t,
                                    p->factors,  p->factors, t_stride,         t_batch_stride,
                                    LMK_FLOAT32, 1};
    if (status == LMK_OK) status = lmk_householder_check_matrix(p->batch, &output, error);
    const size_t needed = status == LMK_OK ? workspace_bytes(p) : 0;
    if (status == LMK_OK)
        status = lmk_householder_check_workspace(workspace, workspace_size, needed, error);
    if (status != LMK_OK || needed == 0) return status;
    wy_call call = {.product = p,
                    .tiles = lmk_tile_kernels_for(LMK_FLOAT32),
                    .kernels = lmk_product_kernels(),
                    .t = t,
                    .t_stride = t_stride,
                    .t_batch_stride = t_batch_stride};
    lay_out(p, &call, aligned_floats(workspace));
    const unsigned threads = threads_of(p);
    for (call.item = 0; call.item < p->batch; call.item++) {
        lmk_parallel_for(call.blocks, threads, widen_block, &call);
        lmk_parallel_for(call.blocks, threads, multiply_block, &call);
        lmk_parallel_for(call.blocks, threads, solve_columns, &call);
        lmk_parallel_for(call.blocks, threads, store_block, &call);
    }
    return LMK_OK;
}
