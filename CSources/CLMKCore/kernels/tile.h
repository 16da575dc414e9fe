// Register tiles and panel packing. Included inside a region.

// Full unrolling of the constant loops is what keeps the accumulators in registers. The largest
// tile leaves room for the vectors of b and one broadcast: AVX-512 14 x 32 (28 accumulators), AVX2
// 6 x 16 (12 of 16), NEON 6 x 16 (24 of 32).
#if defined(LMK_AVX512)
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
// One step is a pair of bfloat16: sum += a.0 b.0 + a.1 b.1, the one place where an intrinsic earns
// its keep (twice the rate).
#define TILE_STEP(sum, a_step, b_step)                                                             \
    sum = (f32x16)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a_step), (__m512bh)(b_step))
#else
#define TILE_STEP(sum, a_step, b_step) sum = (a_step) * (b_step) + (sum)
#endif

// Rows of a as the tile reads them: one after the other, or `lane_stride` apart. The latter go by
// groups of three behind one pointer, which is what x86 addresses can do: p, p + s, p + 2 s. The
// pointers are opaque, or clang computes each from the one before, with additions that take the
// place of multiply-adds (64 x 64 x 64: 82% of the peak instead of 87%).
#define CONTIGUOUS_ROW(i) a[0][i]
#define STRIDED_ROW(i) a[(i) / 3][(size_t)((i) % 3) * lane_stride]

/// The vector that begins at column `from`, cut at `columns`.
LMK_INLINE void store_part(float *to, f32x16 sum, size_t columns, size_t from, int accumulate) {
    const size_t left = columns <= from              ? 0
                        : columns - from < LMK_LANES ? columns - from
                                                     : LMK_LANES;
    store_first(to, accumulate ? load_first(to, left) + sum : sum, left);
}

#define STORE_TILE(ROWS, VECTORS, STORE)                                                           \
    LMK_UNROLL                                                                                     \
    for (int i = 0; i < ROWS; i++) {                                                               \
        LMK_UNROLL                                                                                 \
        for (int j = 0; j < VECTORS; j++) {                                                        \
            float *const to = c + (size_t)i * c_stride + LMK_LANES * (size_t)j;                    \
            STORE;                                                                                 \
        }                                                                                          \
    }

// Panels of 512 steps are larger than L1: what the tile needs next is fetched from L2 ahead of its
// use. The processor's own prefetching leaves 6 points of the peak.
#define PREFETCH_B_STEPS 8
#define PREFETCH_A_STEPS 16

#define DEFINE_TILE(NAME, ROWS, VECTORS, POINTERS, ROW)                                            \
    static void NAME(const lmk_tile *tile) {                                                       \
        const size_t a_stride = tile->a.stride, lane_stride = tile->a.lane_stride,                 \
                     b_stride = tile->b.stride, depth = tile->depth;                               \
        const float *a[POINTERS], *b = tile->b.data;                                               \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < (POINTERS); i++) {                                                     \
            a[i] = (const float *)tile->a.data + 3 * (size_t)i * lane_stride;                      \
        }                                                                                          \
        const char *next = tile->next;                                                             \
        const size_t next_stride = tile->next_stride;                                              \
        float *const c = tile->c;                                                                  \
        const size_t c_stride = tile->c_stride, columns = tile->columns;                           \
        const int accumulate = tile->accumulate;                                                   \
        f32x16 sum[ROWS][VECTORS];                                                                 \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            __builtin_prefetch(c + (size_t)i * c_stride);                                          \
            __builtin_prefetch(c + (size_t)i * c_stride + (columns - 1));                          \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < VECTORS; j++) sum[i][j] = splat(0);                                \
        }                                                                                          \
        for (size_t k = 0; k < depth; k++) {                                                       \
            f32x16 b_step[VECTORS];                                                                \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < VECTORS; j++) {                                                    \
                __builtin_prefetch(b + PREFETCH_B_STEPS * b_stride + LMK_LANES * j);               \
                b_step[j] = load(b + LMK_LANES * j);                                               \
            }                                                                                      \
            __builtin_prefetch(a[0] + PREFETCH_A_STEPS * a_stride);                                \
            __builtin_prefetch(next, 0, 2);                                                        \
            LMK_UNROLL                                                                             \
            for (int i = 0; i < ROWS; i++) {                                                       \
                const f32x16 a_step = splat(ROW(i));                                               \
                LMK_UNROLL                                                                         \
                for (int j = 0; j < VECTORS; j++) TILE_STEP(sum[i][j], a_step, b_step[j]);         \
            }                                                                                      \
            LMK_UNROLL                                                                             \
            for (int i = 0; i < (POINTERS); i++) {                                                 \
                a[i] += a_stride;                                                                  \
                LMK_OPAQUE(a[i]);                                                                  \
            }                                                                                      \
            b += b_stride;                                                                         \
            next += next_stride;                                                                   \
        }                                                                                          \
        if (columns == LMK_LANES * VECTORS && !accumulate) {                                       \
            STORE_TILE(ROWS, VECTORS, store(to, sum[i][j]))                                        \
        } else if (columns == LMK_LANES * VECTORS) {                                               \
            STORE_TILE(ROWS, VECTORS, store(to, load(to) + sum[i][j]))                             \
        } else {                                                                                   \
            STORE_TILE(ROWS, VECTORS,                                                              \
                       store_part(to, sum[i][j], columns, LMK_LANES *(size_t)j, accumulate))       \
        }                                                                                          \
    }

#define DEFINE_TILE_PAIR(ROWS, VECTORS)                                                            \
    DEFINE_TILE(tile_##ROWS##x##VECTORS, ROWS, VECTORS, 1, CONTIGUOUS_ROW)                         \
    DEFINE_TILE(tile_strided_##ROWS##x##VECTORS, ROWS, VECTORS, (ROWS + 2) / 3, STRIDED_ROW)
#define TILE_PAIR(ROWS, VECTORS)                                                                   \
    { tile_##ROWS##x##VECTORS, tile_strided_##ROWS##x##VECTORS }

#if TILE_ROWS == 14
#define FOR_EACH_TILE_HEIGHT(DO)                                                                   \
    DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14)
#define DEFINE_TILES(ROWS) DEFINE_TILE_PAIR(ROWS, 1) DEFINE_TILE_PAIR(ROWS, 2)
#define TILE_ENTRY(ROWS) {TILE_PAIR(ROWS, 1), TILE_PAIR(ROWS, 2)},
#define TILE_COLUMNS 32
#else
#if TILE_ROWS == 6
#define FOR_EACH_TILE_HEIGHT(DO) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6)
#else
#define FOR_EACH_TILE_HEIGHT(DO) DO(1) DO(2) DO(3)
#endif
#define DEFINE_TILES(ROWS) DEFINE_TILE_PAIR(ROWS, 1)
#define TILE_ENTRY(ROWS) {TILE_PAIR(ROWS, 1), {0, 0}},
#define TILE_COLUMNS 16
#endif

FOR_EACH_TILE_HEIGHT(DEFINE_TILES)

#if defined(LMK_TARGET_AVX512_BF16)
#define ELEMENTS_PER_STEP 2
#else
#define ELEMENTS_PER_STEP 1
#endif

LMK_INLINE size_t bytes_of(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// 16 elements as float32, or those below `count` and zero.
LMK_INLINE f32x16 load_elements(const void *x, lmk_dtype dtype, size_t count) {
    return count >= LMK_LANES ? load_as(x, dtype, 0) : load_first_as(x, dtype, 0, count);
}

/// 16 steps of one lane; elements beyond `count` are zero.
LMK_INLINE f32x16 load_steps(const void *x, lmk_dtype dtype, size_t count) {
#if defined(LMK_TARGET_AVX512_BF16)
    (void)dtype;
    if (count >= 2 * LMK_LANES) return *(const f32x16_of_halves *)x;
    const uint16_t *const halves = x;
    const size_t second = count > LMK_LANES ? count - LMK_LANES : 0;
    uint16_t pairs[2 * LMK_LANES];
    load_first_halves(pairs, halves, count < LMK_LANES ? count : LMK_LANES);
    load_first_halves(pairs + LMK_LANES, second > 0 ? halves + LMK_LANES : halves, second);
    return *(const f32x16_of_halves *)(const void *)pairs;
#else
    return load_elements(x, dtype, count);
#endif
}

/// The depth is contiguous: 16 steps of `lanes` lanes from `lane` on are transposed at a time.
LMK_INLINE void pack_transposed(float *panel, size_t width, int lanes, const lmk_operand *x,
                                lmk_dtype dtype, size_t lane, size_t step, size_t steps) {
    const size_t bytes = bytes_of(dtype), depth = x->depth,
                 present = lane < x->lanes ? x->lanes - lane : 0;
    // The lanes after these are fetched meanwhile: 8 short streams are more than the hardware
    // follows.
    const size_t next_group = bytes * x->stride * (size_t)lanes;
    const char *source[TRANSPOSE_LANES];
    for (int i = 0; i < lanes; i++) {
        // An absent lane repeats the first one; nobody keeps what is computed from it.
        const size_t at = (size_t)i < present ? lane + (size_t)i : x->lanes - 1;
        source[i] = (const char *)x->data + bytes * x->stride * (x->index ? x->index[at] : at);
    }
    for (size_t k = 0; k < steps; k += LMK_LANES) {
        const size_t at = (step + k) * ELEMENTS_PER_STEP, count = depth - at;
        f32x16 rows[TRANSPOSE_LANES];
        if (count >= LMK_LANES * ELEMENTS_PER_STEP && steps - k >= LMK_LANES) {
            LMK_UNROLL
            for (int i = 0; i < lanes; i++) {
                __builtin_prefetch(source[i] + bytes * at + next_group);
                rows[i] = load_steps(source[i] + bytes * at, dtype, LMK_LANES * ELEMENTS_PER_STEP);
            }
            transpose_lanes(rows, lanes, panel + k * width, width);
            continue;
        }
        _Alignas(64) float last[LMK_LANES][LMK_LANES];
        for (int i = 0; i < lanes; i++) rows[i] = load_steps(source[i] + bytes * at, dtype, count);
        transpose_lanes(rows, lanes, last[0], LMK_LANES);
        for (size_t s = 0; s < steps - k && s < LMK_LANES; s++) {
            for (int i = 0; i < lanes; i++) panel[(k + s) * width + (size_t)i] = last[s][i];
        }
    }
}

/// 16 lanes of one step, from the row that holds them (and the next, for pairs of bfloat16); zero
/// from `count` on.
LMK_INLINE f32x16 load_lanes(const char *row, const char *next, lmk_dtype dtype, size_t count) {
#if defined(LMK_TARGET_AVX512_BF16)
    (void)dtype;
    const __mmask16 mask = (__mmask16)(count >= LMK_LANES ? 0xffffu : (1u << count) - 1u);
    const u32x16 first = (u32x16)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    if (!next) return floats_of(first);
    const u32x16 second = (u32x16)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, next));
    return floats_of(first | second << 16);
#else
    (void)next;
    return load_elements(row, dtype, count);
#endif
}

/// The lanes are contiguous: rows of them are copied.
LMK_INLINE void pack_copied(float *to, size_t width, const lmk_operand *operand, lmk_dtype dtype,
                            const size_t *lanes, size_t panels, size_t step, size_t steps) {
    // Copies on the stack: stores to the panel could otherwise change them, for all the compiler
    // knows.
    const lmk_operand x = *operand;
    size_t offset[LMK_PACK_GROUP], present[LMK_PACK_GROUP];
    for (size_t panel = 0; panel < panels; panel++) {
        offset[panel] = bytes_of(dtype) * lanes[panel];
        present[panel] = x.lanes - lanes[panel];
    }
    const size_t row_bytes = bytes_of(dtype) * x.stride;
    for (size_t k = 0; k < steps; k++) {
        const size_t at = (step + k) * ELEMENTS_PER_STEP;
        const char *const row = (const char *)x.data + row_bytes * (x.index ? x.index[at] : at);
        const char *next = 0;
        if (ELEMENTS_PER_STEP == 2 && at + 1 < x.depth) {
            next = (const char *)x.data + row_bytes * (x.index ? x.index[at + 1] : at + 1);
        }
        for (size_t panel = 0; panel < panels; panel++) {
            float *const put = to + (panel * steps + k) * width;
            const char *const lane = row + offset[panel], *const next_lane =
                                                              next ? next + offset[panel] : 0;
            const f32x16 values = load_lanes(lane, next_lane, dtype, present[panel]);
            if (width == 4) {
                *(f32x4_unaligned *)put = values.lo.lo;
            } else if (width == 8) {
                *(f32x8_unaligned *)put = values.lo;
            } else {
                store(put, values);
            }
            if (width <= LMK_LANES) continue;
            const size_t more = present[panel] > LMK_LANES ? present[panel] - LMK_LANES : 0;
            const size_t skip = bytes_of(dtype) * LMK_LANES;
            store(put + LMK_LANES,
                  more == 0 ? splat(0)
                            : load_lanes(lane + skip, next ? next_lane + skip : 0, dtype, more));
        }
    }
}

LMK_INLINE void pack_as(float *to, size_t width, const lmk_operand *x, lmk_dtype dtype,
                        const size_t *lanes, size_t panels, size_t step, size_t steps) {
    if (!x->depth_contiguous) {
        pack_copied(to, width, x, dtype, lanes, panels, step, steps);
        return;
    }
    const int group = width < TRANSPOSE_LANES ? (int)width : TRANSPOSE_LANES;
    for (size_t i = 0; i < panels; i++) {
        for (size_t j = 0; j < width; j += (size_t)group) {
            pack_transposed(to + i * width * steps + j, width, group, x, dtype, lanes[i] + j, step,
                            steps);
        }
    }
}

static void pack_panels(void *to, size_t width, const lmk_operand *x, const size_t *lanes,
                        size_t panels, size_t step, size_t steps) {
    // Constant widths and types: the loops inside are then without tests.
#define PACK(DTYPE)                                                                                \
    case DTYPE:                                                                                    \
        if (width == ROW_PANEL) pack_as(to, ROW_PANEL, x, DTYPE, lanes, panels, step, steps);      \
        else if (width == LMK_LANES) pack_as(to, LMK_LANES, x, DTYPE, lanes, panels, step, steps); \
        else pack_as(to, 2 * LMK_LANES, x, DTYPE, lanes, panels, step, steps);                     \
        break;
    switch (x->dtype) {
#if !defined(LMK_TARGET_AVX512_BF16)
        PACK(LMK_FLOAT32)
        PACK(LMK_FLOAT16)
#endif
        PACK(LMK_BFLOAT16)
    default: break;
    }
#undef PACK
}
