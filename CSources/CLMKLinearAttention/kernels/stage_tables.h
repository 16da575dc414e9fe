// What the entry points and the kernels of the stages around linear attention share: the work of
// one call of a kernel, and the table of each instruction set.
#ifndef LMK_STAGE_TABLES_H
#define LMK_STAGE_TABLES_H

#include "lmk_check.h"
#include "lmk_token_stages.h"

// ---- Elementwise recurrence

/// Consecutive tokens of one sequence, and some of their channels. Rows are `stride` elements
/// apart.
typedef struct recurrence_strip {
    size_t tokens, channels;
    const void *x;
    size_t x_stride;
    const float *log_decay;
    size_t log_decay_stride;
    /// Null: only what the strip does to a state is computed.
    void *h;
    size_t h_stride;
    /// Channels before the first that lies at a line in h, if it is written past the caches.
    size_t head;
    int is_streaming;
    /// [channels], with h: the state before the strip, and after it.
    float *state;
    /// [channels], A and L of the strip, or null.
    float *product, *local;
} recurrence_strip;

/// The same for the way back: `state` is the gradient of the state after the strip, and becomes
/// that of the state before.
typedef struct recurrence_gradient_strip {
    size_t tokens, channels;
    const float *log_decay;
    size_t log_decay_stride;
    const void *dh;
    size_t dh_stride;
    /// h of the strip's tokens.
    const void *h;
    size_t h_stride;
    /// What comes before the strip's first h: another h, or the initial state, or 0 where both are
    /// null.
    const void *h_before;
    const float *initial_state;
    /// What is null is not written.
    void *dx;
    size_t dx_stride;
    float *dlog_decay;
    size_t dlog_decay_stride;
    size_t head;
    /// Whether dx and dlog_decay are written past the caches.
    int is_streaming, is_streaming_decay;
    /// Null: only A and L are computed.
    float *state;
    float *product, *local;
} recurrence_gradient_strip;

// ---- Short convolution

#define CONVOLUTION_WIDTH ((size_t)8)
/// Channels of a tile: its windows and weights stay in L1.
#define CONVOLUTION_CHANNELS ((size_t)512)
/// From one row of float32 in them to the next. Not 512: a load 4096 bytes from a store before it
/// waits for that.
#define CONVOLUTION_PITCH (CONVOLUTION_CHANNELS + 16)

/// Consecutive tokens of one sequence, and some of their channels.
typedef struct convolution_tile {
    size_t width, channels, tokens;
    /// Of the sequence, and the first of them.
    size_t length, token;
    int has_silu;
    /// Rows between the one that is read and the one that is fetched.
    size_t ahead;
    const void *x;
    size_t x_stride;
    /// [width] rows of CONVOLUTION_PITCH; one.
    const float *weight, *bias;
    /// [width - 1] rows, of this sequence; or null.
    const float *initial_state;
    size_t state_stride;
    void *y;
    size_t y_stride;
    /// Channels before the first that lies at a line in y, if it is written past the caches.
    size_t head;
    int is_streaming;
    /// Backward; what is null is not computed.
    const void *dy;
    size_t dy_stride;
    void *dx;
    size_t dx_stride;
    const float *dfinal_state;
    float *dinitial_state;
    /// Gradients of weight and bias are added here, [width + 1] rows of CONVOLUTION_PITCH.
    float *sums;
} convolution_tile;

// ---- Rows

/// Where a row begins in tensors [batch, tokens, heads, columns].
typedef struct stage_row {
    size_t batch, token, head;
} stage_row;

/// Row number `row` of all.
static inline stage_row stage_row_of(size_t row, size_t tokens, size_t heads) {
    return (stage_row){row / heads / tokens, row / heads % tokens, row % heads};
}

/// Moves on to the next.
static inline void stage_next_row(stage_row *r, size_t tokens, size_t heads) {
    if (++r->head < heads) return;
    r->head = 0;
    if (++r->token < tokens) return;
    r->token = 0;
    r->batch++;
}

static inline size_t stage_row_place(stage_row r, lmk_token_strides strides) {
    return strides.batch * r.batch + strides.token * r.token + strides.head * r.head;
}

/// Normalisation; forward has y, backward the gradients, of which those that are null are not
/// computed.
typedef struct norm_job {
    const lmk_row_norm *norm;
    /// Columns, or 1: sums of squares are divided by it.
    float divisor;
    /// Null in both parts without one.
    lmk_norm_gate gate;
    void *y;
    lmk_token_strides y_strides;
    lmk_gated_rms_norm_gradients gradients;
    /// [columns], where what rows add to dweight is added.
    float *weight_sums;
} norm_job;

/// Feature maps.
typedef struct feature_job {
    const lmk_feature_map *map;
    /// phi or its gradient.
    void *phi;
    lmk_token_strides phi_strides;
    /// Null in forward.
    void *dx;
    lmk_token_strides dx_strides;
} feature_job;

/// Rows `row` and on of all.
typedef void (*norm_function)(const norm_job *job, size_t row, size_t rows);
typedef void (*feature_function)(const feature_job *job, size_t row, size_t rows);

// ---- The table

#define FEATURE_MAPS (LMK_FEATURES_COSINE + 1)

/// Indices are storage types.
typedef struct token_stage_kernels {
    void (*recur[3])(const recurrence_strip *strip);
    void (*recur_back[3])(const recurrence_gradient_strip *strip);
    /// to = product state + local
    void (*carry)(const float *product, const float *state, const float *local, float *to,
                  size_t channels);
    void (*convolve[3])(const convolution_tile *tile);
    void (*convolve_back[3])(const convolution_tile *tile);
    /// [channels, width] to rows of CONVOLUTION_PITCH.
    void (*transpose_weights)(const float *from, size_t width, float *to, size_t channels);
    /// to = x
    void (*widen[3])(const void *x, float *to, size_t count);
    /// to += from
    void (*add)(const float *from, float *to, size_t count);
    norm_function l2_norm[3], l2_norm_back[3], gated_norm[3], gated_norm_back[3];
    /// By lmk_features, forward and backward.
    feature_function features[FEATURE_MAPS][3], features_back[FEATURE_MAPS][3];
} token_stage_kernels;

extern const token_stage_kernels token_stage_kernels_generic;
#if defined(__x86_64__)
extern const token_stage_kernels token_stage_kernels_avx2;
extern const token_stage_kernels token_stage_kernels_avx512;
#elif defined(__aarch64__)
extern const token_stage_kernels token_stage_kernels_neon;
#endif

const token_stage_kernels *lmk_token_stage_kernels(void);

/// Orders streaming stores before what follows: x86 lets them pass later ones, such as the one that
/// tells another thread that they are done.
static inline void stage_finish_streaming(void) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

#endif
