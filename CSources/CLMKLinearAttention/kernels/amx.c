#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AMX
#include "lmk_begin.h"
#include "lmk_tile_chunk.h"
#include "tiles.h"

const linear_tile_kernels linear_tile_kernels_amx = {
    .begin = begin_tiles, .end = end_tiles, .advance = advance_tiles};

#include "lmk_end.h"

#endif
