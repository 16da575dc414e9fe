// Feature maps of queries and keys: validation and threads.
#include "kernels/stage_tables.h"
#include "stage_problem.h"

/// Entries and features of the rows of a slot.
#define SLOT_ENTRIES ((size_t)16384)

/// The Taylor map's features must be countable.
#define TAYLOR_COLUMNS (((size_t)1 << 31) - 1)

size_t lmk_feature_count(lmk_features features, size_t columns) {
    switch (features) {
    case LMK_FEATURES_EXP_PAIR:
    case LMK_FEATURES_SOFTMAX_PAIR:
    case LMK_FEATURES_COSINE: return 2 * columns;
    case LMK_FEATURES_TAYLOR: return 1 + columns + columns * columns;
    default: return columns;
    }
}

typedef struct feature_call {
    feature_job job;
    feature_function function;
    lmk_parts blocks;
} feature_call;

static void run_block(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const feature_call *const call = context;
    const size_t row = lmk_part(call->blocks, slot);
    call->function(&call->job, row, lmk_part(call->blocks, slot + 1) - row);
}

static void run(feature_call *call) {
    const lmk_feature_map *const m = call->job.map;
    const size_t rows = m->batch * m->tokens * m->heads,
                 entries = m->columns + lmk_feature_count(m->features, m->columns),
                 slot_rows = lmk_max(1, SLOT_ENTRIES / entries);
    call->blocks = stage_cut(rows, lmk_divide_up(rows, slot_rows));
    const int is_small = rows <= STAGE_SERIAL_ENTRIES / entries;
    lmk_parallel_for(call->blocks.count, is_small ? 1 : lmk_thread_count(m->threads), run_block,
                     call);
}

static lmk_status check_positions(const lmk_feature_map *m, lmk_error *error) {
    if (m->length < 1) return lmk_fail_range(error, "length", "at least 1", m->length);
    const size_t count = m->batch * m->tokens;
    if (count > 0 && !m->positions) return lmk_fail_null(error, "positions");
    for (size_t i = 0; i < count; i++) {
        if (m->positions[i] < 0 || m->positions[i] > m->length) {
            return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                               .argument = "positions",
                                               .allowed = "from 0 to length",
                                               .actual = m->positions[i],
                                               .index = (int64_t)i});
        }
    }
    return LMK_OK;
}

static lmk_status check_problem(const lmk_feature_map *m, lmk_error *error) {
    if ((unsigned)m->features >= FEATURE_MAPS)
        return lmk_fail_range(error, "features", "a feature map", m->features);
    lmk_status status = lmk_stage_check_dtype(m->dtype, error);
    if (status != LMK_OK) return status;
    if (m->columns == 0) return lmk_fail_size(error, "columns", 1, 0);
    const int is_taylor = m->features == LMK_FEATURES_TAYLOR;
    if (is_taylor && m->columns > TAYLOR_COLUMNS)
        return lmk_fail_range(error, "columns", "below 2^31", (int64_t)m->columns);
    if (m->columns > SIZE_MAX / 4) return lmk_fail_overflow(error, "columns");
    size_t rows = m->batch;
    if (!lmk_multiply_size(&rows, m->tokens) || !lmk_multiply_size(&rows, m->heads))
        return lmk_fail_overflow(error, "tokens");
    if (m->features == LMK_FEATURES_FOCUSED) {
        if (!(m->power >= 1 && m->power < __builtin_inff()))
            return lmk_fail_real(error, "power", "finite and at least 1", (double)m->power);
        if (!(m->epsilon >= 0 && m->epsilon < __builtin_inff()))
            return lmk_fail_real(error, "epsilon", "finite and at least 0", (double)m->epsilon);
    }
    const stage_extents extents = {m->batch, m->tokens, m->heads, m->columns};
    status = lmk_stage_check_tensor(STAGE_NAME("x"), m->x, extents, m->x_strides,
                                    lmk_dtype_size(m->dtype), error);
    if (status == LMK_OK && m->features == LMK_FEATURES_COSINE) status = check_positions(m, error);
    return status;
}

static stage_extents feature_extents(const lmk_feature_map *m) {
    return (stage_extents){m->batch, m->tokens, m->heads,
                           lmk_feature_count(m->features, m->columns)};
}

lmk_status lmk_feature_map_forward(const lmk_feature_map *m, void *phi,
                                   lmk_token_strides phi_strides, lmk_error *error) {
    lmk_status status = check_problem(m, error);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("phi"), phi, feature_extents(m), phi_strides,
                                        lmk_dtype_size(m->dtype), error);
    if (status != LMK_OK) return status;
    feature_call call = {
        .job = {.map = m, .phi = phi, .phi_strides = phi_strides},
        .function = lmk_token_stage_kernels()->features[m->features][m->dtype],
    };
    run(&call);
    return LMK_OK;
}

lmk_status lmk_feature_map_backward(const lmk_feature_map *m, const void *dphi,
                                    lmk_token_strides dphi_strides, void *dx,
                                    lmk_token_strides dx_strides, lmk_error *error) {
    lmk_status status = check_problem(m, error);
    const size_t size = lmk_dtype_size(m->dtype);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("dphi"), dphi, feature_extents(m), dphi_strides,
                                        size, error);
    const stage_extents extents = {m->batch, m->tokens, m->heads, m->columns};
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("dx"), dx, extents, dx_strides, size, error);
    if (status != LMK_OK) return status;
    feature_call call = {
        .job = {.map = m,
                .phi = (void *)(uintptr_t)dphi,
                .phi_strides = dphi_strides,
                .dx = dx,
                .dx_strides = dx_strides},
        .function = lmk_token_stage_kernels()->features_back[m->features][m->dtype],
    };
    run(&call);
    return LMK_OK;
}
