// Forward.
#include "lmk_token_fetch.h"
#include "problem.h"

/// Bytes of the rows that the heads of a unit read in a block: they stay in cache.
#define BLOCK_BYTES ((size_t)256 << 10)

typedef struct forward_call {
    const lmk_delta_rule *rule;
    const lmk_delta_rule_results *results;
    const delta_rule_kernels *kernels;
    /// Null: chunks of 16 steps, without tiles.
    const delta_tile_kernels *tiles;
    linear_plan plan;
    size_t block_tokens;
    float *workers;
    size_t worker_floats;
} forward_call;

/// Columns column ..< column + columns of the values of some heads of a sequence.
typedef struct forward_unit {
    size_t sequence, tokens, head, heads, column, columns;
} forward_unit;

/// A worker's memory: steps, what is fetched, and for each head of a unit its state and what that
/// is to be multiplied with.
typedef struct worker_memory {
    delta_memory steps;
    float *fetch, *states, *scales, *carries;
    /// Of the chunked form: a chunk, the same on tiles, and another state.
    delta_chunk chunk;
    delta_tiles tiles;
    float *other_state;
} worker_memory;

static size_t slice_floats(const lmk_delta_rule *r, size_t columns) {
    // Slices as narrow as they come.
    return SLICE_COLUMNS * r->key_dim * panels_of(columns);
}

/// Steps of a token that count where work is cut: with more of them a token is a block of its own.
static size_t counted_steps(const lmk_delta_rule *r) { return lmk_min(r->steps, BLOCK_TOKENS); }

/// Passes over the states of a unit in a block, each of which fetches a column.
static size_t fetches_of(const forward_call *call) {
    const size_t steps = counted_steps(call->rule) * call->block_tokens;
    return lmk_divide_up(steps, GROUP_STEPS) * panels_of(call->plan.group_columns);
}

/// Steps from which chunks on tiles are faster than passes; CONTRIBUTING.md has the figures.
#define TILED_STEPS 32

/// Whether what is asked for can be computed on tiles, and the kernels where this CPU can do it
/// too.
static int can_be_tiled(const lmk_delta_rule *r) {
    return fits_tiles(r->dtype, r->decay) && !r->is_generalized &&
           r->form != LMK_DELTA_RULE_RECURRENT;
}

static const delta_tile_kernels *tile_kernels(const lmk_delta_rule *r) {
#if defined(__x86_64__)
    if (can_be_tiled(r) && lmk_cpu_isa() == LMK_ISA_AMX) return &delta_tile_kernels_amx;
#else
    (void)r;
#endif
    return 0;
}

/// Whether a sequence of this length is computed in chunks.
static int is_chunked(const forward_call *call, size_t tokens) {
    const lmk_delta_rule *const r = call->rule;
    if (r->form == LMK_DELTA_RULE_AUTOMATIC)
        return call->tiles && lmk_divide_up(TILED_STEPS, r->steps) <= tokens;
    return r->form == LMK_DELTA_RULE_CHUNKED;
}

static size_t tiles_layout(const lmk_delta_rule *r, float *memory, delta_tiles *to) {
    *to = (delta_tiles){0};
    if (!can_be_tiled(r)) return 0;
    const size_t shared = lmk_linear_lay_out_tiles(r->key_dim, memory, &to->products),
                 rows = TILE_TOKENS * lmk_round_up(r->key_dim, 32) / 2,
                 pairs = TILE_TOKENS * TILE_TOKENS / 2;
    float *factors[6];
    const matrix_part parts[] = {
        {&factors[0], TILE_TOKENS * SLICE_COLUMNS / 2},
        {&factors[1], TILE_TOKENS * SLICE_COLUMNS / 2},
        {&factors[2], rows},
        {&factors[3], pairs},
        {&factors[4], pairs},
        {&factors[5], pairs},
        {&to->rates, TILE_TOKENS},
        {&to->own_pairs, TILE_TOKENS * CHUNK_TOKENS},
        {&to->reads, TILE_TOKENS * SLICE_COLUMNS},
        {&to->met, CHUNK_TOKENS * SLICE_COLUMNS},
    };
    const size_t floats =
        lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory ? memory + shared : 0);
    uint16_t **const places[] = {&to->values_low, &to->values_last, &to->keys_left,
                                 &to->met_high,   &to->met_low,     &to->met_last};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        *places[i] = (uint16_t *)(void *)factors[i];
    return shared + floats;
}

static size_t worker_layout(const forward_call *call, float *memory, worker_memory *to) {
    const lmk_delta_rule *const r = call->rule;
    const size_t columns = lmk_min(call->plan.group_columns, r->value_dim),
                 state = PANEL * panels_of(r->key_dim) * panels_of(columns),
                 chunked = r->form == LMK_DELTA_RULE_CHUNKED || can_be_tiled(r) ? 1 : 0;
    size_t steps = lmk_delta_memory_layout(r, memory, &to->steps);
    if (chunked)
        steps += lmk_delta_chunk_layout(r, columns, 0, memory ? memory + steps : 0, &to->chunk);
    steps += tiles_layout(r, memory ? memory + steps : 0, &to->tiles);
    const matrix_part parts[] = {
        {&to->fetch, lmk_round_up(sizeof(fetch_column) * fetches_of(call), 64) / sizeof(float)},
        {&to->states, call->plan.unit_heads * lmk_max(slice_floats(r, columns), chunked * state)},
        {&to->scales, call->plan.unit_heads * scale_floats_of(r->decay, r->key_dim)},
        {&to->carries, call->plan.unit_heads * CARRY_FLOATS * panels_of(columns)},
        {&to->other_state, chunked * state},
    };
    return steps +
           lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory ? memory + steps : 0);
}

/// Columns do not meet, and blocks change nothing but the order of work, so the plan is not a
/// matter of results.
static forward_call plan_of(const lmk_delta_rule *r) {
    lmk_linear_attention view = lmk_delta_rule_view(r);
    view.form = LMK_LINEAR_ATTENTION_RECURRENT;
    forward_call call = {.rule = r, .plan = lmk_linear_plan(&view)};
    if (is_serial(&view, r->tokens * r->steps)) call.plan.threads = 1;
    const size_t token_bytes = call.plan.unit_heads * lmk_dtype_size(r->dtype) *
                               (counted_steps(r) + 1) * (r->key_dim + r->value_dim);
    call.block_tokens =
        lmk_min(BLOCK_TOKENS, lmk_round_up(BLOCK_BYTES / token_bytes + 1, CHUNK_TOKENS));
    // Whole chunks on tiles.
    if (can_be_tiled(r)) call.block_tokens = BLOCK_TOKENS;
    worker_memory memory;
    call.worker_floats = lmk_round_up(worker_layout(&call, 0, &memory), 32);
    return call;
}

size_t lmk_delta_rule_workspace_size(const lmk_delta_rule *r) {
    if (lmk_delta_rule_check(r, 0, 0) != LMK_OK) return 0;
    const forward_call call = plan_of(r);
    return sizeof(float) * call.plan.threads * call.worker_floats + 64;
}

static forward_unit unit_of(const forward_call *call, size_t slot) {
    const lmk_delta_rule *const r = call->rule;
    const linear_plan *const plan = &call->plan;
    const lmk_linear_attention view = lmk_delta_rule_view(r);
    const size_t units = lmk_divide_up(r->heads, plan->unit_heads), group = slot % plan->groups,
                 rest = slot / plan->groups, column = plan->group_columns * group,
                 head = plan->unit_heads * (rest % units);
    return (forward_unit){
        .sequence = rest / units,
        .tokens = tokens_of(&view, rest / units),
        .head = head,
        .heads = lmk_min(plan->unit_heads, r->heads - head),
        .column = column,
        .columns = lmk_min(plan->group_columns, r->value_dim - column),
    };
}

/// The rows that a unit needs in the block that begins at token `begin`.
static fetch_list fetches_from(const forward_call *call, const forward_unit *u, size_t begin) {
    const lmk_delta_rule *const r = call->rule;
    fetch_list list = {0};
    if (begin >= u->tokens) return list;
    const size_t tokens = lmk_min(call->block_tokens, u->tokens - begin), steps = r->steps,
                 size = lmk_dtype_size(r->dtype), group = r->heads / r->key_heads,
                 key_heads = lmk_divide_up(u->heads, group);
    const delta_head head =
        lmk_delta_head(r, call->results, u->sequence, u->head, u->column, u->columns);
    const struct {
        const void *data;
        size_t size;
        lmk_token_strides strides;
        size_t rows, heads, width;
    } tensors[] = {
        {head.rows.k.data, size, r->k_strides, steps, key_heads, r->key_dim},
        {call->results->o ? head.rows.q.data : 0, size, r->q_strides, 1, u->heads, r->key_dim},
        {head.rows.v.data, size, r->v_strides, steps, key_heads, u->columns},
        {r->decay == LMK_DECAY_KEY ? head.rows.log_decay : 0, sizeof(float), r->log_decay_strides,
         1, u->heads, r->key_dim},
        {head.a.data, size, r->a_strides, 1, key_heads, r->key_dim},
        {head.b.data, size, r->b_strides, 1, key_heads, r->key_dim},
        {head.rows.o.data, size, call->results->o_strides, 1, u->heads, u->columns},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        if (!tensors[i].data) continue;
        const char *const data = tensors[i].data;
        const size_t rows = tensors[i].rows, stride = tensors[i].strides.token;
        lmk_fetch_add(&list, data + tensors[i].size * stride * rows * begin, tensors[i].size,
                      stride, tensors[i].strides.head, rows * tokens, tensors[i].heads,
                      tensors[i].width);
    }
    return list;
}

static size_t state_at(const lmk_delta_rule *r, const forward_unit *u, size_t i) {
    return r->key_dim * r->value_dim * (r->heads * u->sequence + u->head + i) + u->column;
}

static delta_head head_of(const forward_call *call, const forward_unit *u, size_t i) {
    return lmk_delta_head(call->rule, call->results, u->sequence, u->head + i, u->column,
                          u->columns);
}

/// A sequence without tokens: its start is its end.
static void pass_on(const forward_call *call, const forward_unit *u) {
    const lmk_delta_rule *const r = call->rule;
    for (size_t i = 0; call->results->final_state && i < u->heads; i++) {
        const size_t at = state_at(r, u, i);
        for (size_t d = 0; d < r->key_dim; d++) {
            for (size_t e = 0; e < u->columns; e++) {
                const size_t entry = at + r->value_dim * d + e;
                call->results->final_state[entry] = r->initial_state ? r->initial_state[entry] : 0;
            }
        }
    }
}

/// States that are kept of the sequences before a unit's.
static size_t kept_before(const forward_call *call, const forward_unit *u) {
    const lmk_linear_attention view = lmk_delta_rule_view(call->rule);
    size_t before = 0;
    for (size_t n = 0; n < u->sequence; n++)
        before += tokens_of(&view, n) / call->results->state_stride;
    return before;
}

/// One step, on the state where it lies.
static void run_step(const forward_call *call, const forward_unit *u, worker_memory *memory) {
    const lmk_delta_rule *const r = call->rule;
    for (size_t i = 0; i < u->heads; i++) {
        const delta_head head = head_of(call, u, i);
        const size_t at = state_at(r, u, i);
        call->kernels->step(&head, &memory->steps, r->initial_state + at,
                            call->results->final_state + at, r->value_dim);
    }
}

/// Heads in turn, block by block, so that what lies side by side in memory is used together.
static void run_blocks(const forward_call *call, const forward_unit *u, worker_memory *memory) {
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_results *const results = call->results;
    const size_t size = r->key_dim * r->value_dim, state_floats = slice_floats(r, u->columns),
                 scale_floats = scale_floats_of(r->decay, r->key_dim),
                 carry_floats = CARRY_FLOATS * panels_of(u->columns);
    const size_t before = results->states ? kept_before(call, u) : 0;
    for (size_t i = 0; i < u->heads; i++) {
        const delta_head head = head_of(call, u, i);
        for (size_t d = 0; d < scale_floats; d++) memory->scales[scale_floats * i + d] = 1;
        call->kernels->import_state(&head.rows,
                                    r->initial_state ? r->initial_state + state_at(r, u, i) : 0,
                                    r->value_dim, memory->states + state_floats * i);
    }
    fetch_column *const columns = (fetch_column *)(void *)memory->fetch;
    for (size_t begin = 0; begin < u->tokens; begin += call->block_tokens) {
        const size_t end = lmk_min(begin + call->block_tokens, u->tokens);
        fetch_list list = fetches_from(call, u, end);
        const size_t share = lmk_min(lmk_divide_up(list.columns, u->heads), fetches_of(call));
        for (size_t i = 0; i < u->heads; i++) {
            const delta_head head = head_of(call, u, i);
            const kept_states kept = {
                .data = results->states
                            ? results->states + size * (r->heads * before + u->head + i) + u->column
                            : 0,
                .stride = results->state_stride,
                .step = size * r->heads,
                .row_stride = r->value_dim,
            };
            float *const state = memory->states + state_floats * i;
            const state_place place = {state, state, SLICE_COLUMNS, SLICE_COLUMNS * r->key_dim};
            lmk_fetch_next(&list, share, columns);
            call->kernels->advance(&head, &memory->steps, r->steps * begin, r->steps * end,
                                   r->steps * u->tokens, &place, memory->carries + carry_floats * i,
                                   memory->scales + scale_floats * i, results->states ? &kept : 0,
                                   0, columns, share);
        }
    }
    for (size_t i = 0; results->final_state && i < u->heads; i++) {
        const delta_head head = head_of(call, u, i);
        call->kernels->export_state(&head.rows, memory->states + state_floats * i, 0,
                                    results->final_state + state_at(r, u, i), r->value_dim);
    }
}

/// Chunks of steps begin ..< end of a head. Where a state is kept inside one, a copy of it goes the
/// rest of the way, so that no result depends on the stride.
static void advance_chunks(const forward_call *call, const forward_unit *u, worker_memory *memory,
                           size_t i, size_t before, size_t begin, size_t end) {
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_results *const results = call->results;
    const delta_rule_kernels *const kernels = call->kernels;
    const size_t size = r->key_dim * r->value_dim,
                 floats = PANEL * panels_of(r->key_dim) * panels_of(u->columns),
                 chunk_steps = call->tiles ? TILE_TOKENS : CHUNK_TOKENS;
    const delta_head head = head_of(call, u, i);
    delta_head writer = head;
    writer.rows.o.data = 0;
    float *const state = memory->states + floats * i;
#define ADVANCE(HEAD, BEGIN, COUNT, STATE)                                                         \
    if (call->tiles)                                                                               \
        call->tiles->advance_chunk(HEAD, &memory->chunk, &memory->tiles, BEGIN, COUNT, STATE);     \
    else kernels->advance_chunk(HEAD, &memory->chunk, BEGIN, COUNT, STATE)
    for (size_t step = begin; step < end; step += chunk_steps) {
        const size_t chunk_end = lmk_min(step + chunk_steps, end);
        // Tokens that end in the chunk are tokens of the sequence: no overflow.
        for (size_t token = step / r->steps + 1; results->states && token <= chunk_end / r->steps;
             token++) {
            if (token % results->state_stride != 0) continue;
            const size_t kept = before + token / results->state_stride - 1;
            for (size_t n = 0; n < floats; n++) memory->other_state[n] = state[n];
            ADVANCE(&writer, step, r->steps * token - step, memory->other_state);
            kernels->export_panels(memory->other_state, r->value_dim, r->key_dim, u->columns,
                                   results->states + size * (r->heads * kept + u->head + i) +
                                       u->column);
        }
        ADVANCE(&head, step, chunk_end - step, state);
    }
#undef ADVANCE
}

/// Heads in turn, block by block, in chunks.
static void run_chunks(const forward_call *call, const forward_unit *u, worker_memory *memory) {
    const lmk_delta_rule *const r = call->rule;
    const lmk_delta_rule_results *const results = call->results;
    const size_t floats = PANEL * panels_of(r->key_dim) * panels_of(u->columns);
    const size_t before = results->states ? kept_before(call, u) : 0;
    for (size_t i = 0; i < u->heads; i++) {
        call->kernels->import_panels(r->initial_state ? r->initial_state + state_at(r, u, i) : 0,
                                     r->value_dim, r->key_dim, u->columns,
                                     memory->states + floats * i);
    }
    fetch_column *const columns = (fetch_column *)(void *)memory->fetch;
    if (call->tiles) call->tiles->begin();
    for (size_t begin = 0; begin < u->tokens; begin += call->block_tokens) {
        const size_t end = lmk_min(begin + call->block_tokens, u->tokens);
        // Chunks without tiles do not fetch ahead.
        fetch_list list = {0};
        if (call->tiles) list = fetches_from(call, u, end);
        const size_t share = lmk_min(lmk_divide_up(list.columns, u->heads), fetches_of(call));
        for (size_t i = 0; i < u->heads; i++) {
            lmk_fetch_next(&list, share, columns);
            memory->tiles.products.fetch = (fetch_run){columns, columns + share};
            advance_chunks(call, u, memory, i, before, r->steps * begin, r->steps * end);
        }
    }
    if (call->tiles) call->tiles->end();
    for (size_t i = 0; results->final_state && i < u->heads; i++) {
        call->kernels->export_panels(memory->states + floats * i, r->value_dim, r->key_dim,
                                     u->columns, results->final_state + state_at(r, u, i));
    }
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_delta_rule *const r = call->rule;
    const forward_unit u = unit_of(call, slot);
    worker_memory memory;
    worker_layout(call, call->workers + call->worker_floats * worker, &memory);
    const int is_step = r->initial_state && call->results->final_state && !call->results->states &&
                        r->value_dim % CHUNK_TOKENS == 0 && r->steps * u.tokens == 1;
    if (u.tokens == 0) pass_on(call, &u);
    else if (is_chunked(call, u.tokens)) run_chunks(call, &u, &memory);
    else if (is_step) run_step(call, &u, &memory);
    else run_blocks(call, &u, &memory);
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
    forward_call call = plan_of(r);
    call.results = results;
    call.kernels = lmk_delta_rule_kernels();
    call.tiles = tile_kernels(r);
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    const size_t units = lmk_divide_up(r->heads, call.plan.unit_heads);
    lmk_parallel_for(call.plan.segments * units * call.plan.groups, call.plan.threads, run_unit,
                     &call);
    return LMK_OK;
}
