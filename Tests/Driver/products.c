// Hashes of elementwise functions, conversions and matrix products.
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/// Distance of sampled bit patterns: a prime, about a million samples.
#define SAMPLE_STRIDE 4099u
#define SAMPLES ((size_t)(0x100000000u / SAMPLE_STRIDE + 1))

static float *sampled_floats(void) {
    uint32_t *const bits = take(SAMPLES * sizeof *bits);
    for (size_t i = 0; i < SAMPLES; i++) bits[i] = (uint32_t)(i * SAMPLE_STRIDE);
    return (float *)bits;
}

void run_elementwise(void) {
    static const char *const names[] = {"exp", "log", "log1p", "expm1", "tanh", "sigmoid"};
    float *const x = sampled_floats(), *const y = take(SAMPLES * sizeof *y);
    lmk_error error;
    for (int f = LMK_EXP; f <= LMK_SIGMOID; f++) {
        expect_ok(names[f], lmk_map((lmk_function)f, x, y, SAMPLES, &error), &error);
        // IEEE 754 leaves the sign and payload of a NaN that an operation makes to the processor.
        for (size_t i = 0; i < SAMPLES; i++)
            if (y[i] != y[i]) memcpy(&y[i], &(uint32_t){0x7fc00000}, 4);
        put_hash("map", names[f], hash_of(y, SAMPLES * sizeof *y));
    }
    free(x);
    free(y);
}

void run_conversions(void) {
    float *const x = sampled_floats();
    uint16_t *const y = take(SAMPLES * sizeof *y), *const every = take(65536 * sizeof *every);
    float *const back = take(65536 * sizeof *back);
    for (uint32_t i = 0; i < 65536; i++) every[i] = (uint16_t)i;
    lmk_error error;
    for (int dtype = LMK_BFLOAT16; dtype <= LMK_FLOAT16; dtype++) {
        const char *const name = dtype == LMK_BFLOAT16 ? "bf16" : "f16";
        expect_ok(name, lmk_convert(x, LMK_FLOAT32, y, (lmk_dtype)dtype, SAMPLES, &error), &error);
        put_hash("convert-to", name, hash_of(y, SAMPLES * sizeof *y));
        expect_ok(name, lmk_convert(every, (lmk_dtype)dtype, back, LMK_FLOAT32, 65536, &error),
                  &error);
        put_hash("convert-from", name, hash_of(back, 65536 * sizeof *back));
    }
    free(x);
    free(y);
    free(every);
    free(back);
}

// ---- Matrix products
// ------------------------------------------------------------------------------------------------

typedef struct sizes {
    size_t batch, rows, columns, depth;
} sizes;

// Around the edges of vectors, register tiles, column blocks, depth blocks, the limit of operands
// that are read in place, the limit of shared panels (the long depth), and both ways to use threads
// over a batch.
static const sizes all_sizes[] = {
    {1, 1, 1, 1},     {1, 1, 257, 300}, {1, 257, 1, 300},   {1, 13, 15, 17},    {1, 14, 16, 255},
    {1, 15, 17, 256}, {1, 28, 31, 257}, {1, 29, 32, 511},   {1, 64, 33, 513},   {1, 63, 63, 63},
    {1, 64, 64, 64},  {1, 65, 65, 65},  {1, 127, 129, 128}, {1, 255, 257, 130}, {1, 257, 255, 258},
    {1, 6, 513, 40},  {1, 520, 14, 70}, {1, 130, 600, 20},  {1, 5, 24, 56000},  {1, 17, 19, 0},
    {3, 33, 47, 65},  {20, 7, 16, 31},  {2, 120, 130, 140}, {0, 5, 5, 5},
};

/// x in storage of this type, behind one element more: nothing but the elements is aligned.
static char *stored(const float *x, size_t count, lmk_dtype dtype) {
    char *const y = take((count + 1) * lmk_dtype_size(dtype));
    lmk_error error;
    expect_ok("convert",
              lmk_convert(x, LMK_FLOAT32, y + lmk_dtype_size(dtype), dtype, count, &error), &error);
    return y;
}

/// One product with 1, 2 and 3 threads, and once more added to itself; returns the hash of c, gaps
/// between rows included.
static uint64_t product(lmk_layout layout, lmk_dtype dtype, sizes s, size_t padding) {
    generator g = {.state = s.rows * 1000003 + s.columns * 1009 + s.depth + (uint64_t)layout};
    lmk_matmul m = {.layout = layout,
                    .dtype = dtype,
                    .batch = s.batch,
                    .rows = s.rows,
                    .columns = s.columns,
                    .depth = s.depth};
    const size_t a_rows = layout == LMK_TN ? s.depth : s.rows,
                 b_rows = layout == LMK_NT ? s.columns : s.depth;
    m.a_stride = (layout == LMK_TN ? s.rows : s.depth) + padding;
    m.b_stride = (layout == LMK_NT ? s.depth : s.columns) + padding;
    m.c_stride = s.columns + padding;
    m.a_batch_stride = a_rows * m.a_stride;
    m.b_batch_stride = b_rows * m.b_stride;
    m.c_batch_stride = s.rows * m.c_stride;
    const size_t a_count = s.batch * m.a_batch_stride, b_count = s.batch * m.b_batch_stride;
    const size_t c_count = s.batch * m.c_batch_stride;
    float *const a = take_floats(&g, a_count, 1), *const b = take_floats(&g, b_count, 1);
    float *const first = take_floats(&g, c_count, 1), *const c = take(c_count * sizeof *c);
    char *const a_stored = stored(a, a_count, dtype), *const b_stored = stored(b, b_count, dtype);
    m.a = a_stored + lmk_dtype_size(dtype);
    m.b = b_stored + lmk_dtype_size(dtype);
    m.c = c;

    uint64_t hash = 0;
    for (unsigned threads = 1; threads <= 3; threads++) {
        m.threads = threads;
        memcpy(c, first, c_count * sizeof *c);
        const size_t size = lmk_matmul_workspace_size(&m);
        void *const workspace = take(size);
        lmk_error error = {0};
        m.accumulate = 0;
        expect_ok("matmul", lmk_matmul_run(&m, workspace, size, &error), &error);
        m.accumulate = 1;
        expect_ok("matmul", lmk_matmul_run(&m, workspace, size, &error), &error);
        free(workspace);
        const uint64_t now = hash_of(c, c_count * sizeof *c);
        if (threads > 1 && now != hash) {
            complain("matmul %zux%zux%zux%zu layout %d: %u threads differ from 1", s.batch, s.rows,
                     s.columns, s.depth, layout, threads);
        }
        hash = now;
    }
    free(a);
    free(b);
    free(a_stored);
    free(b_stored);
    free(first);
    free(c);
    return hash;
}

void run_matmul(void) {
    static const char *const layouts[] = {"NN", "NT", "TN"}, *const dtypes[] = {"f32", "bf16",
                                                                                "f16"};
    for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++) {
        for (int layout = LMK_NN; layout <= LMK_TN; layout++) {
            for (size_t i = 0; i < sizeof all_sizes / sizeof *all_sizes; i++) {
                const sizes s = all_sizes[i];
                if (dtype != LMK_FLOAT32 && s.depth > 1000) continue;
                char source[32], name[80];
                snprintf(source, sizeof source, "matmul-%s-%s", dtypes[dtype], layouts[layout]);
                snprintf(name, sizeof name, "%zux%zux%zux%zu", s.batch, s.rows, s.columns, s.depth);
                put_hash(source, name,
                         product((lmk_layout)layout, (lmk_dtype)dtype, s, i % 2 ? 3 : 0));
            }
        }
    }
}
