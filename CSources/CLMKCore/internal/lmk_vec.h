// The 16-lane logical vector that every kernel is written over, and its loads, stores and
// reductions. Included inside a region, once per instruction set: a vector is one register on
// AVX-512, two on AVX2, four on NEON and SSE2. The order of every reduction is fixed here, so
// results agree to the bit wherever there is fused multiply-add.
//
// Write fused multiply-add as `a * b + c` in one expression.

typedef float f32x16 __attribute__((ext_vector_type(16)));
typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef int32_t i32x16 __attribute__((ext_vector_type(16)));
typedef uint32_t u32x16 __attribute__((ext_vector_type(16)));
typedef uint16_t u16x16 __attribute__((ext_vector_type(16)));
typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));
typedef float f32x16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef float f32x16_of_halves __attribute__((ext_vector_type(16), aligned(2)));
typedef uint16_t u16x16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
typedef float f32x8_unaligned __attribute__((ext_vector_type(8), aligned(4)));
typedef float f32x4_unaligned __attribute__((ext_vector_type(4), aligned(4)));

#define LMK_INLINE static inline __attribute__((always_inline))
#define LMK_UNROLL _Pragma("clang loop unroll(full)")
#define LMK_LANES 16
/// Keeps the compiler from knowing where `pointer` comes from.
#define LMK_OPAQUE(pointer) __asm__("" : "+r"(pointer))

LMK_INLINE f32x16 load(const float *p) { return *(const f32x16_unaligned *)p; }
LMK_INLINE void store(float *p, f32x16 v) { *(f32x16_unaligned *)p = v; }
LMK_INLINE f32x16 splat(float x) { return (f32x16)x; }

LMK_INLINE u32x16 bits_of(f32x16 v) { return (u32x16)v; }
LMK_INLINE f32x16 floats_of(u32x16 v) { return (f32x16)v; }
LMK_INLINE i32x16 signed_of(u32x16 v) { return (i32x16)v; }

/// yes where the mask (all ones or zero per lane) is set, else no.
LMK_INLINE f32x16 choose(i32x16 mask, f32x16 yes, f32x16 no) { return mask ? yes : no; }

/// First `count` <= 16 lanes from memory, the others zero; reads nothing beyond.
LMK_INLINE f32x16 load_first(const float *p, size_t count) {
#if defined(LMK_AVX512)
    return (f32x16)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), p);
#else
    float lanes[LMK_LANES] = {0};
    for (size_t i = 0; i < count; i++) lanes[i] = p[i];
    return load(lanes);
#endif
}

/// First `count` <= 16 lanes to memory; writes nothing beyond.
LMK_INLINE void store_first(float *p, f32x16 v, size_t count) {
#if defined(LMK_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1u), (__m512)v);
#else
    float lanes[LMK_LANES];
    store(lanes, v);
    for (size_t i = 0; i < count; i++) p[i] = lanes[i];
#endif
}

/// Whether the mask is set in any lane.
LMK_INLINE int any_of(i32x16 mask) {
#if defined(LMK_AVX512)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#else
    return __builtin_reduce_or(mask) != 0;
#endif
}

/// 0, 1, ..., 15.
LMK_INLINE i32x16 lane_numbers(void) {
    return (i32x16){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

LMK_INLINE f32x16 max_of(f32x16 a, f32x16 b) { return a > b ? a : b; }
LMK_INLINE f32x16 min_of(f32x16 a, f32x16 b) { return a < b ? a : b; }

/// Sum of the lanes: halves added, lane i to lane i + 8, then 4, 2, 1.
LMK_INLINE float reduce_sum(f32x16 v) {
    const f32x8 a = v.lo + v.hi;
    const f32x4 b = a.lo + a.hi;
    const f32x2 c = b.lo + b.hi;
    return c.x + c.y;
}

/// Largest lane; a NaN lane may or may not win.
LMK_INLINE float reduce_max(f32x16 v) {
    const f32x8 a = v.lo > v.hi ? v.lo : v.hi;
    const f32x4 b = a.lo > a.hi ? a.lo : a.hi;
    const f32x2 c = b.lo > b.hi ? b.lo : b.hi;
    return c.x > c.y ? c.x : c.y;
}
