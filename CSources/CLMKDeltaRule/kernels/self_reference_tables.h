// What the entry points and the kernels of the self-referential weight matrix share, and the table
// of each instruction set.
#ifndef LMK_SELF_REFERENCE_TABLES_H
#define LMK_SELF_REFERENCE_TABLES_H

#include "lmk_check.h"
#include "lmk_self_referential.h"

/// Sizes of one head. Matrices lie transposed, [dim][stride], with 0 from `rows` on.
typedef struct self_reference_sizes {
    /// D, E and E + 2 D + 4.
    size_t dim, outputs, rows;
    /// D and the rows, rounded up to 16.
    size_t width, stride;
} self_reference_sizes;

/// What a token computes and its way back needs: rows of `width`, then of `stride`.
typedef struct self_reference_token {
    /// phi(x) or x, phi(k), phi(q), phi(q) - phi(k).
    float *input, *key, *query, *direction;
    /// W phi(x), v - u, the rate of each row, rate (v - u).
    float *produced, *difference, *rates, *change;
} self_reference_token;

/// Most writes that W is multiplied without having them in its matrix.
#define SELF_REFERENCE_WRITES 16

/// W as a matrix and the writes of `count` tokens after it, change key^T, whose rows lie `step`
/// floats apart.
typedef struct self_reference_matrix {
    const float *matrix, *changes, *keys;
    size_t count, step;
} self_reference_matrix;

/// Scratch of the way back.
typedef struct self_reference_gradient {
    /// dp, then dd; and dr. Rows of `stride`.
    float *change, *produced;
    /// Rows of `width`.
    float *query, *key, *input;
    /// [dim][16]
    float *sums;
} self_reference_gradient;

typedef struct self_reference_kernels {
    /// [rows, dim] to [dim][stride], and back.
    void (*load_matrix)(const self_reference_sizes *s, const float *from, float *to);
    void (*store_matrix)(const self_reference_sizes *s, const float *from, float *to);
    /// to += from
    void (*add)(const float *from, float *to, size_t count);
    /// The input of a token from its row of x.
    void (*load_input[3])(const self_reference_sizes *s, const void *x, int has_softmax, float *to);
    /// `count` entries.
    void (*store_row[3])(const float *from, size_t count, void *to);
    /// produced = W x
    void (*multiply)(const self_reference_sizes *s, const float *matrix, const float *x, float *to);
    /// The rest of a token; W becomes that after it. With a next input, `next` receives what that
    /// produces.
    void (*step)(const self_reference_sizes *s, const self_reference_token *t, float *matrix,
                 const float *next_input, float *next);
    /// One token back: `matrix` is W before it, `gradient` that of W after it once the token
    /// `after` it has written what `g` has kept of it; null: it has. Keeps in `g` what this token
    /// will write. Writes dx where it is not null.
    void (*step_back[3])(const self_reference_sizes *s, const self_reference_token *t,
                         const self_reference_token *after, const self_reference_gradient *g,
                         const self_reference_matrix *matrix, float *gradient, const void *dy,
                         int has_softmax, void *dx);
    /// Writes what `g` has kept of a token.
    void (*write_gradient)(const self_reference_sizes *s, const self_reference_token *token,
                           const self_reference_gradient *g, float *gradient);
} self_reference_kernels;

extern const self_reference_kernels self_reference_kernels_generic;
#if defined(__x86_64__)
extern const self_reference_kernels self_reference_kernels_avx2;
extern const self_reference_kernels self_reference_kernels_avx512;
#elif defined(__aarch64__)
extern const self_reference_kernels self_reference_kernels_neon;
#endif

#endif
