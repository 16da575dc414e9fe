// What backward passes over states share: reads of transposed states, whose rows are values and
// whose columns are keys, and gradients on their way out. Included inside a region.

static void clear(float *x, size_t count) {
    for (size_t i = 0; i < count; i += LMK_LANES) store(x + i, splat(0));
}

/// Lets every read of the state from here on fetch the rows that a chunk's gradients go to: they
/// are written last, and a store waits for its line.
static void fetch_gradients(const linear_chunk *c, const token_rows_out *rows, size_t count,
                            size_t token) {
    near_rows near = {.token = token};
    for (size_t i = 0; i < count; i++)
        add_near_rows(&near,
                      (token_rows){rows[i].data, rows[i].stride, rows[i].dtype, rows[i].width});
    fetch_column columns[NEAR_COLUMNS];
    const size_t used = lmk_min(near_columns(&near, columns), c->fetches);
    for (size_t i = 0; i < used; i++) c->chunk_fetch[i] = columns[i];
}

LMK_INLINE void read_state_by(const state_read *read, size_t panels, meeting met_by,
                              const linear_chunk *c) {
    if (met_by == MEET_NONE) read_state(read, panels, MEET_NONE, c->chunk_fetch);
    else if (met_by == MEET_EARLIER) read_state(read, panels, MEET_EARLIER, c->chunk_fetch);
    else read_state(read, panels, MEET_LATER, c->chunk_fetch);
}

/// x state,  keys in the state's columns, and its sums with weights; then pairs.
static void read_keys(const linear_chunk *c, const linear_gradient_chunk *g, const float *x,
                      const float *state, const float *weights, float *dots, meeting met_by,
                      const float *pairs, const float *met, float *to) {
    if (dots) clear(dots, PANEL);
    const state_read read = {.x = x,
                             .panels = g->panels,
                             .state = state,
                             .state_panel = PANEL * g->panels,
                             .pairs = pairs,
                             .met = met,
                             .weights = weights,
                             .dots = dots,
                             .to = to};
    read_state_by(&read, c->panels, met_by, c);
}

/// The gradient of rows that were brought to unit length, x r, from that of scale x r.
static void unit_length_gradients(const token_rows *x, size_t begin, size_t count,
                                  const linear_head *head, float scale, float *unit, float *dx) {
    const size_t panels = panels_of(x->width);
    float factors[CHUNK_TOKENS];
    row_factors(x, begin, count, head, 1, factors);
    load_panels(x, begin, count, CHUNK_TOKENS, factors, unit);
    for (size_t i = 0; i < count; i++) {
        f32x16 sum = splat(0);
        for (size_t p = 0; p < panels; p++) {
            const size_t at = PANEL * p + LMK_LANES * i;
            sum = load(unit + at) * load(dx + at) + sum;
        }
        const float dot = reduce_sum(sum), factor = scale * factors[i];
        for (size_t p = 0; p < panels; p++) {
            const size_t at = PANEL * p + LMK_LANES * i;
            const f32x16 across = load(dx + at) - load(unit + at) * dot;
            store(dx + at, across * factor);
        }
    }
}

/// Panels of q's and k's gradients become those of what was loaded.
static void finish_gradients(const linear_head *head, const token_rows *x, size_t begin,
                             size_t count, float scale, const linear_chunk *c, float *dx) {
    if (head->has_unit_length) {
        unit_length_gradients(x, begin, count, head, scale, c->k_transposed, dx);
    } else if (scale != 1) {
        for (size_t i = 0; i < PANEL * c->panels; i += LMK_LANES)
            store(dx + i, load(dx + i) * scale);
    }
}

/// Adds panels to what is there, in float32.
static void add_panels(const token_rows_out *x, size_t begin, size_t count, const float *from) {
    for (size_t i = 0; i < count; i++) {
        float *const row = (float *)x->data + x->stride * (begin + i);
        for (size_t at = 0; at < x->width; at += LMK_LANES) {
            const f32x16 before = load_row(row, LMK_FLOAT32, at, x->width);
            store_row(row, LMK_FLOAT32, at, x->width,
                      before + load(from + LMK_LANES * at + LMK_LANES * i));
        }
    }
}

static void put_gradients(const token_rows_out *x, int adds, size_t begin, size_t count,
                          const float *from) {
    if (!x->data) return;
    if (adds) add_panels(x, begin, count, from);
    else store_panels(x, begin, count, 0, from);
}

/// Sums over the state's rows of the state times its gradient, with the decay of the chunk.
static void multiply_states(const linear_chunk *c, const linear_gradient_chunk *g,
                            const float *state, const float *dstate) {
    for (size_t p = 0; p < c->panels; p++) {
        const float *const x = state + PANEL * g->panels * p, *const y =
                                                                  dstate + PANEL * g->panels * p;
        f32x16 sums[4];
        LMK_UNROLL
        for (int i = 0; i < 4; i++) sums[i] = splat(0);
        for (size_t row = 0; row < LMK_LANES * LMK_LANES * g->panels; row += 4 * LMK_LANES) {
            LMK_UNROLL
            for (int i = 0; i < 4; i++) {
                const size_t at = row + LMK_LANES * (size_t)i;
                sums[i] = load(x + at) * load(y + at) + sums[i];
            }
        }
        const f32x16 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        store(g->carried + LMK_LANES * p, sum * load(c->total + LMK_LANES * p));
    }
}

/// dS with keys in rows, from dS with values in rows.
static void transpose_state(const linear_chunk *c, const linear_gradient_chunk *g,
                            const float *dstate) {
    for (size_t p = 0; p < c->panels; p++) {
        for (size_t v = 0; v < g->panels; v++) {
            transpose_panels(dstate + PANEL * (g->panels * p + v), 1,
                             g->dstate + PANEL * (c->panels * v + p));
        }
    }
}
