// Rows that arrive in blocks. Included inside a region, after reduce.h.

LMK_INLINE void scale_row(float *row, size_t width, float factor) {
    FOR_EACH_VECTOR(0, width, {
        (void)lane;
        put_entries(row, LMK_FLOAT32, i, entries(row, LMK_FLOAT32, i, count) * factor, count);
    });
}

LMK_INLINE void accumulate_row(const lmk_accumulator *a, const lmk_accumulator_block *block,
                               lmk_dtype dtype, size_t row, float *weights) {
    const row_source s = {.x = row_at(block->scores, dtype, block->scores_stride, row),
                          .next = row_at(block->scores, dtype, block->scores_stride, row + 1),
                          .scale = block->scale,
                          .count = block->count};
    const float largest = extremes(&s, dtype, 1, 0, block->count, 1).max;
    const float max = largest > a->max[row] ? largest : a->max[row];
    const float factor = vexp_difference(splat(a->max[row]) - max, 1).x;
    const float sum = exponential_sum(&s, dtype, 1, 0, block->count, max, weights, 0);
    a->sum[row] = a->sum[row] * factor + sum;
    a->max[row] = max;
    if (factor != 1.0f) scale_row(a->values + a->width * row, a->width, factor);
}

static void accumulate(const lmk_accumulator *a, const lmk_accumulator_block *block, size_t row,
                       size_t rows, float *weights) {
    for (size_t r = row; r < row + rows; r++) {
        float *const to = weights ? weights + block->count * r : 0;
        switch (block->dtype) {
        case LMK_FLOAT32: accumulate_row(a, block, LMK_FLOAT32, r, to); break;
        case LMK_BFLOAT16: accumulate_row(a, block, LMK_BFLOAT16, r, to); break;
        case LMK_FLOAT16: accumulate_row(a, block, LMK_FLOAT16, r, to); break;
        }
    }
}

static void merge(const lmk_accumulator *a, const lmk_accumulator *other, size_t row, size_t rows) {
    for (size_t r = row; r < row + rows; r++) {
        row_state state = {.max = a->max[r], .sum = a->sum[r]};
        const row_state from = {.max = other->max[r], .sum = other->sum[r]};
        combine(REDUCE_ONLINE, &state, &from, 1);
        const float factor = vexp_difference(splat(a->max[r]) - state.max, 1).x,
                    other_factor = vexp_difference(splat(from.max) - state.max, 1).x;
        float *const values = a->values + a->width * r;
        const float *const others = other->values + a->width * r;
        FOR_EACH_VECTOR(0, a->width, {
            (void)lane;
            const f32x16 added = entries(others, LMK_FLOAT32, i, count) * other_factor;
            const f32x16 sum = entries(values, LMK_FLOAT32, i, count) * factor + added;
            put_entries(values, LMK_FLOAT32, i, sum, count);
        });
        a->max[r] = state.max;
        a->sum[r] = state.sum;
    }
}

static void finish(const lmk_accumulator *a, float *lse, float *output, size_t output_stride,
                   size_t row, size_t rows) {
    for (size_t r = row; r < row + rows; r++) {
        const row_state state = {.max = a->max[r], .sum = a->sum[r]};
        if (lse) log_sum_exp(&state, lse + r, 1);
        if (!output) continue;
        const float factor = state.sum == 0.0f ? 0.0f : 1.0f / state.sum;
        const float *const values = a->values + a->width * r;
        float *const to = output + output_stride * r;
        FOR_EACH_VECTOR(0, a->width, {
            (void)lane;
            put_entries(to, LMK_FLOAT32, i, entries(values, LMK_FLOAT32, i, count) * factor, count);
        });
    }
}
