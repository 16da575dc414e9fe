// bfloat16 and float16 in 16 lanes. Included inside a region, after lmk_vec.h. All conversions give
// the same bits on every instruction set, NaN included: a NaN keeps its sign and the leading bits
// of its payload and becomes quiet. load_bf16 alone keeps a signalling NaN as it is; the first
// arithmetic on it makes it quiet.
//
// bfloat16 is integer arithmetic everywhere: a conversion to __bf16 is a library call per lane.
// float16 is one instruction per register (vcvtph2ps and vcvtps2ph, fcvtl and fcvtn) except on
// generic, where _Float16 would be a library call per lane too.

LMK_INLINE f32x16 load_bf16(const uint16_t *p) {
    return floats_of(__builtin_convertvector(*(const u16x16_unaligned *)p, u32x16) << 16);
}

/// Rounds to nearest even.
LMK_INLINE u16x16 to_bf16(f32x16 v) {
    const u32x16 u = bits_of(v);
    const u32x16 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const u32x16 quiet = (u >> 16) | 0x40u;
    const i32x16 is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    return __builtin_convertvector(is_nan ? quiet : rounded, u16x16);
}

LMK_INLINE void store_bf16(uint16_t *p, f32x16 v) { *(u16x16_unaligned *)p = to_bf16(v); }

#if defined(LMK_TARGET_GENERIC)

/// Exact.
LMK_INLINE f32x16 load_f16(const uint16_t *p) {
    const u32x16 u = __builtin_convertvector(*(const u16x16_unaligned *)p, u32x16);
    const u32x16 magnitude = u & 0x7fffu;
    // Exponent bias 15 to 127, and for infinity and NaN as much again, from 31 to 255.
    const u32x16 finite = (magnitude << 13) + (112u << 23);
    const u32x16 special = finite + (112u << 23);
    const u32x16 quiet = special | 0x400000u;
    // A denormal is its mantissa in units of 2^-24.
    const f32x16 denormal = __builtin_convertvector((i32x16)magnitude, f32x16) * 0x1p-24f;
    const u32x16 normal = (i32x16)magnitude >= 0x7c00 ? special : finite;
    const u32x16 number = (i32x16)magnitude > 0x7c00 ? quiet : normal;
    const u32x16 result = (i32x16)magnitude < 0x400 ? bits_of(denormal) : number;
    return floats_of(result | (u & 0x8000u) << 16);
}

/// Rounds to nearest even.
LMK_INLINE u16x16 to_f16(f32x16 v) {
    const u32x16 u = bits_of(v);
    const u32x16 magnitude = u & 0x7fffffffu;
    // Rounding may carry into the exponent, at 65520 up to infinity.
    const u32x16 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // In [1/2, 1) a float's last place is 2^-24, the unit of denormals: the addition rounds.
    const u32x16 denormal = bits_of(floats_of(magnitude) + 0.5f) - 0x3f000000u;
    const u32x16 quiet = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    const i32x16 order = (i32x16)magnitude;
    const u32x16 small = order < 0x38800000 ? denormal : normal;
    const u32x16 number = order >= 0x47800000 ? (u32x16)0x7c00u : small;
    const u32x16 result = order > 0x7f800000 ? quiet : number;
    return __builtin_convertvector(result | (u >> 16 & 0x8000u), u16x16);
}

#else

/// Exact.
LMK_INLINE f32x16 load_f16(const uint16_t *p) {
    return __builtin_convertvector((f16x16) * (const u16x16_unaligned *)p, f32x16);
}

/// Rounds to nearest even.
LMK_INLINE u16x16 to_f16(f32x16 v) { return (u16x16) __builtin_convertvector(v, f16x16); }

#endif

LMK_INLINE void store_f16(uint16_t *p, f32x16 v) { *(u16x16_unaligned *)p = to_f16(v); }

// ---- Any storage type. `dtype` is a constant wherever these are inlined.

/// 16 elements from element i on.
LMK_INLINE f32x16 load_as(const void *x, lmk_dtype dtype, size_t i) {
    if (dtype == LMK_FLOAT32) return load((const float *)x + i);
    return dtype == LMK_BFLOAT16 ? load_bf16((const uint16_t *)x + i)
                                 : load_f16((const uint16_t *)x + i);
}

LMK_INLINE void store_as(void *y, lmk_dtype dtype, size_t i, f32x16 v) {
    if (dtype == LMK_FLOAT32) store((float *)y + i, v);
    else if (dtype == LMK_BFLOAT16) store_bf16((uint16_t *)y + i, v);
    else store_f16((uint16_t *)y + i, v);
}

/// The first `count` <= 16 elements of two bytes, the others zero; reads nothing beyond.
LMK_INLINE void load_first_halves(uint16_t to[LMK_LANES], const uint16_t *x, size_t count) {
#if defined(LMK_AVX512)
    *(__m256i_u *)to = _mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1u), x);
#else
    for (size_t i = 0; i < LMK_LANES; i++) to[i] = i < count ? x[i] : 0;
#endif
}

/// The `count` < 16 elements from element i on, the other lanes zero; reads nothing beyond.
LMK_INLINE f32x16 load_first_as(const void *x, lmk_dtype dtype, size_t i, size_t count) {
    if (dtype == LMK_FLOAT32) return load_first((const float *)x + i, count);
    uint16_t lanes[LMK_LANES];
    load_first_halves(lanes, (const uint16_t *)x + i, count);
    return load_as(lanes, dtype, 0);
}

/// The first `count` < 16 lanes to element i and on; writes nothing beyond.
LMK_INLINE void store_first_as(void *y, lmk_dtype dtype, size_t i, f32x16 v, size_t count) {
    if (dtype == LMK_FLOAT32) {
        store_first((float *)y + i, v, count);
        return;
    }
    uint16_t lanes[LMK_LANES];
    store_as(lanes, dtype, 0, v);
    uint16_t *const to = (uint16_t *)y + i;
#if defined(LMK_AVX512)
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << count) - 1u), *(const __m256i_u *)lanes);
#else
    for (size_t k = 0; k < count; k++) to[k] = lanes[k];
#endif
}
