// From a product hidden . classifier to a logit z. Included inside a region.

/// Differences of logits below this have probability 0; a clamp keeps -inf out of products with 0.
/// NaN passes.
LMK_INLINE f32x16 clamp_low(f32x16 x) { return -200.0f > x ? splat(-200.0f) : x; }

/// A maximum that may be -inf, as something to subtract: -inf - 0 is -inf, whose exponential is 0.
LMK_INLINE f32x16 finite_or_zero(f32x16 max) { return max == -__builtin_inff() ? splat(0) : max; }

LMK_INLINE f32x16 load_classes(const float *x, size_t at, size_t count) {
    return count >= LMK_LANES ? load(x + at) : load_first(x + at, count);
}

/// hidden . classifier + bias for the classes from `at` on.
LMK_INLINE f32x16 with_bias(const cross_entropy_block *block, f32x16 product, size_t at,
                            size_t count) {
    return block->bias ? product + load_classes(block->bias, at, count) : product;
}

/// z, and the argument of the tanh.
LMK_INLINE f32x16 logit(const cross_entropy_block *block, f32x16 a, int has_softcap,
                        f32x16 *tanh_argument) {
    if (!has_softcap) return a * block->logit_scale;
    *tanh_argument = a * (1.0f / block->softcap);
    const f32x16 s = vtanh(*tanh_argument) * block->softcap;
    return s * block->logit_scale;
}
