// The elementwise recurrence: validation, segments and threads.
//
// A sequence is cut into segments by sizes alone. A slot of work is either some channels of a whole
// sequence, whose segments follow each other on one thread, or, where that gives too few slots,
// some channels of one segment: first A and L of all, then, from the states at their starts, h. In
// the first case A and L are computed beside h, for the same bits.
#include "kernels/stage_tables.h"
#include "stage_problem.h"

#include <string.h>

const token_stage_kernels *lmk_token_stage_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &token_stage_kernels_avx512;
    case LMK_ISA_AVX2: return &token_stage_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &token_stage_kernels_neon;
#endif
    default: return &token_stage_kernels_generic;
    }
}

/// Tokens of a segment at least, and the number of pieces, of 64 channels and a segment each, that
/// a call is cut into where sequences are too few.
#define SEGMENT_TOKENS ((size_t)1024)
#define PIECES ((size_t)32)
#define PIECE_CHANNELS ((size_t)64)

/// Channels of a slot at most: their states stay in L1.
#define SLOT_CHANNELS ((size_t)1024)

/// How a call is cut. Tokens of a segment come from sizes; the rest decides no bit.
typedef struct recurrence_plan {
    stage_sequences sequences;
    unsigned threads;
    size_t segment_tokens;
    /// Segments of all sequences.
    size_t segments;
    /// Channels of a slot.
    size_t slot_channels, channel_slots;
    /// Whether slots are segments.
    int splits_sequences;
    size_t total;
} recurrence_plan;

static size_t segments_of(const recurrence_plan *plan, size_t n) {
    return lmk_max(1, stage_length(&plan->sequences, n) / plan->segment_tokens);
}

static recurrence_plan plan_of(const lmk_elementwise_recurrence *r) {
    recurrence_plan plan = {.sequences =
                                stage_sequences_of(r->batch, r->tokens, r->offsets, r->sequences),
                            .threads = lmk_thread_count(r->threads)};
    const size_t rows = r->batch * r->tokens,
                 pieces = lmk_divide_up(lmk_max(r->channels, 1), PIECE_CHANNELS);
    plan.segment_tokens = rows;
    if (pieces < PIECES) plan.segment_tokens = lmk_divide_up(rows * pieces, PIECES);
    plan.segment_tokens = lmk_max(plan.segment_tokens, SEGMENT_TOKENS);
    for (size_t n = 0; n < plan.sequences.count; n++) plan.segments += segments_of(&plan, n);
    if (r->channels > 0 && rows <= STAGE_SERIAL_ENTRIES / r->channels) plan.threads = 1;
    const size_t wanted = lmk_divide_up(2 * (size_t)plan.threads, lmk_max(plan.sequences.count, 1));
    plan.slot_channels =
        lmk_round_up(lmk_divide_up(lmk_max(r->channels, 1), wanted), PIECE_CHANNELS);
    plan.slot_channels = lmk_min(plan.slot_channels, SLOT_CHANNELS);
    plan.splits_sequences =
        plan.segments > plan.sequences.count && plan.sequences.count * pieces < plan.threads;
    if (plan.splits_sequences) plan.total = plan.segments * r->channels * 2 * sizeof(float);
    plan.channel_slots = lmk_divide_up(lmk_max(r->channels, 1), plan.slot_channels);
    return plan;
}

typedef struct recurrence_call {
    const lmk_elementwise_recurrence *recurrence;
    const lmk_elementwise_recurrence_gradients *gradients;
    const token_stage_kernels *kernels;
    recurrence_plan plan;
    void *h;
    lmk_token_strides h_strides;
    float *final_state;
    /// Channels before the first that lies at a line in what is written past the caches.
    size_t head;
    int is_streaming, is_streaming_decay;
    /// A and L of each segment, [segments, channels]; states at starts take the place of A.
    float *products, *locals;
} recurrence_call;

/// Some channels of some tokens of a sequence.
typedef struct recurrence_piece {
    size_t sequence, token, tokens, channel, channels;
} recurrence_piece;

/// The channels of a slot: where its first begins at a line, so do those of all others.
static void set_channels(const recurrence_call *call, size_t slot, recurrence_piece *piece) {
    const size_t width = call->plan.slot_channels, channels = call->recurrence->channels;
    piece->channel = slot == 0 ? 0 : lmk_min(slot * width + call->head, channels);
    const int is_last = slot + 1 == call->plan.channel_slots;
    const size_t end = is_last ? channels : lmk_min((slot + 1) * width + call->head, channels);
    piece->channels = end - piece->channel;
}

/// The tokens of segment i of a sequence.
static void set_segment(const recurrence_call *call, size_t i, recurrence_piece *piece) {
    const size_t n = piece->sequence;
    const lmk_parts parts =
        lmk_cut(stage_length(&call->plan.sequences, n), segments_of(&call->plan, n));
    piece->token = lmk_part(parts, i);
    piece->tokens = lmk_part(parts, i + 1) - piece->token;
}

static const float *float_at(const float *data, size_t i) { return data ? data + i : 0; }

static size_t place(const recurrence_call *call, lmk_token_strides strides,
                    const recurrence_piece *p) {
    return stage_place(&call->plan.sequences, strides, p->sequence, p->token) + p->channel;
}

/// Computes h from `state`, or A and L, or both.
static void run_forward(const recurrence_call *call, const recurrence_piece *p, float *state,
                        float *product, float *local) {
    const lmk_elementwise_recurrence *const r = call->recurrence;
    const recurrence_strip strip = {
        .tokens = p->tokens,
        .channels = p->channels,
        .x = stage_element(r->x, r->dtype, place(call, r->x_strides, p)),
        .x_stride = r->x_strides.token,
        .log_decay = r->log_decay + place(call, r->log_decay_strides, p),
        .log_decay_stride = r->log_decay_strides.token,
        .h = state ? stage_element(call->h, r->dtype, place(call, call->h_strides, p)) : 0,
        .h_stride = call->h_strides.token,
        .head = p->channel == 0 ? call->head : 0,
        .is_streaming = call->is_streaming,
        .state = state,
        .product = product,
        .local = local,
    };
    call->kernels->recur[r->dtype](&strip);
}

static void run_backward(const recurrence_call *call, const recurrence_piece *p, float *state,
                         float *product, float *local) {
    const lmk_elementwise_recurrence *const r = call->recurrence;
    const lmk_elementwise_recurrence_gradients *const g = call->gradients;
    const size_t h = place(call, g->h_strides, p);
    const int is_first = p->token == 0;
    const recurrence_gradient_strip strip = {
        .tokens = p->tokens,
        .channels = p->channels,
        .log_decay = r->log_decay + place(call, r->log_decay_strides, p),
        .log_decay_stride = r->log_decay_strides.token,
        .dh = stage_element(g->dh, r->dtype, place(call, g->dh_strides, p)),
        .dh_stride = g->dh_strides.token,
        .h = stage_element(g->h, r->dtype, h),
        .h_stride = g->h_strides.token,
        .h_before = is_first ? 0 : stage_element(g->h, r->dtype, h - g->h_strides.token),
        .initial_state = float_at(r->initial_state, p->sequence * r->channels + p->channel),
        .dx = stage_element(g->dx, r->dtype, place(call, g->dx_strides, p)),
        .dx_stride = g->dx_strides.token,
        .dlog_decay = g->dlog_decay ? g->dlog_decay + place(call, g->dlog_decay_strides, p) : 0,
        .dlog_decay_stride = g->dlog_decay_strides.token,
        .head = p->channel == 0 ? call->head : 0,
        .is_streaming = call->is_streaming,
        .is_streaming_decay = call->is_streaming_decay,
        .state = state,
        .product = product,
        .local = local,
    };
    call->kernels->recur_back[r->dtype](&strip);
}

static void run_piece(const recurrence_call *call, const recurrence_piece *p, float *state,
                      float *product, float *local) {
    if (p->channels == 0 || (p->tokens == 0 && !product)) return;
    (call->gradients ? run_backward : run_forward)(call, p, state, product, local);
}

/// What a state is before the first segment that is computed, which backward takes from the end.
static const float *first_state(const recurrence_call *call) {
    return call->gradients ? call->gradients->dfinal_state : call->recurrence->initial_state;
}

static float *last_state(const recurrence_call *call) {
    return call->gradients ? call->gradients->dinitial_state : call->final_state;
}

static void read_state(const recurrence_call *call, size_t place, float *state, size_t channels) {
    const float *const from = first_state(call);
    if (from) memcpy(state, from + place, channels * sizeof(float));
    else memset(state, 0, channels * sizeof(float));
}

/// Some channels of a sequence, all its segments one after the other.
static void run_sequence(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const recurrence_call *const call = context;
    recurrence_piece p = {.sequence = slot / call->plan.channel_slots};
    set_channels(call, slot % call->plan.channel_slots, &p);
    // The first slot has the channels before a line too.
    _Alignas(64) float start[SLOT_CHANNELS + 16];
    _Alignas(64) float state[SLOT_CHANNELS + 16];
    _Alignas(64) float product[SLOT_CHANNELS + 16];
    _Alignas(64) float local[SLOT_CHANNELS + 16];
    const size_t at = p.sequence * call->recurrence->channels + p.channel,
                 segments = segments_of(&call->plan, p.sequence);
    read_state(call, at, state, p.channels);
    for (size_t i = 0; i < segments; i++) {
        set_segment(call, call->gradients ? segments - 1 - i : i, &p);
        if (i + 1 == segments) {
            run_piece(call, &p, state, 0, 0);
        } else {
            memcpy(start, state, p.channels * sizeof(float));
            run_piece(call, &p, state, product, local);
            call->kernels->carry(product, start, local, state, p.channels);
        }
    }
    if (last_state(call)) memcpy(last_state(call) + at, state, p.channels * sizeof(float));
    stage_finish_streaming();
}

/// The piece of a slot that is a segment, and the segment's number among all.
static recurrence_piece segment_piece(const recurrence_call *call, size_t slot, size_t *segment) {
    recurrence_piece p = {0};
    *segment = slot / call->plan.channel_slots;
    // Sequences are few here.
    size_t first = 0;
    while (*segment >= first + segments_of(&call->plan, p.sequence))
        first += segments_of(&call->plan, p.sequence++);
    set_segment(call, *segment - first, &p);
    set_channels(call, slot % call->plan.channel_slots, &p);
    return p;
}

static void summarize_segment(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const recurrence_call *const call = context;
    size_t segment;
    const recurrence_piece p = segment_piece(call, slot, &segment);
    const size_t at = segment * call->recurrence->channels + p.channel;
    run_piece(call, &p, 0, call->products + at, call->locals + at);
}

static void write_segment(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const recurrence_call *const call = context;
    size_t segment;
    const recurrence_piece p = segment_piece(call, slot, &segment);
    run_piece(call, &p, call->products + segment * call->recurrence->channels + p.channel, 0, 0);
    stage_finish_streaming();
}

/// States at the starts of a sequence's segments, the first of which is number `first`, from what
/// each does to a state. They take the place of A, whose last is not needed.
static void carry_sequence(const recurrence_call *call, size_t n, size_t first) {
    const size_t channels = call->recurrence->channels, segments = segments_of(&call->plan, n);
    float state[SLOT_CHANNELS], next[SLOT_CHANNELS];
    for (size_t c = 0; c < channels; c += SLOT_CHANNELS) {
        const size_t count = lmk_min(SLOT_CHANNELS, channels - c);
        read_state(call, n * channels + c, state, count);
        for (size_t i = 0; i < segments; i++) {
            const size_t segment = first + (call->gradients ? segments - 1 - i : i);
            float *const product = call->products + segment * channels + c;
            call->kernels->carry(product, state, call->locals + segment * channels + c, next,
                                 count);
            memcpy(product, state, count * sizeof(float));
            memcpy(state, next, count * sizeof(float));
        }
    }
}

static void run(recurrence_call *call, void *workspace) {
    const recurrence_plan *const plan = &call->plan;
    const size_t channels = call->recurrence->channels, count = plan->sequences.count;
    call->kernels = lmk_token_stage_kernels();
    if (!plan->splits_sequences) {
        lmk_parallel_for(count * plan->channel_slots, plan->threads, run_sequence, call);
        return;
    }
    call->products = workspace;
    call->locals = call->products + plan->segments * channels;
    const size_t slots = plan->segments * plan->channel_slots;
    lmk_parallel_for(slots, plan->threads, summarize_segment, call);
    size_t first = 0;
    for (size_t n = 0; n < count; first += segments_of(plan, n++)) carry_sequence(call, n, first);
    lmk_parallel_for(slots, plan->threads, write_segment, call);
    first = 0;
    for (size_t n = 0; n < count && last_state(call); first += segments_of(plan, n++)) {
        const size_t last = call->gradients ? first : first + segments_of(plan, n) - 1;
        memcpy(last_state(call) + n * channels, call->products + last * channels,
               channels * sizeof(float));
    }
}

// MARK: Entry points

static lmk_status check_problem(const lmk_elementwise_recurrence *r, lmk_error *error) {
    lmk_status status = lmk_stage_check_dtype(r->dtype, error);
    if (status == LMK_OK)
        status = lmk_stage_check_offsets(r->batch, r->tokens, r->offsets, r->sequences, error);
    if (status != LMK_OK) return status;
    const size_t sequences = r->offsets ? r->sequences : r->batch;
    if (!lmk_size_fits(sequences, r->channels, 0, sizeof(float)))
        return lmk_fail_overflow(error, "channels");
    const stage_extents extents = {r->batch, r->tokens, 1, r->channels};
    return lmk_stage_check_tensor(STAGE_NAME("log_decay"), r->log_decay, extents,
                                  r->log_decay_strides, sizeof(float), error);
}

size_t lmk_elementwise_recurrence_workspace_size(const lmk_elementwise_recurrence *r) {
    if (check_problem(r, 0) != LMK_OK) return 0;
    return plan_of(r).total;
}

lmk_status lmk_elementwise_recurrence_forward(const lmk_elementwise_recurrence *r, void *h,
                                              lmk_token_strides h_strides, float *final_state,
                                              void *workspace, size_t workspace_size,
                                              lmk_error *error) {
    lmk_status status = check_problem(r, error);
    if (status != LMK_OK) return status;
    const stage_extents extents = {r->batch, r->tokens, 1, r->channels};
    const size_t size = lmk_dtype_size(r->dtype);
    status = lmk_stage_check_tensor(STAGE_NAME("x"), r->x, extents, r->x_strides, size, error);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("h"), h, extents, h_strides, size, error);
    if (status != LMK_OK) return status;
    recurrence_call call = {.recurrence = r,
                            .plan = plan_of(r),
                            .h = h,
                            .h_strides = h_strides,
                            .final_state = final_state};
    status = lmk_stage_check_workspace(workspace, workspace_size, call.plan.total, error);
    if (status != LMK_OK || r->channels == 0) return status;
    call.is_streaming = stage_streams(extents, h_strides, size);
    if (call.is_streaming) call.head = stage_entries_to_line(h, size);
    run(&call, workspace);
    return LMK_OK;
}

/// Which gradients are written past the caches.
static void choose_streaming(recurrence_call *call) {
    const lmk_elementwise_recurrence *const r = call->recurrence;
    const lmk_elementwise_recurrence_gradients *const g = call->gradients;
    const stage_extents extents = {r->batch, r->tokens, 1, r->channels};
    const size_t size = lmk_dtype_size(r->dtype);
    call->is_streaming = g->dx && stage_streams(extents, g->dx_strides, size);
    call->is_streaming_decay =
        g->dlog_decay && stage_streams(extents, g->dlog_decay_strides, sizeof(float));
    const size_t decay_head = stage_entries_to_line(g->dlog_decay, sizeof(float));
    call->head = call->is_streaming         ? stage_entries_to_line(g->dx, size)
                 : call->is_streaming_decay ? decay_head
                                            : 0;
    if (decay_head != call->head) call->is_streaming_decay = 0;
}

lmk_status lmk_elementwise_recurrence_backward(const lmk_elementwise_recurrence *r,
                                               const lmk_elementwise_recurrence_gradients *g,
                                               void *workspace, size_t workspace_size,
                                               lmk_error *error) {
    lmk_status status = check_problem(r, error);
    if (status != LMK_OK) return status;
    const stage_extents extents = {r->batch, r->tokens, 1, r->channels};
    const size_t size = lmk_dtype_size(r->dtype);
    status = lmk_stage_check_tensor(STAGE_NAME("dh"), g->dh, extents, g->dh_strides, size, error);
    if (status == LMK_OK && g->dlog_decay) {
        status = lmk_stage_check_tensor(STAGE_NAME("h"), g->h, extents, g->h_strides, size, error);
        if (status == LMK_OK)
            status = lmk_stage_check_tensor(STAGE_NAME("dlog_decay"), g->dlog_decay, extents,
                                            g->dlog_decay_strides, sizeof(float), error);
    }
    if (status == LMK_OK && g->dx)
        status =
            lmk_stage_check_tensor(STAGE_NAME("dx"), g->dx, extents, g->dx_strides, size, error);
    if (status != LMK_OK) return status;
    recurrence_call call = {.recurrence = r, .gradients = g, .plan = plan_of(r)};
    status = lmk_stage_check_workspace(workspace, workspace_size, call.plan.total, error);
    if (status != LMK_OK || r->channels == 0) return status;
    choose_streaming(&call);
    run(&call, workspace);
    return LMK_OK;
}
