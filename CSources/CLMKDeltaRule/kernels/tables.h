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

/// Two steps, or one, that a pass over the state writes.
typedef struct step_group {
    /// The first one, and how many; their tokens.
    size_t step, count, token[GROUP_STEPS];
    /// Rows of key_dim: what reads the state before the group, for u and for o, and what is
    /// written. A query is null where there is none, the others are zeros.
    const float *read[GROUP_STEPS], *query[GROUP_STEPS], *write[GROUP_STEPS], *second[GROUP_STEPS];
    /// v, in its tensor.
    const void *value[GROUP_STEPS];
    /// The state is multiplied by `fold`, or row by row, as it is written.
    enum { FOLD_NONE, FOLD_NUMBER, FOLD_ROWS } folding;
    float fold;
    const float *fold_rows;
    /// State after the first step = first_fold (or first_rows) state + first_write u: for a state
    /// that is kept there.
    const float *first_rows, *first_write, *first_second;
    float first_fold;
    /// The state after the group is this times what is stored, or each row its own.
    float scale_after;
    const float *rows_after;
    /// Factors of what is read for u and for o, of u when it is written, and beta.
    float read_scale[GROUP_STEPS], query_scale[GROUP_STEPS], write_scale[GROUP_STEPS],
        rate[GROUP_STEPS];
    /// <r_1, w_0>, <q_i, w_j>: what a step reads of those in its group; and of `second`.
    float met, query_met[GROUP_STEPS][GROUP_STEPS];
    float met_second, query_met_second[GROUP_STEPS][GROUP_STEPS];
} step_group;

/// BLOCK_STEPS steps, prepared.
typedef struct step_block {
    /// Rows one after the other, [16][16 panels]: what is widened or brought to unit length, and
    /// with decays per key what reads, writes and folds.
    float *k, *q, *a, *b, *read, *query, *write, *second, *fold, *first;
    /// A row of zeros.
    const float *zeros;
    /// Of its steps; the decay where dimensions share it, and what brings k and q, of tokens, to
    /// unit length.
    float rate[BLOCK_STEPS], decay[BLOCK_STEPS + 1], k_factors[BLOCK_STEPS], q_factors[BLOCK_STEPS];
    step_group groups[BLOCK_STEPS / GROUP_STEPS];
    size_t begin, count;
} step_block;

/// A worker's memory, beside states.
typedef struct delta_memory {
    step_block blocks[2];
} delta_memory;

/// Floats of what is carried of a slice, [2][GROUP_STEPS][SLICE_COLUMNS].
#define CARRY_FLOATS ((size_t)(2 * GROUP_STEPS * SLICE_COLUMNS))

/// Where a state is read and written: slices `slice_step` floats apart, rows `stride`.
typedef struct state_place {
    const float *from;
    float *to;
    size_t stride, slice_step;
} state_place;

/// Where the gradients of a head go; what has no data is not computed. Those of k, v, a and b are
/// added to what is there where `adds`.
typedef struct delta_gradients {
    token_rows output;
    token_rows_out q, k, v, a, b;
    int adds;
    float *beta, *log_decay;
    size_t beta_stride, log_decay_stride;
} delta_gradients;

/// Who reads and whose writes: queries or steps, of u or in the generalised form of v.
typedef enum delta_pair { QUERIES_OF_U, STEPS_OF_U, QUERIES_OF_V, STEPS_OF_V } delta_pair;
#define DELTA_PAIRS 4

/// What backward has of a chunk of steps. In panels with steps in rows; those of queries are zero
/// where a step does not end its token.
typedef struct delta_chunk {
    /// Readers and writers as queries and keys, and their gradients: with shared matrices where
    /// they are the same.
    linear_chunk pairs[DELTA_PAIRS];
    linear_gradient_chunk gradients[DELTA_PAIRS];
    /// `panels` is that of values.
    size_t panels;
    float *q, *k, *a, *b, *v, *e, *u, *outputs, *du, *dz, *dv, *ddecay, *rates;
    /// dS with keys in rows.
    float *dstate;
    /// e of all steps, [steps, value_dim].
    const float *errors;
    /// What is read next: it is brought into L1 meanwhile.
    near_rows near;
} delta_chunk;

/// What chunks of bfloat16 on tiles have in memory: what linear attention's have, with u for v, and
/// its other parts; k as it meets k; the rates; what steps read of those before them, of other
/// blocks of 16 and of their own; what 64 steps read of the state and a block of the blocks before
/// it, by 32 columns.
typedef struct delta_tiles {
    linear_tiles products;
    uint16_t *values_low, *values_last, *keys_left, *met_high, *met_low, *met_last;
    float *rates, *own_pairs, *reads, *met;
} delta_tiles;

/// Products of bfloat16 on tiles. What they hold is lost between `end` and `begin`.
typedef struct delta_tile_kernels {
    void (*begin)(void);
    void (*end)(void);
    /// As `advance_chunk` of delta_rule_kernels, for at most 64 steps of k, q and v of bfloat16 and
    /// decays that dimensions share, not in the generalised form.
    void (*advance_chunk)(const delta_head *head, const delta_chunk *chunk, delta_tiles *tiles,
                          size_t begin, size_t count, float *state);
} delta_tile_kernels;

typedef struct delta_rule_kernels {
    /// Between a state or a part of its columns, [key_dim, width of v] at `stride`, and slices of
    /// SLICE_COLUMNS, [slice][key_dim][SLICE_COLUMNS]. A null `from` is zero.
    void (*import_state)(const linear_head *head, const float *from, size_t stride, float *state);
    void (*export_state)(const linear_head *head, const float *state, const float *scale, float *to,
                         size_t stride);
    /// Takes steps begin ..< end of a sequence of `steps` into the state, `begin` being a multiple
    /// of BLOCK_STEPS; writes o where there is one, and e = v - z of each step where there are
    /// `errors` [steps, width]. The state is `scale` times what is stored, and what is stored after
    /// the last step of the sequence. `carries`, CARRY_FLOATS for each slice, takes what the next
    /// call needs of the state. Each pass fetches a column while there are some.
    void (*advance)(const delta_head *head, delta_memory *memory, size_t begin, size_t end,
                    size_t steps, const state_place *place, float *carries, float *scale,
                    const kept_states *kept, float *errors, const fetch_column *fetch,
                    size_t fetches);
    /// One step on a state where it lies, [key_dim, width of v] at `stride`; the width is a
    /// multiple of 16. `from` and `to` may be the same.
    void (*step)(const delta_head *head, delta_memory *memory, const float *from, float *to,
                 size_t stride);
    /// The same between a state and panels, and a chunk of steps on those.
    void (*import_panels)(const float *from, size_t stride, size_t rows, size_t columns,
                          float *state);
    void (*export_panels)(const float *state, size_t stride, size_t rows, size_t columns,
                          float *to);
    void (*advance_chunk)(const delta_head *head, const delta_chunk *chunk, size_t begin,
                          size_t count, float *state);
    /// From slices, times `scale`, to transposed panels.
    void (*transpose)(const delta_head *head, const float *state, const float *scale, float *to);
    /// Transposed states: the one after steps begin ..< begin + count, at most 16, from the one
    /// before them.
    void (*sweep)(const delta_head *head, const delta_chunk *chunk, size_t begin, size_t count,
                  const float *from, float *to);
    /// The gradients of a chunk, from the state before it and the gradient of the one after it,
    /// which becomes that of the one before it.
    void (*retreat)(const delta_head *head, const delta_gradients *gradients,
                    const delta_chunk *chunk, size_t begin, size_t count, const float *state,
                    float *dstate);
} delta_rule_kernels;

extern const delta_rule_kernels delta_rule_kernels_generic;
#if defined(__x86_64__)
extern const delta_rule_kernels delta_rule_kernels_avx2;
extern const delta_rule_kernels delta_rule_kernels_avx512;
extern const delta_tile_kernels delta_tile_kernels_amx;
#elif defined(__aarch64__)
extern const delta_rule_kernels delta_rule_kernels_neon;
#endif

#endif
