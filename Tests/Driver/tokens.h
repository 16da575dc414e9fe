// Tensors over tokens, for operators with a state for each sequence and head.
#ifndef DRIVER_TOKENS_H
#define DRIVER_TOKENS_H

#include "lmk_linear_attention.h"
#include "matrix.h"
#include "safetensors.h"

/// A tensor [batch, tokens, heads, width].
typedef struct tokens {
    matrix rows;
    lmk_token_strides strides;
    size_t batch, tokens, heads, width;
    int is_head_major;
} tokens;

/// How a call differs from the first one of its problem.
typedef struct way {
    unsigned threads;
    int is_head_major, is_in_place, is_tight;
} way;

#define WAYS 5
extern const way ways[WAYS];

/// Complains, in the name of `source`, where a way gives other bits than the first; `first` is 0
/// before there is one.
void compare_ways(const char *source, uint64_t *first, uint64_t now, const char *what, way w);

tokens take_tokens(size_t batch, size_t count, size_t heads, size_t width, size_t padding,
                   lmk_dtype dtype, int is_head_major);
/// Of the same shape, in the layout of a way, to write to.
tokens take_like(const tokens *source, way w);
/// The same tensor in the layout of a way; nothing where there is none.
tokens in_layout(const tokens *source, way w);
/// Numbers from low to high.
tokens make_tokens(generator *g, size_t batch, size_t count, size_t heads, size_t width,
                   lmk_dtype dtype, float low, float high);
/// Mild log-decays, with strong ones and resets among them.
tokens make_decays(generator *g, size_t batch, size_t count, size_t heads, size_t width);

/// In the order of tokens, whatever the layout; complains about gaps that were written to, and
/// takes every NaN for the same one, as hash_matrix does.
uint64_t hash_tokens(const char *source, const tokens *t);
/// The hash goes on over an array, if there is one.
uint64_t hash_floats(uint64_t hash, const float *x, size_t count);

/// Memory that ends where it should, all bits set.
float *take_results(size_t count, int is_asked_for);
float *copy_floats(const float *x, size_t count);

// Conformance files.
lmk_dtype dtype_of(const tensor *t);
/// A tensor of the file; nothing where the file has none.
tokens read_tokens(const safetensors *file, const char *name);
void check_tokens(const safetensors *file, const char *source, const char *name, const tokens *t);

#endif
