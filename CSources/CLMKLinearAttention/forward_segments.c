// Segments of a long sequence, and the pieces that several machines exchange.
#include "forward_unit.h"

/// What a segment does to the states of a unit's heads.
static void run_piece(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const forward_unit unit = lmk_forward_unit(call, slot);
    if (unit.segment.is_last && !call->attention->is_bidirectional) return;
    const size_t tokens = unit.segment.end - unit.segment.begin;
    const worker_memory first = lmk_forward_memory(call, worker);
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const worker_memory memory = lmk_forward_memory_of_head(call, first, i);
        lmk_forward_import(call, &u, (state_start){0}, &memory);
    }
    const size_t chunk_tokens = lmk_forward_chunk(call);
    if (call->tiles) call->tiles->begin();
    for (size_t t = 0; t < tokens; t += chunk_tokens) {
        for (size_t i = 0; i < unit.heads; i++) {
            const forward_unit u = head_of_unit(&unit, i);
            const linear_head head = lmk_forward_head(call, &u, 0);
            worker_memory memory = lmk_forward_memory_of_head(call, first, i);
            const int is_last = i + 1 == unit.heads;
            const forward_unit after = head_of_unit(&unit, is_last ? 0 : i + 1);
            const linear_head next = lmk_forward_head(call, &after, 0);
            const size_t next_token = is_last ? t + chunk_tokens : t;
            if (next_token < tokens) memory.chunk.near = head_rows(&next, next_token, 0);
            lmk_forward_advance(call, &head, &memory.chunk, &memory, t,
                                lmk_min(t + chunk_tokens, tokens), memory.state);
        }
    }
    if (call->tiles) call->tiles->end();
    for (size_t i = 0; i < unit.heads; i++) {
        const forward_unit u = head_of_unit(&unit, i);
        const linear_head head = lmk_forward_head(call, &u, 0);
        const worker_memory memory = lmk_forward_memory_of_head(call, first, i);
        float *const piece = piece_of(call, u.segment.index, u.head);
        lmk_forward_export(call, &u, memory.state, memory.chunk.normalizer, 0,
                           piece_state(call, piece), piece_normalizer(call, piece));
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
    const state_start initial = lmk_forward_initial(call, &u);
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

void lmk_forward_segments(forward_call *call, size_t slots) {
    lmk_parallel_for(slots, call->plan.threads, run_piece, call);
    lmk_parallel_for(sequences_of(call->attention) * call->attention->heads, call->plan.threads,
                     join_pieces, call);
}

// MARK: Entry point

/// The product of the decays of a head's tokens.
static void run_total_decay(void *context, size_t slot, unsigned worker) {
    const forward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const size_t sequence = slot / a->heads;
    const worker_memory memory = lmk_forward_memory(call, worker);
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
    if (status == LMK_OK)
        status = lmk_forward_check_workspace(&a, workspace, workspace_size, error);
    if (status != LMK_OK) return status;
    const lmk_linear_attention_results results = {.final_state = piece->state,
                                                  .final_normalizer = piece->normalizer};
    forward_call call = {.attention = &a, .results = &results};
    if (piece->state || piece->normalizer) lmk_forward_run(&call, workspace);
    if (!piece->decay) return LMK_OK;
    call.kernels = lmk_linear_attention_kernels();
    call.plan = lmk_linear_plan(&a);
    call.worker_floats = lmk_forward_worker_floats(&a, &call.plan);
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    call.pieces = piece->decay;
    lmk_parallel_for(sequences_of(&a) * a.heads, call.plan.threads, run_total_decay, &call);
    return LMK_OK;
}
