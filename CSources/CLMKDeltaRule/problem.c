#include "problem.h"

#include <math.h>

const delta_rule_kernels *lmk_delta_rule_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &delta_rule_kernels_avx512;
    case LMK_ISA_AVX2: return &delta_rule_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &delta_rule_kernels_neon;
#endif
    default: return &delta_rule_kernels_generic;
    }
}

lmk_linear_attention lmk_delta_rule_view(const lmk_delta_rule *r) {
    return (lmk_linear_attention){
        .dtype = r->dtype,
        .decay = r->decay,
        .batch = r->batch,
        .tokens = r->tokens,
        .heads = r->heads,
        .key_heads = r->key_heads,
        .key_dim = r->key_dim,
        .value_dim = r->value_dim,
        .q = r->q,
        .q_strides = r->q_strides,
        .log_decay = r->log_decay,
        .log_decay_strides = r->log_decay_strides,
        .scale = r->scale,
        .offsets = r->offsets,
        .sequences = r->sequences,
        .memory_budget = r->memory_budget,
        .threads = r->threads,
    };
}

lmk_status lmk_delta_rule_check_rows(const lmk_delta_rule *r, tensor_names names, const void *data,
                                     lmk_token_strides strides, size_t steps, size_t heads,
                                     size_t width, size_t size, lmk_error *error) {
    lmk_linear_attention view = lmk_delta_rule_view(r);
    view.tokens *= steps;
    return lmk_linear_attention_check_rows(&view, names, data, strides, heads, width, size, error);
}

static lmk_status check_options(const lmk_delta_rule *r, lmk_error *error) {
    if ((unsigned)r->form > LMK_DELTA_RULE_CHUNKED)
        return lmk_fail_range(error, "form", "a form", r->form);
    if ((unsigned)r->dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", r->dtype);
    if (r->decay != LMK_DECAY_NONE && r->decay != LMK_DECAY_TOKEN && r->decay != LMK_DECAY_KEY)
        return lmk_fail_range(error, "decay", "none, of tokens or of keys", r->decay);
    if ((unsigned)r->beta_kind > LMK_BETA_TWICE_SIGMOID)
        return lmk_fail_range(error, "beta_kind", "a kind of rate", r->beta_kind);
    if (!isfinite(r->scale)) return lmk_fail_real(error, "scale", "finite", (double)r->scale);
    if (r->has_unit_length && !(r->epsilon >= 0 && isfinite(r->epsilon)))
        return lmk_fail_real(error, "epsilon", "finite, at least 0", (double)r->epsilon);
    if (r->steps == 0) return lmk_fail_size(error, "steps", 1, 0);
    size_t steps = r->tokens;
    if (!lmk_multiply_size(&steps, r->steps)) return lmk_fail_overflow(error, "steps");
    if (!r->is_generalized && (r->a || r->b))
        return lmk_fail_conflict(error, r->a ? "a" : "b", "only in the generalised form");
    if (!r->is_generalized) return LMK_OK;
    if (r->steps != 1)
        return lmk_fail_range(error, "steps", "1 in the generalised form", (int64_t)r->steps);
    if (r->beta) return lmk_fail_conflict(error, "beta", "none in the generalised form");
    return LMK_OK;
}

lmk_status lmk_delta_rule_check(const lmk_delta_rule *r, int reads, lmk_error *error) {
    lmk_status status = check_options(r, error);
    if (status != LMK_OK) return status;
    const lmk_linear_attention view = lmk_delta_rule_view(r);
    status = lmk_linear_attention_check_sizes(&view, error);
    if (status != LMK_OK) return status;
    const size_t size = lmk_dtype_size(r->dtype);
    const struct {
        tensor_names names;
        const void *data;
        lmk_token_strides strides;
        size_t steps, heads, width, size;
        int is_there;
    } tensors[] = {
        {TENSOR_NAMES(q), r->q, r->q_strides, 1, r->heads, r->key_dim, size, reads},
        {TENSOR_NAMES(k), r->k, r->k_strides, r->steps, r->key_heads, r->key_dim, size, 1},
        {TENSOR_NAMES(v), r->v, r->v_strides, r->steps, r->key_heads, r->value_dim, size, 1},
        {TENSOR_NAMES(beta), r->beta, r->beta_strides, r->steps, r->heads, 1, sizeof(float),
         !r->is_generalized},
        {TENSOR_NAMES(log_decay), r->log_decay, r->log_decay_strides, 1, r->heads,
         r->decay == LMK_DECAY_KEY ? r->key_dim : 1, sizeof(float), r->decay != LMK_DECAY_NONE},
        {TENSOR_NAMES(a), r->a, r->a_strides, 1, r->key_heads, r->key_dim, size, r->is_generalized},
        {TENSOR_NAMES(b), r->b, r->b_strides, 1, r->key_heads, r->key_dim, size, r->is_generalized},
    };
    for (size_t i = 0; status == LMK_OK && i < sizeof tensors / sizeof *tensors; i++) {
        if (!tensors[i].is_there) continue;
        status = lmk_delta_rule_check_rows(r, tensors[i].names, tensors[i].data, tensors[i].strides,
                                           tensors[i].steps, tensors[i].heads, tensors[i].width,
                                           tensors[i].size, error);
    }
    return status;
}

size_t lmk_delta_rule_offset(const lmk_delta_rule *r, lmk_token_strides strides, size_t steps,
                             size_t sequence, size_t head) {
    const size_t first = r->offsets ? (size_t)r->offsets[sequence] : 0;
    return (r->offsets ? 0 : strides.batch * sequence) + strides.token * steps * first +
           strides.head * head;
}

static token_rows rows_of(const lmk_delta_rule *r, const void *data, lmk_token_strides strides,
                          size_t steps, size_t sequence, size_t head, size_t column,
                          size_t columns) {
    const size_t at = lmk_delta_rule_offset(r, strides, steps, sequence, head) + column;
    return (token_rows){
        .data = data ? (const char *)data + lmk_dtype_size(r->dtype) * at : 0,
        .stride = strides.token,
        .dtype = r->dtype,
        .width = columns,
    };
}

delta_head lmk_delta_head(const lmk_delta_rule *r, const lmk_delta_rule_results *results,
                          size_t sequence, size_t head, size_t column, size_t columns) {
    const size_t key_head = head / (r->heads / r->key_heads), steps = r->steps,
                 key_dim = r->key_dim;
    delta_head result = {
        .rows =
            {
                .q = rows_of(r, r->q, r->q_strides, 1, sequence, head, 0, key_dim),
                .k = rows_of(r, r->k, r->k_strides, steps, sequence, key_head, 0, key_dim),
                .v = rows_of(r, r->v, r->v_strides, steps, sequence, key_head, column, columns),
                .decay = r->decay,
                .scale = r->scale,
                .epsilon = r->epsilon,
                .has_unit_length = r->has_unit_length,
            },
        .steps = steps,
        .beta_kind = r->beta_kind,
    };
    if (r->is_generalized) {
        result.a = rows_of(r, r->a, r->a_strides, 1, sequence, key_head, 0, key_dim);
        result.b = rows_of(r, r->b, r->b_strides, 1, sequence, key_head, 0, key_dim);
    }
    if (results && results->o) {
        const token_rows o =
            rows_of(r, results->o, results->o_strides, 1, sequence, head, column, columns);
        result.rows.o = (token_rows_out){(void *)(uintptr_t)o.data, o.stride, o.dtype, o.width};
    }
    if (r->beta) {
        result.beta = r->beta + lmk_delta_rule_offset(r, r->beta_strides, steps, sequence, head);
        result.beta_stride = r->beta_strides.token;
    }
    if (r->decay != LMK_DECAY_NONE && r->log_decay) {
        result.rows.log_decay =
            r->log_decay + lmk_delta_rule_offset(r, r->log_decay_strides, 1, sequence, head);
        result.rows.log_decay_stride = r->log_decay_strides.token;
    }
    return result;
}

size_t lmk_delta_memory_layout(const lmk_delta_rule *r, float *memory, delta_memory *to) {
    const size_t keys = PANEL * panels_of(r->key_dim),
                 zero_floats = CHUNK_TOKENS * panels_of(r->key_dim);
    const int is_generalized = r->is_generalized,
              has_rows = is_generalized || r->decay == LMK_DECAY_KEY;
    float *zeros;
    step_block *const x = to->blocks, *const y = to->blocks + 1;
    *to = (delta_memory){0};
    const size_t rows = has_rows ? keys : 0, general = is_generalized ? keys : 0;
    const matrix_part parts[] = {
        {&x->k, keys},         {&x->q, keys},     {&y->k, keys},         {&y->q, keys},
        {&zeros, zero_floats}, {&x->read, rows},  {&x->query, rows},     {&x->write, rows},
        {&x->fold, rows},      {&x->first, rows}, {&y->read, rows},      {&y->query, rows},
        {&y->write, rows},     {&y->fold, rows},  {&y->first, rows},     {&x->second, general},
        {&x->a, general},      {&x->b, general},  {&y->second, general}, {&y->a, general},
        {&y->b, general},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    for (size_t i = 0; memory && i < zero_floats; i++) zeros[i] = 0;
    x->zeros = y->zeros = zeros;
    return floats;
}

size_t lmk_delta_chunk_layout(const lmk_delta_rule *r, size_t columns, int is_backward,
                              float *memory, delta_chunk *c) {
    const size_t key_panels = panels_of(r->key_dim), value_panels = panels_of(columns),
                 keys = PANEL * key_panels, values = PANEL * value_panels,
                 state = PANEL * key_panels * value_panels, general = r->is_generalized ? 1 : 0,
                 backward = is_backward ? 1 : 0, spread = r->decay == LMK_DECAY_NONE ? 0 : keys,
                 fetches = key_panels * value_panels * (CHUNK_TOKENS / READ_ROWS_MIN);
    *c = (delta_chunk){.panels = value_panels};
    // Shared by all pairs, or by those of a reader or a writer.
    linear_chunk p = {.panels = key_panels, .fetches = fetches};
    linear_gradient_chunk g = {.panels = value_panels};
    float *reads[2], *befores[2], *writes[2], *pairs[DELTA_PAIRS], *dq[DELTA_PAIRS],
        *dk[DELTA_PAIRS], *fetch;
    const matrix_part parts[] = {
        {&c->q, keys},
        {&c->k, keys},
        {&c->a, general * keys},
        {&c->b, general * keys},
        {&c->v, values},
        {&c->e, values},
        {&c->u, values},
        {&c->outputs, values},
        {&c->rates, CHUNK_TOKENS},
        {&p.k_transposed, keys},
        {&p.decay, lmk_max(spread, CHUNK_TOKENS)},
        {&p.total, CHUNK_TOKENS * key_panels},
        {&reads[0], spread},
        {&reads[1], spread},
        {&writes[0], spread},
        {&writes[1], general * spread},
        {&pairs[0], PANEL},
        {&pairs[1], PANEL},
        {&pairs[2], PANEL},
        {&pairs[3], PANEL},
        {&fetch, lmk_round_up(sizeof(fetch_column) * fetches, 64) / sizeof(float)},
        {&p.after, backward * spread},
        {&befores[0], backward * spread},
        {&befores[1], backward * spread},
        {&c->du, backward * values},
        {&c->dz, backward * values},
        {&c->dv, backward * values},
        {&c->ddecay, backward * keys},
        {&c->dstate, backward * state},
        {&dq[0], backward * keys},
        {&dq[1], backward * keys},
        {&dq[2], backward * general * keys},
        {&dq[3], backward * general * keys},
        {&dk[0], backward * keys},
        {&dk[1], backward * keys},
        {&dk[2], backward * general * keys},
        {&dk[3], backward * general * keys},
        {&g.values_transposed, backward * values},
        {&g.values_after, backward * values},
        {&g.outputs_before, backward * values},
        {&g.dpairs, PANEL},
        {&g.weights, PANEL},
        {&g.products, PANEL},
        {&g.read_dots, PANEL},
        {&g.write_dots, PANEL},
        {&g.carried, CHUNK_TOKENS * key_panels},
        {&g.ddecay, backward * keys},
    };
    const size_t floats = lmk_linear_lay_out(parts, sizeof parts / sizeof *parts, memory);
    if (!memory) return floats;
    g.dstate = c->dstate;
    p.chunk_fetch = (fetch_column *)(void *)fetch;
    for (size_t i = 0; i < fetches; i++) p.chunk_fetch[i] = (fetch_column){(const char *)c->q, 0};
    const int has_decay = r->decay != LMK_DECAY_NONE;
    for (int i = 0; i < DELTA_PAIRS; i++) {
        const int of_steps = i == STEPS_OF_U || i == STEPS_OF_V,
                  of_values = i == QUERIES_OF_V || i == STEPS_OF_V;
        linear_chunk *const pair = c->pairs + i;
        *pair = p;
        pair->q = of_steps ? (r->is_generalized ? c->a : c->k) : c->q;
        pair->k = of_values || !r->is_generalized ? c->k : c->b;
        pair->read = has_decay ? reads[of_steps] : pair->q;
        pair->write = has_decay ? writes[of_values] : pair->k;
        pair->before = has_decay && is_backward ? befores[of_steps] : 0;
        pair->after = has_decay && is_backward ? p.after : 0;
        pair->pairs = pairs[i];
        linear_gradient_chunk *const gradient = c->gradients + i;
        *gradient = g;
        gradient->values = of_values ? c->v : c->u;
        gradient->outputs = of_steps ? c->dz : c->outputs;
        gradient->dq = dq[i];
        gradient->dk = dk[i];
    }
    return floats;
}
