// The delta rule every way it can be called: decays, rates, steps of a token, forms, storage types
// and the generalised form, with 1, 2 and 3 threads, in both orders of tokens and heads, with
// little memory and the state in place. All must give the same bits.
#include "lmk_delta_rule.h"
#include "tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const decays[] = {"none", 0, "token", "key"};
static const char *const forms[] = {"automatic", "recurrent", "chunked"};

/// Tensors over tokens that are read or differentiated.
enum { Q, K, V, BETA, DECAY, A, B, TENSORS };

/// A problem: its arrays, and upstream gradients; what is absent is null.
typedef struct test_case {
    char name[96];
    lmk_delta_rule rule;
    tokens inputs[TENSORS], output_gradient;
    float *state, *state_gradient;
    size_t state_stride;
    /// N heads, and states at the stride.
    size_t states, stored;
    /// Of the first call; 0 before.
    uint64_t forward, backward;
} test_case;

// ---- Calls

/// The problem with inputs laid out for a way; free with close_tensors.
static lmk_delta_rule open_inputs(const test_case *t, way w, tokens inputs[TENSORS]) {
    lmk_delta_rule r = t->rule;
    for (int i = 0; i < TENSORS; i++) inputs[i] = in_layout(&t->inputs[i], w);
    r.q = inputs[Q].rows.data;
    r.q_strides = inputs[Q].strides;
    r.k = inputs[K].rows.data;
    r.k_strides = inputs[K].strides;
    r.v = inputs[V].rows.data;
    r.v_strides = inputs[V].strides;
    r.beta = inputs[BETA].rows.data;
    r.beta_strides = inputs[BETA].strides;
    r.log_decay = inputs[DECAY].rows.data;
    r.log_decay_strides = inputs[DECAY].strides;
    r.a = inputs[A].rows.data;
    r.a_strides = inputs[A].strides;
    r.b = inputs[B].rows.data;
    r.b_strides = inputs[B].strides;
    r.initial_state = t->state;
    r.threads = w.threads;
    r.memory_budget = w.is_tight ? 1 : 0;
    return r;
}

static void close_tensors(tokens tensors[TENSORS]) {
    for (int i = 0; i < TENSORS; i++) free_matrix(&tensors[i].rows);
}

static size_t state_size(const test_case *t) {
    return t->states * t->rule.key_dim * t->rule.value_dim;
}

/// What forward gives, for whoever compares it with a file.
typedef struct results {
    tokens o;
    float *state;
} results;

static results run_forward(test_case *t, way w) {
    tokens inputs[TENSORS];
    lmk_delta_rule r = open_inputs(t, w, inputs);
    results found = {
        .o = take_tokens(r.batch, r.tokens, r.heads, r.value_dim, 1, r.dtype, w.is_head_major),
        .state = take_results(state_size(t), 1)};
    // In place where there is a start.
    if (w.is_in_place && t->state) {
        memcpy(found.state, t->state, state_size(t) * sizeof(float));
        r.initial_state = found.state;
    }
    const size_t stored = t->stored * r.heads * r.key_dim * r.value_dim;
    float *const states = take_results(stored, t->state_stride > 0);
    const lmk_delta_rule_results out = {.o = found.o.rows.data,
                                        .o_strides = found.o.strides,
                                        .final_state = found.state,
                                        .states = states,
                                        .state_stride = t->state_stride};
    const size_t size = lmk_delta_rule_workspace_size(&r);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name, lmk_delta_rule_forward(&r, &out, workspace, size, &error), &error);
    uint64_t hash = hash_tokens(t->name, &found.o);
    hash = hash_floats(hash, found.state, state_size(t));
    compare_ways(t->name, &t->forward, hash_floats(hash, states, stored), "forward", w);
    free(workspace);
    free(states);
    close_tensors(inputs);
    return found;
}

static void free_results(results *r) {
    free_matrix(&r->o.rows);
    free(r->state);
}

/// Gradients of the inputs.
typedef struct slopes {
    tokens inputs[TENSORS];
    float *state;
} slopes;

static slopes run_backward(test_case *t, way w) {
    tokens inputs[TENSORS];
    const lmk_delta_rule r = open_inputs(t, w, inputs);
    tokens upstream = in_layout(&t->output_gradient, w);
    slopes s = {.state = take_results(state_size(t), 1)};
    for (int i = 0; i < TENSORS; i++)
        if (t->inputs[i].rows.memory) s.inputs[i] = take_like(&t->inputs[i], w);
    const int is_in_place = w.is_in_place && t->state_gradient;
    if (is_in_place) memcpy(s.state, t->state_gradient, state_size(t) * sizeof(float));
    const lmk_delta_rule_gradients g = {.output = upstream.rows.data,
                                        .output_strides = upstream.strides,
                                        .final_state = is_in_place ? s.state : t->state_gradient,
                                        .q = s.inputs[Q].rows.data,
                                        .q_strides = s.inputs[Q].strides,
                                        .k = s.inputs[K].rows.data,
                                        .k_strides = s.inputs[K].strides,
                                        .v = s.inputs[V].rows.data,
                                        .v_strides = s.inputs[V].strides,
                                        .beta = s.inputs[BETA].rows.data,
                                        .beta_strides = s.inputs[BETA].strides,
                                        .log_decay = s.inputs[DECAY].rows.data,
                                        .log_decay_strides = s.inputs[DECAY].strides,
                                        .a = s.inputs[A].rows.data,
                                        .a_strides = s.inputs[A].strides,
                                        .b = s.inputs[B].rows.data,
                                        .b_strides = s.inputs[B].strides,
                                        .initial_state = s.state};
    const size_t size = lmk_delta_rule_backward_workspace_size(&r);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name, lmk_delta_rule_backward(&r, &g, workspace, size, &error), &error);
    uint64_t hash = hash_floats(1, s.state, state_size(t));
    for (int i = 0; i < TENSORS; i++)
        if (s.inputs[i].rows.memory) hash = hash * 7 + hash_tokens(t->name, &s.inputs[i]);
    compare_ways(t->name, &t->backward, hash, "backward", w);
    free(workspace);
    free_matrix(&upstream.rows);
    close_tensors(inputs);
    return s;
}

static void free_slopes(slopes *s) {
    close_tensors(s->inputs);
    free(s->state);
}

static void close_case(test_case *t) {
    put_hash(t->name, "forward", t->forward);
    put_hash(t->name, "backward", t->backward);
    close_tensors(t->inputs);
    free_matrix(&t->output_gradient.rows);
    free(t->state);
    free(t->state_gradient);
}

// ---- Problems made here

typedef struct shape {
    size_t batch, tokens, steps, heads, key_heads, key_dim, value_dim;
} shape;

// Around the edges of vectors, slices, chunks and passes; one head whose columns threads share;
// steps of decoding.
static const shape shapes[] = {{2, 20, 1, 2, 1, 17, 33},
                               {1, 33, 1, 2, 2, 16, 16},
                               {1, 7, 3, 3, 1, 5, 64},
                               {1, 40, 2, 1, 1, 33, 70},
                               {2, 1, 1, 2, 2, 32, 32}};

/// Sequences of the second shape that are packed.
static const int64_t packed[] = {0, 0, 17, 18, 33};

/// At most 1 / sqrt(width), so that keys are no longer than 1.
static float key_bound(size_t width) {
    float bound = 1;
    while (bound * bound * (float)width > 1) bound *= 0.5f;
    return bound;
}

/// b = -0.75 a, of a length at which no state grows.
static tokens make_opposite(const tokens *a) {
    tokens b = take_like(a, (way){0});
    float *const values = take(a->rows.columns * sizeof *values);
    lmk_error error = {0};
    for (size_t i = 0; i < a->rows.rows; i++) {
        expect_ok("convert",
                  lmk_convert(matrix_row(&a->rows, i), a->rows.dtype, values, LMK_FLOAT32,
                              a->rows.columns, &error),
                  &error);
        for (size_t j = 0; j < a->rows.columns; j++) values[j] *= -0.75f;
        put_row(&b.rows, i, values);
    }
    free(values);
    return b;
}

/// Options by the bits of `number`: states, unit length, and what rates are.
static void run_shape(shape size, const int64_t *offsets, size_t sequences, lmk_dtype dtype,
                      lmk_decay decay, lmk_delta_rule_form form, int is_generalized,
                      size_t number) {
    generator g = {.state = number * 31 + (uint64_t)dtype};
    if (is_generalized) size.steps = 1;
    test_case t = {.rule = {.form = form,
                            .dtype = dtype,
                            .decay = decay,
                            .beta_kind = (lmk_beta)(number % 3),
                            .batch = size.batch,
                            .tokens = size.tokens,
                            .steps = size.steps,
                            .heads = size.heads,
                            .key_heads = size.key_heads,
                            .key_dim = size.key_dim,
                            .value_dim = size.value_dim,
                            .is_generalized = is_generalized,
                            .scale = 0.25f,
                            .has_unit_length = number >> 2 & 1,
                            .epsilon = 0x1p-20f,
                            .offsets = offsets,
                            .sequences = offsets ? sequences : 0}};
    const size_t count = offsets ? sequences : size.batch, rows = size.tokens * size.steps;
    t.states = count * size.heads;
    t.state_stride = 5;
    for (size_t n = 0; n < count; n++) {
        t.stored +=
            (offsets ? (size_t)(offsets[n + 1] - offsets[n]) : size.tokens) / t.state_stride;
    }
    snprintf(t.name, sizeof t.name, "delta-rule-%s-%s%s-%s-%zux%zux%zux%zu-%zu", decays[decay],
             forms[form], is_generalized ? "-generalised" : "", dtype_name(dtype), size.tokens,
             size.steps, size.key_dim, size.value_dim, number % 24);
    const float bound = key_bound(size.key_dim);
    tokens *const in = t.inputs;
    in[Q] = make_tokens(&g, size.batch, size.tokens, size.heads, size.key_dim, dtype, -1, 1);
    in[K] = make_tokens(&g, size.batch, rows, size.key_heads, size.key_dim, dtype, -bound, bound);
    in[V] = make_tokens(&g, size.batch, rows, size.key_heads, size.value_dim, dtype, -1, 1);
    t.output_gradient =
        make_tokens(&g, size.batch, size.tokens, size.heads, size.value_dim, dtype, -1, 1);
    if (is_generalized) {
        in[A] = make_tokens(&g, size.batch, size.tokens, size.key_heads, size.key_dim, dtype,
                            -bound, bound);
        in[B] = make_opposite(&in[A]);
    } else {
        const int is_rate = t.rule.beta_kind == LMK_BETA_RATE;
        in[BETA] = make_tokens(&g, size.batch, rows, size.heads, 1, LMK_FLOAT32, is_rate ? 0 : -4,
                               is_rate ? 2 : 4);
    }
    if (decay != LMK_DECAY_NONE) {
        in[DECAY] = make_decays(&g, size.batch, size.tokens, size.heads,
                                decay == LMK_DECAY_KEY ? size.key_dim : 1);
    }
    if (number >> 3 & 1) {
        t.state = take_floats(&g, state_size(&t), 2);
        t.state_gradient = take_floats(&g, state_size(&t), 1);
    }
    for (size_t i = 0; i < WAYS; i++) {
        results r = run_forward(&t, ways[i]);
        free_results(&r);
        slopes s = run_backward(&t, ways[i]);
        free_slopes(&s);
    }
    close_case(&t);
}

void run_delta_rule_seeded(void) {
    size_t number = 0;
    for (int decay = LMK_DECAY_NONE; decay <= LMK_DECAY_KEY; decay++) {
        if (!decays[decay]) continue;
        for (int form = LMK_DELTA_RULE_RECURRENT; form <= LMK_DELTA_RULE_CHUNKED; form++) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
                // Storage types take turns; options come round otherwise.
                for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++, number += 7) {
                    run_shape(shapes[i], 0, 0, (lmk_dtype)dtype, (lmk_decay)decay,
                              (lmk_delta_rule_form)form, 0, number);
                }
                run_shape(shapes[i], 0, 0, LMK_FLOAT32, (lmk_decay)decay, (lmk_delta_rule_form)form,
                          1, number);
            }
            run_shape(shapes[1], packed, 4, LMK_FLOAT32, (lmk_decay)decay,
                      (lmk_delta_rule_form)form, 0, 8 + number % 3);
        }
    }
    // Nothing but states.
    run_shape((shape){2, 0, 1, 2, 1, 3, 4}, 0, 0, LMK_FLOAT32, LMK_DECAY_TOKEN,
              LMK_DELTA_RULE_AUTOMATIC, 0, 8);
}

// ---- Conformance files

static void check_file(const safetensors *file, const test_case *t, const results *r) {
    check_tokens(file, t->name, "out.o", &r->o);
    safetensors_check(file, t->name, "out.final_state", r->state);
}

static void check_gradients(const safetensors *file, const test_case *t, const slopes *s) {
    static const char *const names[TENSORS] = {"grad.q",         "grad.k", "grad.v", "grad.beta",
                                               "grad.log_decay", 0,        0};
    for (int i = 0; i < TENSORS; i++)
        if (names[i] && s->inputs[i].rows.memory)
            check_tokens(file, t->name, names[i], &s->inputs[i]);
    safetensors_check(file, t->name, "grad.initial_state", s->state);
}

static void run_file(const safetensors *file, const char *name, lmk_delta_rule_form form) {
    tensor v = safetensors_tensor(file, "in.v"), g = safetensors_tensor(file, "in.log_decay"),
           offsets = safetensors_tensor(file, "in.cu_seqlens");
    test_case t = {.inputs = {[Q] = read_tokens(file, "in.q"),
                              [K] = read_tokens(file, "in.k"),
                              [V] = read_tokens(file, "in.v"),
                              [BETA] = read_tokens(file, "in.beta"),
                              [DECAY] = read_tokens(file, "in.log_decay")}};
    const tokens *const q = &t.inputs[Q];
    t.rule = (lmk_delta_rule){
        .form = form,
        .dtype = dtype_of(&v),
        .decay = !g.data             ? LMK_DECAY_NONE
                 : g.dimensions == 3 ? LMK_DECAY_TOKEN
                                     : LMK_DECAY_KEY,
        .batch = q->batch,
        .tokens = q->tokens,
        .steps = (size_t)safetensors_number(file, "attributes", "householder_steps", 1),
        .heads = q->heads,
        .key_heads = t.inputs[K].heads,
        .key_dim = q->width,
        .value_dim = v.shape[3],
        .scale = (float)safetensors_number(file, "attributes", "scale", 1),
        .offsets = offsets.data,
        .sequences = offsets.data ? offsets.count - 1 : 0};
    snprintf(t.name, sizeof t.name, "%s-%s", name, forms[form]);
    t.states = (offsets.data ? offsets.count - 1 : q->batch) * q->heads;
    t.state = safetensors_tensor(file, "in.initial_state").data;
    t.output_gradient = read_tokens(file, "cotangent.o");
    t.state_gradient = safetensors_tensor(file, "cotangent.final_state").data;
    for (size_t i = 0; i < WAYS; i++) {
        results r = run_forward(&t, ways[i]);
        if (i == 0) check_file(file, &t, &r);
        free_results(&r);
        if (!t.output_gradient.rows.memory) continue;
        slopes s = run_backward(&t, ways[i]);
        if (i == 0) check_gradients(file, &t, &s);
        free_slopes(&s);
    }
    close_case(&t);
    free(v.data);
    free(g.data);
    free(offsets.data);
}

void run_delta_rule_file(const safetensors *file, const char *name) {
    for (int form = LMK_DELTA_RULE_AUTOMATIC; form <= LMK_DELTA_RULE_CHUNKED; form++)
        run_file(file, name, (lmk_delta_rule_form)form);
}
