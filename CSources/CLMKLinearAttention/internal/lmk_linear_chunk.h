// Chunks and states in memory, as linear attention and the delta rule have them.
//
// Tokens are worked on in chunks of 16. The rows of a chunk lie in panels of 16 dimensions,
// [panel][token][16], so that any tile of a product addresses them from one pointer. A state lies
// in panels of its columns, [panel][row][16], its rows and columns padded by zeros to multiples of
// 16.
#ifndef LMK_LINEAR_CHUNK_H
#define LMK_LINEAR_CHUNK_H

#include "lmk_check.h"
#include "lmk_linear_attention.h"

#define CHUNK_TOKENS 16
#define PANEL 256

/// Rows of one head: `data` is element 0 of the first token's.
typedef struct token_rows {
    const void *data;
    /// Elements from token to token.
    size_t stride;
    lmk_dtype dtype;
    /// Elements of a row.
    size_t width;
} token_rows;

/// The same to be written.
typedef struct token_rows_out {
    void *data;
    size_t stride;
    lmk_dtype dtype;
    size_t width;
} token_rows_out;

/// One head of one sequence, with all columns of its values or some.
typedef struct linear_head {
    token_rows q, k, v;
    token_rows_out o;
    lmk_decay decay;
    /// Of the first token, and the distance to the next one's: 0 for a head's own decay.
    const float *log_decay;
    size_t log_decay_stride;
    /// [key_dim], or null.
    const float *bonus;
    float scale, epsilon;
    int has_unit_length, is_normalized;
} linear_head;

/// Most columns of the state that one pass takes.
#define SLICE_COLUMNS 32

/// Where states go on the way: after every `stride` tokens, `step` floats apart.
typedef struct kept_states {
    float *data;
    size_t stride, step, row_stride;
} kept_states;

/// 16 addresses that are fetched into L2: one line of each token's row.
typedef struct fetch_column {
    const char *data;
    /// Bytes from row to row.
    size_t stride;
} fetch_column;

/// Columns that are fetched one after the other.
typedef struct fetch_run {
    const fetch_column *next, *end;
} fetch_run;

/// Rows of 16 tokens from `token` on.
typedef struct near_rows {
    token_rows rows[5];
    size_t count, token;
} near_rows;

static inline void add_near_rows(near_rows *near, token_rows rows) {
    if (rows.data) near->rows[near->count++] = rows;
}

/// One chunk as matrices. `panels` is key_dim / 16, rounded up.
typedef struct linear_chunk {
    size_t panels;
    /// scale q and k, tokens that are not there being zero.
    float *q, *k;
    /// k with tokens in lanes, [panel][16][token].
    float *k_transposed;
    /// q with the decay from the chunk's start on, k with the decay to its end; may lie where q and
    /// k do.
    float *read, *write;
    /// exp(log_decay) in panels, for a decay per key; its first 16 entries one for each token
    /// otherwise.
    float *decay;
    /// Those factors: one for each token, or for a decay per key in panels. Null in forward.
    float *before, *after;
    /// Decay of each row of the state over the whole chunk, [16 panels].
    float *total;
    /// P, [16][16]: what lies above the diagonal is not to be used.
    float *pairs;
    /// v and o, in panels.
    float *values, *outputs;
    /// What is fetched while the chunks of a block are computed, one entry for each panel of each
    /// tile, which are `fetches` for each chunk at most; null: nothing. As many for one chunk
    /// alone, which do no harm, or in backward fetch the rows of its gradients.
    fetch_column *fetch, *chunk_fetch;
    /// Those of `fetch` that do something.
    size_t fetch_count;
    /// What is read next: it is brought into L1 meanwhile.
    near_rows near;
    size_t fetches;
    /// z, [16 panels], and q . z with the bonus, [16].
    float *normalizer, *divisors;
} linear_chunk;

/// What a chunk of a head reads.
static inline near_rows head_rows(const linear_head *head, size_t token, int reads) {
    near_rows near = {.token = token};
    add_near_rows(&near, head->k);
    if (reads) add_near_rows(&near, head->q);
    if (head->decay == LMK_DECAY_KEY) {
        add_near_rows(&near, (token_rows){head->log_decay, head->log_decay_stride, LMK_FLOAT32,
                                          head->k.width});
    }
    add_near_rows(&near, head->v);
    return near;
}

/// Where the gradients of a head go; what has no data is not computed. Those of k and v are added
/// to what is there where `adds`.
typedef struct linear_head_gradients {
    token_rows output;
    token_rows_out q, k, v;
    int adds;
    /// Of the first token, as log_decay; for a head's own decay one number that sums are added to.
    float *log_decay;
    size_t log_decay_stride;
    /// [16 panels]: sums are added.
    float *bonus;
} linear_head_gradients;

/// What backward has beside a chunk's matrices. States lie transposed: their rows are values, with
/// one more of ones for a normaliser, their columns are keys. `panels` is that of their rows.
typedef struct linear_gradient_chunk {
    size_t panels;
    /// v and do with tokens in rows; v with tokens in lanes; v and do with the decays `after` and
    /// `before` where dimensions share them. In panels, like those that follow.
    float *values, *outputs, *values_transposed, *values_after, *outputs_before;
    float *dq, *dk, *dv;
    /// Of P, [16][16]; the same with the decays of P, and times P.
    float *dpairs, *weights, *products;
    /// [16][16]: sums of q dq and k dk, lane by lane, over what goes through the state.
    float *read_dots, *write_dots;
    /// Sums of the state times its gradient, [16 key panels].
    float *carried;
    /// For a decay per key, in panels: dg.
    float *ddecay;
    /// dS with keys in rows.
    float *dstate;
} linear_gradient_chunk;

/// The token of a step, where each token has `steps`. Mostly there is one, and a division takes as
/// long as a dozen multiply-adds.
static inline size_t token_of_step(size_t step, size_t steps) {
    return steps == 1 ? step : step / steps;
}

/// Whether a step begins its token, or ends it.
static inline int is_first_step(size_t step, size_t steps) {
    return steps == 1 || step % steps == 0;
}
static inline int is_last_step(size_t step, size_t steps) {
    return steps == 1 || (step + 1) % steps == 0;
}

/// Tokens of a chunk on tiles.
#define TILE_TOKENS ((size_t)64)
#define TILE_SUMS (TILE_TOKENS * TILE_TOKENS + 64)

/// What chunks of bfloat16 on tiles have in memory: factors of products in tiles of 1 KB.
typedef struct linear_tiles {
    /// Of 64 tokens: decays; what their keys and queries are multiplied with; the decays from the
    /// chunk's start on, and those to its end times the factor of the key.
    float *decay, *keys, *queries, *read, *write;
    /// q, and k as it meets q and as it meets v.
    uint16_t *queries_left, *keys_right, *keys_high, *keys_low;
    /// P.
    uint16_t *pairs_high, *pairs_low;
    /// Of 32 columns: v, the state, and the state with the chunk's decay, in panels.
    uint16_t *values_right, *state_high, *state_low;
    float *state;
    /// What products make, TILE_SUMS of it.
    float *sums;
    /// What is brought into L2 meanwhile.
    fetch_run fetch;
} linear_tiles;

/// Rows of the register tile that reads a state, the fewest of any instruction set.
#define READ_ROWS_MIN 4

static inline size_t panels_of(size_t dim) { return lmk_divide_up(dim, CHUNK_TOKENS); }

/// Floats of what a stored state is multiplied with: a number, or with decays per key one for each
/// row.
static inline size_t scale_floats_of(lmk_decay decay, size_t key_dim) {
    return decay == LMK_DECAY_KEY ? CHUNK_TOKENS * panels_of(key_dim) : 1;
}

/// Floats of a state in panels.
static inline size_t state_floats(size_t key_dim, size_t value_dim) {
    return PANEL * panels_of(key_dim) * panels_of(value_dim);
}

#endif
