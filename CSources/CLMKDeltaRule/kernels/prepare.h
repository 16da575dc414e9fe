// Everything of a block of steps that does not need the state. Included inside a region.
//
// The state is stored divided by the product of the decays so far, a number or one for each key,
// which is multiplied in again when it becomes small, so that most passes over the state have no
// decay at all. In the generalised form decays per key are multiplied in by every pass. Nothing is
// divided by a small number, and a decay of 0 is as good as any other.

/// The rows of a group: k and q, and in the generalised form a and b. A query's is that of its
/// step.
typedef struct group_rows {
    const float *k[GROUP_STEPS], *q[GROUP_STEPS], *a[GROUP_STEPS], *b[GROUP_STEPS];
} group_rows;

static group_rows find_rows(const delta_head *head, const step_block *block, size_t i,
                            size_t count) {
    const linear_head *const rows = &head->rows;
    const size_t width = LMK_LANES * panels_of(rows->k.width);
    const int has_unit_length = rows->has_unit_length, reads = rows->o.data != 0;
    group_rows to = {0};
    for (size_t n = 0; n < count; n++) {
        const size_t step = block->begin + i + n, at = width * (i + n);
        to.k[n] = row_of(&rows->k, step, has_unit_length, block->k_factors[i + n], block->k + at);
        if (reads && ends_token(head, step)) {
            const size_t t = token_of(head, step);
            to.q[n] = row_of(&rows->q, t, has_unit_length,
                             block->q_factors[t - token_of(head, block->begin)], block->q + at);
        }
        if (!head->a.data) continue;
        to.a[n] = row_of(&head->a, step, 0, 1, block->a + at);
        to.b[n] = row_of(&head->b, step, 0, 1, block->b + at);
    }
    return to;
}

/// A group of a block from its step `i` on: its steps, and the rows that they read and write
/// without decays.
static step_group *begin_group(const delta_head *head, step_block *block, size_t i, size_t count,
                               const group_rows *rows) {
    const token_rows *const v = &head->rows.v;
    const size_t bytes = dtype_bytes(v->dtype) * v->stride;
    step_group *const g = block->groups + i / GROUP_STEPS;
    g->step = block->begin + i;
    g->count = count;
    g->folding = FOLD_NONE;
    g->first_rows = g->fold_rows = g->rows_after = 0;
    g->scale_after = g->first_fold = g->fold = 1;
    g->met = g->met_second = 0;
    for (size_t n = 0; n < GROUP_STEPS; n++) {
        const int is_there = n < count;
        const size_t step = is_there ? i + n : i;
        g->read[n] = g->write[n] = is_there ? rows->k[n] : block->zeros;
        g->second[n] = block->zeros;
        g->query[n] = rows->q[n];
        g->value[n] = (const char *)v->data + bytes * (block->begin + step);
        g->token[n] = token_of(head, block->begin + step);
        g->rate[n] = is_there ? block->rate[step] : 0;
        g->read_scale[n] = g->query_scale[n] = g->write_scale[n] = 1;
    }
    g->first_write = rows->k[0];
    return g;
}

/// What the steps of a group read of one another, where decays are numbers: `between` is that of
/// the second one.
static void meet_numbers(const delta_head *head, step_group *g, float between) {
    const size_t width = head->rows.k.width;
    const float *const k0 = g->write[0], *const k1 = g->write[1], *const q0 = g->query[0],
                       *const q1 = g->query[1];
    f32x16 met = splat(0), met_00 = splat(0), met_10 = splat(0), met_11 = splat(0);
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 x0 = load_row(k0, LMK_FLOAT32, at, width),
                     x1 = g->count > 1 ? load_row(k1, LMK_FLOAT32, at, width) : splat(0);
        met = x1 * x0 + met;
        if (q0) met_00 = load_row(q0, LMK_FLOAT32, at, width) * x0 + met_00;
        if (!q1) continue;
        const f32x16 y1 = load_row(q1, LMK_FLOAT32, at, width);
        met_10 = y1 * x0 + met_10;
        met_11 = y1 * x1 + met_11;
    }
    const float scale = head->rows.scale;
    g->met = between * reduce_sum(met);
    g->query_met[0][0] = scale * reduce_sum(met_00);
    g->query_met[1][0] = scale * (between * reduce_sum(met_10));
    g->query_met[1][1] = scale * reduce_sum(met_11);
}

/// With a decay that dimensions share, or none. `scale` is that of the state, before the group and
/// then after it.
static void prepare_numbers(const delta_head *head, step_group *g, const float *decays, int is_last,
                            float *scale) {
    const float between = g->count > 1 ? decays[1] : 1, first = *scale * decays[0],
                second = first * between;
    g->read_scale[0] = g->first_fold = first;
    g->read_scale[1] = second;
    g->query_scale[0] = head->rows.scale * first;
    g->query_scale[1] = head->rows.scale * second;
    meet_numbers(head, g, between);
    const int is_moderate = second >= 1 / FOLD_LIMIT && second <= FOLD_LIMIT;
    if (is_moderate && (!is_last || second == 1)) {
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

/// exp(log_decay) of 16 keys of a step, 1 where it does not begin a token; shared[i] where
/// dimensions share it.
LMK_INLINE f32x16 step_decay(const delta_head *head, size_t step, const float *row, float shared,
                             size_t at) {
    if (head->rows.decay != LMK_DECAY_KEY) return splat(shared);
    if (!begins_token(head, step)) return splat(1);
    return vexp(load_row(row, LMK_FLOAT32, at, head->rows.k.width));
}

/// The products of decays after the first and after the second step of a group, `first` and `fold`,
/// and that of the second alone. Returns whether they are to be multiplied in.
LMK_INLINE int multiply_step_decays(const delta_head *head, const step_group *g,
                                    const float *shared, const float *scale, float *first,
                                    float *fold, float *second) {
    const size_t width = head->rows.k.width, stride = head->rows.log_decay_stride;
    const float *const rows = head->rows.log_decay;
    i32x16 is_outside = (i32x16)0;
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 before = scale ? load(scale + at) : splat(1),
                     a0 = step_decay(head, g->step, rows + stride * g->token[0], shared[0], at),
                     a1 = g->count > 1 ? step_decay(head, g->step + 1, rows + stride * g->token[1],
                                                    shared[1], at)
                                       : splat(1),
                     product = before * a0, both = product * a1;
        store(first + at, product);
        store(fold + at, both);
        store(second + at, a1);
        is_outside |= is_to_fold(both);
    }
    return !scale || any_of(is_outside);
}

/// One group with decays per key, or in the generalised form. `scale`, a row, is that of the state,
/// before the group and then after it; null: the state is itself.
LMK_INLINE void prepare_rows(const delta_head *head, const step_block *block, step_group *g,
                             size_t i, const float *shared, int is_generalized,
                             const group_rows *rows, int is_last, float *scale) {
    const size_t width = head->rows.k.width, padded = LMK_LANES * panels_of(width),
                 row = padded * i, next = row + padded;
    const int has_second = g->count > 1;
    const float *const k0 = rows->k[0], *const k1 = has_second ? rows->k[1] : k0,
                       *const b0 = is_generalized ? rows->b[0] : k0,
                       *const b1 = is_generalized && has_second ? rows->b[1] : k1,
                       *const r0 = is_generalized ? rows->a[0] : k0,
                       *const r1 = is_generalized && has_second ? rows->a[1] : k1,
                       *const q0 = g->query[0], *const q1 = g->query[1];
    float second_decay[LMK_DELTA_RULE_DIM];
    const int leaves = multiply_step_decays(head, g, shared, scale, block->first + row,
                                            block->fold + row, second_decay),
              folds = is_last || leaves;
    f32x16 met = splat(0), met_00 = splat(0), met_10 = splat(0), met_11 = splat(0);
    f32x16 second = splat(0), second_00 = splat(0), second_10 = splat(0), second_11 = splat(0);
    for (size_t at = 0; at < width; at += LMK_LANES) {
        const f32x16 a0 = load(block->first + row + at), a1 = load(second_decay + at),
                     both = load(block->fold + row + at);
        const f32x16 x0 = load_row(b0, LMK_FLOAT32, at, width),
                     x1 = load_row(b1, LMK_FLOAT32, at, width),
                     y0 = load_row(r0, LMK_FLOAT32, at, width),
                     y1 = load_row(r1, LMK_FLOAT32, at, width);
        const f32x16 x0_after = x0 * a1;
        const f32x16 written = folds ? splat(1) : 1 / both;
        store(block->write + row + at, x0_after * written);
        // a is read before the decay of its step, k after it.
        store(block->read + row + at, is_generalized ? y0 : y0 * a0);
        if (has_second) {
            store(block->write + next + at, x1 * written);
            store(block->read + next + at, is_generalized ? y1 * a0 : y1 * both);
        }
        met = y1 * (is_generalized ? x0 : x0_after) + met;
        const f32x16 v0 = load_row(k0, LMK_FLOAT32, at, width),
                     v1 = load_row(k1, LMK_FLOAT32, at, width), v0_after = v0 * a1;
        if (is_generalized) {
            store(block->second + row + at, v0_after);
            if (has_second) store(block->second + next + at, v1);
            second = y1 * v0 + second;
        }
        if (q0) {
            const f32x16 q = load_row(q0, LMK_FLOAT32, at, width);
            store(block->query + row + at, q * a0);
            met_00 = q * x0 + met_00;
            if (is_generalized) second_00 = q * v0 + second_00;
        }
        if (!q1) continue;
        const f32x16 q = load_row(q1, LMK_FLOAT32, at, width);
        store(block->query + next + at, q * both);
        met_10 = q * x0_after + met_10;
        met_11 = q * x1 + met_11;
        if (!is_generalized) continue;
        second_10 = q * v0_after + second_10;
        second_11 = q * v1 + second_11;
    }
    const float query_scale = head->rows.scale;
    g->met = has_second ? reduce_sum(met) : 0;
    g->query_met[0][0] = query_scale * reduce_sum(met_00);
    g->query_met[1][0] = query_scale * reduce_sum(met_10);
    g->query_met[1][1] = query_scale * reduce_sum(met_11);
    if (is_generalized) {
        g->met_second = has_second ? reduce_sum(second) : 0;
        g->query_met_second[0][0] = query_scale * reduce_sum(second_00);
        g->query_met_second[1][0] = query_scale * reduce_sum(second_10);
        g->query_met_second[1][1] = query_scale * reduce_sum(second_11);
    }
    if (folds) g->folding = FOLD_ROWS;
    *(folds ? &g->fold_rows : &g->rows_after) = block->fold + row;
    g->first_rows = block->first + row;
    for (size_t at = 0; scale && at < width; at += LMK_LANES)
        store(scale + at, folds ? splat(1) : load(block->fold + row + at));
    g->first_write = b0;
    g->first_second = k0;
    for (size_t n = 0; n < GROUP_STEPS; n++) {
        g->query_scale[n] = query_scale;
        if (n >= g->count) continue;
        g->read[n] = block->read + row + padded * n;
        g->write[n] = block->write + row + padded * n;
        if (is_generalized) g->second[n] = block->second + row + padded * n;
        if (g->query[n]) g->query[n] = block->query + row + padded * n;
    }
}

/// Steps begin ..< begin + count: their rates, shared decays and lengths.
static void begin_block(const delta_head *head, step_block *block, size_t begin, size_t count) {
    const linear_head *const rows = &head->rows;
    block->begin = begin;
    block->count = count;
    load_rates(head, begin, count, block->rate);
    if (rows->decay != LMK_DECAY_KEY) load_step_decays(head, begin, count, block->decay);
    if (!rows->has_unit_length) return;
    row_factors(&rows->k, begin, count, rows, 1, block->k_factors);
    const size_t token = token_of(head, begin);
    if (rows->o.data)
        row_factors(&rows->q, token, token_of(head, begin + count) - token, rows, 1,
                    block->q_factors);
}

/// Group `n` of a block, the last one of the sequence where `is_last`. `scale` is a number, or a
/// row with decays per key.
static void prepare_group(const delta_head *head, step_block *block, size_t n, int is_last,
                          float *scale) {
    const size_t i = GROUP_STEPS * n, count = lmk_min(GROUP_STEPS, block->count - i);
    const group_rows rows = find_rows(head, block, i, count);
    step_group *const g = begin_group(head, block, i, count, &rows);
    if (head->a.data) prepare_rows(head, block, g, i, block->decay + i, 1, &rows, is_last, 0);
    else if (head->rows.decay == LMK_DECAY_KEY)
        prepare_rows(head, block, g, i, block->decay + i, 0, &rows, is_last, scale);
    else prepare_numbers(head, g, block->decay + i, is_last, scale);
}

/// The rows of a step are brought into L1.
static void fetch_step(const delta_head *head, size_t step) {
    const linear_head *const r = &head->rows;
    const size_t token = token_of(head, step);
    fetch_row(r->k.data, r->k.dtype, r->k.stride, r->k.width, step);
    fetch_row(r->v.data, r->v.dtype, r->v.stride, r->v.width, step);
    if (r->o.data) fetch_row(r->q.data, r->q.dtype, r->q.stride, r->q.width, token);
    if (r->decay == LMK_DECAY_KEY)
        fetch_row(r->log_decay, LMK_FLOAT32, r->log_decay_stride, r->k.width, token);
    if (!head->a.data) return;
    fetch_row(head->a.data, head->a.dtype, head->a.stride, head->a.width, step);
    fetch_row(head->b.data, head->b.dtype, head->b.stride, head->b.width, step);
}
