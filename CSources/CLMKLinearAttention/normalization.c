// Normalisation of rows: validation and threads.
#include "kernels/stage_tables.h"
#include "stage_problem.h"

#include <string.h>

/// Entries of the rows of a slot.
#define SLOT_ENTRIES ((size_t)16384)

/// Rows of a block whose gradients of the weight are added up at least, and the largest number of
/// blocks.
#define SUM_ROWS ((size_t)128)
#define SUM_BLOCKS ((size_t)64)

static size_t rows_of(const lmk_row_norm *n) { return n->batch * n->tokens * n->heads; }

static stage_extents extents_of(const lmk_row_norm *n) {
    return (stage_extents){n->batch, n->tokens, n->heads, n->columns};
}

static unsigned threads_of(const lmk_row_norm *n) {
    const int is_small = rows_of(n) <= STAGE_SERIAL_ENTRIES / lmk_max(n->columns, 1);
    return is_small ? 1 : lmk_thread_count(n->threads);
}

typedef struct norm_call {
    norm_job job;
    norm_function function;
    lmk_parts blocks;
    /// [blocks, columns], or null.
    float *sums;
} norm_call;

static void run_block(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const norm_call *const call = context;
    const size_t columns = call->job.norm->columns, row = lmk_part(call->blocks, slot);
    norm_job job = call->job;
    if (call->sums) {
        job.weight_sums = call->sums + slot * columns;
        memset(job.weight_sums, 0, columns * sizeof(float));
    }
    call->function(&job, row, lmk_part(call->blocks, slot + 1) - row);
}

static void run(norm_call *call) {
    const lmk_row_norm *const n = call->job.norm;
    if (!call->sums) {
        const size_t slot_rows = lmk_max(1, SLOT_ENTRIES / lmk_max(n->columns, 1));
        call->blocks = stage_cut(rows_of(n), lmk_divide_up(rows_of(n), slot_rows));
    }
    lmk_parallel_for(call->blocks.count, threads_of(n), run_block, call);
}

static lmk_status check_problem(const lmk_row_norm *n, lmk_error *error) {
    lmk_status status = lmk_stage_check_dtype(n->dtype, error);
    if (status != LMK_OK) return status;
    if (!(n->epsilon >= 0))
        return lmk_fail_real(error, "epsilon", "at least 0", (double)n->epsilon);
    size_t rows = n->batch;
    if (!lmk_multiply_size(&rows, n->tokens) || !lmk_multiply_size(&rows, n->heads))
        return lmk_fail_overflow(error, "tokens");
    return lmk_stage_check_tensor(STAGE_NAME("x"), n->x, extents_of(n), n->x_strides,
                                  lmk_dtype_size(n->dtype), error);
}

// MARK: L2

lmk_status lmk_l2_normalize_forward(const lmk_row_norm *n, void *y, lmk_token_strides y_strides,
                                    lmk_error *error) {
    lmk_status status = check_problem(n, error);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("y"), y, extents_of(n), y_strides,
                                        lmk_dtype_size(n->dtype), error);
    if (status != LMK_OK) return status;
    norm_call call = {.job = {.norm = n, .divisor = 1, .y = y, .y_strides = y_strides},
                      .function = lmk_token_stage_kernels()->l2_norm[n->dtype]};
    run(&call);
    return LMK_OK;
}

lmk_status lmk_l2_normalize_backward(const lmk_row_norm *n, const void *dy,
                                     lmk_token_strides dy_strides, void *dx,
                                     lmk_token_strides dx_strides, lmk_error *error) {
    lmk_status status = check_problem(n, error);
    const size_t size = lmk_dtype_size(n->dtype);
    if (status == LMK_OK)
        status =
            lmk_stage_check_tensor(STAGE_NAME("dy"), dy, extents_of(n), dy_strides, size, error);
    if (status == LMK_OK)
        status =
            lmk_stage_check_tensor(STAGE_NAME("dx"), dx, extents_of(n), dx_strides, size, error);
    if (status != LMK_OK) return status;
    norm_call call = {.job = {.norm = n,
                              .divisor = 1,
                              .gradients = {.dy = dy,
                                            .dy_strides = dy_strides,
                                            .dx = dx,
                                            .dx_strides = dx_strides}},
                      .function = lmk_token_stage_kernels()->l2_norm_back[n->dtype]};
    run(&call);
    return LMK_OK;
}

// MARK: Root mean square with a gate

static lmk_status check_gated(const lmk_row_norm *n, const lmk_norm_gate *gate, lmk_error *error) {
    if (n->columns == 0) return lmk_fail_size(error, "columns", 1, 0);
    lmk_status status = check_problem(n, error);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("gate"), gate->gate, extents_of(n),
                                        gate->gate_strides, lmk_dtype_size(n->dtype), error);
    if (status == LMK_OK)
        status = lmk_stage_check_dense("weight", gate->weight, 1, n->columns, 0, error);
    return status;
}

lmk_status lmk_gated_rms_norm_forward(const lmk_row_norm *n, const lmk_norm_gate *gate, void *y,
                                      lmk_token_strides y_strides, lmk_error *error) {
    lmk_status status = check_gated(n, gate, error);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("y"), y, extents_of(n), y_strides,
                                        lmk_dtype_size(n->dtype), error);
    if (status != LMK_OK) return status;
    norm_call call = {.job = {.norm = n,
                              .divisor = (float)n->columns,
                              .gate = *gate,
                              .y = y,
                              .y_strides = y_strides},
                      .function = lmk_token_stage_kernels()->gated_norm[n->dtype]};
    run(&call);
    return LMK_OK;
}

/// Blocks depend on sizes alone: the sums of the weight's gradient are added in their order.
static lmk_parts sum_blocks(const lmk_row_norm *n) {
    return stage_cut(rows_of(n), lmk_min(SUM_BLOCKS, lmk_divide_up(rows_of(n), SUM_ROWS)));
}

size_t lmk_gated_rms_norm_backward_workspace_size(const lmk_row_norm *n) {
    if (check_problem(n, 0) != LMK_OK) return 0;
    return sum_blocks(n).count * n->columns * sizeof(float);
}

lmk_status lmk_gated_rms_norm_backward(const lmk_row_norm *n, const lmk_norm_gate *gate,
                                       const lmk_gated_rms_norm_gradients *g, void *workspace,
                                       size_t workspace_size, lmk_error *error) {
    lmk_status status = check_gated(n, gate, error);
    const size_t size = lmk_dtype_size(n->dtype);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("dy"), g->dy, extents_of(n), g->dy_strides, size,
                                        error);
    if (status == LMK_OK && g->dx)
        status = lmk_stage_check_tensor(STAGE_NAME("dx"), g->dx, extents_of(n), g->dx_strides, size,
                                        error);
    if (status == LMK_OK && g->dgate)
        status = lmk_stage_check_tensor(STAGE_NAME("dgate"), g->dgate, extents_of(n),
                                        g->dgate_strides, size, error);
    const size_t needed = lmk_gated_rms_norm_backward_workspace_size(n);
    if (status == LMK_OK)
        status = lmk_stage_check_workspace(workspace, workspace_size, needed, error);
    if (status != LMK_OK) return status;
    const token_stage_kernels *const kernels = lmk_token_stage_kernels();
    norm_call call = {
        .job = {.norm = n, .divisor = (float)n->columns, .gate = *gate, .gradients = *g},
        .function = kernels->gated_norm_back[n->dtype],
        .blocks = sum_blocks(n),
        .sums = g->dweight ? workspace : 0};
    run(&call);
    if (!g->dweight) return LMK_OK;
    memset(g->dweight, 0, n->columns * sizeof(float));
    for (size_t block = 0; block < call.blocks.count; block++)
        kernels->add(call.sums + block * n->columns, g->dweight, n->columns);
    return LMK_OK;
}
