// What the entry points and the kernels of linear attention share: the table of each instruction
// set.
#ifndef LMK_LINEAR_ATTENTION_TABLES_H
#define LMK_LINEAR_ATTENTION_TABLES_H

#include "lmk_linear_chunk.h"

/// What passes token by token have beside states: shared decays of 16 tokens and what brings them
/// to unit length; of four tokens rows [4][16 panels] that are not used where they lie, and decays
/// per key; and a row of zeros and one of ones.
typedef struct pass_memory {
    float decays[CHUNK_TOKENS], k_factors[CHUNK_TOKENS], q_factors[CHUNK_TOKENS];
    float *k, *q, *rows, *zeros, *ones;
} pass_memory;

typedef struct linear_attention_kernels {
    /// Between a state or a part of its columns, [rows, columns] at `stride`, and panels. A null
    /// `from` is zero.
    void (*import_state)(const float *from, size_t stride, size_t rows, size_t columns,
                         float *state);
    void (*export_state)(const float *state, size_t stride, size_t rows, size_t columns, float *to);
    /// Takes tokens begin ..< end, where begin is a multiple of 16 or the same as end, into the
    /// state; writes o where there is one.
    void (*advance)(const linear_head *head, const linear_chunk *chunk, size_t begin, size_t end,
                    float *state);
    /// Writes o of `tokens` tokens that all read the same state.
    void (*look)(const linear_head *head, const linear_chunk *chunk, size_t tokens,
                 const float *state);
    /// Token by token on a dense state, [key_dim, width of v] at `stride`, and normaliser. A null
    /// start is zero, and start and end may be the same.
    void (*step)(const linear_head *head, const linear_chunk *chunk, size_t begin, size_t end,
                 const float *from, const float *from_normalizer, float *to, float *to_normalizer,
                 size_t stride);
    /// Transposed states: the one after tokens begin ..< begin + count, at most 16, from the one
    /// before them.
    void (*sweep)(const linear_head *head, const linear_chunk *chunk,
                  const linear_gradient_chunk *gradient, size_t begin, size_t count,
                  const float *from, float *to);
    /// The gradients of a chunk, from the state before it and the gradient of the one after it,
    /// which becomes that of the one before it.
    void (*retreat)(const linear_head *head, const linear_head_gradients *gradients,
                    const linear_chunk *chunk, const linear_gradient_chunk *gradient, size_t begin,
                    size_t count, const float *state, float *dstate);
    /// What the outputs of a chunk add to the gradient of the state, which becomes that of the one
    /// before it.
    void (*read_back)(const linear_head *head, const linear_head_gradients *gradients,
                      const linear_chunk *chunk, const linear_gradient_chunk *gradient,
                      size_t begin, size_t count, float *dstate);
    /// to += decay from,  for transposed states of `rows` rows and `panels` panels.
    void (*join)(const float *decay, const float *from, size_t rows, size_t panels, float *to);
    /// Bidirectional: the gradient of q, and what tokens add to that of the state; then those of k
    /// and v.
    void (*look_back)(const linear_head *head, const linear_head_gradients *gradients,
                      const linear_chunk *chunk, const linear_gradient_chunk *gradient,
                      size_t begin, size_t count, const float *state, float *dstate);
    void (*write_back)(const linear_head *head, const linear_head_gradients *gradients,
                       const linear_chunk *chunk, const linear_gradient_chunk *gradient,
                       size_t begin, size_t count, const float *dstate);
    /// The same between a state and slices of SLICE_COLUMNS.
    void (*import_slices)(const linear_head *head, const float *from, size_t stride, float *state);
    void (*export_slices)(const linear_head *head, const float *state, const float *scale,
                          float *to, size_t stride);
    /// Takes tokens begin ..< end of `tokens` into a state in slices, `begin` being a multiple of
    /// 16, a few in each pass; writes o where there is one. The state is `scale` times what is
    /// stored, and what is stored after the last token. Each pass fetches a column while there are
    /// some.
    void (*pass)(const linear_head *head, pass_memory *memory, size_t begin, size_t end,
                 float *state, float *scale, const kept_states *kept, const fetch_column *fetch,
                 size_t fetches);
    /// The product of the decays of tokens 0 ..< tokens, [key_dim].
    void (*total_decay)(const linear_head *head, const linear_chunk *chunk, size_t tokens,
                        float *total);
    /// to[d, e] = first[d, e] decay[d] + second[d, e]
    void (*combine)(const float *decay, const float *first, const float *second, size_t rows,
                    size_t columns, float *to);
} linear_attention_kernels;

/// Products of bfloat16 on tiles. What they hold is lost between `end` and `begin`.
typedef struct linear_tile_kernels {
    void (*begin)(void);
    void (*end)(void);
    /// As `advance` of linear_attention_kernels, for q, k and v of bfloat16 and decays that
    /// dimensions share, without normaliser; begin is a multiple of 64.
    void (*advance)(const linear_head *head, const linear_chunk *chunk, linear_tiles *tiles,
                    size_t begin, size_t end, float *state);
} linear_tile_kernels;

extern const linear_attention_kernels linear_attention_kernels_generic;
#if defined(__x86_64__)
extern const linear_attention_kernels linear_attention_kernels_avx2;
extern const linear_attention_kernels linear_attention_kernels_avx512;
extern const linear_tile_kernels linear_tile_kernels_amx;
#elif defined(__aarch64__)
extern const linear_attention_kernels linear_attention_kernels_neon;
#endif

const linear_attention_kernels *lmk_linear_attention_kernels(void);

#endif
