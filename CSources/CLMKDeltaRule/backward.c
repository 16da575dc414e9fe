// Backward: the recurrence again, which keeps what each step corrected and states at the starts of
// blocks, then chunks from last to first.
#include "lmk_token_fetch.h"
#include "problem.h"

/// Bytes of what steps corrected, for the heads that a worker takes side by side.
#define ERROR_BYTES ((size_t)16 << 20)

typedef struct backward_call {
    const lmk_delta_rule *rule;
    const lmk_delta_rule_gradients *gradients;
    const delta_rule_kernels *kernels;
    /// What linear attention has too, with steps for tokens.
    lmk_linear_attention view;
    unsigned threads;
    /// Steps of the longest sequence, chunks of a block, and blocks.
    size_t steps, block_chunks, blocks;
    /// Query heads of a key head, which go together because their gradients are added, and key
    /// heads that one worker takes side by side.
    size_t group, unit_keys;
    float *workers;
    size_t worker_floats;
} backward_call;

/// What one worker has.
typedef struct backward_memory {
    delta_memory steps;
    delta_chunk chunk;
    /// Columns of lines that are fetched during a block of one head.
    float *fetch;
    /// Of each head of a unit: its state in slices, what is read of it and what it is multiplied
    /// with.
    float *slices, *carries, *scales;
    /// Of each head of a unit: e of all steps, states at the blocks' starts, dS, and states at the
    /// starts of a block's chunks.
    float *errors, *checkpoints, *dstates, *states;
    /// Sums over the heads of each group, for the steps of a block.
    float *dk, *dv, *da, *db;
} backward_memory;

/// The query heads of some key heads of a sequence; r counts them.
typedef struct backward_unit {
    size_t sequence, key_head, heads, steps;
} backward_unit;

static size_t unit_heads(const backward_call *call) { return call->group * call->unit_keys; }

static size_t error_floats(const backward_call *call) {
    return lmk_round_up(call->steps * call->rule->value_dim, 16);
}

static size_t slice_floats(const backward_call *call) {
    return SLICE_COLUMNS * call->rule->key_dim * panels_of(call->rule->value_dim);
}

static size_t carry_floats(const backward_call *call) {
    return CARRY_FLOATS * panels_of(call->rule->value_dim);
}

/// Passes over a state in a block, each of which fetches a column.
static size_t fetches_of(const backward_call *call) {
    return CHUNK_TOKENS / GROUP_STEPS * call->block_chunks * panels_of(call->rule->value_dim);
}

static size_t lay_out(const backward_call *call, float *memory, backward_memory *m) {
    const lmk_delta_rule *const r = call->rule;
    const size_t state = transposed_floats(&call->view), heads = unit_heads(call),
                 block = CHUNK_TOKENS * call->block_chunks,
                 sums = call->group > 1 ? block * call->unit_keys : 0,
                 general = r->is_generalized ? 1 : 0;
    *m = (backward_memory){0};
    size_t floats = lmk_delta_memory_layout(r, memory, &m->steps);
    floats += lmk_delta_chunk_layout(r, r->value_dim, 1, memory ? memory + floats : 0, &m->chunk);
    const matrix_part parts[] = {
        {&m->fetch, lmk_round_up(sizeof(fetch_column) * fetches_of(call), 64) / sizeof(float)},
        {&m->slices, slice_floats(call) * heads},
        {&m->carries, carry_floats(call) * heads},
        {&m->scales, heads * scale_floats_of(r->decay, r->key_dim)},
        {&m->errors, error_floats(call) * heads},
        {&m->checkpoints, state * call->blocks * heads},
        {&m->dstates, state * heads},
        {&m->states, state * call->block_chunks * heads},
        {&m->dk, sums * r->key_dim},
        {&m->dv, sums * r->value_dim},
        {&m->da, general * sums * r->key_dim},
        {&m->db, general * sums * r->key_dim},
    };
    floats += lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory ? memory + floats : 0);
    return lmk_round_up(floats, 32);
}

static backward_call plan_of(const lmk_delta_rule *r) {
    backward_call call = {
        .rule = r, .group = r->heads / r->key_heads, .view = lmk_delta_rule_view(r)};
    const lmk_linear_attention *const view = &call.view;
    size_t longest = 0;
    for (size_t n = 0; n < sequences_of(view); n++) longest = lmk_max(longest, tokens_of(view, n));
    call.steps = longest * r->steps;
    const size_t keys = sequences_of(view) * r->key_heads,
                 chunks = lmk_max(1, lmk_divide_up(call.steps, CHUNK_TOKENS)),
                 bytes = sizeof(float) * transposed_floats(view) * call.group;
    call.threads = (unsigned)lmk_min(lmk_thread_count(r->threads), lmk_max(1, keys));
    if (is_serial(view, r->tokens * r->steps)) call.threads = 1;
    const size_t budget = r->memory_budget / call.threads;
    call.block_chunks = lmk_linear_block_chunks(chunks, bytes, budget);
    call.blocks = lmk_divide_up(chunks, call.block_chunks);
    const size_t states = call.blocks + call.block_chunks,
                 errors = sizeof(float) * (error_floats(&call) + 1) * call.group;
    call.unit_keys =
        lmk_max(1, lmk_min(UNIT_BYTES / (bytes * call.block_chunks), ERROR_BYTES / errors));
    if (budget > 0) call.unit_keys = lmk_min(call.unit_keys, lmk_max(1, budget / (states * bytes)));
    if (call.threads > 1)
        call.unit_keys = lmk_min(call.unit_keys, lmk_max(1, keys / (2 * (size_t)call.threads)));
    call.unit_keys = lmk_min(call.unit_keys, r->key_heads);
    backward_memory memory;
    call.worker_floats = lay_out(&call, 0, &memory);
    return call;
}

size_t lmk_delta_rule_backward_workspace_size(const lmk_delta_rule *r) {
    if (lmk_delta_rule_check(r, 0, 0) != LMK_OK) return 0;
    const backward_call call = plan_of(r);
    return sizeof(float) * call.threads * call.worker_floats + 64;
}

// MARK: Where things lie

static size_t head_index(const backward_call *call, const backward_unit *u, size_t i) {
    return call->group * u->key_head + i;
}

static size_t state_index(const backward_call *call, const backward_unit *u, size_t i) {
    return call->rule->heads * u->sequence + head_index(call, u, i);
}

static delta_head head_of(const backward_call *call, const backward_unit *u, size_t i) {
    return lmk_delta_head(call->rule, 0, u->sequence, head_index(call, u, i), 0,
                          call->rule->value_dim);
}

static float *checkpoint_of(const backward_call *call, const backward_memory *m, size_t i,
                            size_t block) {
    return m->checkpoints + transposed_floats(&call->view) * (call->blocks * i + block);
}

/// The state before chunk `chunk` of a block.
static float *state_of(const backward_call *call, const backward_memory *m, size_t i, size_t block,
                       size_t chunk) {
    if (chunk == 0) return checkpoint_of(call, m, i, block);
    return m->states + transposed_floats(&call->view) * (call->block_chunks * i + chunk);
}

static token_rows_out rows_out(const backward_call *call, const backward_unit *u, void *data,
                               lmk_token_strides strides, size_t steps, size_t head, size_t width) {
    if (!data) return (token_rows_out){0};
    const lmk_delta_rule *const r = call->rule;
    const size_t at = lmk_delta_rule_offset(r, strides, steps, u->sequence, head);
    return (token_rows_out){(char *)data + lmk_dtype_size(r->dtype) * at, strides.token, r->dtype,
                            width};
}

/// The gradients that the query heads of a key head share.
typedef struct shared_gradients {
    token_rows_out rows[4];
    float *sums[4];
} shared_gradients;

/// Those of key head `key` of a unit.
static shared_gradients shared_of(const backward_call *call, const backward_unit *u,
                                  const backward_memory *m, size_t key) {
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_gradients *const to = call->gradients;
    const size_t head = u->key_head + key, block = CHUNK_TOKENS * call->block_chunks * key,
                 keys = block * r->key_dim;
    return (shared_gradients){
        .rows = {rows_out(call, u, to->k, to->k_strides, r->steps, head, r->key_dim),
                 rows_out(call, u, to->v, to->v_strides, r->steps, head, r->value_dim),
                 rows_out(call, u, to->a, to->a_strides, 1, head, r->key_dim),
                 rows_out(call, u, to->b, to->b_strides, 1, head, r->key_dim)},
        .sums = {m->dk + keys, m->dv + block * r->value_dim, m->da + keys, m->db + keys},
    };
}

/// Where the gradients of head `i` of a unit go. Sums over a group have the rows of the block that
/// begins at step `begin`: their row 0 lies that far before them.
static delta_gradients gradients_of(const backward_call *call, const backward_unit *u,
                                    const backward_memory *m, size_t i, size_t begin) {
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_gradients *const to = call->gradients;
    const size_t head = head_index(call, u, i);
    const token_rows_out output =
        rows_out(call, u, (void *)(uintptr_t)to->output, to->output_strides, 1, head, r->value_dim);
    shared_gradients shared = shared_of(call, u, m, i / call->group);
    for (size_t n = 0; call->group > 1 && n < 4; n++) {
        token_rows_out *const rows = shared.rows + n;
        if (!rows->data) continue;
        const uintptr_t first = (uintptr_t)shared.sums[n] - sizeof(float) * rows->width * begin;
        *rows = (token_rows_out){(void *)first, rows->width, LMK_FLOAT32, rows->width};
    }
    delta_gradients result = {
        .output = {output.data, output.stride, output.dtype, output.width},
        .q = rows_out(call, u, to->q, to->q_strides, 1, head, r->key_dim),
        .k = shared.rows[0],
        .v = shared.rows[1],
        .a = shared.rows[2],
        .b = shared.rows[3],
        .adds = i % call->group > 0,
        .beta_stride = to->beta_strides.token,
        .log_decay_stride = to->log_decay_strides.token,
    };
    if (to->beta)
        result.beta =
            to->beta + lmk_delta_rule_offset(r, to->beta_strides, r->steps, u->sequence, head);
    if (to->log_decay) {
        result.log_decay =
            to->log_decay + lmk_delta_rule_offset(r, to->log_decay_strides, 1, u->sequence, head);
    }
    return result;
}

/// The sums over groups of heads for the steps of a block go to where they belong.
static void store_sums(const backward_call *call, const backward_unit *u, const backward_memory *m,
                       size_t begin, size_t end) {
    const lmk_dtype dtype = call->rule->dtype;
    for (size_t key = 0; call->group > 1 && key < u->heads / call->group; key++) {
        const shared_gradients shared = shared_of(call, u, m, key);
        for (size_t n = 0; n < 4; n++) {
            const token_rows_out *const to = shared.rows + n;
            for (size_t t = begin; to->data && t < end; t++) {
                lmk_convert(shared.sums[n] + to->width * (t - begin), LMK_FLOAT32,
                            (char *)to->data + lmk_dtype_size(dtype) * to->stride * t, dtype,
                            to->width, 0);
            }
        }
    }
}

// MARK: Units of work

/// The rows that the recurrence needs in the block that begins at step `begin`.
static fetch_list fetches_from(const backward_call *call, const backward_unit *u, size_t begin) {
    const lmk_delta_rule *const r = call->rule;
    fetch_list list = {0};
    if (begin >= u->steps) return list;
    const size_t steps = lmk_min(CHUNK_TOKENS * call->block_chunks, u->steps - begin),
                 size = lmk_dtype_size(r->dtype), key_heads = u->heads / call->group,
                 token = begin / r->steps, tokens = lmk_divide_up(steps, r->steps);
    const delta_head head = head_of(call, u, 0);
    const struct {
        const void *data;
        size_t size;
        lmk_token_strides strides;
        size_t row, rows, heads, width;
    } tensors[] = {
        {head.rows.k.data, size, r->k_strides, begin, steps, key_heads, r->key_dim},
        {head.rows.v.data, size, r->v_strides, begin, steps, key_heads, r->value_dim},
        {r->decay == LMK_DECAY_KEY ? head.rows.log_decay : 0, sizeof(float), r->log_decay_strides,
         token, tokens, u->heads, r->key_dim},
        {head.a.data, size, r->a_strides, begin, steps, key_heads, r->key_dim},
        {head.b.data, size, r->b_strides, begin, steps, key_heads, r->key_dim},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        if (!tensors[i].data) continue;
        const char *const data = tensors[i].data;
        const size_t stride = tensors[i].strides.token;
        lmk_fetch_add(&list, data + tensors[i].size * stride * tensors[i].row, tensors[i].size,
                      stride, tensors[i].strides.head, tensors[i].rows, tensors[i].heads,
                      tensors[i].width);
    }
    return list;
}

/// The recurrence without queries; heads in turn, block by block.
static void keep_errors(const backward_call *call, const backward_unit *u, backward_memory *m) {
    const lmk_delta_rule *const r = call->rule;
    const size_t block = CHUNK_TOKENS * call->block_chunks, size = r->key_dim * r->value_dim,
                 scale_floats = scale_floats_of(r->decay, r->key_dim);
    fetch_column *const columns = (fetch_column *)(void *)m->fetch;
    for (size_t i = 0; i < u->heads; i++) {
        const delta_head head = head_of(call, u, i);
        for (size_t d = 0; d < scale_floats; d++) m->scales[scale_floats * i + d] = 1;
        call->kernels->import_state(
            &head.rows, r->initial_state ? r->initial_state + size * state_index(call, u, i) : 0,
            r->value_dim, m->slices + slice_floats(call) * i);
    }
    for (size_t begin = 0; begin < u->steps; begin += block) {
        const size_t end = lmk_min(begin + block, u->steps);
        fetch_list list = fetches_from(call, u, end);
        const size_t share = lmk_min(lmk_divide_up(list.columns, u->heads), fetches_of(call));
        for (size_t i = 0; i < u->heads; i++) {
            const delta_head head = head_of(call, u, i);
            float *const slices = m->slices + slice_floats(call) * i;
            const state_place place = {slices, slices, SLICE_COLUMNS, SLICE_COLUMNS * r->key_dim};
            lmk_fetch_next(&list, share, columns);
            float *const scale = m->scales + scale_floats * i;
            call->kernels->transpose(&head, slices, scale,
                                     checkpoint_of(call, m, i, begin / block));
            call->kernels->advance(&head, &m->steps, begin, end, u->steps, &place,
                                   m->carries + carry_floats(call) * i, scale, 0,
                                   m->errors + error_floats(call) * i, columns, share);
        }
    }
}

/// What a chunk of a head reads; that of tokens only about where there are several steps.
static near_rows rows_of_chunk(const backward_call *call, const backward_unit *u, size_t i,
                               size_t step, const float *errors, int reads) {
    const delta_head head = head_of(call, u, i);
    const lmk_delta_rule *const r = call->rule;
    near_rows near = {.token = step};
    add_near_rows(&near, head.rows.k);
    add_near_rows(&near, (token_rows){errors, r->value_dim, LMK_FLOAT32, r->value_dim});
    if (r->decay == LMK_DECAY_KEY) {
        add_near_rows(&near, (token_rows){head.rows.log_decay, head.rows.log_decay_stride,
                                          LMK_FLOAT32, r->key_dim});
    }
    if (!reads || r->steps > 1) return near;
    add_near_rows(&near, head.rows.q);
    const token_rows_out output =
        rows_out(call, u, (void *)(uintptr_t)call->gradients->output,
                 call->gradients->output_strides, 1, head_index(call, u, i), r->value_dim);
    add_near_rows(&near, (token_rows){output.data, output.stride, output.dtype, output.width});
    return near;
}

/// The chunks of one block, from last to first.
static void retreat_block(const backward_call *call, const backward_unit *u,
                          const backward_memory *m, size_t begin, size_t end) {
    const size_t size = transposed_floats(&call->view),
                 chunks = lmk_divide_up(end - begin, CHUNK_TOKENS),
                 block = begin / (CHUNK_TOKENS * call->block_chunks);
    delta_chunk chunk = m->chunk;
    for (size_t i = 0; i < u->heads; i++) {
        const delta_head head = head_of(call, u, i);
        chunk.errors = m->errors + error_floats(call) * i;
        for (size_t n = 0; n + 1 < chunks; n++) {
            chunk.near = rows_of_chunk(call, u, i, begin + CHUNK_TOKENS * (n + 1), chunk.errors, 0);
            call->kernels->sweep(&head, &chunk, begin + CHUNK_TOKENS * n, CHUNK_TOKENS,
                                 state_of(call, m, i, block, n),
                                 state_of(call, m, i, block, n + 1));
        }
    }
    for (size_t n = chunks; n-- > 0;) {
        const size_t step = begin + CHUNK_TOKENS * n;
        for (size_t i = 0; i < u->heads; i++) {
            const delta_head head = head_of(call, u, i);
            const delta_gradients to = gradients_of(call, u, m, i, begin);
            chunk.errors = m->errors + error_floats(call) * i;
            const int is_last = i + 1 == u->heads;
            const size_t after = is_last ? 0 : i + 1;
            chunk.near.count = 0;
            if (!is_last || n > 0) {
                chunk.near = rows_of_chunk(call, u, after, is_last ? step - CHUNK_TOKENS : step,
                                           m->errors + error_floats(call) * after, 1);
            }
            call->kernels->retreat(&head, &to, &chunk, step, lmk_min(CHUNK_TOKENS, end - step),
                                   state_of(call, m, i, block, n), m->dstates + size * i);
        }
    }
    store_sums(call, u, m, begin, end);
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_gradients *const to = call->gradients;
    const size_t units = lmk_divide_up(r->key_heads, call->unit_keys),
                 key_head = call->unit_keys * (slot % units), size = r->key_dim * r->value_dim,
                 state = transposed_floats(&call->view), block = CHUNK_TOKENS * call->block_chunks;
    const backward_unit u = {
        .sequence = slot / units,
        .key_head = key_head,
        .heads = call->group * lmk_min(call->unit_keys, r->key_heads - key_head),
        .steps = r->steps * tokens_of(&call->view, slot / units),
    };
    backward_memory m;
    lay_out(call, call->workers + call->worker_floats * worker, &m);
    for (size_t i = 0; i < u.heads; i++) {
        const size_t at = size * state_index(call, &u, i);
        lmk_linear_import_transposed(&call->view, to->final_state ? to->final_state + at : 0, 0,
                                     m.dstates + state * i);
    }
    keep_errors(call, &u, &m);
    for (size_t b = lmk_divide_up(u.steps, block); b-- > 0;)
        retreat_block(call, &u, &m, block * b, lmk_min(block * (b + 1), u.steps));
    for (size_t i = 0; to->initial_state && i < u.heads; i++) {
        lmk_linear_export_transposed(&call->view, m.dstates + state * i,
                                     to->initial_state + size * state_index(call, &u, i), 0);
    }
}

// MARK: Entry point

static lmk_status check_gradients(const lmk_delta_rule *r, const lmk_delta_rule_gradients *to,
                                  lmk_error *error) {
    if (to->log_decay && r->decay == LMK_DECAY_NONE)
        return lmk_fail_conflict(error, "dlog_decay", "only with a decay");
    if (to->beta && r->is_generalized)
        return lmk_fail_conflict(error, "dbeta", "none in the generalised form");
    if (!r->is_generalized && (to->a || to->b))
        return lmk_fail_conflict(error, to->a ? "da" : "db", "only in the generalised form");
    const size_t size = lmk_dtype_size(r->dtype);
    const struct {
        tensor_names names;
        const void *data;
        lmk_token_strides strides;
        size_t steps, heads, width, size;
        int is_there;
    } tensors[] = {
        {TENSOR_NAMES(output), to->output, to->output_strides, 1, r->heads, r->value_dim, size, 1},
        {TENSOR_NAMES(dq), to->q, to->q_strides, 1, r->heads, r->key_dim, size, to->q != 0},
        {TENSOR_NAMES(dk), to->k, to->k_strides, r->steps, r->key_heads, r->key_dim, size,
         to->k != 0},
        {TENSOR_NAMES(dv), to->v, to->v_strides, r->steps, r->key_heads, r->value_dim, size,
         to->v != 0},
        {TENSOR_NAMES(dbeta), to->beta, to->beta_strides, r->steps, r->heads, 1, sizeof(float),
         to->beta != 0},
        {TENSOR_NAMES(dlog_decay), to->log_decay, to->log_decay_strides, 1, r->heads,
         r->decay == LMK_DECAY_KEY ? r->key_dim : 1, sizeof(float), to->log_decay != 0},
        {TENSOR_NAMES(da), to->a, to->a_strides, 1, r->key_heads, r->key_dim, size, to->a != 0},
        {TENSOR_NAMES(db), to->b, to->b_strides, 1, r->key_heads, r->key_dim, size, to->b != 0},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        if (!tensors[i].is_there) continue;
        const lmk_status status = lmk_delta_rule_check_rows(
            r, tensors[i].names, tensors[i].data, tensors[i].strides, tensors[i].steps,
            tensors[i].heads, tensors[i].width, tensors[i].size, error);
        if (status != LMK_OK) return status;
    }
    return LMK_OK;
}

lmk_status lmk_delta_rule_backward(const lmk_delta_rule *r,
                                   const lmk_delta_rule_gradients *gradients, void *workspace,
                                   size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_delta_rule_check(r, 1, error);
    if (status == LMK_OK) status = check_gradients(r, gradients, error);
    if (status != LMK_OK) return status;
    const size_t needed = lmk_delta_rule_backward_workspace_size(r);
    if (workspace_size < needed) return lmk_fail_size(error, "workspace", needed, workspace_size);
    if (!workspace) return lmk_fail_null(error, "workspace");
    backward_call call = plan_of(r);
    call.gradients = gradients;
    call.kernels = lmk_delta_rule_kernels();
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    lmk_parallel_for(sequences_of(&call.view) * lmk_divide_up(r->key_heads, call.unit_keys),
                     call.threads, run_unit, &call);
    return LMK_OK;
}
