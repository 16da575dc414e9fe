// The elementwise recurrence: see lmk_elementwise_recurrence. Included inside a region.
//
// Tokens are the outer loop and states lie in L1, so that memory is read in long runs. `writes` and
// the like are constants wherever they are passed.

/// Entries between what is read and what is fetched: a page of float32, where the processor's own
/// prefetching ends.
#define RECURRENCE_FETCH ((size_t)1024)

/// Entries from one of a strip's to the one that is fetched with it, in a later row.
LMK_INLINE size_t recurrence_ahead(size_t channels, size_t stride) {
    return (channels < RECURRENCE_FETCH ? RECURRENCE_FETCH / channels : 1) * stride;
}

LMK_INLINE void recur_strip(const recurrence_strip *strip, lmk_dtype dtype, int writes,
                            int summarizes, int streams) {
    const recurrence_strip s = *strip;
    const size_t head = streams ? s.head : 0;
    const size_t x_ahead = recurrence_ahead(s.channels, s.x_stride),
                 g_ahead = recurrence_ahead(s.channels, s.log_decay_stride);
    if (summarizes) {
        for (size_t c = 0; c < s.channels; c++) s.product[c] = 1, s.local[c] = 0;
    }
    for (size_t t = 0; t < s.tokens; t++) {
        const void *const x = stage_at(s.x, dtype, s.x_stride * t);
        const float *const g = s.log_decay + s.log_decay_stride * t;
        void *const h = stage_at(s.h, dtype, s.h_stride * t);
        STAGE_EACH_VECTOR(head, s.channels, {
            __builtin_prefetch(g + g_ahead + i);
            __builtin_prefetch(stage_at(x, dtype, x_ahead + i));
            const f32x16 decay = vexp_nonpositive(stage_load(g, LMK_FLOAT32, i, count));
            const f32x16 input = stage_load(x, dtype, i, count);
            if (writes) {
                const f32x16 before = stage_load(s.state, LMK_FLOAT32, i, count);
                const f32x16 state = decay * before + input;
                stage_store(s.state, LMK_FLOAT32, i, state, count);
                stage_stream(h, dtype, i, state, count, streams);
            }
            if (summarizes) {
                const f32x16 product = stage_load(s.product, LMK_FLOAT32, i, count);
                const f32x16 before = stage_load(s.local, LMK_FLOAT32, i, count);
                stage_store(s.product, LMK_FLOAT32, i, product * decay, count);
                stage_store(s.local, LMK_FLOAT32, i, decay * before + input, count);
            }
        });
    }
}

LMK_INLINE void recur(const recurrence_strip *s, lmk_dtype dtype) {
    if (!s->h) recur_strip(s, dtype, 0, 1, 0);
    else if (s->product && s->is_streaming) recur_strip(s, dtype, 1, 1, 1);
    else if (s->product) recur_strip(s, dtype, 1, 1, 0);
    else if (s->is_streaming) recur_strip(s, dtype, 1, 0, 1);
    else recur_strip(s, dtype, 1, 0, 0);
}

static void recur_f32(const recurrence_strip *s) { recur(s, LMK_FLOAT32); }
static void recur_bf16(const recurrence_strip *s) { recur(s, LMK_BFLOAT16); }
static void recur_f16(const recurrence_strip *s) { recur(s, LMK_FLOAT16); }

/// The h before token t of a strip.
LMK_INLINE f32x16 recurrence_before(const recurrence_gradient_strip *s, size_t t, lmk_dtype dtype,
                                    size_t i, size_t count) {
    if (t > 0) return stage_load(stage_at(s->h, dtype, s->h_stride * (t - 1)), dtype, i, count);
    if (s->h_before) return stage_load(s->h_before, dtype, i, count);
    if (s->initial_state) return stage_load(s->initial_state, LMK_FLOAT32, i, count);
    return splat(0);
}

LMK_INLINE void recur_back_strip(const recurrence_gradient_strip *strip, lmk_dtype dtype,
                                 int writes, int summarizes, int streams) {
    const recurrence_gradient_strip s = *strip;
    const size_t head = streams ? s.head : 0;
    const size_t dh_ahead = recurrence_ahead(s.channels, s.dh_stride),
                 g_ahead = recurrence_ahead(s.channels, s.log_decay_stride);
    if (summarizes) {
        for (size_t c = 0; c < s.channels; c++) s.product[c] = 1, s.local[c] = 0;
    }
    for (size_t t = s.tokens; t-- > 0;) {
        const float *const g = s.log_decay + s.log_decay_stride * t;
        const void *const dh = stage_at(s.dh, dtype, s.dh_stride * t);
        void *const dx = stage_at(s.dx, dtype, s.dx_stride * t);
        float *const dg = s.dlog_decay ? s.dlog_decay + s.dlog_decay_stride * t : 0;
        STAGE_EACH_VECTOR(head, s.channels, {
            __builtin_prefetch(g + i - g_ahead);
            __builtin_prefetch(stage_at(dh, dtype, i - dh_ahead));
            const f32x16 decay = vexp_nonpositive(stage_load(g, LMK_FLOAT32, i, count));
            const f32x16 upstream = stage_load(dh, dtype, i, count);
            if (writes) {
                const f32x16 after = stage_load(s.state, LMK_FLOAT32, i, count);
                const f32x16 gradient = upstream + after;
                const f32x16 before = decay * gradient;
                stage_store(s.state, LMK_FLOAT32, i, before, count);
                if (dx) stage_stream(dx, dtype, i, gradient, count, streams && s.is_streaming);
                if (dg) {
                    const f32x16 h = recurrence_before(&s, t, dtype, i, count);
                    stage_stream(dg, LMK_FLOAT32, i, before * h, count,
                                 streams && s.is_streaming_decay);
                }
            }
            if (summarizes) {
                const f32x16 product = stage_load(s.product, LMK_FLOAT32, i, count);
                const f32x16 after = stage_load(s.local, LMK_FLOAT32, i, count);
                const f32x16 gradient = upstream + after;
                stage_store(s.product, LMK_FLOAT32, i, product * decay, count);
                stage_store(s.local, LMK_FLOAT32, i, decay * gradient, count);
            }
        });
    }
}

LMK_INLINE void recur_back(const recurrence_gradient_strip *s, lmk_dtype dtype) {
    const int streams = s->is_streaming || s->is_streaming_decay;
    if (!s->state) recur_back_strip(s, dtype, 0, 1, 0);
    else if (s->product && streams) recur_back_strip(s, dtype, 1, 1, 1);
    else if (s->product) recur_back_strip(s, dtype, 1, 1, 0);
    else if (streams) recur_back_strip(s, dtype, 1, 0, 1);
    else recur_back_strip(s, dtype, 1, 0, 0);
}

static void recur_back_f32(const recurrence_gradient_strip *s) { recur_back(s, LMK_FLOAT32); }
static void recur_back_bf16(const recurrence_gradient_strip *s) { recur_back(s, LMK_BFLOAT16); }
static void recur_back_f16(const recurrence_gradient_strip *s) { recur_back(s, LMK_FLOAT16); }

static void carry_states(const float *product, const float *state, const float *local, float *to,
                         size_t channels) {
    STAGE_EACH_VECTOR(0, channels, {
        const f32x16 a = stage_load(product, LMK_FLOAT32, i, count);
        const f32x16 before = stage_load(state, LMK_FLOAT32, i, count);
        const f32x16 added = stage_load(local, LMK_FLOAT32, i, count);
        stage_store(to, LMK_FLOAT32, i, a * before + added, count);
    });
}
