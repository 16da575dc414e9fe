// Register tiles of multiply-adds. Included inside a region.

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

#define ROW_UNIT 1
#define STEP_UNIT 1

#if defined(LMK_TARGET_AVX512_BF16)
#define ELEMENTS_PER_STEP 2
// One step is a pair of bfloat16: sum += a.0 b.0 + a.1 b.1, the one place where an intrinsic earns
// its keep (twice the rate).
#define TILE_STEP(sum, a_step, b_step)                                                             \
    sum = (f32x16)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a_step), (__m512bh)(b_step))
#else
#define ELEMENTS_PER_STEP 1
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
            /* Three lines where rows do not begin at one, as in Swift's arrays. */                \
            __builtin_prefetch(c + (size_t)i * c_stride);                                          \
            if (VECTORS > 1) __builtin_prefetch(c + (size_t)i * c_stride + columns / 2);           \
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

#define TILES                                                                                      \
    { FOR_EACH_TILE_HEIGHT(TILE_ENTRY) }

#include "pack.h"
