// Everything the core compiles once per instruction set, and its table. The including file has
// opened the region.
#include "lmk_half.h"
#include "lmk_transpose.h"
#if defined(LMK_TARGET_AMX)
#include "tile_amx.h"
#define PACK_ROWS pack_rows
#define PACKED_ROW_STRIDE ROW_FLOATS
#define BEGIN_TILES begin_tiles
#define END_TILES end_tiles
#define STRIP multiply_strip
#define TILES                                                                                      \
    {                                                                                              \
        {                                                                                          \
            { 0 }                                                                                  \
        }                                                                                          \
    }
#else
#include "tile.h"
#define PACK_ROWS pack_panels
#define PACKED_ROW_STRIDE 1
#define BEGIN_TILES 0
#define END_TILES 0
#define STRIP 0
#endif
// Sets that add pairs of bfloat16 are others but for that.
#if ELEMENTS_PER_STEP == 1
#include "lmk_math.h"
#include "elementwise.h"
#define MAP map
#define CONVERT convert
#define PROBE_READ probe_read
#define PROBE_COPY probe_copy
#else
#define MAP 0
#define CONVERT 0
#define PROBE_READ 0
#define PROBE_COPY 0
#endif
#include "probe.h"

#define CORE_KERNELS                                                                               \
    {                                                                                              \
        .tile = {.rows = TILE_ROWS,                                                                \
                 .row_unit = ROW_UNIT,                                                             \
                 .row_panel = ROW_PANEL,                                                           \
                 .row_stride = PACKED_ROW_STRIDE,                                                  \
                 .columns = TILE_COLUMNS,                                                          \
                 .elements_per_step = ELEMENTS_PER_STEP,                                           \
                 .step_unit = STEP_UNIT,                                                           \
                 .pack = pack_panels,                                                              \
                 .pack_rows = PACK_ROWS,                                                           \
                 .begin = BEGIN_TILES,                                                             \
                 .end = END_TILES,                                                                 \
                 .strip = STRIP,                                                                   \
                 .tile = TILES},                                                                   \
        .map = MAP, .convert = CONVERT, .probe_arithmetic = probe_arithmetic,                      \
        .probe_read = PROBE_READ, .probe_copy = PROBE_COPY,                                        \
    }
