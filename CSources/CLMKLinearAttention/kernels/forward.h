// Chunks of tokens, one after the other, on a state in panels. Included inside a region.

/// What divides each token's output: its query with z, and with the keys of the chunk.
static void read_normalizer(const linear_chunk *c) {
    for (size_t i = 0; i < CHUNK_TOKENS; i++) {
        const f32x16 pairs = load(c->pairs + LMK_LANES * i);
        f32x16 sum = choose(is_before((int)i + 1), pairs, splat(0));
        for (size_t p = 0; p < c->panels; p++) {
            const f32x16 q = load(c->read + PANEL * p + LMK_LANES * i);
            sum = q * load(c->normalizer + LMK_LANES * p) + sum;
        }
        c->divisors[i] = reduce_sum(sum);
    }
}

static void write_normalizer(const linear_chunk *c, int has_decay) {
    for (size_t p = 0; p < c->panels; p++) {
        f32x16 sum = load(c->normalizer + LMK_LANES * p);
        if (has_decay) sum *= load(c->total + LMK_LANES * p);
        for (size_t i = 0; i < CHUNK_TOKENS; i++) sum += load(c->write + PANEL * p + LMK_LANES * i);
        store(c->normalizer + LMK_LANES * p, sum);
    }
}

/// Brings the first `nears` columns of `near` into L1 meanwhile. Returns what is left to be fetched
/// into L2.
static const fetch_column *advance_chunk(const linear_head *head, const linear_chunk *c,
                                         size_t begin, size_t count, const fetch_column *fetch,
                                         const fetch_column *near, size_t nears, float *state) {
    const int reads = head->o.data != 0, has_decay = head->decay != LMK_DECAY_NONE;
    prepare_chunk(head, c, begin, count, reads ? PREPARE_PAIRS : PREPARE_WRITES);
    if (reads && head->is_normalized) read_normalizer(c);
    const size_t state_panel = PANEL * c->panels;
    for (size_t column = 0; column < panels_of(head->v.width); column += VALUE_PANELS) {
        const token_rows v = some_columns(head->v, column);
        const size_t columns = panels_of(v.width);
        float *const part = state + state_panel * column;
        load_panels(&v, begin, count, CHUNK_TOKENS, 0, c->values);
        if (reads) {
            const token_rows_out o = some_columns_out(head->o, column);
            const state_read read = {.x = c->read,
                                     .panels = c->panels,
                                     .state = part,
                                     .state_panel = state_panel,
                                     .pairs = c->pairs,
                                     .met = c->values,
                                     .to = c->outputs};
            fetch = read_state(&read, columns, MEET_EARLIER, fetch);
            store_panels(&o, begin, count, head->is_normalized ? c->divisors : 0, c->outputs);
        }
        const state_write write = {.x = c->write,
                                   .y = c->values,
                                   .row_decay = has_decay ? c->total : 0,
                                   .from = part,
                                   .state = part,
                                   .state_panel = state_panel};
        const size_t used =
            write_state(&write, c->panels, columns, nears > 0 ? near : c->chunk_fetch, nears);
        near += used;
        nears -= used;
    }
    if (head->is_normalized) write_normalizer(c, has_decay);
    return fetch;
}

static void advance(const linear_head *head, const linear_chunk *c, size_t begin, size_t end,
                    float *state) {
    const fetch_column *fetch = c->fetch;
    for (size_t t = begin; t < end; t += CHUNK_TOKENS) {
        const size_t count = lmk_min(CHUNK_TOKENS, end - t);
        const near_rows rows =
            t + count < end ? head_rows(head, t + count, head->o.data != 0) : c->near;
        fetch_column near[NEAR_COLUMNS];
        const size_t nears = near_columns(&rows, near);
        if (c->fetch) fetch = advance_chunk(head, c, t, count, fetch, near, nears, state);
        else advance_chunk(head, c, t, count, c->chunk_fetch, near, nears, state);
    }
}

/// Bidirectional: no token meets another but through the state.
static void look(const linear_head *head, const linear_chunk *c, size_t tokens,
                 const float *state) {
    for (size_t t = 0; t < tokens; t += CHUNK_TOKENS) {
        const size_t count = lmk_min(CHUNK_TOKENS, tokens - t);
        float factors[CHUNK_TOKENS];
        row_factors(&head->q, t, count, head, head->scale, factors);
        load_panels(&head->q, t, count, CHUNK_TOKENS, factors, c->read);
        if (head->is_normalized) {
            for (size_t i = 0; i < PANEL; i += LMK_LANES) store(c->pairs + i, splat(0));
            read_normalizer(c);
        }
        const state_read read = {.x = c->read,
                                 .panels = c->panels,
                                 .state = state,
                                 .state_panel = PANEL * c->panels,
                                 .pairs = c->pairs,
                                 .met = c->values,
                                 .to = c->outputs};
        read_state(&read, panels_of(head->o.width), MEET_NONE, c->chunk_fetch);
        store_panels(&head->o, t, count, head->is_normalized ? c->divisors : 0, c->outputs);
    }
}

/// Products below the normal numbers become 0: one of them would stay what it is when it is
/// multiplied with a factor near 1, and every product with it takes a hundred cycles.
LMK_INLINE f32x16 without_denormals(f32x16 x) { return x < 0x1p-126f ? splat(0) : x; }

static void total_decay(const linear_head *head, const linear_chunk *c, size_t tokens,
                        float *total) {
    const size_t key_dim = head->k.width;
    const int of_keys = head->decay == LMK_DECAY_KEY;
    float *const product = c->total;
    for (size_t p = 0; p < c->panels; p++) store(product + LMK_LANES * p, splat(1));
    for (size_t t = 0; head->decay != LMK_DECAY_NONE && t < tokens; t += CHUNK_TOKENS) {
        const size_t count = lmk_min(CHUNK_TOKENS, tokens - t);
        if (of_keys) load_key_decays(head, t, count, count, c->decay);
        else load_token_decays(head, t, count, c->decay);
        for (size_t p = 0; p < (of_keys ? c->panels : 1); p++) {
            f32x16 x = load(product + LMK_LANES * p);
            for (size_t i = 0; i < count; i++) {
                x = x * (of_keys ? load(c->decay + PANEL * p + LMK_LANES * i) : splat(c->decay[i]));
            }
            store(product + LMK_LANES * p, without_denormals(x));
        }
    }
    for (size_t d = 0; d < key_dim; d++) total[d] = product[of_keys ? d : 0];
}

static void combine(const float *decay, const float *first, const float *second, size_t rows,
                    size_t columns, float *to) {
    for (size_t d = 0; d < rows; d++) {
        for (size_t e = 0; e < columns; e++) {
            const size_t at = columns * d + e;
            to[at] = first[at] * decay[d] + second[at];
        }
    }
}
