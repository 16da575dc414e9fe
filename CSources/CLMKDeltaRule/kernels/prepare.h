// Everything of a block of steps that does not need the state. Included inside a region.
//
// A decay that dimensions share stays a number: the state is stored divided by the product of the
// decays so far, which is multiplied in again when it becomes small, so that most passes over the
// state have no decay at all. Decays per key are multiplied in by every pass. Nothing is divided by
// a small number, and a decay of 0 is as good as any other.

/// The state is multiplied by its decays before their product leaves 1 / FOLD_LIMIT ... FOLD_LIMIT.
#define FOLD_LIMIT 1024.0f

/// Tokens whose first step, or whose last one, is one of begin ..< begin + count.
static inline size_t first_token(const delta_head *head, size_t step) {
    return lmk_divide_up(step, head->steps);
}
static inline size_t last_token(const delta_head *head, size_t step) { return step / head->steps; }

/// Whether a step begins its token, or ends it.
static inline int begins_token(const delta_head *head, size_t step) {
    return step % head->steps == 0;
}
static inline int ends_token(const delta_head *head, size_t step) {
    return (step + 1) % head->steps == 0;
}

/// The rates of steps begin ..< begin + count.
static void load_rates(const delta_head *head, size_t begin, size_t count, float *rates) {
    float x[BLOCK_STEPS] = {0};
    if (!head->beta) {
        store(rates, splat(1));
        return;
    }
    for (size_t i = 0; i < count; i++) x[i] = head->beta[head->beta_stride * (begin + i)];
    f32x16 rate = load(x);
    if (head->beta_kind != LMK_BETA_RATE) rate = vsigmoid(rate);
    if (head->beta_kind == LMK_BETA_TWICE_SIGMOID) rate = rate + rate;
    store(rates, rate);
}

/// exp(log_decay) of each step, 1 for those that do not begin a token.
static void load_step_decays(const delta_head *head, size_t begin, size_t count, float *decays) {
    float x[BLOCK_STEPS] = {0};
    if (head->rows.decay == LMK_DECAY_NONE) {
        store(decays, splat(1));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (begins_token(head, begin + i))
            x[i] = head->rows.log_decay[head->rows.log_decay_stride * ((begin + i) / head->steps)];
    }
    store(decays, vexp(load(x)));
}

/// The same per key, in panels; of a decay that dimensions share the same in each.
static void load_step_key_decays(const delta_head *head, size_t begin, size_t count, size_t panels,
                                 float *decays) {
    float shared[BLOCK_STEPS];
    if (head->rows.decay != LMK_DECAY_KEY) load_step_decays(head, begin, count, shared);
    for (size_t i = 0; i < BLOCK_STEPS; i++) {
        const size_t step = begin + i;
        const int is_there =
            head->rows.decay == LMK_DECAY_KEY && i < count && begins_token(head, step);
        const float *const row =
            is_there ? head->rows.log_decay + head->rows.log_decay_stride * (step / head->steps)
                     : 0;
        for (size_t p = 0; p < panels; p++) {
            f32x16 x = splat(head->rows.decay != LMK_DECAY_KEY ? shared[i] : 1);
            if (row) x = vexp(load_row(row, LMK_FLOAT32, LMK_LANES * p, head->rows.k.width));
            store(decays + PANEL * p + LMK_LANES * i, x);
        }
    }
}

/// <x, y> for rows of panels, and <x w, y>.
LMK_INLINE float dot_rows(const float *x, const float *y, size_t panels) {
    f32x16 sum = splat(0);
    for (size_t p = 0; p < panels; p++) sum = load(x + PANEL * p) * load(y + PANEL * p) + sum;
    return reduce_sum(sum);
}
LMK_INLINE float dot_weighted_rows(const float *x, const float *w, const float *y, size_t panels) {
    f32x16 sum = splat(0);
    for (size_t p = 0; p < panels; p++) {
        const f32x16 weighted = load(x + PANEL * p) * load(w + PANEL * p);
        sum = weighted * load(y + PANEL * p) + sum;
    }
    return reduce_sum(sum);
}

/// k, q and rates of a block; a and b in the generalised form.
static void load_block(const delta_head *head, step_block *block, size_t begin, size_t count) {
    const linear_head *const rows = &head->rows;
    float factors[BLOCK_STEPS];
    block->count = count;
    if (rows->has_unit_length) row_factors(&rows->k, begin, count, rows, 1, factors);
    load_panels(&rows->k, begin, count, count, rows->has_unit_length ? factors : 0, block->k);
    if (rows->o.data) {
        const size_t token = last_token(head, begin),
                     tokens = last_token(head, begin + count) - token;
        row_factors(&rows->q, token, tokens, rows, rows->scale, factors);
        load_panels(&rows->q, token, tokens, tokens, factors, block->q);
    }
    if (head->a.data) {
        load_panels(&head->a, begin, count, count, 0, block->a);
        load_panels(&head->b, begin, count, count, 0, block->b);
    }
    load_rates(head, begin, count, block->rate);
}

/// The groups of a block, their steps, and the rows of q that they read, without decays.
static void cut_groups(const delta_head *head, step_block *block, size_t begin) {
    const size_t token = last_token(head, begin);
    for (size_t i = 0; i < block->count; i += GROUP_STEPS) {
        step_group *const g = block->groups + i / GROUP_STEPS;
        *g = (step_group){.step = begin + i,
                          .count = lmk_min(GROUP_STEPS, block->count - i),
                          .scale_after = 1,
                          .first_fold = 1};
        for (size_t n = 0; n < GROUP_STEPS; n++) {
            const size_t at = LMK_LANES * (i + n);
            g->read[n] = g->write[n] = g->second[n] = block->zeros;
            if (n >= g->count) continue;
            g->rate[n] = block->rate[i + n];
            g->read_scale[n] = g->query_scale[n] = g->write_scale[n] = 1;
            g->read[n] = block->read + at;
            g->write[n] = block->write + at;
            g->second[n] = block->second + at;
            if (head->rows.o.data && ends_token(head, begin + i + n))
                g->query[n] = block->q + LMK_LANES * ((begin + i + n) / head->steps - token);
        }
    }
}

/// What the steps of a group read of one another, `between` being the decay of the second one: a
/// number, or a row.
LMK_INLINE void meet(step_group *g, const float *r1, const float *w0, const float *w1, float number,
                     const float *row, size_t panels, float *met, float to[][GROUP_STEPS]) {
    if (g->query[0]) to[0][0] = dot_rows(g->query[0], w0, panels);
    if (g->count < 2) return;
    if (r1) {
        *met = row ? dot_weighted_rows(r1, row, w0, panels) : number * dot_rows(r1, w0, panels);
    }
    if (!g->query[1]) return;
    to[1][0] = row ? dot_weighted_rows(g->query[1], row, w0, panels)
                   : number * dot_rows(g->query[1], w0, panels);
    to[1][1] = dot_rows(g->query[1], w1, panels);
}

/// With a decay that dimensions share, or none. `scale` is that of the state, before the block and
/// then after it.
static void prepare_numbers(const delta_head *head, step_block *block, size_t begin, size_t panels,
                            int is_last, float *scale) {
    float decays[BLOCK_STEPS];
    load_step_decays(head, begin, block->count, decays);
    for (size_t i = 0; i < block->count; i += GROUP_STEPS) {
        step_group *const g = block->groups + i / GROUP_STEPS;
        const float between = g->count > 1 ? decays[i + 1] : 1, first = *scale * decays[i],
                    second = first * between;
        g->read_scale[0] = g->query_scale[0] = g->first_fold = first;
        g->read_scale[1] = g->query_scale[1] = second;
        meet(g, g->read[1], g->write[0], g->write[1], between, 0, panels, &g->met, g->query_met);
        const int ends = is_last && i + GROUP_STEPS >= block->count;
        const int is_moderate = second >= 1 / FOLD_LIMIT && second <= FOLD_LIMIT;
        if (is_moderate && (!ends || second == 1)) {
            g->write_scale[0] = 1 / first;
            g->write_scale[1] = 1 / second;
            *scale = second;
        } else {
            g->folding = FOLD_NUMBER;
            g->fold = second;
            g->write_scale[0] = between;
            *scale = 1;
        }
        g->scale_after = *scale;
    }
}

/// With decays per key, and in the generalised form: each group begins with the state itself.
static void prepare_rows(const delta_head *head, step_block *block, size_t begin, size_t panels) {
    const int is_generalized = head->a.data != 0;
    const float *const k = block->k, *const b = is_generalized ? block->b : block->k;
    load_step_key_decays(head, begin, block->count, panels, block->decay);
    for (size_t i = 0; i < block->count; i += GROUP_STEPS) {
        step_group *const g = block->groups + i / GROUP_STEPS;
        const float *const first = block->decay + LMK_LANES * i, *const next = first + LMK_LANES,
                           *const between = g->count > 1 ? next : 0;
        const float *const k0 = k + LMK_LANES * i, *const k1 = k0 + LMK_LANES,
                           *const b0 = b + LMK_LANES * i, *const b1 = b0 + LMK_LANES;
        // a is read before the decay of its step, k after it.
        meet(g, is_generalized ? 0 : k1, b0, b1, 1, between, panels, &g->met, g->query_met);
        if (is_generalized) {
            const float *const a1 = block->a + LMK_LANES * (i + 1);
            meet(g, 0, k0, k1, 1, between, panels, &g->met, g->query_met_second);
            if (g->count > 1) {
                g->met = dot_rows(a1, b0, panels);
                g->met_second = dot_rows(a1, k0, panels);
            }
        }
        g->folding = FOLD_ROWS;
        g->fold_rows = block->fold + LMK_LANES * i;
        g->first_rows = first;
        g->first_write = b0;
        g->first_second = k0;
        for (size_t p = 0; p < panels; p++) {
            const size_t at = PANEL * p, row = at + LMK_LANES * i;
            const f32x16 a0 = load(first + at), a1 = between ? load(between + at) : splat(1),
                         both = a0 * a1;
            store(block->fold + row, both);
            const float *const r = is_generalized ? block->a : block->k;
            const f32x16 r0 = load(r + row),
                         r1 = g->count > 1 ? load(r + row + LMK_LANES) : splat(0);
            store(block->read + row, is_generalized ? r0 : r0 * a0);
            store(block->write + row, load(b0 + at) * a1);
            if (is_generalized) store(block->second + row, load(k0 + at) * a1);
            if (g->query[0]) store((float *)g->query[0] + at, load(g->query[0] + at) * a0);
            if (g->count < 2) continue;
            store(block->read + row + LMK_LANES, is_generalized ? r1 * a0 : r1 * both);
            store(block->write + row + LMK_LANES, load(b1 + at));
            if (is_generalized) store(block->second + row + LMK_LANES, load(k1 + at));
            if (g->query[1]) store((float *)g->query[1] + at, load(g->query[1] + at) * both);
        }
    }
}

/// Steps begin ..< begin + count, the last ones where `is_last`.
static void prepare_block(const delta_head *head, step_block *block, size_t begin, size_t count,
                          int is_last, float *scale) {
    const size_t panels = panels_of(head->rows.k.width);
    const int has_rows = head->a.data || head->rows.decay == LMK_DECAY_KEY;
    load_block(head, block, begin, count);
    if (!has_rows) block->read = block->write = block->k;
    cut_groups(head, block, begin);
    if (has_rows) prepare_rows(head, block, begin, panels);
    else prepare_numbers(head, block, begin, panels, is_last, scale);
    for (size_t i = 0; !has_rows && i < block->count; i += GROUP_STEPS)
        block->groups[i / GROUP_STEPS].first_write = block->k + LMK_LANES * i;
}
