// Householder products and the self-referential weight matrix, with 1, 2 and 3 threads, also in
// place. All must give the same bits.
#include "lmk_householder.h"
#include "lmk_self_referential.h"
#include "matrix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static matrix random_matrix(generator *g, size_t rows, size_t columns, size_t padding,
                            lmk_dtype dtype, float scale) {
    const matrix m = take_matrix(rows, columns, padding, dtype);
    for (size_t row = 0; row < rows; row++) {
        float *const values = take_floats(g, columns, scale);
        put_row(&m, row, values);
        free(values);
    }
    return m;
}

static uint64_t hash_floats(uint64_t hash, const float *x, size_t count) {
    return hash * 31 + hash_of(x, count * sizeof *x);
}

static void compare(const char *name, const char *what, unsigned threads, uint64_t *first,
                    uint64_t now) {
    if (threads == 1) put_hash(name, what, now);
    else if (*first != now) complain("%s: other bits of %s with %u threads", name, what, threads);
    *first = threads == 1 ? now : *first;
}

// ---- Householder products

typedef struct product_sizes {
    size_t batch, factors, dim, vectors;
} product_sizes;

static void run_product(product_sizes s, lmk_dtype dtype, int side, int is_transposed) {
    char name[96];
    snprintf(name, sizeof name, "householder-%s-%zux%zux%zux%zu-%s%s", dtype_name(dtype), s.batch,
             s.factors, s.dim, s.vectors, side ? "right" : "left", is_transposed ? "-t" : "");
    generator g = {11};
    const size_t rows = side ? s.vectors : s.dim, columns = side ? s.dim : s.vectors;
    matrix k = random_matrix(&g, s.batch * s.factors, s.dim, 3, dtype, 1.5f / (float)(s.dim + 1));
    matrix x = random_matrix(&g, s.batch * rows, columns, 1, dtype, 1),
           dy = random_matrix(&g, s.batch * rows, columns, 2, dtype, 1);
    // A block that begins with dimensions that no factor has, as LAPACK's do.
    float *const zeros = take(s.dim * sizeof *zeros);
    memset(zeros, 0, s.dim * sizeof *zeros);
    for (size_t i = 0; i < s.factors && s.dim < 16; i++) put_row(&k, i, zeros);
    free(zeros);
    float *const beta = take_floats(&g, s.batch * s.factors, 1);
    lmk_householder_application a = {.product = {.dtype = dtype,
                                                 .batch = s.batch,
                                                 .factors = s.factors,
                                                 .dim = s.dim,
                                                 .k = k.data,
                                                 .k_stride = k.stride,
                                                 .k_batch_stride = s.factors * k.stride,
                                                 .beta = beta,
                                                 .beta_batch_stride = s.factors},
                                     .side = (lmk_householder_side)side,
                                     .is_transposed = is_transposed,
                                     .vectors = s.vectors,
                                     .x = x.data,
                                     .x_stride = x.stride,
                                     .x_batch_stride = rows * x.stride};
    uint64_t forward = 0, backward = 0, form = 0;
    for (unsigned threads = 1; threads <= 3; threads++) {
        a.product.threads = threads;
        lmk_error error = {0};
        matrix y = take_matrix(s.batch * rows, columns, 1, dtype);
        copy_matrix(&y, &x);
        // In place with the third.
        if (threads == 3) a.x = y.data;
        size_t size = lmk_householder_apply_workspace_size(&a);
        void *workspace = take(size);
        expect_ok(
            name,
            lmk_householder_apply(&a, y.data, y.stride, rows * y.stride, workspace, size, &error),
            &error);
        free(workspace);
        a.x = x.data;
        compare(name, "y", threads, &forward, hash_matrix(name, &y));
        matrix dk = take_matrix(s.batch * s.factors, s.dim, 2, dtype);
        float *const dbeta = take(s.batch * s.factors * sizeof *dbeta);
        const lmk_householder_gradients gradients = {.dy = dy.data,
                                                     .dy_stride = dy.stride,
                                                     .dy_batch_stride = rows * dy.stride,
                                                     .dk = dk.data,
                                                     .dk_stride = dk.stride,
                                                     .dk_batch_stride = s.factors * dk.stride,
                                                     .dbeta = dbeta,
                                                     .dbeta_batch_stride = s.factors,
                                                     .dx = y.data,
                                                     .dx_stride = y.stride,
                                                     .dx_batch_stride = rows * y.stride};
        size = lmk_householder_backward_workspace_size(&a);
        workspace = take(size);
        expect_ok(name, lmk_householder_backward(&a, &gradients, workspace, size, &error), &error);
        free(workspace);
        const uint64_t hash = hash_matrix(name, &dk) * 7 + hash_matrix(name, &y);
        compare(name, "gradients", threads, &backward,
                hash_floats(hash, dbeta, s.batch * s.factors));
        const size_t entries = s.batch * s.factors * s.factors;
        float *const t = take(entries * sizeof *t);
        size = lmk_householder_wy_workspace_size(&a.product);
        workspace = take(size);
        expect_ok(name,
                  lmk_householder_wy(&a.product, t, s.factors, s.factors * s.factors, workspace,
                                     size, &error),
                  &error);
        free(workspace);
        if (!side && !is_transposed) compare(name, "t", threads, &form, hash_floats(0, t, entries));
        free(t);
        free(dbeta);
        free_matrix(&dk);
        free_matrix(&y);
    }
    free(beta);
    free_matrix(&k);
    free_matrix(&x);
    free_matrix(&dy);
}

// ---- The self-referential weight matrix

typedef struct reference_sizes {
    size_t batch, tokens, heads, key_dim, value_dim;
    int is_shared;
} reference_sizes;

static lmk_token_strides strides_of(const matrix *m, size_t tokens, size_t width) {
    return (lmk_token_strides){.batch = tokens * m->stride, .token = m->stride, .head = width};
}

static void run_self_reference(reference_sizes s, lmk_dtype dtype, int has_softmax) {
    char name[96];
    snprintf(name, sizeof name, "self-referential-%s-%zux%zux%zux%zux%zu%s%s", dtype_name(dtype),
             s.batch, s.tokens, s.heads, s.key_dim, s.value_dim, has_softmax ? "-softmax" : "",
             s.is_shared ? "-shared" : "");
    generator g = {12};
    const size_t rows = s.batch * s.tokens,
                 entries = s.heads * s.key_dim * lmk_self_referential_rows(s.key_dim, s.value_dim),
                 starts = s.is_shared ? entries : s.batch * entries;
    matrix x = random_matrix(&g, rows, s.heads * s.key_dim, 1, dtype, 1),
           dy = random_matrix(&g, rows, s.heads * s.value_dim, 2, dtype, 1);
    float *const start = take_floats(&g, starts, 1), *const dfinal =
                                                         take_floats(&g, s.batch * entries, 1);
    lmk_self_referential m = {.dtype = dtype,
                              .batch = s.batch,
                              .tokens = s.tokens,
                              .heads = s.heads,
                              .key_dim = s.key_dim,
                              .value_dim = s.value_dim,
                              .x = x.data,
                              .x_strides = strides_of(&x, s.tokens, s.key_dim),
                              .has_input_softmax = has_softmax,
                              .initial_matrix = start,
                              .shares_initial_matrix = s.is_shared};
    uint64_t forward = 0, backward = 0;
    for (unsigned threads = 1; threads <= 3; threads++) {
        m.threads = threads;
        lmk_error error = {0};
        matrix y = take_matrix(rows, s.heads * s.value_dim, 3, dtype),
               dx = take_matrix(rows, s.heads * s.key_dim, 0, dtype);
        float *const final = take(s.batch * entries * sizeof *final), *const dstart = take(
                                                                          starts * sizeof *dstart);
        size_t size = lmk_self_referential_workspace_size(&m);
        void *workspace = take(size);
        expect_ok(name,
                  lmk_self_referential_forward(&m, y.data, strides_of(&y, s.tokens, s.value_dim),
                                               final, workspace, size, &error),
                  &error);
        free(workspace);
        compare(name, "y", threads, &forward,
                hash_floats(hash_matrix(name, &y), final, s.batch * entries));
        const lmk_self_referential_gradients gradients = {
            .dy = dy.data,
            .dy_strides = strides_of(&dy, s.tokens, s.value_dim),
            .dfinal_matrix = dfinal,
            .dx = dx.data,
            .dx_strides = strides_of(&dx, s.tokens, s.key_dim),
            .dinitial_matrix = dstart};
        size = lmk_self_referential_backward_workspace_size(&m);
        workspace = take(size);
        expect_ok(name, lmk_self_referential_backward(&m, &gradients, workspace, size, &error),
                  &error);
        free(workspace);
        compare(name, "gradients", threads, &backward,
                hash_floats(hash_matrix(name, &dx), dstart, starts));
        free(final);
        free(dstart);
        free_matrix(&y);
        free_matrix(&dx);
    }
    free(start);
    free(dfinal);
    free_matrix(&x);
    free_matrix(&dy);
}

void run_householder_seeded(void) {
    static const product_sizes products[] = {
        {1, 1, 1, 1},     {2, 20, 7, 3},  {1, 33, 64, 33}, {3, 40, 65, 70},
        {1, 70, 130, 90}, {9, 17, 31, 5}, {2, 0, 5, 4},    {1, 90, 40, 300},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        for (int way = 0; way < 4; way++) {
            run_product(products[i], LMK_FLOAT32, way & 1, way >> 1);
            if (way == (int)(i % 4)) {
                run_product(products[i], LMK_BFLOAT16, way & 1, way >> 1);
                run_product(products[i], LMK_FLOAT16, way & 1, way >> 1);
            }
        }
    }
    static const reference_sizes references[] = {
        {1, 1, 1, 1, 1, 0},   {2, 9, 2, 5, 3, 0},    {3, 20, 2, 16, 17, 1},
        {1, 33, 3, 33, 8, 0}, {2, 10, 1, 65, 40, 1}, {1, 0, 2, 4, 4, 0},
    };
    for (size_t i = 0; i < sizeof references / sizeof *references; i++) {
        for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++)
            run_self_reference(references[i], (lmk_dtype)dtype, (int)i % 2 == 0 || dtype == 1);
    }
}
