// What Householder products compute beside tiles: vectors in and out of panels, the triangular
// inverses of a block, sums. Included inside a region, after lmk_half.h and lmk_transpose.h.

LMK_INLINE size_t element_size(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// 16 entries from entry i on, of which `count` are there; the others are 0.
LMK_INLINE f32x16 load_entries(const void *row, lmk_dtype dtype, size_t i, size_t count) {
    return count >= LMK_LANES ? load_as(row, dtype, i) : load_first_as(row, dtype, i, count);
}

LMK_INLINE void store_entries(void *row, lmk_dtype dtype, size_t i, f32x16 v, size_t count) {
    if (count >= LMK_LANES) store_as(row, dtype, i, v);
    else store_first_as(row, dtype, i, v, count);
}

LMK_INLINE void *row_of(const void *data, lmk_dtype dtype, size_t stride, size_t row) {
    return (char *)(uintptr_t)data + element_size(dtype) * stride * row;
}

// ---- Vectors

/// Rows of a matrix ahead of the one that is read that are fetched: they may lie a page apart.
#define ROWS_AHEAD ((size_t)8)

/// 16 entries of each row at a time, `count` of them in all, from the matrix to panels or back.
#define EACH_PANEL_PART(...)                                                                       \
    for (size_t d = 0; d < p.dim; d++) {                                                           \
        void *const row = row_of(p.data, dtype, p.stride, d), *const ahead =                       \
                                                                  row_of(p.data, dtype, p.stride,  \
                                                                         d + ROWS_AHEAD);          \
        for (size_t i = 0; i < p.count; i += LMK_LANES) {                                          \
            float *const part = p.panel + p.dim * (i / PANEL_VECTORS * PANEL_VECTORS) +            \
                                PANEL_VECTORS * d + i % PANEL_VECTORS;                             \
            const size_t count = p.count - i;                                                      \
            __builtin_prefetch((const char *)ahead + element_size(dtype) * i);                     \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    }

LMK_INLINE void load_columns(const vector_panel *v, lmk_dtype dtype) {
    const vector_panel p = *v;
    EACH_PANEL_PART({
        store(part, load_entries(row, dtype, i, count));
        // The last panel's second half.
        if (i % PANEL_VECTORS == 0 && count <= LMK_LANES) store(part + LMK_LANES, splat(0));
    })
}

LMK_INLINE void store_columns(const vector_panel *v, lmk_dtype dtype) {
    const vector_panel p = *v;
    EACH_PANEL_PART(store_entries(row, dtype, i, load(part), count))
}

/// Vectors `lane` ..< lane + 8, 16 of their elements at a time.
LMK_INLINE void load_eight_rows(const vector_panel *v, lmk_dtype dtype, size_t lane) {
    const vector_panel p = *v;
    for (size_t d = 0; d < p.dim; d += LMK_LANES) {
        const size_t steps = p.dim - d;
        f32x16 rows[8];
        LMK_UNROLL
        for (size_t i = 0; i < 8; i++) {
            rows[i] = lane + i < p.count
                          ? load_entries(row_of(p.data, dtype, p.stride, lane + i), dtype, d, steps)
                          : splat(0);
        }
        float *const to = p.panel + p.dim * (lane / PANEL_VECTORS * PANEL_VECTORS) +
                          PANEL_VECTORS * d + lane % PANEL_VECTORS;
        if (steps >= LMK_LANES) {
            transpose_lanes(rows, 8, to, PANEL_VECTORS);
            continue;
        }
        float last[LMK_LANES][8];
        transpose_lanes(rows, 8, last[0], 8);
        for (size_t s = 0; s < steps; s++) {
            for (size_t i = 0; i < 8; i++) to[PANEL_VECTORS * s + i] = last[s][i];
        }
    }
}

LMK_INLINE void load_rows(const vector_panel *v, lmk_dtype dtype) {
    for (size_t lane = 0; lane < v->count || lane % PANEL_VECTORS > 0; lane += 8)
        load_eight_rows(v, dtype, lane);
}

/// 16 elements of 16 vectors at a time.
LMK_INLINE void store_rows(const vector_panel *v, lmk_dtype dtype) {
    const vector_panel p = *v;
    for (size_t lane = 0; lane < p.count; lane += LMK_LANES) {
        const float *const panel =
            p.panel + p.dim * (lane / PANEL_VECTORS * PANEL_VECTORS) + lane % PANEL_VECTORS;
        for (size_t d = 0; d < p.dim; d += LMK_LANES) {
            const size_t steps = p.dim - d;
            float turned[LMK_LANES][LMK_LANES];
            for (size_t half = 0; half < LMK_LANES; half += 8) {
                f32x16 columns[8];
                LMK_UNROLL
                for (size_t i = 0; i < 8; i++) {
                    columns[i] =
                        half + i < steps ? load(panel + PANEL_VECTORS * (d + half + i)) : splat(0);
                }
                transpose_lanes(columns, 8, turned[0] + half, LMK_LANES);
            }
            for (size_t i = 0; i < LMK_LANES && lane + i < p.count; i++) {
                store_entries(row_of(p.data, dtype, p.stride, lane + i), dtype, d, load(turned[i]),
                              steps);
            }
        }
    }
}

LMK_INLINE void widen(const void *from, lmk_dtype dtype, size_t stride, size_t rows, size_t columns,
                      float *to, size_t to_stride) {
    for (size_t i = 0; i < rows; i++) {
        const void *const row = row_of(from, dtype, stride, i);
        for (size_t j = 0; j < to_stride; j += LMK_LANES) {
            store(to + to_stride * i + j,
                  j < columns ? load_entries(row, dtype, j, columns - j) : splat(0));
        }
    }
}

LMK_INLINE void narrow(const float *from, size_t from_stride, size_t rows, size_t columns, void *to,
                       lmk_dtype dtype, size_t stride) {
    for (size_t i = 0; i < rows; i++) {
        void *const row = row_of(to, dtype, stride, i);
        for (size_t j = 0; j < columns; j += LMK_LANES)
            store_entries(row, dtype, j, load(from + from_stride * i + j), columns - j);
    }
}

#define DEFINE_FOR_DTYPE(SUFFIX, DTYPE)                                                            \
    static void load_columns_##SUFFIX(const vector_panel *v) { load_columns(v, DTYPE); }           \
    static void store_columns_##SUFFIX(const vector_panel *v) { store_columns(v, DTYPE); }         \
    static void load_rows_##SUFFIX(const vector_panel *v) { load_rows(v, DTYPE); }                 \
    static void store_rows_##SUFFIX(const vector_panel *v) { store_rows(v, DTYPE); }               \
    static void widen_##SUFFIX(const void *from, size_t stride, size_t rows, size_t columns,       \
                               float *to, size_t to_stride) {                                      \
        widen(from, DTYPE, stride, rows, columns, to, to_stride);                                  \
    }                                                                                              \
    static void narrow_##SUFFIX(const float *from, size_t from_stride, size_t rows,                \
                                size_t columns, void *to, size_t stride) {                         \
        narrow(from, from_stride, rows, columns, to, DTYPE, stride);                               \
    }
DEFINE_FOR_DTYPE(f32, LMK_FLOAT32)
DEFINE_FOR_DTYPE(bf16, LMK_BFLOAT16)
DEFINE_FOR_DTYPE(f16, LMK_FLOAT16)

// ---- Blocks

/// From the last row to the first:
///
///     later_i = e_i - sum_{l > i} gram_il beta_l later_l
///     earlier_i = e_i - beta_i sum_{l > i} gram_il earlier_l
///
/// A row that is done is taken from those above it, so that sums descend in l and do not wait for
/// each other.
LMK_INLINE void invert_rows(const float *gram, const float *beta, size_t count, int is_later,
                            size_t vectors, float *to) {
    for (size_t i = 0; i < count; i++) {
        for (size_t v = 0; v < vectors; v++)
            store(to + BLOCK_FACTORS * i + LMK_LANES * v, splat(0));
        to[BLOCK_FACTORS * i + i] = 1;
    }
    for (size_t l = count; l-- > 1;) {
        f32x16 done[BLOCK_FACTORS / LMK_LANES];
        LMK_UNROLL
        for (size_t v = 0; v < vectors; v++) done[v] = load(to + BLOCK_FACTORS * l + LMK_LANES * v);
        for (size_t i = 0; i < l; i++) {
            float *const row = to + BLOCK_FACTORS * i;
            const f32x16 factor = splat(-gram[BLOCK_FACTORS * i + l] * beta[is_later ? l : i]);
            LMK_UNROLL
            for (size_t v = 0; v < vectors; v++)
                store(row + LMK_LANES * v, factor * done[v] + load(row + LMK_LANES * v));
        }
    }
}

LMK_INLINE void invert_block(const float *gram, const float *beta, size_t count, int is_later,
                             float *to) {
    if (count <= LMK_LANES) invert_rows(gram, beta, count, is_later, 1, to);
    else invert_rows(gram, beta, count, is_later, 2, to);
}

static void invert(const float *gram, const float *beta, size_t count, float *later,
                   float *earlier) {
    if (later) invert_block(gram, beta, count, 1, later);
    if (earlier) invert_block(gram, beta, count, 0, earlier);
}

static void scale_factors(const float *x, const float *beta, size_t count, float *to) {
    for (size_t i = 0; i < count; i++) {
        const f32x16 factor = splat(-beta[i]);
        store(to + PANEL_VECTORS * i, factor * load(x + PANEL_VECTORS * i));
        store(to + PANEL_VECTORS * i + LMK_LANES, factor * load(x + PANEL_VECTORS * i + LMK_LANES));
    }
}

static void transpose_factors(const float *x, size_t count, float *to) {
    for (size_t i = 0; i < (count + 15) / 16 * 16; i += 8) {
        for (size_t half = 0; half < PANEL_VECTORS; half += LMK_LANES) {
            f32x16 rows[8];
            LMK_UNROLL
            for (size_t j = 0; j < 8; j++)
                rows[j] = i + j < count ? load(x + PANEL_VECTORS * (i + j) + half) : splat(0);
            transpose_lanes(rows, 8, to + BLOCK_FACTORS * half + i, BLOCK_FACTORS);
        }
    }
}

static void add_dots(const float *x, const float *y, size_t count, float *sums) {
    for (size_t i = 0; i < count; i++, x += PANEL_VECTORS, y += PANEL_VECTORS) {
        const f32x16 first = load(x) * load(y) + load(sums + LMK_LANES * i);
        store(sums + LMK_LANES * i, load(x + LMK_LANES) * load(y + LMK_LANES) + first);
    }
}

static void negated_totals(const float *sums, size_t count, float *to) {
    for (size_t i = 0; i < count; i++) to[i] = -reduce_sum(load(sums + LMK_LANES * i));
}

static void add_floats(const float *from, float *to, size_t count) {
    size_t i = 0;
    for (; i + LMK_LANES <= count; i += LMK_LANES) store(to + i, load(to + i) + load(from + i));
    if (i < count) {
        const f32x16 sum = load_first(to + i, count - i) + load_first(from + i, count - i);
        store_first(to + i, sum, count - i);
    }
}

static void turn_sums(const float *from, size_t rows, size_t columns, float *to, size_t to_stride) {
    for (size_t row = 0; row < rows; row += 8) {
        for (size_t column = 0; column < columns; column += LMK_LANES) {
            f32x16 lanes[8];
            float turned[LMK_LANES][8];
            LMK_UNROLL
            for (size_t i = 0; i < 8; i++)
                lanes[i] =
                    row + i < rows ? load(from + BLOCK_FACTORS * (row + i) + column) : splat(0);
            transpose_lanes(lanes, 8, turned[0], 8);
            for (size_t s = 0; s < LMK_LANES && column + s < columns; s++) {
                for (size_t i = 0; i < 8 && row + i < rows; i++)
                    to[to_stride * (column + s) + row + i] = turned[s][i];
            }
        }
    }
}

static void mirror_pairs(const float *from, size_t count, int is_lower, float *to) {
    for (size_t i = 0; i < count; i++) {
        to[BLOCK_FACTORS * i + i] = 0;
        for (size_t j = i + 1; j < count; j++) {
            const float pair = from[is_lower ? BLOCK_FACTORS * j + i : BLOCK_FACTORS * i + j];
            to[BLOCK_FACTORS * i + j] = pair;
            to[BLOCK_FACTORS * j + i] = pair;
        }
    }
}

#define EACH_STORAGE(kernel)                                                                       \
    { kernel##_f32, kernel##_bf16, kernel##_f16 }

#define PRODUCT_KERNELS                                                                            \
    {                                                                                              \
        .load_columns = EACH_STORAGE(load_columns), .store_columns = EACH_STORAGE(store_columns),  \
        .load_rows = EACH_STORAGE(load_rows), .store_rows = EACH_STORAGE(store_rows),              \
        .widen = EACH_STORAGE(widen), .narrow = EACH_STORAGE(narrow), .invert = invert,            \
        .scale = scale_factors, .transpose = transpose_factors, .dot = add_dots,                   \
        .total = negated_totals, .add = add_floats, .turn = turn_sums, .mirror = mirror_pairs,     \
    }
