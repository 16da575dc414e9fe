// Register tiles: the products of a chunk with a state, and with another chunk. Included inside a
// region. Each element is one chain of fused multiply-adds in ascending order, whatever the tile.

#if defined(LMK_AVX512)
#define TILE_ROWS 8
#define TILE_VECTORS 2
#define PAIR_ROWS 16
/// Dimensions that one pass over the rows of pairs with decays per key takes.
#define PAIR_STEPS 4
#else
#define TILE_ROWS 4
#define TILE_VECTORS 1
#define PAIR_ROWS 4
#define PAIR_STEPS 2
#endif

/// Which tokens a token of a chunk meets.
typedef enum meeting {
    MEET_NONE,
    /// Those up to it: pairs[i][j] for j <= i.
    MEET_EARLIER,
    /// Those from it on: pairs[j][i] for j >= i.
    MEET_LATER,
} meeting;

/// to = x state + pairs met,  for a chunk; everything is in panels but the pairs, [16][16].
typedef struct state_read {
    const float *x;
    /// Of x, and of the state's rows.
    size_t panels;
    const float *state;
    /// Floats from panel to panel of the state's columns.
    size_t state_panel;
    const float *pairs, *met;
    /// Not null: adds x state times weights to dots, [16][16], lane by lane.
    const float *weights;
    float *dots;
    float *to;
} state_read;

#define FOR_VECTORS(VECTORS)                                                                       \
    LMK_UNROLL                                                                                     \
    for (int v = 0; v < VECTORS; v++)
#define FOR_ROWS(ROWS)                                                                             \
    LMK_UNROLL                                                                                     \
    for (int i = 0; i < ROWS; i++)

/// Adds pairs times rows FROM ..< TO of `met`.
#define ADD_MET(ROWS, VECTORS, PAIR, FROM, TO)                                                     \
    for (size_t j = (FROM); j < (TO); j++) {                                                       \
        f32x16 y[VECTORS];                                                                         \
        FOR_VECTORS(VECTORS) y[v] = load(met + LMK_LANES * j + PANEL * v);                         \
        FOR_ROWS(ROWS) {                                                                           \
            const f32x16 pair = splat(PAIR);                                                       \
            FOR_VECTORS(VECTORS) sum[i][v] = pair * y[v] + sum[i][v];                              \
        }                                                                                          \
    }

/// Rows row ..< row + ROWS of VECTORS panels of columns from `column` on.
#define DEFINE_READ_TILE(NAME, ROWS, VECTORS, MEETING)                                             \
    static void NAME(const state_read *r, size_t row, size_t column, const fetch_column *fetch) {  \
        const float *x = r->x + LMK_LANES * row, *state = r->state + r->state_panel * column;      \
        const size_t panels = r->panels, state_panel = r->state_panel;                             \
        f32x16 sum[ROWS][VECTORS];                                                                 \
        FOR_ROWS(ROWS) { FOR_VECTORS(VECTORS) sum[i][v] = splat(0); }                              \
        for (size_t p = 0; p < panels; p++, x += PANEL) {                                          \
            const char *next = fetch[p].data;                                                      \
            const size_t next_stride = fetch[p].stride;                                            \
            _Pragma("clang loop unroll_count(4)") for (size_t d = 0; d < LMK_LANES; d++) {         \
                f32x16 y[VECTORS];                                                                 \
                FOR_VECTORS(VECTORS) y[v] = load(state + state_panel * (size_t)v);                 \
                FOR_ROWS(ROWS) {                                                                   \
                    const f32x16 factor = splat(x[LMK_LANES * i + d]);                             \
                    FOR_VECTORS(VECTORS) sum[i][v] = factor * y[v] + sum[i][v];                    \
                }                                                                                  \
                state += LMK_LANES;                                                                \
                __builtin_prefetch(next, 0, 2);                                                    \
                next += next_stride;                                                               \
            }                                                                                      \
        }                                                                                          \
        const size_t at = PANEL * column + LMK_LANES * row;                                        \
        if (r->dots) {                                                                             \
            float *const dots = r->dots + LMK_LANES * row;                                         \
            const float *const weights = r->weights + at;                                          \
            FOR_ROWS(ROWS) {                                                                       \
                f32x16 dot = load(dots + LMK_LANES * i);                                           \
                FOR_VECTORS(VECTORS)                                                               \
                dot = sum[i][v] * load(weights + PANEL * v + LMK_LANES * i) + dot;                 \
                store(dots + LMK_LANES * i, dot);                                                  \
            }                                                                                      \
        }                                                                                          \
        const float *const pairs = r->pairs, *const met = r->met + PANEL * column,                 \
                           *const diagonal = pairs + (LMK_LANES + 1) * row;                        \
        if (MEETING == MEET_EARLIER) {                                                             \
            const float *const left = pairs + LMK_LANES * row;                                     \
            ADD_MET(ROWS, VECTORS, left[LMK_LANES * i + j], 0, row)                                \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < ROWS; j++) {                                                       \
                FOR_VECTORS(VECTORS) {                                                             \
                    const f32x16 y = load(met + LMK_LANES * (row + (size_t)j) + PANEL * v);        \
                    LMK_UNROLL                                                                     \
                    for (int i = j; i < ROWS; i++)                                                 \
                        sum[i][v] = splat(diagonal[LMK_LANES * i + j]) * y + sum[i][v];            \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        if (MEETING == MEET_LATER) {                                                               \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < ROWS; j++) {                                                       \
                FOR_VECTORS(VECTORS) {                                                             \
                    const f32x16 y = load(met + LMK_LANES * (row + (size_t)j) + PANEL * v);        \
                    LMK_UNROLL                                                                     \
                    for (int i = 0; i <= j; i++)                                                   \
                        sum[i][v] = splat(diagonal[LMK_LANES * j + i]) * y + sum[i][v];            \
                }                                                                                  \
            }                                                                                      \
            const float *const below = pairs + row;                                                \
            ADD_MET(ROWS, VECTORS, below[LMK_LANES * j + (size_t)i], row + ROWS, CHUNK_TOKENS)     \
        }                                                                                          \
        float *const to = r->to + at;                                                              \
        FOR_ROWS(ROWS) { FOR_VECTORS(VECTORS) store(to + PANEL * v + LMK_LANES * i, sum[i][v]); }  \
    }

/// state = decay from + x^T y,  for a chunk in panels; `from` may be the state itself. Decays are
/// those of the state's rows, or of its columns, or there are none.
typedef struct state_write {
    const float *x, *y;
    const float *row_decay, *column_decay;
    const float *from;
    float *state;
    size_t state_panel;
} state_write;

/// Rows row ..< row + ROWS of VECTORS panels of columns from `column` on.
#define DEFINE_WRITE_TILE(NAME, ROWS, VECTORS)                                                     \
    static void NAME(const state_write *w, size_t row, size_t column, const fetch_column *fetch) { \
        const float *const x = w->x + PANEL * (row / LMK_LANES) + row % LMK_LANES,                 \
                           *y = w->y + PANEL * column;                                             \
        const size_t state_panel = w->state_panel, next_stride = fetch->stride;                    \
        const char *next = fetch->data;                                                            \
        const float *const from = w->from + state_panel * column + LMK_LANES * row;                \
        float *const state = w->state + state_panel * column + LMK_LANES * row;                    \
        f32x16 sum[ROWS][VECTORS];                                                                 \
        FOR_ROWS(ROWS) {                                                                           \
            FOR_VECTORS(VECTORS)                                                                   \
            sum[i][v] = load(from + state_panel * (size_t)v + LMK_LANES * i);                      \
        }                                                                                          \
        if (w->row_decay) {                                                                        \
            const float *const decay = w->row_decay + row;                                         \
            FOR_ROWS(ROWS) { FOR_VECTORS(VECTORS) sum[i][v] *= decay[i]; }                         \
        }                                                                                          \
        if (w->column_decay) {                                                                     \
            FOR_VECTORS(VECTORS) {                                                                 \
                const f32x16 decay = load(w->column_decay + LMK_LANES * (column + (size_t)v));     \
                FOR_ROWS(ROWS) sum[i][v] *= decay;                                                 \
            }                                                                                      \
        }                                                                                          \
        _Pragma("clang loop unroll_count(4)") for (size_t j = 0; j < CHUNK_TOKENS; j++) {          \
            f32x16 step[VECTORS];                                                                  \
            FOR_VECTORS(VECTORS) step[v] = load(y + PANEL * v);                                    \
            FOR_ROWS(ROWS) {                                                                       \
                const f32x16 factor = splat(x[LMK_LANES * j + (size_t)i]);                         \
                FOR_VECTORS(VECTORS) sum[i][v] = factor * step[v] + sum[i][v];                     \
            }                                                                                      \
            y += LMK_LANES;                                                                        \
            __builtin_prefetch(next);                                                              \
            next += next_stride;                                                                   \
        }                                                                                          \
        FOR_ROWS(ROWS) {                                                                           \
            FOR_VECTORS(VECTORS)                                                                   \
            store(state + state_panel * (size_t)v + LMK_LANES * i, sum[i][v]);                     \
        }                                                                                          \
    }

DEFINE_READ_TILE(read_tile, TILE_ROWS, TILE_VECTORS, MEET_NONE)
DEFINE_READ_TILE(read_tile_earlier, TILE_ROWS, TILE_VECTORS, MEET_EARLIER)
DEFINE_READ_TILE(read_tile_later, TILE_ROWS, TILE_VECTORS, MEET_LATER)
DEFINE_WRITE_TILE(write_tile, TILE_ROWS, TILE_VECTORS)
#if TILE_VECTORS == 2
DEFINE_READ_TILE(read_half_tile, TILE_ROWS, 1, MEET_NONE)
DEFINE_READ_TILE(read_half_tile_earlier, TILE_ROWS, 1, MEET_EARLIER)
DEFINE_READ_TILE(read_half_tile_later, TILE_ROWS, 1, MEET_LATER)
DEFINE_WRITE_TILE(write_half_tile, TILE_ROWS, 1)
#else
#define read_half_tile read_tile
#define read_half_tile_earlier read_tile_earlier
#define read_half_tile_later read_tile_later
#define write_half_tile write_tile
#endif

/// `columns` panels of columns. Uses up `panels` entries of `fetch` for each tile,
/// and returns what follows them.
LMK_INLINE const fetch_column *read_state(const state_read *r, size_t columns, meeting met_by,
                                          const fetch_column *fetch) {
    void (*const whole)(const state_read *, size_t, size_t, const fetch_column *) =
        met_by == MEET_NONE      ? read_tile
        : met_by == MEET_EARLIER ? read_tile_earlier
                                 : read_tile_later;
    void (*const half)(const state_read *, size_t, size_t, const fetch_column *) =
        met_by == MEET_NONE      ? read_half_tile
        : met_by == MEET_EARLIER ? read_half_tile_earlier
                                 : read_half_tile_later;
    for (size_t column = 0; column < columns; column += TILE_VECTORS) {
        for (size_t row = 0; row < CHUNK_TOKENS; row += TILE_ROWS, fetch += r->panels)
            (columns - column >= TILE_VECTORS ? whole : half)(r, row, column, fetch);
    }
    return fetch;
}

/// `panels` 16 rows and `columns` panels of columns. Uses up an entry of `fetch` for each tile
/// while there are `fetches`, and returns how many.
LMK_INLINE size_t write_state(const state_write *w, size_t panels, size_t columns,
                              const fetch_column *fetch, size_t fetches) {
    const fetch_column none = {(const char *)w->y, 0};
    size_t used = 0;
    for (size_t column = 0; column < columns; column += TILE_VECTORS) {
        for (size_t row = 0; row < LMK_LANES * panels; row += TILE_ROWS) {
            const fetch_column *const entry = used < fetches ? fetch + used++ : &none;
            (columns - column >= TILE_VECTORS ? write_tile : write_half_tile)(w, row, column,
                                                                              entry);
        }
    }
    return used;
}

/// pairs[i][j] = sum over dimensions of x[i] y[j], [16][16]; y has its tokens in lanes.
static void multiply_pairs(const float *x, const float *y_transposed, size_t panels, float *pairs) {
    for (size_t row = 0; row < CHUNK_TOKENS; row += PAIR_ROWS) {
        f32x16 sum[PAIR_ROWS];
        FOR_ROWS(PAIR_ROWS) sum[i] = splat(0);
        const float *panel = x + LMK_LANES * row, *y = y_transposed;
        for (size_t p = 0; p < panels; p++, panel += PANEL) {
            for (size_t d = 0; d < LMK_LANES; d++, y += LMK_LANES) {
                const f32x16 step = load(y);
                FOR_ROWS(PAIR_ROWS) sum[i] = splat(panel[LMK_LANES * i + d]) * step + sum[i];
            }
        }
        FOR_ROWS(PAIR_ROWS) store(pairs + LMK_LANES * (row + (size_t)i), sum[i]);
    }
}

/// Between a state, [rows, columns] at `stride`, or zero where null, and panels.
static void import_panels(const float *from, size_t stride, size_t rows, size_t columns,
                          float *state) {
    const size_t padded = LMK_LANES * panels_of(rows);
    for (size_t column = 0; column < columns; column += LMK_LANES) {
        for (size_t row = 0; row < padded; row++, state += LMK_LANES) {
            const int is_there = from && row < rows;
            store(state, is_there ? load_row(from + stride * row, LMK_FLOAT32, column, columns)
                                  : splat(0));
        }
    }
}

static void export_panels(const float *state, size_t stride, size_t rows, size_t columns,
                          float *to) {
    const size_t padding = LMK_LANES * panels_of(rows) - rows;
    for (size_t column = 0; column < columns; column += LMK_LANES) {
        for (size_t row = 0; row < rows; row++, state += LMK_LANES)
            store_row(to + stride * row, LMK_FLOAT32, column, columns, load(state));
        state += LMK_LANES * padding;
    }
}
