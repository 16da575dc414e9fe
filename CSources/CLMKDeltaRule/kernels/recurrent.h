// Steps one after the other, two in each pass over the state. Included inside a region.

/// What the steps of a group write.
typedef struct group_writes {
    /// u times write_scale, v where there are two writes, and u of the first step.
    float u[GROUP_STEPS * SLICE_COLUMNS], v[GROUP_STEPS * SLICE_COLUMNS], first[SLICE_COLUMNS];
} group_writes;

/// One vector of columns: u of a group, o where it reads, and e where it is kept.
LMK_INLINE void solve_columns(const delta_head *head, const step_group *g, int is_generalized,
                              size_t lane, size_t at, const float *carry, float *errors,
                              group_writes *to) {
    const token_rows *const values = &head->rows.v;
    const size_t width = values->width;
    const f32x16 v0 = load_value(values, g->value[0], at), v1 = load_value(values, g->value[1], at);
    float *const u = to->u + lane, *const v = to->v + lane;
    carry += lane;
    const f32x16 z0 = load(carry) * g->read_scale[0];
    const f32x16 e0 = is_generalized ? z0 : v0 - z0;
    const f32x16 u0 = e0 * g->rate[0];
    f32x16 z1 = load(carry + SLICE_COLUMNS) * g->read_scale[1];
    if (is_generalized) z1 = v0 * g->met_second + z1;
    z1 = u0 * g->met + z1;
    const f32x16 e1 = is_generalized ? z1 : v1 - z1;
    const f32x16 u1 = e1 * g->rate[1];
    store(u, u0 * g->write_scale[0]);
    store(u + SLICE_COLUMNS, g->count > 1 ? u1 * g->write_scale[1] : splat(0));
    store(to->first + lane, u0);
    if (is_generalized) {
        store(v, v0);
        store(v + SLICE_COLUMNS, v1);
    }
    if (g->query[0]) {
        f32x16 o = load(carry + 2 * SLICE_COLUMNS) * g->query_scale[0];
        o = u0 * g->query_met[0][0] + o;
        if (is_generalized) o = v0 * g->query_met_second[0][0] + o;
        store_value(&head->rows.o, g->token[0], at, o);
    }
    if (g->query[1]) {
        f32x16 o = load(carry + 3 * SLICE_COLUMNS) * g->query_scale[1];
        o = u0 * g->query_met[1][0] + o;
        o = u1 * g->query_met[1][1] + o;
        if (is_generalized) {
            o = v0 * g->query_met_second[1][0] + o;
            o = v1 * g->query_met_second[1][1] + o;
        }
        store_value(&head->rows.o, g->token[1], at, o);
    }
    if (!errors) return;
    store_row(errors + width * g->step, LMK_FLOAT32, at, width, e0);
    if (g->count > 1) store_row(errors + width * (g->step + 1), LMK_FLOAT32, at, width, e1);
}

static void solve_group(const delta_head *head, const step_group *g, column_slice slice,
                        const float *carry, float *errors, group_writes *to) {
    for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
        const size_t at = slice.column + lane;
        if (head->a.data) solve_columns(head, g, 1, lane, at, carry, errors, to);
        else solve_columns(head, g, 0, lane, at, carry, errors, to);
    }
}

/// What the next group needs of the state.
static int reads_of(const step_group *g) {
    if (!g) return READ_NONE;
    return READ_STEPS | (g->query[0] ? READ_FIRST : 0) | (g->query[1] ? READ_LAST : 0);
}

/// What a group's pass does, whatever the columns.
static state_sweep sweep_of(const delta_head *head, const step_group *g, const step_group *next,
                            const state_place *place) {
    state_sweep sweep = {.stride = place->stride,
                         .rows = head->rows.k.width,
                         .fold = g->fold,
                         .fold_rows = g->fold_rows};
    for (size_t n = 0; n < GROUP_STEPS; n++) {
        sweep.write[n] = g->write[n];
        sweep.second[n] = g->second[n];
        sweep.read[n] = next ? next->read[n] : 0;
        sweep.query[n] = next ? next->query[n] : 0;
    }
    return sweep;
}

/// The state after the first step of a group, or after the group, from the one before or after its
/// pass.
static void keep_state(const delta_head *head, const step_group *g, column_slice slice,
                       int is_first, const float *state, size_t state_stride,
                       const group_writes *writes, float *to, size_t stride) {
    for (size_t d = 0; d < head->rows.k.width; d++) {
        for (size_t j = 0; j < slice.vectors; j++) {
            const size_t lane = LMK_LANES * j;
            f32x16 x = load(state + state_stride * d + lane);
            if (is_first) {
                x = x * (g->first_rows ? g->first_rows[d] : g->first_fold);
                x = load(writes->first + lane) * g->first_write[d] + x;
                if (head->a.data) x = load(writes->v + lane) * g->first_second[d] + x;
            } else {
                x = x * (g->rows_after ? g->rows_after[d] : g->scale_after);
            }
            store_row(to + stride * d, LMK_FLOAT32, lane, slice.columns, x);
        }
    }
}

static void keep_states(const delta_head *head, const step_group *g, column_slice slice,
                        int is_first, const float *state, size_t state_stride,
                        const group_writes *writes, const kept_states *kept) {
    const size_t step = g->step + (is_first ? 1 : g->count);
    if (step % head->steps != 0 || (is_first && g->count < 2)) return;
    const size_t tokens = step / head->steps;
    if (tokens == 0 || tokens % kept->stride != 0) return;
    float *const to = kept->data + kept->step * (tokens / kept->stride - 1) + slice.column;
    keep_state(head, g, slice, is_first, state, state_stride, writes, to, kept->row_stride);
}

/// z and y of the first group, from the state as it is.
static void read_state_first(const delta_head *head, float *carries, const state_place *place,
                             const step_group *g) {
    const size_t slices = slices_of(&head->rows);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(&head->rows, i);
        for (size_t j = 0; j < slice.vectors; j++) {
            const state_sweep first = {.from = place->from + place->slice_step * i + LMK_LANES * j,
                                       .stride = place->stride,
                                       .rows = head->rows.k.width,
                                       .read = {g->read[0], g->read[1]},
                                       .query = {g->query[0], g->query[1]},
                                       .carry = carries + CARRY_FLOATS * i + LMK_LANES * j};
            read_first(&first, reads_of(g));
        }
    }
}

static void advance(const delta_head *head, delta_memory *m, size_t begin, size_t end, size_t steps,
                    const state_place *place, float *carries, float *scale, const kept_states *kept,
                    float *errors, const fetch_column *fetch, size_t fetches) {
    const size_t slices = slices_of(&head->rows),
                 scales = scale_floats_of(head->rows.decay, head->rows.k.width),
                 slice_bytes = sizeof(float) * SLICE_COLUMNS * head->rows.k.width,
                 abreast = 2 * slice_bytes <= ABREAST_BYTES ? 2 : 1;
    step_block *const blocks = m->blocks;
    begin_block(head, blocks, begin, lmk_min(BLOCK_STEPS, end - begin));
    prepare_group(head, blocks, 0, steps - begin <= GROUP_STEPS, scale);
    if (begin == 0) read_state_first(head, carries, place, blocks[0].groups);
    group_writes writes;
    for (size_t at = begin, current = 0; at < end; at += BLOCK_STEPS, current = 1 - current) {
        const size_t next_at = lmk_min(at + BLOCK_STEPS, end),
                     after = lmk_min(next_at + BLOCK_STEPS, steps),
                     groups = lmk_divide_up(next_at - at, GROUP_STEPS);
        step_block *const block = blocks + current, *const next_block = blocks + 1 - current;
        if (next_at < steps) begin_block(head, next_block, next_at, after - next_at);
        // Side by side, so that one slice's pass goes on while the next one's u is found.
        for (size_t i = 0; i < slices; i += abreast) {
            const size_t last = lmk_min(i + abreast, slices);
            for (size_t n = 0; n < groups; n++) {
                const size_t next_step = at + GROUP_STEPS * (n + 1);
                const int is_in_block = n + 1 < groups, has_next = next_step < steps;
                // Each group is prepared while the one before it is written.
                if (has_next && i == 0) {
                    // That of the next call is prepared once more there.
                    float same[LMK_DELTA_RULE_DIM];
                    for (size_t d = 0; next_step >= end && d < scales; d++) same[d] = scale[d];
                    prepare_group(head, is_in_block ? block : next_block, is_in_block ? n + 1 : 0,
                                  next_step + GROUP_STEPS >= steps, next_step < end ? scale : same);
                    for (size_t s = next_step + GROUP_STEPS;
                         s < lmk_min(next_step + 2 * GROUP_STEPS, steps); s++)
                        fetch_step(head, s);
                }
                const step_group *const g = block->groups + n, *const next =
                                                                   !has_next ? 0
                                                                   : is_in_block
                                                                       ? g + 1
                                                                       : next_block->groups;
                const int reads = reads_of(next), ways = head->a.data ? 3 : (int)g->folding;
                state_sweep sweep = sweep_of(head, g, next, place);
                sweep.u = writes.u;
                sweep.v = writes.v;
                for (size_t s = i; s < last; s++) {
                    const column_slice slice = slice_of(&head->rows, s);
                    const float *const from = place->from + place->slice_step * s;
                    float *const to = place->to + place->slice_step * s, *const carry =
                                                                             carries +
                                                                             CARRY_FLOATS * s;
                    if (fetches > 0) fetch_lines(fetch++), fetches--;
                    solve_group(head, g, slice, carry, errors, &writes);
                    if (kept) keep_states(head, g, slice, 1, from, place->stride, &writes, kept);
                    sweep.from = from;
                    sweep.to = to;
                    sweep.carry = carry;
                    sweeps[slice.vectors - 1][ways][reads](&sweep);
                    if (kept) keep_states(head, g, slice, 0, to, place->stride, &writes, kept);
                }
            }
        }
    }
}

// MARK: Decoding

/// VECTORS 16 columns of one step: what is read, then what is written, which by then is in L1.
#define DEFINE_STEP(VECTORS)                                                                       \
    LMK_INLINE void step_##VECTORS(const delta_head *head, const step_group *g,                    \
                                   int is_generalized, int has_rows, size_t at, const float *from, \
                                   float *to, size_t stride) {                                     \
        const float *const r = g->read[0], *const q = g->query[0] ? g->query[0] : r,               \
                           *const fold_rows = g->fold_rows, *const w = g->write[0],                \
                           *const x = g->second[0];                                                \
        const size_t rows = head->rows.k.width;                                                    \
        group_writes writes;                                                                       \
        float carry[CARRY_FLOATS] = {0};                                                           \
        f32x16 z[VECTORS], y[VECTORS];                                                             \
        FOR_SWEEP(VECTORS) z[j] = y[j] = splat(0);                                                 \
        for (size_t d = 0; d < rows; d++) {                                                        \
            const f32x16 a = splat(r[d]), b = splat(q[d]);                                         \
            FOR_SWEEP(VECTORS) {                                                                   \
                const f32x16 state = load(from + stride * d + LMK_LANES * j);                      \
                z[j] = state * a + z[j];                                                           \
                y[j] = state * b + y[j];                                                           \
            }                                                                                      \
        }                                                                                          \
        f32x16 u[VECTORS], v[VECTORS];                                                             \
        FOR_SWEEP(VECTORS) {                                                                       \
            store(carry, z[j]);                                                                    \
            store(carry + 2 * SLICE_COLUMNS, y[j]);                                                \
            solve_columns(head, g, is_generalized, 0, at + LMK_LANES * j, carry, 0, &writes);      \
            u[j] = load(writes.u);                                                                 \
            v[j] = load(writes.v);                                                                 \
        }                                                                                          \
        for (size_t d = 0; d < rows; d++) {                                                        \
            const f32x16 fold = splat(has_rows ? fold_rows[d] : g->fold), a = splat(w[d]),         \
                         b = splat(is_generalized ? x[d] : 0);                                     \
            FOR_SWEEP(VECTORS) {                                                                   \
                f32x16 state = load(from + stride * d + LMK_LANES * j) * fold;                     \
                state = u[j] * a + state;                                                          \
                if (is_generalized) state = v[j] * b + state;                                      \
                /* What a pass adds for the step that is not there: -0 becomes 0. */               \
                state = state + splat(0);                                                          \
                store(to + stride * d + LMK_LANES * j, state);                                     \
            }                                                                                      \
        }                                                                                          \
    }

DEFINE_STEP(1)
DEFINE_STEP(2)
DEFINE_STEP(4)

LMK_INLINE void step_columns(const delta_head *head, const step_group *g, int is_generalized,
                             int has_rows, const float *from, float *to, size_t stride) {
    const size_t width = head->rows.v.width;
    size_t at = 0;
    for (; at + 4 * LMK_LANES <= width; at += 4 * LMK_LANES)
        step_4(head, g, is_generalized, has_rows, at, from + at, to + at, stride);
    for (; at + 2 * LMK_LANES <= width; at += 2 * LMK_LANES)
        step_2(head, g, is_generalized, has_rows, at, from + at, to + at, stride);
    for (; at + LMK_LANES <= width; at += LMK_LANES)
        step_1(head, g, is_generalized, has_rows, at, from + at, to + at, stride);
}

static void step(const delta_head *head, delta_memory *m, const float *from, float *to,
                 size_t stride) {
    step_block *const block = m->blocks;
    float one = 1;
    begin_block(head, block, 0, 1);
    prepare_group(head, block, 0, 1, head->rows.decay == LMK_DECAY_KEY ? 0 : &one);
    const step_group *const g = block->groups;
    if (head->a.data) step_columns(head, g, 1, 1, from, to, stride);
    else if (g->fold_rows) step_columns(head, g, 0, 1, from, to, stride);
    else step_columns(head, g, 0, 0, from, to, stride);
}
