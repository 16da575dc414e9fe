// Forward by chunks of 64 tokens on tiles of bfloat16, where the CPU has them.
#include "forward_unit.h"

/// Tokens from which they are faster than passes; CONTRIBUTING.md has the figures.
#define TILED_TOKENS 16

int lmk_forward_fits_tiles(const lmk_linear_attention *a) {
#if defined(__x86_64__)
    return a->dtype == LMK_BFLOAT16 && a->decay != LMK_DECAY_KEY && !a->bonus &&
           !a->is_normalized && !a->is_bidirectional && a->form != LMK_LINEAR_ATTENTION_RECURRENT;
#else
    (void)a;
    return 0;
#endif
}

const linear_tile_kernels *lmk_forward_tile_kernels(const lmk_linear_attention *a) {
#if defined(__x86_64__)
    if (lmk_forward_fits_tiles(a) && lmk_cpu_isa() == LMK_ISA_AMX) return &linear_tile_kernels_amx;
#else
    (void)a;
#endif
    return 0;
}

int lmk_forward_is_tiled(const forward_call *call, size_t tokens) {
    return call->tiles &&
           (call->attention->form == LMK_LINEAR_ATTENTION_CHUNKED || tokens >= TILED_TOKENS);
}

size_t lmk_forward_lay_out_tiles(const lmk_linear_attention *a, float *memory, linear_tiles *to) {
    *to = (linear_tiles){0};
    if (!lmk_forward_fits_tiles(a)) return 0;
    // In floats: two factors each.
    const size_t keys = lmk_round_up(a->key_dim, 32), rows = TILE_TOKENS * keys / 2,
                 pairs = TILE_TOKENS * TILE_TOKENS / 2, columns = SLICE_COLUMNS;
    float *factors[9];
    const matrix_part parts[] = {
        {&to->decay, TILE_TOKENS},
        {&to->keys, TILE_TOKENS},
        {&to->queries, TILE_TOKENS},
        {&to->read, TILE_TOKENS},
        {&to->write, TILE_TOKENS},
        {&to->state, columns * keys},
        {&to->sums, TILE_SUMS},
        {&factors[0], rows},
        {&factors[1], rows},
        {&factors[2], rows},
        {&factors[3], rows},
        {&factors[4], pairs},
        {&factors[5], pairs},
        {&factors[6], TILE_TOKENS * columns / 2},
        {&factors[7], keys * columns / 2},
        {&factors[8], keys * columns / 2},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    uint16_t **const places[] = {&to->queries_left, &to->keys_right, &to->keys_high,
                                 &to->keys_low,     &to->pairs_high, &to->pairs_low,
                                 &to->values_right, &to->state_high, &to->state_low};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        *places[i] = (uint16_t *)(void *)factors[i];
    return spaced(floats);
}

void lmk_forward_advance(const forward_call *call, const linear_head *head,
                         const linear_chunk *chunk, const worker_memory *memory, size_t begin,
                         size_t end, float *state) {
    if (call->tiles) {
        linear_tiles tiles = memory->tiles;
        if (chunk->fetch)
            tiles.fetch = (fetch_run){chunk->fetch, chunk->fetch + chunk->fetch_count};
        call->tiles->advance(head, chunk, &tiles, begin, end, state);
    } else {
        call->kernels->advance(head, chunk, begin, end, state);
    }
}
