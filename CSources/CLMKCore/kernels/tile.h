// Register tiles and panel packing. Included inside a region.

// Full unrolling of the constant loops is what keeps the accumulators in registers. The largest tile leaves room for the
// vectors of b and one broadcast: AVX-512 14 x 32 (28 accumulators), AVX2 6 x 16 (12 of 16), NEON 6 x 16 (24 of 32).
#if defined(LMK_TARGET_AVX512) || defined(LMK_TARGET_AVX512_BF16)
#define TILE_ROWS 14
#define ROW_PANEL 16
#elif defined(LMK_TARGET_GENERIC)
#define TILE_ROWS 3
#define ROW_PANEL 4
#else
#define TILE_ROWS 6
#define ROW_PANEL 8
#endif

#if defined(LMK_TARGET_AVX512_BF16)
// One step is a pair of bfloat16: sum += a.0 b.0 + a.1 b.1, the one place where an intrinsic earns its keep (twice the rate).
#define TILE_STEP(sum, a_step, b_step)                                                                                   \
    sum = (f32x16)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a_step), (__m512bh)(b_step))
#else
#define TILE_STEP(sum, a_step, b_step) sum = (a_step) * (b_step) + (sum)
#endif

#define DEFINE_TILE(ROWS, VECTORS)                                                                                       \
    static void tile_##ROWS##x##VECTORS(const void *a_panel, const void *b_panel, size_t depth, float *c, size_t c_stride, \
                                        size_t columns, int accumulate) {                                               \
        const float *a = a_panel, *b = b_panel;                                                                          \
        f32x16 sum[ROWS][VECTORS];                                                                                       \
        LMK_UNROLL for (int i = 0; i < ROWS; i++) {                                                                      \
            __builtin_prefetch(c + i * c_stride);                                                                        \
            __builtin_prefetch(c + i * c_stride + (columns - 1));                                                        \
            LMK_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = splat(0);                                           \
        }                                                                                                                \
        for (size_t k = 0; k < depth; k++) {                                                                             \
            f32x16 b_step[VECTORS];                                                                                      \
            LMK_UNROLL for (int j = 0; j < VECTORS; j++) b_step[j] = load(b + LMK_LANES * j);                            \
            LMK_UNROLL for (int i = 0; i < ROWS; i++) {                                                                  \
                const f32x16 a_step = splat(a[i]);                                                                       \
                LMK_UNROLL for (int j = 0; j < VECTORS; j++) TILE_STEP(sum[i][j], a_step, b_step[j]);                    \
            }                                                                                                            \
            a += ROW_PANEL;                                                                                              \
            b += LMK_LANES * VECTORS;                                                                                    \
        }                                                                                                                \
        if (columns == LMK_LANES * VECTORS) {                                                                            \
            LMK_UNROLL for (int i = 0; i < ROWS; i++) {                                                                  \
                LMK_UNROLL for (int j = 0; j < VECTORS; j++) {                                                           \
                    float *const to = c + i * c_stride + LMK_LANES * j;                                                  \
                    store(to, accumulate ? load(to) + sum[i][j] : sum[i][j]);                                            \
                }                                                                                                        \
            }                                                                                                            \
        } else {                                                                                                         \
            LMK_UNROLL for (int i = 0; i < ROWS; i++) {                                                                  \
                LMK_UNROLL for (int j = 0; j < VECTORS; j++) {                                                           \
                    const size_t from = LMK_LANES * (size_t)j;                                                           \
                    const size_t count = columns <= from ? 0 : columns - from < LMK_LANES ? columns - from : LMK_LANES;  \
                    float *const to = c + i * c_stride + from;                                                           \
                    store_first(to, accumulate ? load_first(to, count) + sum[i][j] : sum[i][j], count);                  \
                }                                                                                                        \
            }                                                                                                            \
        }                                                                                                                \
    }

#if TILE_ROWS == 14
#define FOR_EACH_TILE_HEIGHT(DO)                                                                                         \
    DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14)
#define DEFINE_TILES(ROWS) DEFINE_TILE(ROWS, 1) DEFINE_TILE(ROWS, 2)
#define TILE_ENTRY(ROWS) {tile_##ROWS##x1, tile_##ROWS##x2},
#define TILE_COLUMNS 32
#else
#if TILE_ROWS == 6
#define FOR_EACH_TILE_HEIGHT(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6)
#else
#define FOR_EACH_TILE_HEIGHT(DO) DO(1) DO(2) DO(3)
#endif
#define DEFINE_TILES(ROWS) DEFINE_TILE(ROWS, 1)
#define TILE_ENTRY(ROWS) {tile_##ROWS##x1, 0},
#define TILE_COLUMNS 16
#endif

FOR_EACH_TILE_HEIGHT(DEFINE_TILES)

/// 16 steps of one lane from element `at` on; beyond `count` elements they are zero.
LMK_INLINE f32x16 load_steps(const void *data, lmk_dtype dtype, size_t at, size_t count) {
#if defined(LMK_TARGET_AVX512_BF16)
    (void)dtype;
    const uint16_t *const x = (const uint16_t *)data + at;
    if (count >= 2 * LMK_LANES) return load((const float *)(const void *)x);
    uint16_t pairs[2 * LMK_LANES] = {0};
    for (size_t i = 0; i < count; i++) pairs[i] = x[i];
    return load((const float *)(const void *)pairs);
#else
    if (dtype == LMK_FLOAT32) {
        const float *const x = (const float *)data + at;
        return count >= LMK_LANES ? load(x) : load_first(x, count);
    }
    const uint16_t *x = (const uint16_t *)data + at;
    uint16_t lanes[LMK_LANES] = {0};
    if (count < LMK_LANES) {
        for (size_t i = 0; i < count; i++) lanes[i] = x[i];
        x = lanes;
    }
    return dtype == LMK_BFLOAT16 ? load_bf16(x) : load_f16(x);
#endif
}

/// Four lanes of 16 steps become 16 steps of four lanes at panel, panel + width, ...: two rounds of interleaving inside quarters,
/// after which quarter q of vector s holds step 4 q + s.
LMK_INLINE void store_transposed(float *panel, size_t width, const f32x16 x[4], size_t steps) {
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
    const f32x16 low01 = LOW(x[0], x[1]), high01 = HIGH(x[0], x[1]);
    const f32x16 low23 = LOW(x[2], x[3]), high23 = HIGH(x[2], x[3]);
    const f32x16 y[4] = {LOW_PAIRS(low01, low23), HIGH_PAIRS(low01, low23), LOW_PAIRS(high01, high23),
                         HIGH_PAIRS(high01, high23)};
#undef LOW
#undef HIGH
#undef LOW_PAIRS
#undef HIGH_PAIRS
    if (steps >= LMK_LANES) {
        LMK_UNROLL for (int s = 0; s < 4; s++) {
            *(f32x4_unaligned *)(panel + (size_t)(0 + s) * width) = y[s].lo.lo;
            *(f32x4_unaligned *)(panel + (size_t)(4 + s) * width) = y[s].lo.hi;
            *(f32x4_unaligned *)(panel + (size_t)(8 + s) * width) = y[s].hi.lo;
            *(f32x4_unaligned *)(panel + (size_t)(12 + s) * width) = y[s].hi.hi;
        }
        return;
    }
    float quarters[4][LMK_LANES];
    LMK_UNROLL for (int s = 0; s < 4; s++) store(quarters[s], y[s]);
    for (size_t k = 0; k < steps; k++) {
        for (size_t i = 0; i < 4; i++) panel[k * width + i] = quarters[k % 4][k / 4 * 4 + i];
    }
}

#if defined(LMK_TARGET_AVX512_BF16)
#define ELEMENTS_PER_STEP 2
#else
#define ELEMENTS_PER_STEP 1
#endif

/// The depth is contiguous: groups of four lanes are transposed.
LMK_INLINE void pack_transposed(float *panel, size_t width, const lmk_operand *x, lmk_dtype dtype, size_t lane, size_t step,
                                size_t steps) {
    const size_t size = dtype == LMK_FLOAT32 ? 4 : 2;
    const size_t present = x->lanes - lane;
    for (size_t group = 0; group < width; group += 4) {
        const char *source[4];
        for (size_t i = 0; i < 4; i++) {
            const size_t at = lane + (group + i < present ? group + i : 0);
            source[i] = (const char *)x->data + size * x->stride * (x->index ? x->index[at] : at);
        }
        for (size_t k = 0; k < steps; k += LMK_LANES) {
            const size_t at = (step + k) * ELEMENTS_PER_STEP;
            f32x16 rows[4];
            LMK_UNROLL for (size_t i = 0; i < 4; i++) {
                rows[i] = group + i < present ? load_steps(source[i], dtype, at, x->depth - at) : splat(0);
            }
            store_transposed(panel + k * width + group, width, rows, steps - k);
        }
    }
}

#if defined(LMK_TARGET_AVX512_BF16)
LMK_INLINE f32x16 load_bf16_first(const void *data, size_t count) {
    const __mmask16 mask = (__mmask16)(count >= LMK_LANES ? 0xffffu : (1u << count) - 1u);
    const __m256i x = _mm256_maskz_loadu_epi16(mask, data);
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}
#endif

/// `count` lanes of one step, from element (step, lane) on; zero beyond.
LMK_INLINE f32x16 load_lanes(const lmk_operand *x, lmk_dtype dtype, size_t step, size_t lane, size_t count) {
    const size_t size = dtype == LMK_FLOAT32 ? 4 : 2, at = step * ELEMENTS_PER_STEP;
    const char *const row = (const char *)x->data + size * (x->stride * (x->index ? x->index[at] : at) + lane);
#if defined(LMK_TARGET_AVX512_BF16)
    // Two rows interleaved.
    const u32x16 first = bits_of(load_bf16_first(row, count)) >> 16;
    if (at + 1 >= x->depth) return floats_of(first);
    const char *const next = (const char *)x->data + size * (x->stride * (x->index ? x->index[at + 1] : at + 1) + lane);
    return floats_of(first | bits_of(load_bf16_first(next, count)));
#else
    return load_steps(row, dtype, 0, count);
#endif
}

/// The lanes are contiguous: rows of them are copied.
LMK_INLINE void pack_copied(float *to, size_t width, const lmk_operand *x, lmk_dtype dtype, const size_t *lanes, size_t panels,
                            size_t step, size_t steps) {
    for (size_t k = 0; k < steps; k++) {
        for (size_t panel = 0; panel < panels; panel++) {
            float *const row = to + (panel * steps + k) * width;
            const size_t present = x->lanes - lanes[panel];
            if (width < LMK_LANES) {
                // Panels of 8 or 4 lanes are those of a on narrower instruction sets.
                const f32x16 values = load_lanes(x, dtype, step + k, lanes[panel], present);
                *(f32x4_unaligned *)row = values.lo.lo;
                if (width == 8) *(f32x4_unaligned *)(row + 4) = values.lo.hi;
                continue;
            }
            for (size_t i = 0; i < width; i += LMK_LANES) {
                store(row + i, i < present ? load_lanes(x, dtype, step + k, lanes[panel] + i, present - i) : splat(0));
            }
        }
    }
}

static void pack_panels(void *to, size_t width, const lmk_operand *x, const size_t *lanes, size_t panels, size_t step,
                        size_t steps) {
    switch (x->dtype) {
#define PACK(DTYPE)                                                                                                      \
    case DTYPE:                                                                                                          \
        if (!x->depth_contiguous) {                                                                                      \
            pack_copied(to, width, x, DTYPE, lanes, panels, step, steps);                                                \
        } else {                                                                                                         \
            for (size_t i = 0; i < panels; i++) {                                                                        \
                pack_transposed((float *)to + i * width * steps, width, x, DTYPE, lanes[i], step, steps);                \
            }                                                                                                            \
        }                                                                                                                \
        break;
#if !defined(LMK_TARGET_AVX512_BF16)
        PACK(LMK_FLOAT32)
        PACK(LMK_FLOAT16)
#endif
        PACK(LMK_BFLOAT16)
#undef PACK
    default: break;
    }
}
