// Passes that reduce a slice begin..<end of one row. Included inside a region, after rows.h.

/// Below every number: what a maximum begins with. Finite, so that a row of -infinity has sum 0 and
/// not NaN.
#define LOWEST (-__FLT_MAX__)

/// `is_near`, a constant: the row is in a cache, because an earlier pass fetched it.
LMK_INLINE row_state extremes(const row_source *s, lmk_dtype dtype, int general, size_t begin,
                              size_t end, int is_near) {
    f32x16 max[ROUND_VECTORS], min[ROUND_VECTORS];
    for (int k = 0; k < ROUND_VECTORS; k++) {
        max[k] = splat(LOWEST);
        min[k] = splat(-LOWEST);
    }
    FOR_EACH_VECTOR(begin, end, {
        if (!is_near) FETCH(s->next);
        const f32x16 u = logits(s, dtype, general, i, count);
        max[lane] = max_of(u, max[lane]);
        min[lane] =
            min_of(count < LMK_LANES ? choose(lanes_below(count), u, min[lane]) : u, min[lane]);
    });
    const f32x16 least = min_of(min_of(min[0], min[1]), min_of(min[2], min[3]));
    return (row_state){.max = reduce_max(max_of(max_of(max[0], max[1]), max_of(max[2], max[3]))),
                       .min = -reduce_max(-least)};
}

LMK_INLINE row_state reduce_row_max(const softmax_job *job, const row_source *s, size_t row,
                                    lmk_dtype dtype, int general, size_t begin, size_t end,
                                    row_state known, float *store) {
    (void)row, (void)known, (void)store;
    return job->later_rows > 0 ? extremes(s, dtype, general, begin, end, 1)
                               : extremes(s, dtype, general, begin, end, 0);
}

/// e^(u - max) of 16 entries. `is_tame`, a constant, where no difference is below -1e6.
LMK_INLINE f32x16 exponential(const row_source *s, lmk_dtype dtype, int general, size_t i,
                              size_t count, float max, int is_tame) {
    const f32x16 difference = logits(s, dtype, general, i, count) - max;
    return vexp_difference(difference, !is_tame || count < LMK_LANES);
}

#define TAME_LIMIT 1e6f

LMK_INLINE float exponential_sum(const row_source *s, lmk_dtype dtype, int general, size_t begin,
                                 size_t end, float max, float *store, int is_tame) {
    f32x16 sum[ROUND_VECTORS];
    clear_sums(sum);
    SUM_EACH(sum, begin, end, {
        FETCH(s->next);
        const f32x16 e = exponential(s, dtype, general, i, count, max, is_tame);
        if (store) put_entries(store, LMK_FLOAT32, i, e, count);
        part[lane] += e;
    })
    return sum_of(sum);
}

LMK_INLINE row_state exponentials(const row_source *s, lmk_dtype dtype, int general, size_t begin,
                                  size_t end, row_state known, float *store) {
    const float max = known.max;
    const float sum = max - known.min < TAME_LIMIT
                          ? exponential_sum(s, dtype, general, begin, end, max, store, 1)
                          : exponential_sum(s, dtype, general, begin, end, max, store, 0);
    return (row_state){.max = max, .min = known.min, .sum = sum};
}

LMK_INLINE row_state reduce_row_sum(const softmax_job *job, const row_source *s, size_t row,
                                    lmk_dtype dtype, int general, size_t begin, size_t end,
                                    row_state known, float *store) {
    (void)job, (void)row, (void)store;
    return exponentials(s, dtype, general, begin, end, known, 0);
}

LMK_INLINE row_state reduce_row_sum_store(const softmax_job *job, const row_source *s, size_t row,
                                          lmk_dtype dtype, int general, size_t begin, size_t end,
                                          row_state known, float *store) {
    (void)job, (void)row;
    return exponentials(s, dtype, general, begin, end, known, store);
}

/// m and S in each lane. Once in a round the lanes whose m grows scale their sums, that of the
/// block and that of the blocks before it.
LMK_INLINE row_state online(const row_source *s, lmk_dtype dtype, int general, size_t begin,
                            size_t end) {
    f32x16 max = splat(LOWEST), sum[ROUND_VECTORS], part[ROUND_VECTORS];
    clear_sums(sum);
    clear_sums(part);
    size_t at = begin;
#define GROW_TO(largest)                                                                           \
    if (any_of((largest) > max)) {                                                                 \
        const f32x16 grown = max_of(largest, max), factor = vexp_difference(max - grown, 1);       \
        for (int k = 0; k < ROUND_VECTORS; k++) {                                                  \
            sum[k] *= factor;                                                                      \
            part[k] *= factor;                                                                     \
        }                                                                                          \
        max = grown;                                                                               \
    }
#define END_BLOCK                                                                                  \
    for (int k = 0; k < ROUND_VECTORS; k++) sum[k] += part[k];                                     \
    clear_sums(part);
    for (; at + ROUND <= end; at += ROUND) {
        f32x16 u[ROUND_VECTORS];
        LMK_UNROLL
        for (size_t k = 0; k < ROUND_VECTORS; k++) {
            fetch(s->next, dtype, fetched_by(at) + FETCH_STEP * k);
            u[k] = logits(s, dtype, general, at + LMK_LANES * k, LMK_LANES);
        }
        const f32x16 largest = max_of(max_of(u[0], u[1]), max_of(u[2], u[3]));
        GROW_TO(largest)
        LMK_UNROLL
        for (int k = 0; k < ROUND_VECTORS; k++) part[k] += vexp_difference(u[k] - max, 1);
        if ((at + ROUND) % SUM_BLOCK == 0) {
            END_BLOCK
        }
    }
    for (; at < end; at += LMK_LANES) {
        const f32x16 u = logits(s, dtype, general, at, end - at);
        GROW_TO(u)
        part[0] += vexp_difference(u - max, 1);
    }
    END_BLOCK
#undef END_BLOCK
#undef GROW_TO
    const float largest = reduce_max(max);
    const f32x16 factor = vexp_difference(max - largest, 1);
    for (int k = 0; k < ROUND_VECTORS; k++) sum[k] *= factor;
    return (row_state){.max = largest, .sum = sum_of(sum)};
}

LMK_INLINE row_state reduce_row_online(const softmax_job *job, const row_source *s, size_t row,
                                       lmk_dtype dtype, int general, size_t begin, size_t end,
                                       row_state known, float *store) {
    (void)job, (void)row, (void)known, (void)store;
    return online(s, dtype, general, begin, end);
}

/// A sum of exponentials, mantissa 2^exponent, in each lane. It begins with an exponent below every
/// other, so that the first term replaces it.
typedef struct pair_sum {
    f32x16 mantissa, exponent;
} pair_sum;

LMK_INLINE void add_pair(pair_sum *sum, f32x16 mantissa, f32x16 exponent) {
    const f32x16 larger = max_of(exponent, sum->exponent);
    const f32x16 aligned = times_power(mantissa, exponent - larger);
    sum->mantissa = times_power(sum->mantissa, sum->exponent - larger) + aligned;
    sum->exponent = larger;
}

/// e^u as a pair: n = u log2 e to the nearest integer, mantissa e^(u - n ln 2).
LMK_INLINE void add_exponential(pair_sum *sum, f32x16 u) {
    const f32x16 t = u * LOG2_E + ROUNDER;
    const f32x16 n = t - ROUNDER;
    const f32x16 r_high = u - n * LN2_HIGH;
    const f32x16 r = r_high - n * LN2_LOW;
    add_pair(sum, exp_reduced(r, 1.0f), n);
}

/// Entries are cut to +-PAIRS_LIMIT, and a row is left to the online algorithm unless its largest
/// exponent is below PAIRS_LIMIT log2 e, and so far above -PAIRS_LIMIT log2 e that what was cut
/// there is 0 beside it. Beyond 2^20, t does not hold exponents; beyond 2^8 their products with
/// LN2_HIGH are not exact, which only matters where they are not fused.
#if defined(LMK_TARGET_GENERIC)
#define PAIRS_LIMIT 0x1p8f
#else
#define PAIRS_LIMIT 0x1p20f
#endif
#define PAIRS_EXPONENT_MAX (1.44f * PAIRS_LIMIT)
#define PAIRS_EXPONENT_MIN (160.0f - 1.44f * PAIRS_LIMIT)
#define NO_EXPONENT (-0x1p22f)

LMK_INLINE row_state reduce_row_pairs(const softmax_job *job, const row_source *s, size_t row,
                                      lmk_dtype dtype, int general, size_t begin, size_t end,
                                      row_state known, float *store) {
    (void)job, (void)row, (void)known, (void)store;
    pair_sum sum[ROUND_VECTORS];
    for (int k = 0; k < ROUND_VECTORS; k++) sum[k] = (pair_sum){splat(0), splat(NO_EXPONENT)};
    // Constants come first in the comparisons: x86's minimum and maximum then keep NaN.
    FOR_EACH_VECTOR(begin, end, {
        FETCH(s->next);
        const f32x16 u = logits(s, dtype, general, i, count);
        const f32x16 at_least = -PAIRS_LIMIT > u ? splat(-PAIRS_LIMIT) : u;
        add_exponential(&sum[lane], PAIRS_LIMIT < at_least ? splat(PAIRS_LIMIT) : at_least);
    });
    add_pair(&sum[0], sum[1].mantissa, sum[1].exponent);
    add_pair(&sum[2], sum[3].mantissa, sum[3].exponent);
    add_pair(&sum[0], sum[2].mantissa, sum[2].exponent);
    const float exponent = reduce_max(sum[0].exponent);
    // A row whose largest entry was cut.
    if (!(exponent < PAIRS_EXPONENT_MAX && exponent > PAIRS_EXPONENT_MIN))
        return online(s, dtype, general, begin, end);
    const f32x16 aligned = times_power(sum[0].mantissa, sum[0].exponent - exponent);
    // 2^exponent = e^max e^rest with max a float.
    const f32x16 n = splat(exponent);
    const f32x16 max = n * LN2_HIGH;
    const f32x16 rest_high = n * LN2_HIGH - max;
    const f32x16 rest = n * LN2_LOW + rest_high;
    return (row_state){.max = max.x, .sum = reduce_sum(aligned) * vexp(rest).x};
}

// ---- StableMax

/// s(u), and q = 1 / (1 + |u|), which is s(u) below 0 and s'(u) / s(u) everywhere.
LMK_INLINE f32x16 stable(f32x16 u, f32x16 *q) {
    const f32x16 magnitude = floats_of(bits_of(u) & 0x7fffffffu) + 1.0f;
    *q = 1.0f / magnitude;
    return choose(u >= 0.0f, magnitude, *q);
}

LMK_INLINE row_state stable_values(const row_source *s, lmk_dtype dtype, int general, size_t begin,
                                   size_t end, float *store) {
    f32x16 sum[ROUND_VECTORS];
    clear_sums(sum);
    SUM_EACH(sum, begin, end, {
        FETCH(s->next);
        f32x16 q;
        const f32x16 value = stable(logits(s, dtype, general, i, count), &q);
        if (store) put_entries(store, LMK_FLOAT32, i, value, count);
        part[lane] += value;
    })
    return (row_state){.sum = sum_of(sum)};
}

LMK_INLINE row_state reduce_row_stable_sum(const softmax_job *job, const row_source *s, size_t row,
                                           lmk_dtype dtype, int general, size_t begin, size_t end,
                                           row_state known, float *store) {
    (void)job, (void)row, (void)known, (void)store;
    return stable_values(s, dtype, general, begin, end, 0);
}

LMK_INLINE row_state reduce_row_stable_store(const softmax_job *job, const row_source *s,
                                             size_t row, lmk_dtype dtype, int general, size_t begin,
                                             size_t end, row_state known, float *store) {
    (void)job, (void)row, (void)known;
    return stable_values(s, dtype, general, begin, end, store);
}

// ---- Gradients

/// The sum of dy, or of y dy. `is_near`, a constant: as in `extremes`.
LMK_INLINE float gradient_sum(const void *y, const void *dy, lmk_dtype dtype, size_t begin,
                              size_t end, int times_y, int is_near) {
    f32x16 sum[ROUND_VECTORS];
    clear_sums(sum);
    SUM_EACH(sum, begin, end, {
        fetch_near(dy, dtype, i);
        if (times_y) fetch_near(y, dtype, i);
        if (!is_near) FETCH_NEXT(dy);
        if (!is_near && times_y) FETCH_NEXT(y);
        const f32x16 g = entries(dy, dtype, i, count);
        if (times_y) part[lane] = entries(y, dtype, i, count) * g + part[lane];
        else part[lane] += g;
    })
    return sum_of(sum);
}

LMK_INLINE row_state gradient_state(const softmax_job *job, size_t row, lmk_dtype dtype,
                                    size_t begin, size_t end, int times_y) {
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    const void *const y = row_at(job->y, dtype, job->y_stride, row);
    return (row_state){.gradient = job->later_rows > 0
                                       ? gradient_sum(y, dy, dtype, begin, end, times_y, 1)
                                       : gradient_sum(y, dy, dtype, begin, end, times_y, 0)};
}

LMK_INLINE row_state reduce_row_dot(const softmax_job *job, const row_source *s, size_t row,
                                    lmk_dtype dtype, int general, size_t begin, size_t end,
                                    row_state known, float *store) {
    (void)s, (void)general, (void)known, (void)store;
    return gradient_state(job, row, dtype, begin, end, 1);
}

LMK_INLINE row_state reduce_row_gradient(const softmax_job *job, const row_source *s, size_t row,
                                         lmk_dtype dtype, int general, size_t begin, size_t end,
                                         row_state known, float *store) {
    (void)s, (void)general, (void)known, (void)store;
    return gradient_state(job, row, dtype, begin, end, 0);
}

/// The sums of s(u), and of dy or s(u) dy.
LMK_INLINE row_state stable_gradient_sum(const softmax_job *job, const row_source *s, size_t row,
                                         lmk_dtype dtype, int general, size_t begin, size_t end,
                                         int times_s) {
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    f32x16 sum[ROUND_VECTORS], gradient[ROUND_VECTORS];
    clear_sums(sum);
    clear_sums(gradient);
    SUM_EACH(sum, begin, end, {
        FETCH(s->next);
        f32x16 q;
        const f32x16 value = stable(logits(s, dtype, general, i, count), &q);
        FETCH_NEXT(dy);
        const f32x16 g = entries(dy, dtype, i, count);
        part[lane] += value;
        if (times_s) gradient[lane] = value * g + gradient[lane];
        else gradient[lane] += g;
    })
    return (row_state){.sum = sum_of(sum), .gradient = sum_of(gradient)};
}

LMK_INLINE row_state reduce_row_stable_dot(const softmax_job *job, const row_source *s, size_t row,
                                           lmk_dtype dtype, int general, size_t begin, size_t end,
                                           row_state known, float *store) {
    (void)known, (void)store;
    return stable_gradient_sum(job, s, row, dtype, general, begin, end, 1);
}

LMK_INLINE row_state reduce_row_stable_gradient(const softmax_job *job, const row_source *s,
                                                size_t row, lmk_dtype dtype, int general,
                                                size_t begin, size_t end, row_state known,
                                                float *store) {
    (void)known, (void)store;
    return stable_gradient_sum(job, s, row, dtype, general, begin, end, 0);
}

// ---- Slices of a row

static void combine(reduction kind, row_state *to, const row_state *from, size_t rows) {
    for (size_t i = 0; i < rows; i++) {
        const float max = from[i].max > to[i].max ? from[i].max : to[i].max;
        if (kind == REDUCE_ONLINE || kind == REDUCE_PAIRS) {
            const float factor = vexp_difference(splat(to[i].max) - max, 1).x,
                        other_factor = vexp_difference(splat(from[i].max) - max, 1).x;
            const float other = from[i].sum * other_factor;
            to[i].sum = to[i].sum * factor + other;
        } else {
            to[i].sum += from[i].sum;
        }
        to[i].max = max;
        to[i].min = from[i].min < to[i].min ? from[i].min : to[i].min;
        to[i].gradient += from[i].gradient;
    }
}

static void log_sum_exp(const row_state *states, float *to, size_t rows) {
    for (size_t i = 0; i < rows; i++) to[i] = states[i].max + vlog(splat(states[i].sum)).x;
}
