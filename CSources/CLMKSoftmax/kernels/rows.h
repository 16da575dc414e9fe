// Rows of entries u = scale x + mask. Included inside a region.

/// One row. `general`, wherever it is passed beside, is a constant: 0 means u = x.
typedef struct row_source {
    const void *x;
    const float *mask;
    float scale;
    /// Entries that take part.
    size_t count;
} row_source;

LMK_INLINE size_t element_size(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// Null where the matrix is: one that a call does not need.
LMK_INLINE void *row_at(const void *matrix, lmk_dtype dtype, size_t stride, size_t row) {
    return matrix ? (char *)(uintptr_t)matrix + element_size(dtype) * stride * row : 0;
}

LMK_INLINE row_source source_of(const softmax_job *job, lmk_dtype dtype, size_t row) {
    const lmk_softmax *const s = job->softmax;
    return (row_source){.x = row_at(s->x, dtype, s->x_stride, row),
                        .mask = s->mask ? s->mask + s->mask_stride * (row % s->mask_rows) : 0,
                        .scale = s->scale,
                        .count = softmax_row_count(s, row)};
}

/// A row of a matrix beside x, such as dy.
LMK_INLINE f32x16 entries(const void *row, lmk_dtype dtype, size_t i, size_t count) {
    return count >= LMK_LANES ? load_as(row, dtype, i) : load_first_as(row, dtype, i, count);
}

LMK_INLINE void put_entries(void *row, lmk_dtype dtype, size_t i, f32x16 v, size_t count) {
    if (count >= LMK_LANES) store_as(row, dtype, i, v);
    else store_first_as(row, dtype, i, v, count);
}

/// The mask's lanes below `count`.
LMK_INLINE i32x16 lanes_below(size_t count) {
    return lane_numbers() < (int32_t)(count < LMK_LANES ? count : LMK_LANES);
}

/// Bytes between what is read and what is fetched: into L1 a page, where the processor's own
/// prefetching ends, and where a row is longer than caches into L2 two. One row of 16M entries
/// takes 1.15 ns an entry without either, 0.75 with the first, and 2 to 14% less with both.
#define FETCH_BYTES 4096
#define FETCH_FAR_BYTES 8192

LMK_INLINE void fetch_ahead(const void *row, lmk_dtype dtype, size_t i) {
    __builtin_prefetch((const char *)row + element_size(dtype) * i + FETCH_BYTES);
}

LMK_INLINE void fetch_far_ahead(const void *row, lmk_dtype dtype, size_t i) {
    __builtin_prefetch((const char *)row + element_size(dtype) * i + FETCH_FAR_BYTES, 0, 2);
}

/// u of 16 entries from i on, those from `count` on -infinity. The product is rounded before the
/// mask is added, with and without fused multiply-add.
LMK_INLINE f32x16 logits(const row_source *s, lmk_dtype dtype, int general, size_t i,
                         size_t count) {
    fetch_ahead(s->x, dtype, i);
    f32x16 u = entries(s->x, dtype, i, count);
    if (general) {
        u = u * s->scale;
        if (s->mask) u = u + entries(s->mask, LMK_FLOAT32, i, count);
    }
    return count >= LMK_LANES ? u : choose(lanes_below(count), u, splat(-__builtin_inff()));
}

/// Vectors of one round of a loop, enough to keep the units busy.
#define ROUND_VECTORS 4
#define ROUND (ROUND_VECTORS * LMK_LANES)

/// Runs BODY for every 16 entries from `begin` to `end`, with `i` the first, `count` how many are
/// left (16 and more in whole vectors, a constant there), and `lane` the number of the accumulator.
#define FOR_EACH_VECTOR(begin, end, BODY)                                                          \
    do {                                                                                           \
        size_t round = begin;                                                                      \
        for (; round + ROUND <= end; round += ROUND) {                                             \
            LMK_UNROLL                                                                             \
            for (size_t lane = 0; lane < ROUND_VECTORS; lane++) {                                  \
                const size_t i = round + LMK_LANES * lane, count = LMK_LANES;                      \
                BODY                                                                               \
            }                                                                                      \
        }                                                                                          \
        for (; round + LMK_LANES <= end; round += LMK_LANES) {                                     \
            const size_t lane = 0, i = round, count = LMK_LANES;                                   \
            BODY                                                                                   \
        }                                                                                          \
        if (round < end) {                                                                         \
            const size_t lane = 0, i = round, count = end - round;                                 \
            BODY                                                                                   \
        }                                                                                          \
    } while (0)

/// Sums in each of the accumulators, added in order of halves.
LMK_INLINE float sum_of(const f32x16 sum[ROUND_VECTORS]) {
    return reduce_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/// Entries whose sum is added to the slice's as one number, so that no lane adds more than 64
/// numbers in a chain. Blocks of 1024 round less (softmax of 4000 equal-sized entries 3.2 ulp off
/// instead of 4.1) and take 3% longer.
#define SUM_BLOCK ((size_t)4096)

/// Runs BODY as FOR_EACH_VECTOR does, with `part` for its sums, which are added to `sum` block by
/// block.
#define SUM_EACH(sum, begin, end, BODY)                                                            \
    for (size_t block = begin; block < end; block += SUM_BLOCK) {                                  \
        const size_t block_end = block + SUM_BLOCK < end ? block + SUM_BLOCK : end;                \
        f32x16 part[ROUND_VECTORS];                                                                \
        clear_sums(part);                                                                          \
        FOR_EACH_VECTOR(block, block_end, BODY);                                                   \
        LMK_UNROLL                                                                                 \
        for (int k = 0; k < ROUND_VECTORS; k++) sum[k] += part[k];                                 \
    }

LMK_INLINE void clear_sums(f32x16 sum[ROUND_VECTORS]) {
    LMK_UNROLL
    for (int k = 0; k < ROUND_VECTORS; k++) sum[k] = splat(0);
}
