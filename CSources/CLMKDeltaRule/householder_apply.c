// Application of Householder products to matrices: slots and memory.
#include "householder.h"

typedef struct apply_call {
    householder_call base;
    const lmk_householder_application *application;
    void *y;
    size_t y_stride, y_batch_stride;
    /// Panels of a slot at most.
    lmk_parts groups;
    size_t item;
    /// The item's blocks, or each worker's; and what a worker has for itself.
    float *blocks, *local;
    size_t local_floats;
} apply_call;

static lmk_parts groups_of(const householder_plan *plan) {
    const size_t wanted = plan->over_items ? 1 : 4 * (size_t)plan->threads;
    const size_t least = lmk_divide_up(plan->panels, GROUP_PANELS);
    return lmk_cut(plan->panels, lmk_max(1, lmk_min(plan->panels, lmk_max(wanted, least))));
}

/// Floats that a worker has to itself: panels, and rows of a block.
static size_t local_floats(const lmk_householder *p) {
    return GROUP_PANELS * p->dim * PANEL_VECTORS + BLOCK_ROWS_FLOATS;
}

static size_t workspace_bytes(const lmk_householder_application *a) {
    const lmk_householder *const p = &a->product;
    if (p->batch == 0 || p->dim == 0 || a->vectors == 0) return 0;
    const householder_plan plan = lmk_householder_plan(p, a->vectors);
    const size_t blocks = plan.item_floats * (plan.over_items ? plan.threads : 1);
    return sizeof(float) * (blocks + plan.threads * local_floats(p)) + ALIGNMENT;
}

size_t lmk_householder_apply_workspace_size(const lmk_householder_application *a) {
    return lmk_householder_check_application(a, 0) == LMK_OK ? workspace_bytes(a) : 0;
}

static void prepare_slot(void *context, size_t slot, unsigned worker) {
    const apply_call *const call = context;
    (void)worker;
    lmk_householder_prepare(&call->base, call->item, slot, call->blocks);
}

/// A group of panels through all blocks.
static void apply_group(const apply_call *call, size_t item, size_t group, float *blocks,
                        float *local) {
    const lmk_householder_application *const a = call->application;
    const householder_plan *const plan = &call->base.plan;
    const int is_transposed = sees_transposed(a);
    const size_t first = lmk_part(call->groups, group),
                 count = lmk_part(call->groups, group + 1) - first;
    const float *const beta = householder_beta(&a->product, item);
    const block_rows rows = block_rows_at(local);
    float *const memory = local + BLOCK_ROWS_FLOATS;
    const size_t panel_floats = a->product.dim * PANEL_VECTORS;
    const vector_panel x = lmk_householder_vectors(a, a->x, a->x_stride, a->x_batch_stride, item,
                                                   first, count, memory),
                       y = lmk_householder_vectors(a, call->y, call->y_stride, call->y_batch_stride,
                                                   item, first, count, memory);
    load_vectors(&call->base, &x, a->side);
    for (size_t j = 0; j < plan->blocks.count; j++) {
        const factor_block block =
            lmk_householder_block(&call->base, block_order(plan, is_transposed, j), blocks);
        for (size_t i = 0; i < count; i++) {
            float *const panel = memory + panel_floats * i;
            const size_t width = panel_width(x.count - PANEL_VECTORS * i);
            lmk_householder_correct(&call->base, &block, beta, is_transposed, panel, width, &rows);
            lmk_householder_add(&call->base, &block, rows.corrections, width, panel);
        }
    }
    store_vectors(&call->base, &y, a->side);
}

static void group_slot(void *context, size_t slot, unsigned worker) {
    const apply_call *const call = context;
    apply_group(call, call->item, slot, call->blocks, call->local + worker * call->local_floats);
}

static void item_slot(void *context, size_t item, unsigned worker) {
    const apply_call *const call = context;
    float *const blocks = call->blocks + worker * call->base.plan.item_floats,
                 *const local = call->local + worker * call->local_floats;
    for (size_t j = 0; j < call->base.plan.blocks.count; j++)
        lmk_householder_prepare(&call->base, item, j, blocks);
    for (size_t group = 0; group < call->groups.count; group++)
        apply_group(call, item, group, blocks, local);
}

lmk_status lmk_householder_apply(const lmk_householder_application *a, void *y, size_t y_stride,
                                 size_t y_batch_stride, void *workspace, size_t workspace_size,
                                 lmk_error *error) {
    const lmk_householder *const p = &a->product;
    lmk_status status = lmk_householder_check_application(a, error);
    const matrix_argument output =
        vectors_argument(a, "y", "y_stride", "y_batch_stride", y, y_stride, y_batch_stride, 1);
    if (status == LMK_OK) status = lmk_householder_check_matrix(p->batch, &output, error);
    const size_t needed = status == LMK_OK ? workspace_bytes(a) : 0;
    if (status == LMK_OK)
        status = lmk_householder_check_workspace(workspace, workspace_size, needed, error);
    if (status != LMK_OK || needed == 0) return status;
    apply_call call = {.base = lmk_householder_call(p, a->vectors),
                       .application = a,
                       .y = y,
                       .y_stride = y_stride,
                       .y_batch_stride = y_batch_stride};
    const householder_plan *const plan = &call.base.plan;
    call.base.has_later = !sees_transposed(a);
    call.base.has_earlier = !call.base.has_later;
    call.groups = groups_of(plan);
    call.blocks = aligned_floats(workspace);
    call.local = call.blocks + plan->item_floats * (plan->over_items ? plan->threads : 1);
    call.local_floats = local_floats(p);
    if (plan->over_items) {
        lmk_parallel_for(p->batch, plan->threads, item_slot, &call);
        return LMK_OK;
    }
    for (call.item = 0; call.item < p->batch; call.item++) {
        lmk_parallel_for(plan->blocks.count, plan->threads, prepare_slot, &call);
        lmk_parallel_for(call.groups.count, plan->threads, group_slot, &call);
    }
    return LMK_OK;
}
