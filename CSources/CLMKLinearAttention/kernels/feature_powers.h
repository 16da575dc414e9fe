// The Taylor and the focused feature map, and the table of all maps. Included inside a region,
// after features.h.

// ---- Taylor, second order

/// Entries of a row that are kept as float32 at a time.
#define TAYLOR_BLOCK ((size_t)256)

/// to[k] = factor x_{first + k}, k < count, and some zeros for whole vectors.
LMK_INLINE void taylor_entries(const feature_row *r, lmk_dtype dtype, size_t first,
                               size_t count_of_all, float factor, float *to) {
    const void *const x = stage_at(r->x, dtype, first);
    STAGE_EACH_VECTOR(0, count_of_all, store(to + i, stage_load(x, dtype, i, count) * factor));
}

LMK_INLINE float inverse_root(float x) { return 1.0f / __builtin_elementwise_sqrt(splat(x)).x; }

/// K^-1/4
LMK_INLINE float taylor_scale(size_t columns) {
    return __builtin_elementwise_sqrt(splat(inverse_root((float)columns))).x;
}

#define ROOT_OF_HALF 0x1.6a09e6p-1f
#define FOURTH_ROOT_OF_HALF 0x1.ae89fap-1f

/// phi = [1, a, b b^T] with b = a 2^-1/4. A whole vector may run into the next row of b b^T, which
/// is written after it.
LMK_INLINE void map_taylor(const feature_row *r, lmk_dtype dtype) {
    const size_t columns = r->columns, features = 1 + columns + columns * columns;
    const float scale = taylor_scale(columns), root = scale * FOURTH_ROOT_OF_HALF;
    store_first_as(r->phi, dtype, 0, splat(1), 1);
    void *const linear = feature_at(r, dtype, 1);
    STAGE_EACH_VECTOR(0, columns, {
        stage_store(linear, dtype, i, stage_load(r->x, dtype, i, count) * scale, count);
    });
    _Alignas(64) float left[TAYLOR_BLOCK];
    _Alignas(64) float right[TAYLOR_BLOCK];
    for (size_t row = 0; row < columns; row += TAYLOR_BLOCK) {
        const size_t rows = columns - row < TAYLOR_BLOCK ? columns - row : TAYLOR_BLOCK;
        taylor_entries(r, dtype, row, rows, root, left);
        for (size_t column = 0; column < columns; column += TAYLOR_BLOCK) {
            const size_t width = columns - column < TAYLOR_BLOCK ? columns - column : TAYLOR_BLOCK;
            taylor_entries(r, dtype, column, width, root, right);
            for (size_t k = 0; k < rows; k++) {
                const float b = left[k];
                const size_t place = 1 + columns + (row + k) * columns + column;
                for (size_t i = 0; i < width; i += LMK_LANES) {
                    const size_t to_end = features - place - i, count = width - i;
                    const f32x16 product = load(right + i) * b;
                    if (columns <= TAYLOR_BLOCK && to_end >= LMK_LANES)
                        store_as(r->phi, dtype, place + i, product);
                    else stage_store(r->phi, dtype, place + i, product, count);
                }
            }
        }
    }
}

/// sum_j g_ij a_j, j in a block.
LMK_INLINE float taylor_row_sum(const void *g, lmk_dtype dtype, const float *a, size_t width) {
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, width, stage_load(g, dtype, i, count) * load(a + i) + sum[lane]);
    return norm_total(sum);
}

/// dx_i = c (g1_i + sum_j (g2_ij + g2_ji) a_j / sqrt(2)), first over g2_ji, row by row, then over
/// g2_ij, in blocks of j.
LMK_INLINE void back_taylor(const feature_row *r, lmk_dtype dtype) {
    const size_t columns = r->columns;
    const float scale = taylor_scale(columns), root = scale * ROOT_OF_HALF;
    const void *const linear = feature_at(r, dtype, 1);
    const void *const square = feature_at(r, dtype, 1 + columns);
    _Alignas(64) float sums[TAYLOR_BLOCK];
    _Alignas(64) float entries_of_row[TAYLOR_BLOCK];
    for (size_t first = 0; first < columns; first += TAYLOR_BLOCK) {
        const size_t width = columns - first < TAYLOR_BLOCK ? columns - first : TAYLOR_BLOCK;
        const void *const g1 = stage_at(linear, dtype, first);
        for (size_t i = 0; i < width; i += LMK_LANES) store(sums + i, splat(0));
        for (size_t block = 0; block < columns; block += TAYLOR_BLOCK) {
            const size_t rows = columns - block < TAYLOR_BLOCK ? columns - block : TAYLOR_BLOCK;
            taylor_entries(r, dtype, block, rows, root, entries_of_row);
            for (size_t k = 0; k < rows; k++) {
                const float a = entries_of_row[k];
                const void *const g2 = stage_at(square, dtype, (block + k) * columns + first);
                STAGE_EACH_VECTOR(
                    0, width,
                    store(sums + i, stage_load(g2, dtype, i, count) * a + load(sums + i)));
            }
            for (size_t k = 0; k < width; k++) {
                const void *const g2 = stage_at(square, dtype, (first + k) * columns + block);
                sums[k] += taylor_row_sum(g2, dtype, entries_of_row, rows);
            }
        }
        void *const dx = stage_at(r->dx, dtype, first);
        STAGE_EACH_VECTOR(0, width, {
            const f32x16 sum = stage_load(g1, dtype, i, count) + load(sums + i);
            stage_store(dx, dtype, i, sum * scale, count);
        });
    }
}

// ---- Focused

/// What is found of a row before it is written: see LMK_FEATURES_FOCUSED. Powers are those of
/// s = r / max(r), so that none leaves the range of float32.
typedef struct focused_row {
    float epsilon, power, largest;
    /// |s|^2 and |s^p|^2; 0 where r is 0.
    float length, power_length;
    /// p where it is an integer up to 16, else 0.
    unsigned integer;
} focused_row;

/// s^p of an integer p >= 1, or s^(p - 1) where `less` is 1; else by logarithms. 0^0 is 1.
LMK_INLINE f32x16 focused_power(const focused_row *f, f32x16 s, unsigned less) {
    if (f->integer == 0) return vexp(vlog(s) * (f->power - (float)less));
    f32x16 power = splat(1);
    for (unsigned k = less; k < f->integer; k++) power = power * s;
    return power;
}

/// s of 16 entries; 0 past the row's end.
LMK_INLINE f32x16 focused_entries(const feature_row *r, const focused_row *f, lmk_dtype dtype,
                                  size_t i, size_t count) {
    const f32x16 x = feature_relu(stage_load(r->x, dtype, i, count));
    const f32x16 s = (x + f->epsilon) / f->largest;
    return count >= LMK_LANES ? s : choose(feature_lanes(count), s, splat(0));
}

LMK_INLINE f32x16 focused_square(f32x16 v, f32x16 to) { return v * v + to; }

LMK_INLINE focused_row open_focused(const feature_row *r, lmk_dtype dtype) {
    focused_row f = {.epsilon = r->map->epsilon, .power = r->map->power};
    if (f.power <= 16 && f.power == (float)(unsigned)f.power) f.integer = (unsigned)f.power;
    f32x16 largest = splat(0);
    STAGE_EACH_VECTOR(0, r->columns, {
        largest = max_of(feature_relu(stage_load(r->x, dtype, i, count)), largest);
    });
    f.largest = reduce_max(largest) + f.epsilon;
    // Of a row of zeros s is 0 then, and NaN where an entry is that.
    if (f.largest == 0) f.largest = 1;
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, r->columns, focused_square(focused_entries(r, &f, dtype, i, count), sum[lane]));
    f.length = norm_total(sum);
    NORM_SUM(
        sum, r->columns,
        focused_square(focused_power(&f, focused_entries(r, &f, dtype, i, count), 0), sum[lane]));
    f.power_length = norm_total(sum);
    return f;
}

LMK_INLINE float focused_root(float x) { return __builtin_elementwise_sqrt(splat(x)).x; }

LMK_INLINE void map_focused(const feature_row *r, lmk_dtype dtype) {
    const focused_row f = open_focused(r, dtype);
    const int is_zero = f.length == 0;
    const float ratio = is_zero ? 0 : focused_root(f.length) / focused_root(f.power_length);
    const float factor = f.largest * ratio;
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 s = focused_entries(r, &f, dtype, i, count);
        stage_store(r->phi, dtype, i, focused_power(&f, s, 0) * factor, count);
    });
}

/// With u = s^p and c = g . u, where x > 0:
///
///     dx_j = s_j c / (|s| |u|) + p s_j^(p-1) |s| / |u| (g_j - u_j c / |u|^2)
LMK_INLINE void back_focused(const feature_row *r, lmk_dtype dtype) {
    const focused_row f = open_focused(r, dtype);
    const int is_zero = f.length == 0;
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, r->columns,
             stage_load(r->phi, dtype, i, count) *
                     focused_power(&f, focused_entries(r, &f, dtype, i, count), 0) +
                 sum[lane]);
    const float dot = norm_total(sum), length = focused_root(f.length),
                power_length = focused_root(f.power_length);
    const float along = dot / (length * power_length), slope = f.power * (length / power_length),
                across = dot / f.power_length;
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 x = stage_load(r->x, dtype, i, count);
        const f32x16 s = focused_entries(r, &f, dtype, i, count);
        const f32x16 less = focused_power(&f, s, 1);
        const f32x16 u = less * s;
        const f32x16 rest = stage_load(r->phi, dtype, i, count) - u * across;
        const f32x16 turned = less * slope * rest;
        const f32x16 dx = s * along + turned;
        stage_store(r->dx, dtype, i, choose((x > 0.0f) & (is_zero ? 0 : -1), dx, splat(0)), count);
    });
}

// ---- The cosine map's angle

/// cos and sin of pi position / (2 length): Taylor's series in double of the angle or of its
/// complement, whichever is smaller, 5e-13 off.
LMK_INLINE void feature_angle(int64_t position, int64_t length, float *cosine, float *sine) {
    const int is_far = position > length - position;
    const int64_t near = is_far ? length - position : position;
    const double a = (double)near / (double)length * 0x1.921fb54442d18p+0, square = a * a;
    double s = 1.0 / 6227020800;
    s = s * square - 1.0 / 39916800;
    s = s * square + 1.0 / 362880;
    s = s * square - 1.0 / 5040;
    s = s * square + 1.0 / 120;
    s = s * square - 1.0 / 6;
    s = s * square + 1.0;
    double c = 1.0 / 479001600;
    c = c * square - 1.0 / 3628800;
    c = c * square + 1.0 / 40320;
    c = c * square - 1.0 / 720;
    c = c * square + 1.0 / 24;
    c = c * square - 0.5;
    c = c * square + 1.0;
    *cosine = (float)(is_far ? s * a : c);
    *sine = (float)(is_far ? c : s * a);
}

// ---- Rows

LMK_INLINE void place_feature_row(const feature_job *job, lmk_dtype dtype, stage_row at,
                                  int is_first, feature_row *r) {
    const lmk_feature_map *const map = job->map;
    r->x = stage_at(map->x, dtype, stage_row_place(at, map->x_strides));
    r->phi = stage_at(job->phi, dtype, stage_row_place(at, job->phi_strides));
    r->dx = stage_at(job->dx, dtype, stage_row_place(at, job->dx_strides));
    if (map->features == LMK_FEATURES_COSINE && (is_first || at.head == 0)) {
        feature_angle(map->positions[at.batch * map->tokens + at.token], map->length, &r->cosine,
                      &r->sine);
    }
}

#define FEATURE_ROWS(kernel, suffix, dtype)                                                        \
    static void kernel##_##suffix(const feature_job *job, size_t row, size_t rows) {               \
        const size_t tokens = job->map->tokens, heads = job->map->heads;                           \
        feature_row r = {.map = job->map, .columns = job->map->columns};                           \
        stage_row at = stage_row_of(row, tokens, heads);                                           \
        for (size_t k = 0; k < rows; k++, stage_next_row(&at, tokens, heads)) {                    \
            place_feature_row(job, dtype, at, k == 0, &r);                                         \
            kernel(&r, dtype);                                                                     \
        }                                                                                          \
    }

#define FEATURE_KERNELS(kernel)                                                                    \
    FEATURE_ROWS(kernel, f32, LMK_FLOAT32)                                                         \
    FEATURE_ROWS(kernel, bf16, LMK_BFLOAT16)                                                       \
    FEATURE_ROWS(kernel, f16, LMK_FLOAT16)

FEATURE_KERNELS(map_identity)
FEATURE_KERNELS(map_elu)
FEATURE_KERNELS(map_relu)
FEATURE_KERNELS(map_squared_relu)
FEATURE_KERNELS(map_softmax)
FEATURE_KERNELS(map_exp_pair)
FEATURE_KERNELS(map_softmax_pair)
FEATURE_KERNELS(map_taylor)
FEATURE_KERNELS(map_focused)
FEATURE_KERNELS(map_cosine)
FEATURE_KERNELS(back_identity)
FEATURE_KERNELS(back_elu)
FEATURE_KERNELS(back_relu)
FEATURE_KERNELS(back_squared_relu)
FEATURE_KERNELS(back_softmax)
FEATURE_KERNELS(back_exp_pair)
FEATURE_KERNELS(back_softmax_pair)
FEATURE_KERNELS(back_taylor)
FEATURE_KERNELS(back_focused)
FEATURE_KERNELS(back_cosine)
