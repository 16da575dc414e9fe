// The decays of a chunk, and the pairs of its tokens. Included inside a region.
//
// Decays are factors and their running products: nothing is divided, no sums of logarithms are
// subtracted, so a factor of 0 is as good as any other.

/// Lane i of x, and the lanes before it.
LMK_INLINE i32x16 is_lane(int i) { return lane_numbers() == (i32x16)i; }
LMK_INLINE i32x16 is_before(int i) { return lane_numbers() < (i32x16)i; }

/// exp(log_decay) of each token, 1 for those that are not there.
LMK_INLINE void load_token_decays(const linear_head *head, size_t begin, size_t count,
                                  float *decay) {
    float logarithms[CHUNK_TOKENS] = {0};
    for (size_t i = 0; i < count; i++)
        logarithms[i] = head->log_decay[head->log_decay_stride * (begin + i)];
    store(decay, vexp(load(logarithms)));
}

/// Panels with each token's row multiplied with its factor.
static void scale_rows(const float *x, const float *factors, size_t panels, float *to) {
    for (size_t p = 0; p < panels; p++, x += PANEL, to += PANEL) {
        LMK_UNROLL
        for (int i = 0; i < CHUNK_TOKENS; i++)
            store(to + LMK_LANES * i, load(x + LMK_LANES * i) * factors[i]);
    }
}

/// read, write and total of a decay that dimensions share.
static void spread_token_decays(const linear_chunk *c, int has_bonus, int reads) {
    float before[CHUNK_TOKENS], after[CHUNK_TOKENS], product = 1;
    for (size_t i = 0; i < CHUNK_TOKENS; i++) {
        if (has_bonus) before[i] = product;
        product *= c->decay[i];
        if (!has_bonus) before[i] = product;
    }
    for (size_t p = 0; p < c->panels; p++) store(c->total + LMK_LANES * p, splat(product));
    product = 1;
    for (size_t i = CHUNK_TOKENS; i-- > 0;) {
        after[i] = product;
        product *= c->decay[i];
    }
    if (reads) scale_rows(c->q, before, c->panels, c->read);
    scale_rows(c->k, after, c->panels, c->write);
    if (!c->before) return;
    store(c->before, load(before));
    store(c->after, load(after));
}

/// The same where each dimension has its own.
static void spread_key_decays(const linear_chunk *c, int has_bonus, int reads) {
    for (size_t p = 0; p < c->panels; p++) {
        const float *const decay = c->decay + PANEL * p, *const q = c->q + PANEL * p,
                           *const k = c->k + PANEL * p;
        float *const read = c->read + PANEL * p, *const write = c->write + PANEL * p,
                     *const before = c->before ? c->before + PANEL * p : 0,
                     *const after = c->after ? c->after + PANEL * p : 0;
        f32x16 product = splat(1);
        LMK_UNROLL
        for (int i = 0; i < CHUNK_TOKENS; i++) {
            const f32x16 next = product * load(decay + LMK_LANES * i),
                         factor = has_bonus ? product : next;
            if (reads) store(read + LMK_LANES * i, load(q + LMK_LANES * i) * factor);
            if (before) store(before + LMK_LANES * i, factor);
            product = next;
        }
        store(c->total + LMK_LANES * p, product);
        product = splat(1);
        LMK_UNROLL
        for (int i = CHUNK_TOKENS - 1; i >= 0; i--) {
            store(write + LMK_LANES * i, load(k + LMK_LANES * i) * product);
            if (after) store(after + LMK_LANES * i, product);
            product = product * load(decay + LMK_LANES * i);
        }
    }
}

/// Products of q and k become P: the decays between two tokens are those of the tokens after the
/// first, up to the second, or with a bonus to the one before the second.
static void decay_pairs(const float *decay, int has_bonus, float *pairs) {
    f32x16 between = splat(0);
    LMK_UNROLL
    for (int i = 0; i < CHUNK_TOKENS; i++) {
        float *const row = pairs + LMK_LANES * i;
        const f32x16 after = between * decay[i];
        if (!has_bonus) between = choose(is_lane(i), splat(1), after);
        store(row, load(row) * between);
        if (has_bonus) between = choose(is_lane(i), splat(1), after);
    }
}

/// PAIR_ROWS rows of P with decays per key. k is with tokens in lanes, decayed up to the token
/// before `row`, and becomes what it is after these rows.
LMK_INLINE void multiply_key_rows(const linear_chunk *c, size_t row, int has_bonus, float *k) {
    f32x16 sum[PAIR_ROWS];
    FOR_ROWS(PAIR_ROWS) sum[i] = splat(0);
    for (size_t p = 0; p < c->panels; p++) {
        const float *q = c->q + PANEL * p + LMK_LANES * row,
                    *decay = c->decay + PANEL * p + LMK_LANES * row;
        for (size_t d = 0; d < LMK_LANES; d += PAIR_STEPS, k += LMK_LANES * PAIR_STEPS) {
            f32x16 decayed[PAIR_STEPS];
            LMK_UNROLL
            for (int s = 0; s < PAIR_STEPS; s++) decayed[s] = load(k + LMK_LANES * s);
            FOR_ROWS(PAIR_ROWS) {
                const i32x16 before = is_before((int)row + i);
                LMK_UNROLL
                for (int s = 0; s < PAIR_STEPS; s++) {
                    const f32x16 x = decayed[s];
                    decayed[s] = choose(before, x * decay[LMK_LANES * i + s], x);
                    const f32x16 met = has_bonus ? x : decayed[s];
                    sum[i] = splat(q[LMK_LANES * i + s]) * met + sum[i];
                }
            }
            LMK_UNROLL
            for (int s = 0; s < PAIR_STEPS && PAIR_ROWS < CHUNK_TOKENS; s++)
                store(k + LMK_LANES * s, decayed[s]);
            q += PAIR_STEPS;
            decay += PAIR_STEPS;
        }
    }
    FOR_ROWS(PAIR_ROWS) store(c->pairs + LMK_LANES * (row + (size_t)i), sum[i]);
}

/// P with decays per key. k_transposed is used up.
static void multiply_key_pairs(const linear_chunk *c, int has_bonus) {
    for (size_t row = 0; row < CHUNK_TOKENS; row += PAIR_ROWS) {
        if (has_bonus) multiply_key_rows(c, row, 1, c->k_transposed);
        else multiply_key_rows(c, row, 0, c->k_transposed);
    }
}
