// Passes that write a slice begin..<end of one row, end at most its count. Included inside a
// region, after reduce.h. They return sum_j x_j du_j where the gradient of scale is asked for.

/// Writes VALUE to every entry of a slice of the row `to`: past the caches where the call asks for
/// it, from the first whole line on, with FETCHES for each vector.
#define WRITE_EACH(to, FETCHES, VALUE)                                                             \
    do {                                                                                           \
        size_t first = begin;                                                                      \
        if (job->is_streaming) {                                                                   \
            const size_t head = entries_to_line(to, dtype, begin);                                 \
            if (head > 0 && head < end - begin) {                                                  \
                const size_t i = begin, count = head;                                              \
                put_entries(to, dtype, i, VALUE, count);                                           \
            }                                                                                      \
            if (head < end - begin) first = begin + head;                                          \
            for (; head < end - begin && first + ROUND <= end; first += ROUND) {                   \
                const size_t place = fetched_by(first);                                            \
                LMK_UNROLL                                                                         \
                for (size_t lane = 0; lane < ROUND_VECTORS; lane++) {                              \
                    const size_t i = first + LMK_LANES * lane, count = LMK_LANES;                  \
                    FETCHES;                                                                       \
                    stream_entries(to, dtype, i, VALUE);                                           \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        FOR_EACH_VECTOR(first, end, {                                                              \
            (void)lane;                                                                            \
            put_entries(to, dtype, i, VALUE, count);                                               \
        });                                                                                        \
    } while (0)

/// Entries from entry `begin` to the next that lies at a line of 16 entries.
LMK_INLINE size_t entries_to_line(const void *row, lmk_dtype dtype, size_t begin) {
    const size_t size = element_size(dtype), line = LMK_LANES * size;
    const uintptr_t at = (uintptr_t)row + size * begin;
    return (line - at % line) % line / size;
}

LMK_INLINE void stream_entries(void *row, lmk_dtype dtype, size_t i, f32x16 v) {
    if (dtype == LMK_FLOAT32) {
        __builtin_nontemporal_store(v, (f32x16 *)(void *)((float *)row + i));
    } else {
        uint16_t *const to = (uint16_t *)row + i;
        __builtin_nontemporal_store(dtype == LMK_BFLOAT16 ? to_bf16(v) : to_f16(v),
                                    (u16x16 *)(void *)to);
    }
}

LMK_INLINE void *job_row(const softmax_job *job, lmk_dtype dtype, size_t row) {
    return row_at(job->y, dtype, job->y_stride, row);
}

LMK_INLINE float write_row_softmax(const softmax_job *job, const row_source *s, size_t row,
                                   lmk_dtype dtype, int general, size_t begin, size_t end,
                                   row_state state, const float *store) {
    (void)store;
    const float max = state.max, factor = 1.0f / state.sum;
    WRITE_EACH(job_row(job, dtype, row), FETCH_NEXT(s->x),
               exponential(s, dtype, general, i, count, max, 0) * factor);
    return 0;
}

LMK_INLINE float write_row_log_softmax(const softmax_job *job, const row_source *s, size_t row,
                                       lmk_dtype dtype, int general, size_t begin, size_t end,
                                       row_state state, const float *store) {
    (void)store;
    const float max = state.max, log_sum = vlog(splat(state.sum)).x;
    WRITE_EACH(job_row(job, dtype, row), FETCH_NEXT(s->x),
               (logits(s, dtype, general, i, count) - max) - log_sum);
    return 0;
}

LMK_INLINE float write_row_scaled(const softmax_job *job, const row_source *s, size_t row,
                                  lmk_dtype dtype, int general, size_t begin, size_t end,
                                  row_state state, const float *store) {
    (void)s, (void)general;
    const float factor = 1.0f / state.sum;
    WRITE_EACH(job_row(job, dtype, row), (void)place,
               entries(store, LMK_FLOAT32, i, count) * factor);
    return 0;
}

LMK_INLINE float write_row_stable_max(const softmax_job *job, const row_source *s, size_t row,
                                      lmk_dtype dtype, int general, size_t begin, size_t end,
                                      row_state state, const float *store) {
    (void)store;
    const float factor = 1.0f / state.sum;
    f32x16 q;
    WRITE_EACH(job_row(job, dtype, row), FETCH_NEXT(s->x),
               stable(logits(s, dtype, general, i, count), &q) * factor);
    return 0;
}

/// log s(u): log1p |u| with the sign of u.
LMK_INLINE f32x16 log_stable(f32x16 u) {
    const u32x16 sign = bits_of(u) & 0x80000000u;
    return floats_of(bits_of(vlog1p(floats_of(bits_of(u) ^ sign))) ^ sign);
}

LMK_INLINE float write_row_log_stable_max(const softmax_job *job, const row_source *s, size_t row,
                                          lmk_dtype dtype, int general, size_t begin, size_t end,
                                          row_state state, const float *store) {
    (void)store;
    const float log_sum = vlog(splat(state.sum)).x;
    WRITE_EACH(job_row(job, dtype, row), FETCH_NEXT(s->x),
               log_stable(logits(s, dtype, general, i, count)) - log_sum);
    return 0;
}

// ---- Gradients

/// What a pass over y and dy fetches of them: the block after its own, or the same one of a later
/// row.
LMK_INLINE void fetch_pair(const softmax_job *job, lmk_dtype dtype, size_t row, size_t i) {
    const size_t later = row + job->later_rows, next = job->later_rows > 0 ? 0 : FETCH_BLOCK;
    if (later >= job->softmax->rows) return;
    fetch(row_at(job->y, dtype, job->y_stride, later), dtype, i + next);
    fetch(row_at(job->dy, dtype, job->dy_stride, later), dtype, i + next);
}
#define FETCH_PAIR fetch_pair(job, dtype, row, place + FETCH_STEP * lane)

/// Writes dx = scale du and sums x du but where ABSENT is set: entries of u = -infinity, whose x
/// may be that too.
#define WRITE_GRADIENT(FETCHES, DU, ABSENT)                                                        \
    void *const dx = row_at(job->dx, dtype, job->dx_stride, row);                                  \
    const float scale = s->scale;                                                                  \
    if (!job->has_scale_gradient) {                                                                \
        WRITE_EACH(dx, FETCHES, (DU)*scale);                                                       \
        return 0;                                                                                  \
    }                                                                                              \
    f32x16 sum[ROUND_VECTORS];                                                                     \
    clear_sums(sum);                                                                               \
    FOR_EACH_VECTOR(begin, end, {                                                                  \
        const f32x16 du = DU;                                                                      \
        const f32x16 x = choose(ABSENT, splat(0), entries(s->x, dtype, i, count));                 \
        sum[lane] = x * choose(ABSENT, splat(0), du) + sum[lane];                                  \
        if (job->dx) put_entries(dx, dtype, i, du *scale, count);                                  \
    });                                                                                            \
    return sum_of(sum)

LMK_INLINE float write_row_softmax_gradient(const softmax_job *job, const row_source *s, size_t row,
                                            lmk_dtype dtype, int general, size_t begin, size_t end,
                                            row_state state, const float *store) {
    (void)general, (void)store;
    const void *const y = row_at(job->y, dtype, job->y_stride, row);
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    const float dot = state.gradient;
    f32x16 p;
    WRITE_GRADIENT(FETCH_PAIR,
                   (p = entries(y, dtype, i, count)) * (entries(dy, dtype, i, count) - dot),
                   p == 0.0f);
}

LMK_INLINE float write_row_log_softmax_gradient(const softmax_job *job, const row_source *s,
                                                size_t row, lmk_dtype dtype, int general,
                                                size_t begin, size_t end, row_state state,
                                                const float *store) {
    (void)general, (void)store;
    const void *const y = row_at(job->y, dtype, job->y_stride, row);
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    const float total = state.gradient;
    f32x16 log_p;
    WRITE_GRADIENT(FETCH_PAIR,
                   entries(dy, dtype, i, count) -
                       vexp_nonpositive(log_p = entries(y, dtype, i, count)) * total,
                   log_p == -__builtin_inff());
}

LMK_INLINE float write_row_log_sum_exp_gradient(const softmax_job *job, const row_source *s,
                                                size_t row, lmk_dtype dtype, int general,
                                                size_t begin, size_t end, row_state state,
                                                const float *store) {
    (void)store;
    const float max = state.max, factor = 1.0f / state.sum, dy = ((const float *)job->dy)[row];
    f32x16 p;
    WRITE_GRADIENT(FETCH_NEXT(s->x),
                   (p = exponential(s, dtype, general, i, count, max, 0) * factor) * dy, p == 0.0f);
}

LMK_INLINE float write_row_stable_max_gradient(const softmax_job *job, const row_source *s,
                                               size_t row, lmk_dtype dtype, int general,
                                               size_t begin, size_t end, row_state state,
                                               const float *store) {
    (void)store;
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    const float factor = 1.0f / state.sum, dot = state.gradient * factor;
    f32x16 p, q;
    WRITE_GRADIENT(FETCH_NEXT(s->x),
                   (p = stable(logits(s, dtype, general, i, count), &q) * factor) * q *
                       (entries(dy, dtype, i, count) - dot),
                   p == 0.0f);
}

LMK_INLINE float write_row_log_stable_max_gradient(const softmax_job *job, const row_source *s,
                                                   size_t row, lmk_dtype dtype, int general,
                                                   size_t begin, size_t end, row_state state,
                                                   const float *store) {
    (void)store;
    const void *const dy = row_at(job->dy, dtype, job->dy_stride, row);
    const float factor = 1.0f / state.sum, total = state.gradient;
    f32x16 u, p, q;
    // p may also be 0 beside a much larger entry: not so du. In a row of -infinity it is NaN.
    WRITE_GRADIENT(FETCH_NEXT(s->x),
                   ((u = logits(s, dtype, general, i, count)), (p = stable(u, &q) * factor),
                    q * (entries(dy, dtype, i, count) - p * total)),
                   (u == -__builtin_inff()) & (p == 0.0f));
}

/// Entries of a slice that do not take part: `value`.
LMK_INLINE void fill_row(void *row, lmk_dtype dtype, size_t begin, size_t end, float value) {
    FOR_EACH_VECTOR(begin, end, {
        (void)lane;
        put_entries(row, dtype, i, splat(value), count);
    });
}
