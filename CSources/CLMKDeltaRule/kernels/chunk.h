// A chunk of steps as matrix products, and a forward substitution. Included inside a region.

/// exp(log_decay) per key, in panels, 1 for steps that do not begin a token.
static void load_step_key_decays(const delta_head *head, size_t begin, size_t count, size_t panels,
                                 float *decays) {
    for (size_t i = 0; i < BLOCK_STEPS; i++) {
        const size_t step = begin + i;
        const int is_there = i < count && begins_token(head, step);
        const float *const row =
            is_there ? head->rows.log_decay + head->rows.log_decay_stride * token_of(head, step)
                     : 0;
        for (size_t p = 0; p < panels; p++) {
            f32x16 x = splat(1);
            if (row) x = vexp(load_row(row, LMK_FLOAT32, LMK_LANES * p, head->rows.k.width));
            store(decays + PANEL * p + LMK_LANES * i, x);
        }
    }
}

/// Rows of tokens at the steps that end them, zero at others, from rows one after the other.
static void spread_rows(const delta_head *head, size_t begin, size_t count, size_t panels,
                        float *x) {
    if (head->steps == 1) return;
    const size_t token = token_of(head, begin);
    for (size_t i = CHUNK_TOKENS; i-- > 0;) {
        const int is_there = i < count && ends_token(head, begin + i);
        const float *const from =
            x + LMK_LANES * (is_there ? token_of(head, begin + i) - token : 0);
        for (size_t p = 0; p < panels; p++) {
            store(x + PANEL * p + LMK_LANES * i, is_there ? load(from + PANEL * p) : splat(0));
        }
    }
}

/// Rows of steps that end a token, one after the other, from rows of all steps.
static void gather_rows(const delta_head *head, size_t begin, size_t count, size_t panels,
                        float *x) {
    if (head->steps == 1) return;
    const size_t token = token_of(head, begin);
    for (size_t i = 0; i < count; i++) {
        if (!ends_token(head, begin + i)) continue;
        float *const to = x + LMK_LANES * (token_of(head, begin + i) - token);
        for (size_t p = 0; p < panels; p++)
            store(to + PANEL * p, load(x + PANEL * p + LMK_LANES * i));
    }
}

static int reads_before_decay(const delta_head *head, delta_pair pair) {
    return head->a.data && (pair == STEPS_OF_U || pair == STEPS_OF_V);
}

/// k, b, rates and decays.
static void load_writes(const delta_head *head, const delta_chunk *c, size_t begin, size_t count) {
    const linear_head *const rows = &head->rows;
    const linear_chunk *const steps = c->pairs + STEPS_OF_U;
    const size_t panels = steps->panels;
    float factors[CHUNK_TOKENS];
    if (rows->has_unit_length) row_factors(&rows->k, begin, count, rows, 1, factors);
    load_panels(&rows->k, begin, count, CHUNK_TOKENS, rows->has_unit_length ? factors : 0, c->k);
    if (head->a.data) load_panels(&head->b, begin, count, CHUNK_TOKENS, 0, c->b);
    load_rates(head, begin, count, c->rates);
    if (rows->decay == LMK_DECAY_KEY) {
        load_step_key_decays(head, begin, count, panels, steps->decay);
    } else if (rows->decay != LMK_DECAY_NONE) {
        float decays[CHUNK_TOKENS];
        load_step_decays(head, begin, count, decays);
        store(steps->decay, load(decays));
    }
}

/// One reader's products with one writer, and its decays.
static void prepare_pair(const delta_head *head, const linear_chunk *c, int has_bonus,
                         int is_strict) {
    transpose_panels(c->k, c->panels, c->k_transposed);
    if (head->rows.decay == LMK_DECAY_KEY) {
        multiply_key_pairs(c, has_bonus);
        spread_key_decays(c, has_bonus, 1);
    } else {
        multiply_pairs(c->q, c->k_transposed, c->panels, c->pairs);
        if (head->rows.decay != LMK_DECAY_NONE) {
            decay_pairs(c->decay, has_bonus, c->pairs);
            spread_token_decays(c, has_bonus, 1);
        }
    }
    // A step does not read what it writes.
    for (size_t i = 0; is_strict && i < CHUNK_TOKENS; i++) c->pairs[(LMK_LANES + 1) * i] = 0;
}

/// q, with what it is scaled by, and a.
static void load_reads(const delta_head *head, const delta_chunk *c, size_t begin, size_t count) {
    const linear_head *const rows = &head->rows;
    const size_t token = token_of(head, begin), tokens = token_of(head, begin + count) - token;
    float factors[CHUNK_TOKENS];
    row_factors(&rows->q, token, tokens, rows, rows->scale, factors);
    load_panels(&rows->q, token, tokens, CHUNK_TOKENS, factors, c->q);
    spread_rows(head, begin, count, c->pairs->panels, c->q);
    if (head->a.data) load_panels(&head->a, begin, count, CHUNK_TOKENS, 0, c->a);
}

/// All pairs that there are; of queries where they read.
static void prepare_pairs(const delta_head *head, const delta_chunk *c, int reads) {
    for (int pair = QUERIES_OF_U; pair <= (head->a.data ? STEPS_OF_V : STEPS_OF_U); pair++) {
        const int is_of_steps = pair == STEPS_OF_U || pair == STEPS_OF_V;
        if (!reads && !is_of_steps) continue;
        prepare_pair(head, c->pairs + pair, reads_before_decay(head, (delta_pair)pair),
                     is_of_steps);
    }
}

/// e and u, from what the steps read of the state before the chunk, in c->e.
static void substitute(const delta_head *head, const delta_chunk *c) {
    const float *const met = c->pairs[STEPS_OF_U].pairs, *const met_values =
                                                             c->pairs[STEPS_OF_V].pairs;
    const int is_generalized = head->a.data != 0;
    for (size_t p = 0; p < c->panels; p++) {
        float *const e = c->e + PANEL * p, *const u = c->u + PANEL * p;
        const float *const v = c->v + PANEL * p;
        for (int i = 0; is_generalized && i < CHUNK_TOKENS; i++) {
            f32x16 z = load(e + LMK_LANES * i);
            for (int j = 0; j < i; j++)
                z = load(v + LMK_LANES * j) * met_values[LMK_LANES * i + j] + z;
            store(e + LMK_LANES * i, z);
        }
        f32x16 sums[CHUNK_TOKENS];
        LMK_UNROLL
        for (int i = 0; i < CHUNK_TOKENS; i++) sums[i] = load(e + LMK_LANES * i);
        LMK_UNROLL
        for (int j = 0; j < CHUNK_TOKENS; j++) {
            const f32x16 error = is_generalized ? sums[j] : load(v + LMK_LANES * j) - sums[j],
                         d = error * c->rates[j];
            store(e + LMK_LANES * j, error);
            store(u + LMK_LANES * j, d);
            LMK_UNROLL
            for (int i = j + 1; i < CHUNK_TOKENS; i++)
                sums[i] = d * met[LMK_LANES * i + j] + sums[i];
        }
    }
}

/// to = (x state, where there is one) + pairs met,  for one reader.
static void read_chunk(const delta_chunk *c, const linear_chunk *reader, const float *state,
                       meeting met_by, const float *met, float *to) {
    const state_read read = {.x = reader->read,
                             .panels = state ? reader->panels : 0,
                             .state = state,
                             .state_panel = state ? PANEL * reader->panels : 0,
                             .pairs = reader->pairs,
                             .met = met,
                             .to = to};
    read_state_by(&read, c->panels, met_by, reader);
}

/// Steps begin ..< begin + count, at most 16, on a state in panels.
static void advance_chunk(const delta_head *head, const delta_chunk *c, size_t begin, size_t count,
                          float *state) {
    const linear_chunk *const queries = c->pairs + QUERIES_OF_U,
                              *const steps = c->pairs + STEPS_OF_U,
                              *const values = c->pairs + QUERIES_OF_V;
    const int is_generalized = head->a.data != 0, reads = head->rows.o.data != 0;
    load_writes(head, c, begin, count);
    load_panels(&head->rows.v, begin, count, CHUNK_TOKENS, 0, c->v);
    if (reads) load_reads(head, c, begin, count);
    else if (is_generalized) load_panels(&head->a, begin, count, CHUNK_TOKENS, 0, c->a);
    prepare_pairs(head, c, reads);
    read_chunk(c, steps, state, MEET_NONE, c->u, c->e);
    substitute(head, c);
    if (reads) {
        const size_t token = token_of(head, begin);
        read_chunk(c, queries, state, MEET_EARLIER, c->u, c->outputs);
        if (is_generalized) {
            read_chunk(c, values, 0, MEET_EARLIER, c->v, c->e);
            for (size_t i = 0; i < PANEL * c->panels; i += LMK_LANES)
                store(c->outputs + i, load(c->outputs + i) + load(c->e + i));
        }
        gather_rows(head, begin, count, c->panels, c->outputs);
        store_panels(&head->rows.o, token, token_of(head, begin + count) - token, 0, c->outputs);
    }
    state_write write = {.x = steps->write,
                         .y = c->u,
                         .row_decay = head->rows.decay != LMK_DECAY_NONE ? steps->total : 0,
                         .from = state,
                         .state = state,
                         .state_panel = PANEL * steps->panels};
    write_state(&write, steps->panels, c->panels, 0, 0);
    if (!is_generalized) return;
    write.x = c->pairs[STEPS_OF_V].write;
    write.y = c->v;
    write.row_decay = 0;
    write_state(&write, steps->panels, c->panels, 0, 0);
}
