// Validation that the entry points of linear attention share, and where each head lies.
#ifndef LMK_LINEAR_PROBLEM_H
#define LMK_LINEAR_PROBLEM_H

#include "lmk_linear_chunk.h"

/// Names of a tensor and of its strides.
typedef struct tensor_names {
    const char *data, *batch_stride, *token_stride, *head_stride;
} tensor_names;

#define TENSOR_NAMES(NAME)                                                                         \
    ((tensor_names){#NAME, #NAME "_strides.batch", #NAME "_strides.token", #NAME "_strides.head"})

/// What forward, backward and the pieces need alike. `reads` is whether there are queries.
lmk_status lmk_linear_attention_check(const lmk_linear_attention *a, int reads, lmk_error *error);

/// Batch, tokens, heads, widths and offsets.
lmk_status lmk_linear_attention_check_sizes(const lmk_linear_attention *a, lmk_error *error);

/// [batch, tokens, heads, width] at these strides, without two rows on one another.
lmk_status lmk_linear_attention_check_rows(const lmk_linear_attention *a, tensor_names names,
                                           const void *data, lmk_token_strides strides,
                                           size_t heads, size_t width, size_t size,
                                           lmk_error *error);

/// N.
static inline size_t sequences_of(const lmk_linear_attention *a) {
    return a->offsets ? a->sequences : a->batch;
}

static inline size_t tokens_of(const lmk_linear_attention *a, size_t sequence) {
    return a->offsets ? (size_t)(a->offsets[sequence + 1] - a->offsets[sequence]) : a->tokens;
}

/// Elements from the start of a tensor to a head's row of token `token` of a sequence.
static inline size_t row_offset(const lmk_linear_attention *a, lmk_token_strides strides,
                                size_t sequence, size_t token, size_t head) {
    const size_t first = a->offsets ? (size_t)a->offsets[sequence] : 0;
    return (a->offsets ? 0 : strides.batch * sequence) + strides.token * (first + token) +
           strides.head * head;
}

/// A head from token `token` of its sequence on, with `columns` values from `column` on; o is that
/// of the results, if any.
linear_head lmk_linear_attention_head(const lmk_linear_attention *a,
                                      const lmk_linear_attention_results *results, size_t sequence,
                                      size_t head, size_t token, size_t column, size_t columns);

#endif
