// Softmax and its relatives: validation, the passes of a call, and threads.
#include "kernels/tables.h"
#include "problem.h"

const softmax_kernels *lmk_softmax_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &softmax_kernels_avx512;
    case LMK_ISA_AVX2: return &softmax_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &softmax_kernels_neon;
#endif
    default: return &softmax_kernels_generic;
    }
}

/// The reductions of a call in their order, and what is written at the end.
typedef struct pass_list {
    reduction reductions[2];
    size_t count;
    /// Whether anything of [rows, columns] is written, and by which pass.
    int is_writing;
    writing writing;
} pass_list;

/// Columns up to which three passes over a row are the fastest: their float32, beside the row
/// itself, stay in L2.
#define THREE_PASS_COLUMNS ((size_t)65536)

static lmk_softmax_algorithm algorithm_of(const lmk_softmax *s) {
    if (s->algorithm != LMK_SOFTMAX_AUTOMATIC) return s->algorithm;
    return s->columns <= THREE_PASS_COLUMNS ? LMK_SOFTMAX_THREE_PASS : LMK_SOFTMAX_ONLINE;
}

/// How m and S are found.
static pass_list exponential_passes(const lmk_softmax *s) {
    switch (algorithm_of(s)) {
    case LMK_SOFTMAX_ONLINE: return (pass_list){.reductions = {REDUCE_ONLINE}, .count = 1};
    case LMK_SOFTMAX_TWO_PASS: return (pass_list){.reductions = {REDUCE_PAIRS}, .count = 1};
    default: return (pass_list){.reductions = {REDUCE_MAX, REDUCE_SUM}, .count = 2};
    }
}

static pass_list forward_passes(const lmk_softmax *s) {
    pass_list passes = {.reductions = {REDUCE_STABLE_SUM}, .count = 1};
    switch (s->function) {
    case LMK_SOFTMAX:
        passes = exponential_passes(s);
        passes.writing = WRITE_SOFTMAX;
        break;
    case LMK_LOG_SOFTMAX:
        passes = exponential_passes(s);
        passes.writing = WRITE_LOG_SOFTMAX;
        break;
    case LMK_LOG_SUM_EXP: passes = exponential_passes(s); break;
    case LMK_STABLE_MAX: passes.writing = WRITE_STABLE_MAX; break;
    case LMK_LOG_STABLE_MAX: passes.writing = WRITE_LOG_STABLE_MAX; break;
    }
    passes.is_writing = s->function != LMK_LOG_SUM_EXP;
    return passes;
}

/// The same results from numbers that the last reduction stores: bit for bit, because it is the
/// same numbers that are scaled.
static pass_list storing(pass_list passes) {
    reduction *const last = &passes.reductions[passes.count - 1];
    *last = *last == REDUCE_SUM ? REDUCE_SUM_STORE : REDUCE_STABLE_STORE;
    passes.writing = WRITE_SCALED;
    return passes;
}

/// Whether the last reduction computes what is only to be scaled.
static int may_store(const pass_list *passes) {
    const reduction last = passes->reductions[passes->count - 1];
    return passes->is_writing &&
           ((last == REDUCE_SUM && passes->writing == WRITE_SOFTMAX) ||
            (last == REDUCE_STABLE_SUM && passes->writing == WRITE_STABLE_MAX));
}

static pass_list backward_passes(const lmk_softmax *s) {
    pass_list passes = {.count = 1};
    switch (s->function) {
    case LMK_SOFTMAX:
        passes.reductions[0] = REDUCE_DOT;
        passes.writing = WRITE_SOFTMAX_GRADIENT;
        break;
    case LMK_LOG_SOFTMAX:
        passes.reductions[0] = REDUCE_GRADIENT;
        passes.writing = WRITE_LOG_SOFTMAX_GRADIENT;
        break;
    case LMK_LOG_SUM_EXP:
        passes = exponential_passes(s);
        passes.writing = WRITE_LOG_SUM_EXP_GRADIENT;
        break;
    case LMK_STABLE_MAX:
        passes.reductions[0] = REDUCE_STABLE_DOT;
        passes.writing = WRITE_STABLE_MAX_GRADIENT;
        break;
    case LMK_LOG_STABLE_MAX:
        passes.reductions[0] = REDUCE_STABLE_GRADIENT;
        passes.writing = WRITE_LOG_STABLE_MAX_GRADIENT;
        break;
    }
    passes.is_writing = 1;
    return passes;
}

// MARK: Threads

/// Entries of the rows that one slot works on: a pass then finds in L1 what the one before it read.
#define SLOT_ENTRIES 4096
#define SLOT_ROWS_MAX 64

/// Entries below which the call stays on its thread.
#define SERIAL_ENTRIES 8192

/// Slices of a row that a thread takes at a time, where there are enough: what it fetches at the
/// end of them is another thread's.
#define SLOT_SLICES_MAX 16
#define SLOTS_PER_THREAD 8

/// Bytes of output that no cache is expected to keep.
#define STREAMING_BYTES ((size_t)32 << 20)

typedef struct softmax_call {
    softmax_job job;
    pass_list passes;
    const softmax_kernels *kernels;
    unsigned threads;
    float *log_sum_exp, *dscale;
    /// Rows of a slot.
    size_t slot_rows;
    /// Memory for what a slot's passes store, for each worker; null: they store it in y.
    float *scratch;
    size_t scratch_entries;
    /// For a row whose slices go to different threads: how many of them together, and a state and a
    /// sum for each.
    size_t row, slot_slices;
    row_state state, *slices;
    float *scale_sums;
    size_t pass;
} softmax_call;

static int is_general(const lmk_softmax *s) { return s->scale != 1.0f || s->mask; }

static reduce_function reduce_of(const softmax_call *call, size_t pass) {
    const lmk_softmax *const s = call->job.softmax;
    return call->kernels->reduce[call->passes.reductions[pass]][is_general(s)][s->dtype];
}

static write_function write_of(const softmax_call *call) {
    const lmk_softmax *const s = call->job.softmax;
    return call->kernels->write[call->passes.writing][is_general(s)][s->dtype];
}

static size_t slice_end(const softmax_call *call, size_t begin) {
    return lmk_min(begin + LMK_SOFTMAX_SLICE, call->job.softmax->columns);
}

/// Where the passes over a slot's rows store.
static row_store store_of(const softmax_call *call, size_t row, unsigned worker) {
    if (call->passes.writing != WRITE_SCALED) return (row_store){0};
    if (call->scratch) {
        return (row_store){call->scratch + worker * call->scratch_entries,
                           call->job.softmax->columns};
    }
    return (row_store){(float *)call->job.y + call->job.y_stride * row, call->job.y_stride};
}

/// Adds what a reduction found in the next slice.
static void take_in(const softmax_call *call, size_t pass, row_state *states,
                    const row_state *found, size_t rows, int is_first) {
    if (!is_first) {
        call->kernels->combine(call->passes.reductions[pass], states, found, rows);
        return;
    }
    for (size_t i = 0; i < rows; i++) states[i] = found[i];
}

/// Orders streaming stores before what follows: x86 lets them pass later ones, such as the one that
/// tells another thread that they are done.
static void finish_streaming(const softmax_call *call) {
#if defined(__x86_64__)
    if (call->job.is_streaming) __builtin_ia32_sfence();
#else
    (void)call;
#endif
}

/// All passes over a few rows, on one thread.
static void run_rows(void *context, size_t slot, unsigned worker) {
    const softmax_call *const call = context;
    const size_t columns = call->job.softmax->columns;
    const size_t row = slot * call->slot_rows,
                 rows = lmk_min(call->slot_rows, call->job.softmax->rows - row);
    const row_store store = store_of(call, row, worker);
    row_state known[SLOT_ROWS_MAX] = {0}, states[SLOT_ROWS_MAX], found[SLOT_ROWS_MAX];
    for (size_t pass = 0; pass < call->passes.count; pass++) {
        const reduce_function reduce = reduce_of(call, pass);
        for (size_t begin = 0; begin == 0 || begin < columns; begin += LMK_SOFTMAX_SLICE) {
            reduce(&call->job, row, rows, begin, slice_end(call, begin), known, store, found);
            take_in(call, pass, states, found, rows, begin == 0);
        }
        for (size_t i = 0; i < rows; i++) known[i] = states[i];
    }
    if (call->log_sum_exp) call->kernels->log_sum_exp(states, call->log_sum_exp + row, rows);
    if (!call->passes.is_writing) return;
    float sums[SLOT_ROWS_MAX];
    // Also of no columns: the gradient of scale is 0 then.
    for (size_t begin = 0; begin == 0 || begin < columns; begin += LMK_SOFTMAX_SLICE) {
        write_of(call)(&call->job, row, rows, begin, slice_end(call, begin), states, store, sums);
        for (size_t i = 0; call->dscale && i < rows; i++)
            call->dscale[row + i] = begin == 0 ? sums[i] : call->dscale[row + i] + sums[i];
    }
    finish_streaming(call);
}

/// The slice after a slot's last one.
static size_t slot_end(const softmax_call *call, size_t slot) {
    const size_t slices = lmk_divide_up(call->job.softmax->columns, LMK_SOFTMAX_SLICE);
    return lmk_min((slot + 1) * call->slot_slices, slices);
}

static void reduce_slices(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const softmax_call *const call = context;
    for (size_t i = slot * call->slot_slices; i < slot_end(call, slot); i++) {
        const size_t begin = i * LMK_SOFTMAX_SLICE;
        reduce_of(call, call->pass)(&call->job, call->row, 1, begin, slice_end(call, begin),
                                    &call->state, store_of(call, call->row, 0), call->slices + i);
    }
}

static void write_slices(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const softmax_call *const call = context;
    for (size_t i = slot * call->slot_slices; i < slot_end(call, slot); i++) {
        const size_t begin = i * LMK_SOFTMAX_SLICE;
        write_of(call)(&call->job, call->row, 1, begin, slice_end(call, begin), &call->state,
                       store_of(call, call->row, 0), call->scale_sums + i);
    }
    finish_streaming(call);
}

/// All passes over one row, its slices on different threads: the same slices, combined in the same
/// order, as on one.
static void run_long_row(softmax_call *call, size_t row) {
    const size_t slices = lmk_divide_up(call->job.softmax->columns, LMK_SOFTMAX_SLICE),
                 slots = lmk_divide_up(slices, call->slot_slices);
    call->row = row;
    call->state = (row_state){0};
    for (call->pass = 0; call->pass < call->passes.count; call->pass++) {
        lmk_parallel_for(slots, call->threads, reduce_slices, call);
        row_state state;
        for (size_t i = 0; i < slices; i++)
            take_in(call, call->pass, &state, call->slices + i, 1, i == 0);
        call->state = state;
    }
    if (call->log_sum_exp) call->kernels->log_sum_exp(&call->state, call->log_sum_exp + row, 1);
    if (!call->passes.is_writing) return;
    lmk_parallel_for(slots, call->threads, write_slices, call);
    for (size_t i = 0; call->dscale && i < slices; i++)
        call->dscale[row] = i == 0 ? call->scale_sums[0] : call->dscale[row] + call->scale_sums[i];
}

/// How a call uses threads and memory. It decides no bit.
typedef struct softmax_plan {
    unsigned threads;
    size_t slot_rows;
    /// Whether rows are too few for the threads and long enough to be cut; slices of each then.
    int cuts_rows;
    size_t slices;
    /// float32 that passes store for each worker; 0: in y, or not at all.
    size_t scratch_entries;
    int is_storing, is_streaming;
    size_t total;
} softmax_plan;

static size_t aligned(size_t bytes) { return lmk_round_up(bytes, 64); }

static softmax_plan plan_of(const lmk_softmax *s, const pass_list *passes) {
    softmax_plan plan = {.threads = lmk_thread_count(s->threads)};
    if (s->columns == 0 || s->rows <= SERIAL_ENTRIES / s->columns) plan.threads = 1;
    plan.cuts_rows = plan.threads > 1 && s->columns > 2 * LMK_SOFTMAX_SLICE &&
                     s->rows < 4 * (size_t)plan.threads;
    plan.slot_rows = lmk_min(SLOT_ROWS_MAX, SLOT_ENTRIES / lmk_max(s->columns, 1));
    plan.slot_rows = lmk_max(plan.slot_rows, 1);
    plan.is_streaming =
        s->columns > 0 && s->rows >= STREAMING_BYTES / s->columns / lmk_dtype_size(s->dtype);
    if (may_store(passes)) {
        const int in_y = s->dtype == LMK_FLOAT32 && !plan.is_streaming;
        const int fits = !plan.cuts_rows && s->columns <= THREE_PASS_COLUMNS;
        plan.is_storing = in_y || fits;
        if (!in_y && fits) plan.scratch_entries = plan.slot_rows * s->columns;
    }
    if (plan.cuts_rows) {
        plan.slices = lmk_divide_up(s->columns, LMK_SOFTMAX_SLICE);
        plan.total =
            aligned(plan.slices * sizeof(row_state)) + aligned(plan.slices * sizeof(float));
    } else {
        plan.total = plan.threads * aligned(plan.scratch_entries * sizeof(float));
    }
    if (plan.total > 0) plan.total += 64;
    return plan;
}

size_t lmk_softmax_workspace_size(const lmk_softmax *s) {
    if (lmk_softmax_check_kind(s, 0) != LMK_OK) return 0;
    // Backward stores nothing: it needs no more than forward.
    const pass_list passes = forward_passes(s);
    return plan_of(s, &passes).total;
}

static void run(softmax_call *call, void *workspace) {
    const lmk_softmax *const s = call->job.softmax;
    const softmax_plan plan = plan_of(s, &call->passes);
    char *const memory = (char *)lmk_round_up((uintptr_t)workspace, 64);
    call->kernels = lmk_softmax_kernels();
    call->threads = plan.threads;
    call->job.is_streaming = plan.is_streaming;
    if (plan.is_storing) call->passes = storing(call->passes);
    if (plan.cuts_rows) {
        call->slot_slices = lmk_max(
            1, lmk_min(SLOT_SLICES_MAX, plan.slices / (SLOTS_PER_THREAD * (size_t)plan.threads)));
        call->slices = (row_state *)(void *)memory;
        call->scale_sums = (float *)(void *)(memory + aligned(plan.slices * sizeof(row_state)));
        for (size_t row = 0; row < s->rows; row++) run_long_row(call, row);
        return;
    }
    call->slot_rows = plan.slot_rows;
    // Where a later pass finds the row in a cache. Threads take slots in turn: the next row of one
    // is as many slots on as there are threads.
    const reduction first = call->passes.reductions[0];
    if (s->columns <= THREE_PASS_COLUMNS &&
        (first == REDUCE_MAX || first == REDUCE_DOT || first == REDUCE_GRADIENT))
        call->job.later_rows = plan.slot_rows * plan.threads;
    call->scratch_entries = aligned(plan.scratch_entries * sizeof(float)) / sizeof(float);
    call->scratch = plan.scratch_entries > 0 ? (float *)(void *)memory : 0;
    lmk_parallel_for(lmk_divide_up(s->rows, plan.slot_rows), plan.threads, run_rows, call);
}

static lmk_status check_workspace(const lmk_softmax *s, const void *workspace, size_t size,
                                  lmk_error *error) {
    const size_t needed = lmk_softmax_workspace_size(s);
    if (size < needed) return lmk_fail_size(error, "workspace", needed, size);
    if (needed > 0 && !workspace) return lmk_fail_null(error, "workspace");
    return LMK_OK;
}

lmk_status lmk_softmax_forward(const lmk_softmax *s, void *y, size_t y_stride, float *log_sum_exp,
                               void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_softmax_check_options(s, error);
    if (status == LMK_OK) status = lmk_softmax_check_x(s, error);
    if (status != LMK_OK) return status;
    const int is_reduced = s->function == LMK_LOG_SUM_EXP;
    if (is_reduced) {
        if (s->rows > 0 && !y) return lmk_fail_null(error, "y");
        log_sum_exp = y;
    } else {
        status = lmk_softmax_check_matrix("y", "y_stride", y, s->rows, s->columns, y_stride,
                                          lmk_dtype_size(s->dtype), error);
        if (status != LMK_OK) return status;
        const int is_stable = s->function == LMK_STABLE_MAX || s->function == LMK_LOG_STABLE_MAX;
        if (is_stable && log_sum_exp)
            return lmk_fail_conflict(error, "log_sum_exp", "only with softmax and log_softmax");
        if (y == s->x && y_stride != s->x_stride)
            return lmk_fail_conflict(error, "y_stride", "that of x when y is x");
    }
    status = check_workspace(s, workspace, workspace_size, error);
    if (status != LMK_OK || s->rows == 0) return status;
    softmax_call call = {
        .job = {.softmax = s, .y = is_reduced ? 0 : y, .y_stride = y_stride},
        .passes = forward_passes(s),
        .log_sum_exp = log_sum_exp,
    };
    run(&call, workspace);
    return LMK_OK;
}

lmk_status lmk_softmax_backward(const lmk_softmax *s, const lmk_softmax_gradients *g,
                                void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_softmax_check_options(s, error);
    if (status != LMK_OK) return status;
    const size_t size = lmk_dtype_size(s->dtype);
    const int is_from_y = s->function == LMK_SOFTMAX || s->function == LMK_LOG_SOFTMAX;
    if (!is_from_y || g->dscale) status = lmk_softmax_check_x(s, error);
    if (status == LMK_OK && is_from_y) {
        status = lmk_softmax_check_matrix("y", "y_stride", g->y, s->rows, s->columns, g->y_stride,
                                          size, error);
    }
    if (status == LMK_OK && s->function == LMK_LOG_SUM_EXP) {
        status =
            lmk_softmax_check_matrix("dy", "dy_stride", g->dy, s->rows, 1, 1, sizeof(float), error);
    } else if (status == LMK_OK) {
        status = lmk_softmax_check_matrix("dy", "dy_stride", g->dy, s->rows, s->columns,
                                          g->dy_stride, size, error);
    }
    if (status == LMK_OK && g->dx) {
        status = lmk_softmax_check_matrix("dx", "dx_stride", g->dx, s->rows, s->columns,
                                          g->dx_stride, size, error);
    }
    if (status == LMK_OK) status = check_workspace(s, workspace, workspace_size, error);
    if (status != LMK_OK || s->rows == 0 || (!g->dx && !g->dscale)) return status;
    softmax_call call = {
        .job = {.softmax = s,
                .y = (void *)(uintptr_t)g->y,
                .y_stride = g->y_stride,
                .dy = g->dy,
                .dy_stride = g->dy_stride,
                .dx = g->dx,
                .dx_stride = g->dx_stride,
                .has_scale_gradient = g->dscale != 0},
        .passes = backward_passes(s),
        .dscale = g->dscale,
    };
    run(&call, workspace);
    return LMK_OK;
}
