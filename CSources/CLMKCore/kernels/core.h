// Everything the core compiles once per instruction set, and its table. The including file has
// opened the region.
#include "lmk_half.h"
#include "lmk_transpose.h"
#include "tile.h"
#if !defined(LMK_TARGET_AVX512_BF16)
#include "lmk_math.h"
#include "elementwise.h"
#endif
#include "probe.h"

#if defined(LMK_TARGET_AVX512_BF16)
#define MAP 0
#define CONVERT 0
#define PROBE_READ 0
#define PROBE_COPY 0
#else
#define MAP map
#define CONVERT convert
#define PROBE_READ probe_read
#define PROBE_COPY probe_copy
#endif

#define CORE_KERNELS                                                                               \
    {                                                                                              \
        .tile = {.rows = TILE_ROWS,                                                                \
                 .row_panel = ROW_PANEL,                                                           \
                 .columns = TILE_COLUMNS,                                                          \
                 .elements_per_step = ELEMENTS_PER_STEP,                                           \
                 .pack = pack_panels,                                                              \
                 .tile = {FOR_EACH_TILE_HEIGHT(TILE_ENTRY)}},                                      \
        .map = MAP, .convert = CONVERT, .probe_arithmetic = probe_arithmetic,                      \
        .probe_read = PROBE_READ, .probe_copy = PROBE_COPY,                                        \
    }
