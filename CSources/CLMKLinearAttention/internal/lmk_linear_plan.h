// How a call of linear attention is cut into pieces of work, and its workspace.
#ifndef LMK_LINEAR_PLAN_H
#define LMK_LINEAR_PLAN_H

#include "lmk_linear_problem.h"

/// Most tokens that one head takes before the next one does.
#define BLOCK_TOKENS ((size_t)64)

/// Value columns that one thread takes at least.
#define VALUE_SLICE ((size_t)32)

/// Multiply-adds below which a call stays on its thread.
#define SERIAL_WORK ((size_t)1 << 17)

/// Whether that is so with this many writes to the state of each head.
static inline int is_serial(const lmk_linear_attention *a, size_t writes) {
    const size_t rows = a->batch * writes;
    // Far from overflow: the states of all heads fit in memory.
    return rows < SERIAL_WORK && rows * a->heads * a->key_dim * a->value_dim < SERIAL_WORK;
}

/// Whether chunks on tiles can hold such numbers and decays, where a CPU has tiles.
static inline int fits_tiles(lmk_dtype dtype, lmk_decay decay) {
#if defined(__x86_64__)
    return dtype == LMK_BFLOAT16 && decay != LMK_DECAY_KEY;
#else
    (void)dtype;
    (void)decay;
    return 0;
#endif
}

/// A piece of the workspace.
typedef struct matrix_part {
    float **matrix;
    size_t floats;
} matrix_part;

/// Hands out memory to the parts, from a multiple of 64 bytes on, none of them a multiple of 4 KB
/// from another; without memory only counts. Returns the floats that they take.
size_t lmk_linear_lay_out(const matrix_part *parts, size_t count, float *memory);

/// Lays out a chunk's matrices for forward; without memory only counts. Returns the floats that
/// they take.
size_t lmk_linear_chunk_layout(const lmk_linear_attention *a, float *memory, linear_chunk *chunk);
/// The same for a chunk on tiles.
size_t lmk_linear_lay_out_tiles(size_t key_dim, float *memory, linear_tiles *to);
/// Floats of what is fetched during a block.
size_t lmk_linear_fetch_floats(const lmk_linear_attention *a);

/// Most sequences that are cut into segments: with more, whole ones keep every thread busy.
#define CUT_SEQUENCES 7

/// Sequences, segments of them and groups of value columns. Segments are a matter of shape, because
/// sums over them are combined; groups are not, because columns do not meet.
typedef struct linear_plan {
    unsigned threads;
    /// Pieces of a sequence that run side by side: their states are found first.
    int cuts;
    size_t segment_tokens;
    /// Segments before those of each sequence, where it cuts.
    size_t first_segment[CUT_SEQUENCES + 1];
    /// Of all sequences together; one for each where it does not cut.
    size_t segments;
    /// Heads that one worker takes side by side, block by block.
    size_t unit_heads;
    /// Tokens of a block.
    size_t block_tokens;
    /// Groups of value columns, each of `group_columns` or what is left.
    size_t groups, group_columns;
} linear_plan;

linear_plan lmk_linear_plan(const lmk_linear_attention *a);

/// Cuts sequences, all of which make `pieces` pieces of work while they are whole, where those are
/// too few to keep many cores busy.
void lmk_linear_cut(const lmk_linear_attention *a, size_t pieces, linear_plan *plan);

/// Chunks whose states are kept at once while they are gone through backwards, unless the memory
/// budget asks for another number.
#define BLOCK_CHUNKS 8

/// Bytes of a block's states for the heads that a worker takes side by side: they stay in L2.
#define UNIT_BYTES ((size_t)768 << 10)

/// Chunks of a block where states of `bytes` are kept twice, at the starts of blocks and of the
/// chunks inside one; a budget of 0 is none.
size_t lmk_linear_block_chunks(size_t chunks, size_t bytes, size_t budget);

/// Between states and normalisers, [key_dim, value_dim] and [key_dim], and transposed panels.
void lmk_linear_import_transposed(const lmk_linear_attention *a, const float *state,
                                  const float *normalizer, float *to);
void lmk_linear_export_transposed(const lmk_linear_attention *a, const float *from, float *state,
                                  float *normalizer);

/// Panels of a transposed state's rows, its floats, and the padded width of its columns.
static inline size_t row_panels(const lmk_linear_attention *a) {
    return panels_of(a->value_dim + (a->is_normalized ? 1 : 0));
}

static inline size_t transposed_floats(const lmk_linear_attention *a) {
    return PANEL * row_panels(a) * panels_of(a->key_dim);
}

static inline size_t padded_keys(const lmk_linear_attention *a) {
    return CHUNK_TOKENS * panels_of(a->key_dim);
}

/// One piece of work: tokens begin ..< end of a sequence.
typedef struct linear_segment {
    size_t sequence, index, begin, end;
    int is_first, is_last;
} linear_segment;

linear_segment lmk_linear_segment(const lmk_linear_attention *a, const linear_plan *plan,
                                  size_t index);

/// Whether a sequence of this length is computed in chunks.
int lmk_linear_is_chunked(const lmk_linear_attention *a, size_t tokens);

#endif
