// Backward: logits become the gradient of the products, in place. Included inside a region, after
// lmk_math.h and logits.h.

static void log_sum_exp(const lmk_cross_entropy_row *states, float *to, size_t count) {
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const size_t present = count - i < LMK_LANES ? count - i : LMK_LANES;
        f32x16 max = splat(0), sum = splat(1);
        for (size_t lane = 0; lane < present; lane++) {
            max[lane] = states[i + lane].max;
            sum[lane] = states[i + lane].sum;
        }
        store_first(to + i, max + vlog(sum), present);
    }
}

static void target_probabilities(const float *target_loss, float *probability, float *complement,
                                 size_t count) {
    for (size_t i = 0; i < count; i += LMK_LANES) {
        const size_t present = count - i < LMK_LANES ? count - i : LMK_LANES;
        const f32x16 log_probability = -load_classes(target_loss, i, present);
        store_first(probability + i, vexp(log_probability), present);
        store_first(complement + i, -vexpm1(log_probability), present);
    }
}

/// 1 - tanh^2 x as 4 q / (1 + q)^2 with q = e^(-2 |x|): accurate where tanh has rounded to 1.
LMK_INLINE f32x16 tanh_derivative(f32x16 x) {
    const f32x16 magnitude = x < 0.0f ? -x : x;
    const f32x16 q = vexp_nonpositive(magnitude * -2.0f), one_more = q + 1.0f;
    return q * 4.0f / (one_more * one_more);
}

/// Factors of one row, a copy in every lane.
typedef struct row_constants {
    f32x16 max, inverse_sum, probability, smoothing, entropy, entropy_center;
    /// Lane and vector of the target within the row; the gradient there.
    int64_t target;
    float target_factor, target_complement, target_probability;
} row_constants;

LMK_INLINE void gradient_of_row(const cross_entropy_block *block, const row_constants *row,
                                float *logits, size_t column, size_t columns, int has_softcap,
                                float *bias_sum) {
    for (size_t k = 0; k < columns; k += LMK_LANES) {
        const size_t count = columns - k, at = column + k;
        f32x16 tanh_argument = splat(0);
        const f32x16 a = with_bias(block, load_classes(logits, k, count), at, count);
        const f32x16 z = logit(block, a, has_softcap, &tanh_argument);
        const f32x16 p = vexp_nonpositive(z - row->max) * row->inverse_sum;
        f32x16 smoothing = splat(0);
        if (block->factors.smoothing) {
            const f32x16 weight =
                block->class_weights ? load_classes(block->class_weights, at, count) : splat(1);
            smoothing = row->smoothing * weight;
        }
        // Of p: without the entropy's part it is the same for the whole row.
        f32x16 factor = row->probability;
        if (block->factors.entropy)
            factor = factor - row->entropy * clamp_low(z - row->entropy_center);
        f32x16 gradient = p * factor - smoothing;
        const int64_t lane = row->target - (int64_t)k;
        if (lane >= 0 && lane < LMK_LANES) {
            // p_y - 1 to full precision times g (1 - e) w_y, and the rest of p_y's factor.
            const f32x16 rest = (factor - row->target_factor) * row->target_probability - smoothing;
            const f32x16 exact = rest - splat(row->target_factor) * row->target_complement;
            gradient = choose(lane_numbers() == (int32_t)lane, exact, gradient);
        }
        if (has_softcap) gradient *= tanh_derivative(tanh_argument);
        gradient *= block->logit_scale;
        if (count >= LMK_LANES) store(logits + k, gradient);
        else store_first(logits + k, gradient, count);
        if (bias_sum) store(bias_sum + k, load(bias_sum + k) + gradient);
    }
}

static void gradient(const cross_entropy_block *block, float *logits, size_t stride, size_t column,
                     size_t columns) {
    const row_factors *const factors = &block->factors;
    _Alignas(64) float bias_sum[VOCABULARY_CHUNK];
    for (size_t i = 0; i < block->rows; i++) {
        // Sums over rows go by LMK_DEPTH_BLOCK, as those of the classifier's gradient do.
        if (block->bias_gradient && i % LMK_DEPTH_BLOCK == 0)
            __builtin_memset(bias_sum, 0, sizeof bias_sum);
        const row_constants row = {
            .max = splat(factors->max[i]),
            .inverse_sum = splat(factors->inverse_sum[i]),
            .probability = splat(factors->probability[i]),
            .smoothing = splat(factors->smoothing ? factors->smoothing[i] : 0),
            .entropy = splat(factors->entropy ? factors->entropy[i] : 0),
            .entropy_center = splat(factors->entropy ? factors->entropy_center[i] : 0),
            .target = block->target[i] < 0
                          ? -LMK_LANES
                          : (int64_t)block->target[i] - (int64_t)(block->panel_column + column),
            .target_factor = factors->target[i],
            .target_complement = factors->target_complement[i],
            .target_probability = factors->target_probability[i],
        };
        float *const sums = block->bias_gradient ? bias_sum : 0;
        const size_t at = block->panel_column + column;
        if (block->softcap > 0)
            gradient_of_row(block, &row, logits + i * stride, at, columns, 1, sums);
        else gradient_of_row(block, &row, logits + i * stride, at, columns, 0, sums);
        if (block->bias_gradient &&
            (i % LMK_DEPTH_BLOCK == LMK_DEPTH_BLOCK - 1 || i == block->rows - 1)) {
            for (size_t j = 0; j < columns; j++) block->bias_gradient[at + j] += bias_sum[j];
        }
    }
}
