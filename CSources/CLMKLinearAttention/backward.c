// Backward: the states at the chunks' starts again, then chunks from last to first.
#include "backward_plan.h"

// MARK: Transposed states

void lmk_linear_import_transposed(const lmk_linear_attention *a, const float *state,
                                  const float *normalizer, float *to) {
    const size_t rows = CHUNK_TOKENS * row_panels(a);
    for (size_t i = 0; i < transposed_floats(a); i++) to[i] = 0;
    for (size_t d = 0; d < a->key_dim; d++) {
        float *const column = to + CHUNK_TOKENS * rows * (d / CHUNK_TOKENS) + d % CHUNK_TOKENS;
        for (size_t e = 0; state && e < a->value_dim; e++)
            column[CHUNK_TOKENS * e] = state[a->value_dim * d + e];
        if (normalizer && a->is_normalized) column[CHUNK_TOKENS * a->value_dim] = normalizer[d];
    }
}

void lmk_linear_export_transposed(const lmk_linear_attention *a, const float *from, float *state,
                                  float *normalizer) {
    const size_t rows = CHUNK_TOKENS * row_panels(a);
    for (size_t d = 0; d < a->key_dim; d++) {
        const float *const column =
            from + CHUNK_TOKENS * rows * (d / CHUNK_TOKENS) + d % CHUNK_TOKENS;
        for (size_t e = 0; state && e < a->value_dim; e++)
            state[a->value_dim * d + e] = column[CHUNK_TOKENS * e];
        if (normalizer && a->is_normalized) normalizer[d] = column[CHUNK_TOKENS * a->value_dim];
    }
}

// MARK: Units of work

/// The query heads of some key heads, in one segment; r counts them. Tokens count from its begin.
typedef struct backward_unit {
    linear_segment segment;
    size_t sequence, key_head, heads, tokens;
} backward_unit;

static size_t head_index(const backward_call *call, const backward_unit *u, size_t r) {
    return call->group * u->key_head + r;
}

/// Of [N, heads].
static size_t state_index(const backward_call *call, const backward_unit *u, size_t r) {
    return call->attention->heads * u->sequence + head_index(call, u, r);
}

static linear_head head_of(const backward_call *call, const backward_unit *u, size_t r,
                           size_t token) {
    const lmk_linear_attention *const a = call->attention;
    return lmk_linear_attention_head(a, 0, u->sequence, head_index(call, u, r),
                                     u->segment.begin + token, 0, a->value_dim);
}

static token_rows_out rows_out(const backward_call *call, const backward_unit *u, void *data,
                               lmk_token_strides strides, size_t head, size_t token, size_t width) {
    const lmk_linear_attention *const a = call->attention;
    if (!data) return (token_rows_out){0};
    const size_t at = row_offset(a, strides, u->sequence, u->segment.begin + token, head);
    return (token_rows_out){(char *)data + lmk_dtype_size(a->dtype) * at, strides.token, a->dtype,
                            width};
}

/// The sums for one key head of a unit.
static float *sums_of(const backward_call *call, float *sums, size_t key, size_t width) {
    return sums + CHUNK_TOKENS * call->block_chunks * width * key;
}

static token_rows_out sums_out(float *sums, int is_wanted, size_t width) {
    return (token_rows_out){is_wanted ? sums : 0, width, LMK_FLOAT32, width};
}

/// Where the gradients of head `r` of a unit go, from token `token` on.
static linear_head_gradients gradients_of(const backward_call *call, const backward_unit *u,
                                          const backward_memory *m, size_t r, size_t token) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_gradients *const to = call->gradients;
    const size_t head = head_index(call, u, r);
    const token_rows_out output = rows_out(call, u, (void *)(uintptr_t)to->output,
                                           to->output_strides, head, token, a->value_dim);
    linear_head_gradients result = {
        .output = {output.data, output.stride, output.dtype, output.width},
        .q = rows_out(call, u, to->q, to->q_strides, head, token, a->key_dim),
        .adds = r % call->group > 0,
    };
    const size_t key = r / call->group;
    if (call->group > 1) {
        result.k = sums_out(sums_of(call, m->dk, key, a->key_dim), to->k != 0, a->key_dim);
        result.v = sums_out(sums_of(call, m->dv, key, a->value_dim), to->v != 0, a->value_dim);
    } else {
        const size_t key_head = u->key_head + key;
        result.k = rows_out(call, u, to->k, to->k_strides, key_head, token, a->key_dim);
        result.v = rows_out(call, u, to->v, to->v_strides, key_head, token, a->value_dim);
    }
    if (to->log_decay && a->decay == LMK_DECAY_HEAD) {
        result.log_decay = call->decays + a->heads * u->segment.index + head;
    } else if (to->log_decay) {
        result.log_decay = to->log_decay + row_offset(a, to->log_decay_strides, u->sequence,
                                                      u->segment.begin + token, head);
        result.log_decay_stride = to->log_decay_strides.token;
    }
    if (to->bonus && a->bonus)
        result.bonus = call->bonuses + padded_keys(a) * (a->heads * u->segment.index + head);
    return result;
}

static void store_rows(const backward_call *call, const float *sums, const token_rows_out *to,
                       size_t tokens) {
    const lmk_dtype dtype = call->attention->dtype;
    for (size_t t = 0; to->data && t < tokens; t++) {
        lmk_convert(sums + to->width * t, LMK_FLOAT32,
                    (char *)to->data + lmk_dtype_size(dtype) * to->stride * t, dtype, to->width, 0);
    }
}

/// The sums over groups of heads for the tokens of a block go to where they belong.
static void store_sums(const backward_call *call, const backward_unit *u, const backward_memory *m,
                       size_t token, size_t tokens) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_gradients *const to = call->gradients;
    for (size_t key = 0; call->group > 1 && key < u->heads / call->group; key++) {
        const size_t key_head = u->key_head + key;
        const token_rows_out k = rows_out(call, u, to->k, to->k_strides, key_head, token,
                                          a->key_dim),
                             v = rows_out(call, u, to->v, to->v_strides, key_head, token,
                                          a->value_dim);
        store_rows(call, sums_of(call, m->dk, key, a->key_dim), &k, tokens);
        store_rows(call, sums_of(call, m->dv, key, a->value_dim), &v, tokens);
    }
}

static float *checkpoint_of(const backward_call *call, const backward_memory *m, size_t r,
                            size_t block) {
    return m->checkpoints + transposed_floats(call->attention) * (call->blocks * r + block);
}

/// The state before chunk `i` of a block.
static float *state_of(const backward_call *call, const backward_memory *m, size_t r, size_t block,
                       size_t i) {
    if (i == 0) return checkpoint_of(call, m, r, block);
    return m->states + transposed_floats(call->attention) * (call->block_chunks * r + i);
}

/// A piece, and its parts.
static float *piece_of(const backward_call *call, size_t segment, size_t head) {
    return call->pieces + call->piece_floats * (call->attention->heads * segment + head);
}
static float *piece_state(const backward_call *call, float *piece) {
    return piece + padded_keys(call->attention);
}
static float *piece_dstate(const backward_call *call, float *piece) {
    return piece_state(call, piece) + transposed_floats(call->attention);
}

static void copy(float *to, const float *from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = from[i];
}

/// Takes 16 tokens from `token` on into the state of head `r`.
static void sweep(const backward_call *call, const backward_unit *u, const backward_memory *m,
                  size_t r, size_t token, const float *from, float *to) {
    const linear_head head = head_of(call, u, r, token);
    linear_chunk chunk = m->chunk;
    const int is_last = r + 1 == u->heads;
    if (!is_last || token + CHUNK_TOKENS < u->tokens) {
        const linear_head next = head_of(call, u, is_last ? 0 : r + 1, token);
        chunk.near = head_rows(&next, is_last ? CHUNK_TOKENS : 0, 0);
    }
    call->kernels->sweep(&head, &chunk, &m->gradient, 0, lmk_min(CHUNK_TOKENS, u->tokens - token),
                         from, to);
}

/// The state before a unit's tokens.
static void import_start(const backward_call *call, const backward_unit *u, size_t r, float *to) {
    const lmk_linear_attention *const a = call->attention;
    const size_t index = state_index(call, u, r);
    if (!u->segment.is_first) {
        float *const before = piece_of(call, u->segment.index - 1, head_index(call, u, r));
        copy(to, piece_state(call, before), transposed_floats(a));
        return;
    }
    lmk_linear_import_transposed(
        a, a->initial_state ? a->initial_state + a->key_dim * a->value_dim * index : 0,
        a->initial_normalizer ? a->initial_normalizer + a->key_dim * index : 0, to);
}

/// The gradient of the final state.
static void import_final(const backward_call *call, size_t index, float *to) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_gradients *const from = call->gradients;
    lmk_linear_import_transposed(
        a, from->final_state ? from->final_state + a->key_dim * a->value_dim * index : 0,
        from->final_normalizer ? from->final_normalizer + a->key_dim * index : 0, to);
}

/// The gradient of the state after a unit's tokens.
static void import_end(const backward_call *call, const backward_unit *u, size_t r, float *to) {
    const size_t size = transposed_floats(call->attention), head = head_index(call, u, r);
    if (!call->plan.cuts) {
        import_final(call, state_index(call, u, r), to);
    } else if (u->segment.is_last) {
        // The first segment may already have written over it: join_pieces has a copy.
        copy(to, piece_state(call, piece_of(call, u->segment.index, head)), size);
    } else {
        copy(to, piece_dstate(call, piece_of(call, u->segment.index + 1, head)), size);
    }
}

/// States at the starts of all blocks.
static void keep_checkpoints(const backward_call *call, const backward_unit *u,
                             const backward_memory *m) {
    const size_t block = CHUNK_TOKENS * call->block_chunks;
    for (size_t r = 0; r < u->heads; r++) import_start(call, u, r, checkpoint_of(call, m, r, 0));
    for (size_t t = 0; t + CHUNK_TOKENS <= (u->tokens - 1) / block * block; t += CHUNK_TOKENS) {
        for (size_t r = 0; r < u->heads; r++) {
            float *const to = checkpoint_of(call, m, r, t / block + 1);
            sweep(call, u, m, r, t, t % block == 0 ? checkpoint_of(call, m, r, t / block) : to, to);
        }
    }
}

/// The chunks of one block, from last to first.
static void retreat_block(const backward_call *call, const backward_unit *u,
                          const backward_memory *m, size_t begin, size_t end) {
    const size_t size = transposed_floats(call->attention),
                 chunks = lmk_divide_up(end - begin, CHUNK_TOKENS),
                 block = begin / (CHUNK_TOKENS * call->block_chunks);
    for (size_t i = 0; i + 1 < chunks; i++) {
        for (size_t r = 0; r < u->heads; r++) {
            sweep(call, u, m, r, begin + CHUNK_TOKENS * i, state_of(call, m, r, block, i),
                  state_of(call, m, r, block, i + 1));
        }
    }
    for (size_t i = chunks; i-- > 0;) {
        const size_t t = CHUNK_TOKENS * i;
        for (size_t r = 0; r < u->heads; r++) {
            const linear_head head = head_of(call, u, r, begin);
            const linear_head_gradients to = gradients_of(call, u, m, r, begin);
            linear_chunk chunk = m->chunk;
            const int is_last = r + 1 == u->heads;
            if (!is_last || t > 0) {
                const size_t after = is_last ? 0 : r + 1;
                const linear_head next = head_of(call, u, after, begin);
                chunk.near = head_rows(&next, is_last ? t - CHUNK_TOKENS : t, 1);
                add_near_rows(&chunk.near, gradients_of(call, u, m, after, begin).output);
            }
            call->kernels->retreat(&head, &to, &chunk, &m->gradient, t,
                                   lmk_min(CHUNK_TOKENS, end - begin - t),
                                   state_of(call, m, r, block, i), m->dstates + size * r);
        }
    }
}

static void run_causal(const backward_call *call, const backward_unit *u,
                       const backward_memory *m) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_gradients *const to = call->gradients;
    const size_t size = transposed_floats(a), block = CHUNK_TOKENS * call->block_chunks;
    if (u->tokens > 0) keep_checkpoints(call, u, m);
    for (size_t r = 0; r < u->heads; r++) import_end(call, u, r, m->dstates + size * r);
    for (size_t b = lmk_divide_up(u->tokens, block); b-- > 0;) {
        const size_t begin = block * b, end = lmk_min(begin + block, u->tokens);
        retreat_block(call, u, m, begin, end);
        store_sums(call, u, m, begin, end - begin);
    }
    for (size_t r = 0; u->segment.is_first && r < u->heads; r++) {
        const size_t index = state_index(call, u, r);
        lmk_linear_export_transposed(
            a, m->dstates + size * r,
            to->initial_state ? to->initial_state + a->key_dim * a->value_dim * index : 0,
            to->initial_normalizer ? to->initial_normalizer + a->key_dim * index : 0);
    }
}

/// Every token reads the state of the whole sequence, and writes to it.
static void run_both_ways(const backward_call *call, const backward_unit *u,
                          const backward_memory *m) {
    const linear_attention_kernels *const kernels = call->kernels;
    const size_t size = transposed_floats(call->attention),
                 block = CHUNK_TOKENS * call->block_chunks;
    for (size_t r = 0; r < u->heads; r++) {
        const linear_head head = head_of(call, u, r, 0);
        const linear_head_gradients to = gradients_of(call, u, m, r, 0);
        float *const state = m->states, *const dstate = m->dstates + size * r;
        for (size_t i = 0; i < size; i++) state[i] = dstate[i] = 0;
        for (size_t t = 0; t < u->tokens; t += CHUNK_TOKENS) sweep(call, u, m, r, t, state, state);
        for (size_t t = 0; t < u->tokens; t += CHUNK_TOKENS) {
            kernels->look_back(&head, &to, &m->chunk, &m->gradient, t,
                               lmk_min(CHUNK_TOKENS, u->tokens - t), state, dstate);
        }
    }
    for (size_t begin = 0; begin < u->tokens; begin += block) {
        const size_t end = lmk_min(begin + block, u->tokens);
        for (size_t r = 0; r < u->heads; r++) {
            const linear_head head = head_of(call, u, r, begin);
            const linear_head_gradients to = gradients_of(call, u, m, r, begin);
            for (size_t t = 0; t < end - begin; t += CHUNK_TOKENS) {
                kernels->write_back(&head, &to, &m->chunk, &m->gradient, t,
                                    lmk_min(CHUNK_TOKENS, end - begin - t), m->dstates + size * r);
            }
        }
        store_sums(call, u, m, begin, end - begin);
    }
}

static backward_unit unit_of(const backward_call *call, size_t slot) {
    const lmk_linear_attention *const a = call->attention;
    const size_t units = lmk_divide_up(a->key_heads, call->unit_keys),
                 key_head = call->unit_keys * (slot % units);
    const linear_segment segment = lmk_linear_segment(a, &call->plan, slot / units);
    return (backward_unit){
        .segment = segment,
        .sequence = segment.sequence,
        .key_head = key_head,
        .heads = call->group * lmk_min(call->unit_keys, a->key_heads - key_head),
        .tokens = segment.end - segment.begin,
    };
}

static void run_unit(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    const backward_unit u = unit_of(call, slot);
    backward_memory memory;
    lmk_linear_backward_layout(call, call->workers + call->worker_floats * worker, &memory);
    if (call->attention->is_bidirectional) run_both_ways(call, &u, &memory);
    else run_causal(call, &u, &memory);
}

// MARK: Segments

/// What a segment does to the state, and to its gradient.
static void run_piece(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    const linear_attention_kernels *const kernels = call->kernels;
    const backward_unit u = unit_of(call, slot);
    const size_t size = transposed_floats(call->attention);
    backward_memory m;
    lmk_linear_backward_layout(call, call->workers + call->worker_floats * worker, &m);
    for (size_t r = 0; r < u.heads; r++) {
        float *const piece = piece_of(call, u.segment.index, head_index(call, &u, r)),
                     *const state = piece_state(call, piece),
                     *const dstate = piece_dstate(call, piece);
        const linear_head head = head_of(call, &u, r, 0);
        const linear_head_gradients to = gradients_of(call, &u, &m, r, 0);
        for (size_t i = 0; i < size; i++) state[i] = dstate[i] = 0;
        for (size_t d = 0; d < padded_keys(call->attention); d++) piece[d] = 0;
        kernels->total_decay(&head, &m.chunk, u.tokens, piece);
        for (size_t t = 0; !u.segment.is_last && t < u.tokens; t += CHUNK_TOKENS)
            sweep(call, &u, &m, r, t, state, state);
        for (size_t i = lmk_divide_up(u.tokens, CHUNK_TOKENS); !u.segment.is_first && i-- > 0;) {
            const size_t t = CHUNK_TOKENS * i;
            kernels->read_back(&head, &to, &m.chunk, &m.gradient, t,
                               lmk_min(CHUNK_TOKENS, u.tokens - t), dstate);
        }
    }
}

/// From what segments do to the state at the end of each, and to the gradient at its start.
static void join_pieces(void *context, size_t slot, unsigned worker) {
    const backward_call *const call = context;
    const lmk_linear_attention *const a = call->attention;
    const size_t sequence = slot / a->heads, head = slot % a->heads,
                 rows = CHUNK_TOKENS * row_panels(a), panels = panels_of(a->key_dim),
                 first = call->plan.first_segment[sequence],
                 last = call->plan.first_segment[sequence + 1] - 1;
    backward_memory m;
    lmk_linear_backward_layout(call, call->workers + call->worker_floats * worker, &m);
    const backward_unit u = {.segment = {.is_first = 1}, .sequence = sequence, .heads = a->heads};
    import_start(call, &u, head, m.states);
    const float *from = m.states;
    for (size_t s = first; s < last; s++) {
        float *const piece = piece_of(call, s, head);
        call->kernels->join(piece, from, rows, panels, piece_state(call, piece));
        from = piece_state(call, piece);
    }
    float *const end = piece_state(call, piece_of(call, last, head));
    import_final(call, slot, end);
    from = end;
    for (size_t s = last; s > first; s--) {
        float *const piece = piece_of(call, s, head);
        call->kernels->join(piece, from, rows, panels, piece_dstate(call, piece));
        from = piece_dstate(call, piece);
    }
}

/// Sums over the segments of all sequences, in their order.
static void add_segments(const backward_call *call) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_gradients *const to = call->gradients;
    for (size_t h = 0; h < a->heads; h++) {
        float decay = 0;
        for (size_t n = 0; call->decays && n < call->plan.segments; n++)
            decay += call->decays[a->heads * n + h];
        if (to->log_decay && a->decay == LMK_DECAY_HEAD)
            to->log_decay[to->log_decay_strides.head * h] = decay;
        for (size_t d = 0; to->bonus && a->bonus && d < a->key_dim; d++) {
            float sum = 0;
            for (size_t n = 0; n < call->plan.segments; n++)
                sum += call->bonuses[padded_keys(a) * (a->heads * n + h) + d];
            to->bonus[a->key_dim * h + d] = sum;
        }
    }
}

// MARK: Entry point

static lmk_status check_gradients(const lmk_linear_attention *a,
                                  const lmk_linear_attention_gradients *to, lmk_error *error) {
    const size_t size = lmk_dtype_size(a->dtype);
    const struct {
        tensor_names names;
        const void *data;
        lmk_token_strides strides;
        size_t heads, width, size;
        int is_there;
    } tensors[] = {
        {TENSOR_NAMES(output), to->output, to->output_strides, a->heads, a->value_dim, size, 1},
        {TENSOR_NAMES(dq), to->q, to->q_strides, a->heads, a->key_dim, size, to->q != 0},
        {TENSOR_NAMES(dk), to->k, to->k_strides, a->key_heads, a->key_dim, size, to->k != 0},
        {TENSOR_NAMES(dv), to->v, to->v_strides, a->key_heads, a->value_dim, size, to->v != 0},
        {TENSOR_NAMES(dlog_decay), to->log_decay, to->log_decay_strides, a->heads,
         a->decay == LMK_DECAY_KEY ? a->key_dim : 1, sizeof(float),
         to->log_decay != 0 && a->decay != LMK_DECAY_HEAD},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        if (!tensors[i].is_there) continue;
        const lmk_status status = lmk_linear_attention_check_rows(
            a, tensors[i].names, tensors[i].data, tensors[i].strides, tensors[i].heads,
            tensors[i].width, tensors[i].size, error);
        if (status != LMK_OK) return status;
    }
    if (to->log_decay && a->decay == LMK_DECAY_NONE)
        return lmk_fail_conflict(error, "dlog_decay", "only with a decay");
    if (to->log_decay && a->decay == LMK_DECAY_HEAD && a->heads > 1 &&
        to->log_decay_strides.head == 0)
        return lmk_fail_size(error, "dlog_decay_strides.head", 1, 0);
    if (to->bonus && !a->bonus) return lmk_fail_conflict(error, "dbonus", "only with a bonus");
    if (!a->is_normalized && (to->final_normalizer || to->initial_normalizer))
        return lmk_fail_conflict(error, "final_normalizer", "only with a normaliser");
    const int has_states =
        to->final_state || to->initial_state || to->final_normalizer || to->initial_normalizer;
    if (a->is_bidirectional && has_states)
        return lmk_fail_conflict(error, "final_state", "none in the bidirectional form");
    return LMK_OK;
}

lmk_status lmk_linear_attention_backward(const lmk_linear_attention *a,
                                         const lmk_linear_attention_gradients *gradients,
                                         void *workspace, size_t workspace_size, lmk_error *error) {
    lmk_status status = lmk_linear_attention_check(a, 1, error);
    if (status == LMK_OK) status = check_gradients(a, gradients, error);
    if (status != LMK_OK) return status;
    const size_t needed = lmk_linear_attention_backward_workspace_size(a);
    if (workspace_size < needed) return lmk_fail_size(error, "workspace", needed, workspace_size);
    if (!workspace) return lmk_fail_null(error, "workspace");
    backward_call call = lmk_linear_backward_plan(a);
    call.gradients = gradients;
    call.kernels = lmk_linear_attention_kernels();
    call.workers = (float *)lmk_round_up((uintptr_t)workspace, 64);
    float *const shared = call.workers + call.threads * call.worker_floats;
    if (gradients->log_decay && lmk_linear_decays_floats(&call) > 0) call.decays = shared;
    call.bonuses = shared + lmk_linear_decays_floats(&call);
    call.pieces = call.bonuses + lmk_linear_bonuses_floats(&call);
    for (float *sum = shared; sum < call.pieces; sum++) *sum = 0;
    const size_t slots = call.plan.segments * lmk_divide_up(a->key_heads, call.unit_keys);
    if (call.plan.cuts) {
        lmk_parallel_for(slots, call.threads, run_piece, &call);
        lmk_parallel_for(sequences_of(a) * a->heads, call.threads, join_pieces, &call);
    }
    lmk_parallel_for(slots, call.threads, run_unit, &call);
    add_segments(&call);
    return LMK_OK;
}
