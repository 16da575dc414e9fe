// Householder products: validation, blocks of factors, and what one block does to a panel.
#include "householder.h"

#include <string.h>

const product_kernels *lmk_product_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &product_kernels_avx512;
    case LMK_ISA_AVX2: return &product_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &product_kernels_neon;
#endif
    default: return &product_kernels_generic;
    }
}

// ---- Validation

lmk_status lmk_householder_check_matrix(size_t batch, const matrix_argument *m, lmk_error *error) {
    if (batch == 0 || m->rows == 0 || m->columns == 0) return LMK_OK;
    const size_t size = lmk_dtype_size(m->dtype);
    if (m->rows > 1 && m->stride < m->columns)
        return lmk_fail_size(error, m->stride_name, m->columns, m->stride);
    if (!lmk_size_fits(m->rows - 1, m->stride, m->columns, size))
        return lmk_fail_overflow(error, m->name);
    const size_t extent = (m->rows - 1) * m->stride + m->columns;
    if (!lmk_size_fits(batch - 1, m->batch_stride, extent, size))
        return lmk_fail_overflow(error, m->name);
    if (m->is_output && batch > 1 && m->batch_stride < extent)
        return lmk_fail_size(error, m->batch_stride_name, extent, m->batch_stride);
    if (!m->data) return lmk_fail_null(error, m->name);
    return LMK_OK;
}

lmk_status lmk_householder_check(const lmk_householder *p, lmk_error *error) {
    if ((unsigned)p->dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", p->dtype);
    const matrix_argument k = {"k",    "k_stride",  "k_batch_stride",  p->k,     p->factors,
                               p->dim, p->k_stride, p->k_batch_stride, p->dtype, 0};
    const lmk_status status = lmk_householder_check_matrix(p->batch, &k, error);
    if (status != LMK_OK) return status;
    const matrix_argument beta = {.name = "beta",
                                  .data = p->beta,
                                  .rows = 1,
                                  .columns = p->factors,
                                  .batch_stride = p->beta_batch_stride};
    return lmk_householder_check_matrix(p->batch, &beta, error);
}

lmk_status lmk_householder_check_application(const lmk_householder_application *a,
                                             lmk_error *error) {
    if ((unsigned)a->side > LMK_HOUSEHOLDER_RIGHT)
        return lmk_fail_range(error, "side", "left or right", a->side);
    const lmk_status status = lmk_householder_check(&a->product, error);
    if (status != LMK_OK) return status;
    const matrix_argument x = vectors_argument(a, "x", "x_stride", "x_batch_stride", a->x,
                                               a->x_stride, a->x_batch_stride, 0);
    const lmk_status of_x = lmk_householder_check_matrix(a->product.batch, &x, error);
    if (of_x != LMK_OK) return of_x;
    // Bytes of either workspace must be countable: both are below this many floats.
    const double dim = (double)a->product.dim + 2 * BLOCK_FACTORS,
                 factors = (double)a->product.factors + 2 * BLOCK_FACTORS,
                 threads = lmk_thread_count(a->product.threads);
    if (256 * threads * dim * factors > MOST_FLOATS) return lmk_fail_overflow(error, "factors");
    return LMK_OK;
}

lmk_status lmk_householder_check_workspace(const void *workspace, size_t size, size_t needed,
                                           lmk_error *error) {
    if (size < needed) return lmk_fail_size(error, "workspace", needed, size);
    if (needed > 0 && !workspace) return lmk_fail_null(error, "workspace");
    return LMK_OK;
}

// ---- The plan

/// Factors of a block at most, by dimensions: CONTRIBUTING.md has the figures.
static size_t block_of(size_t dim) { return dim <= 64 ? 16 : 32; }

/// Floats of packed panels of `lanes` lanes for each step, over all instruction sets: a panel is 4
/// lanes for 3 rows, 8 for 6 or 16 for 14.
static size_t padded_lanes(size_t lanes) { return lanes + lanes / 3 + LMK_PANEL_MAX; }

static size_t writes_floats(size_t block, size_t dim) {
    return lmk_round_up(padded_lanes(dim) * block, 16);
}

householder_plan lmk_householder_plan(const lmk_householder *p, size_t vectors) {
    householder_plan plan = {.threads = lmk_thread_count(p->threads)};
    const size_t count = lmk_divide_up(p->factors, block_of(p->dim));
    plan.blocks = count > 0 ? lmk_cut(p->factors, count) : (lmk_parts){0, 0, 0};
    plan.block = count > 0 ? lmk_divide_up(p->factors, count) : 0;
    plan.panels = lmk_divide_up(vectors, PANEL_VECTORS);
    const double work = (double)p->batch * (double)p->factors * (double)p->dim * (double)vectors;
    if (work < (double)SERIAL_PRODUCTS) plan.threads = 1;
    plan.over_items = plan.threads == 1 || p->batch >= 2 * (size_t)plan.threads;
    if (plan.over_items) plan.threads = (unsigned)lmk_min(plan.threads, lmk_max(p->batch, 1));
    plan.block_floats = BLOCK_FACTORS * p->dim + writes_floats(plan.block, p->dim) +
                        2 * BLOCK_FACTORS * plan.block + 16;
    plan.item_floats = plan.block_floats * count;
    return plan;
}

householder_call lmk_householder_call(const lmk_householder *product, size_t vectors) {
    return (householder_call){.product = product,
                              .plan = lmk_householder_plan(product, vectors),
                              .tiles = lmk_tile_kernels_for(LMK_FLOAT32),
                              .kernels = lmk_product_kernels()};
}

/// Elements of a row from `at` on, forwards or backwards, that are 0, of either sign; `most` at
/// most.
static size_t count_zeros(const void *row, lmk_dtype dtype, size_t at, int step, size_t most) {
    size_t count = 0;
    if (dtype == LMK_FLOAT32) {
        for (const float *x = (const float *)row + at; count < most && *x == 0; x += step) count++;
    } else {
        const uint16_t *x = (const uint16_t *)row + at;
        for (; count < most && (*x & 0x7fffu) == 0; x += step) count++;
    }
    return count;
}

/// Dimensions in which any of a block's factors is not zero. Reflections of a QR decomposition
/// begin with as many zeros as there are factors before them.
static void find_dimensions(const lmk_householder *p, const char *k, factor_block *block) {
    size_t first = p->dim, end = 0;
    for (size_t i = 0; i < block->count; i++) {
        const char *const row = k + lmk_dtype_size(p->dtype) * p->k_stride * i;
        first = count_zeros(row, p->dtype, 0, 1, first);
        end = p->dim - count_zeros(row, p->dtype, p->dim - 1, -1, p->dim - end);
    }
    block->dims = end > first ? end - first : 0;
    block->dim = block->dims > 0 ? first : 0;
}

/// Where the elements of a block's k begin.
static char *block_k(const lmk_householder *p, size_t item, size_t factor) {
    const size_t offset = p->k_batch_stride * item + p->k_stride * factor;
    return (char *)(uintptr_t)p->k + lmk_dtype_size(p->dtype) * offset;
}

factor_block lmk_householder_block(const householder_call *call, size_t j, float *memory) {
    const householder_plan *const plan = &call->plan;
    const lmk_householder *const p = call->product;
    float *const at = memory + plan->block_floats * j;
    factor_block block = {.first = lmk_part(plan->blocks, j), .reads = at};
    block.count = lmk_part(plan->blocks, j + 1) - block.first;
    block.writes = at + BLOCK_FACTORS * p->dim;
    block.later = block.writes + writes_floats(plan->block, p->dim);
    block.earlier = block.later + BLOCK_FACTORS * plan->block;
    block.extent = (size_t *)(void *)(block.earlier + BLOCK_FACTORS * plan->block);
    block.dim = block.extent[0];
    block.dims = block.extent[1];
    return block;
}

// ---- Products

static lmk_parts row_panels(const lmk_tile_kernels *tiles, size_t rows) {
    return lmk_cut(rows, lmk_divide_up(rows, tiles->rows));
}

/// All lanes of an operand in panels of as many rows as tiles have.
static void pack_rows(const lmk_tile_kernels *tiles, const lmk_operand *x, float *to) {
    if (x->lanes == 0) return;
    const lmk_parts panels = row_panels(tiles, x->lanes);
    for (size_t i = 0; i < panels.count; i += LMK_PACK_GROUP) {
        const size_t count = lmk_min(LMK_PACK_GROUP, panels.count - i);
        size_t lanes[LMK_PACK_GROUP];
        for (size_t p = 0; p < count; p++) lanes[p] = lmk_part(panels, i + p);
        tiles->pack_rows(to + i * tiles->row_panel * x->depth, tiles->row_panel, x, lanes, count, 0,
                         x->depth);
    }
}

void lmk_householder_multiply(const lmk_tile_kernels *tiles, tile_rows a, size_t rows,
                              const float *b, size_t b_stride, size_t columns, size_t depth,
                              float *c, size_t c_stride, int accumulate) {
    if (rows == 0) return;
    const lmk_parts panels = row_panels(tiles, rows);
    lmk_tile tile = {
        .depth = depth, .c_stride = c_stride, .accumulate = accumulate, .next = (const char *)b};
    for (size_t column = 0; column < columns; column += tiles->columns) {
        const size_t left = columns - column,
                     width = left <= LMK_PANEL_MAX / 2 ? LMK_PANEL_MAX / 2 : tiles->columns;
        tile.b = (lmk_panel){b + column, b_stride, 1};
        tile.columns = lmk_min(width, left);
        for (size_t i = 0; i < panels.count; i++) {
            const size_t row = lmk_part(panels, i), height = lmk_part(panels, i + 1) - row;
            tile.a = a.is_packed
                         ? (lmk_panel){a.data + i * tiles->row_panel * depth, tiles->row_panel, 1}
                         : (lmk_panel){a.data + a.lane_stride * row, a.stride, a.lane_stride};
            tile.c = c + c_stride * row + column;
            tiles->tile[height - 1][width > LMK_PANEL_MAX / 2][tile.a.lane_stride != 1](&tile);
        }
    }
}

void lmk_householder_prepare(const householder_call *call, size_t item, size_t j, float *memory) {
    const lmk_householder *const p = call->product;
    factor_block block = lmk_householder_block(call, j, memory);
    char *k = block_k(p, item, block.first);
    find_dimensions(p, k, &block);
    block.extent[0] = block.dim;
    block.extent[1] = block.dims;
    k += lmk_dtype_size(p->dtype) * block.dim;
    const lmk_operand by_dimension = {.data = k,
                                      .dtype = p->dtype,
                                      .stride = p->k_stride,
                                      .lanes = block.dims,
                                      .depth = block.count};
    const vector_panel by_factor = {block.reads, k, p->k_stride, block.dims, block.count};
    call->kernels->load_rows[p->dtype](&by_factor);
    pack_rows(call->tiles, &by_dimension, block.writes);
    float gram[BLOCK_FACTORS * BLOCK_FACTORS];
    lmk_householder_multiply(call->tiles, (tile_rows){block.reads, 0, BLOCK_FACTORS, 1},
                             block.count, block.reads, BLOCK_FACTORS, lmk_round_up(block.count, 16),
                             block.dims, gram, BLOCK_FACTORS, 0);
    call->kernels->invert(gram, householder_beta(p, item) + block.first, block.count,
                          call->has_later ? block.later : 0, call->has_earlier ? block.earlier : 0);
}

/// Rows of an inverse that are multiplied with as many steps: half of it is zeros, and most of
/// those are skipped. Not the rows of a tile: 0 times what is not finite is not 0.
#define TRIANGLE_ROWS ((size_t)8)

void lmk_householder_correct(const householder_call *call, const factor_block *block,
                             const float *beta, int is_transposed, const float *panel, size_t width,
                             const block_rows *rows) {
    const size_t count = block->count;
    lmk_householder_multiply(call->tiles, (tile_rows){block->reads, 0, BLOCK_FACTORS, 1}, count,
                             panel + PANEL_VECTORS * block->dim, PANEL_VECTORS, width, block->dims,
                             rows->products, PANEL_VECTORS, 0);
    for (size_t row = 0; row < count; row += TRIANGLE_ROWS) {
        const size_t height = lmk_min(TRIANGLE_ROWS, count - row);
        // P solves with rows of `later`, P^T with columns of `earlier`.
        const size_t step = is_transposed ? 0 : row, end = is_transposed ? row + height : count;
        const tile_rows triangle =
            is_transposed
                ? (tile_rows){block->earlier + row, 0, BLOCK_FACTORS, 1}
                : (tile_rows){block->later + (BLOCK_FACTORS + 1) * row, 0, 1, BLOCK_FACTORS};
        lmk_householder_multiply(call->tiles, triangle, height,
                                 rows->products + PANEL_VECTORS * step, PANEL_VECTORS, width,
                                 end - step, rows->solved + PANEL_VECTORS * row, PANEL_VECTORS, 0);
    }
    call->kernels->scale(rows->solved, beta + block->first, count, rows->corrections);
}

void lmk_householder_add(const householder_call *call, const factor_block *block,
                         const float *corrections, size_t width, float *panel) {
    lmk_householder_multiply(call->tiles, (tile_rows){block->writes, 1, 0, 0}, block->dims,
                             corrections, PANEL_VECTORS, width, block->count,
                             panel + PANEL_VECTORS * block->dim, PANEL_VECTORS, 1);
}

vector_panel lmk_householder_vectors(const lmk_householder_application *a, const void *x,
                                     size_t stride, size_t batch_stride, size_t item, size_t panel,
                                     size_t panels, float *memory) {
    const size_t first = PANEL_VECTORS * panel,
                 place = a->side == LMK_HOUSEHOLDER_LEFT ? first : stride * first;
    return (vector_panel){
        memory,
        (char *)(uintptr_t)x + lmk_dtype_size(a->product.dtype) * (batch_stride * item + place),
        stride, a->product.dim, lmk_min(PANEL_VECTORS * panels, a->vectors - first)};
}
