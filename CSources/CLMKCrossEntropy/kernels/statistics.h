// Forward: what a row needs to know of its logits. Included inside a region, after lmk_math.h and
// logits.h.
//
// The target is left out of the sums and added at the end, so that lse - z_y is log1p of what the
// others add to it: exact where the target has nearly all of the probability, and never negative.

/// Statistics of 16 rows over one column block, a lane for each row.
typedef struct block_statistics {
    float max[LMK_LANES], sum[LMK_LANES], weighted_sum[LMK_LANES], smoothing_sum[LMK_LANES];
    int32_t argmax[LMK_LANES];
} block_statistics;

LMK_INLINE void fill_logits(const cross_entropy_block *block, const float *products, size_t column,
                            size_t columns, int has_softcap, float *z) {
    for (size_t k = 0; k < columns; k += LMK_LANES) {
        const size_t count = columns - k;
        f32x16 unused;
        const f32x16 a = with_bias(block, load_classes(products, k, count), column + k, count);
        const f32x16 value = logit(block, a, has_softcap, &unused);
        const i32x16 present = lane_numbers() < (int32_t)(count < LMK_LANES ? count : LMK_LANES);
        store(z + k, choose(present, value, splat(-__builtin_inff())));
    }
}

LMK_INLINE float smoothing_sum_of(const cross_entropy_block *block, const float *z, size_t column,
                                  size_t columns) {
    f32x16 sum = splat(0);
    for (size_t k = 0; k < columns; k += LMK_LANES) {
        const size_t count = columns - k;
        const f32x16 weight =
            block->class_weights ? load_classes(block->class_weights, column + k, count) : splat(1);
        const i32x16 present = lane_numbers() < (int32_t)(count < LMK_LANES ? count : LMK_LANES);
        // A class of weight 0 adds nothing, though its logit may be -inf.
        sum = weight * choose(present & (weight != 0.0f), load(z + k), splat(0)) + sum;
    }
    return reduce_sum(sum);
}

/// First class whose logit is the largest, -1 when that is -inf.
LMK_INLINE int32_t argmax_of(const float *z, size_t column, size_t columns, float max) {
    if (max == -__builtin_inff()) return -1;
    i32x16 first = (i32x16)INT32_MAX;
    for (size_t k = 0; k < columns; k += LMK_LANES) {
        const i32x16 here = lane_numbers() + (int32_t)(column + k);
        const i32x16 at = load(z + k) == max ? here : (i32x16)INT32_MAX;
        first = at < first ? at : first;
    }
    int32_t lanes[LMK_LANES], lowest = INT32_MAX;
    __builtin_memcpy(lanes, &first, sizeof lanes);
    for (int i = 0; i < LMK_LANES; i++) lowest = lanes[i] < lowest ? lanes[i] : lowest;
    return lowest == INT32_MAX ? -1 : lowest;
}

LMK_INLINE void block_statistics_of_row(const cross_entropy_block *block, const float *products,
                                        size_t row, size_t column, size_t columns,
                                        block_statistics *to, int lane) {
    _Alignas(64) float z[LMK_COLUMN_BLOCK];
    if (block->softcap > 0) fill_logits(block, products, column, columns, 1, z);
    else fill_logits(block, products, column, columns, 0, z);
    if (block->statistics.smoothing_sum)
        to->smoothing_sum[lane] = smoothing_sum_of(block, z, column, columns);

    const int64_t target = (int64_t)block->target[row] - (int64_t)column;
    if (target >= 0 && target < (int64_t)columns) {
        block->target_logit[row] = z[target];
        z[target] = -__builtin_inff();
    }

    f32x16 largest = splat(-__builtin_inff());
    for (size_t k = 0; k < columns; k += LMK_LANES) largest = max_of(largest, load(z + k));
    const float max = reduce_max(largest);
    to->max[lane] = max;

    const f32x16 center = finite_or_zero(splat(max));
    f32x16 sum = splat(0), weighted_sum = splat(0);
    if (block->statistics.weighted_sum) {
        for (size_t k = 0; k < columns; k += LMK_LANES) {
            const f32x16 difference = load(z + k) - center, e = vexp_nonpositive(difference);
            sum += e;
            weighted_sum = e * clamp_low(difference) + weighted_sum;
        }
        to->weighted_sum[lane] = reduce_sum(weighted_sum);
    } else {
        for (size_t k = 0; k < columns; k += LMK_LANES)
            sum += vexp_nonpositive(load(z + k) - center);
    }
    to->sum[lane] = reduce_sum(sum);
    if (block->statistics.argmax) to->argmax[lane] = argmax_of(z, column, columns, max);
}

/// Adds `b`'s statistics to `a`'s, both of 16 rows: a.max, a.sum, a.weighted_sum.
LMK_INLINE void merge(f32x16 *a_max, f32x16 *a_sum, f32x16 *a_weighted_sum, f32x16 b_max,
                      f32x16 b_sum, f32x16 b_weighted_sum, int has_weighted_sum) {
    const f32x16 max = max_of(*a_max, b_max), center = finite_or_zero(max);
    const f32x16 a_difference = *a_max - center, b_difference = b_max - center;
    const f32x16 a_factor = vexp_nonpositive(a_difference),
                 b_factor = vexp_nonpositive(b_difference);
    if (has_weighted_sum) {
        const f32x16 a = clamp_low(a_difference) * *a_sum + *a_weighted_sum;
        const f32x16 b = clamp_low(b_difference) * b_sum + b_weighted_sum;
        const f32x16 b_part = b * b_factor;
        *a_weighted_sum = a * a_factor + b_part;
    }
    const f32x16 b_part = b_sum * b_factor;
    *a_sum = *a_sum * a_factor + b_part;
    *a_max = max;
}

static void take_in(void *context, float *logits, size_t stride, size_t row, size_t rows,
                    size_t column, size_t columns) {
    const cross_entropy_block *const block = context;
    const row_statistics all = block->statistics;
    const size_t chunk = column / VOCABULARY_CHUNK * block->rows;
    const int is_first = column % VOCABULARY_CHUNK == 0;
    for (size_t i = row; i < row + rows; i += LMK_LANES) {
        const size_t count = row + rows - i < LMK_LANES ? row + rows - i : LMK_LANES;
        block_statistics here = {0};
        for (size_t lane = 0; lane < count; lane++) {
            block_statistics_of_row(block, logits + (i - row + lane) * stride, i + lane, column,
                                    columns, &here, (int)lane);
        }
        const size_t at = chunk + i;
        if (!is_first) {
            f32x16 max = load_classes(all.max, at, count), sum = load_classes(all.sum, at, count);
            f32x16 weighted_sum =
                all.weighted_sum ? load_classes(all.weighted_sum, at, count) : splat(0);
            if (all.argmax) {
                for (size_t lane = 0; lane < count; lane++) {
                    if (!(here.max[lane] > all.max[at + lane]))
                        here.argmax[lane] = all.argmax[at + lane];
                }
            }
            if (all.smoothing_sum) {
                store(here.smoothing_sum,
                      load_classes(all.smoothing_sum, at, count) + load(here.smoothing_sum));
            }
            merge(&max, &sum, &weighted_sum, load(here.max), load(here.sum),
                  load(here.weighted_sum), all.weighted_sum != 0);
            store(here.max, max);
            store(here.sum, sum);
            store(here.weighted_sum, weighted_sum);
        }
        store_first(all.max + at, load(here.max), count);
        store_first(all.sum + at, load(here.sum), count);
        if (all.weighted_sum) store_first(all.weighted_sum + at, load(here.weighted_sum), count);
        if (all.smoothing_sum) store_first(all.smoothing_sum + at, load(here.smoothing_sum), count);
        if (all.argmax) __builtin_memcpy(all.argmax + at, here.argmax, count * sizeof(int32_t));
    }
}

/// Adds the target of 16 rows to the statistics of the other classes; lanes without a target keep
/// theirs.
LMK_INLINE void add_target(f32x16 *max, f32x16 *sum, f32x16 *weighted_sum, f32x16 target_logit,
                           i32x16 has_target, f32x16 *target_loss) {
    const f32x16 others = *max, others_sum = *sum;
    f32x16 with_max = others, with_sum = others_sum, with_weighted_sum = *weighted_sum;
    merge(&with_max, &with_sum, &with_weighted_sum, target_logit, splat(1), splat(0), 1);
    // R = sum of exp(z_j - z_y) over the others; beyond e^80 its logarithm is taken in two parts.
    const f32x16 difference = others - target_logit;
    const f32x16 near = vlog1p(others_sum * vexp(difference)), far = vlog(others_sum) + difference;
    const f32x16 loss = difference > 80.0f ? far : near;
    // With +inf among the logits the sum is NaN, and so is the loss.
    *target_loss = choose(has_target, with_sum == with_sum ? loss : with_sum, splat(0));
    *max = choose(has_target, with_max, others);
    *sum = choose(has_target, with_sum, others_sum);
    *weighted_sum = choose(has_target, with_weighted_sum, *weighted_sum);
}

static void finish(const cross_entropy_block *block, size_t chunks, size_t begin, size_t end,
                   lmk_cross_entropy_row *states, float *log_sum_exp, float *entropy) {
    const row_statistics all = block->statistics;
    for (size_t i = begin; i < end; i += LMK_LANES) {
        const size_t count = end - i < LMK_LANES ? end - i : LMK_LANES;
        f32x16 max = load_classes(all.max, i, count), sum = load_classes(all.sum, i, count);
        f32x16 weighted_sum =
            all.weighted_sum ? load_classes(all.weighted_sum, i, count) : splat(0);
        f32x16 smoothing_sum =
            all.smoothing_sum ? load_classes(all.smoothing_sum, i, count) : splat(0);
        for (size_t chunk = 1; chunk < chunks; chunk++) {
            const size_t at = chunk * block->rows + i;
            const f32x16 next_max = load_classes(all.max, at, count);
            if (all.argmax) {
                const i32x16 larger = next_max > max;
                for (size_t lane = 0; lane < count; lane++) {
                    if (larger[lane]) all.argmax[i + lane] = all.argmax[at + lane];
                }
            }
            merge(&max, &sum, &weighted_sum, next_max, load_classes(all.sum, at, count),
                  all.weighted_sum ? load_classes(all.weighted_sum, at, count) : splat(0),
                  all.weighted_sum != 0);
            if (all.smoothing_sum) smoothing_sum += load_classes(all.smoothing_sum, at, count);
        }
        i32x16 has_target = (i32x16)0;
        for (size_t lane = 0; lane < count; lane++)
            has_target[lane] = block->target[i + lane] >= 0 ? -1 : 0;
        const f32x16 target_logit =
            choose(has_target, load_classes(block->target_logit, i, count), splat(0));
        if (all.argmax) {
            for (size_t lane = 0; lane < count; lane++) {
                const int32_t target = block->target[i + lane];
                const int is_larger = target_logit[lane] > max[lane];
                const int is_first =
                    target_logit[lane] == max[lane] && target < all.argmax[i + lane];
                if (target >= 0 && target_logit[lane] > -__builtin_inff() &&
                    (is_larger || is_first)) {
                    all.argmax[i + lane] = target;
                }
            }
        }
        f32x16 target_loss;
        add_target(&max, &sum, &weighted_sum, target_logit, has_target, &target_loss);
        const f32x16 log_sum = vlog(sum);
        store_first(log_sum_exp + i, max + log_sum, count);
        if (entropy) store_first(entropy + i, log_sum - weighted_sum / sum, count);
        if (all.smoothing_sum) store_first(all.smoothing_sum + i, smoothing_sum, count);
        for (size_t lane = 0; lane < count; lane++) {
            states[i + lane] = (lmk_cross_entropy_row){max[lane], sum[lane], target_loss[lane]};
            if (block->target[i + lane] < 0) block->target_logit[i + lane] = 0;
            if (all.argmax && sum[lane] != sum[lane]) all.argmax[i + lane] = -1;
        }
    }
}
