// What chunks on tiles have in common, of linear attention and of the delta rule. Included inside
// the region of amx, after lmk_tile_factors.h.

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

/// Sums of 32 tokens and 32 columns: what the tokens read in the state, and behind it in the tokens
/// of the chunk up to themselves.
#define OUTPUT_STRIDE 32
#define OUTPUT_SUMS (32 * OUTPUT_STRIDE + 16)

/// `values_low` is a second part of the values, or null.
LMK_INLINE void multiply_outputs(const linear_tiles *m, size_t i, size_t steps,
                                 const uint16_t *values_low, int wide) {
    const size_t row = i / 16;
    float *const carried = m->sums + 2 * OUTPUT_SUMS * (i / 32), *const met = carried + OUTPUT_SUMS;
    const factor_tiles q = {m->queries_left + FACTORS * steps * row, FACTORS, FACTORS * steps};
    zero_sums();
    add_tile_products(q, (factor_tiles){m->state_high, 2 * FACTORS, FACTORS}, steps, 1, wide);
    add_tile_products(q, (factor_tiles){m->state_low, 2 * FACTORS, FACTORS}, steps, 1, wide);
    store_sums(carried, 16 * OUTPUT_STRIDE, 16, OUTPUT_STRIDE, 1, wide);
    zero_sums();
    const factor_tiles high = {m->pairs_high + 2 * FACTORS * row, FACTORS, 2 * FACTORS},
                       low = {m->pairs_low + 2 * FACTORS * row, FACTORS, 2 * FACTORS};
    add_tile_parts(high, low, (factor_tiles){m->values_right, 2 * FACTORS, FACTORS},
                   (factor_tiles){values_low, 2 * FACTORS, FACTORS}, i / 32 + 1, 1, wide);
    store_sums(met, 16 * OUTPUT_STRIDE, 16, OUTPUT_STRIDE, 1, wide);
}

/// The state of these columns after the chunk.
LMK_INLINE void write_tile_state(const linear_tiles *m, size_t panels, size_t count, int has_factor,
                                 const uint16_t *values_low, float *state, size_t state_panel,
                                 int wide) {
    const factor_tiles v = {m->values_right, 2 * FACTORS, FACTORS},
                       v_low = {values_low, 2 * FACTORS, FACTORS};
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
            add_tile_parts(high, low, v, v_low, halves, 1, wide);
            store_sums(state + SUMS * d, SUMS, state_panel, LMK_LANES, 1, wide);
        } else {
            add_tile_parts(high, low, v, v_low, halves, 0, wide);
            store_sums(state + SUMS * d, SUMS, state_panel, LMK_LANES, 0, wide);
        }
    }
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
