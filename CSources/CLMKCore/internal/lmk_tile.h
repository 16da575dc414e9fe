// The tile matrix product that public products and fused kernels are made of.
//
//     c[rows, columns] (+)= a[rows, depth] b[depth, columns]
//
// Operands are packed into panels of a few lanes, [depth][lanes], and a register tile multiplies
// one panel of a with one of b. Sums run over blocks of LMK_DEPTH_BLOCK steps: each block is one
// chain of fused multiply-adds from zero, blocks are added in order. Cutting rows or columns
// anywhere, or the depth at multiples of a block, changes no bit. In the tile registers of
// kernels/tile_amx.h sums go on from block to block instead.
#ifndef LMK_TILE_H
#define LMK_TILE_H

#include "lmk_core.h"

/// Steps of depth in one chain: 512 float32, or 512 pairs of bfloat16 for the dot product. Every
/// block reads and writes c once, so that 256 steps were slower; CONTRIBUTING.md has the runs.
#define LMK_DEPTH_BLOCK 512

/// Columns of one job's block of c: with 512 steps they are 256 KB packed, a quarter of L2.
#define LMK_COLUMN_BLOCK 256

/// Most lanes of a panel, over all instruction sets.
#define LMK_PANEL_MAX 32

/// One panel of an operand: lane i of step k is 4 (k stride + i lane_stride) bytes from `data`.
/// Lanes of b are contiguous.
typedef struct lmk_panel {
    const void *data;
    size_t stride, lane_stride;
} lmk_panel;

/// One register tile: c (+)= a b over `depth` steps.
typedef struct lmk_tile {
    lmk_panel a, b;
    size_t depth;
    float *c;
    size_t c_stride;
    /// Of the 16 or 32 columns of b, those that are stored.
    size_t columns;
    int accumulate;
    /// Fetched into L2 meanwhile, `next_stride` bytes a step. Any address will do.
    const char *next;
    size_t next_stride;
} lmk_tile;

/// By pointer: a structure that is passed by value is copied in pieces wider than those it was just
/// written in, which waits for all stores to c.
typedef void (*lmk_tile_function)(const lmk_tile *tile);

/// The same for `rows` rows of c: panels of a, at most LMK_PACK_GROUP, are `a_panel_bytes` apart.
typedef void (*lmk_strip_function)(const lmk_tile *tile, size_t rows, size_t a_panel_bytes);

/// Where the elements of one operand are. A lane is a row of a or a column of b.
typedef struct lmk_operand {
    const void *data;
    lmk_dtype dtype;
    /// Nonzero: the elements of a lane are contiguous along the depth and `stride` leads from lane
    /// to lane. Zero: lanes are contiguous and `stride` leads from depth to depth.
    int depth_contiguous;
    size_t stride;
    size_t lanes, depth;
    /// Not null: the i-th of what `stride` leads along is found at index[i].
    const uint32_t *index;
} lmk_operand;

/// Panels that are packed together: where lanes are contiguous, one pass over the depth then reads
/// whole cache lines.
#define LMK_PACK_GROUP 8

/// Packs `panels` <= LMK_PACK_GROUP panels one after the other: panel i is [steps][width], lanes
/// lanes[i]..<lanes[i] + width and steps step..<step + steps. Lanes and elements beyond the operand
/// are zero.
typedef void (*lmk_pack_function)(void *to, size_t width, const lmk_operand *operand,
                                  const size_t *lanes, size_t panels, size_t step, size_t steps);

#define LMK_TILE_ROWS_MAX 14

/// How one instruction set multiplies one storage type.
typedef struct lmk_tile_kernels {
    /// Rows of the largest tile, and the number that panels of rows begin at multiples of.
    size_t rows, row_unit;
    /// Lanes of a packed panel of a, and four-byte steps from one to the next.
    size_t row_panel, row_stride;
    /// Columns of the widest tile.
    size_t columns;
    /// Elements in one step of a chain: 1, or 2 where pairs of bfloat16 are added; every step is
    /// four bytes. Packed panels are made up to a multiple of `step_unit` steps with zeros.
    size_t elements_per_step, step_unit;
    /// Panels of b, and of a: the same function where row_stride is 1. Else panels of a are
    /// [steps / row_stride][row_panel][row_stride].
    lmk_pack_function pack, pack_rows;
    /// Called by a thread before tiles and after them, if not null.
    void (*begin)(void), (*end)(void);
    /// Not null: `tile` is empty, and products are made by this.
    lmk_strip_function strip;
    /// tile[rows - 1][v][s]: 16 (v = 0) or 32 columns; lanes of a contiguous (s = 0) or strided.
    lmk_tile_function tile[LMK_TILE_ROWS_MAX][2][2];
} lmk_tile_kernels;

/// The kernels of the instruction set in use for this storage type.
const lmk_tile_kernels *lmk_tile_kernels_for(lmk_dtype dtype);

/// Memory that will be read soon, `bytes` from each address on: fetched into L2 while tiles
/// multiply. With 0 bytes the addresses mean nothing.
typedef struct lmk_ahead {
    const char *first, *second;
    size_t bytes;
} lmk_ahead;

/// Sees a finished block of c, rows x columns from (row, column) on, while it is in cache; may
/// change it.
typedef void (*lmk_tile_epilogue)(void *context, float *c, size_t c_stride, size_t row, size_t rows,
                                  size_t column, size_t columns);

/// A product for fused kernels. The panels of one operand are packed once and shared by every job;
/// a job packs the other operand itself, LMK_DEPTH_BLOCK steps at a time.
typedef struct lmk_tile_product {
    const lmk_tile_kernels *kernels;
    /// a.lanes rows, b.lanes columns; both have the same depth and dtype.
    lmk_operand a, b;
    /// Null: c lives in the worker's memory, LMK_COLUMN_BLOCK columns at a time, and only the
    /// epilogue sees it.
    float *c;
    size_t c_stride;
    int accumulate;
    /// Called for whole column blocks: columns from a multiple of LMK_COLUMN_BLOCK on, in ascending
    /// order within a chunk of `chunk` columns (a multiple of LMK_COLUMN_BLOCK), which one worker
    /// handles for the same rows.
    lmk_tile_epilogue epilogue;
    void *context;
    size_t chunk;
    /// Nonzero: a is the shared operand, else b. The epilogue and a null c need a shared a that is
    /// packed whole.
    int share_a;
    unsigned threads;
    /// What will be read after this product, if it is small: the next one of a batch.
    lmk_ahead ahead;
    /// Shared panels, `shared_size` bytes, and `local_size` bytes for each worker, all aligned to
    /// 64 bytes.
    void *shared;
    size_t shared_size;
    char *local;
    size_t local_size;
} lmk_tile_product;

/// Bytes that packed panels of `lanes` lanes and `depth` elements take at most, over all
/// instruction sets.
size_t lmk_tile_shared_size(size_t lanes, size_t depth);

/// Bytes each worker needs; `scratch_rows` rows of c when c is null, else 0.
size_t lmk_tile_local_size(size_t scratch_rows);

void lmk_tile_run(const lmk_tile_product *product);

#endif
