#include "fetch.h"

/// Lines of a column, one for each step of a tile through a panel.
#define COLUMN_LINES ((size_t)16)
#define LINE ((size_t)64)

/// Bytes of the second axis that follow each other; 0: its rows lie apart, and are shorter than a
/// column, which then takes one line of 16 of them.
static size_t run_bytes(const fetch_tensor *t) {
    if (t->strides[1] == t->row_bytes) return t->row_bytes * t->counts[1];
    return t->row_bytes >= LINE * COLUMN_LINES && t->counts[1] == 1 ? t->row_bytes : 0;
}

static size_t columns_of_row(const fetch_tensor *t) {
    const size_t run = run_bytes(t);
    if (run > 0) return lmk_divide_up(run, LINE * COLUMN_LINES);
    return lmk_divide_up(t->counts[1], COLUMN_LINES) * lmk_divide_up(t->row_bytes, LINE);
}

void lmk_fetch_add(fetch_list *list, const void *data, size_t size, size_t token_stride,
                   size_t head_stride, size_t tokens, size_t heads, size_t width) {
    if (!data || list->count == FETCH_TENSORS_MAX || tokens == 0) return;
    const int tokens_first = heads == 1 ? 0 : token_stride >= head_stride;
    const size_t token_bytes = size * token_stride, head_bytes = size * head_stride;
    fetch_tensor t = {
        .data = data,
        .strides = {tokens_first ? token_bytes : head_bytes,
                    tokens_first ? head_bytes : token_bytes},
        .counts = {tokens_first ? tokens : heads, tokens_first ? heads : tokens},
        .row_bytes = size * width,
    };
    list->tensors[list->count++] = t;
    list->columns += t.counts[0] * columns_of_row(&t);
}

static fetch_column next_column(fetch_list *list) {
    const fetch_tensor *const t = list->tensors + list->tensor;
    const char *const row = t->data + t->strides[0] * list->row;
    const size_t lines = lmk_divide_up(t->row_bytes, LINE);
    fetch_column column = {row + LINE * COLUMN_LINES * list->at, LINE};
    if (run_bytes(t) == 0) {
        column.data =
            row + t->strides[1] * COLUMN_LINES * (list->at / lines) + LINE * (list->at % lines);
        column.stride = t->strides[1];
    }
    list->done++;
    if (++list->at == columns_of_row(t)) {
        list->at = 0;
        if (++list->row == t->counts[0]) {
            list->row = 0;
            list->tensor++;
        }
    }
    return column;
}

void lmk_fetch_next(fetch_list *list, size_t count, fetch_column *columns) {
    // Any address will do where nothing is left.
    const fetch_column none = {(const char *)columns, 0};
    for (size_t i = 0; i < count; i++)
        columns[i] = list->done < list->columns ? next_column(list) : none;
}
