// A chunk before it meets a state. Included inside a region.

/// exp(log_decay) per key, in panels, up to `tokens` tokens.
static void load_key_decays(const linear_head *head, size_t begin, size_t count, size_t tokens,
                            float *decay) {
    const size_t key_dim = head->k.width, panels = panels_of(key_dim);
    for (size_t i = 0; i < count; i++) {
        const float *const row = head->log_decay + head->log_decay_stride * (begin + i);
        for (size_t p = 0; p < panels; p++) {
            store(decay + PANEL * p + LMK_LANES * i,
                  vexp(load_row(row, LMK_FLOAT32, LMK_LANES * p, key_dim)));
        }
    }
    for (size_t i = count; i < tokens; i++) {
        for (size_t p = 0; p < panels; p++) store(decay + PANEL * p + LMK_LANES * i, splat(1));
    }
}

/// bonuses[i] = sum over dimensions of q[i] u k[i].
static void multiply_bonus(const linear_chunk *c, const linear_head *head, float *bonuses) {
    for (size_t i = 0; i < CHUNK_TOKENS; i++) {
        f32x16 sum = splat(0);
        for (size_t p = 0; p < c->panels; p++) {
            const size_t at = PANEL * p + LMK_LANES * i;
            const f32x16 u = load_row(head->bonus, LMK_FLOAT32, LMK_LANES * p, head->k.width);
            const f32x16 uk = u * load(c->k + at);
            sum = load(c->q + at) * uk + sum;
        }
        bonuses[i] = reduce_sum(sum);
    }
}

/// What a chunk is prepared for; each contains those before it.
typedef enum preparation {
    PREPARE_WRITES,
    PREPARE_READS,
    PREPARE_PAIRS,
} preparation;

/// Everything of a chunk that does not need the state.
static void prepare_chunk(const linear_head *head, const linear_chunk *c, size_t begin,
                          size_t count, preparation wanted) {
    const int reads = wanted >= PREPARE_READS, pairs = wanted >= PREPARE_PAIRS;
    const int has_bonus = head->bonus != 0;
    float factors[CHUNK_TOKENS];
    if (head->has_unit_length) row_factors(&head->k, begin, count, head, 1, factors);
    load_panels(&head->k, begin, count, CHUNK_TOKENS, head->has_unit_length ? factors : 0, c->k);
    if (reads) {
        row_factors(&head->q, begin, count, head, head->scale, factors);
        load_panels(&head->q, begin, count, CHUNK_TOKENS, factors, c->q);
        if (pairs) transpose_panels(c->k, c->panels, c->k_transposed);
    }
    float bonuses[CHUNK_TOKENS];
    if (pairs && has_bonus) multiply_bonus(c, head, bonuses);
    if (head->decay == LMK_DECAY_KEY) {
        load_key_decays(head, begin, count, CHUNK_TOKENS, c->decay);
        if (pairs) multiply_key_pairs(c, has_bonus);
        spread_key_decays(c, has_bonus, reads);
    } else {
        if (pairs) multiply_pairs(c->q, c->k_transposed, c->panels, c->pairs);
        if (head->decay != LMK_DECAY_NONE) {
            load_token_decays(head, begin, count, c->decay);
            if (pairs) decay_pairs(c->decay, has_bonus, c->pairs);
            spread_token_decays(c, has_bonus, reads);
        }
    }
    for (size_t i = 0; pairs && has_bonus && i < CHUNK_TOKENS; i++)
        c->pairs[(LMK_LANES + 1) * i] = bonuses[i];
}
