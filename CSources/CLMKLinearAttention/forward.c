// Forward, and the pieces of a long sequence.
#include "kernels/tables.h"
#include "lmk_token_fetch.h"
#include "lmk_linear_plan.h"

typedef struct forward_call {
    const lmk_linear_attention *attention;
    const lmk_linear_attention_results *results;
    const linear_attention_kernels *kernels;
    linear_plan plan;
    /// Memory of each worker: a chunk, the states of a unit's heads with their normalisers, and one
    /// more.
    float *workers;
    size_t worker_floats, state_floats;
    /// What each segment does to the state of each head, [segments, heads]: decay [key_dim],
    /// normaliser [key_dim], state [key_dim, value_dim]. Then the state at its end.
    float *pieces;
    size_t piece_floats;
} forward_call;

/// Columns column ..< column + columns of the values of some heads of a segment.
typedef struct forward_unit {
    linear_segment segment;
    size_t head, heads, column, columns;
} forward_unit;

/// Floats apart, so that workers do not share a line.
static size_t spaced(size_t floats) { return lmk_round_up(floats, 32); }

static size_t normalizer_floats(const lmk_linear_attention *a) {
    return CHUNK_TOKENS * panels_of(a->key_dim);
}

static size_t worker_state_floats(const lmk_linear_attention *a) {
    return spaced(state_floats(a->key_dim, a->value_dim) + normalizer_floats(a));
}

static size_t chunk_floats(const lmk_linear_attention *a) {
    linear_chunk chunk;
    return spaced(lmk_linear_chunk_layout(a, 0, &chunk));
}

static size_t fetch_floats(const lmk_linear_attention *a) {
    return spaced(lmk_linear_fetch_floats(a));
}

/// Tokens from which passes that take several are faster than one for each; CONTRIBUTING.md has the
/// figures.
#define PASSED_TOKENS 4

/// Whether a sequence is computed by passes of several tokens: not where a normaliser is to be
/// kept, nor where its segments are computed side by side.
static int is_passed(const lmk_linear_attention *a, const linear_plan *plan, size_t tokens) {
    return !a->is_bidirectional && !a->is_normalized && !plan->cuts &&
           a->form == LMK_LINEAR_ATTENTION_AUTOMATIC && tokens >= PASSED_TOKENS;
}

/// A worker's memory for passes: for each head of a unit its state in slices and what that is to be
/// multiplied with.
typedef struct pass_layout {
    pass_memory tokens;
    float *fetch, *states, *scales;
    size_t state_floats, fetches;
} pass_layout;

static size_t lay_out_passes(const lmk_linear_attention *a, const linear_plan *plan, float *memory,
                             pass_layout *to) {
    const size_t row = CHUNK_TOKENS * panels_of(a->key_dim), rows = 4 * row,
                 columns = lmk_min(plan->group_columns, a->value_dim),
                 state = SLICE_COLUMNS * a->key_dim * panels_of(columns),
                 fetches = plan->block_tokens / 4 * panels_of(columns);
    *to = (pass_layout){.state_floats = state, .fetches = fetches};
    const matrix_part parts[] = {
        {&to->tokens.k, rows},
        {&to->tokens.q, rows},
        {&to->tokens.rows, rows},
        {&to->tokens.zeros, row},
        {&to->tokens.ones, row},
        {&to->fetch, lmk_round_up(sizeof(fetch_column) * fetches, 64) / sizeof(float)},
        {&to->states, plan->unit_heads * state},
        {&to->scales, plan->unit_heads},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    for (size_t d = 0; memory && d < row; d++) {
        to->tokens.zeros[d] = 0;
        to->tokens.ones[d] = 1;
    }
    return spaced(floats);
}

static size_t worker_floats_of(const lmk_linear_attention *a, const linear_plan *plan) {
    pass_layout passes;
    return lmk_max(lay_out_passes(a, plan, 0, &passes),
                   chunk_floats(a) + fetch_floats(a) +
                       (plan->unit_heads + 1) * worker_state_floats(a));
}

static size_t piece_floats_of(const lmk_linear_attention *a) {
    return spaced(a->key_dim * (a->value_dim + 2));
}

size_t lmk_linear_attention_workspace_size(const lmk_linear_attention *a) {
    if (lmk_linear_attention_check(a, 0, 0) != LMK_OK) return 0;
    const linear_plan plan = lmk_linear_plan(a);
    size_t floats = plan.threads * worker_floats_of(a, &plan);
    if (plan.cuts) floats += plan.segments * a->heads * piece_floats_of(a);
    return sizeof(float) * floats + 64;
}

static forward_unit unit_of(const forward_call *call, size_t slot) {
    const linear_plan *const plan = &call->plan;
    const lmk_linear_attention *const a = call->attention;
    const size_t units = lmk_divide_up(a->heads, plan->unit_heads);
    const size_t group = slot % plan->groups, rest = slot / plan->groups,
                 column = plan->group_columns * group, head = plan->unit_heads * (rest % units);
    return (forward_unit){
        .segment = lmk_linear_segment(a, plan, rest / units),
        .head = head,
        .heads = lmk_min(plan->unit_heads, a->heads - head),
        .column = column,
        .columns = lmk_min(plan->group_columns, a->value_dim - column),
    };
}

/// Head `i` of a unit alone.
static forward_unit head_of_unit(const forward_unit *u, size_t i) {
    forward_unit one = *u;
    one.head += i;
    one.heads = 1;
    return one;
}

static linear_head head_of(const forward_call *call, const forward_unit *u, int reads) {
    return lmk_linear_attention_head(call->attention, reads ? call->results : 0,
                                     u->segment.sequence, u->head, u->segment.begin, u->column,
                                     u->columns);
}

static size_t state_index(const forward_call *call, const forward_unit *u) {
    return call->attention->heads * u->segment.sequence + u->head;
}

static float *piece_of(const forward_call *call, size_t segment, size_t head) {
    return call->pieces + call->piece_floats * (call->attention->heads * segment + head);
}

/// The parts of a piece.
static float *piece_normalizer(const forward_call *call, float *piece) {
    return piece + call->attention->key_dim;
}
static float *piece_state(const forward_call *call, float *piece) {
    return piece + 2 * call->attention->key_dim;
}

/// A worker's memory while it works on a head of its unit: the normaliser lies behind the state.
typedef struct worker_memory {
    linear_chunk chunk;
    fetch_column *fetch;
    /// Of the unit's heads, of this one, and one more.
    float *states, *state, *other_state;
} worker_memory;

/// The same on head `i`.
static worker_memory for_head(const forward_call *call, worker_memory memory, size_t i) {
    const lmk_linear_attention *const a = call->attention;
    memory.state = memory.states + worker_state_floats(a) * i;
    memory.chunk.normalizer = memory.state + state_floats(a->key_dim, a->value_dim);
    return memory;
}

static worker_memory memory_of(const forward_call *call, unsigned worker) {
    const lmk_linear_attention *const a = call->attention;
    float *const memory = call->workers + call->worker_floats * worker,
                 *const fetch = memory + chunk_floats(a), *const states = fetch + fetch_floats(a);
    worker_memory result = {
        .fetch = (fetch_column *)(void *)fetch,
        .states = states + worker_state_floats(a),
        .other_state = states,
    };
    lmk_linear_chunk_layout(a, memory, &result.chunk);
    return for_head(call, result, 0);
}

static void copy(float *to, const float *from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = from[i];
}

/// Where a unit's state and normaliser begin; null: at 0.
typedef struct state_start {
    const float *state, *normalizer;
} state_start;

static state_start initial_of(const forward_call *call, const forward_unit *u) {
    const lmk_linear_attention *const a = call->attention;
    const size_t index = state_index(call, u);
    return (state_start){
        a->initial_state ? a->initial_state + a->key_dim * a->value_dim * index : 0,
        a->initial_normalizer ? a->initial_normalizer + a->key_dim * index : 0,
    };
}

static state_start piece_start(const forward_call *call, size_t segment, size_t head) {
    float *const piece = piece_of(call, segment, head);
    return (state_start){piece_state(call, piece), piece_normalizer(call, piece)};
}

static state_start start_of(const forward_call *call, const forward_unit *u) {
    if (!u->segment.is_first) return piece_start(call, u->segment.index - 1, u->head);
    const state_start initial = initial_of(call, u);
    if (u->segment.is_last) return initial;
    // Where the last segment may already have written the final state: join_pieces has a copy.
    const size_t last = call->plan.first_segment[u->segment.sequence + 1] - 1;
    const state_start copied = piece_start(call, last, u->head);
    return (state_start){initial.state ? copied.state : 0,
                         initial.normalizer ? copied.normalizer : 0};
}

/// Brings a start into the worker's memory.
static void import_start(const forward_call *call, const forward_unit *u, state_start start,
                         const worker_memory *memory) {
    const lmk_linear_attention *const a = call->attention;
    call->kernels->import_state(start.state ? start.state + u->column : 0, a->value_dim, a->key_dim,
                                u->columns, memory->state);
    for (size_t d = 0; d < normalizer_floats(a); d++) {
        memory->chunk.normalizer[d] = start.normalizer && d < a->key_dim ? start.normalizer[d] : 0;
    }
}

/// Writes a unit's columns of state `index` of [.., key_dim, value_dim], and its normaliser.
static void export_to(const forward_call *call, const forward_unit *u, const float *state,
                      const float *normalizer, size_t index, float *states, float *normalizers) {
    const lmk_linear_attention *const a = call->attention;
    if (states) {
        call->kernels->export_state(state, a->value_dim, a->key_dim, u->columns,
                                    states + a->key_dim * a->value_dim * index + u->column);
    }
    if (normalizers && u->column == 0)
        copy(normalizers + a->key_dim * index, normalizer, a->key_dim);
}

// MARK: States at a stride

/// The index of a unit's first state in results->states, which is that after `stride` tokens.
static size_t first_state(const forward_call *call, const forward_unit *u) {
    const size_t stride = call->results->state_stride;
    size_t before = 0;
    for (size_t n = 0; n < u->segment.sequence; n++)
        before += tokens_of(call->attention, n) / stride;
    return call->attention->heads * before + u->head;
}

static int has_states(const forward_call *call) {
    return call->results->states || call->results->normalizers;
}

/// The first multiple of the stride after `token`, or `end` if that comes first.
static size_t next_stop(const forward_call *call, size_t token, size_t end) {
    if (!has_states(call)) return end;
    const size_t stride = call->results->state_stride;
    const size_t stop = stride * (token / stride + 1);
    return stop < end ? stop : end;
}

/// Advances to a stop and stores the state there. Inside a chunk a copy of the state goes the rest
/// of the way, so that no result depends on the stride.
static size_t advance_to_stop(const forward_call *call, const forward_unit *u,
                              const worker_memory *memory, const linear_head *head, size_t done,
                              size_t stop, size_t index) {
    const lmk_linear_attention *const a = call->attention;
    const size_t begin = u->segment.begin;
    const size_t aligned = begin + (stop - begin) / CHUNK_TOKENS * CHUNK_TOKENS;
    call->kernels->advance(head, &memory->chunk, done - begin, aligned - begin, memory->state);
    const float *state = memory->state, *normalizer = memory->chunk.normalizer;
    linear_chunk chunk = memory->chunk;
    if (aligned < stop) {
        const size_t floats = state_floats(a->key_dim, u->columns);
        copy(memory->other_state, memory->state, floats);
        chunk.normalizer = memory->other_state + floats;
        copy(chunk.normalizer, memory->chunk.normalizer, normalizer_floats(a));
        linear_head writer = *head;
        writer.o.data = 0;
        call->kernels->advance(&writer, &chunk, aligned - begin, stop - begin, memory->other_state);
        state = memory->other_state;
        normalizer = chunk.normalizer;
    }
    export_to(call, u, state, normalizer, index, call->results->states, call->results->normalizers);
    return aligned;
}

// MARK: Units of work

/// The rows that a unit needs in the block that begins at token `begin`.
static fetch_list fetches_of(const forward_call *call, const forward_unit *unit, size_t begin) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    fetch_list list = {0};
    if (begin >= unit->segment.end) return list;
    const size_t tokens = lmk_min(call->plan.block_tokens, unit->segment.end - begin),
                 size = lmk_dtype_size(a->dtype), group = a->heads / a->key_heads,
                 key_heads = lmk_divide_up(unit->heads, group), n = unit->segment.sequence;
    const linear_head head =
        lmk_linear_attention_head(a, r, n, unit->head, begin, unit->column, unit->columns);
    lmk_fetch_add(&list, head.k.data, size, a->k_strides.token, a->k_strides.head, tokens,
                  key_heads, a->key_dim);
    lmk_fetch_add(&list, head.q.data, size, a->q_strides.token, a->q_strides.head, tokens,
                  unit->heads, a->key_dim);
    lmk_fetch_add(&list, head.v.data, size, a->v_strides.token, a->v_strides.head, tokens,
                  key_heads, unit->columns);
    if (a->decay == LMK_DECAY_KEY) {
        lmk_fetch_add(&list, head.log_decay, sizeof(float), a->log_decay_strides.token,
                      a->log_decay_strides.head, tokens, unit->heads, a->key_dim);
    }
    lmk_fetch_add(&list, head.o.data, size, r->o_strides.token, r->o_strides.head, tokens,
                  unit->heads, unit->columns);
    return list;
}

/// A block of one head, with the states at its stops.
static void advance_block(const forward_call *call, const forward_unit *u,
                          const worker_memory *memory, size_t block, size_t block_end) {
    const linear_head head = head_of(call, u, 1);
    const size_t stride = call->results->state_stride, begin = u->segment.begin;
    size_t done = block;
    for (size_t at = block; has_states(call) && at / stride < block_end / stride;) {
        const size_t stop = next_stop(call, at, block_end);
        const size_t index = first_state(call, u) + call->attention->heads * (stop / stride - 1);
        done = advance_to_stop(call, u, memory, &head, done, stop, index);
        at = stop;
    }
    call->kernels->advance(&head, &memory->chunk, done - begin, block_end - begin, memory->state);
}

static void run_chunks(const forward_call *call, const forward_unit *unit, unsigned worker) {
    const worker_memory first = memory_of(call, worker);
    for (size_t i = 0; i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const worker_memory memory = for_head(call, first, i);
        import_start(call, &u, start_of(call, &u), &memory);
    }
    const size_t end = unit->segment.end, tokens = call->plan.block_tokens;
    for (size_t block = unit->segment.begin; block < end; block += tokens) {
        fetch_list list = fetches_of(call, unit, block + tokens);
        const size_t share = lmk_divide_up(list.columns, unit->heads);
        for (size_t i = 0; i < unit->heads; i++) {
            const forward_unit u = head_of_unit(unit, i);
            worker_memory memory = for_head(call, first, i);
            if (list.columns > 0 && !has_states(call)) {
                const size_t capacity = memory.chunk.fetches * (tokens / CHUNK_TOKENS),
                             used = lmk_min(share, capacity);
                memory.chunk.fetch = memory.fetch;
                lmk_fetch_next(&list, used, memory.chunk.fetch);
                for (size_t j = used; j < capacity; j++)
                    memory.chunk.fetch[j] = memory.chunk.no_fetch[0];
            }
            const int is_last = i + 1 == unit->heads;
            const forward_unit after = head_of_unit(unit, is_last ? 0 : i + 1);
            const linear_head next = head_of(call, &after, 1);
            const size_t next_token = is_last ? block + tokens : block;
            if (next_token < end)
                memory.chunk.near = head_rows(&next, next_token - unit->segment.begin, 1);
            advance_block(call, &u, &memory, block, lmk_min(block + tokens, end));
        }
    }
    for (size_t i = 0; unit->segment.is_last && i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const worker_memory memory = for_head(call, first, i);
        export_to(call, &u, memory.state, memory.chunk.normalizer, state_index(call, &u),
                  call->results->final_state, call->results->final_normalizer);
    }
}

static void run_steps(const forward_call *call, const forward_unit *u,
                      const worker_memory *memory) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const linear_head head = head_of(call, u, 1);
    const size_t index = state_index(call, u), size = a->key_dim * a->value_dim,
                 end = u->segment.end;
    // On the final state itself where it is asked for, and is not what others still read.
    float *const state =
        r->final_state ? r->final_state + size * index + u->column : memory->other_state;
    const size_t stride = r->final_state ? a->value_dim : u->columns;
    float *const normalizer = r->final_normalizer && u->column == 0
                                  ? r->final_normalizer + a->key_dim * index
                                  : memory->state;
    state_start start = start_of(call, u);
    size_t from_stride = a->value_dim;
    if (start.state && (stride != from_stride)) {
        for (size_t d = 0; d < a->key_dim; d++)
            copy(state + stride * d, start.state + from_stride * d + u->column, u->columns);
        start.state = state;
    } else if (start.state) {
        start.state += u->column;
    }
    const size_t first = has_states(call) ? first_state(call, u) : 0;
    for (size_t at = 0; at < end;) {
        const size_t stop = next_stop(call, at, end);
        call->kernels->step(&head, &memory->chunk, at, stop, start.state, start.normalizer, state,
                            normalizer, stride);
        start = (state_start){state, normalizer};
        at = stop;
        if (!has_states(call) || at % r->state_stride != 0) continue;
        const size_t number = first + a->heads * (at / r->state_stride - 1);
        for (size_t d = 0; r->states && d < a->key_dim; d++) {
            copy(r->states + size * number + a->value_dim * d + u->column, state + stride * d,
                 u->columns);
        }
        if (r->normalizers && u->column == 0)
            copy(r->normalizers + a->key_dim * number, normalizer, a->key_dim);
    }
}

/// Heads in turn, block by block, a few tokens in each pass over a state.
static void run_passes(const forward_call *call, const forward_unit *unit, unsigned worker) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const size_t end = unit->segment.end, tokens = call->plan.block_tokens,
                 size = a->key_dim * a->value_dim;
    pass_layout m;
    lay_out_passes(a, &call->plan, call->workers + call->worker_floats * worker, &m);
    fetch_column *const columns = (fetch_column *)(void *)m.fetch;
    for (size_t i = 0; i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const linear_head head = head_of(call, &u, 1);
        const state_start start = start_of(call, &u);
        m.scales[i] = 1;
        call->kernels->import_slices(&head, start.state ? start.state + u.column : 0, a->value_dim,
                                     m.states + m.state_floats * i);
    }
    for (size_t block = 0; block < end; block += tokens) {
        fetch_list list = fetches_of(call, unit, block + tokens);
        const size_t share = lmk_min(lmk_divide_up(list.columns, unit->heads), m.fetches);
        for (size_t i = 0; i < unit->heads; i++) {
            const forward_unit u = head_of_unit(unit, i);
            const linear_head head = head_of(call, &u, 1);
            const kept_states kept = {
                .data = r->states ? r->states + size * first_state(call, &u) + u.column : 0,
                .stride = r->state_stride,
                .step = size * a->heads,
                .row_stride = a->value_dim,
            };
            lmk_fetch_next(&list, share, columns);
            call->kernels->pass(&head, &m.tokens, block, lmk_min(block + tokens, end),
                                m.states + m.state_floats * i, m.scales + i, r->states ? &kept : 0,
                                columns, share);
        }
    }
    for (size_t i = 0; r->final_state && i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const linear_head head = head_of(call, &u, 1);
        call->kernels->export_slices(&head, m.states + m.state_floats * i, m.scales[i],
                                     r->final_state + size * state_index(call, &u) + u.column,
                                     a->value_dim);
    }
}

/// A sequence without tokens: its start is its end.
static void pass_on(const forward_call *call, const forward_unit *u) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const state_start start = start_of(call, u);
    const size_t index = state_index(call, u);
    for (size_t d = 0; d < a->key_dim; d++) {
        for (size_t e = u->column; r->final_state && e < u->column + u->columns; e++) {
            const size_t at = a->value_dim * d + e;
            r->final_state[a->key_dim * a->value_dim * index + at] =
                start.state ? start.state[at] : 0;
        }
        if (r->final_normalizer && u->column == 0) {
            r->final_normalizer[a->key_dim * index + d] =
                start.normalizer ? start.normalizer[d] : 0;
        }
    }
}

/// Bidirectional: the state of the whole sequence first, unless segments have found it.
static void run_both_ways(const forward_call *call, const forward_unit *u,
                          const worker_memory *memory) {
    if (call->plan.cuts) {
        forward_unit last = *u;
        last.segment.index = call->plan.first_segment[u->segment.sequence + 1];
        last.segment.is_first = 0;
        import_start(call, u, start_of(call, &last), memory);
    } else {
        const linear_head writer = head_of(call, u, 0);
        import_start(call, u, (state_start){0}, memory);
        call->kernels->advance(&writer, &memory->chunk, 0, u->segment.end, memory->state);
    }
    const linear_head head = head_of(call, u, 1);
    call->kernels->look(&head, &memory->chunk, u->segment.end - u->segment.begin, memory->state);
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const forward_unit unit = unit_of(call, slot);
    const size_t tokens = tokens_of(a, unit.segment.sequence);
    if (is_passed(a, &call->plan, tokens)) {
        run_passes(call, &unit, worker);
        return;
    }
    if (tokens > 0 && !a->is_bidirectional && lmk_linear_is_chunked(a, tokens)) {
        run_chunks(call, &unit, worker);
        return;
    }
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const worker_memory memory = memory_of(call, worker);
        if (tokens == 0) pass_on(call, &u);
        else if (a->is_bidirectional) run_both_ways(call, &u, &memory);
        else run_steps(call, &u, &memory);
    }
}

// MARK: Segments

/// What a segment does to the states of a unit's heads.
static void run_piece(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const forward_unit unit = unit_of(call, slot);
    if (unit.segment.is_last && !call->attention->is_bidirectional) return;
    const size_t tokens = unit.segment.end - unit.segment.begin;
    const worker_memory first = memory_of(call, worker);
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const worker_memory memory = for_head(call, first, i);
        import_start(call, &u, (state_start){0}, &memory);
    }
    for (size_t t = 0; t < tokens; t += CHUNK_TOKENS) {
        for (size_t i = 0; i < unit.heads; i++) {
            const forward_unit u = head_of_unit(&unit, i);
            const linear_head head = head_of(call, &u, 0);
            worker_memory memory = for_head(call, first, i);
            const int is_last = i + 1 == unit.heads;
            const forward_unit after = head_of_unit(&unit, is_last ? 0 : i + 1);
            const linear_head next = head_of(call, &after, 0);
            const size_t next_token = is_last ? t + CHUNK_TOKENS : t;
            if (next_token < tokens) memory.chunk.near = head_rows(&next, next_token, 0);
            call->kernels->advance(&head, &memory.chunk, t, lmk_min(t + CHUNK_TOKENS, tokens),
                                   memory.state);
        }
    }
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const linear_head head = head_of(call, &u, 0);
        const worker_memory memory = for_head(call, first, i);
        float *const piece = piece_of(call, u.segment.index, u.head);
        export_to(call, &u, memory.state, memory.chunk.normalizer, 0, piece_state(call, piece),
                  piece_normalizer(call, piece));
        if (u.column == 0) call->kernels->total_decay(&head, &memory.chunk, tokens, piece);
    }
}

/// From what each segment does to the state to the state at its end, in order.
static void join_pieces(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const forward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const size_t sequence = slot / a->heads, head = slot % a->heads;
    const size_t *const first = call->plan.first_segment + sequence;
    const forward_unit u = {.segment = {.sequence = sequence}, .head = head};
    const state_start initial = initial_of(call, &u);
    state_start start = initial;
    // The last piece is not needed, unless every token reads what all segments wrote.
    const size_t last = first[1] - 1, end = a->is_bidirectional ? first[1] : last;
    for (size_t s = first[0]; s < end; s++) {
        float *const piece = piece_of(call, s, head), *const state = piece_state(call, piece),
                     *const normalizer = piece_normalizer(call, piece);
        if (start.state)
            call->kernels->combine(piece, start.state, state, a->key_dim, a->value_dim, state);
        if (start.normalizer)
            call->kernels->combine(piece, start.normalizer, normalizer, a->key_dim, 1, normalizer);
        start = (state_start){state, normalizer};
    }
    if (a->is_bidirectional) return;
    float *const piece = piece_of(call, last, head);
    if (initial.state) copy(piece_state(call, piece), initial.state, a->key_dim * a->value_dim);
    if (initial.normalizer) copy(piece_normalizer(call, piece), initial.normalizer, a->key_dim);
}

static void run(forward_call *call, void *workspace) {
    const lmk_linear_attention *const a = call->attention;
    call->kernels = lmk_linear_attention_kernels();
    call->plan = lmk_linear_plan(a);
    call->worker_floats = worker_floats_of(a, &call->plan);
    call->piece_floats = piece_floats_of(a);
    call->workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    call->pieces = call->workers + call->plan.threads * call->worker_floats;
    const size_t slots =
        call->plan.segments * lmk_divide_up(a->heads, call->plan.unit_heads) * call->plan.groups;
    if (call->plan.cuts) {
        lmk_parallel_for(slots, call->plan.threads, run_piece, call);
        lmk_parallel_for(sequences_of(a) * a->heads, call->plan.threads, join_pieces, call);
    }
    lmk_parallel_for(slots, call->plan.threads, run_unit, call);
}

// MARK: Entry points

static lmk_status check_workspace(const lmk_linear_attention *a, const void *workspace, size_t size,
                                  lmk_error *error) {
    const size_t needed = lmk_linear_attention_workspace_size(a);
    if (size < needed) return lmk_fail_size(error, "workspace", needed, size);
    if (!workspace) return lmk_fail_null(error, "workspace");
    return LMK_OK;
}

static lmk_status check_results(const lmk_linear_attention *a,
                                const lmk_linear_attention_results *r, lmk_error *error) {
    if (r->o) {
        const lmk_status status =
            lmk_linear_attention_check_rows(a, TENSOR_NAMES(o), r->o, r->o_strides, a->heads,
                                            a->value_dim, lmk_dtype_size(a->dtype), error);
        if (status != LMK_OK) return status;
    }
    const int has_normalizers = r->final_normalizer || r->normalizers;
    if (has_normalizers && !a->is_normalized)
        return lmk_fail_conflict(error, "final_normalizer", "only with a normaliser");
    if (a->is_bidirectional && (r->final_state || r->states || has_normalizers))
        return lmk_fail_conflict(error, "final_state", "none in the bidirectional form");
    if ((r->states || r->normalizers) && r->state_stride == 0)
        return lmk_fail_size(error, "state_stride", 1, 0);
    return LMK_OK;
}

lmk_status lmk_linear_attention_forward(const lmk_linear_attention *a,
                                        const lmk_linear_attention_results *results,
                                        void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_linear_attention_check(a, results->o != 0, error);
    if (status == LMK_OK) status = check_results(a, results, error);
    if (status == LMK_OK) status = check_workspace(a, workspace, workspace_size, error);
    if (status != LMK_OK) return status;
    forward_call call = {.attention = a, .results = results};
    run(&call, workspace);
    return LMK_OK;
}

/// The product of the decays of a head's tokens.
static void run_total_decay(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const size_t sequence = slot / a->heads;
    const worker_memory memory = memory_of(call, worker);
    const linear_head head =
        lmk_linear_attention_head(a, 0, sequence, slot % a->heads, 0, 0, a->value_dim);
    call->kernels->total_decay(&head, &memory.chunk, tokens_of(a, sequence),
                               call->pieces + a->key_dim * slot);
}

lmk_status lmk_linear_attention_partial_state(const lmk_linear_attention *attention,
                                              const lmk_linear_attention_piece *piece,
                                              void *workspace, size_t workspace_size,
                                              lmk_error *error) {
    lmk_linear_attention a = *attention;
    a.is_normalized = piece->normalizer != 0;
    a.initial_state = a.initial_normalizer = 0;
    a.bonus = 0;
    lmk_status status = lmk_linear_attention_check(&a, 0, error);
    if (status == LMK_OK && a.is_bidirectional)
        status = lmk_fail_conflict(error, "is_bidirectional", "a state needs an order");
    if (status == LMK_OK) status = check_workspace(&a, workspace, workspace_size, error);
    if (status != LMK_OK) return status;
    const lmk_linear_attention_results results = {.final_state = piece->state,
                                                  .final_normalizer = piece->normalizer};
    forward_call call = {.attention = &a, .results = &results};
    if (piece->state || piece->normalizer) run(&call, workspace);
    if (!piece->decay) return LMK_OK;
    call.kernels = lmk_linear_attention_kernels();
    call.plan = lmk_linear_plan(&a);
    call.worker_floats = worker_floats_of(&a, &call.plan);
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    call.pieces = piece->decay;
    lmk_parallel_for(sequences_of(&a) * a.heads, call.plan.threads, run_total_decay, &call);
    return LMK_OK;
}
