#include "lmk_linear_plan.h"

/// Tokens from which chunks are faster than the recurrence; CONTRIBUTING.md has the figures.
#define CHUNKED_TOKENS 8

/// Tokens below which no sequence is cut, and of the shortest segments.
#define SEGMENT_TOKENS 1024
/// Pieces of work, value slices included, from which no sequence needs to be cut, and that cutting
/// aims at.
#define ENOUGH_PIECES 8
#define WANTED_PIECES 32

/// Bytes of the states that a worker goes back and forth between, and of the rows of a block: both
/// stay in cache.
#define UNIT_STATE_BYTES ((size_t)512 << 10)
#define BLOCK_BYTES ((size_t)128 << 10)

/// Between the matrices of a chunk, so that none lies a multiple of 4 KB from another.
#define STAGGER ((size_t)48)

/// Panels that the tiles of one chunk go through while they read the state.
static size_t fetches_of(const lmk_linear_attention *a) {
    // With the normaliser's column of backward.
    return panels_of(a->key_dim) * panels_of(a->value_dim + 1) * (CHUNK_TOKENS / READ_ROWS_MIN);
}

static size_t fetch_floats(size_t columns) {
    return lmk_round_up(sizeof(fetch_column) * columns, 64) / sizeof(float);
}

size_t lmk_linear_lay_out(const matrix_part *parts, size_t count, float *memory) {
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        *parts[i].matrix = memory ? memory + at : 0;
        at += lmk_round_up(parts[i].floats, CHUNK_TOKENS) + STAGGER;
    }
    return at;
}

size_t lmk_linear_chunk_layout(const lmk_linear_attention *a, float *memory, linear_chunk *c) {
    const size_t key_panels = panels_of(a->key_dim), keys = PANEL * key_panels,
                 values = PANEL * panels_of(a->value_dim), fetches = fetches_of(a);
    float *fetch;
    *c = (linear_chunk){.panels = key_panels, .fetches = fetches};
    const matrix_part parts[] = {
        {&c->q, keys},
        {&c->k, keys},
        {&c->k_transposed, keys},
        {&c->decay, keys},
        {&c->values, values},
        {&c->outputs, values},
        {&c->total, CHUNK_TOKENS * key_panels},
        {&c->normalizer, CHUNK_TOKENS * key_panels},
        {&c->pairs, PANEL},
        {&c->divisors, CHUNK_TOKENS},
        {&fetch, fetch_floats(fetches)},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    c->read = c->q;
    c->write = c->k;
    c->chunk_fetch = (fetch_column *)(void *)fetch;
    for (size_t i = 0; memory && i < fetches; i++)
        c->chunk_fetch[i] = (fetch_column){(const char *)c->q, 0};
    return floats;
}

size_t lmk_linear_lay_out_tiles(size_t key_dim, float *memory, linear_tiles *to) {
    *to = (linear_tiles){0};
    // In floats: two factors each.
    const size_t keys = lmk_round_up(key_dim, 32), rows = TILE_TOKENS * keys / 2,
                 pairs = TILE_TOKENS * TILE_TOKENS / 2, columns = SLICE_COLUMNS;
    float *factors[9];
    const matrix_part parts[] = {
        {&to->decay, TILE_TOKENS},
        {&to->keys, TILE_TOKENS},
        {&to->queries, TILE_TOKENS},
        {&to->read, TILE_TOKENS},
        {&to->write, TILE_TOKENS},
        {&to->state, columns * keys},
        {&to->sums, TILE_SUMS},
        {&factors[0], rows},
        {&factors[1], rows},
        {&factors[2], rows},
        {&factors[3], rows},
        {&factors[4], pairs},
        {&factors[5], pairs},
        {&factors[6], TILE_TOKENS * columns / 2},
        {&factors[7], keys * columns / 2},
        {&factors[8], keys * columns / 2},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    uint16_t **const places[] = {&to->queries_left, &to->keys_right, &to->keys_high,
                                 &to->keys_low,     &to->pairs_high, &to->pairs_low,
                                 &to->values_right, &to->state_high, &to->state_low};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        *places[i] = (uint16_t *)(void *)factors[i];
    return floats;
}

size_t lmk_linear_fetch_floats(const lmk_linear_attention *a) {
    return fetch_floats(BLOCK_TOKENS / CHUNK_TOKENS * fetches_of(a));
}

int lmk_linear_is_chunked(const lmk_linear_attention *a, size_t tokens) {
    if (a->is_bidirectional) return 1;
    if (a->form == LMK_LINEAR_ATTENTION_AUTOMATIC) return tokens >= CHUNKED_TOKENS;
    return a->form == LMK_LINEAR_ATTENTION_CHUNKED;
}

void lmk_linear_cut(const lmk_linear_attention *a, size_t pieces, linear_plan *plan) {
    const size_t sequences = sequences_of(a);
    plan->segments = sequences;
    if (pieces == 0 || pieces >= ENOUGH_PIECES) return;
    size_t longest = 0;
    for (size_t n = 0; n < sequences; n++) longest = lmk_max(longest, tokens_of(a, n));
    if (longest < 2 * SEGMENT_TOKENS) return;
    const size_t wanted = lmk_divide_up(longest, WANTED_PIECES / pieces);
    plan->cuts = 1;
    plan->segment_tokens = lmk_round_up(lmk_max(wanted, SEGMENT_TOKENS), BLOCK_TOKENS);
    plan->segments = 0;
    for (size_t n = 0; n < sequences; n++) {
        plan->first_segment[n] = plan->segments;
        plan->segments += lmk_max(1, lmk_divide_up(tokens_of(a, n), plan->segment_tokens));
    }
    plan->first_segment[sequences] = plan->segments;
}

linear_plan lmk_linear_plan(const lmk_linear_attention *a) {
    linear_plan plan = {.threads = lmk_thread_count(a->threads), .groups = 1};
    const size_t slices = lmk_divide_up(a->value_dim, VALUE_SLICE),
                 pieces = sequences_of(a) * a->heads * slices;
    plan.segments = sequences_of(a);
    // The recurrence does not go over pieces twice.
    if (lmk_linear_is_chunked(a, SEGMENT_TOKENS)) lmk_linear_cut(a, pieces, &plan);
    if (is_serial(a, a->tokens)) plan.threads = 1;
    const size_t units = lmk_max(1, plan.segments * a->heads);
    // Every group would read the normaliser, and one of them write it.
    if (plan.threads > 1 && units < 2 * (size_t)plan.threads && !a->is_normalized)
        plan.groups = lmk_min(slices, lmk_divide_up(2 * (size_t)plan.threads, units));
    // States that stay in L2, and pieces enough for each thread.
    const size_t state_bytes = sizeof(float) * state_floats(a->key_dim, a->value_dim);
    plan.unit_heads = lmk_max(1, UNIT_STATE_BYTES / state_bytes);
    if (plan.threads > 1) {
        const size_t workers = plan.threads,
                     shared = units / (units % workers == 0 ? workers : 2 * workers);
        plan.unit_heads = lmk_min(plan.unit_heads, lmk_max(1, shared));
    }
    plan.unit_heads = lmk_min(plan.unit_heads, a->heads);
    const size_t token_bytes =
        plan.unit_heads * lmk_dtype_size(a->dtype) * 2 * (a->key_dim + a->value_dim);
    plan.block_tokens =
        lmk_min(BLOCK_TOKENS, lmk_round_up(BLOCK_BYTES / token_bytes + 1, CHUNK_TOKENS));
    // Chunks on tiles take as many.
    if (fits_tiles(a->dtype, a->decay)) plan.block_tokens = BLOCK_TOKENS;
    const size_t group_slices = lmk_divide_up(slices, plan.groups);
    plan.group_columns = VALUE_SLICE * group_slices;
    plan.groups = lmk_divide_up(slices, group_slices);
    return plan;
}

linear_segment lmk_linear_segment(const lmk_linear_attention *a, const linear_plan *plan,
                                  size_t index) {
    if (!plan->cuts) {
        return (linear_segment){.sequence = index,
                                .index = index,
                                .end = tokens_of(a, index),
                                .is_first = 1,
                                .is_last = 1};
    }
    size_t n = 0;
    while (plan->first_segment[n + 1] <= index) n++;
    const size_t tokens = tokens_of(a, n),
                 begin = plan->segment_tokens * (index - plan->first_segment[n]);
    return (linear_segment){.sequence = n,
                            .index = index,
                            .begin = begin,
                            .end = lmk_min(begin + plan->segment_tokens, tokens),
                            .is_first = index == plan->first_segment[n],
                            .is_last = index + 1 == plan->first_segment[n + 1]};
}
