// Token by token on a dense state. Included inside a region.

/// What one token does to a state, as rows of key_dim.
typedef struct token_step {
    const float *q, *k, *decay;
    size_t key_dim;
    /// Nonzero: the read comes before the write, which adds `bonus` times the value to it.
    int has_bonus;
    float bonus;
} token_step;

/// VECTORS 16 columns of the state, the last 16 of them `count`; o is null where nothing reads.
#define DEFINE_STEP(VECTORS)                                                                       \
    static void step_##VECTORS(const token_step *s, const f32x16 *v, size_t count,                 \
                               const float *from, float *to, size_t stride, f32x16 *o) {           \
        const float *const q = s->q, *const k = s->k, *const decay = s->decay;                     \
        const size_t key_dim = s->key_dim;                                                         \
        const int has_bonus = s->has_bonus;                                                        \
        f32x16 value[VECTORS], sum[VECTORS];                                                       \
        LMK_UNROLL                                                                                 \
        for (int j = 0; j < VECTORS; j++) {                                                        \
            value[j] = v[j];                                                                       \
            sum[j] = splat(0);                                                                     \
        }                                                                                          \
        for (size_t d = 0; d < key_dim; d++) {                                                     \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < VECTORS; j++) {                                                    \
                const size_t at = stride * d + LMK_LANES * (size_t)j;                              \
                const int is_whole = j + 1 < VECTORS || count == LMK_LANES;                        \
                f32x16 x = splat(0);                                                               \
                if (from) x = is_whole ? load(from + at) : load_first(from + at, count);           \
                if (has_bonus) sum[j] = x * q[d] + sum[j];                                         \
                x = x * decay[d];                                                                  \
                x = value[j] * k[d] + x;                                                           \
                if (!has_bonus) sum[j] = x * q[d] + sum[j];                                        \
                if (is_whole) store(to + at, x);                                                   \
                else store_first(to + at, x, count);                                               \
            }                                                                                      \
        }                                                                                          \
        LMK_UNROLL                                                                                 \
        for (int j = 0; j < VECTORS; j++)                                                          \
            o[j] = has_bonus ? value[j] * s->bonus + sum[j] : sum[j];                              \
    }

DEFINE_STEP(1)
DEFINE_STEP(2)
DEFINE_STEP(4)

/// z of one token, and q . z.
static float step_normalizer(const token_step *s, const float *from, float *to) {
    f32x16 sum = splat(0);
    for (size_t d = 0; d < s->key_dim; d += LMK_LANES) {
        const size_t count = lmk_min(LMK_LANES, s->key_dim - d);
        const f32x16 before = from ? load_first(from + d, count) : splat(0), q = load(s->q + d);
        f32x16 z = before * load(s->decay + d);
        z = z + load(s->k + d);
        sum = q * (s->has_bonus ? before : z) + sum;
        store_first(to + d, z, count);
    }
    const float read = reduce_sum(sum);
    return s->has_bonus ? read + s->bonus : read;
}

/// Rows of 16 tokens, [16][16 panels], where `load_panels` has them in panels.
LMK_INLINE const float *gather_row(const float *panels_data, size_t panels, size_t i, float *row) {
    for (size_t p = 0; p < panels; p++)
        store(row + LMK_LANES * p, load(panels_data + PANEL * p + LMK_LANES * i));
    return row;
}

static void step_token(const linear_head *head, const token_step *s, size_t t, const float *from,
                       float divisor, float *to, size_t stride) {
    const size_t width = head->v.width;
    const char *const row =
        (const char *)head->v.data + dtype_bytes(head->v.dtype) * head->v.stride * t;
    for (size_t column = 0; column < width;) {
        const size_t left = width - column;
        const size_t vectors = left >= 4 * LMK_LANES ? 4 : left >= 2 * LMK_LANES ? 2 : 1;
        const size_t count = left < LMK_LANES ? left : LMK_LANES;
        f32x16 v[4], o[4];
        for (size_t j = 0; j < vectors; j++)
            v[j] = load_value(&head->v, row, column + LMK_LANES * j);
        (vectors == 4   ? step_4
         : vectors == 2 ? step_2
                        : step_1)(s, v, count, from ? from + column : 0, to + column, stride, o);
        for (size_t j = 0; head->o.data && j < vectors; j++) {
            store_value(&head->o, t, column + LMK_LANES * j,
                        head->is_normalized ? o[j] / divisor : o[j]);
        }
        column += LMK_LANES * vectors;
    }
}

/// q, k and the decays of tokens begin ..< begin + count, in panels.
static void load_steps(const linear_head *head, const linear_chunk *c, size_t begin, size_t count) {
    float factors[CHUNK_TOKENS];
    row_factors(&head->k, begin, count, head, 1, factors);
    load_panels(&head->k, begin, count, count, factors, c->k);
    if (head->o.data) {
        row_factors(&head->q, begin, count, head, head->scale, factors);
        load_panels(&head->q, begin, count, count, factors, c->q);
    } else {
        for (size_t i = 0; i < PANEL * c->panels; i += LMK_LANES) store(c->q + i, splat(0));
    }
    if (head->decay == LMK_DECAY_KEY) {
        load_key_decays(head, begin, count, count, c->decay);
        return;
    }
    float decay[CHUNK_TOKENS];
    if (head->decay == LMK_DECAY_NONE) store(decay, splat(1));
    else load_token_decays(head, begin, count, decay);
    for (size_t p = 0; p < c->panels; p++) {
        for (size_t i = 0; i < count; i++)
            store(c->decay + PANEL * p + LMK_LANES * i, splat(decay[i]));
    }
}

static void step(const linear_head *head, const linear_chunk *c, size_t begin, size_t end,
                 const float *from, const float *from_normalizer, float *to, float *to_normalizer,
                 size_t stride) {
    const size_t panels = c->panels;
    float bonuses[CHUNK_TOKENS];
    for (size_t t = begin; t < end; t++) {
        const size_t i = (t - begin) % CHUNK_TOKENS;
        if (i == 0) {
            const size_t count = lmk_min(CHUNK_TOKENS, end - t);
            load_steps(head, c, t, count);
            if (head->bonus) multiply_bonus(c, head, bonuses);
        }
        const token_step s = {
            .q = gather_row(c->q, panels, i, c->k_transposed),
            .k = gather_row(c->k, panels, i, c->k_transposed + LMK_LANES * panels),
            .decay = gather_row(c->decay, panels, i, c->total),
            .key_dim = head->k.width,
            .has_bonus = head->bonus != 0,
            .bonus = head->bonus ? bonuses[i] : 0,
        };
        float divisor = 1;
        if (head->is_normalized) divisor = step_normalizer(&s, from_normalizer, to_normalizer);
        step_token(head, &s, t, from, divisor, to, stride);
        from = to;
        from_normalizer = to_normalizer;
    }
}
