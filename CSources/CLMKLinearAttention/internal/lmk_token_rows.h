// Rows of tokens between their tensors and panels. Included inside a region.

/// 16 elements of a row from `at` on, those past its width zero.
LMK_INLINE f32x16 load_row(const void *row, lmk_dtype dtype, size_t at, size_t width) {
    return at + LMK_LANES <= width ? load_as(row, dtype, at)
                                   : load_first_as(row, dtype, at, width - at);
}

LMK_INLINE void store_row(void *row, lmk_dtype dtype, size_t at, size_t width, f32x16 x) {
    if (at + LMK_LANES <= width) store_as(row, dtype, at, x);
    else store_first_as(row, dtype, at, x, width - at);
}

LMK_INLINE size_t dtype_bytes(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// One row to panels, multiplied with a factor or not.
LMK_INLINE void load_panel_row(const char *row, lmk_dtype dtype, size_t width, int has_factor,
                               float factor, float *to) {
    const size_t whole = width / LMK_LANES, rest = width % LMK_LANES;
    _Pragma("clang loop unroll_count(4)") for (size_t p = 0; p < whole; p++) {
        const f32x16 y = load_as(row, dtype, LMK_LANES * p);
        store(to + PANEL * p, has_factor ? y * factor : y);
    }
    if (rest == 0) return;
    const f32x16 y = load_first_as(row, dtype, LMK_LANES * whole, rest);
    store(to + PANEL * whole, has_factor ? y * factor : y);
}

/// Tokens begin ..< begin + count, at most 16, with dimension 16 p + d of the i-th at
/// to[256 p + 16 i + d], multiplied with factors[i] if there are any; zero for tokens count ..<
/// tokens.
LMK_INLINE void load_panels_as(const token_rows *x, lmk_dtype dtype, size_t begin, size_t count,
                               size_t tokens, const float *factors, float *to) {
    const size_t width = x->width, step = dtype_bytes(dtype) * x->stride, panels = panels_of(width);
    const char *row = (const char *)x->data + step * begin;
    for (size_t i = 0; i < count; i++, row += step) {
        if (factors) load_panel_row(row, dtype, width, 1, factors[i], to + LMK_LANES * i);
        else load_panel_row(row, dtype, width, 0, 1, to + LMK_LANES * i);
    }
    for (size_t i = count; i < tokens; i++) {
        for (size_t p = 0; p < panels; p++) store(to + PANEL * p + LMK_LANES * i, splat(0));
    }
}

static void load_panels(const token_rows *x, size_t begin, size_t count, size_t tokens,
                        const float *factors, float *to) {
    switch (x->dtype) {
    case LMK_FLOAT32: load_panels_as(x, LMK_FLOAT32, begin, count, tokens, factors, to); break;
    case LMK_BFLOAT16: load_panels_as(x, LMK_BFLOAT16, begin, count, tokens, factors, to); break;
    case LMK_FLOAT16: load_panels_as(x, LMK_FLOAT16, begin, count, tokens, factors, to); break;
    }
}

LMK_INLINE void inverse_lengths_as(const token_rows *x, lmk_dtype dtype, size_t begin, size_t count,
                                   float epsilon, float scale, float *factors) {
    float sums[CHUNK_TOKENS] = {0};
    for (size_t i = 0; i < count; i++) {
        const char *const row =
            (const char *)x->data + dtype_bytes(dtype) * x->stride * (begin + i);
        f32x16 sum = splat(0);
        for (size_t at = 0; at < x->width; at += LMK_LANES) {
            const f32x16 part = load_row(row, dtype, at, x->width);
            sum = part * part + sum;
        }
        sums[i] = reduce_sum(sum);
    }
    store(factors, scale / __builtin_elementwise_sqrt(load(sums) + epsilon));
}

/// factors[i] = scale / |x_i|, or scale itself where rows are taken as they are.
static void row_factors(const token_rows *x, size_t begin, size_t count, const linear_head *head,
                        float scale, float factors[CHUNK_TOKENS]) {
    if (!head->has_unit_length) {
        store(factors, splat(scale));
        return;
    }
    const float epsilon = head->epsilon;
    switch (x->dtype) {
    case LMK_FLOAT32:
        inverse_lengths_as(x, LMK_FLOAT32, begin, count, epsilon, scale, factors);
        break;
    case LMK_BFLOAT16:
        inverse_lengths_as(x, LMK_BFLOAT16, begin, count, epsilon, scale, factors);
        break;
    case LMK_FLOAT16:
        inverse_lengths_as(x, LMK_FLOAT16, begin, count, epsilon, scale, factors);
        break;
    }
}

LMK_INLINE void store_panels_as(const token_rows_out *x, lmk_dtype dtype, size_t begin,
                                size_t count, const float *divisors, const float *from) {
    const size_t width = x->width, bytes = dtype_bytes(dtype), panels = panels_of(width);
    for (size_t i = 0; i < count; i++) {
        char *const row = (char *)x->data + bytes * x->stride * (begin + i);
        for (size_t p = 0; p < panels; p++) {
            const f32x16 y = load(from + PANEL * p + LMK_LANES * i);
            store_row(row, dtype, LMK_LANES * p, width, divisors ? y / divisors[i] : y);
        }
    }
}

/// Panels back to their tensor, divided by divisors[i] where there are some.
static void store_panels(const token_rows_out *x, size_t begin, size_t count, const float *divisors,
                         const float *from) {
    switch (x->dtype) {
    case LMK_FLOAT32: store_panels_as(x, LMK_FLOAT32, begin, count, divisors, from); break;
    case LMK_BFLOAT16: store_panels_as(x, LMK_BFLOAT16, begin, count, divisors, from); break;
    case LMK_FLOAT16: store_panels_as(x, LMK_FLOAT16, begin, count, divisors, from); break;
    }
}

/// Panels of values that are taken together: two lines of a row. More at a time were slower where
/// the rows come from memory.
#define VALUE_PANELS 2

/// Columns from panel `column` on, VALUE_PANELS panels at most.
LMK_INLINE token_rows some_columns(token_rows x, size_t column) {
    const size_t at = LMK_LANES * column;
    x.data = (const char *)x.data + dtype_bytes(x.dtype) * at;
    x.width = lmk_min(x.width - at, LMK_LANES * VALUE_PANELS);
    return x;
}

LMK_INLINE token_rows_out some_columns_out(token_rows_out x, size_t column) {
    const size_t at = LMK_LANES * column;
    x.data = (char *)x.data + dtype_bytes(x.dtype) * at;
    x.width = lmk_min(x.width - at, LMK_LANES * VALUE_PANELS);
    return x;
}

/// Most columns of lines that are brought into L1 during a chunk.
#define NEAR_COLUMNS 64

/// One line of each row, for each line of a row.
static size_t near_columns(const near_rows *near, fetch_column *columns) {
    size_t used = 0;
    for (size_t i = 0; i < near->count; i++) {
        const token_rows *const x = near->rows + i;
        const size_t bytes = dtype_bytes(x->dtype), stride = bytes * x->stride;
        const char *const first = (const char *)x->data + stride * near->token;
        for (size_t at = 0; at < bytes * x->width && used < NEAR_COLUMNS; at += 64)
            columns[used++] = (fetch_column){first + at, stride};
    }
    return used;
}

/// [panel][token][16] to [panel][16][token].
static void transpose_panels(const float *x, size_t panels, float *to) {
    for (size_t p = 0; p < panels; p++, x += PANEL, to += PANEL) {
        for (size_t half = 0; half < 2; half++) {
            f32x16 rows[8];
            LMK_UNROLL
            for (int i = 0; i < 8; i++) rows[i] = load(x + LMK_LANES * (8 * half + (size_t)i));
            transpose_lanes(rows, 8, to + 8 * half, LMK_LANES);
        }
    }
}
