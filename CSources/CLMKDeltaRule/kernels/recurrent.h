// Steps one after the other, two in each pass over the state. Included inside a region.

/// Columns of a head that one pass takes.
typedef struct column_slice {
    size_t column, columns, vectors;
} column_slice;

static size_t slices_of(const delta_head *head) {
    return lmk_divide_up(head->rows.v.width, LMK_LANES * SWEEP_VECTORS);
}

static column_slice slice_of(const delta_head *head, size_t index) {
    const size_t column = LMK_LANES * SWEEP_VECTORS * index,
                 columns = lmk_min(LMK_LANES * SWEEP_VECTORS, head->rows.v.width - column);
    return (column_slice){column, columns, panels_of(columns)};
}

LMK_INLINE f32x16 load_value(const token_rows *x, size_t row, size_t at) {
    const char *const data = (const char *)x->data + dtype_bytes(x->dtype) * x->stride * row;
    switch (x->dtype) {
    case LMK_BFLOAT16: return load_row(data, LMK_BFLOAT16, at, x->width);
    case LMK_FLOAT16: return load_row(data, LMK_FLOAT16, at, x->width);
    default: return load_row(data, LMK_FLOAT32, at, x->width);
    }
}

LMK_INLINE void store_value(const token_rows_out *x, size_t row, size_t at, f32x16 y) {
    char *const data = (char *)x->data + dtype_bytes(x->dtype) * x->stride * row;
    switch (x->dtype) {
    case LMK_BFLOAT16: store_row(data, LMK_BFLOAT16, at, x->width, y); break;
    case LMK_FLOAT16: store_row(data, LMK_FLOAT16, at, x->width, y); break;
    default: store_row(data, LMK_FLOAT32, at, x->width, y); break;
    }
}

/// u of a group, and v where there are two writes; o is written, and e where it is kept. `u` is what
/// the pass writes, `first` what the first step writes.
static void solve_group(const delta_head *head, const step_group *g, column_slice slice,
                        const float *carry, float *u, float *v, float *first, float *errors) {
    const size_t width = head->rows.v.width;
    const int is_generalized = head->a.data != 0;
    for (size_t j = 0; j < slice.vectors; j++) {
        const size_t lane = LMK_LANES * j, at = slice.column + lane;
        f32x16 corrected[GROUP_STEPS], value[GROUP_STEPS];
        for (size_t n = 0; n < GROUP_STEPS; n++) {
            corrected[n] = value[n] = splat(0);
            if (n >= g->count) continue;
            value[n] = load_value(&head->rows.v, g->step + n, at);
            f32x16 z = load(carry + SLICE_COLUMNS * n + lane) * g->read_scale[n];
            if (n > 0) z = corrected[0] * g->met + z;
            if (n > 0 && is_generalized) z = value[0] * g->met_second + z;
            const f32x16 error = is_generalized ? z : value[n] - z;
            corrected[n] = error * g->rate[n];
            if (errors) {
                float *const row = errors + width * (g->step + n);
                store_row(row, LMK_FLOAT32, at, width, error);
            }
        }
        for (size_t n = 0; n < g->count; n++) {
            if (!g->query[n]) continue;
            f32x16 o = load(carry + SLICE_COLUMNS * (GROUP_STEPS + n) + lane) * g->query_scale[n];
            for (size_t m = 0; m <= n; m++) {
                o = corrected[m] * g->query_met[n][m] + o;
                if (is_generalized) o = value[m] * g->query_met_second[n][m] + o;
            }
            store_value(&head->rows.o, (g->step + n) / head->steps, at, o);
        }
        store(first + lane, corrected[0]);
        for (size_t n = 0; n < GROUP_STEPS; n++) {
            store(u + SLICE_COLUMNS * n + lane, corrected[n] * g->write_scale[n]);
            store(v + SLICE_COLUMNS * n + lane, value[n]);
        }
    }
}

/// What the next group needs of the state.
static int reads_of(const step_group *g) {
    if (!g) return READ_NONE;
    return READ_STEPS | (g->query[0] ? READ_FIRST : 0) | (g->query[1] ? READ_LAST : 0);
}

/// A group's pass over columns of the state, which lie at `from` and go to `to`.
static void write_group(const delta_head *head, const step_group *g, const step_group *next,
                        column_slice slice, const float *u, const float *v, const float *from,
                        float *to, size_t stride, float *carry) {
    state_sweep sweep = {.stride = stride,
                         .rows = head->rows.k.width,
                         .fold = g->fold,
                         .fold_rows = g->fold_rows};
    for (size_t n = 0; n < GROUP_STEPS; n++) {
        sweep.write[n] = g->write[n];
        sweep.second[n] = g->second[n];
        sweep.read[n] = next ? next->read[n] : 0;
        sweep.query[n] = next ? next->query[n] : 0;
    }
    const int reads = reads_of(next), ways = head->a.data ? 3 : (int)g->folding;
    for (size_t j = 0; j < slice.vectors; j += SWEEP_VECTORS) {
        const size_t vectors = lmk_min(SWEEP_VECTORS, slice.vectors - j), lane = LMK_LANES * j;
        sweep.from = from + lane;
        sweep.to = to + lane;
        sweep.u = u + lane;
        sweep.v = v + lane;
        sweep.carry = carry + lane;
        sweeps[vectors - 1][ways][reads](&sweep);
    }
}

/// The state after the first step of a group, or after the group, from the one before or after its
/// pass.
static void keep_state(const delta_head *head, const step_group *g, column_slice slice, int is_first,
                       const float *state, size_t state_stride, const float *u, const float *v,
                       float *to, size_t stride) {
    for (size_t d = 0; d < head->rows.k.width; d++) {
        const size_t row = PANEL * (d / LMK_LANES) + d % LMK_LANES;
        for (size_t j = 0; j < slice.vectors; j++) {
            const size_t lane = LMK_LANES * j;
            f32x16 x = load(state + state_stride * d + lane);
            if (is_first) {
                x = x * (g->first_rows ? g->first_rows[row] : g->first_fold);
                x = load(u + lane) * g->first_write[row] + x;
                if (head->a.data) x = load(v + lane) * g->first_second[row] + x;
            } else {
                x = x * g->scale_after;
            }
            store_row(to + stride * d, LMK_FLOAT32, lane, slice.columns, x);
        }
    }
}

static void keep_states(const delta_head *head, const step_group *g, column_slice slice, int is_first,
                        const float *state, size_t state_stride, const float *u, const float *v,
                        const kept_states *kept) {
    const size_t step = g->step + (is_first ? 1 : g->count);
    if (step % head->steps != 0 || (is_first && g->count < 2)) return;
    const size_t tokens = step / head->steps;
    if (tokens == 0 || tokens % kept->stride != 0) return;
    float *const to = kept->data + kept->step * (tokens / kept->stride - 1) + slice.column;
    keep_state(head, g, slice, is_first, state, state_stride, u, v, to, kept->row_stride);
}

/// A state or some of its columns, dense at `stride`, to slices and back.
static void import_state(const delta_head *head, const float *from, size_t stride, float *state) {
    const size_t rows = head->rows.k.width, slices = slices_of(head);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(head, i);
        for (size_t d = 0; d < rows; d++, state += SLICE_COLUMNS) {
            for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
                store(state + lane, from ? load_row(from + slice.column + stride * d, LMK_FLOAT32,
                                                    lane, slice.columns)
                                         : splat(0));
            }
        }
    }
}

static void export_state(const delta_head *head, const float *state, float *to, size_t stride) {
    const size_t rows = head->rows.k.width, slices = slices_of(head);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(head, i);
        for (size_t d = 0; d < rows; d++, state += SLICE_COLUMNS) {
            for (size_t lane = 0; lane < LMK_LANES * slice.vectors; lane += LMK_LANES) {
                store_row(to + slice.column + stride * d, LMK_FLOAT32, lane, slice.columns,
                          load(state + lane));
            }
        }
    }
}

/// Rows begin ..< end are brought into L1.
static void fetch_rows(const token_rows *x, size_t begin, size_t end) {
    const size_t bytes = dtype_bytes(x->dtype);
    for (size_t row = begin; row < end; row++) {
        const char *const data = (const char *)x->data + bytes * x->stride * row;
        for (size_t at = 0; at < bytes * x->width; at += 64) __builtin_prefetch(data + at);
    }
}

/// z and y of the first group, from the state as it is.
static void read_state_first(const delta_head *head, const delta_memory *m,
                             const state_place *place, const step_group *g) {
    const size_t slices = slices_of(head);
    for (size_t i = 0; i < slices; i++) {
        const column_slice slice = slice_of(head, i);
        for (size_t j = 0; j < slice.vectors; j++) {
            const state_sweep first = {
                .from = place->from ? place->from + place->slice_step * i + LMK_LANES * j : 0,
                .stride = place->stride,
                .rows = head->rows.k.width,
                .read = {g->read[0], g->read[1]},
                .query = {g->query[0], g->query[1]},
                .carry = m->carry + CARRY_FLOATS * i + LMK_LANES * j};
            read_first(&first, reads_of(g));
        }
    }
}

static void advance(const delta_head *head, const delta_memory *m, size_t begin, size_t end,
                    int is_last, const state_place *place, float *scale, const kept_states *kept,
                    float *errors, const fetch_column *fetch, size_t fetches) {
    const size_t slices = slices_of(head);
    step_block blocks[2] = {m->blocks[0], m->blocks[1]};
    const size_t first_end = lmk_min(begin + BLOCK_STEPS, end);
    prepare_block(head, blocks, begin, first_end - begin, is_last && first_end == end, scale);
    fetch_rows(&head->rows.v, begin, first_end);
    read_state_first(head, m, place, blocks[0].groups);
    float u[GROUP_STEPS * SLICE_COLUMNS], v[GROUP_STEPS * SLICE_COLUMNS], first[SLICE_COLUMNS];
    for (size_t at = begin, current = 0; at < end; at += BLOCK_STEPS, current = 1 - current) {
        const size_t next_at = lmk_min(at + BLOCK_STEPS, end),
                     after = lmk_min(next_at + BLOCK_STEPS, end),
                     groups = lmk_divide_up(next_at - at, GROUP_STEPS);
        if (next_at < end) {
            prepare_block(head, blocks + 1 - current, next_at, after - next_at,
                          is_last && after == end, scale);
            fetch_rows(&head->rows.v, next_at, after);
        }
        for (size_t i = 0; i < slices; i++) {
            const column_slice slice = slice_of(head, i);
            const float *const from = place->from + place->slice_step * i;
            float *const to = place->to + place->slice_step * i,
                         *const carry = m->carry + CARRY_FLOATS * i;
            for (size_t n = 0; n < groups; n++) {
                const step_group *const g = blocks[current].groups + n,
                                        *const next = n + 1 < groups  ? g + 1
                                                      : next_at < end ? blocks[1 - current].groups
                                                                      : 0;
                for (size_t line = 0; fetches > 0 && line < LMK_LANES; line++)
                    __builtin_prefetch(fetch->data + fetch->stride * line, 0, 2);
                if (fetches > 0) fetch++, fetches--;
                solve_group(head, g, slice, carry, u, v, first, errors);
                if (kept)
                    keep_states(head, g, slice, 1, from, place->stride, first, v, kept);
                write_group(head, g, next, slice, u, v, from, to, place->stride, carry);
                if (kept) keep_states(head, g, slice, 0, to, place->stride, first, v, kept);
            }
        }
    }
}
