// Transposition of 16 steps of a few lanes. Included inside a region, after lmk_vec.h.

/// Four lanes of 16 steps, transposed inside quarters: quarter q of y[s] holds step 4 q + s of the
/// four lanes.
LMK_INLINE void transpose_quarters(const f32x16 x[4], f32x16 y[4]) {
#define LOW(a, b)                                                                                  \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b)                                                                                 \
    __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b)                                                                            \
    __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b)                                                                           \
    __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
    const f32x16 low01 = LOW(x[0], x[1]), high01 = HIGH(x[0], x[1]);
    const f32x16 low23 = LOW(x[2], x[3]), high23 = HIGH(x[2], x[3]);
    y[0] = LOW_PAIRS(low01, low23);
    y[1] = HIGH_PAIRS(low01, low23);
    y[2] = LOW_PAIRS(high01, high23);
    y[3] = HIGH_PAIRS(high01, high23);
#undef LOW
#undef HIGH
#undef LOW_PAIRS
#undef HIGH_PAIRS
}

#define TRANSPOSE_LANES 8

/// 16 steps of 4 or 8 lanes in the panel's order. Groups of 8 measured best on AVX-512: 38 cycles
/// for 256 elements, against 53 for 16 lanes (more shuffles across registers) and 70 for 4 (more
/// stores).
LMK_INLINE void transpose_lanes(const f32x16 *x, int lanes, float *to, size_t width) {
    f32x16 y[2][4];
    LMK_UNROLL
    for (int group = 0; group < lanes / 4; group++) transpose_quarters(x + 4 * group, y[group]);
    LMK_UNROLL
    for (int s = 0; s < 4; s++) {
        float *const step = to + (size_t)s * width;
        if (lanes == 4) {
            *(f32x4_unaligned *)step = y[0][s].lo.lo;
            *(f32x4_unaligned *)(step + 4 * width) = y[0][s].lo.hi;
            *(f32x4_unaligned *)(step + 8 * width) = y[0][s].hi.lo;
            *(f32x4_unaligned *)(step + 12 * width) = y[0][s].hi.hi;
            continue;
        }
#define QUARTERS(a, b, i, j)                                                                       \
    __builtin_shufflevector(a, b, 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3, 4 * i + 16, 4 * i + 17,  \
                            4 * i + 18, 4 * i + 19, 4 * j, 4 * j + 1, 4 * j + 2, 4 * j + 3,        \
                            4 * j + 16, 4 * j + 17, 4 * j + 18, 4 * j + 19)
        const f32x16 first = QUARTERS(y[0][s], y[1][s], 0, 1),
                     second = QUARTERS(y[0][s], y[1][s], 2, 3);
#undef QUARTERS
        *(f32x8_unaligned *)step = first.lo;
        *(f32x8_unaligned *)(step + 4 * width) = first.hi;
        *(f32x8_unaligned *)(step + 8 * width) = second.lo;
        *(f32x8_unaligned *)(step + 12 * width) = second.hi;
    }
}
