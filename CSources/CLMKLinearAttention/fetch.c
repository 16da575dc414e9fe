#include "lmk_token_fetch.h"

/// Lines of a column, one for each step of a tile through a panel.
#define COLUMN_LINES ((size_t)16)
#define LINE ((size_t)64)

void lmk_fetch_add(fetch_list *list, const void *data, size_t size, size_t token_stride,
                   size_t head_stride, size_t tokens, size_t heads, size_t width) {
    if (!data || list->count == FETCH_TENSORS_MAX || tokens == 0) return;
    // Along the larger stride first.
    const int tokens_first = heads > 1 && token_stride >= head_stride;
    const size_t token_step = size * token_stride, head_step = size * head_stride,
                 row_bytes = size * width, count = tokens_first ? heads : tokens,
                 step = tokens_first ? head_step : token_step;
    fetch_tensor t = {
        .data = data,
        .rows = tokens_first ? tokens : heads,
        .row_step = tokens_first ? token_step : head_step,
    };
    if (step == row_bytes || (count == 1 && row_bytes >= LINE * COLUMN_LINES)) {
        // What follows each other is cut into columns of successive lines,
        t.groups = lmk_divide_up(row_bytes * count, LINE * COLUMN_LINES);
        t.group_step = LINE * COLUMN_LINES;
        t.lines = 1;
        t.stride = LINE;
    } else {
        // and rows that lie apart give one line each to a column.
        t.groups = lmk_divide_up(count, COLUMN_LINES);
        t.group_step = COLUMN_LINES * step;
        t.lines = lmk_divide_up(row_bytes, LINE);
        t.stride = step;
    }
    list->tensors[list->count++] = t;
    list->columns += t.rows * t.groups * t.lines;
}

static fetch_column next_column(fetch_list *list) {
    const fetch_tensor *const t = list->tensors + list->tensor;
    const fetch_column column = {
        t->data + t->row_step * list->row + t->group_step * list->group + LINE * list->line,
        t->stride,
    };
    if (++list->line < t->lines) return column;
    list->line = 0;
    if (++list->group < t->groups) return column;
    list->group = 0;
    if (++list->row < t->rows) return column;
    list->row = 0;
    list->tensor++;
    return column;
}

void lmk_fetch_next(fetch_list *list, size_t count, fetch_column *columns) {
    // Any address will do where nothing is left.
    const fetch_column none = {(const char *)columns, 0};
    for (size_t i = 0; i < count; i++)
        columns[i] = list->tensor < list->count ? next_column(list) : none;
}
