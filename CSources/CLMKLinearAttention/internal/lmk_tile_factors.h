// Products on tiles of bfloat16, and what they are made of: rows of tokens and states as factors.
// Included inside the region of amx.
//
// What is not bfloat16 by itself is the sum of two of them: 16 bits of it, where float32 has 24.

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

/// The same for factors in two parts, or one where `low` has no data: without the product of both
/// low parts.
LMK_INLINE void add_tile_parts(factor_tiles a, factor_tiles a_low, factor_tiles b,
                               factor_tiles b_low, size_t steps, int tall, int wide) {
    add_tile_products(a, b, steps, tall, wide);
    if (a_low.data) add_tile_products(a_low, b, steps, tall, wide);
    if (b_low.data) add_tile_products(a, b_low, steps, tall, wide);
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
LMK_INLINE void fetch_ahead(fetch_run *run) {
    if (run->next == run->end) return;
    const fetch_column column = *run->next++;
    for (size_t i = 0; i < FETCH_LINES; i++)
        __builtin_prefetch(column.data + column.stride * i, 0, 2);
}

// MARK: Two parts of a number

#define HIGH_HALF 0xffff0000u

/// x with its upper half rounded to nearest, which is what the next step takes of it.
LMK_INLINE f32x16 rounded_half(f32x16 x) { return floats_of(bits_of(x) + 0x8000u); }

/// What that leaves of x: exact.
LMK_INLINE f32x16 left_of(f32x16 x) { return x - floats_of(bits_of(rounded_half(x)) & HIGH_HALF); }

/// The second part of x, and the third: 8 bits each.
LMK_INLINE f32x16 low_part(f32x16 x) { return rounded_half(left_of(x)); }
LMK_INLINE f32x16 last_part(f32x16 x) { return rounded_half(left_of(left_of(x))); }

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

/// Two parts of two vectors, one behind the other or in pairs; returns `found` with what is special
/// in them.
LMK_INLINE f32x16 store_half_parts(uint16_t *high, uint16_t *low, f32x16 first, f32x16 second,
                                   f32x16 found) {
    const f32x16 first_low = low_part(first), second_low = low_part(second);
    store_halves(high, rounded_half(first), rounded_half(second));
    store_halves(low, first_low, second_low);
    return find_special(find_special(found, first_low), second_low);
}
LMK_INLINE f32x16 store_pair_parts(uint16_t *high, uint16_t *low, f32x16 first, f32x16 second,
                                   f32x16 found) {
    const f32x16 first_low = low_part(first), second_low = low_part(second);
    store_pairs(high, rounded_half(first), rounded_half(second));
    store_pairs(low, first_low, second_low);
    return find_special(find_special(found, first_low), second_low);
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

/// Rows as left factors, [row of tiles][step of tiles]: those of the tokens that end at a step of
/// the chunk, of which each token has `steps_of_token`, and zeros for other steps.
LMK_INLINE __m512i load_left_rows(const token_rows *x, size_t steps_of_token, size_t begin,
                                  size_t count, size_t steps, uint16_t *to) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < TILE_TOKENS; i++) {
        uint16_t *tile = to + FACTORS * steps * (i / 16) + 32 * (i % 16);
        const int is_there = i < count && is_last_step(begin + i, steps_of_token);
        const size_t token = token_of_step(begin + i, steps_of_token);
        for (size_t s = 0; s < steps; s++, tile += FACTORS) {
            const __m512i row =
                is_there ? load_row_halves(x, token, TILE_STEPS * s) : _mm512_setzero_si512();
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
static f32x16 turn_keys(const uint16_t *keys_right, size_t steps, const float *write,
                        uint16_t *keys_high, uint16_t *keys_low, fetch_run *fetch) {
    f32x16 found = splat(0);
    for (size_t s = 0; s < steps; s++) {
        for (size_t half = 0; half < TILE_TOKENS / TILE_STEPS; half++) {
            const uint16_t *const from = keys_right + FACTORS * (TILE_TOKENS / 16 * s + 2 * half);
            f32x16 first_factor = splat(1), second_factor = splat(1);
            if (write) first_factor = load(write + TILE_STEPS * half);
            if (write) second_factor = load(write + TILE_STEPS * half + LMK_LANES);
            for (size_t p = 0; p < 16; p++) {
                if (p % 8 == 0) fetch_ahead(fetch);
                const u32x16 first = bits_of(load((const float *)(const void *)(from + 32 * p))),
                             second = bits_of(
                                 load((const float *)(const void *)(from + FACTORS + 32 * p)));
                const size_t row = FACTORS * (2 * (2 * s + p / 8) + half) + 32 * (2 * p % 16);
                f32x16 even0 = floats_of(first << 16), even1 = floats_of(second << 16),
                       odd0 = floats_of(first & HIGH_HALF), odd1 = floats_of(second & HIGH_HALF);
                uint16_t *const high = keys_high + row, *const low = keys_low + row;
                if (!write) {
                    // They end in zeros: their upper halves are all there is.
                    store_halves(high, even0, even1);
                    store_halves(high + 32, odd0, odd1);
                    continue;
                }
                even0 *= first_factor;
                even1 *= second_factor;
                odd0 *= first_factor;
                odd1 *= second_factor;
                found = store_half_parts(high, low, even0, even1, found);
                found = store_half_parts(high + 32, low + 32, odd0, odd1, found);
            }
        }
    }
    return found;
}

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
static f32x16 split_state(const float *state, size_t rows, size_t steps, float decay,
                          uint16_t *high, uint16_t *low, float *decayed, fetch_run *fetch) {
    f32x16 found = splat(0);
    for (size_t s = 0; s < steps; s++, high += 2 * FACTORS, low += 2 * FACTORS) {
        for (size_t p = 0; p < 16; p++) {
            if (p % 8 == 0) fetch_ahead(fetch);
            const size_t d = TILE_STEPS * s + 2 * p;
            f32x16 first = splat(0), second = splat(0);
            if (d < rows) {
                first = load(state + LMK_LANES * d);
                second = load(state + LMK_LANES * (d + 1));
                store(decayed + LMK_LANES * d, first * decay);
                store(decayed + LMK_LANES * (d + 1), second * decay);
            }
            found = store_pair_parts(high + 32 * p, low + 32 * p, first, second, found);
        }
    }
    return found;
}
