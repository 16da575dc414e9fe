// Functions of rows every way they can be called: each algorithm, storage type and mask, with 1, 2
// and 3 threads and in place. All threads, and calls in place, must give the same bits.
#include "lmk_softmax.h"
#include "matrix.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/// Which entries take part, and what u is.
typedef enum kind { PLAIN, SCALED, CUT, MASKED, KINDS } kind;

static const char *const kinds[] = {"plain", "scaled", "cut", "masked"};
static const char *const functions[] = {"softmax", "log-softmax", "log-sum-exp", "stable-max",
                                        "log-stable-max"};
static const char *const algorithms[] = {"automatic", "three-pass", "online", "two-pass"};

typedef struct test_case {
    char name[96];
    lmk_softmax softmax;
    matrix x, y, dy, dx;
    float *log_sum_exp, *dscale;
    /// Of the first call; 0 before.
    uint64_t forward, backward;
} test_case;

static int is_reduced(const test_case *t) { return t->softmax.function == LMK_LOG_SUM_EXP; }

/// Memory for what a call writes; y and dy of log_sum_exp have one float32 for each row.
static void open_case(test_case *t, size_t padding) {
    const lmk_softmax *const s = &t->softmax;
    const size_t columns = is_reduced(t) ? 1 : s->columns;
    const lmk_dtype dtype = is_reduced(t) ? LMK_FLOAT32 : s->dtype;
    if (is_reduced(t)) padding = 0;
    t->y = take_matrix(s->rows, columns, padding, dtype);
    t->dy = take_matrix(s->rows, columns, padding, dtype);
    t->dx = take_matrix(s->rows, s->columns, padding, s->dtype);
    t->log_sum_exp = take(s->rows * sizeof(float));
    t->dscale = take(s->rows * sizeof(float));
}

static void close_case(test_case *t) {
    free_matrix(&t->y);
    free_matrix(&t->dy);
    free_matrix(&t->dx);
    free(t->log_sum_exp);
    free(t->dscale);
}

/// The one float32 of each row, NaN taken for the same one.
static uint64_t hash_rows(float *values, size_t rows) {
    for (size_t i = 0; i < rows; i++)
        if (isnan(values[i])) memcpy(&values[i], &(uint32_t){0x7fc00000}, 4);
    return hash_of(values, rows * sizeof *values);
}

static void compare(const test_case *t, uint64_t *first, uint64_t now, const char *way,
                    unsigned threads) {
    if (*first && *first != now)
        complain("%s: %s with %u threads gives other bits", t->name, way, threads);
    if (!*first) *first = now;
}

static void run_forward(test_case *t, const matrix *x, const matrix *y, const char *way,
                        unsigned threads) {
    lmk_softmax s = t->softmax;
    s.threads = threads;
    s.x = x->data;
    s.x_stride = x->stride;
    const int has_lse = s.function == LMK_SOFTMAX || s.function == LMK_LOG_SOFTMAX;
    const size_t size = lmk_softmax_workspace_size(&s);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name,
              lmk_softmax_forward(&s, y->data, y->stride, has_lse ? t->log_sum_exp : 0, workspace,
                                  size, &error),
              &error);
    free(workspace);
    uint64_t hash = hash_matrix(t->name, y);
    if (has_lse) hash ^= hash_rows(t->log_sum_exp, s.rows);
    compare(t, &t->forward, hash, way, threads);
}

/// Which gradients a call asks for.
typedef enum wanted { BOTH, ONLY_X, ONLY_SCALE } wanted;

/// Needs y of forward. Calls for one gradient leave the other as the call before left it; that of x
/// by itself goes without x where it can.
static void run_backward(test_case *t, const matrix *dx, wanted wanted, const char *way,
                         unsigned threads) {
    lmk_softmax s = t->softmax;
    s.threads = threads;
    const int is_from_y = s.function == LMK_SOFTMAX || s.function == LMK_LOG_SOFTMAX;
    s.x = wanted == ONLY_X && is_from_y ? 0 : t->x.data;
    s.x_stride = t->x.stride;
    const matrix *const dy = dx == &t->dx ? &t->dy : dx;
    const lmk_softmax_gradients g = {.y = is_from_y ? t->y.data : 0,
                                     .y_stride = t->y.stride,
                                     .dy = dy->data,
                                     .dy_stride = dy->stride,
                                     .dx = wanted == ONLY_SCALE ? 0 : dx->data,
                                     .dx_stride = dx->stride,
                                     .dscale = wanted == ONLY_X ? 0 : t->dscale};
    const size_t size = lmk_softmax_workspace_size(&s);
    void *const workspace = take(size);
    for (size_t i = 0; wanted != ONLY_SCALE && dx != dy && i < dx->rows; i++)
        memset(matrix_row(dx, i), 0xff, dx->columns * lmk_dtype_size(dx->dtype));
    if (wanted != ONLY_X) memset(t->dscale, 0xff, s.rows * sizeof *t->dscale);
    lmk_error error = {0};
    expect_ok(t->name, lmk_softmax_backward(&s, &g, workspace, size, &error), &error);
    free(workspace);
    const uint64_t hash = hash_matrix(t->name, dx) ^ hash_rows(t->dscale, s.rows);
    compare(t, &t->backward, hash, way, threads);
}

static void run_every_way(test_case *t) {
    for (unsigned threads = 1; threads <= 3; threads++) {
        run_forward(t, &t->x, &t->y, "forward", threads);
        run_backward(t, &t->dx, BOTH, "backward", threads);
        if (threads == 2) {
            run_backward(t, &t->dx, ONLY_X, "the gradient of x", threads);
            run_backward(t, &t->dx, ONLY_SCALE, "the gradient of scale", threads);
        }
        if (threads != 2 || is_reduced(t)) continue;
        matrix same = take_matrix(t->x.rows, t->x.columns, t->x.stride - t->x.columns, t->x.dtype);
        copy_matrix(&same, &t->x);
        run_forward(t, &same, &same, "forward in place", threads);
        copy_matrix(&same, &t->dy);
        run_backward(t, &same, BOTH, "backward in place", threads);
        free_matrix(&same);
    }
    put_hash(t->name, "forward", t->forward);
    put_hash(t->name, "backward", t->backward);
}

// ---- Problems made here

typedef struct shape {
    size_t rows, columns;
} shape;

// Around the edges of vectors and rounds of them; of slices, 16384 columns; rows that threads cut,
// of more than two slices; beyond what three passes take, 65536. Every entry counts: qemu takes 50
// times as long.
static const shape shapes[] = {{70, 1},  {67, 15},   {66, 16},   {9, 17},   {130, 63},
                               {33, 64}, {65, 65},   {40, 257},  {2, 4096}, {3, 4097},
                               {0, 40},  {2, 16385}, {2, 32785}, {1, 65553}};

/// Rows of more are of two kinds only, which take turns.
#define LONG_COLUMNS 16384

/// Rows from tame to hostile, one sort after the other.
static void fill_x(generator *g, const matrix *x, size_t first_sort) {
    const float huge = x->dtype == LMK_FLOAT16 ? 60000.0f : 3e38f;
    float *const values = take(x->columns * sizeof *values);
    for (size_t i = 0; i < x->rows; i++) {
        const size_t sort = (i + first_sort) % 8, here = next_index(g, x->columns);
        const float scale = sort == 1 ? 100 : sort == 2 ? 0 : sort == 5 ? huge : 4;
        for (size_t j = 0; j < x->columns; j++) {
            values[j] = next_float(g) * scale;
            if (sort == 3) values[j] *= 1e-3f;
            if (sort == 4 && next_index(g, 3) == 0) values[j] = -INFINITY;
            if (sort == 6) values[j] *= 0x1p-130f;
            if (sort == 7 && i % 16 == 7) values[j] = -INFINITY;
        }
        if (sort == 3) values[here] = 90;
        if (sort == 7 && i % 16 == 15) values[here] = NAN;
        put_row(x, i, values);
    }
    free(values);
}

static void fill(generator *g, const matrix *m) {
    for (size_t i = 0; i < m->rows; i++) {
        float *const values = take_floats(g, m->columns, 1);
        put_row(m, i, values);
        free(values);
    }
}

/// Entries that are left out hold NaN: they are not read.
static void cut(const matrix *x, const int64_t *lengths, const lmk_softmax *s) {
    float *const nans = take(x->columns * sizeof *nans);
    for (size_t j = 0; j < x->columns; j++) nans[j] = NAN;
    for (size_t i = 0; i < x->rows; i++) {
        const int64_t visible = (int64_t)(i % s->rows_per_sequence) + s->causal_offset + 1;
        const int64_t kept = visible < lengths[i] ? visible : lengths[i];
        matrix rest = *x;
        rest.columns = x->columns - (size_t)(kept < 0 ? 0 : kept);
        rest.data = (char *)x->data + (x->columns - rest.columns) * lmk_dtype_size(x->dtype);
        if (kept < (int64_t)x->columns) put_row(&rest, i, nans);
    }
    free(nans);
}

/// One shape, storage type and kind of u; every function and algorithm. The algorithms that are not
/// chosen here by default take turns with the kinds.
static void run_shape(shape size, lmk_dtype dtype, kind kind, size_t number) {
    generator g = {.state = number * 31 + (uint64_t)dtype};
    const size_t padding = number % 3;
    test_case t = {.x = take_matrix(size.rows, size.columns, padding, dtype)};
    fill_x(&g, &t.x, number);
    matrix mask = take_matrix(2, size.columns, 3, LMK_FLOAT32);
    fill(&g, &mask);
    ((float *)mask.data)[size.columns / 2] = -INFINITY;
    int64_t *const lengths = take(size.rows * sizeof *lengths);
    for (size_t i = 0; i < size.rows; i++)
        lengths[i] = (int64_t)(i % 4 == 0 ? size.columns : next_index(&g, size.columns + 1));
    const lmk_softmax problem = {.dtype = dtype,
                                 .rows = size.rows,
                                 .columns = size.columns,
                                 .scale = kind == SCALED || kind == CUT ? 0.7f : 1.0f,
                                 .lengths = kind == CUT ? lengths : 0,
                                 .is_causal = kind == CUT,
                                 .causal_offset = (int64_t)size.columns / 2 - 1,
                                 .rows_per_sequence = 3,
                                 .mask = kind == MASKED ? mask.data : 0,
                                 .mask_stride = mask.stride,
                                 .mask_rows = 2};
    if (kind == CUT) cut(&t.x, lengths, &problem);
    for (int f = LMK_SOFTMAX; f <= LMK_LOG_STABLE_MAX; f++) {
        for (int a = LMK_SOFTMAX_AUTOMATIC; a <= LMK_SOFTMAX_TWO_PASS; a++) {
            if (a > 0 && (f >= LMK_STABLE_MAX || (a + (int)number) % 3 != (int)kind % 3)) continue;
            t.softmax = problem;
            t.softmax.function = (lmk_row_function)f;
            t.softmax.algorithm = (lmk_softmax_algorithm)a;
            t.forward = t.backward = 0;
            snprintf(t.name, sizeof t.name, "%s-%s-%s-%s-%zux%zu", functions[f], algorithms[a],
                     dtype_name(dtype), kinds[kind], size.rows, size.columns);
            open_case(&t, padding);
            fill(&g, &t.dy);
            run_every_way(&t);
            close_case(&t);
        }
    }
    free_matrix(&t.x);
    free_matrix(&mask);
    free(lengths);
}

/// Outputs larger than caches are written past them, from the first line on that begins in a row.
static void run_streaming(lmk_dtype dtype) {
    generator g = {.state = 5};
    const size_t columns = 2051, rows = ((size_t)32 << 20) / lmk_dtype_size(dtype) / columns + 1;
    matrix x = take_matrix(rows, columns, 1, dtype), y = take_matrix(rows, columns, 3, dtype);
    float *const values = take_floats(&g, columns + rows, 4);
    for (size_t i = 0; i < rows; i++) put_row(&x, i, values + i);
    for (int f = LMK_SOFTMAX; f <= LMK_LOG_SOFTMAX; f++) {
        // Every storage type streams in the same way, and either function streams all of them.
        if (dtype == (f == LMK_SOFTMAX ? LMK_FLOAT16 : LMK_BFLOAT16)) continue;
        test_case t = {.softmax = {.function = (lmk_row_function)f,
                                   .dtype = dtype,
                                   .rows = rows,
                                   .columns = columns,
                                   .scale = 1}};
        snprintf(t.name, sizeof t.name, "%s-streaming-%s", functions[f], dtype_name(dtype));
        t.log_sum_exp = take(rows * sizeof *t.log_sum_exp);
        run_forward(&t, &x, &y, "forward", 3);
        put_hash(t.name, "forward", t.forward);
        free(t.log_sum_exp);
        // A row that is written past the caches has the bits of one that is not.
        const uint64_t streamed = hash_of(matrix_row(&y, 1), columns * lmk_dtype_size(dtype));
        matrix row = take_matrix(1, columns, 0, dtype);
        t.softmax.rows = 1;
        t.softmax.x = matrix_row(&x, 1);
        t.softmax.x_stride = columns;
        const size_t size = lmk_softmax_workspace_size(&t.softmax);
        void *const workspace = take(size);
        lmk_error error = {0};
        expect_ok(t.name,
                  lmk_softmax_forward(&t.softmax, row.data, columns, 0, workspace, size, &error),
                  &error);
        if (hash_of(row.data, columns * lmk_dtype_size(dtype)) != streamed)
            complain("%s: one row has other bits", t.name);
        free(workspace);
        free_matrix(&row);
    }
    free(values);
    free_matrix(&x);
    free_matrix(&y);
}

void run_softmax_seeded(void) {
    size_t number = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int is_long = shapes[i].columns > LONG_COLUMNS;
        for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++)
            for (int kind = is_long ? (int)i % 2 : 0; kind < KINDS; kind += is_long ? 2 : 1)
                run_shape(shapes[i], (lmk_dtype)dtype, (enum kind)kind, number++);
    }
    for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++) run_streaming((lmk_dtype)dtype);
}

// ---- Conformance files

static lmk_dtype dtype_of(const tensor *t) {
    return t->dtype[0] == 'B'             ? LMK_BFLOAT16
           : strcmp(t->dtype, "F16") == 0 ? LMK_FLOAT16
                                          : LMK_FLOAT32;
}

/// The tensor's memory as a matrix that is freed with it.
static matrix matrix_of(const tensor *t, size_t rows, size_t columns) {
    return (matrix){.memory = t->data,
                    .data = t->data,
                    .rows = rows,
                    .columns = columns,
                    .stride = columns,
                    .dtype = dtype_of(t)};
}

static void check_matrix(const safetensors *file, const test_case *t, const char *name,
                         const matrix *m) {
    float *const values = take(m->rows * m->columns * sizeof *values);
    lmk_error error = {0};
    for (size_t i = 0; i < m->rows; i++) {
        expect_ok("convert",
                  lmk_convert(matrix_row(m, i), m->dtype, values + m->columns * i, LMK_FLOAT32,
                              m->columns, &error),
                  &error);
    }
    safetensors_check(file, t->name, name, values);
    free(values);
}

void run_softmax_file(const safetensors *file, const char *name) {
    tensor x = safetensors_tensor(file, "in.x"), dy = safetensors_tensor(file, "cotangent.y");
    const lmk_row_function function = safetensors_is(file, "log_sum_exp")   ? LMK_LOG_SUM_EXP
                                      : safetensors_is(file, "log_softmax") ? LMK_LOG_SOFTMAX
                                                                            : LMK_SOFTMAX;
    for (int a = LMK_SOFTMAX_AUTOMATIC; a <= LMK_SOFTMAX_TWO_PASS; a++) {
        test_case t = {
            .softmax = {.function = function,
                        .algorithm = (lmk_softmax_algorithm)a,
                        .dtype = dtype_of(&x),
                        .rows = x.shape[0],
                        .columns = x.shape[1],
                        .scale = (float)safetensors_number(file, "attributes", "scale", 1)}};
        snprintf(t.name, sizeof t.name, "%s-%s", name, algorithms[a]);
        t.x = take_matrix(x.shape[0], x.shape[1], 0, dtype_of(&x));
        matrix source = matrix_of(&x, x.shape[0], x.shape[1]);
        memcpy(t.x.data, source.data, x.count * lmk_dtype_size(source.dtype));
        open_case(&t, 0);
        if (dy.data) memcpy(t.dy.data, dy.data, dy.count * lmk_dtype_size(dtype_of(&dy)));
        run_every_way(&t);
        check_matrix(file, &t, "out.y", &t.y);
        if (dy.data) check_matrix(file, &t, "grad.x", &t.dx);
        close_case(&t);
        free_matrix(&t.x);
    }
    free(x.data);
    free(dy.data);
}
