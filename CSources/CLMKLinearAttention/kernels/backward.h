// The gradients of a chunk. Included inside a region.

/// A column of ones behind the values, for the normaliser.
static void add_ones(float *values, size_t width, size_t count) {
    for (size_t i = 0; i < count; i++)
        values[PANEL * (width / LMK_LANES) + LMK_LANES * i + width % LMK_LANES] = 1;
}

/// v in panels, with the ones.
static void load_values(const linear_head *head, const linear_gradient_chunk *g, size_t begin,
                        size_t count) {
    if (panels_of(head->v.width) < g->panels) {
        for (size_t i = 0; i < PANEL; i += LMK_LANES)
            store(g->values + PANEL * (g->panels - 1) + i, splat(0));
    }
    load_panels(&head->v, begin, count, CHUNK_TOKENS, 0, g->values);
    if (head->is_normalized) add_ones(g->values, head->v.width, count);
}

/// do in panels.
static void load_output_gradients(const linear_head_gradients *to, const linear_gradient_chunk *g,
                                  size_t begin, size_t count) {
    for (size_t i = 0; i < PANEL; i += LMK_LANES)
        store(g->outputs + PANEL * (g->panels - 1) + i, splat(0));
    load_panels(&to->output, begin, count, CHUNK_TOKENS, 0, g->outputs);
}

static void sweep(const linear_head *head, const linear_chunk *c, const linear_gradient_chunk *g,
                  size_t begin, size_t count, const float *from, float *to) {
    prepare_chunk(head, c, begin, count, PREPARE_WRITES);
    load_values(head, g, begin, count);
    const state_write write = {.x = g->values,
                               .y = c->write,
                               .column_decay = head->decay != LMK_DECAY_NONE ? c->total : 0,
                               .from = from,
                               .state = to,
                               .state_panel = PANEL * g->panels};
    fetch_column near[NEAR_COLUMNS];
    write_state(&write, g->panels, c->panels, near, near_columns(&c->near, near));
}

/// Where outputs are divided by q . z: do becomes the gradient of what is divided, and that of the
/// divisor its last column. `pairs` and `dpairs` are null where no token meets another.
static void divide_gradients(const linear_head *head, const linear_chunk *c,
                             const linear_gradient_chunk *g, size_t count, const float *state,
                             const float *pairs, float *dpairs) {
    const size_t width = head->v.width, state_panel = PANEL * g->panels;
    // What each output is with its gradient, before the division.
    read_keys(c, g, g->outputs, state, c->read, g->read_dots, MEET_NONE, c->pairs, c->k, g->dq);
    for (size_t i = 0; i < count; i++) {
        const i32x16 up_to = is_before((int)i + 1);
        f32x16 divisor = splat(0), dot = load(g->read_dots + LMK_LANES * i);
        for (size_t p = 0; p < c->panels; p++) {
            const f32x16 z = load(state + state_panel * p + LMK_LANES * width);
            divisor = load(c->read + PANEL * p + LMK_LANES * i) * z + divisor;
        }
        if (pairs) {
            const f32x16 row = choose(up_to, load(pairs + LMK_LANES * i), splat(0));
            const f32x16 drow = choose(up_to, load(dpairs + LMK_LANES * i), splat(0));
            divisor += row;
            dot = row * drow + dot;
        }
        const float d = reduce_sum(divisor), share = -reduce_sum(dot) / d / d;
        for (size_t p = 0; p < g->panels; p++) {
            float *const row = g->outputs + PANEL * p + LMK_LANES * i;
            store(row, load(row) / d);
        }
        g->outputs[PANEL * (width / LMK_LANES) + LMK_LANES * i + width % LMK_LANES] = share;
        if (pairs) store(dpairs + LMK_LANES * i, load(dpairs + LMK_LANES * i) / d + share);
    }
}

/// u's part: o_i has the term  (q_i u k_i) v_i.
static void bonus_gradients(const linear_head *head, const linear_head_gradients *to,
                            const linear_chunk *c, const linear_gradient_chunk *g) {
    for (size_t p = 0; p < c->panels; p++) {
        const f32x16 u = load_row(head->bonus, LMK_FLOAT32, LMK_LANES * p, head->k.width);
        f32x16 sum = splat(0);
        for (size_t i = 0; i < CHUNK_TOKENS; i++) {
            const size_t at = PANEL * p + LMK_LANES * i;
            const float share = g->dpairs[(LMK_LANES + 1) * i];
            const f32x16 q = load(c->q + at) * share, k = load(c->k + at);
            sum = q * k + sum;
            store(g->dk + at, q * u + load(g->dk + at));
            const f32x16 uk = u * k;
            store(g->dq + at, uk * share + load(g->dq + at));
        }
        if (to->bonus) store(to->bonus + LMK_LANES * p, load(to->bonus + LMK_LANES * p) + sum);
    }
}

/// Gradients of q and k where dimensions share a decay, or there is none.
static void token_gradients(const linear_head *head, const linear_chunk *c,
                            const linear_gradient_chunk *g, const float *state,
                            const float *dstate) {
    const int has_decay = head->decay != LMK_DECAY_NONE, has_bonus = head->bonus != 0;
    const float *values = g->values, *outputs = g->outputs;
    for (size_t i = 0; i < PANEL; i += LMK_LANES) {
        const f32x16 dpair = load(g->dpairs + i);
        store(g->weights + i, dpair);
        store(g->products + i, dpair * load(c->pairs + i));
    }
    if (has_decay) {
        scale_rows(g->values, c->after, g->panels, g->values_after);
        scale_rows(g->outputs, c->before, g->panels, g->outputs_before);
        values = g->values_after;
        outputs = g->outputs_before;
        decay_pairs(c->decay, has_bonus, g->weights);
    }
    for (size_t i = 0; has_bonus && i < CHUNK_TOKENS; i++) g->weights[(LMK_LANES + 1) * i] = 0;
    read_keys(c, g, outputs, state, c->q, has_decay ? g->read_dots : 0, MEET_EARLIER, g->weights,
              c->k, g->dq);
    read_keys(c, g, values, dstate, c->k, has_decay ? g->write_dots : 0, MEET_LATER, g->weights,
              c->q, g->dk);
}

/// The same for a decay per key, and the gradient of the decays.
static void key_gradients(const linear_head *head, const linear_chunk *c,
                          const linear_gradient_chunk *g, const float *state, const float *dstate) {
    const int has_bonus = head->bonus != 0;
    read_keys(c, g, g->outputs, state, 0, 0, MEET_NONE, c->pairs, c->k, g->dq);
    read_keys(c, g, g->values, dstate, 0, 0, MEET_NONE, c->pairs, c->k, g->dk);
    key_state_gradients(c, g, has_bonus);
    key_pair_gradients(c, g, has_bonus);
}

/// dv, and dS.
static void value_gradients(const linear_chunk *c, const linear_gradient_chunk *g, meeting met_by,
                            const float *dstate) {
    transpose_state(c, g, dstate);
    const state_read read = {.x = c->write,
                             .panels = c->panels,
                             .state = g->dstate,
                             .state_panel = PANEL * c->panels,
                             .pairs = c->pairs,
                             .met = g->outputs,
                             .to = g->dv};
    read_state_by(&read, g->panels, met_by, c);
}

static void store_decay_gradients(const linear_head *head, const linear_head_gradients *to,
                                  const linear_chunk *c, const linear_gradient_chunk *g,
                                  size_t begin, size_t count) {
    if (head->decay == LMK_DECAY_KEY) {
        const token_rows_out rows = {to->log_decay, to->log_decay_stride, LMK_FLOAT32,
                                     head->k.width};
        store_panels(&rows, begin, count, 0, g->ddecay);
        return;
    }
    float gradients[CHUNK_TOKENS];
    token_decay_gradients(c, g, head->bonus != 0, gradients);
    for (size_t i = 0; i < count; i++) {
        if (head->decay == LMK_DECAY_HEAD) *to->log_decay += gradients[i];
        else to->log_decay[to->log_decay_stride * (begin + i)] = gradients[i];
    }
}

static void retreat(const linear_head *head, const linear_head_gradients *to, const linear_chunk *c,
                    const linear_gradient_chunk *g, size_t begin, size_t count, const float *state,
                    float *dstate) {
    const int has_decay = head->decay != LMK_DECAY_NONE;
    const token_rows_out gradients[] = {to->q, to->k, to->v};
    fetch_gradients(c, gradients, 3, begin);
    prepare_chunk(head, c, begin, count, PREPARE_PAIRS);
    load_values(head, g, begin, count);
    load_output_gradients(to, g, begin, count);
    transpose_panels(g->values, g->panels, g->values_transposed);
    multiply_pairs(g->outputs, g->values_transposed, g->panels, g->dpairs);
    if (head->is_normalized) divide_gradients(head, c, g, count, state, c->pairs, g->dpairs);
    if (has_decay && to->log_decay) multiply_states(c, g, state, dstate);
    else clear(g->carried, LMK_LANES * c->panels);
    if (head->decay == LMK_DECAY_KEY) key_gradients(head, c, g, state, dstate);
    else token_gradients(head, c, g, state, dstate);
    if (has_decay && to->log_decay) store_decay_gradients(head, to, c, g, begin, count);
    if (head->bonus) bonus_gradients(head, to, c, g);
    value_gradients(c, g, MEET_LATER, dstate);
    const state_write write = {.x = g->outputs,
                               .y = c->read,
                               .column_decay = has_decay ? c->total : 0,
                               .from = dstate,
                               .state = dstate,
                               .state_panel = PANEL * g->panels};
    fetch_column near[NEAR_COLUMNS];
    write_state(&write, g->panels, c->panels, near, near_columns(&c->near, near));
    finish_gradients(head, &head->q, begin, count, head->scale, c, g->dq);
    put_gradients(&to->q, 0, begin, count, g->dq);
    finish_gradients(head, &head->k, begin, count, 1, c, g->dk);
    put_gradients(&to->k, to->adds, begin, count, g->dk);
    put_gradients(&to->v, to->adds, begin, count, g->dv);
}

static void read_back(const linear_head *head, const linear_head_gradients *to,
                      const linear_chunk *c, const linear_gradient_chunk *g, size_t begin,
                      size_t count, float *dstate) {
    prepare_chunk(head, c, begin, count, PREPARE_READS);
    load_output_gradients(to, g, begin, count);
    const state_write write = {.x = g->outputs,
                               .y = c->read,
                               .column_decay = head->decay != LMK_DECAY_NONE ? c->total : 0,
                               .from = dstate,
                               .state = dstate,
                               .state_panel = PANEL * g->panels};
    write_state(&write, g->panels, c->panels, 0, 0);
}

static void join(const float *decay, const float *from, size_t rows, size_t panels, float *to) {
    for (size_t p = 0; p < panels; p++) {
        const f32x16 factor = load(decay + LMK_LANES * p);
        for (size_t i = LMK_LANES * rows * p; i < LMK_LANES * rows * (p + 1); i += LMK_LANES)
            store(to + i, load(from + i) * factor + load(to + i));
    }
}

static void look_back(const linear_head *head, const linear_head_gradients *to,
                      const linear_chunk *c, const linear_gradient_chunk *g, size_t begin,
                      size_t count, const float *state, float *dstate) {
    float factors[CHUNK_TOKENS];
    row_factors(&head->q, begin, count, head, head->scale, factors);
    load_panels(&head->q, begin, count, CHUNK_TOKENS, factors, c->read);
    load_output_gradients(to, g, begin, count);
    if (head->is_normalized) divide_gradients(head, c, g, count, state, 0, 0);
    read_keys(c, g, g->outputs, state, 0, 0, MEET_NONE, c->pairs, c->k, g->dq);
    const state_write write = {.x = g->outputs,
                               .y = c->read,
                               .from = dstate,
                               .state = dstate,
                               .state_panel = PANEL * g->panels};
    fetch_column near[NEAR_COLUMNS];
    write_state(&write, g->panels, c->panels, near, near_columns(&c->near, near));
    finish_gradients(head, &head->q, begin, count, head->scale, c, g->dq);
    put_gradients(&to->q, 0, begin, count, g->dq);
}

static void write_back(const linear_head *head, const linear_head_gradients *to,
                       const linear_chunk *c, const linear_gradient_chunk *g, size_t begin,
                       size_t count, const float *dstate) {
    prepare_chunk(head, c, begin, count, PREPARE_WRITES);
    load_values(head, g, begin, count);
    read_keys(c, g, g->values, dstate, 0, 0, MEET_NONE, c->pairs, c->k, g->dk);
    value_gradients(c, g, MEET_NONE, dstate);
    finish_gradients(head, &head->k, begin, count, 1, c, g->dk);
    put_gradients(&to->k, to->adds, begin, count, g->dk);
    put_gradients(&to->v, to->adds, begin, count, g->dv);
}
