// Linear attention every way it can be called: decays, options, forms and storage types, with 1, 2
// and 3 threads, in both orders of tokens and heads, with little memory and the state in place. All
// must give the same bits.
#include "tokens.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const decays[] = {"none", "head", "token", "key"};
static const char *const forms[] = {"automatic", "recurrent", "chunked"};

/// A problem: its arrays, and those of its gradients; what is absent is null.
typedef struct test_case {
    char name[96];
    lmk_linear_attention attention;
    tokens q, k, v, g, output_gradient;
    float *head_decays, *bonus, *state, *normalizer, *state_gradient, *normalizer_gradient;
    size_t state_stride;
    /// N heads, and states at the stride.
    size_t states, stored;
    /// Of the first call; 0 before.
    uint64_t forward, backward;
} test_case;

// ---- Calls

/// The problem with inputs laid out for a way; free with close_inputs.
static lmk_linear_attention open_inputs(const test_case *t, way w, tokens inputs[4]) {
    lmk_linear_attention a = t->attention;
    const tokens *const sources[] = {&t->q, &t->k, &t->v, &t->g};
    for (int i = 0; i < 4; i++) inputs[i] = in_layout(sources[i], w);
    a.q = inputs[0].rows.data;
    a.q_strides = inputs[0].strides;
    a.k = inputs[1].rows.data;
    a.k_strides = inputs[1].strides;
    a.v = inputs[2].rows.data;
    a.v_strides = inputs[2].strides;
    a.log_decay = t->head_decays ? t->head_decays : inputs[3].rows.data;
    a.log_decay_strides = t->head_decays ? (lmk_token_strides){.head = 1} : inputs[3].strides;
    a.bonus = t->bonus;
    a.initial_state = t->state;
    a.initial_normalizer = t->normalizer;
    a.threads = w.threads;
    a.memory_budget = w.is_tight ? 1 : 0;
    return a;
}

static void close_inputs(tokens inputs[4]) {
    for (int i = 0; i < 4; i++) free_matrix(&inputs[i].rows);
}

static size_t state_size(const test_case *t) {
    return t->states * t->attention.key_dim * t->attention.value_dim;
}
static size_t normalizer_size(const test_case *t) { return t->states * t->attention.key_dim; }

/// What forward gives, for whoever compares it with a file.
typedef struct results {
    tokens o;
    float *state, *normalizer;
} results;

static results run_forward(test_case *t, way w) {
    tokens inputs[4];
    lmk_linear_attention a = open_inputs(t, w, inputs);
    const int has_state = !a.is_bidirectional, has_normalizer = has_state && a.is_normalized;
    results r = {
        .o = take_tokens(a.batch, a.tokens, a.heads, a.value_dim, 1, a.dtype, w.is_head_major),
        .state = take_results(state_size(t), has_state),
        .normalizer = take_results(normalizer_size(t), has_normalizer)};
    // In place where there is a start.
    if (w.is_in_place && t->state) {
        memcpy(r.state, t->state, state_size(t) * sizeof(float));
        a.initial_state = r.state;
    }
    if (w.is_in_place && t->normalizer) {
        memcpy(r.normalizer, t->normalizer, normalizer_size(t) * sizeof(float));
        a.initial_normalizer = r.normalizer;
    }
    const size_t rows = t->stored * a.heads * a.key_dim;
    const int has_stored = has_state && t->state_stride > 0;
    float *const states = take_results(rows * a.value_dim, has_stored);
    float *const normalizers = take_results(rows, has_stored && has_normalizer);
    const lmk_linear_attention_results out = {.o = r.o.rows.data,
                                              .o_strides = r.o.strides,
                                              .final_state = r.state,
                                              .final_normalizer = r.normalizer,
                                              .states = states,
                                              .normalizers = normalizers,
                                              .state_stride = t->state_stride};
    const size_t size = lmk_linear_attention_workspace_size(&a);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name, lmk_linear_attention_forward(&a, &out, workspace, size, &error), &error);
    uint64_t hash = hash_tokens(t->name, &r.o);
    hash = hash_floats(hash, r.state, state_size(t));
    hash = hash_floats(hash, r.normalizer, normalizer_size(t));
    hash = hash_floats(hash, states, rows * a.value_dim);
    hash = hash_floats(hash, normalizers, rows);
    compare_ways(t->name, &t->forward, hash, "forward", w);
    free(workspace);
    free(states);
    free(normalizers);
    close_inputs(inputs);
    return r;
}

static void free_results(results *r) {
    free_matrix(&r->o.rows);
    free(r->state);
    free(r->normalizer);
}

/// Gradients of the inputs.
typedef struct slopes {
    tokens q, k, v, g;
    float *head_decays, *bonus, *state, *normalizer;
} slopes;

static slopes run_backward(test_case *t, way w) {
    tokens inputs[4];
    const lmk_linear_attention a = open_inputs(t, w, inputs);
    tokens upstream = in_layout(&t->output_gradient, w);
    const int has_state = !a.is_bidirectional, has_normalizer = has_state && a.is_normalized;
    slopes s = {.q = take_like(&t->q, w), .k = take_like(&t->k, w), .v = take_like(&t->v, w)};
    if (t->g.rows.memory) s.g = take_like(&t->g, w);
    s.head_decays = take_results(a.heads, t->head_decays != 0);
    s.bonus = take_results(a.heads * a.key_dim, t->bonus != 0);
    s.state = take_results(state_size(t), has_state);
    s.normalizer = take_results(normalizer_size(t), has_normalizer);
    if (w.is_in_place && t->state_gradient)
        memcpy(s.state, t->state_gradient, state_size(t) * sizeof(float));
    if (w.is_in_place && t->normalizer_gradient)
        memcpy(s.normalizer, t->normalizer_gradient, normalizer_size(t) * sizeof(float));
    const lmk_linear_attention_gradients g = {
        .output = upstream.rows.data,
        .output_strides = upstream.strides,
        .final_state = w.is_in_place && t->state_gradient ? s.state : t->state_gradient,
        .final_normalizer =
            w.is_in_place && t->normalizer_gradient ? s.normalizer : t->normalizer_gradient,
        .q = s.q.rows.data,
        .q_strides = s.q.strides,
        .k = s.k.rows.data,
        .k_strides = s.k.strides,
        .v = s.v.rows.data,
        .v_strides = s.v.strides,
        .log_decay = t->head_decays ? s.head_decays : s.g.rows.data,
        .log_decay_strides = t->head_decays ? (lmk_token_strides){.head = 1} : s.g.strides,
        .bonus = s.bonus,
        .initial_state = s.state,
        .initial_normalizer = s.normalizer};
    const size_t size = lmk_linear_attention_backward_workspace_size(&a);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name, lmk_linear_attention_backward(&a, &g, workspace, size, &error), &error);
    uint64_t hash = hash_tokens(t->name, &s.q) * 7 + hash_tokens(t->name, &s.k);
    hash = hash * 7 + hash_tokens(t->name, &s.v);
    if (s.g.rows.memory) hash = hash * 7 + hash_tokens(t->name, &s.g);
    hash = hash_floats(hash, s.head_decays, a.heads);
    hash = hash_floats(hash, s.bonus, a.heads * a.key_dim);
    hash = hash_floats(hash, s.state, state_size(t));
    hash = hash_floats(hash, s.normalizer, normalizer_size(t));
    compare_ways(t->name, &t->backward, hash, "backward", w);
    free(workspace);
    free_matrix(&upstream.rows);
    close_inputs(inputs);
    return s;
}

static void free_slopes(slopes *s) {
    tokens *const all[] = {&s->q, &s->k, &s->v, &s->g};
    for (int i = 0; i < 4; i++) free_matrix(&all[i]->rows);
    free(s->head_decays);
    free(s->bonus);
    free(s->state);
    free(s->normalizer);
}

/// The piece that the tokens make, and two of them in a row.
static void run_piece(test_case *t, unsigned threads, uint64_t *first) {
    tokens inputs[4];
    const way w = {.threads = threads};
    lmk_linear_attention a = open_inputs(t, w, inputs);
    const size_t rows = normalizer_size(t);
    const lmk_linear_attention_piece piece = {.decay = take_results(rows, 1),
                                              .state = take_results(rows * a.value_dim, 1),
                                              .normalizer = take_results(rows, 1)};
    a.is_normalized = 1;
    const size_t size = lmk_linear_attention_workspace_size(&a);
    void *const workspace = take(size);
    lmk_error error = {0};
    expect_ok(t->name, lmk_linear_attention_partial_state(&a, &piece, workspace, size, &error),
              &error);
    const lmk_linear_attention_piece next = {.decay = copy_floats(piece.decay, rows),
                                             .state = copy_floats(piece.state, rows * a.value_dim),
                                             .normalizer = copy_floats(piece.normalizer, rows)};
    expect_ok(t->name,
              lmk_linear_attention_combine(t->states, a.key_dim, a.value_dim, &piece, &next, &piece,
                                           &error),
              &error);
    uint64_t hash = hash_floats(1, piece.decay, rows);
    hash = hash_floats(hash, piece.state, rows * a.value_dim);
    compare_ways(t->name, first, hash_floats(hash, piece.normalizer, rows), "pieces", w);
    free(workspace);
    const lmk_linear_attention_piece both[] = {piece, next};
    for (int i = 0; i < 2; i++) {
        free(both[i].decay);
        free(both[i].state);
        free(both[i].normalizer);
    }
    close_inputs(inputs);
}

static void run_every_way(test_case *t) {
    for (size_t i = 0; i < WAYS; i++) {
        results r = run_forward(t, ways[i]);
        free_results(&r);
        slopes s = run_backward(t, ways[i]);
        free_slopes(&s);
    }
    put_hash(t->name, "forward", t->forward);
    put_hash(t->name, "backward", t->backward);
    if (t->attention.is_bidirectional || t->attention.has_unit_length) return;
    uint64_t piece = 0;
    for (unsigned threads = 1; threads <= 3; threads++) run_piece(t, threads, &piece);
    put_hash(t->name, "pieces", piece);
}

static void close_case(test_case *t) {
    tokens *const all[] = {&t->q, &t->k, &t->v, &t->g, &t->output_gradient};
    for (int i = 0; i < 5; i++) free_matrix(&all[i]->rows);
    float *const arrays[] = {t->head_decays, t->bonus,          t->state,
                             t->normalizer,  t->state_gradient, t->normalizer_gradient};
    for (int i = 0; i < 6; i++) free(arrays[i]);
}

// ---- Problems made here

typedef struct shape {
    size_t batch, tokens, heads, key_heads, key_dim, value_dim;
} shape;

// Around the edges of vectors, slices and chunks; one head whose columns threads share.
static const shape shapes[] = {
    {2, 20, 2, 1, 17, 33}, {1, 33, 2, 2, 16, 16}, {1, 7, 3, 1, 5, 64}, {1, 40, 1, 1, 33, 70}};

/// Sequences of the first shape that are packed, and of one that is cut into segments.
static const int64_t packed[] = {0, 0, 17, 18, 33};
static const int64_t cut[] = {0, 3, 4203};

static void take_decays(generator *g, test_case *t) {
    const lmk_linear_attention *const a = &t->attention;
    if (a->decay == LMK_DECAY_NONE) return;
    if (a->decay == LMK_DECAY_HEAD) {
        t->head_decays = take(a->heads * sizeof(float));
        for (size_t i = 0; i < a->heads; i++) t->head_decays[i] = i == 1 ? -0.5f : -0.01f;
        return;
    }
    const size_t width = a->decay == LMK_DECAY_KEY ? a->key_dim : 1;
    t->g = make_decays(g, a->batch, a->tokens, a->heads, width);
}

/// Options by the bits of `number`: a bonus, a normaliser, unit length, states.
static void run_shape(shape size, const int64_t *offsets, size_t sequences, lmk_dtype dtype,
                      lmk_decay decay, lmk_linear_attention_form form, size_t number) {
    generator g = {.state = number * 31 + (uint64_t)dtype};
    const int is_normalized = number >> 1 & 1, has_states = number >> 3 & 1;
    test_case t = {.attention = {.form = form,
                                 .dtype = dtype,
                                 .decay = decay,
                                 .batch = size.batch,
                                 .tokens = size.tokens,
                                 .heads = size.heads,
                                 .key_heads = size.key_heads,
                                 .key_dim = size.key_dim,
                                 .value_dim = size.value_dim,
                                 .scale = 0.25f,
                                 .is_normalized = is_normalized,
                                 .has_unit_length = number >> 2 & 1,
                                 .epsilon = 0x1p-20f,
                                 .is_bidirectional = decay == LMK_DECAY_NONE && number % 5 == 4,
                                 .offsets = offsets,
                                 .sequences = offsets ? sequences : 0}};
    const lmk_linear_attention *const a = &t.attention;
    const size_t count = offsets ? sequences : size.batch;
    t.states = count * size.heads;
    t.state_stride = a->is_bidirectional ? 0 : 5;
    for (size_t n = 0; n < count && t.state_stride; n++) {
        t.stored +=
            (offsets ? (size_t)(offsets[n + 1] - offsets[n]) : size.tokens) / t.state_stride;
    }
    snprintf(t.name, sizeof t.name, "linear-attention-%s%s-%s-%s-%zux%zux%zu-%zu", decays[decay],
             a->is_bidirectional ? "-bidirectional" : "", forms[form], dtype_name(dtype),
             size.tokens, size.key_dim, size.value_dim, number % 16);
    const float low = is_normalized ? 0.125f : -1;
    t.q = make_tokens(&g, size.batch, size.tokens, size.heads, size.key_dim, dtype, low, 1);
    t.k = make_tokens(&g, size.batch, size.tokens, size.key_heads, size.key_dim, dtype, low, 1);
    t.v = make_tokens(&g, size.batch, size.tokens, size.key_heads, size.value_dim, dtype, -1, 1);
    t.output_gradient =
        make_tokens(&g, size.batch, size.tokens, size.heads, size.value_dim, dtype, -1, 1);
    take_decays(&g, &t);
    if (!a->is_bidirectional) {
        // Positive, for the sake of divisors.
        if (number & 1) t.bonus = take_floats(&g, size.heads * size.key_dim, 0);
        for (size_t i = 0; t.bonus && i < size.heads * size.key_dim; i++)
            t.bonus[i] = 0.75f + 0.5f * next_float(&g);
        if (has_states) {
            t.state = take_floats(&g, state_size(&t), 2);
            t.state_gradient = take_floats(&g, state_size(&t), 1);
        }
        if (has_states && is_normalized) {
            t.normalizer = take_floats(&g, normalizer_size(&t), 0);
            for (size_t i = 0; i < normalizer_size(&t); i++)
                t.normalizer[i] = 1 + 0.5f * next_float(&g);
            t.normalizer_gradient = take_floats(&g, normalizer_size(&t), 1);
        }
    }
    run_every_way(&t);
    close_case(&t);
}

void run_linear_attention_seeded(void) {
    size_t number = 0;
    for (int decay = LMK_DECAY_NONE; decay <= LMK_DECAY_KEY; decay++) {
        for (int form = LMK_LINEAR_ATTENTION_RECURRENT; form <= LMK_LINEAR_ATTENTION_CHUNKED;
             form++) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                // Storage types take turns; options come round otherwise.
                for (int dtype = LMK_FLOAT32; dtype <= LMK_FLOAT16; dtype++, number += 7)
                    run_shape(shapes[i], 0, 0, (lmk_dtype)dtype, (lmk_decay)decay,
                              (lmk_linear_attention_form)form, number);
            run_shape(shapes[1], packed, 4, LMK_FLOAT32, (lmk_decay)decay,
                      (lmk_linear_attention_form)form, 8 + number % 3);
        }
        run_shape((shape){1, 4203, 1, 1, 16, 16}, decay % 2 ? cut : 0, 2, LMK_FLOAT32,
                  (lmk_decay)decay, LMK_LINEAR_ATTENTION_AUTOMATIC, decay == 2 ? 10 : 8);
    }
    // Nothing but states.
    run_shape((shape){2, 0, 2, 1, 3, 4}, 0, 0, LMK_FLOAT32, LMK_DECAY_TOKEN,
              LMK_LINEAR_ATTENTION_AUTOMATIC, 10);
}

// ---- Conformance files

static float *read_floats(const safetensors *file, const char *name) {
    return safetensors_tensor(file, name).data;
}

static void run_file(const safetensors *file, const char *name, lmk_linear_attention_form form) {
    tensor q = safetensors_tensor(file, "in.q"), k = safetensors_tensor(file, "in.k"),
           v = safetensors_tensor(file, "in.v"), g = safetensors_tensor(file, "in.log_decay"),
           offsets = safetensors_tensor(file, "in.cu_seqlens");
    test_case t = {.attention = {.form = form,
                                 .dtype = dtype_of(&q),
                                 .decay = !g.data             ? LMK_DECAY_NONE
                                          : g.dimensions == 1 ? LMK_DECAY_HEAD
                                          : g.dimensions == 3 ? LMK_DECAY_TOKEN
                                                              : LMK_DECAY_KEY,
                                 .batch = q.shape[0],
                                 .tokens = q.shape[1],
                                 .heads = q.shape[2],
                                 .key_heads = k.shape[2],
                                 .key_dim = q.shape[3],
                                 .value_dim = v.shape[3],
                                 .scale = (float)safetensors_number(file, "attributes", "scale", 1),
                                 .is_normalized = safetensors_flag(file, "normalize"),
                                 .is_bidirectional = !safetensors_flag(file, "causal"),
                                 .offsets = offsets.data,
                                 .sequences = offsets.data ? offsets.count - 1 : 0}};
    const lmk_linear_attention *const a = &t.attention;
    snprintf(t.name, sizeof t.name, "%s-%s", name, forms[form]);
    t.states = (offsets.data ? offsets.count - 1 : a->batch) * a->heads;
    t.q = read_tokens(file, "in.q");
    t.k = read_tokens(file, "in.k");
    t.v = read_tokens(file, "in.v");
    if (a->decay == LMK_DECAY_HEAD) t.head_decays = read_floats(file, "in.log_decay");
    else t.g = read_tokens(file, "in.log_decay");
    t.state = read_floats(file, "in.initial_state");
    t.output_gradient = read_tokens(file, "cotangent.o");
    t.state_gradient = read_floats(file, "cotangent.final_state");
    for (size_t i = 0; i < WAYS; i++) {
        results r = run_forward(&t, ways[i]);
        if (i == 0) {
            check_tokens(file, t.name, "out.o", &r.o);
            if (r.state) safetensors_check(file, t.name, "out.final_state", r.state);
        }
        free_results(&r);
        if (!t.output_gradient.rows.memory) continue;
        slopes s = run_backward(&t, ways[i]);
        if (i == 0) {
            check_tokens(file, t.name, "grad.q", &s.q);
            check_tokens(file, t.name, "grad.k", &s.k);
            check_tokens(file, t.name, "grad.v", &s.v);
            if (s.g.rows.memory) check_tokens(file, t.name, "grad.log_decay", &s.g);
            if (s.head_decays) safetensors_check(file, t.name, "grad.log_decay", s.head_decays);
            if (s.state) safetensors_check(file, t.name, "grad.initial_state", s.state);
        }
        free_slopes(&s);
    }
    put_hash(t.name, "forward", t.forward);
    put_hash(t.name, "backward", t.backward);
    close_case(&t);
    tensor *const all[] = {&q, &k, &v, &g, &offsets};
    for (int i = 0; i < 5; i++) free(all[i]->data);
}

void run_linear_attention_file(const safetensors *file, const char *name) {
    for (int form = LMK_LINEAR_ATTENTION_AUTOMATIC; form <= LMK_LINEAR_ATTENTION_CHUNKED; form++)
        run_file(file, name, (lmk_linear_attention_form)form);
}
