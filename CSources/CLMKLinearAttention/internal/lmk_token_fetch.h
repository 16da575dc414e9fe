// What a worker fetches from memory while it computes: the rows of the next block of tokens, in the
// order in which they lie, so that the processor's own prefetching joins in.
#ifndef LMK_TOKEN_FETCH_H
#define LMK_TOKEN_FETCH_H

#include "lmk_linear_problem.h"

#define FETCH_TENSORS_MAX 8

/// Rows of some heads as columns of 16 lines: `rows` times `groups` times `lines` of them. Steps
/// and the stride from line to line of a column are in bytes.
typedef struct fetch_tensor {
    const char *data;
    size_t rows, row_step, groups, group_step, lines, stride;
} fetch_tensor;

/// The rows of a block, and how far they have been handed out.
typedef struct fetch_list {
    fetch_tensor tensors[FETCH_TENSORS_MAX];
    size_t count;
    /// Columns in all.
    size_t columns;
    size_t tensor, row, group, line;
} fetch_list;

/// Adds rows of `tokens` tokens and `heads` heads, whose first one is at `data`.
void lmk_fetch_add(fetch_list *list, const void *data, size_t size, size_t token_stride,
                   size_t head_stride, size_t tokens, size_t heads, size_t width);

/// Hands out `count` columns, with harmless ones when nothing is left.
void lmk_fetch_next(fetch_list *list, size_t count, fetch_column *columns);

#endif
