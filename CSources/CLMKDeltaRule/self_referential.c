// The self-referential weight matrix: validation, memory, and the order of tokens.
#include "kernels/self_reference_tables.h"
#include "lmk_linear_problem.h"

#include <math.h>
#include <string.h>

#define ALIGNMENT ((size_t)64)

/// Multiply-adds below which a call stays on its thread.
#define SERIAL_PRODUCTS ((size_t)1 << 18)

static const self_reference_kernels *kernels_in_use(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &self_reference_kernels_avx512;
    case LMK_ISA_AVX2: return &self_reference_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &self_reference_kernels_neon;
#endif
    default: return &self_reference_kernels_generic;
    }
}

size_t lmk_self_referential_rows(size_t key_dim, size_t value_dim) {
    return value_dim + 2 * key_dim + 4;
}

// ---- Validation

/// What is the same as in linear attention: sequences, and where rows lie.
static lmk_linear_attention view_of(const lmk_self_referential *m) {
    return (lmk_linear_attention){.dtype = m->dtype,
                                  .batch = m->batch,
                                  .tokens = m->tokens,
                                  .heads = m->heads,
                                  .key_heads = m->heads,
                                  .key_dim = m->key_dim,
                                  .value_dim = m->value_dim,
                                  .offsets = m->offsets,
                                  .sequences = m->sequences};
}

static size_t matrix_entries(const lmk_self_referential *m) {
    return m->key_dim * lmk_self_referential_rows(m->key_dim, m->value_dim);
}

static lmk_status check(const lmk_self_referential *m, lmk_error *error) {
    if ((unsigned)m->dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", m->dtype);
    const lmk_linear_attention view = view_of(m);
    lmk_status status = lmk_linear_attention_check_sizes(&view, error);
    if (status != LMK_OK) return status;
    size_t bytes = sizeof(float) * matrix_entries(m);
    if (!lmk_multiply_size(&bytes, m->heads) || !lmk_multiply_size(&bytes, sequences_of(&view)))
        return lmk_fail_overflow(error, m->offsets ? "sequences" : "batch");
    status = lmk_linear_attention_check_rows(&view, TENSOR_NAMES(x), m->x, m->x_strides, m->heads,
                                             m->key_dim, lmk_dtype_size(m->dtype), error);
    if (status == LMK_OK && sequences_of(&view) > 0 && !m->initial_matrix)
        status = lmk_fail_null(error, "initial_matrix");
    return status;
}

// ---- The plan

typedef struct self_reference_plan {
    self_reference_sizes sizes;
    size_t sequences, matrix_floats, token_floats;
    unsigned threads;
    /// Of backward: tokens between the matrices that are kept for all of a sequence, and those
    /// matrices; in the interval that is gone through back, one is kept for every block of tokens.
    size_t interval, kept;
} self_reference_plan;

static size_t longest(const lmk_linear_attention *view) {
    size_t tokens = 0;
    for (size_t n = 0; n < sequences_of(view); n++) tokens = lmk_max(tokens, tokens_of(view, n));
    return tokens;
}

static self_reference_plan plan_of(const lmk_self_referential *m) {
    const lmk_linear_attention view = view_of(m);
    self_reference_plan plan = {.sequences = sequences_of(&view)};
    const size_t rows = lmk_self_referential_rows(m->key_dim, m->value_dim);
    plan.sizes = (self_reference_sizes){m->key_dim, m->value_dim, rows,
                                        lmk_round_up(m->key_dim, 16), lmk_round_up(rows, 16)};
    plan.matrix_floats = plan.sizes.dim * plan.sizes.stride;
    plan.token_floats = 4 * (plan.sizes.width + plan.sizes.stride);
    const size_t slots = lmk_max(1, plan.sequences * m->heads), tokens = longest(&view);
    const double work =
        3 * (double)m->batch * (double)m->tokens * (double)m->heads * (double)plan.matrix_floats;
    plan.threads =
        work < (double)SERIAL_PRODUCTS ? 1 : (unsigned)lmk_min(lmk_thread_count(m->threads), slots);
    // sqrt(T) / 2 matrices are then kept outside of an interval, and a quarter as many in it, where
    // they stay in L2 with the rows of its tokens.
    plan.interval = lmk_round_up((size_t)ceil(2 * sqrt((double)tokens)), SELF_REFERENCE_WRITES);
    plan.kept = plan.interval > 0 ? lmk_divide_up(tokens, plan.interval) : 0;
    return plan;
}

static self_reference_token token_at(const self_reference_sizes *s, float *memory) {
    float *const wide = memory + 4 * s->width;
    return (self_reference_token){
        memory, memory + s->width, memory + 2 * s->width, memory + 3 * s->width,
        wide,   wide + s->stride,  wide + 2 * s->stride,  wide + 3 * s->stride};
}

typedef struct self_reference_call {
    const lmk_self_referential *m;
    const lmk_self_referential_gradients *gradients;
    lmk_linear_attention view;
    self_reference_plan plan;
    const self_reference_kernels *kernels;
    void *y;
    lmk_token_strides y_strides;
    float *final_matrix, *memory;
    /// Floats of each worker.
    size_t local_floats;
} self_reference_call;

static void *row_at(const self_reference_call *call, const void *data, lmk_token_strides strides,
                    size_t sequence, size_t token, size_t head) {
    const size_t offset = row_offset(&call->view, strides, sequence, token, head);
    return (char *)(uintptr_t)data + lmk_dtype_size(call->m->dtype) * offset;
}

static void load_input(const self_reference_call *call, size_t sequence, size_t token, size_t head,
                       float *to) {
    const lmk_self_referential *const m = call->m;
    call->kernels->load_input[m->dtype](&call->plan.sizes,
                                        row_at(call, m->x, m->x_strides, sequence, token, head),
                                        m->has_input_softmax, to);
}

/// Tokens between the one at hand and the one whose rows are fetched: in token-major order they lie
/// a page or more apart.
#define TOKENS_AHEAD ((size_t)4)

/// Fetches the row of a token to come.
static void fetch_row(const self_reference_call *call, const void *data, lmk_token_strides strides,
                      size_t sequence, size_t token, size_t head, size_t columns) {
    const char *const row = row_at(call, data, strides, sequence, token, head);
    for (size_t i = 0; i < lmk_dtype_size(call->m->dtype) * columns; i += 64)
        __builtin_prefetch(row + i);
}

static const float *initial_matrix(const lmk_self_referential *m, size_t sequence, size_t head) {
    const size_t n = m->shares_initial_matrix ? 0 : sequence;
    return m->initial_matrix + matrix_entries(m) * (m->heads * n + head);
}

static self_reference_call call_of(const lmk_self_referential *m, void *workspace) {
    return (self_reference_call){
        .m = m,
        .view = view_of(m),
        .plan = plan_of(m),
        .kernels = kernels_in_use(),
        .memory = (float *)(void *)(((uintptr_t)workspace + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT),
    };
}

static lmk_status check_workspace(const void *workspace, size_t size, size_t needed,
                                  lmk_error *error) {
    if (size < needed) return lmk_fail_size(error, "workspace", needed, size);
    if (needed > 0 && !workspace) return lmk_fail_null(error, "workspace");
    return LMK_OK;
}

/// Bytes for `floats` of each worker; 0 when they cannot be counted.
static size_t workspace_bytes(const self_reference_plan *plan, size_t floats) {
    size_t bytes = sizeof(float) * floats;
    if (plan->sequences == 0) return 0;
    return lmk_multiply_size(&bytes, plan->threads) ? bytes + ALIGNMENT : 0;
}

// ---- Forward

/// W, two tokens.
static size_t forward_floats(const self_reference_plan *plan) {
    return plan->matrix_floats + 2 * plan->token_floats;
}

size_t lmk_self_referential_workspace_size(const lmk_self_referential *m) {
    if (check(m, 0) != LMK_OK) return 0;
    const self_reference_plan plan = plan_of(m);
    return workspace_bytes(&plan, forward_floats(&plan));
}

/// Tokens begin ..< end, with W where it lies. Rows of token t are those of slot (t - begin) %
/// slots in `tokens`. Where `blocks` is there W is kept in it before every block of tokens.
static void run_tokens(const self_reference_call *call, size_t sequence, size_t head, size_t begin,
                       size_t end, float *matrix, float *tokens, size_t slots, float *blocks) {
    const lmk_self_referential *const m = call->m;
    const self_reference_plan *const plan = &call->plan;
    for (size_t t = begin; t < end; t++) {
        const size_t i = t - begin, ahead = t + TOKENS_AHEAD;
        const self_reference_token token = token_at(&plan->sizes,
                                                    tokens + plan->token_floats * (i % slots)),
                                   next = token_at(&plan->sizes,
                                                   tokens + plan->token_floats * ((i + 1) % slots));
        if (blocks && i % SELF_REFERENCE_WRITES == 0) {
            memcpy(blocks + plan->matrix_floats * (i / SELF_REFERENCE_WRITES), matrix,
                   sizeof(float) * plan->matrix_floats);
        }
        if (i == 0) {
            load_input(call, sequence, t, head, token.input);
            call->kernels->multiply(&plan->sizes, matrix, token.input, token.produced);
        }
        if (ahead < end) {
            fetch_row(call, m->x, m->x_strides, sequence, ahead, head, m->key_dim);
            if (call->y)
                fetch_row(call, call->y, call->y_strides, sequence, ahead, head, m->value_dim);
        }
        const int is_last = t + 1 == end;
        if (!is_last) load_input(call, sequence, t + 1, head, next.input);
        if (call->y) {
            call->kernels->store_row[m->dtype](
                token.produced, m->value_dim,
                row_at(call, call->y, call->y_strides, sequence, t, head));
        }
        call->kernels->step(&plan->sizes, &token, matrix, is_last ? 0 : next.input, next.produced);
    }
}

static void forward_slot(void *context, size_t slot, unsigned worker) {
    const self_reference_call *const call = context;
    const lmk_self_referential *const m = call->m;
    const self_reference_plan *const plan = &call->plan;
    const size_t sequence = slot / m->heads, head = slot % m->heads;
    float *const matrix = call->memory + call->local_floats * worker;
    call->kernels->load_matrix(&plan->sizes, initial_matrix(m, sequence, head), matrix);
    run_tokens(call, sequence, head, 0, tokens_of(&call->view, sequence), matrix,
               matrix + plan->matrix_floats, 2, 0);
    if (call->final_matrix)
        call->kernels->store_matrix(&plan->sizes, matrix,
                                    call->final_matrix + matrix_entries(m) * slot);
}

lmk_status lmk_self_referential_forward(const lmk_self_referential *m, void *y,
                                        lmk_token_strides y_strides, float *final_matrix,
                                        void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = check(m, error);
    if (status != LMK_OK) return status;
    self_reference_call call = call_of(m, workspace);
    status = lmk_linear_attention_check_rows(&call.view, TENSOR_NAMES(y), y, y_strides, m->heads,
                                             m->value_dim, lmk_dtype_size(m->dtype), error);
    if (status == LMK_OK && m->shares_initial_matrix && final_matrix &&
        final_matrix == m->initial_matrix)
        status = lmk_fail_conflict(error, "final_matrix", "not the initial one where it is shared");
    call.local_floats = forward_floats(&call.plan);
    if (status == LMK_OK) {
        status = check_workspace(workspace, workspace_size,
                                 workspace_bytes(&call.plan, call.local_floats), error);
    }
    if (status != LMK_OK) return status;
    call.y = y;
    call.y_strides = y_strides;
    call.final_matrix = final_matrix;
    lmk_parallel_for(call.plan.sequences * m->heads, call.plan.threads, forward_slot, &call);
    return LMK_OK;
}

// ---- Backward

static size_t gradient_floats(const self_reference_sizes *s) {
    return 2 * s->stride + (3 + 16) * s->width;
}

/// Matrices of an interval.
static size_t blocks_of(const self_reference_plan *plan) {
    return plan->interval / SELF_REFERENCE_WRITES;
}

/// Floats of a worker: the matrices that are kept, those of an interval with its tokens, W and its
/// gradient, and rows of one token's.
static size_t backward_floats(const self_reference_plan *plan) {
    return plan->matrix_floats * (plan->kept + blocks_of(plan) + 2) +
           plan->token_floats * plan->interval + gradient_floats(&plan->sizes);
}

/// Bytes must be countable: checked in floating point, before products overflow.
static lmk_status check_backward(const lmk_self_referential *m, lmk_error *error) {
    const lmk_status status = check(m, error);
    if (status != LMK_OK) return status;
    const self_reference_plan plan = plan_of(m);
    const double floats =
        (double)(plan.matrix_floats + plan.token_floats) * (double)(plan.kept + plan.interval + 3);
    if (floats * plan.threads > 0x1p60) return lmk_fail_overflow(error, "tokens");
    return LMK_OK;
}

size_t lmk_self_referential_backward_workspace_size(const lmk_self_referential *m) {
    if (check_backward(m, 0) != LMK_OK) return 0;
    const self_reference_plan plan = plan_of(m);
    return workspace_bytes(&plan, backward_floats(&plan));
}

/// A worker's memory of backward.
typedef struct backward_memory {
    /// W before tokens 0, interval, 2 interval, ...; before each block of an interval; where it is
    /// computed.
    float *kept, *blocks, *matrix;
    float *tokens, *gradient, *rows;
} backward_memory;

static backward_memory backward_memory_at(const self_reference_plan *plan, float *memory) {
    backward_memory b = {.kept = memory};
    b.blocks = b.kept + plan->matrix_floats * plan->kept;
    b.matrix = b.blocks + plan->matrix_floats * blocks_of(plan);
    b.gradient = b.matrix + plan->matrix_floats;
    b.tokens = b.gradient + plan->matrix_floats;
    b.rows = b.tokens + plan->token_floats * plan->interval;
    return b;
}

/// W before a token of an interval.
static self_reference_matrix matrix_before(const self_reference_plan *plan,
                                           const backward_memory *memory, size_t token) {
    const size_t count = token % SELF_REFERENCE_WRITES;
    const self_reference_token first =
        token_at(&plan->sizes, memory->tokens + plan->token_floats * (token - count));
    const size_t block = token / SELF_REFERENCE_WRITES;
    return (self_reference_matrix){memory->blocks + plan->matrix_floats * block, first.change,
                                   first.key, count, plan->token_floats};
}

/// The tokens of an interval back, whose rows and matrices are there.
static void run_interval_back(const self_reference_call *call, size_t sequence, size_t head,
                              size_t begin, size_t end, const backward_memory *memory) {
    const lmk_self_referential *const m = call->m;
    const lmk_self_referential_gradients *const g = call->gradients;
    const self_reference_plan *const plan = &call->plan;
    const self_reference_sizes *const s = &plan->sizes;
    float *const rows = memory->rows, *const narrow = rows + 2 * s->stride;
    const self_reference_gradient scratch = {rows,
                                             rows + s->stride,
                                             narrow,
                                             narrow + s->width,
                                             narrow + 2 * s->width,
                                             narrow + 3 * s->width};
    self_reference_token after = {0};
    for (size_t t = end; t-- > begin;) {
        const self_reference_token token =
            token_at(s, memory->tokens + plan->token_floats * (t - begin));
        const self_reference_matrix matrix = matrix_before(plan, memory, t - begin);
        call->kernels->step_back[m->dtype](
            s, &token, t + 1 == end ? 0 : &after, &scratch, &matrix, memory->gradient,
            row_at(call, g->dy, g->dy_strides, sequence, t, head), m->has_input_softmax,
            g->dx ? row_at(call, g->dx, g->dx_strides, sequence, t, head) : 0);
        after = token;
    }
    call->kernels->write_gradient(s, &after, &scratch, memory->gradient);
}

static void run_back(const self_reference_call *call, size_t sequence, size_t head,
                     const backward_memory *memory) {
    const lmk_self_referential *const m = call->m;
    const lmk_self_referential_gradients *const g = call->gradients;
    const self_reference_plan *const plan = &call->plan;
    const self_reference_sizes *const s = &plan->sizes;
    const size_t tokens = tokens_of(&call->view, sequence), slot = m->heads * sequence + head,
                 bytes = plan->matrix_floats * sizeof(float);
    if (g->dfinal_matrix)
        call->kernels->load_matrix(s, g->dfinal_matrix + matrix_entries(m) * slot,
                                   memory->gradient);
    else memset(memory->gradient, 0, bytes);
    if (tokens == 0) return;
    const size_t intervals = lmk_divide_up(tokens, plan->interval);
    call->kernels->load_matrix(s, initial_matrix(m, sequence, head), memory->matrix);
    for (size_t i = 0; i < intervals; i++) {
        const size_t begin = plan->interval * i;
        memcpy(memory->kept + plan->matrix_floats * i, memory->matrix, bytes);
        if (i + 1 < intervals) {
            run_tokens(call, sequence, head, begin, begin + plan->interval, memory->matrix,
                       memory->tokens, 2, 0);
        }
    }
    for (size_t i = intervals; i-- > 0;) {
        const size_t begin = plan->interval * i, end = lmk_min(tokens, begin + plan->interval);
        memcpy(memory->matrix, memory->kept + plan->matrix_floats * i, bytes);
        run_tokens(call, sequence, head, begin, end, memory->matrix, memory->tokens, plan->interval,
                   memory->blocks);
        run_interval_back(call, sequence, head, begin, end, memory);
    }
}

static void backward_slot(void *context, size_t slot, unsigned worker) {
    const self_reference_call *const call = context;
    const lmk_self_referential *const m = call->m;
    const backward_memory memory =
        backward_memory_at(&call->plan, call->memory + call->local_floats * worker);
    run_back(call, slot / m->heads, slot % m->heads, &memory);
    if (call->gradients->dinitial_matrix) {
        call->kernels->store_matrix(&call->plan.sizes, memory.gradient,
                                    call->gradients->dinitial_matrix + matrix_entries(m) * slot);
    }
}

/// One head of all sequences, which share its initial matrix.
static void shared_slot(void *context, size_t head, unsigned worker) {
    const self_reference_call *const call = context;
    const lmk_self_referential *const m = call->m;
    const self_reference_plan *const plan = &call->plan;
    const backward_memory memory =
        backward_memory_at(plan, call->memory + call->local_floats * worker);
    float *const to = call->gradients->dinitial_matrix + matrix_entries(m) * head;
    float *const dense = memory.matrix;
    for (size_t n = 0; n < plan->sequences; n++) {
        run_back(call, n, head, &memory);
        call->kernels->store_matrix(&plan->sizes, memory.gradient, n == 0 ? to : dense);
        if (n > 0) call->kernels->add(dense, to, matrix_entries(m));
    }
}

lmk_status lmk_self_referential_backward(const lmk_self_referential *m,
                                         const lmk_self_referential_gradients *g, void *workspace,
                                         size_t workspace_size, lmk_error *error) {
    lmk_status status = check_backward(m, error);
    if (status != LMK_OK) return status;
    self_reference_call call = call_of(m, workspace);
    const size_t size = lmk_dtype_size(m->dtype);
    status = lmk_linear_attention_check_rows(&call.view, TENSOR_NAMES(dy), g->dy, g->dy_strides,
                                             m->heads, m->value_dim, size, error);
    if (status == LMK_OK && g->dx) {
        status = lmk_linear_attention_check_rows(&call.view, TENSOR_NAMES(dx), g->dx, g->dx_strides,
                                                 m->heads, m->key_dim, size, error);
    }
    const int is_shared = m->shares_initial_matrix && g->dinitial_matrix;
    if (status == LMK_OK && is_shared && g->dinitial_matrix == g->dfinal_matrix) {
        status = lmk_fail_conflict(error, "dinitial_matrix",
                                   "not dfinal_matrix where the initial one is shared");
    }
    call.local_floats = backward_floats(&call.plan);
    if (status == LMK_OK) {
        status = check_workspace(workspace, workspace_size,
                                 workspace_bytes(&call.plan, call.local_floats), error);
    }
    if (status != LMK_OK) return status;
    call.gradients = g;
    if (is_shared && call.plan.sequences == 0) {
        memset(g->dinitial_matrix, 0, sizeof(float) * matrix_entries(m) * m->heads);
    } else if (is_shared) {
        lmk_parallel_for(m->heads, call.plan.threads, shared_slot, &call);
    } else {
        lmk_parallel_for(call.plan.sequences * m->heads, call.plan.threads, backward_slot, &call);
    }
    return LMK_OK;
}
