#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AMX
#include "lmk_begin.h"
#include "lmk_tile_chunk.h"
#include "steps.h"
#include "tiles.h"

const delta_tile_kernels delta_tile_kernels_amx = {
    .begin = begin_tiles, .end = end_tiles, .advance_chunk = advance_tiles_chunk};

#include "lmk_end.h"

#endif
