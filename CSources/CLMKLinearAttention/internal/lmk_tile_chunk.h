// What chunks on tiles are made of, of linear attention and of the delta rule. Included inside the
// region of amx.

// Neither uses all of it.
#pragma clang diagnostic ignored "-Wunused-function"

#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "lmk_token_rows.h"
#include "lmk_state_products.h"
#include "lmk_token_decay.h"
#include "lmk_tile_registers.h"
#include "lmk_tile_factors.h"

/// Whether keys are multiplied with something before they are written.
LMK_INLINE int has_key_factors(const linear_head *head) {
    return head->decay != LMK_DECAY_NONE || head->has_unit_length;
}

/// From the decays of 64 tokens, and what their keys are multiplied with, what their reads of the
/// state are and their keys when they are written: running products, forwards with each token's own
/// and backwards without. Four runs side by side, and then one after the other.
static void multiply_decays(linear_tiles *m) {
    enum { RUNS = TILE_TOKENS / CHUNK_TOKENS };
    float run[RUNS] = {1, 1, 1, 1}, back[RUNS] = {1, 1, 1, 1};
    for (size_t i = 0; i < CHUNK_TOKENS; i++) {
        LMK_UNROLL
        for (size_t r = 0; r < RUNS; r++) {
            const size_t at = CHUNK_TOKENS * r + i, end = CHUNK_TOKENS * r + CHUNK_TOKENS - 1 - i;
            m->read[at] = run[r] *= m->decay[at];
            m->write[end] = back[r];
            back[r] *= m->decay[end];
        }
    }
    float product = 1, rest = 1;
    for (size_t r = 0; r < RUNS; r++) {
        const size_t at = CHUNK_TOKENS * r, end = TILE_TOKENS - CHUNK_TOKENS - at;
        store(m->read + at, load(m->read + at) * product);
        product *= run[r];
        store(m->write + end, load(m->write + end) * rest * load(m->keys + end));
        rest *= back[RUNS - 1 - r];
    }
}

/// Products of 32 rows from `i` on with the keys up to them, [32][64].
LMK_INLINE void multiply_rows(const linear_tiles *m, const uint16_t *left, size_t i, size_t steps,
                              float *sums) {
    const factor_tiles rows = {left + FACTORS * steps * (i / 16), FACTORS, FACTORS * steps};
    for (size_t j = 0; j <= i; j += 32) {
        zero_sums();
        add_tile_products(
            rows,
            (factor_tiles){m->keys_right + FACTORS * (j / 16), FACTORS * TILE_TOKENS / 16, FACTORS},
            steps, 1, 1);
        store_sums(sums + j, 16 * TILE_TOKENS, 16, TILE_TOKENS, 1, 1);
    }
}

/// The decays between tokens up to token `i` of a block of 16 and that token, times what keys are
/// multiplied with, from those for the token before it. Returns those of the block's own tokens
/// without token i itself.
LMK_INLINE f32x16 decay_between(const linear_tiles *m, size_t block, int i, f32x16 *between) {
    const float decay = m->decay[16 * block + (size_t)i];
    LMK_UNROLL
    for (size_t j = 0; j < block; j++) {
        // One that is denormal would stay so, and each product with it takes long.
        const f32x16 decayed = between[j] * decay;
        between[j] = decayed < 0x1p-126f ? splat(0) : decayed;
    }
    const f32x16 own = between[block] * decay;
    between[block] = choose(is_lane(i), splat(m->keys[16 * block + (size_t)i]), own);
    return own;
}

/// Row `i` of a block of P in two parts, [row of tiles][step of tiles], from its products.
LMK_INLINE f32x16 store_pair_row(const linear_tiles *m, size_t block, int i, const float *products,
                                 const f32x16 *between, f32x16 found) {
    f32x16 pairs[TILE_TOKENS / 16];
    LMK_UNROLL
    for (size_t j = 0; j < block; j++) pairs[j] = load(products + 16 * j) * between[j];
    pairs[block] = choose(is_before(i + 1), load(products + 16 * block) * between[block], splat(0));
    if (block % 2 == 0) pairs[block + 1] = splat(0);
    LMK_UNROLL
    for (size_t half = 0; half <= block / 2; half++) {
        const size_t at = FACTORS * (2 * block + half) + 32 * (size_t)i;
        found = store_half_parts(m->pairs_high + at, m->pairs_low + at, pairs[2 * half],
                                 pairs[2 * half + 1], found);
    }
    return found;
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

/// The outputs of the tokens that end in a chunk: what they read, with their decays and what their
/// queries are multiplied with.
LMK_INLINE void store_outputs(linear_tiles *m, const token_rows_out *o, size_t steps_of_token,
                              size_t begin, size_t count, int wide) {
    const uint32_t columns = (uint32_t)((1ull << o->width) - 1);
    const __mmask16 masks[2] = {(__mmask16)columns, (__mmask16)(columns >> 16)};
    for (size_t i = 0; i < count; i++) {
        if (i % 8 == 0) fetch_ahead(&m->fetch);
        if (!is_last_step(begin + i, steps_of_token)) continue;
        uint16_t *const to =
            (uint16_t *)o->data + o->stride * token_of_step(begin + i, steps_of_token);
        const float *const carried =
                               m->sums + 2 * OUTPUT_SUMS * (i / 32) + OUTPUT_STRIDE * (i % 32),
                           *const met = carried + OUTPUT_SUMS;
        LMK_UNROLL
        for (size_t p = 0; p < (wide ? 2 : 1); p++) {
            const size_t at = LMK_LANES * p;
            const f32x16 sum = load(carried + at) * m->read[i] + load(met + at);
            const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)(sum * m->queries[i]));
            _mm256_mask_storeu_epi16(to + at, masks[p], rounded);
        }
    }
}

/// 32 columns of a head, or those that are left.
LMK_INLINE linear_head columns_of_head(const linear_head *head, size_t column) {
    linear_head part = *head;
    part.v = some_columns(head->v, column);
    if (head->o.data) part.o = some_columns_out(head->o, column);
    return part;
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
