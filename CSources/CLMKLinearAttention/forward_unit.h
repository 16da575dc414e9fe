// What the ways through a forward call share: its pieces of work, and a worker's memory.
#ifndef LMK_LINEAR_ATTENTION_FORWARD_UNIT_H
#define LMK_LINEAR_ATTENTION_FORWARD_UNIT_H

#include "kernels/tables.h"
#include "lmk_token_fetch.h"
#include "lmk_linear_plan.h"

typedef struct forward_call {
    const lmk_linear_attention *attention;
    const lmk_linear_attention_results *results;
    const linear_attention_kernels *kernels;
    /// Null: chunks of 16 tokens, without tiles.
    const linear_tile_kernels *tiles;
    linear_plan plan;
    /// Memory of each worker: a chunk, the states of a unit's heads with their normalisers, and one
    /// more.
    float *workers;
    size_t worker_floats, state_floats;
    /// What each segment does to the state of each head, [segments, heads]: decay [key_dim],
    /// normaliser [key_dim], state [key_dim, value_dim]. Then the state at its end.
    float *pieces;
    size_t piece_floats;
} forward_call;

/// Columns column ..< column + columns of the values of some heads of a segment.
typedef struct forward_unit {
    linear_segment segment;
    size_t head, heads, column, columns;
} forward_unit;

/// A worker's memory while it works on a head of its unit: the normaliser lies behind the state.
typedef struct worker_memory {
    linear_chunk chunk;
    linear_tiles tiles;
    fetch_column *fetch;
    /// Of the unit's heads, of this one, and one more.
    float *states, *state, *other_state;
} worker_memory;

/// Where a unit's state and normaliser begin; null: at 0.
typedef struct state_start {
    const float *state, *normalizer;
} state_start;

/// Floats apart, so that workers do not share a line.
static inline size_t spaced(size_t floats) { return lmk_round_up(floats, 32); }

static inline size_t normalizer_floats(const lmk_linear_attention *a) {
    return CHUNK_TOKENS * panels_of(a->key_dim);
}

/// Head `i` of a unit alone.
static inline forward_unit head_of_unit(const forward_unit *u, size_t i) {
    forward_unit one = *u;
    one.head += i;
    one.heads = 1;
    return one;
}

static inline size_t state_index(const forward_call *call, const forward_unit *u) {
    return call->attention->heads * u->segment.sequence + u->head;
}

static inline float *piece_of(const forward_call *call, size_t segment, size_t head) {
    return call->pieces + call->piece_floats * (call->attention->heads * segment + head);
}

/// The parts of a piece.
static inline float *piece_normalizer(const forward_call *call, float *piece) {
    return piece + call->attention->key_dim;
}
static inline float *piece_state(const forward_call *call, float *piece) {
    return piece + 2 * call->attention->key_dim;
}

static inline void copy(float *to, const float *from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = from[i];
}

/// The piece of work of a slot.
forward_unit lmk_forward_unit(const forward_call *call, size_t slot);
/// The first head of a unit; o is there where it `reads`.
linear_head lmk_forward_head(const forward_call *call, const forward_unit *u, int reads);

/// A worker's memory, on its unit's first head, and the same on head `i`.
worker_memory lmk_forward_memory(const forward_call *call, unsigned worker);
worker_memory lmk_forward_memory_of_head(const forward_call *call, worker_memory memory, size_t i);
/// Floats of it, and of a piece.
size_t lmk_forward_worker_floats(const lmk_linear_attention *a, const linear_plan *plan);
size_t lmk_forward_piece_floats(const lmk_linear_attention *a);

/// Where a sequence begins, and where a unit does.
state_start lmk_forward_initial(const forward_call *call, const forward_unit *u);
state_start lmk_forward_start(const forward_call *call, const forward_unit *u);
/// Brings a start into the worker's memory.
void lmk_forward_import(const forward_call *call, const forward_unit *u, state_start start,
                        const worker_memory *memory);
/// Writes a unit's columns of state `index` of [.., key_dim, value_dim], and its normaliser.
void lmk_forward_export(const forward_call *call, const forward_unit *u, const float *state,
                        const float *normalizer, size_t index, float *states, float *normalizers);
/// The index of a unit's first state in results->states, which is that after `stride` tokens.
size_t lmk_forward_first_state(const forward_call *call, const forward_unit *u);
/// The rows that a unit needs in the block that begins at token `begin`.
fetch_list lmk_forward_fetches(const forward_call *call, const forward_unit *unit, size_t begin);

// Several tokens in each pass over a state: forward_passes.c.

/// Whether a sequence is computed so: not where a normaliser is to be kept, nor where its segments
/// are computed side by side or tiles are faster.
int lmk_forward_is_passed(const forward_call *call, size_t tokens);
/// Floats of a worker's memory.
size_t lmk_forward_pass_floats(const lmk_linear_attention *a, const linear_plan *plan);
/// The heads of a unit in turn, block by block.
void lmk_forward_passes(const forward_call *call, const forward_unit *unit, unsigned worker);

// Chunks on tiles: forward_tiles.c.

/// The kernels, where what is asked for can be computed so and this CPU can do it.
const linear_tile_kernels *lmk_forward_tile_kernels(const lmk_linear_attention *a);
/// Whether a sequence of this length is computed so.
int lmk_forward_is_tiled(const forward_call *call, size_t tokens);
/// Lays out what they have in memory; without memory only counts. Returns the floats that it takes.
size_t lmk_forward_lay_out_tiles(const lmk_linear_attention *a, float *memory, linear_tiles *to);
/// Takes tokens begin ..< end into the state by chunks, on tiles or not; begin is a multiple of
/// lmk_forward_chunk.
void lmk_forward_advance(const forward_call *call, const linear_head *head,
                         const linear_chunk *chunk, const worker_memory *memory, size_t begin,
                         size_t end, float *state);
static inline size_t lmk_forward_chunk(const forward_call *call) {
    return call->tiles ? TILE_TOKENS : CHUNK_TOKENS;
}

// Segments of long sequences: forward_segments.c.

/// What each segment does to the state, and then the state at the end of each.
void lmk_forward_segments(forward_call *call, size_t slots);

// The whole call: forward.c.

/// Everything that a checked call computes.
void lmk_forward_run(forward_call *call, void *workspace);
/// Refuses a workspace that is too small or not there.
lmk_status lmk_forward_check_workspace(const lmk_linear_attention *a, const void *workspace,
                                       size_t size, lmk_error *error);

#endif
