// How a call cuts the problem into blocks under its memory budget.
#ifndef LMK_CROSS_ENTROPY_PLAN_H
#define LMK_CROSS_ENTROPY_PLAN_H

#include "kernels/tables.h"

/// Which parts of the work a call does.
typedef enum cross_entropy_phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_BOTH } cross_entropy_phase;

typedef struct cross_entropy_plan {
    lmk_cross_entropy_mode mode;
    unsigned threads;
    /// Rows of a block; classes of its panel, and their stride.
    size_t block_rows, panel_vocabulary, panel_stride;
    /// Byte offsets in the workspace, and its size.
    size_t active, row_arrays, statistics, shared, local, panel, hidden_gradient, total;
    size_t shared_size, local_size;
} cross_entropy_plan;

/// Arrays of one number for each row of a block; see `block_memory` in cross_entropy.c.
#define ROW_ARRAYS 17
/// Arrays of one number for each row and chunk.
#define STATISTICS_ARRAYS 5

/// Chooses blocks and mode. Returns 0, with the least budget that would do in `plan->total`, when
/// the budget is too small.
int lmk_cross_entropy_plan(const lmk_cross_entropy *problem,
                           const lmk_cross_entropy_gradients *gradients, cross_entropy_phase phase,
                           cross_entropy_plan *plan);

#endif
