// The short causal convolution: validation, tiles and threads.
//
// A slot of work is a block of the batch's rows, which may be of several sequences, and some
// channels. Blocks of backward, whose sums of gradients are added in order, depend on sizes alone.
#include "kernels/stage_tables.h"
#include "stage_problem.h"

#include <string.h>

/// Rows of forward's blocks.
#define BLOCK_ROWS ((size_t)256)

/// Rows of backward's blocks at least, and the largest number of blocks.
#define SUM_ROWS ((size_t)256)
#define SUM_BLOCKS ((size_t)64)

/// Tokens of a tile of backward: sums over more are added up from those of tiles.
#define TILE_TOKENS ((size_t)256)

typedef struct convolution_call {
    const lmk_short_convolution *convolution;
    const lmk_short_convolution_gradients *gradients;
    const token_stage_kernels *kernels;
    stage_sequences sequences;
    lmk_parts blocks;
    size_t channel_tiles;
    void *y;
    lmk_token_strides y_strides;
    int is_streaming;
    /// Channels before the first that lies at a line in y, if it is written past the caches.
    size_t head;
    float *final_state;
    /// [blocks, width + 1, channels]
    float *sums;
} convolution_call;

static lmk_parts forward_blocks(const lmk_short_convolution *c) {
    const size_t rows = c->batch * c->tokens;
    return stage_cut(rows, lmk_divide_up(rows, BLOCK_ROWS));
}

static lmk_parts backward_blocks(const lmk_short_convolution *c) {
    const size_t rows = c->batch * c->tokens;
    return stage_cut(rows, lmk_min(SUM_BLOCKS, lmk_divide_up(rows, SUM_ROWS)));
}

/// The channels that the first tile has less than others, so that all others begin at a line.
static size_t missing(size_t head) { return (16 - head) % 16; }

static size_t tiles_of(const lmk_short_convolution *c, size_t head) {
    return lmk_divide_up(c->channels + missing(head), CONVOLUTION_CHANNELS);
}

/// Where tile i begins, and the one before it ends.
static size_t tile_start(const convolution_call *call, size_t i) {
    const size_t end = i * CONVOLUTION_CHANNELS;
    return lmk_min(end > 0 ? end - missing(call->head) : 0, call->convolution->channels);
}

/// The number of elements of a state of one sequence.
static size_t state_size(const lmk_short_convolution *c) { return (c->width - 1) * c->channels; }

/// Weights of a slot's channels, as kernels read them.
typedef struct slot_weights {
    _Alignas(64) float weight[CONVOLUTION_WIDTH * CONVOLUTION_PITCH];
    _Alignas(64) float bias[CONVOLUTION_CHANNELS];
} slot_weights;

/// The tile that every token of a slot is computed with, but for its place.
static convolution_tile make_tile(const convolution_call *call, size_t channel, size_t channels,
                                  slot_weights *w) {
    const lmk_short_convolution *const c = call->convolution;
    // Kernels read whole vectors of them.
    if (channels % 16 != 0 || !c->bias) memset(w, 0, sizeof *w);
    call->kernels->transpose_weights(c->weight + channel * c->width, c->width, w->weight, channels);
    if (c->bias) memcpy(w->bias, c->bias + channel, channels * sizeof(float));
    return (convolution_tile){
        .width = c->width,
        .channels = channels,
        .has_silu = c->has_silu,
        // A page, as far as float32 goes.
        .ahead = lmk_max(1, 1024 / channels),
        .x_stride = c->x_strides.token,
        .weight = w->weight,
        .bias = w->bias,
        .state_stride = c->channels,
        .y_stride = call->y_strides.token,
        .is_streaming = call->is_streaming,
        .head = channel == 0 ? call->head : 0,
    };
}

/// Moves a tile to tokens of sequence n.
static void place_tile(const convolution_call *call, convolution_tile *tile, size_t n, size_t token,
                       size_t tokens, size_t channel) {
    const lmk_short_convolution *const c = call->convolution;
    const size_t state = n * state_size(c) + channel;
    tile->length = stage_length(&call->sequences, n);
    tile->token = token;
    tile->tokens = tokens;
    tile->x = stage_element(c->x, c->dtype,
                            stage_place(&call->sequences, c->x_strides, n, token) + channel);
    tile->initial_state = c->initial_state ? c->initial_state + state : 0;
    const lmk_short_convolution_gradients *const g = call->gradients;
    if (!g) {
        tile->y = stage_element(call->y, c->dtype,
                                stage_place(&call->sequences, call->y_strides, n, token) + channel);
        return;
    }
    tile->dy = stage_element(g->dy, c->dtype,
                             stage_place(&call->sequences, g->dy_strides, n, token) + channel);
    tile->dy_stride = g->dy_strides.token;
    tile->dx = stage_element(g->dx, c->dtype,
                             stage_place(&call->sequences, g->dx_strides, n, token) + channel);
    tile->dx_stride = g->dx_strides.token;
    tile->dfinal_state = g->dfinal_state ? g->dfinal_state + state : 0;
    tile->dinitial_state = g->dinitial_state ? g->dinitial_state + state : 0;
}

static void run_slot(void *context, size_t slot, unsigned worker) {
    (void)worker;
    const convolution_call *const call = context;
    const lmk_short_convolution *const c = call->convolution;
    const size_t block = slot / call->channel_tiles, i = slot % call->channel_tiles,
                 channel = tile_start(call, i);
    slot_weights weights;
    _Alignas(64) float sums[(CONVOLUTION_WIDTH + 1) * CONVOLUTION_PITCH];
    convolution_tile tile = make_tile(call, channel, tile_start(call, i + 1) - channel, &weights);
    float *const total =
        call->sums ? call->sums + block * (c->width + 1) * c->channels + channel : 0;
    for (size_t j = 0; total && j <= c->width; j++)
        memset(total + j * c->channels, 0, tile.channels * sizeof(float));
    size_t row = lmk_part(call->blocks, block);
    const size_t end = lmk_part(call->blocks, block + 1);
    for (size_t n = lmk_stage_sequence_of(&call->sequences, row); row < end; n++) {
        const size_t start = stage_start(&call->sequences, n);
        const size_t stop = lmk_min(end, start + stage_length(&call->sequences, n));
        while (row < stop) {
            const size_t tokens = total ? lmk_min(TILE_TOKENS, stop - row) : stop - row;
            place_tile(call, &tile, n, row - start, tokens, channel);
            if (total) {
                tile.sums = sums;
                memset(sums, 0, (c->width + 1) * CONVOLUTION_PITCH * sizeof(float));
            }
            (call->gradients ? call->kernels->convolve_back
                             : call->kernels->convolve)[c->dtype](&tile);
            for (size_t j = 0; total && j <= c->width; j++)
                call->kernels->add(sums + j * CONVOLUTION_PITCH, total + j * c->channels,
                                   tile.channels);
            row += tokens;
        }
    }
    stage_finish_streaming();
}

/// The last width - 1 inputs of a sequence. Where it is shorter, later rows of the initial state
/// move up, so that both may be the same.
static void write_final_state(void *context, size_t n, unsigned worker) {
    (void)worker;
    const convolution_call *const call = context;
    const lmk_short_convolution *const c = call->convolution;
    const size_t length = stage_length(&call->sequences, n), rows = c->width - 1;
    float *const to = call->final_state + n * state_size(c);
    const float *const before = c->initial_state ? c->initial_state + n * state_size(c) : 0;
    for (size_t e = 0; e < rows; e++) {
        float *const row = to + e * c->channels;
        if (length + e >= rows) {
            const size_t place = stage_place(&call->sequences, c->x_strides, n, length + e - rows);
            call->kernels->widen[c->dtype](stage_element(c->x, c->dtype, place), row, c->channels);
        } else if (before) {
            memmove(row, before + (length + e) * c->channels, c->channels * sizeof(float));
        } else {
            memset(row, 0, c->channels * sizeof(float));
        }
    }
}

static unsigned threads_of(const lmk_short_convolution *c) {
    const size_t rows = c->batch * c->tokens;
    return rows <= STAGE_SERIAL_ENTRIES / lmk_max(c->channels, 1) ? 1
                                                                  : lmk_thread_count(c->threads);
}

static lmk_status check_problem(const lmk_short_convolution *c, lmk_error *error) {
    lmk_status status = lmk_stage_check_dtype(c->dtype, error);
    if (status == LMK_OK && (c->width < 2 || c->width > CONVOLUTION_WIDTH))
        status = lmk_fail_range(error, "width", "from 2 to 8", (int64_t)c->width);
    if (status == LMK_OK)
        status = lmk_stage_check_offsets(c->batch, c->tokens, c->offsets, c->sequences, error);
    if (status == LMK_OK)
        status = lmk_stage_check_dense("weight", c->weight, c->channels, c->width, 0, error);
    if (status != LMK_OK) return status;
    size_t state = c->offsets ? c->sequences : c->batch;
    if (!lmk_multiply_size(&state, c->width - 1) ||
        !lmk_size_fits(state, c->channels, 0, sizeof(float)))
        return lmk_fail_overflow(error, "channels");
    const stage_extents extents = {c->batch, c->tokens, 1, c->channels};
    return lmk_stage_check_tensor(STAGE_NAME("x"), c->x, extents, c->x_strides,
                                  lmk_dtype_size(c->dtype), error);
}

lmk_status lmk_short_convolution_forward(const lmk_short_convolution *c, void *y,
                                         lmk_token_strides y_strides, float *final_state,
                                         lmk_error *error) {
    lmk_status status = check_problem(c, error);
    const stage_extents extents = {c->batch, c->tokens, 1, c->channels};
    const size_t size = lmk_dtype_size(c->dtype);
    if (status == LMK_OK)
        status = lmk_stage_check_tensor(STAGE_NAME("y"), y, extents, y_strides, size, error);
    if (status != LMK_OK || c->channels == 0) return status;
    convolution_call call = {
        .convolution = c,
        .kernels = lmk_token_stage_kernels(),
        .sequences = stage_sequences_of(c->batch, c->tokens, c->offsets, c->sequences),
        .blocks = forward_blocks(c),
        .y = y,
        .y_strides = y_strides,
        .is_streaming = stage_streams(extents, y_strides, size),
        .final_state = final_state,
    };
    if (call.is_streaming) call.head = stage_entries_to_line(y, size);
    call.channel_tiles = tiles_of(c, call.head);
    const unsigned threads = threads_of(c);
    lmk_parallel_for(call.blocks.count * call.channel_tiles, threads, run_slot, &call);
    // Only now: the initial state has been read.
    if (final_state) lmk_parallel_for(call.sequences.count, threads, write_final_state, &call);
    return LMK_OK;
}

// MARK: Backward

static size_t sums_of(const lmk_short_convolution *c) {
    return backward_blocks(c).count * (c->width + 1) * c->channels;
}

size_t lmk_short_convolution_backward_workspace_size(const lmk_short_convolution *c) {
    if (check_problem(c, 0) != LMK_OK) return 0;
    return sums_of(c) * sizeof(float);
}

/// Adds the blocks' sums in order and gives them their places.
static void write_weight_gradients(const convolution_call *call) {
    const lmk_short_convolution *const c = call->convolution;
    const lmk_short_convolution_gradients *const g = call->gradients;
    const size_t size = (c->width + 1) * c->channels;
    for (size_t block = 1; block < call->blocks.count; block++)
        call->kernels->add(call->sums + block * size, call->sums, size);
    const int is_empty = call->blocks.count == 0;
    for (size_t i = 0; g->dbias && i < c->channels; i++)
        g->dbias[i] = is_empty ? 0 : call->sums[c->width * c->channels + i];
    for (size_t i = 0; g->dweight && i < c->channels; i++) {
        for (size_t j = 0; j < c->width; j++)
            g->dweight[i * c->width + j] = is_empty ? 0 : call->sums[j * c->channels + i];
    }
}

/// A sequence without tokens passes its state on.
static void write_empty_sequences(const convolution_call *call) {
    const lmk_short_convolution_gradients *const g = call->gradients;
    const size_t size = state_size(call->convolution);
    for (size_t n = 0; g->dinitial_state && n < call->sequences.count; n++) {
        if (stage_length(&call->sequences, n) > 0) continue;
        if (g->dfinal_state)
            memcpy(g->dinitial_state + n * size, g->dfinal_state + n * size, size * sizeof(float));
        else memset(g->dinitial_state + n * size, 0, size * sizeof(float));
    }
}

lmk_status lmk_short_convolution_backward(const lmk_short_convolution *c,
                                          const lmk_short_convolution_gradients *g, void *workspace,
                                          size_t workspace_size, lmk_error *error) {
    lmk_status status = check_problem(c, error);
    const stage_extents extents = {c->batch, c->tokens, 1, c->channels};
    const size_t size = lmk_dtype_size(c->dtype);
    if (status == LMK_OK)
        status =
            lmk_stage_check_tensor(STAGE_NAME("dy"), g->dy, extents, g->dy_strides, size, error);
    if (status == LMK_OK && g->dx)
        status =
            lmk_stage_check_tensor(STAGE_NAME("dx"), g->dx, extents, g->dx_strides, size, error);
    if (status == LMK_OK)
        status =
            lmk_stage_check_workspace(workspace, workspace_size, sums_of(c) * sizeof(float), error);
    if (status != LMK_OK || c->channels == 0) return status;
    convolution_call call = {
        .convolution = c,
        .gradients = g,
        .kernels = lmk_token_stage_kernels(),
        .sequences = stage_sequences_of(c->batch, c->tokens, c->offsets, c->sequences),
        .blocks = backward_blocks(c),
        .channel_tiles = tiles_of(c, 0),
        .sums = g->dweight || g->dbias ? workspace : 0,
    };
    lmk_parallel_for(call.blocks.count * call.channel_tiles, threads_of(c), run_slot, &call);
    write_empty_sequences(&call);
    if (g->dweight || g->dbias) write_weight_gradients(&call);
    return LMK_OK;
}
