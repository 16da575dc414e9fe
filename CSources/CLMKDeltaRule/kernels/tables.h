// What the entry points and the kernels of the delta rule share: steps in memory, and the table of
// each instruction set. Chunks, rows and panels are those of linear attention.
#ifndef LMK_DELTA_RULE_TABLES_H
#define LMK_DELTA_RULE_TABLES_H

#include "lmk_delta_rule.h"
#include "lmk_linear_chunk.h"

/// Steps that are prepared together.
#define BLOCK_STEPS CHUNK_TOKENS
/// Steps that one pass over the state writes.
#define GROUP_STEPS 2
/// Most columns of the state that one pass takes.
#define SLICE_COLUMNS 32

/// One head of one sequence, with all columns of its values or some. The rows of k, v, a, b and
/// beta are steps, those of q, o and the decay tokens.
typedef struct delta_head {
    linear_head rows;
    size_t steps;
    const float *beta;
    size_t beta_stride;
    lmk_beta beta_kind;
    /// Where `a` has data: the generalised form.
    token_rows a, b;
} delta_head;

/// Two steps, or one, that a pass over the state writes: numbers alone, and rows in panels.
typedef struct step_group {
    /// Of the first one; of the group, and how many.
    size_t step, count;
    /// Rows in panels, [panel][16][16]: what reads the state before the group, for u and for o, and
    /// what is written. Null where there is none.
    const float *read[GROUP_STEPS], *query[GROUP_STEPS], *write[GROUP_STEPS], *second[GROUP_STEPS];
    /// The state is multiplied by `fold`, or row by row, as it is written.
    enum { FOLD_NONE, FOLD_NUMBER, FOLD_ROWS } folding;
    float fold;
    const float *fold_rows;
    /// State after the first step = first_fold (or first_rows) state + first_write u: for a state
    /// that is kept there.
    const float *first_rows, *first_write, *first_second;
    float first_fold;
    /// The state after the group is this times what is stored.
    float scale_after;
    /// Factors of what is read for u and for o, of u when it is written, and beta.
    float read_scale[GROUP_STEPS], query_scale[GROUP_STEPS], write_scale[GROUP_STEPS],
        rate[GROUP_STEPS];
    /// <r_1, w_0>, <q_i, w_j>: what a step reads of those in its group; and of `second`.
    float met, query_met[GROUP_STEPS][GROUP_STEPS];
    float met_second, query_met_second[GROUP_STEPS][GROUP_STEPS];
} step_group;

/// BLOCK_STEPS steps, prepared.
typedef struct step_block {
    /// In panels: k and q scaled; with decays what reads and writes; b or k where there are two.
    float *k, *q, *read, *write, *second, *decay, *fold, *a, *b;
    /// A row of zeros.
    const float *zeros;
    float rate[BLOCK_STEPS];
    step_group groups[BLOCK_STEPS];
    size_t count;
} step_block;

/// A worker's memory, beside states.
typedef struct delta_memory {
    step_block blocks[2];
    /// z and y of the next group, for each slice.
    float *carry;
} delta_memory;

/// Floats of what is carried of a slice, [2][GROUP_STEPS][SLICE_COLUMNS].
#define CARRY_FLOATS ((size_t)(2 * GROUP_STEPS * SLICE_COLUMNS))

/// Where a state is read and written: slices `slice_step` floats apart, rows `stride`.
typedef struct state_place {
    const float *from;
    float *to;
    size_t stride, slice_step;
} state_place;

/// Where states go on the way: after every `stride` tokens, `step` floats apart.
typedef struct kept_states {
    float *data;
    size_t stride, step, row_stride;
} kept_states;

typedef struct delta_rule_kernels {
    /// Between a state or a part of its columns, [key_dim, width of v] at `stride`, and slices of
    /// SLICE_COLUMNS, [slice][key_dim][SLICE_COLUMNS]. A null `from` is zero.
    void (*import_state)(const delta_head *head, const float *from, size_t stride, float *state);
    void (*export_state)(const delta_head *head, const float *state, float *to, size_t stride);
    /// Takes steps begin ..< end of the sequence into the state, `begin` being a multiple of
    /// BLOCK_STEPS; writes o where there is one, and e = v - z of each step where there are `errors`
    /// [steps, width]. The state is `scale` times what is stored, and what is stored after the last
    /// step of a sequence. Each pass fetches a column while there are some.
    void (*advance)(const delta_head *head, const delta_memory *memory, size_t begin, size_t end,
                    int is_last, const state_place *place, float *scale, const kept_states *kept,
                    float *errors, const fetch_column *fetch, size_t fetches);
} delta_rule_kernels;

extern const delta_rule_kernels delta_rule_kernels_generic;
#if defined(__x86_64__)
extern const delta_rule_kernels delta_rule_kernels_avx2;
extern const delta_rule_kernels delta_rule_kernels_avx512;
#elif defined(__aarch64__)
extern const delta_rule_kernels delta_rule_kernels_neon;
#endif

#endif
