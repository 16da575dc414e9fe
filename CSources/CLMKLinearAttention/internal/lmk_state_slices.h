// States in slices of columns, [slice][key_dim][SLICE_COLUMNS], that passes token by token keep in
// L1. Included inside a region.
//
// Rows of keys and queries lie one after the other, so that a pass goes through them with one
// index; those of float32 tensors that need no change are used where they are.

#if defined(LMK_AVX512)
#define SWEEP_VECTORS 2
#else
#define SWEEP_VECTORS 1
#endif

#define FOR_SWEEP(VECTORS)                                                                         \
    LMK_UNROLL                                                                                     \
    for (int j = 0; j < VECTORS; j++)

/// The state is multiplied by its decays before their product leaves 1 / FOLD_LIMIT ... FOLD_LIMIT.
#define FOLD_LIMIT 1024.0f

/// Where a product has left it, or is NaN.
LMK_INLINE i32x16 is_to_fold(f32x16 product) {
    return ~((product >= 1 / FOLD_LIMIT) & (product <= FOLD_LIMIT));
}

/// What row `d` of a state is multiplied with.
LMK_INLINE float scale_of_row(const linear_head *head, const float *scale, size_t d) {
    return scale[head->decay == LMK_DECAY_KEY ? d : 0];
}

/// Columns of a head that one pass takes.
typedef struct column_slice {
    size_t column, columns, vectors;
} column_slice;

static size_t slices_of(const linear_head *head) {
    return lmk_divide_up(head->v.width, LMK_LANES * SWEEP_VECTORS);
}

static column_slice slice_of(const linear_head *head, size_t index) {
    const size_t column = LMK_LANES * SWEEP_VECTORS * index,
                 columns = lmk_min(LMK_LANES * SWEEP_VECTORS, head->v.width - column);
    return (column_slice){column, columns, panels_of(columns)};
}

LMK_INLINE f32x16 load_value(const token_rows *x, const void *row, size_t at) {
    switch (x->dtype) {
    case LMK_BFLOAT16: return load_row(row, LMK_BFLOAT16, at, x->width);
    case LMK_FLOAT16: return load_row(row, LMK_FLOAT16, at, x->width);
    default: return load_row(row, LMK_FLOAT32, at, x->width);
    }
}

LMK_INLINE void store_value(const token_rows_out *x, size_t row, size_t at, f32x16 y) {
    char *const data = (char *)x->data + dtype_bytes(x->dtype) * x->stride * row;
    switch (x->dtype) {
    case LMK_BFLOAT16: store_row(data, LMK_BFLOAT16, at, x->width, y); break;
    case LMK_FLOAT16: store_row(data, LMK_FLOAT16, at, x->width, y); break;
    default: store_row(data, LMK_FLOAT32, at, x->width, y); break;
    }
}

/// A row of a tensor, where it lies or widened and multiplied to `buffer`.
LMK_INLINE const float *row_of(const token_rows *x, size_t step, int has_factor, float factor,
                               float *buffer) {
    const char *const row = (const char *)x->data + dtype_bytes(x->dtype) * x->stride * step;
    if (x->dtype == LMK_FLOAT32 && !has_factor) return (const float *)(const void *)row;
    for (size_t at = 0; at < x->width; at += LMK_LANES) {
        f32x16 y;
        switch (x->dtype) {
        case LMK_BFLOAT16: y = load_row(row, LMK_BFLOAT16, at, x->width); break;
        case LMK_FLOAT16: y = load_row(row, LMK_FLOAT16, at, x->width); break;
        default: y = load_row(row, LMK_FLOAT32, at, x->width); break;
        }
        store(buffer + at, has_factor ? y * factor : y);
    }
    return buffer;
}

/// A state or some of its columns, dense at `stride`, to slices, and back times `scale`, which is a
/// number, or one for each row where keys have decays of their own; null: 1.
static void import_slices(const linear_head *head, const float *from, size_t stride, float *state) {
    const size_t rows = head->k.width, slices = slices_of(head);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(head, i);
        for (size_t d = 0; d < rows; d++, state += SLICE_COLUMNS) {
            for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
                store(state + lane, from ? load_row(from + slice.column + stride * d, LMK_FLOAT32,
                                                    lane, slice.columns)
                                         : splat(0));
            }
        }
    }
}

static void export_slices(const linear_head *head, const float *state, const float *scale,
                          float *to, size_t stride) {
    const size_t rows = head->k.width, slices = slices_of(head);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(head, i);
        for (size_t d = 0; d < rows; d++, state += SLICE_COLUMNS) {
            const float factor = scale ? scale_of_row(head, scale, d) : 1;
            for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
                store_row(to + slice.column + stride * d, LMK_FLOAT32, lane, slice.columns,
                          load(state + lane) * factor);
            }
        }
    }
}

LMK_INLINE void fetch_row(const void *data, lmk_dtype dtype, size_t stride, size_t width,
                          size_t row) {
    const size_t bytes = dtype_bytes(dtype);
    const char *const at = (const char *)data + bytes * stride * row;
    for (size_t i = 0; i < bytes * width; i += 64) __builtin_prefetch(at + i);
}

LMK_INLINE void fetch_lines(const fetch_column *column) {
    const char *line = column->data;
    LMK_UNROLL
    for (int i = 0; i < 16; i++, line += column->stride) __builtin_prefetch(line, 0, 2);
}

/// Bytes of two slices that stay in L1.
#define ABREAST_BYTES ((size_t)32 << 10)
