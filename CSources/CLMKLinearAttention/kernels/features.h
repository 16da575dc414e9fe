// Feature maps of rows: see lmk_features. Included inside a region, after norms.h.

/// What a map does with one row, and with its gradient.
typedef struct feature_row {
    const lmk_feature_map *map;
    size_t columns;
    const void *x;
    /// phi, or its gradient on the way back.
    void *phi;
    void *dx;
    /// Of the cosine map's angle.
    float cosine, sine;
} feature_row;

LMK_INLINE void *feature_at(const feature_row *r, lmk_dtype dtype, size_t i) {
    return (char *)r->phi + stage_size(dtype) * i;
}

/// max(x, 0); NaN stays.
LMK_INLINE f32x16 feature_relu(f32x16 x) { return choose(x < 0.0f, splat(0), x); }

/// Writes phi_i = VALUE, an expression of `x`.
#define FEATURE_MAP(name, VALUE)                                                                   \
    LMK_INLINE void name(const feature_row *r, lmk_dtype dtype) {                                  \
        STAGE_EACH_VECTOR(0, r->columns, {                                                         \
            const f32x16 x = stage_load(r->x, dtype, i, count);                                    \
            stage_store(r->phi, dtype, i, VALUE, count);                                           \
        });                                                                                        \
    }

/// Writes dx_i = VALUE, an expression of `x` and `g`.
#define FEATURE_GRADIENT(name, VALUE)                                                              \
    LMK_INLINE void name(const feature_row *r, lmk_dtype dtype) {                                  \
        STAGE_EACH_VECTOR(0, r->columns, {                                                         \
            const f32x16 x = stage_load(r->x, dtype, i, count);                                    \
            const f32x16 g = stage_load(r->phi, dtype, i, count);                                  \
            (void)x;                                                                               \
            stage_store(r->dx, dtype, i, VALUE, count);                                            \
        });                                                                                        \
    }

FEATURE_MAP(map_identity, x)
FEATURE_GRADIENT(back_identity, g)

// The exponential is that of a number above 0 only where nobody looks at it.
FEATURE_MAP(map_elu, choose(x > 0.0f, x + 1.0f, vexp_nonpositive(x)))
FEATURE_GRADIENT(back_elu, choose(x > 0.0f, g, g *vexp_nonpositive(x)))

FEATURE_MAP(map_relu, feature_relu(x))
FEATURE_GRADIENT(back_relu, choose(x > 0.0f, g, splat(0)))

FEATURE_MAP(map_squared_relu, feature_relu(x) * feature_relu(x))
FEATURE_GRADIENT(back_squared_relu, (feature_relu(x) + feature_relu(x)) * g)

// ---- Pairs: the second half is a map of -x or of the same x.

LMK_INLINE f32x16 feature_negative(f32x16 x) { return floats_of(bits_of(x) ^ 0x80000000u); }

LMK_INLINE void map_exp_pair(const feature_row *r, lmk_dtype dtype) {
    void *const second = feature_at(r, dtype, r->columns);
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 x = stage_load(r->x, dtype, i, count);
        stage_store(r->phi, dtype, i, vexp(x), count);
        stage_store(second, dtype, i, vexp(feature_negative(x)), count);
    });
}

LMK_INLINE void back_exp_pair(const feature_row *r, lmk_dtype dtype) {
    const void *const second = feature_at(r, dtype, r->columns);
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 x = stage_load(r->x, dtype, i, count);
        const f32x16 fall = vexp(feature_negative(x)) * stage_load(second, dtype, i, count);
        const f32x16 dx = vexp(x) * stage_load(r->phi, dtype, i, count) - fall;
        stage_store(r->dx, dtype, i, dx, count);
    });
}

LMK_INLINE void map_cosine(const feature_row *r, lmk_dtype dtype) {
    void *const second = feature_at(r, dtype, r->columns);
    const float cosine = r->cosine, sine = r->sine;
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 x = feature_relu(stage_load(r->x, dtype, i, count));
        stage_store(r->phi, dtype, i, x * cosine, count);
        stage_store(second, dtype, i, x * sine, count);
    });
}

LMK_INLINE void back_cosine(const feature_row *r, lmk_dtype dtype) {
    const void *const second = feature_at(r, dtype, r->columns);
    const float cosine = r->cosine, sine = r->sine;
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 x = stage_load(r->x, dtype, i, count);
        const f32x16 of_sine = stage_load(second, dtype, i, count) * sine;
        const f32x16 dx = stage_load(r->phi, dtype, i, count) * cosine + of_sine;
        stage_store(r->dx, dtype, i, choose(x > 0.0f, dx, splat(0)), count);
    });
}

// ---- Softmax of x or -x

/// Lanes below `count`.
LMK_INLINE i32x16 feature_lanes(size_t count) {
    return lane_numbers() < (int32_t)(count < LMK_LANES ? count : LMK_LANES);
}

/// x or, where `sign` is the sign's bit, -x; -infinity past the row's end.
LMK_INLINE f32x16 feature_logits(const feature_row *r, lmk_dtype dtype, uint32_t sign, size_t i,
                                 size_t count) {
    const f32x16 u = floats_of(bits_of(stage_load(r->x, dtype, i, count)) ^ sign);
    return count >= LMK_LANES ? u : choose(feature_lanes(count), u, splat(-__builtin_inff()));
}

LMK_INLINE float feature_largest(const feature_row *r, lmk_dtype dtype, uint32_t sign) {
    f32x16 largest = splat(-__builtin_inff());
    STAGE_EACH_VECTOR(0, r->columns,
                      { largest = max_of(feature_logits(r, dtype, sign, i, count), largest); });
    return reduce_max(largest);
}

LMK_INLINE f32x16 feature_exponential(const feature_row *r, lmk_dtype dtype, uint32_t sign,
                                      size_t i, size_t count, float largest) {
    return vexp_nonpositive(feature_logits(r, dtype, sign, i, count) - largest);
}

/// The sum of exponentials. A NaN that the largest has lost, or infinity less itself, is in it.
LMK_INLINE float feature_sum(const feature_row *r, lmk_dtype dtype, uint32_t sign, float largest) {
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, r->columns, sum[lane] + feature_exponential(r, dtype, sign, i, count, largest));
    return norm_total(sum);
}

LMK_INLINE void write_softmax(const feature_row *r, lmk_dtype dtype, uint32_t sign, size_t first) {
    const float largest = feature_largest(r, dtype, sign);
    const float factor = 1.0f / feature_sum(r, dtype, sign, largest);
    void *const to = feature_at(r, dtype, first);
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 e = feature_exponential(r, dtype, sign, i, count, largest);
        stage_store(to, dtype, i, e * factor, count);
    });
}

LMK_INLINE void map_softmax(const feature_row *r, lmk_dtype dtype) {
    write_softmax(r, dtype, 0, 0);
}

LMK_INLINE void map_softmax_pair(const feature_row *r, lmk_dtype dtype) {
    write_softmax(r, dtype, 0, 0);
    write_softmax(r, dtype, 0x80000000u, r->columns);
}

/// A softmax of the row on its way back: dx_j = p_j (g_j - sum_i p_i g_i).
typedef struct softmax_gradient {
    uint32_t sign;
    float largest, factor, dot;
    const void *g;
} softmax_gradient;

LMK_INLINE softmax_gradient open_softmax_gradient(const feature_row *r, lmk_dtype dtype,
                                                  uint32_t sign, size_t first) {
    softmax_gradient s = {.sign = sign, .g = feature_at(r, dtype, first)};
    s.largest = feature_largest(r, dtype, sign);
    s.factor = 1.0f / feature_sum(r, dtype, sign, s.largest);
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, r->columns,
             feature_exponential(r, dtype, sign, i, count, s.largest) *
                     stage_load(s.g, dtype, i, count) +
                 sum[lane]);
    s.dot = norm_total(sum) * s.factor;
    return s;
}

LMK_INLINE f32x16 softmax_gradient_at(const feature_row *r, softmax_gradient s, lmk_dtype dtype,
                                      size_t i, size_t count) {
    const f32x16 p = feature_exponential(r, dtype, s.sign, i, count, s.largest) * s.factor;
    return p * (stage_load(s.g, dtype, i, count) - s.dot);
}

LMK_INLINE void back_softmax(const feature_row *r, lmk_dtype dtype) {
    const softmax_gradient s = open_softmax_gradient(r, dtype, 0, 0);
    STAGE_EACH_VECTOR(0, r->columns, {
        stage_store(r->dx, dtype, i, softmax_gradient_at(r, s, dtype, i, count), count);
    });
}

LMK_INLINE void back_softmax_pair(const feature_row *r, lmk_dtype dtype) {
    const softmax_gradient first = open_softmax_gradient(r, dtype, 0, 0),
                           second = open_softmax_gradient(r, dtype, 0x80000000u, r->columns);
    STAGE_EACH_VECTOR(0, r->columns, {
        const f32x16 rise = softmax_gradient_at(r, first, dtype, i, count);
        const f32x16 fall = softmax_gradient_at(r, second, dtype, i, count);
        stage_store(r->dx, dtype, i, rise - fall, count);
    });
}
