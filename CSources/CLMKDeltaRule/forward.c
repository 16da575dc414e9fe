// Forward.
#include "problem.h"

typedef struct forward_call {
    const lmk_delta_rule *rule;
    const lmk_delta_rule_results *results;
    const delta_rule_kernels *kernels;
    unsigned threads;
    /// Groups of value columns, each of `columns` or what is left.
    size_t groups, columns;
    float *workers;
    size_t worker_floats;
} forward_call;

static size_t sequences(const lmk_delta_rule *r) { return r->offsets ? r->sequences : r->batch; }

static size_t tokens(const lmk_delta_rule *r, size_t sequence) {
    return r->offsets ? (size_t)(r->offsets[sequence + 1] - r->offsets[sequence]) : r->tokens;
}

/// Columns do not meet, so how they are cut is not a matter of results.
static forward_call plan(const lmk_delta_rule *r) {
    const lmk_linear_attention view = lmk_delta_rule_view(r);
    forward_call call = {.rule = r, .threads = lmk_thread_count(r->threads)};
    if (is_serial(&view, r->tokens * r->steps)) call.threads = 1;
    const size_t units = lmk_max(1, sequences(r) * r->heads),
                 slices = lmk_divide_up(r->value_dim, VALUE_SLICE);
    size_t groups = 1;
    if (call.threads > 1 && units < 2 * (size_t)call.threads)
        groups = lmk_min(slices, lmk_divide_up(2 * (size_t)call.threads, units));
    call.columns = VALUE_SLICE * lmk_divide_up(slices, groups);
    call.groups = lmk_divide_up(r->value_dim, call.columns);
    delta_memory memory;
    call.worker_floats = lmk_round_up(
        lmk_delta_memory_layout(r, lmk_min(call.columns, r->value_dim), 0, &memory), 32);
    return call;
}

size_t lmk_delta_rule_workspace_size(const lmk_delta_rule *r) {
    if (lmk_delta_rule_check(r, 0, 0) != LMK_OK) return 0;
    const forward_call call = plan(r);
    return sizeof(float) * call.threads * call.worker_floats + 64;
}

static void copy_rows(const float *from, size_t rows, size_t columns, size_t stride, float *to) {
    for (size_t d = 0; d < rows; d++) {
        for (size_t e = 0; e < columns; e++) to[stride * d + e] = from ? from[stride * d + e] : 0;
    }
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_results *const results = call->results;
    const size_t column = call->columns * (slot % call->groups), unit = slot / call->groups,
                 sequence = unit / r->heads, head = unit % r->heads,
                 columns = lmk_min(call->columns, r->value_dim - column),
                 size = r->key_dim * r->value_dim, at = size * unit + column,
                 count = tokens(r, sequence);
    const float *const from = r->initial_state ? r->initial_state + at : 0;
    float *const to = results->final_state ? results->final_state + at : 0;
    if (count == 0) {
        if (to) copy_rows(from, r->key_dim, columns, r->value_dim, to);
        return;
    }
    kept_states kept = {.stride = results->state_stride, .step = size * r->heads};
    if (results->states) {
        size_t before = 0;
        for (size_t n = 0; n < sequence; n++) before += tokens(r, n) / kept.stride;
        kept.data = results->states + size * (r->heads * before + head) + column;
    }
    delta_memory memory;
    lmk_delta_memory_layout(r, columns, call->workers + call->worker_floats * worker, &memory);
    const delta_head rows = lmk_delta_head(r, results, sequence, head, column, columns);
    call->kernels->advance(&rows, &memory, count, from, to, r->value_dim,
                           results->states ? &kept : 0, 0);
}

lmk_status lmk_delta_rule_forward(const lmk_delta_rule *r, const lmk_delta_rule_results *results,
                                  void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_delta_rule_check(r, results->o != 0, error);
    if (status == LMK_OK && results->o) {
        status = lmk_delta_rule_check_rows(r, TENSOR_NAMES(o), results->o, results->o_strides, 1,
                                           r->heads, r->value_dim, lmk_dtype_size(r->dtype), error);
    }
    if (status == LMK_OK && results->states && results->state_stride == 0)
        status = lmk_fail_size(error, "state_stride", 1, 0);
    if (status != LMK_OK) return status;
    const size_t needed = lmk_delta_rule_workspace_size(r);
    if (workspace_size < needed) return lmk_fail_size(error, "workspace", needed, workspace_size);
    if (!workspace) return lmk_fail_null(error, "workspace");
    forward_call call = plan(r);
    call.results = results;
    call.kernels = lmk_delta_rule_kernels();
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    lmk_parallel_for(sequences(r) * r->heads * call.groups, call.threads, run_unit, &call);
    return LMK_OK;
}
