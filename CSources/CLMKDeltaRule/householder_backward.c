// Gradients of the application of Householder products: slots, sums over vectors, and memory.
//
// For a block with r = F K x and u = -beta r, y = x + K^T u (F is one of the block's inverses), the
// way back is the same with the other inverse: p = F' K dy and w = -beta p, dx = dy + K^T w. Then
//
//     dK^T = dy u^T + x w^T + K^T (G + G^T),    G_ij = <w_i, u_j> where i is applied after j
//     dbeta_i = -<p_i, r_i>
#include "householder.h"

#include <string.h>

/// Sums over vectors are taken in as many groups at most.
#define SUM_GROUPS ((size_t)16)

/// What vectors add up to for one block.
typedef struct block_sums {
    /// dy u^T + x w^T, [dim][BLOCK_FACTORS]; <w_i, u_j>, [BLOCK_FACTORS][BLOCK_FACTORS]; p r,
    /// [BLOCK_FACTORS][16].
    float *vectors, *pairs, *dots;
} block_sums;

typedef struct backward_call {
    householder_call base;
    const lmk_householder_application *application;
    const lmk_householder_gradients *gradients;
    lmk_parts groups;
    size_t item;
    /// Of the item, or of each worker.
    float *blocks, *sums;
    /// Of one group.
    size_t sums_floats;
    float *local;
    size_t local_floats;
} backward_call;

/// Sizes alone decide.
static lmk_parts groups_of(const lmk_householder_application *a, const householder_plan *plan) {
    const size_t wanted = lmk_divide_up(SUM_GROUPS, lmk_max(a->product.batch, 1));
    return lmk_cut(plan->panels, lmk_max(1, lmk_min(plan->panels, wanted)));
}

static size_t block_sums_floats(const lmk_householder *p) {
    return BLOCK_FACTORS * (p->dim + BLOCK_FACTORS + 16);
}

/// Floats of a worker's panels: what each block is applied to, solutions of each block, the
/// gradient, rows of a block, and the transposes of two of them.
static size_t panels_floats(const lmk_householder *p, const householder_plan *plan) {
    const size_t panel = p->dim * PANEL_VECTORS;
    return (plan->blocks.count + 1) * panel + p->factors * PANEL_VECTORS + BLOCK_ROWS_FLOATS +
           3 * BLOCK_FACTORS * PANEL_VECTORS;
}

/// The same to finish a block: k and its gradient as float32, and pairs.
static size_t finish_floats(const lmk_householder *p) {
    return BLOCK_FACTORS * (2 * lmk_round_up(p->dim, PANEL_VECTORS) + BLOCK_FACTORS);
}

static size_t local_floats(const lmk_householder *p, const householder_plan *plan) {
    return lmk_round_up(lmk_max(panels_floats(p, plan), finish_floats(p)), 16);
}

static size_t workspace_bytes(const lmk_householder_application *a) {
    const lmk_householder *const p = &a->product;
    if (p->batch == 0 || p->dim == 0 || a->vectors == 0) return 0;
    const householder_plan plan = lmk_householder_plan(p, a->vectors);
    const size_t sums = plan.blocks.count * block_sums_floats(p) * groups_of(a, &plan).count;
    const size_t floats = (plan.over_items ? plan.threads : 1) * (plan.item_floats + sums) +
                          plan.threads * local_floats(p, &plan);
    return sizeof(float) * floats + ALIGNMENT;
}

size_t lmk_householder_backward_workspace_size(const lmk_householder_application *a) {
    return lmk_householder_check_application(a, 0) == LMK_OK ? workspace_bytes(a) : 0;
}

static block_sums sums_at(const lmk_householder *p, size_t j, float *memory) {
    float *const at = memory + block_sums_floats(p) * j;
    return (block_sums){at, at + BLOCK_FACTORS * p->dim,
                        at + BLOCK_FACTORS * (p->dim + BLOCK_FACTORS)};
}

/// A worker's memory for one panel.
typedef struct panel_memory {
    block_rows rows;
    /// u of the block, and u and w transposed, [32][BLOCK_FACTORS].
    float *corrections, *corrections_turned, *gradients_turned;
    float *gradient;
    /// r of all blocks, [factors][32], and what block j is applied to, [dim][32] each.
    float *solved, *kept;
} panel_memory;

static panel_memory panel_memory_at(const lmk_householder *p, float *memory) {
    const size_t rows = BLOCK_FACTORS * PANEL_VECTORS;
    panel_memory m = {.rows = block_rows_at(memory)};
    m.corrections = memory + BLOCK_ROWS_FLOATS;
    m.corrections_turned = m.corrections + rows;
    m.gradients_turned = m.corrections_turned + rows;
    m.gradient = m.gradients_turned + rows;
    m.solved = m.gradient + p->dim * PANEL_VECTORS;
    m.kept = m.solved + p->factors * PANEL_VECTORS;
    return m;
}

/// Adds what the vectors of a panel contribute to a block's sums.
static void add_sums(const backward_call *call, const factor_block *block, const panel_memory *m,
                     const float *x, int accumulate, const block_sums *sums) {
    const lmk_tile_kernels *const tiles = call->base.tiles;
    const product_kernels *const kernels = call->base.kernels;
    const size_t count = block->count, dim = call->base.product->dim,
                 columns = lmk_round_up(count, 16);
    kernels->transpose(m->corrections, count, m->corrections_turned);
    kernels->transpose(m->rows.corrections, count, m->gradients_turned);
    lmk_householder_multiply(tiles, (tile_rows){m->gradient, 0, 1, PANEL_VECTORS}, dim,
                             m->corrections_turned, BLOCK_FACTORS, columns, PANEL_VECTORS,
                             sums->vectors, BLOCK_FACTORS, accumulate);
    lmk_householder_multiply(tiles, (tile_rows){x, 0, 1, PANEL_VECTORS}, dim, m->gradients_turned,
                             BLOCK_FACTORS, columns, PANEL_VECTORS, sums->vectors, BLOCK_FACTORS,
                             1);
    lmk_householder_multiply(tiles, (tile_rows){m->rows.corrections, 0, 1, PANEL_VECTORS}, count,
                             m->corrections_turned, BLOCK_FACTORS, columns, PANEL_VECTORS,
                             sums->pairs, BLOCK_FACTORS, accumulate);
    if (!accumulate) memset(sums->dots, 0, 16 * count * sizeof(float));
    kernels->dot(m->rows.solved, m->solved + PANEL_VECTORS * block->first, count, sums->dots);
}

/// One panel forward, and back.
static void run_panel(const backward_call *call, size_t item, size_t panel, int accumulate,
                      float *blocks, float *sums, float *local) {
    const lmk_householder_application *const a = call->application;
    const lmk_householder_gradients *const g = call->gradients;
    const lmk_householder *const p = &a->product;
    const householder_plan *const plan = &call->base.plan;
    const int is_transposed = sees_transposed(a);
    const size_t panel_floats = p->dim * PANEL_VECTORS;
    const float *const beta = householder_beta(p, item);
    const panel_memory m = panel_memory_at(p, local);
    vector_panel v = lmk_householder_vectors(a, g->dy, g->dy_stride, g->dy_batch_stride, item,
                                             panel, 1, m.gradient);
    load_vectors(&call->base, &v, a->side);
    // Whole panels: absent vectors are 0 and add nothing.
    const size_t width = PANEL_VECTORS;
    if (sums) {
        vector_panel x = lmk_householder_vectors(a, a->x, a->x_stride, a->x_batch_stride, item,
                                                 panel, 1, m.kept);
        load_vectors(&call->base, &x, a->side);
    }
    for (size_t j = 0; sums && j < plan->blocks.count; j++) {
        const factor_block block =
            lmk_householder_block(&call->base, block_order(plan, is_transposed, j), blocks);
        float *const x = m.kept + panel_floats * j;
        block_rows rows = m.rows;
        rows.solved = m.solved + PANEL_VECTORS * block.first;
        lmk_householder_correct(&call->base, &block, beta, is_transposed, x, width, &rows);
        if (j + 1 == plan->blocks.count) break;
        memcpy(x + panel_floats, x, panel_floats * sizeof(float));
        lmk_householder_add(&call->base, &block, rows.corrections, width, x + panel_floats);
    }
    for (size_t j = plan->blocks.count; j-- > 0;) {
        const size_t at = block_order(plan, is_transposed, j);
        const factor_block block = lmk_householder_block(&call->base, at, blocks);
        lmk_householder_correct(&call->base, &block, beta, !is_transposed, m.gradient, width,
                                &m.rows);
        if (sums) {
            call->base.kernels->scale(m.solved + PANEL_VECTORS * block.first, beta + block.first,
                                      block.count, m.corrections);
            const block_sums to = sums_at(p, at, sums);
            add_sums(call, &block, &m, m.kept + panel_floats * j, accumulate, &to);
        }
        lmk_householder_add(&call->base, &block, m.rows.corrections, width, m.gradient);
    }
    if (!g->dx) return;
    v = lmk_householder_vectors(a, g->dx, g->dx_stride, g->dx_batch_stride, item, panel, 1,
                                m.gradient);
    store_vectors(&call->base, &v, a->side);
}

static void run_group(const backward_call *call, size_t item, size_t group, float *blocks,
                      float *sums, float *local) {
    const size_t first = lmk_part(call->groups, group);
    float *const own = sums ? sums + call->sums_floats * group : 0;
    for (size_t panel = first; panel < lmk_part(call->groups, group + 1); panel++)
        run_panel(call, item, panel, panel > first, blocks, own, local);
}

/// Adds the groups' sums for one block in order, and writes its gradients.
static void finish_block(const backward_call *call, size_t item, size_t j, float *blocks,
                         float *sums, float *local) {
    const lmk_householder *const p = call->base.product;
    const lmk_householder_gradients *const g = call->gradients;
    const product_kernels *const kernels = call->base.kernels;
    const factor_block block = lmk_householder_block(&call->base, j, blocks);
    const block_sums total = sums_at(p, j, sums);
    for (size_t group = 1; group < call->groups.count; group++)
        kernels->add(total.vectors + call->sums_floats * group, total.vectors,
                     block_sums_floats(p));
    if (g->dbeta) {
        kernels->total(total.dots, block.count,
                       g->dbeta + g->dbeta_batch_stride * item + block.first);
    }
    if (!g->dk) return;
    const size_t width = lmk_round_up(p->dim, PANEL_VECTORS);
    float *const pairs = local, *const k = pairs + BLOCK_FACTORS * BLOCK_FACTORS,
                 *const dk = k + BLOCK_FACTORS * width;
    const size_t size = lmk_dtype_size(p->dtype),
                 place = p->k_batch_stride * item + p->k_stride * block.first,
                 dk_place = g->dk_batch_stride * item + g->dk_stride * block.first;
    kernels->widen[p->dtype]((const char *)p->k + size * place, p->k_stride, block.count, p->dim, k,
                             width);
    kernels->mirror(total.pairs, block.count, sees_transposed(call->application), pairs);
    kernels->turn(total.vectors, p->dim, block.count, dk, width);
    lmk_householder_multiply(call->base.tiles, (tile_rows){pairs, 0, 1, BLOCK_FACTORS}, block.count,
                             k, width, lmk_round_up(p->dim, 16), block.count, dk, width, 1);
    kernels->narrow[p->dtype](dk, width, block.count, p->dim, (char *)g->dk + size * dk_place,
                              g->dk_stride);
}

static void prepare_slot(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    (void)worker;
    lmk_householder_prepare(&call->base, call->item, slot, call->blocks);
}

static void group_slot(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    run_group(call, call->item, slot, call->blocks, call->sums,
              call->local + worker * call->local_floats);
}

static void finish_slot(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    finish_block(call, call->item, slot, call->blocks, call->sums,
                 call->local + worker * call->local_floats);
}

static void item_slot(void *context, size_t item, unsigned worker) {
    const backward_call *const call = context;
    const householder_plan *const plan = &call->base.plan;
    float *const blocks = call->blocks + worker * plan->item_floats,
                 *const local = call->local + worker * call->local_floats,
                 *const sums =
                     call->sums ? call->sums + worker * call->groups.count * call->sums_floats : 0;
    for (size_t j = 0; j < plan->blocks.count; j++)
        lmk_householder_prepare(&call->base, item, j, blocks);
    for (size_t group = 0; group < call->groups.count; group++)
        run_group(call, item, group, blocks, sums, local);
    for (size_t j = 0; sums && j < plan->blocks.count; j++)
        finish_block(call, item, j, blocks, sums, local);
}

static lmk_status check_gradients(const lmk_householder_application *a,
                                  const lmk_householder_gradients *g, lmk_error *error) {
    const lmk_householder *const p = &a->product;
    const matrix_argument dy = vectors_argument(a, "dy", "dy_stride", "dy_batch_stride", g->dy,
                                                g->dy_stride, g->dy_batch_stride, 0);
    const matrix_argument dx = vectors_argument(a, "dx", "dx_stride", "dx_batch_stride", g->dx,
                                                g->dx_stride, g->dx_batch_stride, 1);
    const matrix_argument dk = {"dk",   "dk_stride",  "dk_batch_stride",  g->dk,    p->factors,
                                p->dim, g->dk_stride, g->dk_batch_stride, p->dtype, 1};
    const matrix_argument dbeta = {.name = "dbeta",
                                   .batch_stride_name = "dbeta_batch_stride",
                                   .data = g->dbeta,
                                   .rows = 1,
                                   .columns = p->factors,
                                   .batch_stride = g->dbeta_batch_stride,
                                   .is_output = 1};
    lmk_status status = lmk_householder_check_matrix(p->batch, &dy, error);
    if (status == LMK_OK && g->dx) status = lmk_householder_check_matrix(p->batch, &dx, error);
    if (status == LMK_OK && g->dk) status = lmk_householder_check_matrix(p->batch, &dk, error);
    if (status == LMK_OK && g->dbeta)
        status = lmk_householder_check_matrix(p->batch, &dbeta, error);
    return status;
}

/// Gradients of factors that nothing is multiplied with.
static void clear_gradients(const lmk_householder *p, const lmk_householder_gradients *g) {
    const size_t size = lmk_dtype_size(p->dtype);
    for (size_t item = 0; item < p->batch; item++) {
        if (g->dbeta)
            memset(g->dbeta + g->dbeta_batch_stride * item, 0, p->factors * sizeof(float));
        for (size_t i = 0; g->dk && i < p->factors; i++) {
            memset((char *)g->dk + size * (g->dk_batch_stride * item + g->dk_stride * i), 0,
                   size * p->dim);
        }
    }
}

lmk_status lmk_householder_backward(const lmk_householder_application *a,
                                    const lmk_householder_gradients *g, void *workspace,
                                    size_t workspace_size, lmk_error *error) {
    const lmk_householder *const p = &a->product;
    lmk_status status = lmk_householder_check_application(a, error);
    if (status == LMK_OK) status = check_gradients(a, g, error);
    const size_t needed = status == LMK_OK ? workspace_bytes(a) : 0;
    if (status == LMK_OK)
        status = lmk_householder_check_workspace(workspace, workspace_size, needed, error);
    if (status != LMK_OK) return status;
    if (needed == 0) {
        clear_gradients(p, g);
        return LMK_OK;
    }
    backward_call call = {
        .base = lmk_householder_call(p, a->vectors), .application = a, .gradients = g};
    const householder_plan *const plan = &call.base.plan;
    const size_t copies = plan->over_items ? plan->threads : 1;
    call.base.has_later = call.base.has_earlier = 1;
    call.groups = groups_of(a, plan);
    call.sums_floats = plan->blocks.count * block_sums_floats(p);
    call.blocks = aligned_floats(workspace);
    float *const sums = call.blocks + plan->item_floats * copies;
    call.sums = (g->dk || g->dbeta) && p->factors > 0 ? sums : 0;
    call.local = sums + call.sums_floats * call.groups.count * copies;
    call.local_floats = local_floats(p, plan);
    if (plan->over_items) {
        lmk_parallel_for(p->batch, plan->threads, item_slot, &call);
        return LMK_OK;
    }
    for (call.item = 0; call.item < p->batch; call.item++) {
        lmk_parallel_for(plan->blocks.count, plan->threads, prepare_slot, &call);
        lmk_parallel_for(call.groups.count, plan->threads, group_slot, &call);
        if (call.sums) lmk_parallel_for(plan->blocks.count, plan->threads, finish_slot, &call);
    }
    return LMK_OK;
}
