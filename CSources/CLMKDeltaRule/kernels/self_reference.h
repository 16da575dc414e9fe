// One token of the self-referential weight matrix, and its way back. Included inside a region,
// after products.h and lmk_math.h.
//
// Matrices lie transposed, [dim][stride], so that W x is a chain over the entries of x for each of
// 16 rows in lanes, and nothing is added across lanes.

/// Most vectors of rows in one pass over a matrix: sums of all of them stay in registers.
#if defined(LMK_AVX512)
#define SWEEP_VECTORS 8
#define SWEEP_CASES(...)                                                                           \
    SWEEP_CASE(8, __VA_ARGS__)                                                                     \
    SWEEP_CASE(7, __VA_ARGS__)                                                                     \
    SWEEP_CASE(6, __VA_ARGS__)                                                                     \
    SWEEP_CASE(5, __VA_ARGS__)                                                                     \
    SWEEP_CASE(4, __VA_ARGS__)                                                                     \
    SWEEP_CASE(3, __VA_ARGS__)                                                                     \
    SWEEP_CASE(2, __VA_ARGS__)
#else
#define SWEEP_VECTORS 3
#define SWEEP_CASES(...)                                                                           \
    SWEEP_CASE(3, __VA_ARGS__)                                                                     \
    SWEEP_CASE(2, __VA_ARGS__)
#endif

#define SWEEP_CASE(COUNT, ...)                                                                     \
    case COUNT: {                                                                                  \
        enum { V = COUNT };                                                                        \
        __VA_ARGS__;                                                                               \
    } break;

/// Runs the last argument for all vectors of rows of `end` entries, in passes of about as many:
/// `at` is the first entry of each and `V` its vectors, a constant.
#define EACH_SWEEP(end, descends, ...)                                                             \
    do {                                                                                           \
        const size_t vectors = (end) / LMK_LANES,                                                  \
                     passes = (vectors + SWEEP_VECTORS - 1) / SWEEP_VECTORS;                       \
        for (size_t count = 0; count < passes; count++) {                                          \
            const size_t pass = (descends) ? passes - 1 - count : count,                           \
                         first = vectors * pass / passes, at = LMK_LANES * first;                  \
            switch (vectors * (pass + 1) / passes - first) {                                       \
                SWEEP_CASES(__VA_ARGS__)                                                           \
            default: {                                                                             \
                enum { V = 1 };                                                                    \
                __VA_ARGS__;                                                                       \
            } break;                                                                               \
            }                                                                                      \
        }                                                                                          \
    } while (0)

#define EACH_OF(V)                                                                                 \
    LMK_UNROLL                                                                                     \
    for (size_t v = 0; v < V; v++)

// ---- Matrices

static void load_matrix(const self_reference_sizes *sizes, const float *from, float *to) {
    const self_reference_sizes s = *sizes;
    for (size_t row = 0; row < s.stride; row += 8) {
        for (size_t d = 0; d < s.dim; d += LMK_LANES) {
            const size_t steps = s.dim - d;
            f32x16 rows[8];
            LMK_UNROLL
            for (size_t i = 0; i < 8; i++) {
                rows[i] = row + i < s.rows
                              ? load_entries(from + s.dim * (row + i), LMK_FLOAT32, d, steps)
                              : splat(0);
            }
            float *const at = to + s.stride * d + row;
            if (steps >= LMK_LANES) {
                transpose_lanes(rows, 8, at, s.stride);
                continue;
            }
            float last[LMK_LANES][8];
            transpose_lanes(rows, 8, last[0], 8);
            for (size_t step = 0; step < steps; step++) {
                for (size_t i = 0; i < 8; i++) at[s.stride * step + i] = last[step][i];
            }
        }
    }
}

static void store_matrix(const self_reference_sizes *sizes, const float *from, float *to) {
    const self_reference_sizes s = *sizes;
    for (size_t row = 0; row < s.rows; row += LMK_LANES) {
        for (size_t d = 0; d < s.dim; d += LMK_LANES) {
            const size_t steps = s.dim - d;
            float turned[LMK_LANES][LMK_LANES];
            for (size_t half = 0; half < LMK_LANES; half += 8) {
                f32x16 columns[8];
                LMK_UNROLL
                for (size_t i = 0; i < 8; i++) {
                    columns[i] =
                        half + i < steps ? load(from + s.stride * (d + half + i) + row) : splat(0);
                }
                transpose_lanes(columns, 8, turned[0] + half, LMK_LANES);
            }
            for (size_t i = 0; i < LMK_LANES && row + i < s.rows; i++)
                store_entries(to + s.dim * (row + i), LMK_FLOAT32, d, load(turned[i]), steps);
        }
    }
}

/// to = matrix x
static void multiply_row(const self_reference_sizes *sizes, const float *matrix, const float *x,
                         float *to) {
    const size_t dim = sizes->dim, stride = sizes->stride;
    EACH_SWEEP(stride, 1, {
        f32x16 sum[V];
        EACH_OF(V) sum[v] = splat(0);
        for (size_t d = 0; d < dim; d++) {
            const f32x16 factor = splat(x[d]);
            const float *const row = matrix + stride * d + at;
            EACH_OF(V) sum[v] = factor * load(row + LMK_LANES * v) + sum[v];
        }
        EACH_OF(V) store(to + at + LMK_LANES * v, sum[v]);
    });
}

/// matrix += change key^T, and to = matrix next.
static void write_and_multiply(const self_reference_sizes *sizes, const float *change,
                               const float *key, const float *next, float *matrix, float *to) {
    const size_t dim = sizes->dim, stride = sizes->stride;
    EACH_SWEEP(stride, 0, {
        f32x16 added[V];
        f32x16 sum[V];
        EACH_OF(V) added[v] = load(change + at + LMK_LANES * v);
        EACH_OF(V) sum[v] = splat(0);
        for (size_t d = 0; d < dim; d++) {
            const f32x16 factor = splat(key[d]);
            const f32x16 read = splat(next[d]);
            float *const row = matrix + stride * d + at;
            EACH_OF(V) {
                const f32x16 entry = factor * added[v] + load(row + LMK_LANES * v);
                store(row + LMK_LANES * v, entry);
                sum[v] = read * entry + sum[v];
            }
        }
        EACH_OF(V) store(to + at + LMK_LANES * v, sum[v]);
    });
}

/// matrix += change key^T
static void write_change(const self_reference_sizes *sizes, const float *change, const float *key,
                         float *matrix) {
    const size_t dim = sizes->dim, stride = sizes->stride;
    for (size_t d = 0; d < dim; d++) {
        const f32x16 factor = splat(key[d]);
        float *const row = matrix + stride * d;
        for (size_t at = 0; at < stride; at += LMK_LANES)
            store(row + at, factor * load(change + at) + load(row + at));
    }
}

/// The gradient of a token's W from that of the W after it.
static void write_gradient(const self_reference_sizes *sizes, const self_reference_token *token,
                           const self_reference_gradient *g, float *gradient) {
    const size_t dim = sizes->dim, stride = sizes->stride;
    for (size_t d = 0; d < dim; d++) {
        const f32x16 direction = splat(token->direction[d]), input = splat(token->input[d]);
        float *const row = gradient + stride * d;
        for (size_t at = 0; at < stride; at += LMK_LANES) {
            const f32x16 entry = direction * load(g->change + at) + load(row + at);
            store(row + at, input * load(g->produced + at) + entry);
        }
    }
}

/// The same, and what the token before reads of it: g->change = gradient key, and in g->sums
/// gradient^T change lane by lane.
static void write_and_read_gradient(const self_reference_sizes *sizes,
                                    const self_reference_token *after,
                                    const self_reference_token *token,
                                    const self_reference_gradient *g, float *gradient) {
    const size_t dim = sizes->dim, stride = sizes->stride;
    EACH_SWEEP(stride, 0, {
        f32x16 change[V];
        f32x16 produced[V];
        f32x16 written[V];
        f32x16 sum[V];
        EACH_OF(V) change[v] = load(g->change + at + LMK_LANES * v);
        EACH_OF(V) produced[v] = load(g->produced + at + LMK_LANES * v);
        EACH_OF(V) written[v] = load(token->change + at + LMK_LANES * v);
        EACH_OF(V) sum[v] = splat(0);
        for (size_t d = 0; d < dim; d++) {
            const f32x16 direction = splat(after->direction[d]), input = splat(after->input[d]);
            const f32x16 key = splat(token->key[d]);
            float *const row = gradient + stride * d + at;
            f32x16 across = at == 0 ? splat(0) : load(g->sums + LMK_LANES * d);
            EACH_OF(V) {
                const f32x16 before = direction * change[v] + load(row + LMK_LANES * v);
                const f32x16 entry = input * produced[v] + before;
                store(row + LMK_LANES * v, entry);
                sum[v] = key * entry + sum[v];
                across = entry * written[v] + across;
            }
            store(g->sums + LMK_LANES * d, across);
        }
        EACH_OF(V) store(g->change + at + LMK_LANES * v, sum[v]);
    });
}

/// to[i] = <row i, x>, rows lying `step` floats apart, in 16 lanes that are added at the end; four
/// rows at a time.
static void multiply_rows(const float *rows, size_t step, size_t count, const float *x,
                          size_t length, float *to) {
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        f32x16 sum[4];
        EACH_OF(4) sum[v] = splat(0);
        for (size_t at = 0; at < length; at += LMK_LANES) {
            const f32x16 factor = load(x + at);
            EACH_OF(4) sum[v] = load(rows + step * (i + v) + at) * factor + sum[v];
        }
        EACH_OF(4) to[i + v] = reduce_sum(sum[v]);
    }
    for (; i < count; i++) {
        f32x16 sum = splat(0);
        for (size_t at = 0; at < length; at += LMK_LANES)
            sum = load(rows + step * i + at) * load(x + at) + sum;
        to[i] = reduce_sum(sum);
    }
}

/// to = W^T x
static void multiply_transposed(const self_reference_sizes *sizes, const self_reference_matrix *w,
                                const float *x, float *to) {
    float parts[SELF_REFERENCE_WRITES];
    multiply_rows(w->matrix, sizes->stride, sizes->dim, x, sizes->stride, to);
    multiply_rows(w->changes, w->step, w->count, x, sizes->stride, parts);
    for (size_t d = 0; d < sizes->dim; d += LMK_LANES) {
        f32x16 sum = load(to + d);
        for (size_t i = 0; i < w->count; i++)
            sum = load(w->keys + w->step * i + d) * parts[i] + sum;
        store(to + d, sum);
    }
}

// ---- Rows

/// The lanes below `count` of a vector, the others `other`.
LMK_INLINE f32x16 keep_first(f32x16 x, size_t count, float other) {
    return choose(lane_numbers() < (int)(count < LMK_LANES ? count : LMK_LANES), x, splat(other));
}

/// to = softmax(x) of `count` entries, 0 up to a multiple of 16. Lanes are added at the end.
static void softmax_entries(const float *x, size_t count, float *to) {
    f32x16 largest = splat(-__builtin_inff());
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const f32x16 part = load_entries(x, LMK_FLOAT32, i, count - i);
        largest = max_of(keep_first(part, count - i, -__builtin_inff()), largest);
    }
    const float most = reduce_max(largest);
    f32x16 sum = splat(0);
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const f32x16 part = load_entries(x, LMK_FLOAT32, i, count - i);
        const f32x16 e = keep_first(vexp_nonpositive(part - most), count - i, 0);
        store(to + i, e);
        sum = sum + e;
    }
    const f32x16 total = splat(reduce_sum(sum));
    for (size_t i = 0; i < count; i += LMK_LANES) store(to + i, load(to + i) / total);
}

/// to = phi (g - <phi, g>), `count` entries. to may be g.
static void softmax_gradient(const float *phi, const float *g, size_t count, float *to) {
    f32x16 sum = splat(0);
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const f32x16 part = load_entries(g, LMK_FLOAT32, i, count - i);
        sum = load_entries(phi, LMK_FLOAT32, i, count - i) * part + sum;
    }
    const f32x16 mean = splat(reduce_sum(sum));
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const f32x16 part = load_entries(g, LMK_FLOAT32, i, count - i);
        const f32x16 from_mean = part - mean;
        store_entries(to, LMK_FLOAT32, i, load_entries(phi, LMK_FLOAT32, i, count - i) * from_mean,
                      count - i);
    }
}

LMK_INLINE void load_input(const self_reference_sizes *s, const void *x, lmk_dtype dtype,
                           int has_softmax, float *to) {
    for (size_t i = 0; i < s->width; i += LMK_LANES)
        store(to + i, load_entries(x, dtype, i, s->dim - i));
    if (has_softmax) softmax_entries(to, s->dim, to);
}

LMK_INLINE void store_row_as(const float *from, size_t count, void *to, lmk_dtype dtype) {
    for (size_t i = 0; i < count; i += LMK_LANES)
        store_entries(to, dtype, i, load_entries(from, LMK_FLOAT32, i, count - i), count - i);
}

/// Where each block of rows begins, and the last ends.
LMK_INLINE void find_blocks(const self_reference_sizes *s, size_t blocks[5]) {
    blocks[0] = 0;
    blocks[1] = s->outputs;
    blocks[2] = s->outputs + s->dim;
    blocks[3] = s->outputs + 2 * s->dim;
    blocks[4] = s->rows;
}

static void self_reference_step(const self_reference_sizes *s, const self_reference_token *t,
                                float *matrix, const float *next_input, float *next) {
    size_t blocks[5];
    find_blocks(s, blocks);
    softmax_entries(t->produced + blocks[1], s->dim, t->key);
    softmax_entries(t->produced + blocks[2], s->dim, t->query);
    for (size_t i = 0; i < s->width; i += LMK_LANES)
        store(t->direction + i, load(t->query + i) - load(t->key + i));
    float rates[LMK_LANES];
    store(rates, vsigmoid(load_first(t->produced + blocks[3], 4)));
    for (size_t b = 0; b < 4; b++) {
        for (size_t i = blocks[b]; i < blocks[b + 1]; i++) t->rates[i] = rates[b];
    }
    for (size_t i = s->rows; i < s->stride; i++) t->rates[i] = 0;
    multiply_row(s, matrix, t->direction, t->difference);
    for (size_t i = 0; i < s->stride; i += LMK_LANES)
        store(t->change + i, load(t->rates + i) * load(t->difference + i));
    if (next_input) write_and_multiply(s, t->change, t->key, next_input, matrix, next);
    else write_change(s, t->change, t->key, matrix);
}

LMK_INLINE void step_back(const self_reference_sizes *s, const self_reference_token *t,
                          const self_reference_token *after, const self_reference_gradient *g,
                          const self_reference_matrix *matrix, float *gradient, const void *dy,
                          lmk_dtype dtype, int has_softmax, void *dx) {
    size_t blocks[5];
    find_blocks(s, blocks);
    if (after) {
        write_and_read_gradient(s, after, t, g, gradient);
        for (size_t d = 0; d < s->dim; d++) g->key[d] = reduce_sum(load(g->sums + LMK_LANES * d));
    } else {
        multiply_row(s, gradient, t->key, g->change);
        multiply_rows(gradient, s->stride, s->dim, t->change, s->stride, g->key);
    }
    // What rows of dr are not written here are those of padding.
    for (size_t i = 0; i < s->stride; i += LMK_LANES) store(g->produced + i, splat(0));
    for (size_t b = 0; b < 4; b++) {
        f32x16 sum = splat(0);
        const size_t count = blocks[b + 1] - blocks[b];
        for (size_t i = 0; i < count; i += LMK_LANES) {
            const f32x16 of_change = load_entries(g->change + blocks[b], LMK_FLOAT32, i, count - i);
            sum = load_entries(t->difference + blocks[b], LMK_FLOAT32, i, count - i) * of_change +
                  sum;
        }
        const float rate = t->rates[blocks[b]], slope = rate * (1 - rate);
        g->produced[blocks[3] + b] = reduce_sum(sum) * slope;
    }
    for (size_t i = 0; i < s->stride; i += LMK_LANES)
        store(g->change + i, load(t->rates + i) * load(g->change + i));
    multiply_transposed(s, matrix, g->change, g->query);
    for (size_t i = 0; i < s->dim; i += LMK_LANES)
        store(g->key + i, load(g->key + i) - load(g->query + i));
    for (size_t i = 0; i < s->outputs; i += LMK_LANES) {
        const size_t count = s->outputs - i;
        store_entries(g->produced, LMK_FLOAT32, i, load_entries(dy, dtype, i, count), count);
    }
    softmax_gradient(t->key, g->key, s->dim, g->produced + blocks[1]);
    softmax_gradient(t->query, g->query, s->dim, g->produced + blocks[2]);
    if (!dx) return;
    multiply_transposed(s, matrix, g->produced, g->input);
    if (has_softmax) softmax_gradient(t->input, g->input, s->dim, g->input);
    store_row_as(g->input, s->dim, dx, dtype);
}

#define DEFINE_STEPS(SUFFIX, DTYPE)                                                                \
    static void load_input_##SUFFIX(const self_reference_sizes *s, const void *x, int has_softmax, \
                                    float *to) {                                                   \
        load_input(s, x, DTYPE, has_softmax, to);                                                  \
    }                                                                                              \
    static void store_row_##SUFFIX(const float *from, size_t count, void *to) {                    \
        store_row_as(from, count, to, DTYPE);                                                      \
    }                                                                                              \
    static void step_back_##SUFFIX(const self_reference_sizes *s, const self_reference_token *t,   \
                                   const self_reference_token *after,                              \
                                   const self_reference_gradient *g,                               \
                                   const self_reference_matrix *matrix, float *gradient,           \
                                   const void *dy, int has_softmax, void *dx) {                    \
        step_back(s, t, after, g, matrix, gradient, dy, DTYPE, has_softmax, dx);                   \
    }
DEFINE_STEPS(f32, LMK_FLOAT32)
DEFINE_STEPS(bf16, LMK_BFLOAT16)
DEFINE_STEPS(f16, LMK_FLOAT16)

#define SELF_REFERENCE_KERNELS                                                                     \
    {                                                                                              \
        .load_matrix = load_matrix, .store_matrix = store_matrix, .add = add_floats,               \
        .load_input = EACH_STORAGE(load_input), .store_row = EACH_STORAGE(store_row),              \
        .multiply = multiply_row, .step = self_reference_step,                                     \
        .step_back = EACH_STORAGE(step_back), .write_gradient = write_gradient,                    \
    }
