// Gradients of the log-decays of a chunk. Included inside a region.
//
// That of token t is the sum of everything that its decay is a factor of: what the state carries
// through the chunk, what tokens from t on read from before the chunk, what tokens before t write
// to the state at its end, and what tokens from t on read from tokens before t. Nothing is
// subtracted: q dq - k dk, summed, would give the same and lose every digit under strong decays.

/// The tokens whose reads contain the decay of token t: from t on, or with a bonus after it.
LMK_INLINE int first_reader(int t, int has_bonus) { return t + (has_bonus ? 1 : 0); }

/// Of a decay that dimensions share: products[i][j] = P dP below the diagonal.
static void token_decay_gradients(const linear_chunk *c, const linear_gradient_chunk *g,
                                  int has_bonus, float *gradients) {
    float reads[CHUNK_TOKENS], writes[CHUNK_TOKENS];
    for (int i = 0; i < CHUNK_TOKENS; i++) {
        reads[i] = reduce_sum(load(g->read_dots + LMK_LANES * i));
        writes[i] = reduce_sum(load(g->write_dots + LMK_LANES * i));
    }
    f32x16 carried = splat(0);
    for (size_t p = 0; p < c->panels; p++) carried += load(g->carried + LMK_LANES * p);
    const float all = reduce_sum(carried);
    float written[CHUNK_TOKENS], sum = 0;
    for (int t = 0; t < CHUNK_TOKENS; t++) {
        written[t] = sum;
        sum += writes[t];
    }
    // Rows of products from the last token back, tokens that they read in lanes.
    f32x16 below = splat(0);
    float read = 0;
    int next = CHUNK_TOKENS;
    for (int t = CHUNK_TOKENS - 1; t >= 0; t--) {
        for (; next > first_reader(t, has_bonus); next--) {
            read += reads[next - 1];
            below += load(g->products + LMK_LANES * (next - 1));
        }
        const f32x16 met = choose(is_before(t), below, splat(0));
        gradients[t] = all + read + written[t] + reduce_sum(met);
    }
}

/// The pairs of a chunk with decays per key: adds to dq and dk, and to the gradient of the decays
/// what tokens read from tokens before t. The decay from j to i is a running product.
LMK_INLINE void key_pair_gradients_of(const linear_chunk *c, const linear_gradient_chunk *g,
                                      size_t p, int has_bonus) {
    const float *const q = c->q + PANEL * p, *const k = c->k + PANEL * p,
                       *const decay = c->decay + PANEL * p;
    float *const dq = g->dq + PANEL * p, *const dk = g->dk + PANEL * p,
                 *const ddecay = g->ddecay + PANEL * p;
    // reads[i]: what token i reads from tokens up to the one that the loop is at.
    f32x16 reads[CHUNK_TOKENS];
    for (int i = 0; i < CHUNK_TOKENS; i++) reads[i] = splat(0);
    for (int j = 0; j < CHUNK_TOKENS; j++) {
        // The decay of token j is a factor of what later ones read from those before it.
        f32x16 met = splat(0);
        for (int i = first_reader(j, has_bonus); i < CHUNK_TOKENS; i++) met += reads[i];
        store(ddecay + LMK_LANES * j, load(ddecay + LMK_LANES * j) + met);
        const f32x16 key = load(k + LMK_LANES * j);
        f32x16 between = splat(1), sum = splat(0);
        for (int i = has_bonus ? j + 1 : j; i < CHUNK_TOKENS; i++) {
            // With a bonus up to the token before i.
            const int last = has_bonus ? i - 1 : i;
            if (last > j) between = between * load(decay + LMK_LANES * last);
            const f32x16 factor = between * g->dpairs[LMK_LANES * i + j];
            const f32x16 part = factor * load(q + LMK_LANES * i);
            store(dq + LMK_LANES * i, factor * key + load(dq + LMK_LANES * i));
            sum += part;
            if (i > j) reads[i] = part * key + reads[i];
        }
        store(dk + LMK_LANES * j, load(dk + LMK_LANES * j) + sum);
    }
}

static void key_pair_gradients(const linear_chunk *c, const linear_gradient_chunk *g,
                               int has_bonus) {
    for (size_t p = 0; p < c->panels; p++) {
        if (has_bonus) key_pair_gradients_of(c, g, p, 1);
        else key_pair_gradients_of(c, g, p, 0);
    }
}

/// dq and dk of what goes through the state get their decays; the gradient of the decays begins
/// with it.
static void key_state_gradients(const linear_chunk *c, const linear_gradient_chunk *g,
                                int has_bonus) {
    for (size_t p = 0; p < c->panels; p++) {
        const size_t panel = PANEL * p;
        f32x16 written = load(g->carried + LMK_LANES * p);
        for (int j = 0; j < CHUNK_TOKENS; j++) {
            const size_t at = panel + LMK_LANES * (size_t)j;
            const f32x16 dk = load(g->dk + at) * load(c->after + at);
            store(g->dk + at, dk);
            store(g->ddecay + at, written);
            written = load(c->k + at) * dk + written;
        }
        f32x16 read = splat(0);
        for (int i = CHUNK_TOKENS - 1; i >= 0; i--) {
            const size_t at = panel + LMK_LANES * (size_t)i;
            const f32x16 dq = load(g->dq + at) * load(c->before + at);
            store(g->dq + at, dq);
            const f32x16 with = load(c->q + at) * dq + read;
            // The read of token i contains its own decay unless there is a bonus.
            store(g->ddecay + at, load(g->ddecay + at) + (has_bonus ? read : with));
            read = with;
        }
    }
}
