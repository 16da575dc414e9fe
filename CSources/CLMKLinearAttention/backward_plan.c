#include "backward_plan.h"

size_t lmk_linear_backward_layout(const backward_call *call, float *memory, backward_memory *m) {
    const lmk_linear_attention *const a = call->attention;
    const size_t key_panels = panels_of(a->key_dim), keys = PANEL * key_panels,
                 values = PANEL * row_panels(a), state = transposed_floats(a),
                 block = CHUNK_TOKENS * call->block_chunks,
                 // Where neither a factor for each token nor a matrix is needed.
        spread = a->decay == LMK_DECAY_NONE ? 0 : keys, heads = call->group * call->unit_keys,
                 sums = call->group > 1 ? block * call->unit_keys : 0;
    *m = (backward_memory){.gradient = {.panels = row_panels(a)}};
    size_t floats = lmk_linear_chunk_layout(a, memory, &m->chunk);
    linear_chunk *const c = &m->chunk;
    linear_gradient_chunk *const g = &m->gradient;
    const matrix_part parts[] = {
        {&c->read, spread},
        {&c->write, spread},
        {&c->before, spread},
        {&c->after, spread},
        {&g->values, values},
        {&g->outputs, values},
        {&g->values_transposed, values},
        {&g->values_after, values},
        {&g->outputs_before, values},
        {&g->dq, keys},
        {&g->dk, keys},
        {&g->dv, values},
        {&g->dpairs, PANEL},
        {&g->weights, PANEL},
        {&g->products, PANEL},
        {&g->read_dots, PANEL},
        {&g->write_dots, PANEL},
        {&g->carried, CHUNK_TOKENS * key_panels},
        {&g->ddecay, keys},
        {&g->dstate, state},
        {&m->checkpoints, state * call->blocks * heads},
        {&m->dstates, state * heads},
        {&m->states, state * call->block_chunks * heads},
        {&m->dk, sums * a->key_dim},
        {&m->dv, sums * a->value_dim},
    };
    floats += lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory ? memory + floats : 0);
    if (a->decay == LMK_DECAY_NONE) {
        c->read = c->q;
        c->write = c->k;
        c->before = c->after = 0;
    }
    return lmk_round_up(floats, 32);
}

size_t lmk_linear_block_chunks(size_t chunks, size_t bytes, size_t budget) {
    // Twice as many while that saves memory and there is too little of it.
    for (size_t block = lmk_min(BLOCK_CHUNKS, chunks);; block *= 2) {
        const size_t states = lmk_divide_up(chunks, block) + block,
                     next_states = lmk_divide_up(chunks, 2 * block) + 2 * block;
        if (budget == 0 || states * bytes <= budget || next_states >= states) return block;
    }
}

static void choose_block(backward_call *call, size_t longest) {
    const lmk_linear_attention *const a = call->attention;
    const size_t chunks = lmk_max(1, lmk_divide_up(longest, CHUNK_TOKENS)),
                 bytes = sizeof(float) * transposed_floats(a) * call->group,
                 budget = a->memory_budget / call->threads;
    call->block_chunks = lmk_linear_block_chunks(chunks, bytes, budget);
    call->blocks = lmk_divide_up(chunks, call->block_chunks);
    const size_t states = call->blocks + call->block_chunks;
    call->unit_keys = lmk_max(1, UNIT_BYTES / (bytes * call->block_chunks));
    if (budget > 0)
        call->unit_keys = lmk_min(call->unit_keys, lmk_max(1, budget / (states * bytes)));
}

backward_call lmk_linear_backward_plan(const lmk_linear_attention *a) {
    backward_call call = {.attention = a, .group = a->heads / a->key_heads};
    // The gradients of divided outputs need the states that segments are there to find.
    if (a->is_normalized || a->is_bidirectional) call.plan.segments = sequences_of(a);
    else lmk_linear_cut(a, sequences_of(a) * a->key_heads, &call.plan);
    const size_t keys = call.plan.segments * a->key_heads;
    size_t longest = 0;
    for (size_t n = 0; n < sequences_of(a); n++) longest = lmk_max(longest, tokens_of(a, n));
    if (call.plan.cuts) longest = lmk_min(longest, call.plan.segment_tokens);
    call.threads = (unsigned)lmk_min(lmk_linear_plan(a).threads, lmk_max(1, keys));
    choose_block(&call, longest);
    if (call.threads > 1) {
        const size_t shared = keys / (2 * (size_t)call.threads);
        call.unit_keys = lmk_min(call.unit_keys, lmk_max(1, shared));
    }
    call.unit_keys = lmk_min(call.unit_keys, a->key_heads);
    backward_memory memory;
    call.worker_floats = lmk_linear_backward_layout(&call, 0, &memory);
    call.piece_floats = call.plan.cuts ? padded_keys(a) + 2 * transposed_floats(a) : 0;
    return call;
}

size_t lmk_linear_decays_floats(const backward_call *call) {
    const lmk_linear_attention *const a = call->attention;
    return a->decay == LMK_DECAY_HEAD ? lmk_round_up(call->plan.segments * a->heads, 16) : 0;
}

size_t lmk_linear_bonuses_floats(const backward_call *call) {
    const lmk_linear_attention *const a = call->attention;
    return a->bonus ? call->plan.segments * a->heads * padded_keys(a) : 0;
}

size_t lmk_linear_pieces_floats(const backward_call *call) {
    return call->plan.segments * call->attention->heads * call->piece_floats;
}

size_t lmk_linear_attention_backward_workspace_size(const lmk_linear_attention *a) {
    if (lmk_linear_attention_check(a, 0, 0) != LMK_OK) return 0;
    const backward_call call = lmk_linear_backward_plan(a);
    return sizeof(float) * (call.threads * call.worker_floats + lmk_linear_decays_floats(&call) +
                            lmk_linear_bonuses_floats(&call) + lmk_linear_pieces_floats(&call)) +
           64;
}
