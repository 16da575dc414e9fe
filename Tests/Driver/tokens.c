#include "tokens.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const way ways[WAYS] = {{.threads = 1},
                        {.threads = 2},
                        {.threads = 3, .is_head_major = 1},
                        {.threads = 3, .is_in_place = 1},
                        {.threads = 2, .is_tight = 1}};

void compare_ways(const char *source, uint64_t *first, uint64_t now, const char *what, way w) {
    if (*first && *first != now) {
        complain("%s: other bits of %s with %u threads%s%s%s", source, what, w.threads,
                 w.is_head_major ? ", head-major" : "", w.is_in_place ? ", in place" : "",
                 w.is_tight ? ", little memory" : "");
    }
    if (!*first) *first = now;
}

tokens take_tokens(size_t batch, size_t count, size_t heads, size_t width, size_t padding,
                   lmk_dtype dtype, int is_head_major) {
    tokens t = {.batch = batch,
                .tokens = count,
                .heads = heads,
                .width = width,
                .is_head_major = is_head_major};
    if (is_head_major) {
        t.rows = take_matrix(batch * heads * count, width, padding, dtype);
        t.strides = (lmk_token_strides){.batch = heads * count * t.rows.stride,
                                        .token = t.rows.stride,
                                        .head = count * t.rows.stride};
    } else {
        t.rows = take_matrix(batch * count, heads * width, padding, dtype);
        t.strides = (lmk_token_strides){
            .batch = count * t.rows.stride, .token = t.rows.stride, .head = width};
    }
    return t;
}

tokens take_like(const tokens *source, way w) {
    return take_tokens(source->batch, source->tokens, source->heads, source->width, 2,
                       source->rows.dtype, w.is_head_major);
}

static char *row_of(const tokens *t, size_t row, size_t head) {
    const size_t at = t->strides.batch * (row / t->tokens) + t->strides.token * (row % t->tokens) +
                      t->strides.head * head;
    return (char *)t->rows.data + lmk_dtype_size(t->rows.dtype) * at;
}

tokens in_layout(const tokens *source, way w) {
    if (!source->rows.memory) return (tokens){0};
    const tokens copy = take_like(source, w);
    for (size_t row = 0; row < copy.batch * copy.tokens; row++) {
        for (size_t head = 0; head < copy.heads; head++) {
            memcpy(row_of(&copy, row, head), row_of(source, row, head),
                   copy.width * lmk_dtype_size(copy.rows.dtype));
        }
    }
    return copy;
}

tokens make_tokens(generator *g, size_t batch, size_t count, size_t heads, size_t width,
                   lmk_dtype dtype, float low, float high) {
    tokens t = take_tokens(batch, count, heads, width, 1, dtype, 0);
    float *const values = take(heads * width * sizeof *values);
    for (size_t i = 0; i < t.rows.rows; i++) {
        for (size_t j = 0; j < heads * width; j++) {
            // Two statements: one might be fused, on some machines.
            const float part = (high - low) * 0.5f * (next_float(g) + 1);
            values[j] = low + part;
        }
        put_row(&t.rows, i, values);
    }
    free(values);
    return t;
}

static float next_decay(generator *g) {
    const size_t sort = next_index(g, 12);
    return sort == 0   ? -2.5f
           : sort == 1 ? -20
           : sort == 2 ? (next_index(g, 4) ? -1e4f : -INFINITY)
                       : 0.05f * (next_float(g) - 1);
}

tokens make_decays(generator *g, size_t batch, size_t count, size_t heads, size_t width) {
    tokens t = take_tokens(batch, count, heads, width, 1, LMK_FLOAT32, 0);
    float *const values = take(heads * width * sizeof *values);
    for (size_t i = 0; i < t.rows.rows; i++) {
        for (size_t j = 0; j < heads * width; j++) values[j] = next_decay(g);
        put_row(&t.rows, i, values);
    }
    free(values);
    return t;
}

uint64_t hash_tokens(const char *source, const tokens *t) {
    uint64_t hash = 0;
    (void)hash_matrix(source, &t->rows);
    for (size_t row = 0; row < t->batch * t->tokens; row++) {
        for (size_t head = 0; head < t->heads; head++) {
            hash =
                hash * 31 + hash_of(row_of(t, row, head), t->width * lmk_dtype_size(t->rows.dtype));
        }
    }
    return hash;
}

uint64_t hash_floats(uint64_t hash, const float *x, size_t count) {
    return x ? hash * 31 + hash_of(x, count * sizeof *x) : hash;
}

float *take_results(size_t count, int is_asked_for) {
    if (!is_asked_for) return 0;
    float *const x = take(count * sizeof *x);
    memset(x, 0xff, count * sizeof *x);
    return x;
}

float *copy_floats(const float *x, size_t count) {
    float *const y = take_results(count, 1);
    if (x) memcpy(y, x, count * sizeof *x);
    return y;
}

// ---- Conformance files

lmk_dtype dtype_of(const tensor *t) {
    return t->dtype[0] == 'B'             ? LMK_BFLOAT16
           : strcmp(t->dtype, "F16") == 0 ? LMK_FLOAT16
                                          : LMK_FLOAT32;
}

tokens read_tokens(const safetensors *file, const char *name) {
    tensor source = safetensors_tensor(file, name);
    if (!source.data) return (tokens){0};
    const size_t width = source.dimensions == 4 ? source.shape[3] : 1;
    tokens t = take_tokens(source.shape[0], source.shape[1], source.shape[2], width, 0,
                           dtype_of(&source), 0);
    memcpy(t.rows.data, source.data, source.count * lmk_dtype_size(t.rows.dtype));
    free(source.data);
    return t;
}

void check_tokens(const safetensors *file, const char *source, const char *name, const tokens *t) {
    const size_t columns = t->rows.columns;
    float *const values = take(t->rows.rows * columns * sizeof *values);
    lmk_error error = {0};
    for (size_t i = 0; i < t->rows.rows; i++) {
        expect_ok("convert",
                  lmk_convert(matrix_row(&t->rows, i), t->rows.dtype, values + columns * i,
                              LMK_FLOAT32, columns, &error),
                  &error);
    }
    safetensors_check(file, source, name, values);
    free(values);
}
