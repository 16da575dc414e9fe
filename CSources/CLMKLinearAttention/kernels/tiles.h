// Chunks of 64 tokens of bfloat16, one after the other, on a state in panels: every product runs on
// tiles of 16 rows of 64 bytes. Included inside the region of amx.
//
// q, k and v are factors as they are. What is not bfloat16 by itself, the pairs, the state and keys
// with their decays, is taken as the sum of two: 16 bits of it, where float32 has 24, so that o
// and the state are right to 2^-17 before o is rounded to 8 bits. Sums are float32.
//
// A product with a token that comes later is one with 0, which is no 0 where that token is infinite
// or NaN. From the first token of a chunk on that holds or makes such a number, the chunk goes
// through the kernels of AVX-512; the tokens before it are computed as if it ended there.

// MARK: What does not need the state

/// Factors of tokens: their decays, what brings their keys to unit length, what a query that reads
/// the state is multiplied with (its own length and scale apart), and a key that is written.
static void prepare_token_factors(const linear_head *head, linear_tiles *m, size_t begin,
                                  size_t count) {
    for (size_t i = 0; i < TILE_TOKENS; i += CHUNK_TOKENS) {
        const size_t some = i < count ? lmk_min(count - i, CHUNK_TOKENS) : 0;
        const i32x16 is_there = is_before((int)some);
        float keys[CHUNK_TOKENS];
        row_factors(&head->k, begin + i, some, head, 1, keys);
        store(m->keys + i, choose(is_there, load(keys), splat(0)));
        // Without outputs there may be no queries.
        row_factors(&head->q, begin + i, head->o.data ? some : 0, head, head->scale,
                    m->queries + i);
        if (head->decay != LMK_DECAY_NONE) load_token_decays(head, begin + i, some, m->decay + i);
        else store(m->decay + i, splat(1));
    }
    multiply_decays(m);
}

/// 16 rows of P, from the products of their queries with keys.
LMK_INLINE f32x16 decay_pairs_of_block(linear_tiles *m, size_t block, const float *products,
                                       f32x16 between[TILE_TOKENS / 16], f32x16 found) {
    for (int i = 0; i < 16; i++, products += TILE_TOKENS) {
        if (i % 8 == 0) fetch_ahead(&m->fetch);
        decay_between(m, block, i, between);
        found = store_pair_row(m, block, i, products, between, found);
    }
    return found;
}

static f32x16 multiply_tile_pairs(linear_tiles *m, size_t count, size_t steps) {
    f32x16 found = splat(0), between[TILE_TOKENS / 16] = {0};
    for (size_t i = 0; i < count; i += 32) {
        multiply_rows(m, m->queries_left, i, steps, m->sums);
        const float *const second = m->sums + 16 * TILE_TOKENS;
        if (i == 0) {
            found = decay_pairs_of_block(m, 0, m->sums, between, found);
            found = decay_pairs_of_block(m, 1, second, between, found);
        } else {
            found = decay_pairs_of_block(m, 2, m->sums, between, found);
            found = decay_pairs_of_block(m, 3, second, between, found);
        }
    }
    return found;
}

// MARK: Chunks

/// 16 or 32 columns of o, and of the state.
LMK_INLINE void advance_columns(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                                size_t begin, size_t count, size_t steps, float *state, int wide) {
    const int reads = head->o.data != 0;
    for (size_t i = 0; reads && i < count; i += 32) multiply_outputs(m, i, steps, 0, wide);
    write_tile_state(m, c->panels, count, has_key_factors(head), 0, state, PANEL * c->panels, wide);
    if (reads) store_outputs(m, &head->o, 1, begin, count, wide);
}

/// Tokens of a chunk before the first one that tiles cannot take, all columns of values alike; 0 if
/// it is not found.
static size_t tokens_before_special(const linear_head *head, const linear_tiles *m, size_t begin,
                                    size_t count) {
    const int reads = head->o.data != 0;
    size_t tokens = first_special_row(&head->k, begin, count);
    if (reads) tokens = first_special_row(&head->q, begin, tokens);
    for (size_t i = 0; i < tokens; i++) {
        if (m->decay[i] * 0 != 0 || m->keys[i] * 0 != 0) return i;
        if (reads && (m->queries[i] * 0 != 0 || is_special_pair_row(m, i))) return i;
    }
    return tokens < count ? tokens : 0;
}

static void advance_tiles_chunk(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                                size_t begin, size_t count, float *state);

/// The first `tokens` tokens of a chunk by tiles as if none followed, the others without.
static void advance_in_parts(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                             size_t begin, size_t tokens, size_t count, float *state) {
    if (tokens > 0) advance_tiles_chunk(head, c, m, begin, tokens, state);
    linear_attention_kernels_avx512.advance(head, c, begin + tokens, begin + count, state);
}

static void advance_tiles_chunk(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                                size_t begin, size_t count, float *state) {
    const int reads = head->o.data != 0;
    const size_t steps = lmk_divide_up(head->k.width, TILE_STEPS);
    prepare_token_factors(head, m, begin, count);
    __m512i largest = load_right_columns(&head->k, begin, count, steps, m->keys_right);
    f32x16 found = turn_keys(m->keys_right, steps, has_key_factors(head) ? m->write : 0,
                             m->keys_high, m->keys_low, &m->fetch);
    if (reads) {
        largest = _mm512_max_epu16(
            largest, load_left_rows(&head->q, 1, begin, count, steps, m->queries_left));
        found += multiply_tile_pairs(m, count, steps);
    }
    if (!is_finite(largest) || has_special(found)) {
        const size_t tokens = tokens_before_special(head, m, begin, count);
        advance_in_parts(head, c, m, begin, tokens, count, state);
        return;
    }
    // Columns with special values come last: what is prepared here does not outlive them.
    const size_t state_panel = PANEL * c->panels, panels = panels_of(head->v.width);
    uint32_t special_columns = 0;
    for (size_t column = 0; column < panels; column += VALUE_PANELS) {
        const linear_head columns = columns_of_head(head, column);
        const int wide = columns.v.width > LMK_LANES;
        float *const part = state + state_panel * column;
        if (!is_finite(load_right_rows(&columns.v, begin, count, m->values_right))) {
            special_columns |= 1u << column / VALUE_PANELS;
            continue;
        }
        f32x16 special = splat(0);
        for (size_t p = 0; p < (wide ? 2 : 1); p++) {
            special +=
                split_state(part + state_panel * p, LMK_LANES * c->panels, steps,
                            m->read[TILE_TOKENS - 1], m->state_high + FACTORS * p,
                            m->state_low + FACTORS * p, m->state + state_panel * p, &m->fetch);
        }
        if (has_special(special)) advance_in_parts(&columns, c, m, begin, 0, count, part);
        else if (wide) advance_columns(&columns, c, m, begin, count, steps, part, 1);
        else advance_columns(&columns, c, m, begin, count, steps, part, 0);
    }
    for (; special_columns; special_columns &= special_columns - 1) {
        const size_t column = VALUE_PANELS * (size_t)__builtin_ctz(special_columns);
        const linear_head columns = columns_of_head(head, column);
        const size_t tokens = first_special_row(&columns.v, begin, count);
        advance_in_parts(&columns, c, m, begin, tokens, count, state + state_panel * column);
    }
}

static void advance_tiles(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                          size_t begin, size_t end, float *state) {
    for (size_t t = begin; t < end; t += TILE_TOKENS)
        advance_tiles_chunk(head, c, m, t, lmk_min(TILE_TOKENS, end - t), state);
}
