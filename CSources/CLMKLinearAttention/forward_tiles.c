// Forward by chunks of 64 tokens on tiles of bfloat16, where the CPU has them.
#include "forward_unit.h"

/// Tokens from which they are faster than passes; CONTRIBUTING.md has the figures.
#define TILED_TOKENS 32

/// Whether what is asked for can be computed so.
static int can_be_tiled(const lmk_linear_attention *a) {
    return fits_tiles(a->dtype, a->decay) && !a->bonus && !a->is_normalized &&
           !a->is_bidirectional && a->form != LMK_LINEAR_ATTENTION_RECURRENT;
}

const linear_tile_kernels *lmk_forward_tile_kernels(const lmk_linear_attention *a) {
#if defined(__x86_64__)
    if (can_be_tiled(a) && lmk_cpu_isa() == LMK_ISA_AMX) return &linear_tile_kernels_amx;
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
    return can_be_tiled(a) ? spaced(lmk_linear_lay_out_tiles(a->key_dim, memory, to)) : 0;
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
