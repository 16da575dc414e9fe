// Chunks of 64 steps of bfloat16 on tiles: products as linear attention's, and a forward
// substitution by blocks of 16 steps. Included inside the region of amx.
//
// u is not bfloat16 by itself: like the state, pairs and decayed keys it is taken as the sum of
// two. What a block reads of the blocks before it is a product on tiles, where u and the pairs are
// sums of three, because later steps make its errors larger; what its own steps read of one another
// is float32. From the first step of a chunk on that holds or makes a number that is
// not finite, the chunk goes through the kernels of AVX-512.

/// Floats of the pairs of a block of 16 steps.
#define BLOCK_PAIRS 256

/// Decays and rates of steps, and what brings their keys and the queries they end to unit length.
static void prepare_step_factors(const delta_head *head, delta_tiles *m, size_t begin,
                                 size_t count) {
    const linear_head *const rows = &head->rows;
    linear_tiles *const t = &m->products;
    for (size_t i = 0; i < TILE_TOKENS; i += CHUNK_TOKENS) {
        const size_t first = begin + lmk_min(i, count),
                     some = i < count ? lmk_min(count - i, CHUNK_TOKENS) : 0,
                     token = token_of(head, first), tokens = token_of(head, first + some) - token;
        const i32x16 is_there = is_before((int)some);
        float keys[CHUNK_TOKENS], queries[CHUNK_TOKENS], rates[CHUNK_TOKENS];
        load_rates(head, first, some, rates);
        row_factors(&rows->k, first, some, rows, 1, keys);
        store(m->rates + i, choose(is_there, load(rates), splat(0)));
        store(t->keys + i, choose(is_there, load(keys), splat(0)));
        row_factors(&rows->q, token, rows->o.data ? tokens : 0, rows, rows->scale, queries);
        for (size_t j = 0; j < some; j++) {
            const int ends = ends_token(head, first + j);
            t->queries[i + j] = ends ? queries[token_of(head, first + j) - token] : 0;
        }
        load_step_decays(head, first, some, t->decay + i);
    }
    multiply_decays(t);
}

/// What row `i` of a block of steps reads of the steps before it, with a minus: of the blocks
/// before in three parts, [row of tiles][step of tiles], of its own steps, by `own` decays, as
/// float32.
LMK_INLINE f32x16 store_step_row(const delta_tiles *m, size_t block, int i, const float *products,
                                 const f32x16 *between, f32x16 own, f32x16 found) {
    const size_t row = 16 * block + (size_t)i;
    const float rate = -m->rates[row] * m->products.keys[row];
    f32x16 met[TILE_TOKENS / 16];
    LMK_UNROLL
    for (size_t j = 0; j < block; j++) met[j] = load(products + 16 * j) * between[j] * rate;
    met[block] = splat(0);
    if (block % 2 == 0) met[block + 1] = splat(0);
    LMK_UNROLL
    for (size_t half = 0; half <= block / 2; half++) {
        const size_t at = FACTORS * (2 * block + half) + 32 * (size_t)i, j = 2 * half;
        found = store_half_parts(m->met_high + at, m->met_low + at, met[j], met[j + 1], found);
        store_halves(m->met_last + at, last_part(met[j]), last_part(met[j + 1]));
    }
    const f32x16 own_met = load(products + 16 * block) * own * rate;
    const f32x16 strict = choose(is_before(i), own_met, splat(0));
    store(m->own_pairs + BLOCK_PAIRS * block + LMK_LANES * i, strict);
    return find_special(found, strict);
}

/// 16 rows of both, from products of queries and keys with keys.
LMK_INLINE f32x16 decay_pairs_of_block(delta_tiles *m, size_t block, const float *queries,
                                       const float *keys, int reads,
                                       f32x16 between[TILE_TOKENS / 16], f32x16 found) {
    linear_tiles *const t = &m->products;
    for (int i = 0; i < 16; i++, queries += TILE_TOKENS, keys += TILE_TOKENS) {
        if (i % 8 == 0) fetch_ahead(&t->fetch);
        const f32x16 own = decay_between(t, block, i, between);
        found = store_step_row(m, block, i, keys, between, own, found);
        if (reads) found = store_pair_row(t, block, i, queries, between, found);
    }
    return found;
}

static f32x16 multiply_step_pairs(delta_tiles *m, size_t count, size_t steps, int reads) {
    f32x16 found = splat(0), between[TILE_TOKENS / 16] = {0};
    float *const queries = m->products.sums, *const keys = queries + 32 * TILE_TOKENS + 16;
    const size_t second = 16 * TILE_TOKENS;
    for (size_t i = 0; i < count; i += 32) {
        multiply_rows(&m->products, m->keys_left, i, steps, keys);
        if (reads) multiply_rows(&m->products, m->products.queries_left, i, steps, queries);
#define DECAY(BLOCK, ROW)                                                                          \
    if (reads)                                                                                     \
        found = decay_pairs_of_block(m, BLOCK, queries + (ROW), keys + (ROW), 1, between, found);  \
    else found = decay_pairs_of_block(m, BLOCK, queries + (ROW), keys + (ROW), 0, between, found)
        if (i == 0) {
            DECAY(0, 0);
            DECAY(1, second);
        } else {
            DECAY(2, 0);
            DECAY(3, second);
        }
#undef DECAY
    }
    return found;
}

// MARK: Columns of values

/// What 64 steps read of the state, [64][32].
LMK_INLINE void read_tile_state(const delta_tiles *m, size_t count, size_t steps, int wide) {
    const linear_tiles *const t = &m->products;
    for (size_t i = 0; i < count; i += 32) {
        const factor_tiles k = {m->keys_left + FACTORS * steps * (i / 16), FACTORS,
                                FACTORS * steps};
        zero_sums();
        add_tile_products(k, (factor_tiles){t->state_high, 2 * FACTORS, FACTORS}, steps, 1, wide);
        add_tile_products(k, (factor_tiles){t->state_low, 2 * FACTORS, FACTORS}, steps, 1, wide);
        store_sums(m->reads + 32 * i, 16 * 32, 16, 32, 1, wide);
    }
}

/// u of the 16 steps of a block, from that of the blocks before it.
LMK_INLINE f32x16 substitute_block(const delta_tiles *m, const token_rows *v, size_t begin,
                                   size_t count, size_t block, int wide) {
    const linear_tiles *const t = &m->products;
    const size_t row = 16 * block;
    if (block > 0) {
        const uint16_t *const met[] = {m->met_high, m->met_low, m->met_last}, *const u[] = {
                                                                                  t->values_right,
                                                                                  m->values_low,
                                                                                  m->values_last};
        zero_sums();
        // Every product that float32 would not lose.
        for (size_t i = 0; i < 3; i++) {
            for (size_t j = 0; i + j < 3; j++) {
                add_tile_products((factor_tiles){met[i] + 2 * FACTORS * block, FACTORS, 0},
                                  (factor_tiles){u[j], 2 * FACTORS, FACTORS}, (block + 1) / 2, 0,
                                  wide);
            }
        }
        store_sums(m->met, 0, 16, 32, 0, wide);
    }
    const float *const pairs = m->own_pairs + BLOCK_PAIRS * block;
    f32x16 found = splat(0);
    for (size_t p = 0; p < (wide ? 2 : 1); p++) {
        f32x16 u[CHUNK_TOKENS];
        LMK_UNROLL
        for (size_t i = 0; i < CHUNK_TOKENS; i++) {
            u[i] = splat(0);
            if (row + i >= count) continue;
            const char *const from = (const char *)v->data + 2 * v->stride * (begin + row + i);
            const float read = -t->read[row + i] * t->keys[row + i];
            const f32x16 value = load_row(from, LMK_BFLOAT16, LMK_LANES * p, v->width);
            const f32x16 z = load(m->reads + 32 * (row + i) + LMK_LANES * p);
            const f32x16 error = z * read + value;
            u[i] = error * m->rates[row + i];
            if (block > 0) u[i] += load(m->met + 32 * i + LMK_LANES * p);
        }
        LMK_UNROLL
        for (size_t j = 0; j < CHUNK_TOKENS; j++) {
            LMK_UNROLL
            for (size_t i = j + 1; i < CHUNK_TOKENS; i++)
                u[i] = u[j] * pairs[LMK_LANES * i + j] + u[i];
        }
        const size_t to = FACTORS * (2 * (block / 2) + p) + 256 * (block % 2);
        LMK_UNROLL
        for (size_t i = 0; i < CHUNK_TOKENS; i += 2) {
            const size_t at = to + 16 * i;
            found =
                store_pair_parts(t->values_right + at, m->values_low + at, u[i], u[i + 1], found);
            store_pairs(m->values_last + at, last_part(u[i]), last_part(u[i + 1]));
        }
    }
    return found;
}

/// u of all steps. Rows that are not there yet are zero: products with them must be.
LMK_INLINE f32x16 substitute_steps(const delta_tiles *m, const token_rows *v, size_t begin,
                                   size_t count, int wide) {
    for (size_t at = 0; at < 4 * FACTORS; at += 32) {
        _mm512_store_si512(m->products.values_right + at, _mm512_setzero_si512());
        _mm512_store_si512(m->values_low + at, _mm512_setzero_si512());
        _mm512_store_si512(m->values_last + at, _mm512_setzero_si512());
    }
    f32x16 found = splat(0);
    for (size_t block = 0; 16 * block < count; block++)
        found += substitute_block(m, v, begin, count, block, wide);
    return found;
}

/// 16 or 32 columns of o, and of the state. Returns NaN in a lane, and has written nothing, where a
/// number was not finite.
LMK_INLINE f32x16 advance_step_columns(const delta_head *head, size_t panels, delta_tiles *m,
                                       size_t begin, size_t count, size_t steps, float *state,
                                       int wide) {
    const linear_tiles *const t = &m->products;
    const int reads = head->rows.o.data != 0;
    const size_t state_panel = PANEL * panels;
    f32x16 found = splat(0);
    for (size_t p = 0; p < (wide ? 2 : 1); p++) {
        found +=
            split_state(state + state_panel * p, LMK_LANES * panels, steps,
                        t->read[TILE_TOKENS - 1], t->state_high + FACTORS * p,
                        t->state_low + FACTORS * p, t->state + state_panel * p, &m->products.fetch);
    }
    read_tile_state(m, count, steps, wide);
    found += substitute_steps(m, &head->rows.v, begin, count, wide);
    if (has_special(found)) return found;
    for (size_t i = 0; reads && i < count; i += 32)
        multiply_outputs(t, i, steps, m->values_low, wide);
    write_tile_state(t, panels, count, has_key_factors(&head->rows), m->values_low, state,
                     state_panel, wide);
    if (reads) store_outputs(&m->products, &head->rows.o, head->steps, begin, count, wide);
    return found;
}

// MARK: Chunks

/// Steps of a chunk before the first one that tiles cannot take, all columns of values alike; 0 if
/// it is not found.
static size_t steps_before_special(const delta_head *head, const delta_tiles *m, size_t begin,
                                   size_t count) {
    const linear_tiles *const t = &m->products;
    const int reads = head->rows.o.data != 0;
    linear_tiles met = *t;
    met.pairs_low = m->met_low;
    const size_t steps = first_special_row(&head->rows.k, begin, count);
    for (size_t i = 0; i < steps; i++) {
        const size_t token = token_of(head, begin + i);
        const f32x16 own = find_special(splat(0), load(m->own_pairs + LMK_LANES * i));
        if (t->decay[i] * 0 != 0 || t->keys[i] * 0 != 0 || m->rates[i] * 0 != 0) return i;
        if (has_special(own) || is_special_pair_row(&met, i)) return i;
        if (!reads) continue;
        if (t->queries[i] * 0 != 0 || is_special_pair_row(t, i)) return i;
        if (ends_token(head, begin + i) && first_special_row(&head->rows.q, token, 1) == 0)
            return i;
    }
    return steps < count ? steps : 0;
}

/// The same for some columns alone, from u: 0 where the state is not finite.
static size_t steps_before_special_u(const delta_tiles *m, size_t count, int wide) {
    for (size_t i = 0; i < count; i++) {
        for (size_t p = 0; p < (wide ? 2 : 1); p++) {
            const uint16_t *const low =
                m->values_low + FACTORS * (2 * (i / 32) + p) + 32 * (i % 32 / 2) + i % 2;
            for (size_t e = 0; e < 16; e++) {
                if ((low[2 * e] & 0x7f80) == 0x7f80) return i;
            }
        }
    }
    return 0;
}

static void advance_tiles_chunk(const delta_head *head, const delta_chunk *c, delta_tiles *m,
                                size_t begin, size_t count, float *state);

/// 32 columns of a head, or those that are left.
LMK_INLINE delta_head columns_of_steps(const delta_head *head, size_t column) {
    delta_head part = *head;
    part.rows = columns_of_head(&head->rows, column);
    return part;
}

/// The first `steps` steps of a chunk by tiles as if none followed, the others without.
static void advance_in_parts(const delta_head *head, const delta_chunk *c, delta_tiles *m,
                             size_t begin, size_t steps, size_t count, float *state) {
    if (steps > 0) advance_tiles_chunk(head, c, m, begin, steps, state);
    delta_chunk chunk = *c;
    chunk.panels = panels_of(head->rows.v.width);
    for (size_t i = steps; i < count; i += CHUNK_TOKENS) {
        delta_rule_kernels_avx512.advance_chunk(head, &chunk, begin + i,
                                                lmk_min(CHUNK_TOKENS, count - i), state);
    }
}

static void advance_tiles_chunk(const delta_head *head, const delta_chunk *c, delta_tiles *m,
                                size_t begin, size_t count, float *state) {
    linear_tiles *const t = &m->products;
    const linear_head *const rows = &head->rows;
    const int reads = rows->o.data != 0;
    const size_t steps = lmk_divide_up(rows->k.width, TILE_STEPS),
                 panels = panels_of(rows->k.width);
    prepare_step_factors(head, m, begin, count);
    __m512i largest = load_right_columns(&rows->k, begin, count, steps, t->keys_right);
    load_left_rows(&rows->k, 1, begin, count, steps, m->keys_left);
    f32x16 found = turn_keys(t->keys_right, steps, has_key_factors(rows) ? t->write : 0,
                             t->keys_high, t->keys_low, &t->fetch);
    if (reads) {
        const __m512i queries =
            load_left_rows(&rows->q, head->steps, begin, count, steps, t->queries_left);
        largest = _mm512_max_epu16(largest, queries);
    }
    found += multiply_step_pairs(m, count, steps, reads);
    if (!is_finite(largest) || has_special(found)) {
        const size_t before = steps_before_special(head, m, begin, count);
        advance_in_parts(head, c, m, begin, before, count, state);
        return;
    }
    // Columns with special numbers come last: what is prepared here does not outlive them.
    uint8_t before[LMK_LINEAR_ATTENTION_DIM / 32];
    uint32_t special_columns = 0;
    for (size_t column = 0; column < panels_of(rows->v.width); column += VALUE_PANELS) {
        const delta_head columns = columns_of_steps(head, column);
        float *const part = state + PANEL * panels * column;
        const int wide = columns.rows.v.width > LMK_LANES;
        if (wide) found = advance_step_columns(&columns, panels, m, begin, count, steps, part, 1);
        else found = advance_step_columns(&columns, panels, m, begin, count, steps, part, 0);
        if (!has_special(found)) continue;
        special_columns |= 1u << column / VALUE_PANELS;
        before[column / VALUE_PANELS] = (uint8_t)steps_before_special_u(m, count, wide);
    }
    for (; special_columns; special_columns &= special_columns - 1) {
        const size_t group = (size_t)__builtin_ctz(special_columns), column = VALUE_PANELS * group;
        const delta_head columns = columns_of_steps(head, column);
        advance_in_parts(&columns, c, m, begin, before[group], count,
                         state + PANEL * panels * column);
    }
}
