// The gradients of a chunk of steps. Included inside a region.
//
// A step reads the state with r (k, or a before the decay) and writes w (k, or b) times u; a query
// reads it with q; in the generalised form a step writes k times v too. With u known, all that is
// linear attention: two readers, whose outputs have the gradients do and dz, and one writer or two.
// dz comes from du by the transposed substitution, last step first:
//
//     du_j = dU_j + sum over i > j of M_ij dz_i        dz_i = -beta_i du_i, or du_i
//
// where dU is what the outputs and the state at the end add, and M_ij = <r_i, w_j> E_ij.

/// w and u = beta e; v in the generalised form.
static void prepare_writes(const delta_head *head, const delta_chunk *c, size_t begin,
                           size_t count) {
    const token_rows *const v = &head->rows.v,
                            errors = {c->errors, v->width, LMK_FLOAT32, v->width};
    load_writes(head, c, begin, count);
    load_panels(&errors, begin, count, CHUNK_TOKENS, 0, c->e);
    scale_rows(c->e, c->rates, c->panels, c->u);
    if (head->a.data) load_panels(v, begin, count, CHUNK_TOKENS, 0, c->v);
}

/// The state after a chunk from the one before it, both transposed.
static void sweep_chunk(const delta_head *head, const delta_chunk *c, size_t begin, size_t count,
                        const float *from, float *to) {
    const linear_chunk *const steps = c->pairs + STEPS_OF_U;
    const int has_decay = head->rows.decay != LMK_DECAY_NONE;
    prepare_writes(head, c, begin, count);
    if (head->rows.decay == LMK_DECAY_KEY) spread_key_decays(steps, 0, 0);
    else if (has_decay) spread_token_decays(steps, 0, 0);
    state_write write = {.x = c->u,
                         .y = steps->write,
                         .column_decay = has_decay ? steps->total : 0,
                         .from = from,
                         .state = to,
                         .state_panel = PANEL * c->panels};
    fetch_column near[NEAR_COLUMNS];
    write_state(&write, c->panels, steps->panels, near, near_columns(&c->near, near));
    if (!head->a.data) return;
    const linear_chunk *const values = c->pairs + STEPS_OF_V;
    if (head->rows.decay == LMK_DECAY_KEY) spread_key_decays(values, 0, 0);
    else if (has_decay) spread_token_decays(values, 0, 0);
    write.x = c->v;
    write.y = values->write;
    write.column_decay = 0;
    write.from = to;
    write_state(&write, c->panels, steps->panels, 0, 0);
}

/// dU of one writer: what the outputs of queries and the state at the chunk's end add.
static void read_end(const delta_chunk *c, const linear_chunk *queries, float *to) {
    const state_read read = {.x = queries->write,
                             .panels = queries->panels,
                             .state = c->dstate,
                             .state_panel = PANEL * queries->panels,
                             .pairs = queries->pairs,
                             .met = c->outputs,
                             .to = to};
    read_state_by(&read, c->panels, MEET_LATER, queries);
}

/// du, dz, and in the generalised form dv, of which du and dv begin as dU.
static void substitute_back(const delta_head *head, const delta_chunk *c) {
    const float *const met = c->pairs[STEPS_OF_U].pairs, *const met_values =
                                                             c->pairs[STEPS_OF_V].pairs;
    const int is_generalized = head->a.data != 0;
    for (size_t p = 0; p < c->panels; p++) {
        float *const du = c->du + PANEL * p, *const dz = c->dz + PANEL * p,
                     *const dv = c->dv + PANEL * p;
        f32x16 sums[CHUNK_TOKENS];
        LMK_UNROLL
        for (int i = 0; i < CHUNK_TOKENS; i++) sums[i] = load(du + LMK_LANES * i);
        LMK_UNROLL
        for (int i = CHUNK_TOKENS - 1; i >= 0; i--) {
            const f32x16 d = sums[i] * (is_generalized ? 1 : -c->rates[i]);
            store(du + LMK_LANES * i, sums[i]);
            store(dz + LMK_LANES * i, d);
            LMK_UNROLL
            for (int j = 0; j < i; j++) sums[j] = d * met[LMK_LANES * i + j] + sums[j];
        }
        if (is_generalized) {
            for (int j = 0; j < CHUNK_TOKENS; j++) {
                f32x16 sum = load(dv + LMK_LANES * j);
                for (int i = CHUNK_TOKENS - 1; i > j; i--)
                    sum = load(dz + LMK_LANES * i) * met_values[LMK_LANES * i + j] + sum;
                store(dv + LMK_LANES * j, sum);
            }
        } else {
            for (int i = 0; i < CHUNK_TOKENS; i++)
                store(dv + LMK_LANES * i, load(du + LMK_LANES * i) * c->rates[i]);
        }
    }
}

/// The gradient of each rate, or of its logit.
static void store_rate_gradients(const delta_head *head, const delta_gradients *to,
                                 const delta_chunk *c, size_t begin, size_t count) {
    for (size_t i = 0; i < count; i++) {
        f32x16 sum = splat(0);
        for (size_t p = 0; p < c->panels; p++) {
            const size_t at = PANEL * p + LMK_LANES * i;
            sum = load(c->du + at) * load(c->e + at) + sum;
        }
        float gradient = reduce_sum(sum);
        const float rate = c->rates[i];
        if (head->beta_kind == LMK_BETA_SIGMOID) gradient *= rate * (1 - rate);
        if (head->beta_kind == LMK_BETA_TWICE_SIGMOID) gradient *= rate * (1 - rate / 2);
        to->beta[to->beta_stride * (begin + i)] = gradient;
    }
}

/// dq and dk of a pair of reader and writer: through the state where the reader has `state`, the
/// writer `dstate`, and through what they met in the chunk. Adds to the gradients of the decays.
static void pair_gradients(const delta_head *head, const delta_chunk *c, delta_pair pair,
                           const float *state, const float *dstate, int wants_decay,
                           float *decay_gradients) {
    const linear_chunk *const p = c->pairs + pair;
    const linear_gradient_chunk *const g = c->gradients + pair;
    const lmk_decay decay = head->rows.decay;
    const int has_bonus = reads_before_decay(head, pair),
              is_strict = pair == STEPS_OF_U || pair == STEPS_OF_V;
    transpose_panels(g->values, g->panels, g->values_transposed);
    multiply_pairs(g->outputs, g->values_transposed, g->panels, g->dpairs);
    for (size_t i = 0; is_strict && i < CHUNK_TOKENS; i++) g->dpairs[(LMK_LANES + 1) * i] = 0;
    linear_gradient_chunk none = *g;
    none.panels = 0;
    const linear_gradient_chunk *const reads = state ? g : &none, *const writes =
                                                                      dstate ? g : &none;
    if (decay == LMK_DECAY_KEY) {
        read_keys(p, reads, g->outputs, state, 0, 0, MEET_NONE, p->pairs, p->k, g->dq);
        read_keys(p, writes, g->values, dstate, 0, 0, MEET_NONE, p->pairs, p->k, g->dk);
        if (!dstate) clear(g->carried, LMK_LANES * p->panels);
        key_state_gradients(p, g, has_bonus);
        key_pair_gradients(p, g, has_bonus);
        for (size_t i = 0; wants_decay && i < PANEL * p->panels; i += LMK_LANES)
            store(c->ddecay + i, load(c->ddecay + i) + load(g->ddecay + i));
        return;
    }
    const int has_decay = decay != LMK_DECAY_NONE;
    const float *values = g->values, *outputs = g->outputs;
    for (size_t i = 0; i < PANEL; i += LMK_LANES) {
        const f32x16 dpair = load(g->dpairs + i);
        store(g->weights + i, dpair);
        store(g->products + i, dpair * load(p->pairs + i));
    }
    if (has_decay) {
        if (dstate) scale_rows(g->values, p->after, g->panels, g->values_after);
        if (state) scale_rows(g->outputs, p->before, g->panels, g->outputs_before);
        values = g->values_after;
        outputs = g->outputs_before;
        decay_pairs(p->decay, has_bonus, g->weights);
    }
    for (size_t i = 0; is_strict && i < CHUNK_TOKENS; i++) g->weights[(LMK_LANES + 1) * i] = 0;
    read_keys(p, reads, outputs, state, p->q, has_decay ? g->read_dots : 0, MEET_EARLIER,
              g->weights, p->k, g->dq);
    read_keys(p, writes, values, dstate, p->k, has_decay ? g->write_dots : 0, MEET_LATER,
              g->weights, p->q, g->dk);
    if (!has_decay || !wants_decay) return;
    if (!state) clear(g->read_dots, PANEL);
    if (!dstate) {
        clear(g->write_dots, PANEL);
        clear(g->carried, LMK_LANES * p->panels);
    }
    float gradients[CHUNK_TOKENS];
    token_decay_gradients(p, g, has_bonus, gradients);
    store(decay_gradients, load(decay_gradients) + load(gradients));
}

static void add_rows(const float *x, size_t panels, float *to) {
    for (size_t i = 0; i < PANEL * panels; i += LMK_LANES)
        store(to + i, load(to + i) + load(x + i));
}

/// Those of the steps that begin a token.
static void store_decay_gradients(const delta_head *head, const delta_gradients *to,
                                  const delta_chunk *c, size_t begin, size_t count,
                                  const float *of_tokens) {
    const size_t panels = c->pairs->panels;
    for (size_t i = 0; i < count; i++) {
        if (!begins_token(head, begin + i)) continue;
        float *const row = to->log_decay + to->log_decay_stride * token_of(head, begin + i);
        if (head->rows.decay != LMK_DECAY_KEY) {
            *row = of_tokens[i];
            continue;
        }
        for (size_t p = 0; p < panels; p++) {
            store_row(row, LMK_FLOAT32, LMK_LANES * p, head->rows.k.width,
                      load(c->ddecay + PANEL * p + LMK_LANES * i));
        }
    }
}

static void retreat(const delta_head *head, const delta_gradients *to, const delta_chunk *c,
                    size_t begin, size_t count, const float *state, float *dstate) {
    const linear_head *const rows = &head->rows;
    const linear_chunk *const pairs = c->pairs;
    const linear_gradient_chunk *const g = c->gradients;
    const int is_generalized = head->a.data != 0, has_decay = rows->decay != LMK_DECAY_NONE,
              wants_decay = has_decay && to->log_decay;
    const size_t keys = pairs->panels, token = token_of(head, begin),
                 tokens = token_of(head, begin + count) - token;
    // Those of q lie elsewhere where a token has several steps.
    const token_rows_out gradients[] = {to->k, to->v, to->a, to->b, to->q};
    fetch_gradients(pairs, gradients, head->steps == 1 ? 5 : 4, begin);
    prepare_writes(head, c, begin, count);
    load_reads(head, c, begin, count);
    load_panels(&to->output, token, tokens, CHUNK_TOKENS, 0, c->outputs);
    spread_rows(head, begin, count, c->panels, c->outputs);
    prepare_pairs(head, c, 1);
    // The state at the chunk's end.
    const linear_gradient_chunk transposed = {.panels = c->panels, .dstate = c->dstate};
    transpose_state(pairs, &transposed, dstate);
    read_end(c, pairs + QUERIES_OF_U, c->du);
    if (is_generalized) read_end(c, pairs + QUERIES_OF_V, c->dv);
    substitute_back(head, c);
    if (to->beta) store_rate_gradients(head, to, c, begin, count);
    if (wants_decay) multiply_states(pairs, g, state, dstate);
    else clear(g->carried, LMK_LANES * keys);
    if (rows->decay == LMK_DECAY_KEY) clear(c->ddecay, PANEL * keys);
    float of_tokens[CHUNK_TOKENS] = {0};
    pair_gradients(head, c, QUERIES_OF_U, state, dstate, wants_decay, of_tokens);
    pair_gradients(head, c, STEPS_OF_U, state, 0, wants_decay, of_tokens);
    add_rows(g[STEPS_OF_U].dk, keys, g[QUERIES_OF_U].dk);
    float *const dq = g[QUERIES_OF_U].dq, *const dk =
                                              g[is_generalized ? QUERIES_OF_V : QUERIES_OF_U].dk;
    if (is_generalized) {
        pair_gradients(head, c, QUERIES_OF_V, 0, dstate, wants_decay, of_tokens);
        pair_gradients(head, c, STEPS_OF_V, 0, 0, wants_decay, of_tokens);
        add_rows(g[QUERIES_OF_V].dq, keys, dq);
        add_rows(g[STEPS_OF_V].dk, keys, dk);
        add_rows(g[STEPS_OF_V].dq, keys, g[STEPS_OF_U].dq);
        put_gradients(&to->a, to->adds, begin, count, g[STEPS_OF_U].dq);
        put_gradients(&to->b, to->adds, begin, count, g[QUERIES_OF_U].dk);
    } else {
        add_rows(g[STEPS_OF_U].dq, keys, dk);
    }
    if (wants_decay) store_decay_gradients(head, to, c, begin, count, of_tokens);
    state_write write = {.x = c->outputs,
                         .y = pairs[QUERIES_OF_U].read,
                         .column_decay = has_decay ? pairs->total : 0,
                         .from = dstate,
                         .state = dstate,
                         .state_panel = PANEL * c->panels};
    fetch_column near[NEAR_COLUMNS];
    const size_t nears = near_columns(&c->near, near),
                 used = write_state(&write, c->panels, keys, near, nears);
    write.x = c->dz;
    write.y = pairs[STEPS_OF_U].read;
    write.column_decay = 0;
    write_state(&write, c->panels, keys, near + used, nears - used);
    gather_rows(head, begin, count, keys, dq);
    finish_gradients(rows, &rows->q, token, tokens, rows->scale, pairs, dq);
    put_gradients(&to->q, 0, token, tokens, dq);
    finish_gradients(rows, &rows->k, begin, count, 1, pairs, dk);
    put_gradients(&to->k, to->adds, begin, count, dk);
    put_gradients(&to->v, to->adds, begin, count, c->dv);
}

/// A state in slices, times its scale, to transposed panels.
static void transpose_slices(const delta_head *head, const float *state, const float *scale,
                             float *to) {
    const size_t rows = head->rows.k.width, keys = panels_of(rows),
                 values = panels_of(head->rows.v.width), vectors = SWEEP_VECTORS;
    for (size_t v = 0; v < values; v++) {
        const float *const columns =
            state + SLICE_COLUMNS * rows * (v / vectors) + LMK_LANES * (v % vectors);
        for (size_t p = 0; p < keys; p++) {
            float panel[PANEL];
            for (size_t i = 0; i < LMK_LANES; i++) {
                const size_t row = LMK_LANES * p + i;
                const float factor = scale_of_row(&head->rows, scale, row < rows ? row : 0);
                store(panel + LMK_LANES * i,
                      row < rows ? load(columns + SLICE_COLUMNS * row) * factor : splat(0));
            }
            transpose_panels(panel, 1, to + PANEL * (values * p + v));
        }
    }
}
