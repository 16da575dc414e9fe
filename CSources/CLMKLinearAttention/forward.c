// Forward.
#include "forward_unit.h"

size_t lmk_linear_attention_workspace_size(const lmk_linear_attention *a) {
    if (lmk_linear_attention_check(a, 0, 0) != LMK_OK) return 0;
    const linear_plan plan = lmk_linear_plan(a);
    size_t floats = plan.threads * lmk_forward_worker_floats(a, &plan);
    if (plan.cuts) floats += plan.segments * a->heads * lmk_forward_piece_floats(a);
    return sizeof(float) * floats + 64;
}

// MARK: States at a stride

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
    const size_t chunk_tokens = lmk_forward_chunk(call),
                 aligned = begin + (stop - begin) / chunk_tokens * chunk_tokens;
    lmk_forward_advance(call, head, &memory->chunk, memory, done - begin, aligned - begin,
                        memory->state);
    const float *state = memory->state, *normalizer = memory->chunk.normalizer;
    linear_chunk chunk = memory->chunk;
    if (aligned < stop) {
        const size_t floats = state_floats(a->key_dim, u->columns);
        copy(memory->other_state, memory->state, floats);
        chunk.normalizer = memory->other_state + floats;
        copy(chunk.normalizer, memory->chunk.normalizer, normalizer_floats(a));
        linear_head writer = *head;
        writer.o.data = 0;
        lmk_forward_advance(call, &writer, &chunk, memory, aligned - begin, stop - begin,
                            memory->other_state);
        state = memory->other_state;
        normalizer = chunk.normalizer;
    }
    lmk_forward_export(call, u, state, normalizer, index, call->results->states,
                       call->results->normalizers);
    return aligned;
}

// MARK: Units of work

/// A block of one head, with the states at its stops.
static void advance_block(const forward_call *call, const forward_unit *u,
                          const worker_memory *memory, size_t block, size_t block_end) {
    const linear_head head = lmk_forward_head(call, u, 1);
    const size_t stride = call->results->state_stride, begin = u->segment.begin;
    size_t done = block;
    for (size_t at = block; has_states(call) && at / stride < block_end / stride;) {
        const size_t stop = next_stop(call, at, block_end);
        const size_t index =
            lmk_forward_first_state(call, u) + call->attention->heads * (stop / stride - 1);
        done = advance_to_stop(call, u, memory, &head, done, stop, index);
        at = stop;
    }
    lmk_forward_advance(call, &head, &memory->chunk, memory, done - begin, block_end - begin,
                        memory->state);
}

static void run_chunks(const forward_call *call, const forward_unit *unit, unsigned worker) {
    const worker_memory first = lmk_forward_memory(call, worker);
    for (size_t i = 0; i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const worker_memory memory = lmk_forward_memory_of_head(call, first, i);
        lmk_forward_import(call, &u, lmk_forward_start(call, &u), &memory);
    }
    const size_t end = unit->segment.end, tokens = call->plan.block_tokens;
    if (call->tiles) call->tiles->begin();
    for (size_t block = unit->segment.begin; block < end; block += tokens) {
        fetch_list list = lmk_forward_fetches(call, unit, block + tokens);
        const size_t share = lmk_divide_up(list.columns, unit->heads);
        for (size_t i = 0; i < unit->heads; i++) {
            const forward_unit u = head_of_unit(unit, i);
            worker_memory memory = lmk_forward_memory_of_head(call, first, i);
            if (list.columns > 0 && !has_states(call)) {
                const size_t capacity = memory.chunk.fetches * (tokens / CHUNK_TOKENS),
                             used = lmk_min(share, capacity);
                memory.chunk.fetch = memory.fetch;
                memory.chunk.fetch_count = used;
                lmk_fetch_next(&list, used, memory.chunk.fetch);
                for (size_t j = used; j < capacity; j++)
                    memory.chunk.fetch[j] = memory.chunk.chunk_fetch[0];
            }
            const int is_last = i + 1 == unit->heads;
            const forward_unit after = head_of_unit(unit, is_last ? 0 : i + 1);
            const linear_head next = lmk_forward_head(call, &after, 1);
            const size_t next_token = is_last ? block + tokens : block;
            if (next_token < end)
                memory.chunk.near = head_rows(&next, next_token - unit->segment.begin, 1);
            advance_block(call, &u, &memory, block, lmk_min(block + tokens, end));
        }
    }
    if (call->tiles) call->tiles->end();
    for (size_t i = 0; unit->segment.is_last && i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const worker_memory memory = lmk_forward_memory_of_head(call, first, i);
        lmk_forward_export(call, &u, memory.state, memory.chunk.normalizer, state_index(call, &u),
                           call->results->final_state, call->results->final_normalizer);
    }
}

static void run_steps(const forward_call *call, const forward_unit *u,
                      const worker_memory *memory) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const linear_head head = lmk_forward_head(call, u, 1);
    const size_t index = state_index(call, u), size = a->key_dim * a->value_dim,
                 end = u->segment.end;
    // On the final state itself where it is asked for, and is not what others still read.
    float *const state =
        r->final_state ? r->final_state + size * index + u->column : memory->other_state;
    const size_t stride = r->final_state ? a->value_dim : u->columns;
    float *const normalizer = r->final_normalizer && u->column == 0
                                  ? r->final_normalizer + a->key_dim * index
                                  : memory->state;
    state_start start = lmk_forward_start(call, u);
    size_t from_stride = a->value_dim;
    if (start.state && (stride != from_stride)) {
        for (size_t d = 0; d < a->key_dim; d++)
            copy(state + stride * d, start.state + from_stride * d + u->column, u->columns);
        start.state = state;
    } else if (start.state) {
        start.state += u->column;
    }
    const size_t first = has_states(call) ? lmk_forward_first_state(call, u) : 0;
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

/// A sequence without tokens: its start is its end.
static void pass_on(const forward_call *call, const forward_unit *u) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const state_start start = lmk_forward_start(call, u);
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
        lmk_forward_import(call, u, lmk_forward_start(call, &last), memory);
    } else {
        const linear_head writer = lmk_forward_head(call, u, 0);
        lmk_forward_import(call, u, (state_start){0}, memory);
        call->kernels->advance(&writer, &memory->chunk, 0, u->segment.end, memory->state);
    }
    const linear_head head = lmk_forward_head(call, u, 1);
    call->kernels->look(&head, &memory->chunk, u->segment.end - u->segment.begin, memory->state);
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const forward_unit unit = lmk_forward_unit(call, slot);
    const size_t tokens = tokens_of(a, unit.segment.sequence);
    if (lmk_forward_is_passed(call, tokens)) {
        lmk_forward_passes(call, &unit, worker);
        return;
    }
    if (tokens > 0 && !a->is_bidirectional && lmk_linear_is_chunked(a, tokens)) {
        run_chunks(call, &unit, worker);
        return;
    }
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const worker_memory memory = lmk_forward_memory(call, worker);
        if (tokens == 0) pass_on(call, &u);
        else if (a->is_bidirectional) run_both_ways(call, &u, &memory);
        else run_steps(call, &u, &memory);
    }
}

void lmk_forward_run(forward_call *call, void *workspace) {
    const lmk_linear_attention *const a = call->attention;
    call->kernels = lmk_linear_attention_kernels();
    call->tiles = lmk_forward_tile_kernels(a);
    call->plan = lmk_linear_plan(a);
    call->worker_floats = lmk_forward_worker_floats(a, &call->plan);
    call->piece_floats = lmk_forward_piece_floats(a);
    call->workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    call->pieces = call->workers + call->plan.threads * call->worker_floats;
    const size_t slots =
        call->plan.segments * lmk_divide_up(a->heads, call->plan.unit_heads) * call->plan.groups;
    if (call->plan.cuts) lmk_forward_segments(call, slots);
    lmk_parallel_for(slots, call->plan.threads, run_unit, call);
}

// MARK: Entry points

lmk_status lmk_forward_check_workspace(const lmk_linear_attention *a, const void *workspace,
                                       size_t size, lmk_error *error) {
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
    if (status == LMK_OK) status = lmk_forward_check_workspace(a, workspace, workspace_size, error);
    if (status != LMK_OK) return status;
    forward_call call = {.attention = a, .results = results};
    lmk_forward_run(&call, workspace);
    return LMK_OK;
}
