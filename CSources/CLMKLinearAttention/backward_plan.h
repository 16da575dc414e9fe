// How a backward call is cut into pieces of work, and its workspace.
#ifndef LMK_LINEAR_ATTENTION_BACKWARD_PLAN_H
#define LMK_LINEAR_ATTENTION_BACKWARD_PLAN_H

#include "kernels/tables.h"
#include "lmk_linear_plan.h"

typedef struct backward_call {
    const lmk_linear_attention *attention;
    const lmk_linear_attention_gradients *gradients;
    const linear_attention_kernels *kernels;
    /// Segments of sequences, and threads.
    linear_plan plan;
    unsigned threads;
    /// Chunks of a block, and most blocks of a segment.
    size_t block_chunks, blocks;
    /// Query heads of a key head, which go together because their gradients are added, and key
    /// heads that one worker takes side by side, chunk by chunk, because their rows lie together.
    size_t group, unit_keys;
    float *workers;
    size_t worker_floats;
    /// Gradients that sequences share, for each segment: of the heads' decays [segments, heads] and
    /// of the bonus [segments, heads, 16 key panels].
    float *decays, *bonuses;
    /// What each segment does to the state of each head and to its gradient, [segments, heads]:
    /// decay [16 key panels], and both transposed. Then the state at its end and the gradient at
    /// its start.
    float *pieces;
    size_t piece_floats;
} backward_call;

/// What one worker has.
typedef struct backward_memory {
    linear_chunk chunk;
    linear_gradient_chunk gradient;
    /// Of each head of a unit: states at the blocks' starts, dS, and states at the starts of a
    /// block's chunks.
    float *checkpoints, *dstates, *states;
    /// Sums over the heads of each group, for the tokens of a block.
    float *dk, *dv;
} backward_memory;

/// Everything that the shape, the options and the number of threads decide.
backward_call lmk_linear_backward_plan(const lmk_linear_attention *a);

/// Lays out a worker's memory; without any only counts. Returns the floats that it takes.
size_t lmk_linear_backward_layout(const backward_call *call, float *memory,
                                  backward_memory *result);

/// Floats of what workers share.
size_t lmk_linear_decays_floats(const backward_call *call);
size_t lmk_linear_bonuses_floats(const backward_call *call);
size_t lmk_linear_pieces_floats(const backward_call *call);

#endif
