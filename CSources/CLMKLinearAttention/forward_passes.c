// Forward by passes that take several tokens each.
#include "forward_unit.h"

/// Tokens from which passes that take several are faster than one for each; CONTRIBUTING.md has the
/// figures.
#define PASSED_TOKENS 4

int lmk_forward_is_passed(const forward_call *call, size_t tokens) {
    const lmk_linear_attention *const a = call->attention;
    return !a->is_bidirectional && !a->is_normalized && !call->plan.cuts &&
           a->form == LMK_LINEAR_ATTENTION_AUTOMATIC && tokens >= PASSED_TOKENS &&
           !lmk_forward_is_tiled(call, tokens);
}

/// A worker's memory for passes: for each head of a unit its state in slices and what that, or each
/// of its rows, is to be multiplied with.
typedef struct pass_layout {
    pass_memory tokens;
    float *fetch, *states, *scales;
    size_t state_floats, scale_floats, fetches;
} pass_layout;

static size_t lay_out_passes(const lmk_linear_attention *a, const linear_plan *plan, float *memory,
                             pass_layout *to) {
    const size_t row = CHUNK_TOKENS * panels_of(a->key_dim), rows = 4 * row,
                 columns = lmk_min(plan->group_columns, a->value_dim),
                 state = SLICE_COLUMNS * a->key_dim * panels_of(columns),
                 scale = scale_floats_of(a->decay, a->key_dim),
                 fetches = plan->block_tokens / 4 * panels_of(columns);
    *to = (pass_layout){.state_floats = state, .scale_floats = scale, .fetches = fetches};
    const matrix_part parts[] = {
        {&to->tokens.k, rows},
        {&to->tokens.q, rows},
        {&to->tokens.rows, rows},
        {&to->tokens.zeros, row},
        {&to->tokens.ones, row},
        {&to->fetch, lmk_round_up(sizeof(fetch_column) * fetches, 64) / sizeof(float)},
        {&to->states, plan->unit_heads * state},
        {&to->scales, plan->unit_heads * scale},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    for (size_t d = 0; memory && d < row; d++) {
        to->tokens.zeros[d] = 0;
        to->tokens.ones[d] = 1;
    }
    return spaced(floats);
}

size_t lmk_forward_pass_floats(const lmk_linear_attention *a, const linear_plan *plan) {
    pass_layout layout;
    return lay_out_passes(a, plan, 0, &layout);
}

void lmk_forward_passes(const forward_call *call, const forward_unit *unit, unsigned worker) {
    const lmk_linear_attention *const a = call->attention;
    const lmk_linear_attention_results *const r = call->results;
    const size_t end = unit->segment.end, tokens = call->plan.block_tokens,
                 size = a->key_dim * a->value_dim;
    pass_layout m;
    lay_out_passes(a, &call->plan, call->workers + call->worker_floats * worker, &m);
    fetch_column *const columns = (fetch_column *)(void *)m.fetch;
    for (size_t i = 0; i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const linear_head head = lmk_forward_head(call, &u, 1);
        const state_start start = lmk_forward_start(call, &u);
        for (size_t d = 0; d < m.scale_floats; d++) m.scales[m.scale_floats * i + d] = 1;
        call->kernels->import_slices(&head, start.state ? start.state + u.column : 0, a->value_dim,
                                     m.states + m.state_floats * i);
    }
    for (size_t block = 0; block < end; block += tokens) {
        fetch_list list = lmk_forward_fetches(call, unit, block + tokens);
        const size_t share = lmk_min(lmk_divide_up(list.columns, unit->heads), m.fetches);
        for (size_t i = 0; i < unit->heads; i++) {
            const forward_unit u = head_of_unit(unit, i);
            const linear_head head = lmk_forward_head(call, &u, 1);
            const kept_states kept = {
                .data =
                    r->states ? r->states + size * lmk_forward_first_state(call, &u) + u.column : 0,
                .stride = r->state_stride,
                .step = size * a->heads,
                .row_stride = a->value_dim,
            };
            lmk_fetch_next(&list, share, columns);
            call->kernels->pass(&head, &m.tokens, block, lmk_min(block + tokens, end),
                                m.states + m.state_floats * i, m.scales + m.scale_floats * i,
                                r->states ? &kept : 0, columns, share);
        }
    }
    for (size_t i = 0; r->final_state && i < unit->heads; i++) {
        const forward_unit u = head_of_unit(unit, i);
        const linear_head head = lmk_forward_head(call, &u, 1);
        call->kernels->export_slices(
            &head, m.states + m.state_floats * i, m.scales + m.scale_floats * i,
            r->final_state + size * state_index(call, &u) + u.column, a->value_dim);
    }
}
