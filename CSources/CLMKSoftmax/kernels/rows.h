// Rows of entries u = scale x + mask. Included inside a region.

LMK_INLINE size_t element_size(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// Vectors of one round of a loop, enough to keep the units busy.
#define ROUND_VECTORS 4
#define ROUND (ROUND_VECTORS * LMK_LANES)

/// Entries of a block that is fetched while another is computed, in four places at a time, 1024
/// entries apart: with one place after the other a core has too few lines under way.
#define FETCH_BLOCK ((size_t)4096)
#define FETCH_STEP (FETCH_BLOCK / ROUND_VECTORS)

/// The first of the places that a round of ROUND_VECTORS vectors from `round` on fetches of a
/// block.
LMK_INLINE size_t fetched_by(size_t round) {
    const size_t within = round % FETCH_BLOCK;
    return round - within + within / ROUND_VECTORS;
}

/// Brings 16 entries into L2.
LMK_INLINE void fetch(const void *row, lmk_dtype dtype, size_t i) {
    __builtin_prefetch((const char *)row + element_size(dtype) * i, 0, 2);
}

/// Brings what is read a page on into L1, where the processor's own prefetching ends.
LMK_INLINE void fetch_near(const void *row, lmk_dtype dtype, size_t i) {
    __builtin_prefetch((const char *)row + element_size(dtype) * i + 4096);
}

/// In the body of FOR_EACH_VECTOR: this vector's part of a block of a row.
#define FETCH(row) fetch(row, dtype, place + FETCH_STEP * lane)
/// The same of the block after its own.
#define FETCH_NEXT(row) fetch(row, dtype, place + FETCH_STEP * lane + FETCH_BLOCK)

/// One row. `general`, wherever it is passed beside, is a constant: 0 means u = x.
typedef struct row_source {
    /// The row, and what is read after the block that a pass is at: the next block, or the same one
    /// of a later row.
    const void *x, *next;
    const float *mask;
    float scale;
    /// Entries that take part.
    size_t count;
} row_source;

/// Null where the matrix is: one that a call does not need.
LMK_INLINE void *row_at(const void *matrix, lmk_dtype dtype, size_t stride, size_t row) {
    return matrix ? (char *)(uintptr_t)matrix + element_size(dtype) * stride * row : 0;
}

LMK_INLINE row_source source_of(const softmax_job *job, lmk_dtype dtype, size_t row) {
    const lmk_softmax *const s = job->softmax;
    const void *const x = row_at(s->x, dtype, s->x_stride, row);
    const int has_later = job->later_rows > 0 && job->later_rows < s->rows - row;
    return (row_source){.x = x,
                        .next = has_later ? row_at(s->x, dtype, s->x_stride, row + job->later_rows)
                                          : row_at(x, dtype, FETCH_BLOCK, 1),
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

/// u of 16 entries from i on, those from `count` on -infinity. The product is rounded before the
/// mask is added, with and without fused multiply-add.
LMK_INLINE f32x16 logits(const row_source *s, lmk_dtype dtype, int general, size_t i,
                         size_t count) {
    fetch_near(s->x, dtype, i);
    f32x16 u = entries(s->x, dtype, i, count);
    if (general) {
        u = u * s->scale;
        if (s->mask) u = u + entries(s->mask, LMK_FLOAT32, i, count);
    }
    return count >= LMK_LANES ? u : choose(lanes_below(count), u, splat(-__builtin_inff()));
}

/// Runs BODY for every 16 entries from `begin` to `end`, with `i` the first, `count` how many are
/// left (16 and more in whole vectors, a constant there), `lane` the number of the accumulator, and
/// `place` what FETCH needs.
#define FOR_EACH_VECTOR(begin, end, BODY)                                                          \
    do {                                                                                           \
        size_t round = begin;                                                                      \
        for (; round + ROUND <= end; round += ROUND) {                                             \
            const size_t place = fetched_by(round);                                                \
            LMK_UNROLL                                                                             \
            for (size_t lane = 0; lane < ROUND_VECTORS; lane++) {                                  \
                const size_t i = round + LMK_LANES * lane, count = LMK_LANES;                      \
                (void)place;                                                                       \
                BODY                                                                               \
            }                                                                                      \
        }                                                                                          \
        for (; round + LMK_LANES <= end; round += LMK_LANES) {                                     \
            const size_t lane = 0, i = round, count = LMK_LANES, place = round;                    \
            (void)place;                                                                           \
            BODY                                                                                   \
        }                                                                                          \
        if (round < end) {                                                                         \
            const size_t lane = 0, i = round, count = end - round, place = round;                  \
            (void)place;                                                                           \
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
