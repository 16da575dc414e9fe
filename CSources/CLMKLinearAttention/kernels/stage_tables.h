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

// ---- The table

/// Indices are storage types.
typedef struct token_stage_kernels {
    void (*recur[3])(const recurrence_strip *strip);
    void (*recur_back[3])(const recurrence_gradient_strip *strip);
    /// to = product state + local
    void (*carry)(const float *product, const float *state, const float *local, float *to,
                  size_t channels);
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
