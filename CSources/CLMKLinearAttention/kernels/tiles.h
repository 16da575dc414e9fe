// Chunks of 64 tokens of bfloat16, one after the other, on a state in panels: every product runs on
// tiles of 16 rows of 64 bytes. Included inside the region of amx.
//
// q, k and v are factors as they are. What is not bfloat16 by itself, the pairs, the state and keys
// with their decays, is taken as the sum of two: 16 bits of it, where float32 has 24, so that o
// and the state are right to about 2^-18 before o is rounded to 8 bits. Sums are float32.
//
// A product with a token that comes later is one with 0, which is no 0 where that token is infinite
// or NaN. From the first token of a chunk on that holds or makes such a number, the chunk goes
// through the kernels of AVX-512; the tokens before it are computed as if it ended there.

/// Floats of a tile of sums, [16][16].
#define SUMS 256
/// Elements of a tile of a left factor, [16 rows][32 steps], and of a right one, [16 pairs of
/// steps][16 columns][2].
#define FACTORS 512
#define TILE_STEPS 32

/// Tiles of a factor: elements from one to the next along the depth, and to the one of the next 16
/// rows or columns.
typedef struct factor_tiles {
    const uint16_t *data;
    size_t step, next;
} factor_tiles;

/// Sums 0 and 1, and if `tall` 2 and 3 below them, += a b over `steps` tiles; 1 and 3 if `wide`.
LMK_INLINE void add_tile_products(factor_tiles a, factor_tiles b, size_t steps, int tall,
                                  int wide) {
    for (size_t s = 0; s < steps; s++) {
        _tile_loadd(4, a.data, 64);
        _tile_loadd(6, b.data, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) _tile_loadd(7, b.data + b.next, 64);
        if (wide) _tile_dpbf16ps(1, 4, 7);
        if (tall) _tile_loadd(5, a.data + a.next, 64);
        if (tall) _tile_dpbf16ps(2, 5, 6);
        if (tall && wide) _tile_dpbf16ps(3, 5, 7);
        a.data += a.step;
        b.data += b.step;
    }
}

/// The same for a factor in two parts, or one where `low` has no data.
LMK_INLINE void add_tile_parts(factor_tiles high, factor_tiles low, factor_tiles b, size_t steps,
                               int tall, int wide) {
    add_tile_products(high, b, steps, tall, wide);
    if (low.data) add_tile_products(low, b, steps, tall, wide);
}

LMK_INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/// Two rows of tiles of sums, `below` floats apart, of one column or two, `beside` floats apart.
LMK_INLINE void store_sums(float *to, size_t below, size_t beside, size_t stride, int tall,
                           int wide) {
    _tile_stored(0, to, sizeof(float) * stride);
    if (wide) _tile_stored(1, to + beside, sizeof(float) * stride);
    if (tall) _tile_stored(2, to + below, sizeof(float) * stride);
    if (tall && wide) _tile_stored(3, to + below + beside, sizeof(float) * stride);
}

/// Lines that are fetched at a time: as many as a core waits for.
#define FETCH_LINES 16

/// Called between eight rows of work and the next eight, so that memory is always busy.
LMK_INLINE void fetch_ahead(linear_tiles *m) {
    if (m->fetch == m->fetch_end) return;
    const fetch_column column = *m->fetch++;
    for (size_t i = 0; i < FETCH_LINES; i++)
        __builtin_prefetch(column.data + column.stride * i, 0, 2);
}

// MARK: Two parts of a number

#define HIGH_HALF 0xffff0000u

/// x with its upper half rounded to nearest, which is what the next step takes of it.
LMK_INLINE f32x16 rounded_half(f32x16 x) { return floats_of(bits_of(x) + 0x8000u); }

/// What that leaves of x, the same way.
LMK_INLINE f32x16 low_part(f32x16 x) {
    return rounded_half(x - floats_of(bits_of(rounded_half(x)) & HIGH_HALF));
}

/// Upper halves of the lanes of two vectors: those of `first` before those of `second`, or in
/// pairs.
LMK_INLINE void store_halves(uint16_t *to, f32x16 first, f32x16 second) {
    typedef uint16_t u16x32 __attribute__((ext_vector_type(32)));
    const u16x32 x = (u16x32)first, y = (u16x32)second;
    *(u16x32 *)(void *)to =
        __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                                35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
}
LMK_INLINE void store_pairs(uint16_t *to, f32x16 first, f32x16 second) {
    store((float *)(void *)to, floats_of(bits_of(first) >> 16 | (bits_of(second) & HIGH_HALF)));
}

/// NaN in a lane of `found` as soon as x has been infinite or NaN there.
LMK_INLINE f32x16 find_special(f32x16 found, f32x16 x) { return x * splat(0) + found; }
LMK_INLINE int has_special(f32x16 found) { return any_of(found != found); }

// MARK: What does not need the state

/// Running products of the decays of 64 tokens, forwards with each token's own and backwards
/// without: four runs side by side, and then one after the other.
static void multiply_decays(const float *decay, float *before, float *after) {
    enum { RUNS = TILE_TOKENS / CHUNK_TOKENS };
    float run[RUNS] = {1, 1, 1, 1}, back[RUNS] = {1, 1, 1, 1};
    for (size_t i = 0; i < CHUNK_TOKENS; i++) {
        LMK_UNROLL
        for (size_t r = 0; r < RUNS; r++) {
            const size_t at = CHUNK_TOKENS * r + i, end = CHUNK_TOKENS * r + CHUNK_TOKENS - 1 - i;
            before[at] = run[r] *= decay[at];
            after[end] = back[r];
            back[r] *= decay[end];
        }
    }
    float product = run[0], rest = back[RUNS - 1];
    for (size_t r = 1; r < RUNS; r++) {
        const size_t at = CHUNK_TOKENS * r, end = TILE_TOKENS - CHUNK_TOKENS - at;
        store(before + at, load(before + at) * product);
        product *= run[r];
        store(after + end, load(after + end) * rest);
        rest *= back[RUNS - 1 - r];
    }
}

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
        row_factors(&head->q, begin + i, some, head, head->scale, m->queries + i);
        if (head->decay != LMK_DECAY_NONE) load_token_decays(head, begin + i, some, m->decay + i);
        else store(m->decay + i, splat(1));
    }
    multiply_decays(m->decay, m->read, m->write);
    for (size_t i = 0; i < TILE_TOKENS; i += LMK_LANES)
        store(m->write + i, load(m->write + i) * load(m->keys + i));
}

/// 32 elements of a row from `at` on, those past its width zero.
LMK_INLINE __m512i load_row_halves(const token_rows *x, size_t token, size_t at) {
    const uint16_t *const from = (const uint16_t *)x->data + x->stride * token + at;
    const size_t left = x->width - at;
    return left >= 32 ? _mm512_loadu_si512(from)
                      : _mm512_maskz_loadu_epi16((__mmask32)((1u << left) - 1u), from);
}

/// The largest exponent so far; halves without their signs, so that infinity is the first of those
/// that are not finite.
LMK_INLINE __m512i largest_halves(__m512i largest, __m512i x) {
    return _mm512_max_epu16(largest, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
}
LMK_INLINE int is_finite(__m512i largest) {
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)) == 0;
}

/// Queries as left factors, [row of tiles][step of tiles].
static __m512i load_left_rows(const token_rows *x, size_t begin, size_t count, size_t steps,
                              uint16_t *to) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < TILE_TOKENS; i++) {
        uint16_t *tile = to + FACTORS * steps * (i / 16) + 32 * (i % 16);
        for (size_t s = 0; s < steps; s++, tile += FACTORS) {
            const __m512i row =
                i < count ? load_row_halves(x, begin + i, TILE_STEPS * s) : _mm512_setzero_si512();
            largest = largest_halves(largest, row);
            _mm512_store_si512(tile, row);
        }
    }
    return largest;
}

/// Keys as right factors of the queries, [step of tiles][column of tiles]: tokens in columns.
static __m512i load_right_columns(const token_rows *x, size_t begin, size_t count, size_t steps,
                                  uint16_t *to) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < TILE_TOKENS; i += TRANSPOSE_LANES) {
        uint16_t *tile = to + FACTORS * (i / 16) + 2 * (i % 16);
        for (size_t s = 0; s < steps; s++, tile += FACTORS * TILE_TOKENS / 16) {
            f32x16 rows[TRANSPOSE_LANES];
            LMK_UNROLL
            for (size_t j = 0; j < TRANSPOSE_LANES; j++) {
                const __m512i row = i + j < count
                                        ? load_row_halves(x, begin + i + j, TILE_STEPS * s)
                                        : _mm512_setzero_si512();
                largest = largest_halves(largest, row);
                rows[j] = (f32x16)row;
            }
            transpose_lanes(rows, TRANSPOSE_LANES, (float *)(void *)tile, LMK_LANES);
        }
    }
    return largest;
}

/// Keys as left factors of the values, [row of tiles][step of tiles]: dimensions in rows, tokens
/// along the depth, multiplied with `write` and in two parts if it is not null.
static f32x16 turn_keys(linear_tiles *m, size_t steps, const float *write) {
    f32x16 found = splat(0);
    for (size_t s = 0; s < steps; s++) {
        for (size_t half = 0; half < TILE_TOKENS / TILE_STEPS; half++) {
            const uint16_t *const from =
                m->keys_right + FACTORS * (TILE_TOKENS / 16 * s + 2 * half);
            f32x16 first_factor = splat(1), second_factor = splat(1);
            if (write) first_factor = load(write + TILE_STEPS * half);
            if (write) second_factor = load(write + TILE_STEPS * half + LMK_LANES);
            for (size_t p = 0; p < 16; p++) {
                if (p % 8 == 0) fetch_ahead(m);
                const u32x16 first = bits_of(load((const float *)(const void *)(from + 32 * p))),
                             second = bits_of(
                                 load((const float *)(const void *)(from + FACTORS + 32 * p)));
                const size_t row = FACTORS * (2 * (2 * s + p / 8) + half) + 32 * (2 * p % 16);
                f32x16 even0 = floats_of(first << 16), even1 = floats_of(second << 16),
                       odd0 = floats_of(first & HIGH_HALF), odd1 = floats_of(second & HIGH_HALF);
                if (write) {
                    even0 *= first_factor;
                    even1 *= second_factor;
                    odd0 *= first_factor;
                    odd1 *= second_factor;
                    const f32x16 low0 = low_part(even0), low1 = low_part(even1),
                                 low2 = low_part(odd0), low3 = low_part(odd1);
                    store_halves(m->keys_low + row, low0, low1);
                    store_halves(m->keys_low + row + 32, low2, low3);
                    found = find_special(find_special(found, low0), low1);
                    found = find_special(find_special(found, low2), low3);
                }
                // Keys as they are end in zeros: rounding leaves them alone.
                store_halves(m->keys_high + row, rounded_half(even0), rounded_half(even1));
                store_halves(m->keys_high + row + 32, rounded_half(odd0), rounded_half(odd1));
            }
        }
    }
    return found;
}

/// Products of 16 queries, those of row `block` of tiles, with the keys up to them become P in two
/// parts, [row of tiles][step of tiles].
LMK_INLINE f32x16 decay_tile_pairs(linear_tiles *m, size_t block, const float *products,
                                   f32x16 between[TILE_TOKENS / 16]) {
    f32x16 found = splat(0);
    for (int i = 0; i < 16; i++, products += TILE_TOKENS) {
        if (i % 8 == 0) fetch_ahead(m);
        const float decay = m->decay[16 * block + (size_t)i];
        f32x16 pairs[TILE_TOKENS / 16];
        LMK_UNROLL
        for (size_t j = 0; j < block; j++) {
            // One that is denormal would stay so, and each product with it takes long.
            const f32x16 decayed = between[j] * decay;
            between[j] = decayed < 0x1p-126f ? splat(0) : decayed;
            pairs[j] = load(products + 16 * j) * between[j];
        }
        between[block] =
            choose(is_lane(i), splat(m->keys[16 * block + (size_t)i]), between[block] * decay);
        pairs[block] =
            choose(is_before(i + 1), load(products + 16 * block) * between[block], splat(0));
        if (block % 2 == 0) pairs[block + 1] = splat(0);
        LMK_UNROLL
        for (size_t half = 0; half <= block / 2; half++) {
            const size_t at = FACTORS * (2 * block + half) + 32 * (size_t)i;
            const f32x16 low0 = low_part(pairs[2 * half]), low1 = low_part(pairs[2 * half + 1]);
            store_halves(m->pairs_high + at, rounded_half(pairs[2 * half]),
                         rounded_half(pairs[2 * half + 1]));
            store_halves(m->pairs_low + at, low0, low1);
            found = find_special(find_special(found, low0), low1);
        }
    }
    return found;
}

static f32x16 multiply_tile_pairs(linear_tiles *m, size_t count, size_t steps) {
    f32x16 found = splat(0), between[TILE_TOKENS / 16] = {0};
    for (size_t i = 0; i < count; i += 32) {
        for (size_t j = 0; j <= i; j += 32) {
            zero_sums();
            add_tile_products((factor_tiles){m->queries_left + FACTORS * steps * (i / 16), FACTORS,
                                             FACTORS * steps},
                              (factor_tiles){m->keys_right + FACTORS * (j / 16),
                                             FACTORS * TILE_TOKENS / 16, FACTORS},
                              steps, 1, 1);
            store_sums(m->sums + j, 16 * TILE_TOKENS, 16, TILE_TOKENS, 1, 1);
        }
        const float *const second = m->sums + 16 * TILE_TOKENS;
        if (i == 0) {
            found += decay_tile_pairs(m, 0, m->sums, between);
            found += decay_tile_pairs(m, 1, second, between);
        } else {
            found += decay_tile_pairs(m, 2, m->sums, between);
            found += decay_tile_pairs(m, 3, second, between);
        }
    }
    return found;
}

// MARK: Columns of values

/// Values as right factors, [step of tiles][column of tiles]: columns from a multiple of 32 on.
static __m512i load_right_rows(const token_rows *x, size_t begin, size_t count, uint16_t *to) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < TILE_TOKENS; i += 2) {
        const __m512i zero = _mm512_setzero_si512(),
                      first = i < count ? load_row_halves(x, begin + i, 0) : zero,
                      second = i + 1 < count ? load_row_halves(x, begin + i + 1, 0) : zero;
        largest = largest_halves(largest_halves(largest, first), second);
        typedef uint16_t u16x32 __attribute__((ext_vector_type(32)));
        const u16x32 a = (u16x32)first, b = (u16x32)second;
        uint16_t *const tile = to + FACTORS * 2 * (i / 32) + 32 * (i % 32 / 2);
        *(u16x32 *)(void *)tile =
            __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8,
                                    40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
        *(u16x32 *)(void *)(tile + FACTORS) = __builtin_shufflevector(
            a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57,
            26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
    }
    return largest;
}

/// A panel of the state as right factors in two parts, [step of tiles][column of tiles], and once
/// more multiplied with the decay of the whole chunk.
static f32x16 split_state(linear_tiles *m, const float *state, size_t rows, size_t steps,
                          float decay, uint16_t *high, uint16_t *low, float *decayed) {
    f32x16 found = splat(0);
    for (size_t s = 0; s < steps; s++, high += 2 * FACTORS, low += 2 * FACTORS) {
        for (size_t p = 0; p < 16; p++) {
            if (p % 8 == 0) fetch_ahead(m);
            const size_t d = TILE_STEPS * s + 2 * p;
            f32x16 first = splat(0), second = splat(0);
            if (d < rows) {
                first = load(state + LMK_LANES * d);
                second = load(state + LMK_LANES * (d + 1));
                store(decayed + LMK_LANES * d, first * decay);
                store(decayed + LMK_LANES * (d + 1), second * decay);
            }
            const f32x16 first_low = low_part(first), second_low = low_part(second);
            store_pairs(high + 32 * p, rounded_half(first), rounded_half(second));
            store_pairs(low + 32 * p, first_low, second_low);
            found = find_special(find_special(found, first_low), second_low);
        }
    }
    return found;
}

/// Sums of 32 tokens and 32 columns: what the tokens read in the state, and behind it in the tokens
/// of the chunk up to themselves.
#define OUTPUT_STRIDE 32
#define OUTPUT_SUMS (32 * OUTPUT_STRIDE + 16)

LMK_INLINE void multiply_outputs(const linear_tiles *m, size_t i, size_t steps, int wide) {
    const size_t row = i / 16;
    float *const carried = m->sums + 2 * OUTPUT_SUMS * (i / 32), *const met = carried + OUTPUT_SUMS;
    const factor_tiles q = {m->queries_left + FACTORS * steps * row, FACTORS, FACTORS * steps};
    zero_sums();
    add_tile_products(q, (factor_tiles){m->state_high, 2 * FACTORS, FACTORS}, steps, 1, wide);
    add_tile_products(q, (factor_tiles){m->state_low, 2 * FACTORS, FACTORS}, steps, 1, wide);
    store_sums(carried, 16 * OUTPUT_STRIDE, 16, OUTPUT_STRIDE, 1, wide);
    zero_sums();
    add_tile_parts((factor_tiles){m->pairs_high + 2 * FACTORS * row, FACTORS, 2 * FACTORS},
                   (factor_tiles){m->pairs_low + 2 * FACTORS * row, FACTORS, 2 * FACTORS},
                   (factor_tiles){m->values_right, 2 * FACTORS, FACTORS}, i / 32 + 1, 1, wide);
    store_sums(met, 16 * OUTPUT_STRIDE, 16, OUTPUT_STRIDE, 1, wide);
}

LMK_INLINE void store_outputs(linear_tiles *m, const token_rows_out *o, size_t begin, size_t i,
                              size_t count, int wide) {
    const float *const carried = m->sums + 2 * OUTPUT_SUMS * (i / 32), *const met =
                                                                           carried + OUTPUT_SUMS;
    const uint32_t columns = (uint32_t)((1ull << o->width) - 1);
    const __mmask16 first = (__mmask16)columns, second = (__mmask16)(columns >> 16);
    for (size_t r = 0; r < lmk_min(count - i, 32); r++) {
        if (r % 8 == 0) fetch_ahead(m);
        uint16_t *const to = (uint16_t *)o->data + o->stride * (begin + i + r);
        for (size_t p = 0; p < (wide ? 2 : 1); p++) {
            const size_t at = OUTPUT_STRIDE * r + LMK_LANES * p;
            const f32x16 sum = load(carried + at) * m->read[i + r] + load(met + at);
            const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)(sum * m->queries[i + r]));
            _mm256_mask_storeu_epi16(to + LMK_LANES * p, p == 0 ? first : second, rounded);
        }
    }
}

/// The state of these columns after the chunk.
LMK_INLINE void write_tile_state(const linear_tiles *m, size_t panels, size_t count, int has_factor,
                                 float *state, size_t state_panel, int wide) {
    const factor_tiles v = {m->values_right, 2 * FACTORS, FACTORS};
    const size_t halves = lmk_divide_up(count, TILE_STEPS), next = 2 * FACTORS;
    for (size_t d = 0; d < panels; d += 2) {
        const float *const from = m->state + SUMS * d;
        const factor_tiles high = {m->keys_high + next * d, FACTORS, next},
                           low = {has_factor ? m->keys_low + next * d : 0, FACTORS, next};
        _tile_loadd(0, from, 64);
        if (wide) _tile_loadd(1, from + SUMS * panels, 64);
        if (d + 1 < panels) {
            _tile_loadd(2, from + SUMS, 64);
            if (wide) _tile_loadd(3, from + SUMS * (panels + 1), 64);
            add_tile_parts(high, low, v, halves, 1, wide);
            store_sums(state + SUMS * d, SUMS, state_panel, LMK_LANES, 1, wide);
        } else {
            add_tile_parts(high, low, v, halves, 0, wide);
            store_sums(state + SUMS * d, SUMS, state_panel, LMK_LANES, 0, wide);
        }
    }
}

// MARK: Chunks

/// 16 or 32 columns of o, and of the state.
LMK_INLINE void advance_columns(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                                size_t begin, size_t count, size_t steps, float *state, int wide) {
    const int reads = head->o.data != 0,
              has_factor = head->decay != LMK_DECAY_NONE || head->has_unit_length;
    for (size_t i = 0; reads && i < count; i += 32) multiply_outputs(m, i, steps, wide);
    write_tile_state(m, c->panels, count, has_factor, state, PANEL * c->panels, wide);
    for (size_t i = 0; reads && i < count; i += 32)
        store_outputs(m, &head->o, begin, i, count, wide);
}

/// The first of these rows that holds a number that is not finite, or `count`.
static size_t first_special_row(const token_rows *x, size_t begin, size_t count) {
    for (size_t i = 0; i < count; i++) {
        __m512i largest = _mm512_setzero_si512();
        for (size_t at = 0; at < x->width; at += 32)
            largest = largest_halves(largest, load_row_halves(x, begin + i, at));
        if (!is_finite(largest)) return i;
    }
    return count;
}

/// Whether row i of P is not finite.
static int is_special_pair_row(const linear_tiles *m, size_t i) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t half = 0; half <= i / TILE_STEPS; half++) {
        const uint16_t *const row = m->pairs_low + FACTORS * (2 * (i / 16) + half) + 32 * (i % 16);
        largest = largest_halves(largest, _mm512_load_si512(row));
    }
    return !is_finite(largest);
}

/// Tokens of a chunk before the first one that tiles cannot take, all columns of values alike; 0 if
/// it is not found.
static size_t tokens_before_special(const linear_head *head, const linear_tiles *m, size_t begin,
                                    size_t count) {
    const int reads = head->o.data != 0;
    size_t tokens = first_special_row(&head->k, begin, count);
    if (reads) tokens = first_special_row(&head->q, begin, tokens);
    for (size_t i = 0; i < tokens; i++) {
        const float sum = m->decay[i] * 0 + m->keys[i] * 0 + m->queries[i] * 0;
        if (sum != sum || (reads && is_special_pair_row(m, i))) return i;
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

/// 32 columns of a head, or those that are left.
LMK_INLINE linear_head columns_of_head(const linear_head *head, size_t column) {
    linear_head part = *head;
    part.v = some_columns(head->v, column);
    if (head->o.data) part.o = some_columns_out(head->o, column);
    return part;
}

static void advance_tiles_chunk(const linear_head *head, const linear_chunk *c, linear_tiles *m,
                                size_t begin, size_t count, float *state) {
    const int reads = head->o.data != 0,
              has_factor = head->decay != LMK_DECAY_NONE || head->has_unit_length;
    const size_t steps = lmk_divide_up(head->k.width, TILE_STEPS);
    prepare_token_factors(head, m, begin, count);
    __m512i largest = load_right_columns(&head->k, begin, count, steps, m->keys_right);
    f32x16 found = turn_keys(m, steps, has_factor ? m->write : 0);
    if (reads) {
        largest = _mm512_max_epu16(largest,
                                   load_left_rows(&head->q, begin, count, steps, m->queries_left));
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
            special += split_state(m, part + state_panel * p, LMK_LANES * c->panels, steps,
                                   m->read[TILE_TOKENS - 1], m->state_high + FACTORS * p,
                                   m->state_low + FACTORS * p, m->state + state_panel * p);
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

/// Eight tiles of 16 rows of 64 bytes.
static void open_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        configuration.row_bytes[i] = 64;
        configuration.rows[i] = 16;
    }
    _tile_loadconfig(&configuration);
}

static void close_tiles(void) { _tile_release(); }
