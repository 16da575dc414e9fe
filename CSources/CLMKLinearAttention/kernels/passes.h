// Token by token, a few in each pass over a slice of the state. Included inside a region.
//
// A pass loads and stores each element of the state once for PASS_TOKENS tokens: for each of them
// it is multiplied with its decay, gets what the token writes, and is read. Each sum is one chain
// of fused multiply-adds in ascending rows, however many tokens a pass takes.
//
// The state is stored divided by the product of the decays so far, a number or one for each row. A
// token after which that would be small multiplies it in, and it begins again with 1: whether a
// token does so is a matter of those before it alone.

#if defined(LMK_AVX512)
#define PASS_TOKENS 4
#else
#define PASS_TOKENS 2
#endif

/// Tokens that are prepared together, and for which is decided how they decay.
#define PASS_GROUP 4

typedef enum pass_decay { PASS_WITHOUT, PASS_NUMBERS, PASS_ROWS } pass_decay;

/// Four tokens, or what is left; those that are not there change nothing.
typedef struct token_group {
    size_t token, count;
    const float *k[PASS_GROUP], *q[PASS_GROUP], *rows[PASS_GROUP];
    pass_decay way;
    /// What the state is multiplied with, factors of v and of what is read, and bonuses.
    float numbers[PASS_GROUP], write_scale[PASS_GROUP], read_scale[PASS_GROUP], bonus[PASS_GROUP];
    /// The state after each token is this times what is stored then; a row of numbers where keys
    /// have decays of their own.
    float scale_after[PASS_GROUP];
    const float *rows_after[PASS_GROUP];
} token_group;

/// `v` and `y` are [PASS_TOKENS][SLICE_COLUMNS].
typedef struct token_pass {
    float *state;
    size_t rows;
    const float *k[PASS_TOKENS], *q[PASS_TOKENS], *decay_rows[PASS_TOKENS];
    float decays[PASS_TOKENS];
    const float *v;
    float *y;
} token_pass;

#define FOR_TOKENS                                                                                 \
    LMK_UNROLL                                                                                     \
    for (int n = 0; n < PASS_TOKENS; n++)

#define DEFINE_PASS(NAME, VECTORS, WAY, HAS_BONUS, READS)                                          \
    static void NAME(const token_pass *p) {                                                        \
        f32x16 v[PASS_TOKENS][VECTORS], y[PASS_TOKENS][VECTORS], decays[PASS_TOKENS];              \
        const float *k[PASS_TOKENS], *q[PASS_TOKENS], *rows[PASS_TOKENS];                          \
        FOR_TOKENS {                                                                               \
            k[n] = p->k[n];                                                                        \
            q[n] = p->q[n];                                                                        \
            rows[n] = p->decay_rows[n];                                                            \
            decays[n] = splat(p->decays[n]);                                                       \
            FOR_SWEEP(VECTORS) {                                                                   \
                v[n][j] = load(p->v + SLICE_COLUMNS * n + LMK_LANES * j);                          \
                y[n][j] = splat(0);                                                                \
            }                                                                                      \
        }                                                                                          \
        float *state = p->state;                                                                   \
        const size_t count = p->rows;                                                              \
        _Pragma("clang loop unroll_count(2)") for (size_t d = 0; d < count; d++) {                 \
            f32x16 x[VECTORS];                                                                     \
            FOR_SWEEP(VECTORS) x[j] = load(state + LMK_LANES * j);                                 \
            FOR_TOKENS {                                                                           \
                const f32x16 key = splat(k[n][d]), query = splat((READS) ? q[n][d] : 0),           \
                             decay = (WAY) == PASS_ROWS ? splat(rows[n][d]) : decays[n];           \
                FOR_SWEEP(VECTORS) {                                                               \
                    if ((READS) && (HAS_BONUS)) y[n][j] = x[j] * query + y[n][j];                  \
                    if ((WAY) != PASS_WITHOUT) x[j] = x[j] * decay;                                \
                    x[j] = v[n][j] * key + x[j];                                                   \
                    if ((READS) && !(HAS_BONUS)) y[n][j] = x[j] * query + y[n][j];                 \
                }                                                                                  \
            }                                                                                      \
            FOR_SWEEP(VECTORS) store(state + LMK_LANES * j, x[j]);                                 \
            state += SLICE_COLUMNS;                                                                \
        }                                                                                          \
        FOR_TOKENS {                                                                               \
            FOR_SWEEP(VECTORS) store(p->y + SLICE_COLUMNS * n + LMK_LANES * j, y[n][j]);           \
        }                                                                                          \
    }

/// Every way to decay; with a bonus or without, and without reading.
#define DEFINE_PASSES(NAME, VECTORS)                                                               \
    DEFINE_PASS(NAME##_without, VECTORS, PASS_WITHOUT, 0, 1)                                       \
    DEFINE_PASS(NAME##_numbers, VECTORS, PASS_NUMBERS, 0, 1)                                       \
    DEFINE_PASS(NAME##_rows, VECTORS, PASS_ROWS, 0, 1)                                             \
    DEFINE_PASS(NAME##_bonus_without, VECTORS, PASS_WITHOUT, 1, 1)                                 \
    DEFINE_PASS(NAME##_bonus_numbers, VECTORS, PASS_NUMBERS, 1, 1)                                 \
    DEFINE_PASS(NAME##_bonus_rows, VECTORS, PASS_ROWS, 1, 1)                                       \
    DEFINE_PASS(NAME##_write_without, VECTORS, PASS_WITHOUT, 0, 0)                                 \
    DEFINE_PASS(NAME##_write_numbers, VECTORS, PASS_NUMBERS, 0, 0)                                 \
    DEFINE_PASS(NAME##_write_rows, VECTORS, PASS_ROWS, 0, 0)

#define PASSES_OF(NAME)                                                                            \
    {                                                                                              \
        {NAME##_without, NAME##_numbers, NAME##_rows},                                             \
            {NAME##_bonus_without, NAME##_bonus_numbers, NAME##_bonus_rows},                       \
            {NAME##_write_without, NAME##_write_numbers, NAME##_write_rows},                       \
    }

DEFINE_PASSES(pass_1, 1)
#if SWEEP_VECTORS == 2
DEFINE_PASSES(pass_2, 2)
#endif

/// By vectors, reading and decay.
static void (*const passes[SWEEP_VECTORS][3][3])(const token_pass *) = {
    PASSES_OF(pass_1),
#if SWEEP_VECTORS == 2
    PASSES_OF(pass_2),
#endif
};

/// Tokens begin ..< begin + count: their shared decays, and what brings them to unit length.
static void begin_tokens(const linear_head *head, pass_memory *m, size_t begin, size_t count) {
    if (head->decay == LMK_DECAY_NONE) store(m->decays, splat(1));
    else if (head->decay != LMK_DECAY_KEY) load_token_decays(head, begin, count, m->decays);
    if (!head->has_unit_length) return;
    row_factors(&head->k, begin, count, head, 1, m->k_factors);
    if (head->o.data) row_factors(&head->q, begin, count, head, 1, m->q_factors);
}

/// q u k of one token.
static float bonus_of(const linear_head *head, const float *q, const float *k) {
    const size_t width = head->k.width;
    f32x16 sum = splat(0);
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 uk =
            load_row(head->bonus, LMK_FLOAT32, at, width) * load_row(k, LMK_FLOAT32, at, width);
        sum = load_row(q, LMK_FLOAT32, at, width) * uk + sum;
    }
    return reduce_sum(sum);
}

/// The decay of token n by a number: what the state is multiplied with, or else what this token
/// writes and reads, and `scale`.
static void decay_by_number(const linear_head *head, token_group *g, size_t n, float decay,
                            float *scale) {
    const float before = *scale, product = before * decay;
    if (product >= 1 / FOLD_LIMIT && product <= FOLD_LIMIT) {
        g->write_scale[n] = 1 / product;
        *scale = product;
    } else {
        g->way = PASS_NUMBERS;
        g->numbers[n] = product;
        *scale = 1;
    }
    g->read_scale[n] = head->scale * (head->bonus ? before : *scale);
    g->scale_after[n] = *scale;
}

/// The same by rows: of all keys at once.
static void decay_by_rows(const linear_head *head, const pass_memory *m, token_group *g, size_t n,
                          float *scale) {
    const size_t width = head->k.width, padded = LMK_LANES * panels_of(width);
    const float *const log_decay = head->log_decay + head->log_decay_stride * (g->token + n);
    float *const products = m->rows + padded * n, *const k = m->k + padded * n,
                 *const q = m->q + padded * n;
    const int reads = head->o.data != 0, has_bonus = head->bonus != 0;
    i32x16 is_outside = (i32x16)0;
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 decay = vexp(load_row(log_decay, LMK_FLOAT32, at, width)),
                     product = load(scale + at) * decay;
        store(products + at, product);
        is_outside |= is_to_fold(product);
    }
    const int folds = any_of(is_outside);
    // A read before the decay is one of what is stored until then.
    for (size_t at = 0; reads && (has_bonus || !folds) && at < width; at += LMK_LANES) {
        const f32x16 factor = load((has_bonus ? scale : products) + at);
        store(q + at, load_row(g->q[n], LMK_FLOAT32, at, width) * factor);
    }
    if (reads && (has_bonus || !folds)) g->q[n] = q;
    if (folds) {
        g->way = PASS_ROWS;
        g->rows[n] = products;
        g->rows_after[n] = m->ones;
        for (size_t at = 0; at < width; at += LMK_LANES) store(scale + at, splat(1));
        return;
    }
    g->rows_after[n] = products;
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 product = load(products + at);
        store(k + at, load_row(g->k[n], LMK_FLOAT32, at, width) / product);
        store(scale + at, product);
    }
    g->k[n] = k;
}

/// Tokens token ..< token + count, the i-th of those that were begun. `scale` is that of the state,
/// before the group and then after it.
static token_group prepare_tokens(const linear_head *head, const pass_memory *m, size_t token,
                                  size_t i, size_t count, float *scale) {
    const size_t width = head->k.width, padded = LMK_LANES * panels_of(width);
    const int has_unit_length = head->has_unit_length, reads = head->o.data != 0;
    token_group g = {.token = token, .count = count, .way = PASS_WITHOUT};
    for (size_t n = 0; n < PASS_GROUP; n++) {
        g.k[n] = g.q[n] = m->zeros;
        g.rows[n] = m->ones;
        g.numbers[n] = g.write_scale[n] = 1;
        g.read_scale[n] = head->scale;
        g.scale_after[n] = *scale;
        g.rows_after[n] = 0;
        if (n >= count) continue;
        g.k[n] =
            row_of(&head->k, token + n, has_unit_length, m->k_factors[i + n], m->k + padded * n);
        if (reads) {
            g.q[n] = row_of(&head->q, token + n, has_unit_length, m->q_factors[i + n],
                            m->q + padded * n);
        }
        if (head->bonus && reads) g.bonus[n] = head->scale * bonus_of(head, g.q[n], g.k[n]);
        if (head->decay == LMK_DECAY_KEY) decay_by_rows(head, m, &g, n, scale);
        else decay_by_number(head, &g, n, m->decays[i + n], scale);
    }
    return g;
}

/// The state after the first `count` tokens of a group, from the one before it.
static void keep_after(const linear_head *head, const token_group *g, column_slice slice,
                       size_t count, const float *state, const float *v, float *to, size_t stride) {
    const float *const rows_after = g->rows_after[count - 1];
    for (size_t d = 0; d < head->k.width; d++, state += SLICE_COLUMNS) {
        const float scale = rows_after ? rows_after[d] : g->scale_after[count - 1];
        for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
            f32x16 x = load(state + lane);
            for (size_t n = 0; n < count; n++) {
                if (g->way == PASS_ROWS) x = x * g->rows[n][d];
                if (g->way == PASS_NUMBERS) x = x * g->numbers[n];
                x = load(v + SLICE_COLUMNS * n + lane) * g->k[n][d] + x;
            }
            store_row(to + stride * d, LMK_FLOAT32, lane, slice.columns, x * scale);
        }
    }
}

/// One group on one slice.
static void pass_group(const linear_head *head, const token_group *g, column_slice slice,
                       float *state, const kept_states *kept) {
    const int reads = head->o.data != 0;
    float v[PASS_GROUP * SLICE_COLUMNS], y[PASS_GROUP * SLICE_COLUMNS];
    const size_t bytes = dtype_bytes(head->v.dtype) * head->v.stride;
    for (size_t n = 0; n < PASS_GROUP; n++) {
        const char *const row = (const char *)head->v.data + bytes * (g->token + n);
        for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
            f32x16 x = splat(0);
            if (n < g->count)
                x = load_value(&head->v, row, slice.column + lane) * g->write_scale[n];
            store(v + SLICE_COLUMNS * n + lane, x);
        }
    }
    for (size_t n = 0; kept && n < g->count; n++) {
        const size_t tokens = g->token + n + 1;
        if (tokens % kept->stride != 0) continue;
        keep_after(head, g, slice, n + 1, state, v,
                   kept->data + kept->step * (tokens / kept->stride - 1) + slice.column,
                   kept->row_stride);
    }
    // All four whatever a pass takes: one that is not there adds 0, which makes 0 of -0.
    for (size_t first = 0; first < PASS_GROUP; first += PASS_TOKENS) {
        token_pass pass = {.state = state,
                           .rows = head->k.width,
                           .v = v + SLICE_COLUMNS * first,
                           .y = y + SLICE_COLUMNS * first};
        for (size_t n = 0; n < PASS_TOKENS; n++) {
            pass.k[n] = g->k[first + n];
            pass.q[n] = g->q[first + n];
            pass.decay_rows[n] = g->rows[first + n];
            pass.decays[n] = g->numbers[first + n];
        }
        passes[slice.vectors - 1][!reads ? 2 : head->bonus ? 1 : 0][g->way](&pass);
    }
    for (size_t n = 0; reads && n < g->count; n++) {
        for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
            f32x16 o = load(y + SLICE_COLUMNS * n + lane) * g->read_scale[n];
            if (head->bonus) {
                // With the value as it is, not as it is written.
                const char *const row = (const char *)head->v.data + bytes * (g->token + n);
                o = load_value(&head->v, row, slice.column + lane) * g->bonus[n] + o;
            }
            store_value(&head->o, g->token + n, slice.column + lane, o);
        }
    }
}

/// The rows of some tokens are brought into L1.
static void fetch_tokens(const linear_head *head, size_t begin, size_t end) {
    for (size_t t = begin; t < end; t++) {
        fetch_row(head->k.data, head->k.dtype, head->k.stride, head->k.width, t);
        fetch_row(head->v.data, head->v.dtype, head->v.stride, head->v.width, t);
        if (head->o.data) fetch_row(head->q.data, head->q.dtype, head->q.stride, head->q.width, t);
        if (head->decay == LMK_DECAY_KEY)
            fetch_row(head->log_decay, LMK_FLOAT32, head->log_decay_stride, head->k.width, t);
    }
}

static void pass_tokens(const linear_head *head, pass_memory *m, size_t begin, size_t end,
                        float *state, float *scale, const kept_states *kept,
                        const fetch_column *fetch, size_t fetches) {
    const size_t slices = slices_of(head), slice_floats = SLICE_COLUMNS * head->k.width;
    for (size_t at = begin; at < end; at += CHUNK_TOKENS) {
        const size_t count = lmk_min(CHUNK_TOKENS, end - at);
        begin_tokens(head, m, at, count);
        for (size_t i = 0; i < count; i += PASS_GROUP) {
            const size_t token = at + i, group = lmk_min(PASS_GROUP, count - i);
            const token_group g = prepare_tokens(head, m, token, i, group, scale);
            fetch_tokens(head, token + group, lmk_min(token + group + PASS_GROUP, end));
            for (size_t s = 0; s < slices; s++) {
                if (fetches > 0) fetch_lines(fetch++), fetches--;
                pass_group(head, &g, slice_of(head, s), state + slice_floats * s, kept);
            }
        }
    }
}
