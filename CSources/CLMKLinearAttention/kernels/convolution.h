// The short causal convolution: see lmk_short_convolution. Included inside a region.
//
// Tokens are the outer loop, so that memory is read in long runs. The last `width` inputs lie in L1
// as float32, whatever they are stored as and whether they are inputs or the initial state. `width`
// is a constant up to 4.

/// Rows of float32 in order of time, in a ring of CONVOLUTION_WIDTH. Places are computed and not
/// kept, because a store of a vector may alias a pointer in memory.
typedef struct convolution_window {
    float *ring;
    size_t first;
} convolution_window;

/// Row j of the window, from channel i on.
LMK_INLINE float *window_row(convolution_window w, size_t j, size_t i) {
    return w.ring + (w.first + j) % CONVOLUTION_WIDTH * CONVOLUTION_PITCH + i;
}

/// Fills rows 1 ..< width with what comes before a tile's first token.
LMK_INLINE void fill_window(const convolution_tile *s, convolution_window w, lmk_dtype dtype,
                            size_t width) {
    for (size_t j = 1; j < width; j++) {
        // Row `width - 1` is the token before.
        const size_t back = width - j;
        const float *const state =
            s->initial_state && s->token < back
                ? s->initial_state + s->state_stride * (width - 1 + s->token - back)
                : 0;
        const void *const x =
            s->token < back ? 0 : (const char *)s->x - stage_size(dtype) * (s->x_stride * back);
        STAGE_EACH_VECTOR(0, s->channels, {
            f32x16 v = splat(0);
            if (state) v = stage_load(state, LMK_FLOAT32, i, count);
            else if (x) v = stage_load(x, dtype, i, count);
            store(window_row(w, j, i), v);
        });
    }
}

/// z of 16 channels, their x being in the window already.
LMK_INLINE f32x16 convolve(const convolution_tile *s, convolution_window w, size_t i,
                           size_t width) {
    f32x16 z = load(s->bias + i);
    for (size_t j = 0; j < width; j++)
        z = load(s->weight + j * CONVOLUTION_PITCH + i) * load(window_row(w, j, i)) + z;
    return z;
}

LMK_INLINE void convolve_tile(const convolution_tile *tile, lmk_dtype dtype, size_t width,
                              int streams) {
    const convolution_tile s = *tile;
    const size_t head = streams ? s.head : 0;
    _Alignas(64) float memory[CONVOLUTION_WIDTH * CONVOLUTION_PITCH];
    convolution_window w = {memory, 0};
    fill_window(&s, w, dtype, width);
    for (size_t t = 0; t < s.tokens; t++) {
        const void *const x = stage_at(s.x, dtype, s.x_stride * t);
        void *const y = stage_at(s.y, dtype, s.y_stride * t);
        w.first++;
        STAGE_EACH_VECTOR(head, s.channels, {
            __builtin_prefetch(stage_at(x, dtype, s.ahead * s.x_stride + i));
            store(window_row(w, width - 1, i), stage_load(x, dtype, i, count));
            f32x16 z = convolve(&s, w, i, width);
            if (s.has_silu) z = z * vsigmoid(z);
            stage_stream(y, dtype, i, z, count, streams);
        });
    }
}

LMK_INLINE void convolve_width(const convolution_tile *tile, lmk_dtype dtype, size_t width) {
    if (tile->is_streaming) convolve_tile(tile, dtype, width, 1);
    else convolve_tile(tile, dtype, width, 0);
}

LMK_INLINE void convolve_any(const convolution_tile *tile, lmk_dtype dtype) {
    switch (tile->width) {
    case 2: convolve_width(tile, dtype, 2); break;
    case 3: convolve_width(tile, dtype, 3); break;
    case 4: convolve_width(tile, dtype, 4); break;
    default: convolve_width(tile, dtype, tile->width);
    }
}

static void convolve_f32(const convolution_tile *tile) { convolve_any(tile, LMK_FLOAT32); }
static void convolve_bf16(const convolution_tile *tile) { convolve_any(tile, LMK_BFLOAT16); }
static void convolve_f16(const convolution_tile *tile) { convolve_any(tile, LMK_FLOAT16); }

// ---- Backward

/// silu'(z) = s + z s (1 - s), s = sigmoid(z).
LMK_INLINE f32x16 silu_derivative(f32x16 z) {
    const f32x16 s = vsigmoid(z);
    const f32x16 product = z * s;
    return product * (1.0f - s) + s;
}

/// Adds what token t of the tile, in the window, gives to the gradients of weight and bias.
LMK_INLINE void add_weight_gradients(float *sums, convolution_window w, f32x16 dz, size_t i,
                                     size_t width) {
    for (size_t j = 0; j < width; j++) {
        float *const sum = sums + j * CONVOLUTION_PITCH + i;
        store(sum, dz * load(window_row(w, j, i)) + load(sum));
    }
    float *const sum = sums + width * CONVOLUTION_PITCH + i;
    store(sum, load(sum) + dz);
}

/// The gradient of an input from the dz of `terms` tokens that it reaches, of which the first lies
/// in row `row` and takes weight `j`; later ones take earlier weights. `sum` is what it begins
/// with.
LMK_INLINE f32x16 input_gradient(const convolution_tile *s, convolution_window dz, size_t row,
                                 size_t j, size_t terms, f32x16 sum, size_t i) {
    for (size_t k = 0; k < terms; k++) {
        sum = load(s->weight + (j - k) * CONVOLUTION_PITCH + i) * load(window_row(dz, row + k, i)) +
              sum;
    }
    return sum;
}

LMK_INLINE f32x16 state_gradient(const convolution_tile *s, size_t row, size_t i, size_t count) {
    return stage_load(s->dfinal_state + s->state_stride * row, LMK_FLOAT32, i, count);
}

/// Gradients of the initial state, once the window has the dz of the first tokens of a sequence, of
/// which there are `known`: all, or width - 1.
LMK_INLINE void write_initial_gradients(const convolution_tile *s, convolution_window dz,
                                        size_t known, size_t width) {
    for (size_t e = 0; e + 1 < width; e++) {
        float *const to = s->dinitial_state + s->state_stride * e;
        const int is_kept = s->dfinal_state && e >= s->length;
        const size_t terms = e < known ? e + 1 : known;
        STAGE_EACH_VECTOR(0, s->channels, {
            const f32x16 start = is_kept ? state_gradient(s, e - s->length, i, count) : splat(0);
            stage_store(to, LMK_FLOAT32, i,
                        input_gradient(s, dz, width - known, e, terms, start, i), count);
        });
    }
}

/// dx of the last inputs of a sequence, which the final state may hold, once the window has the
/// last dz.
LMK_INLINE void write_last_gradients(const convolution_tile *s, convolution_window dz,
                                     lmk_dtype dtype, size_t width) {
    const size_t end = s->token + s->tokens;
    const size_t beyond = s->length > width - 1 ? s->length - (width - 1) : 0;
    for (size_t t = s->token > beyond ? s->token : beyond; t < end; t++) {
        void *const dx = stage_at(s->dx, dtype, s->dx_stride * (t - s->token));
        const size_t terms = s->length - t;
        STAGE_EACH_VECTOR(0, s->channels, {
            const f32x16 start =
                s->dfinal_state ? state_gradient(s, t + width - 1 - s->length, i, count) : splat(0);
            stage_store(dx, dtype, i,
                        input_gradient(s, dz, width - terms, width - 1, terms, start, i), count);
        });
    }
}

LMK_INLINE void convolve_back_tile(const convolution_tile *tile, lmk_dtype dtype, size_t width) {
    const convolution_tile s = *tile;
    _Alignas(64) float inputs[CONVOLUTION_WIDTH * CONVOLUTION_PITCH];
    _Alignas(64) float gradients[CONVOLUTION_WIDTH * CONVOLUTION_PITCH];
    convolution_window w = {inputs, 0}, dz = {gradients, 0};
    fill_window(&s, w, dtype, width);
    const size_t left = s.length - s.token, reach = s.tokens + width - 1;
    const size_t tokens = left < reach ? left : reach;
    const size_t first = s.length < width - 1 ? s.length : width - 1;
    for (size_t t = 0; t < tokens; t++) {
        const void *const x = stage_at(s.x, dtype, s.x_stride * t);
        const void *const dy = stage_at(s.dy, dtype, s.dy_stride * t);
        // Past the tile's own tokens dz is needed for inputs of the tile alone.
        const int adds = t < s.tokens && s.sums;
        const int writes = s.dx && t + 1 >= width;
        void *const dx = writes ? stage_at(s.dx, dtype, s.dx_stride * (t - (width - 1))) : 0;
        w.first++;
        dz.first++;
        STAGE_EACH_VECTOR(0, s.channels, {
            __builtin_prefetch(stage_at(x, dtype, s.ahead * s.x_stride + i));
            __builtin_prefetch(stage_at(dy, dtype, s.ahead * s.dy_stride + i));
            store(window_row(w, width - 1, i), stage_load(x, dtype, i, count));
            f32x16 gradient = stage_load(dy, dtype, i, count);
            if (s.has_silu) gradient = gradient * silu_derivative(convolve(&s, w, i, width));
            store(window_row(dz, width - 1, i), gradient);
            if (adds) add_weight_gradients(s.sums, w, gradient, i, width);
            if (dx)
                stage_store(dx, dtype, i, input_gradient(&s, dz, 0, width - 1, width, splat(0), i),
                            count);
        });
        if (s.dinitial_state && s.token == 0 && t + 1 == first)
            write_initial_gradients(&s, dz, first, width);
    }
    if (s.dx) write_last_gradients(&s, dz, dtype, width);
}

LMK_INLINE void convolve_back_any(const convolution_tile *tile, lmk_dtype dtype) {
    switch (tile->width) {
    case 2: convolve_back_tile(tile, dtype, 2); break;
    case 3: convolve_back_tile(tile, dtype, 3); break;
    case 4: convolve_back_tile(tile, dtype, 4); break;
    default: convolve_back_tile(tile, dtype, tile->width);
    }
}

static void convolve_back_f32(const convolution_tile *tile) {
    convolve_back_any(tile, LMK_FLOAT32);
}
static void convolve_back_bf16(const convolution_tile *tile) {
    convolve_back_any(tile, LMK_BFLOAT16);
}
static void convolve_back_f16(const convolution_tile *tile) {
    convolve_back_any(tile, LMK_FLOAT16);
}

// ---- Around tiles

LMK_INLINE void transpose_columns(const float *from, size_t width, float *to, size_t channels) {
    for (size_t c = 0; c < channels; c++) {
        LMK_UNROLL
        for (size_t j = 0; j < width; j++) to[j * CONVOLUTION_PITCH + c] = from[c * width + j];
    }
}

/// Weights [channels, width] as rows of CONVOLUTION_PITCH.
static void transpose_weights(const float *from, size_t width, float *to, size_t channels) {
    switch (width) {
    case 2: transpose_columns(from, 2, to, channels); break;
    case 3: transpose_columns(from, 3, to, channels); break;
    case 4: transpose_columns(from, 4, to, channels); break;
    default:
        for (size_t c = 0; c < channels; c++) {
            for (size_t j = 0; j < width; j++) to[j * CONVOLUTION_PITCH + c] = from[c * width + j];
        }
    }
}

LMK_INLINE void widen(const void *x, lmk_dtype dtype, float *to, size_t count_of_all) {
    STAGE_EACH_VECTOR(0, count_of_all,
                      stage_store(to, LMK_FLOAT32, i, stage_load(x, dtype, i, count), count));
}

static void widen_f32(const void *x, float *to, size_t n) { widen(x, LMK_FLOAT32, to, n); }
static void widen_bf16(const void *x, float *to, size_t n) { widen(x, LMK_BFLOAT16, to, n); }
static void widen_f16(const void *x, float *to, size_t n) { widen(x, LMK_FLOAT16, to, n); }

/// to += from
static void add_sums(const float *from, float *to, size_t count_of_all) {
    STAGE_EACH_VECTOR(
        0, count_of_all,
        stage_store(to, LMK_FLOAT32, i,
                    stage_load(to, LMK_FLOAT32, i, count) + stage_load(from, LMK_FLOAT32, i, count),
                    count));
}
