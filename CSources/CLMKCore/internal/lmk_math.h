// exp and its relatives over 16 lanes. Included inside a region, after lmk_vec.h.
//
// Each expression can be contracted in one way only, so wherever there is fused multiply-add the
// results have the same bits, NaN included. Errors are the largest over every float32, in units in
// the last place of the exact result: with fused multiply-add, then without it (generic x86-64).
// Tests/Exhaustive/elementwise.c measures them. NaN gives NaN everywhere.

#define LOG2_E 0x1.715476p+0f
// ln 2 in two parts. The first has 15 bits, so that its product with an exponent is exact, fused or
// not.
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
// 3 * 2^22: adding it rounds to an integer n and leaves n in the low bits of the sum. With a bias
// added to the constant, those bits shifted left by 23 are the float 2^(n + bias - 127). Biases are
// even, so that ties round as they do without one.
#define ROUNDER 12582912.0f

/// scale * (e^r - 1 - r) / r^2 for |r| <= ln2 / 2, scale a power of two: degree 4, fitted for e^r -
/// 1 to 0.23 * 2^-24. One degree less is 7.5 * 2^-24 off.
LMK_INLINE f32x16 exp_tail(f32x16 r, float scale) {
    f32x16 p = splat(scale * 0x1.6b6c08p-10f);
    p = p * r + scale * 0x1.122664p-7f;
    p = p * r + scale * 0x1.55571cp-5f;
    p = p * r + scale * 0x1.5554b2p-3f;
    return p * r + scale * 0x1.fffffep-2f;
}

/// scale * e^r for |r| <= ln2 / 2, scale a power of two.
LMK_INLINE f32x16 exp_reduced(f32x16 r, float scale) {
    const f32x16 p = exp_tail(r, scale) * r + scale;
    return p * r + scale;
}

/// Method: e^x = 2^n e^r with |r| <= ln2 / 2; the product with 2^n is rounded once, also where it
/// is denormal. Error: 0.91 ulp, 1.19 ulp unfused. 13 instructions on AVX-512, 18 on AVX2. Range:
/// all; infinity above 88.72, denormal below -87.34, zero below -103.97.
LMK_INLINE f32x16 vexp(f32x16 x) {
    // Clamped so that n is in -150...128. The constant comes first in the comparison because that
    // is how x86's maximum and minimum keep NaN.
    const f32x16 at_least = -104.0f > x ? splat(-104.0f) : x;
    const f32x16 y = 89.0f < at_least ? splat(89.0f) : at_least;
    const float bias = 254.0f;
    const f32x16 t = y * LOG2_E + (ROUNDER + bias);
    const f32x16 n = t - (ROUNDER + bias);
    const f32x16 r_high = y - n * LN2_HIGH;
    const f32x16 r = r_high - n * LN2_LOW;
    const f32x16 p = exp_reduced(r, 1.0f);
#if defined(LMK_AVX512)
    // Same bits as below in one instruction instead of six: 3.7 cycles for 16 lanes instead of 4.9
    // (Zen 5).
    return (f32x16)__builtin_ia32_scalefps512_mask(p, n, p, -1, 4);
#else
    // 2^n as the product of two normal floats: n + 254 is split into halves, each an exponent with
    // its own bias of 127.
    const u32x16 half = bits_of(t) >> 1;
    const u32x16 rest = bits_of(t) - half;
    return p * floats_of(half << 23) * floats_of(rest << 23);
#endif
}

/// Method: vexp, to the bit; 2^(n + 65) is always a normal float here, and 2^-65 is in the
/// coefficients. Error: 0.91 ulp, 1.19 ulp unfused. 13 instructions on AVX-512 and AVX2. Range: x
/// <= 43, -infinity and NaN included; above, the result is meaningless.
LMK_INLINE f32x16 vexp_nonpositive(f32x16 x) {
    const f32x16 y = -104.0f > x ? splat(-104.0f) : x;
    const float bias = 192.0f;
    const f32x16 t = y * LOG2_E + (ROUNDER + bias);
    const f32x16 n = t - (ROUNDER + bias);
    const f32x16 r_high = y - n * LN2_HIGH;
    const f32x16 r = r_high - n * LN2_LOW;
    return exp_reduced(r, 0x1p-65f) * floats_of(bits_of(t) << 23);
}

#define LN2 0x1.62e43p-1f

/// e^x for a difference of two numbers, whose own rounding is up to 0.8 |x| ulp of the result.
/// Method: vexp's with ln 2 as one float, which is 1.9e-9 off. Error: 1.03 ulp for x >= -10, 2.32
/// for x >= -40, 4.48 for x >= -87. Range: x <= 43 as vexp_nonpositive; unless `is_clamped`, a
/// constant, above -1e6, which saves an instruction on AVX-512 and changes no bit.
LMK_INLINE f32x16 vexp_difference(f32x16 x, int is_clamped) {
#if defined(LMK_AVX512)
    const f32x16 low = -104.0f > x ? splat(-104.0f) : x;
    const f32x16 y = is_clamped ? low : x;
    const f32x16 t = y * LOG2_E + ROUNDER;
    const f32x16 n = t - ROUNDER;
    const f32x16 r = y - n * LN2;
    const f32x16 p = exp_reduced(r, 1.0f);
    return (f32x16)__builtin_ia32_scalefps512_mask(p, n, p, -1, 4);
#else
    (void)is_clamped;
    const f32x16 y = -104.0f > x ? splat(-104.0f) : x;
    const float bias = 192.0f;
    const f32x16 t = y * LOG2_E + (ROUNDER + bias);
    const f32x16 n = t - (ROUNDER + bias);
#if defined(LMK_TARGET_GENERIC)
    // Unfused, the product with ln 2 as one float is rounded: 70 ulp at -75.
    const f32x16 r_high = y - n * LN2_HIGH;
    const f32x16 r = r_high - n * LN2_LOW;
#else
    const f32x16 r = y - n * LN2;
#endif
    return exp_reduced(r, 0x1p-65f) * floats_of(bits_of(t) << 23);
#endif
}

/// x 2^n for x in [0, 2^24) and integers n <= 0. Below 2^-126 the result is denormal or 0, by
/// instruction set: nothing that is added to a number near 1 depends on it.
LMK_INLINE f32x16 times_power(f32x16 x, f32x16 n) {
#if defined(LMK_AVX512)
    return (f32x16)__builtin_ia32_scalefps512_mask(x, n, x, -1, 4);
#else
    const f32x16 exponent = max_of(n, splat(-127.0f)) + (ROUNDER + 127.0f);
    return x * floats_of(bits_of(exponent) << 23);
#endif
}

/// (e^x - 1) / 2 for -80 <= x <= 89: half, because 2^n itself overflows at n = 128.
LMK_INLINE f32x16 half_expm1(f32x16 x) {
    const float bias = 126.0f;
    const f32x16 t = x * LOG2_E + (ROUNDER + bias);
    const f32x16 n = t - (ROUNDER + bias);
    const f32x16 half_power = floats_of(bits_of(t) << 23);
    // 2^n (e^r - 1) + (2^n - 1), with r_high, which is exact, taken into the second term.
    const f32x16 r_high = x - n * LN2_HIGH;
    const f32x16 r_low = n * LN2_LOW;
    const f32x16 r = r_high - r_low;
    const f32x16 r_squared = r * r;
    const f32x16 low = exp_tail(r, 1.0f) * r_squared - r_low;
    const f32x16 high = half_power * r_high + (half_power - 0.5f);
    return half_power * low + high;
}

/// Method: 2^n (e^r - 1) + (2^n - 1) with |r| <= ln2 / 2; x itself where |x| < 2^-63, which keeps
/// -0 and denormals. Error: 1.24 ulp, 1.26 ulp unfused. Range: all; infinity above 88.72, -1 below
/// -17.33.
LMK_INLINE f32x16 vexpm1(f32x16 x) {
    const f32x16 at_least = -25.0f > x ? splat(-25.0f) : x;
    const f32x16 y = 89.0f < at_least ? splat(89.0f) : at_least;
    const f32x16 half = half_expm1(y);
    const i32x16 is_tiny = (bits_of(x) & 0x7fffffffu) < 0x20000000u;
    return choose(is_tiny, x, half + half);
}

/// Method: h / (h + 1), h = (e^2|x| - 1) / 2, with the sign of x.
/// Error: 1.75 ulp, 1.81 ulp unfused.
/// Range: all; -0 and denormals are kept, 1 above 9.01.
LMK_INLINE f32x16 vtanh(f32x16 x) {
    const u32x16 sign = bits_of(x) & 0x80000000u;
    const f32x16 twice = floats_of(bits_of(x + x) & 0x7fffffffu);
    const f32x16 y = 40.0f < twice ? splat(40.0f) : twice;
    const f32x16 half = half_expm1(y);
    const f32x16 quotient = half / (half + 1.0f);
    // h - h h / (h + 1) is the same, and for small h the errors of sum and quotient vanish in
    // it: 2.5 ulp otherwise.
    const f32x16 magnitude = half < 0.5f ? half - half * quotient : quotient;
    return floats_of(bits_of(magnitude) | sign);
}

/// Method: q = e / (1 + e), e = e^-|x|; 1 - q for x >= 0, e - e q, which is q with less error, for
/// x < 0. Error: 1.65 ulp, 1.99 ulp unfused. Range: all; denormal below -87.34, zero below -103.97.
LMK_INLINE f32x16 vsigmoid(f32x16 x) {
    const f32x16 e = vexp_nonpositive(floats_of(bits_of(x) | 0x80000000u));
    // -q, so that nothing is negated below: NEON's multiply-subtract would change the sign of a
    // NaN.
    const f32x16 quotient = e / (-1.0f - e);
    const f32x16 factor = x < 0.0f ? e : splat(1.0f);
    return factor * quotient + factor;
}

// Bits of 3/4, the least mantissa that stays with its exponent. From 3/4 to 3/2, the reduced
// argument of log1p is exact where its exponent is -1 or 1; from sqrt(1/2) to sqrt(2) it is not,
// and log1p is 1.6 ulp off.
#define LOG_LEAST 0x3f400000u

/// log((1 + f) 2^e) for 3/4 <= 1 + f < 3/2, e an integer: f - f^2 / 2 + f^3 P(f), P of degree 7,
/// fitted to 0.083 * 2^-24 of log(1 + f); one degree less is 0.68 * 2^-24 off.
LMK_INLINE f32x16 log_reduced(f32x16 f, f32x16 e) {
    f32x16 p = splat(-0x1.716848p-5f);
    p = p * f + 0x1.ac97f2p-4f;
    p = p * f - 0x1.0d846cp-3f;
    p = p * f + 0x1.288168p-3f;
    p = p * f - 0x1.54f03ep-3f;
    p = p * f + 0x1.9969fep-3f;
    p = p * f - 0x1.00004p-2f;
    p = p * f + 0x1.5555a2p-2f;
    p = p * f - 0.5f;
    const f32x16 f_squared = f * f;
    // What the sum loses of f goes with the small terms.
    const f32x16 high = e * LN2_HIGH + f;
    const f32x16 f_in_high = high - e * LN2_HIGH;
    const f32x16 lost = f - f_in_high;
    const f32x16 low = e * LN2_LOW + lost;
    return high + (p * f_squared + low);
}

/// Method: e ln2 + log(1 + f), -1/4 <= f < 1/2.
/// Error: 0.92 ulp, 0.97 ulp unfused.
/// Range: all, denormals included; log(+-0) = -infinity, log(x < 0) = NaN, log(infinity) =
/// infinity.
LMK_INLINE f32x16 vlog(f32x16 x) {
    const i32x16 is_denormal = x < 0x1p-126f;
    const f32x16 y = choose(is_denormal, x * 0x1p23f, x);
    const i32x16 exponent = signed_of(bits_of(y) - LOG_LEAST) >> 23;
    const f32x16 f = floats_of(bits_of(y) - ((u32x16)exponent << 23)) - 1.0f;
    const f32x16 e =
        __builtin_convertvector(exponent, f32x16) - choose(is_denormal, splat(23.0f), splat(0.0f));
    const f32x16 number = log_reduced(f, e);
    const f32x16 at_most_zero =
        choose(x == 0.0f, splat(-__builtin_inff()), splat(__builtin_nanf("")));
    const f32x16 result = choose(x > 0.0f, number, at_most_zero);
    return choose(x < __builtin_inff(), result, x + x);
}

/// Method: 1 + x only gives the exponent e; f = x 2^-e + (2^-e - 1), then as vlog.
/// Error: 0.92 ulp, 1.00 ulp unfused.
/// Range: all; -0 and denormals are kept, log1p(-1) = -infinity, log1p(x < -1) = NaN,
/// log1p(infinity) = infinity.
LMK_INLINE f32x16 vlog1p(f32x16 x) {
    const f32x16 u = x + 1.0f;
    const u32x16 shifted = bits_of(u) - LOG_LEAST;
    // 4 * 2^-e, because 2^-e is denormal for e = 127 and 128.
    const f32x16 power = floats_of(0x40800000u - (shifted & 0xff800000u));
    const f32x16 four_f = x * power + (power - 4.0f);
    const f32x16 f = four_f * 0.25f;
    const f32x16 e = __builtin_convertvector(signed_of(shifted) >> 23, f32x16);
    const f32x16 number = log_reduced(f, e);
    const f32x16 at_most_minus_one =
        choose(u == 0.0f, splat(-__builtin_inff()), splat(__builtin_nanf("")));
    const f32x16 result = choose(u > 0.0f, number, at_most_minus_one);
    const f32x16 with_infinity = choose(x < __builtin_inff(), result, x + x);
    return choose(x == 0.0f, x, with_infinity);
}
