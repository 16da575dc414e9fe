// The pieces of work of a forward call, and where their memory lies.
#include "forward_unit.h"

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

size_t lmk_forward_worker_floats(const lmk_linear_attention *a, const linear_plan *plan) {
    linear_tiles tiles;
    return lmk_max(lmk_forward_pass_floats(a, plan),
                   chunk_floats(a) + fetch_floats(a) + lmk_forward_lay_out_tiles(a, 0, &tiles) +
                       (plan->unit_heads + 1) * worker_state_floats(a));
}

size_t lmk_forward_piece_floats(const lmk_linear_attention *a) {
    return spaced(a->key_dim * (a->value_dim + 2));
}

forward_unit lmk_forward_unit(const forward_call *call, size_t slot) {
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

linear_head lmk_forward_head(const forward_call *call, const forward_unit *u, int reads) {
    return lmk_linear_attention_head(call->attention, reads ? call->results : 0,
                                     u->segment.sequence, u->head, u->segment.begin, u->column,
                                     u->columns);
}

worker_memory lmk_forward_memory_of_head(const forward_call *call, worker_memory memory, size_t i) {
    const lmk_linear_attention *const a = call->attention;
    memory.state = memory.states + worker_state_floats(a) * i;
    memory.chunk.normalizer = memory.state + state_floats(a->key_dim, a->value_dim);
    return memory;
}

worker_memory lmk_forward_memory(const forward_call *call, unsigned worker) {
    const lmk_linear_attention *const a = call->attention;
    float *const memory = call->workers + call->worker_floats * worker,
                 *const fetch = memory + chunk_floats(a), *const tiles = fetch + fetch_floats(a);
    linear_tiles layout;
    float *const states = tiles + lmk_forward_lay_out_tiles(a, tiles, &layout);
    worker_memory result = {
        .tiles = layout,
        .fetch = (fetch_column *)(void *)fetch,
        .states = states + worker_state_floats(a),
        .other_state = states,
    };
    lmk_linear_chunk_layout(a, memory, &result.chunk);
    return lmk_forward_memory_of_head(call, result, 0);
}

state_start lmk_forward_initial(const forward_call *call, const forward_unit *u) {
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

state_start lmk_forward_start(const forward_call *call, const forward_unit *u) {
    if (!u->segment.is_first) return piece_start(call, u->segment.index - 1, u->head);
    const state_start initial = lmk_forward_initial(call, u);
    if (u->segment.is_last) return initial;
    // Where the last segment may already have written the final state: join_pieces has a copy.
    const size_t last = call->plan.first_segment[u->segment.sequence + 1] - 1;
    const state_start copied = piece_start(call, last, u->head);
    return (state_start){initial.state ? copied.state : 0,
                         initial.normalizer ? copied.normalizer : 0};
}

void lmk_forward_import(const forward_call *call, const forward_unit *u, state_start start,
                        const worker_memory *memory) {
    const lmk_linear_attention *const a = call->attention;
    call->kernels->import_state(start.state ? start.state + u->column : 0, a->value_dim, a->key_dim,
                                u->columns, memory->state);
    for (size_t d = 0; d < normalizer_floats(a); d++) {
        memory->chunk.normalizer[d] = start.normalizer && d < a->key_dim ? start.normalizer[d] : 0;
    }
}

void lmk_forward_export(const forward_call *call, const forward_unit *u, const float *state,
                        const float *normalizer, size_t index, float *states, float *normalizers) {
    const lmk_linear_attention *const a = call->attention;
    if (states) {
        call->kernels->export_state(state, a->value_dim, a->key_dim, u->columns,
                                    states + a->key_dim * a->value_dim * index + u->column);
    }
    if (normalizers && u->column == 0)
        copy(normalizers + a->key_dim * index, normalizer, a->key_dim);
}

size_t lmk_forward_first_state(const forward_call *call, const forward_unit *u) {
    const size_t stride = call->results->state_stride;
    size_t before = 0;
    for (size_t n = 0; n < u->segment.sequence; n++)
        before += tokens_of(call->attention, n) / stride;
    return call->attention->heads * before + u->head;
}

fetch_list lmk_forward_fetches(const forward_call *call, const forward_unit *unit, size_t begin) {
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
