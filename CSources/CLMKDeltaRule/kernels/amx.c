#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

// Of what is included here only some is used.
#pragma clang diagnostic ignored "-Wunused-function"

#define LMK_TARGET_AMX
#include "lmk_begin.h"
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "lmk_token_rows.h"
#include "lmk_state_products.h"
#include "lmk_token_decay.h"
#include "lmk_tile_registers.h"
#include "lmk_tile_factors.h"
#include "lmk_tile_chunk.h"
#include "steps.h"
#include "tiles.h"

const delta_tile_kernels delta_tile_kernels_amx = {
    .begin = begin_tiles, .end = end_tiles, .advance_chunk = advance_tiles_chunk};

#include "lmk_end.h"

#endif
