// Register tiles: the products of a chunk with a state, and with another chunk. Included inside a
// region. Each element is one chain of fused multiply-adds in ascending order, whatever the tile.

#if defined(LMK_TARGET_AVX512) || defined(LMK_TARGET_AVX512_BF16)
#define TILE_ROWS 8
#define TILE_VECTORS 2
#define PAIR_ROWS 16
#else
#define TILE_ROWS 4
#define TILE_VECTORS 1
#define PAIR_ROWS 4
#endif

/// Which tokens a token of a chunk meets.
typedef enum meeting {
    MEET_NONE,
    /// Those up to it: pairs[i][j] for j <= i.
    MEET_EARLIER,
    /// Those from it on: pairs[j][i] for j >= i.
    MEET_LATER,
} meeting;

/// Adds pairs times rows to TILE_ROWS rows from `row` on.
#define ADD_MET(ROWS, VECTORS, PAIR, FROM, TO)                                                     \
    for (size_t j = (FROM); j < (TO); j++) {                                                       \
        f32x16 y[VECTORS];                                                                         \
        LMK_UNROLL                                                                                 \
        for (int v = 0; v < VECTORS; v++) y[v] = load(met + lanes * j + LMK_LANES * v);            \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            const f32x16 pair = splat(PAIR);                                                       \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++) sum[i][v] = pair * y[v] + sum[i][v];                 \
        }                                                                                          \
    }

/// Rows row ..< row + TILE_ROWS of  x state + pairs met,  for TILE_VECTORS 16 columns. x is a
/// chunk's panels from that row on; `to`, [16][lanes], begins there too, `met` is [16][lanes].
#define DEFINE_READ_TILE(NAME, ROWS, VECTORS, MEETING)                                             \
    static void NAME(const float *x, size_t panels, const float *state, size_t lanes, size_t row,  \
                     const float *pairs, const float *met, const fetch_column *fetch, float *to) { \
        f32x16 sum[ROWS][VECTORS];                                                                 \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++) sum[i][v] = splat(0);                                \
        }                                                                                          \
        for (size_t p = 0; p < panels; p++, x += PANEL) {                                          \
            const char *next = fetch[p].data;                                                      \
            const size_t next_stride = fetch[p].stride;                                            \
            _Pragma("clang loop unroll_count(4)") for (size_t d = 0; d < LMK_LANES; d++) {         \
                f32x16 y[VECTORS];                                                                 \
                LMK_UNROLL                                                                         \
                for (int v = 0; v < VECTORS; v++) y[v] = load(state + LMK_LANES * v);              \
                LMK_UNROLL                                                                         \
                for (int i = 0; i < ROWS; i++) {                                                   \
                    const f32x16 factor = splat(x[LMK_LANES * i + d]);                             \
                    LMK_UNROLL                                                                     \
                    for (int v = 0; v < VECTORS; v++) sum[i][v] = factor * y[v] + sum[i][v];       \
                }                                                                                  \
                state += lanes;                                                                    \
                __builtin_prefetch(next, 0, 2);                                                    \
                next += next_stride;                                                               \
            }                                                                                      \
        }                                                                                          \
        if (MEETING == MEET_EARLIER) {                                                             \
            ADD_MET(ROWS, VECTORS, (pairs + LMK_LANES * row)[LMK_LANES * i + j], 0, row)           \
            pairs += (LMK_LANES + 1) * row;                                                        \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < ROWS; j++) {                                                       \
                LMK_UNROLL                                                                         \
                for (int v = 0; v < VECTORS; v++) {                                                \
                    const f32x16 y = load(met + lanes * (row + (size_t)j) + LMK_LANES * v);        \
                    LMK_UNROLL                                                                     \
                    for (int i = j; i < ROWS; i++)                                                 \
                        sum[i][v] = splat(pairs[LMK_LANES * i + j]) * y + sum[i][v];               \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        if (MEETING == MEET_LATER) {                                                               \
            const float *const diagonal = pairs + (LMK_LANES + 1) * row;                           \
            LMK_UNROLL                                                                             \
            for (int j = 0; j < ROWS; j++) {                                                       \
                LMK_UNROLL                                                                         \
                for (int v = 0; v < VECTORS; v++) {                                                \
                    const f32x16 y = load(met + lanes * (row + (size_t)j) + LMK_LANES * v);        \
                    LMK_UNROLL                                                                     \
                    for (int i = 0; i <= j; i++)                                                   \
                        sum[i][v] = splat(diagonal[LMK_LANES * j + i]) * y + sum[i][v];            \
                }                                                                                  \
            }                                                                                      \
            ADD_MET(ROWS, VECTORS, (pairs + row)[LMK_LANES * j + (size_t)i], row + ROWS,           \
                    CHUNK_TOKENS)                                                                  \
        }                                                                                          \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                store(to + lanes * (size_t)i + LMK_LANES * v, sum[i][v]);                          \
        }                                                                                          \
    }

/// ROWS rows of  state = decay state + x^T y  for VECTORS 16 columns; x points at their dimensions
/// of token 0, y is [16][lanes]. No `decay`: as it is.
#define DEFINE_WRITE_TILE(NAME, ROWS, VECTORS)                                                     \
    static void NAME(const float *x, const float *y, size_t lanes, const float *decay,             \
                     float *state) {                                                               \
        f32x16 sum[ROWS][VECTORS];                                                                 \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                sum[i][v] = load(state + lanes * (size_t)i + LMK_LANES * v);                       \
        }                                                                                          \
        if (decay) {                                                                               \
            LMK_UNROLL                                                                             \
            for (int i = 0; i < ROWS; i++) {                                                       \
                LMK_UNROLL                                                                         \
                for (int v = 0; v < VECTORS; v++) sum[i][v] *= decay[i];                           \
            }                                                                                      \
        }                                                                                          \
        _Pragma("clang loop unroll_count(4)") for (size_t j = 0; j < CHUNK_TOKENS; j++) {          \
            f32x16 step[VECTORS];                                                                  \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++) step[v] = load(y + LMK_LANES * v);                   \
            LMK_UNROLL                                                                             \
            for (int i = 0; i < ROWS; i++) {                                                       \
                const f32x16 factor = splat(x[LMK_LANES * j + (size_t)i]);                         \
                LMK_UNROLL                                                                         \
                for (int v = 0; v < VECTORS; v++) sum[i][v] = factor * step[v] + sum[i][v];        \
            }                                                                                      \
            y += lanes;                                                                            \
        }                                                                                          \
        LMK_UNROLL                                                                                 \
        for (int i = 0; i < ROWS; i++) {                                                           \
            LMK_UNROLL                                                                             \
            for (int v = 0; v < VECTORS; v++)                                                      \
                store(state + lanes * (size_t)i + LMK_LANES * v, sum[i][v]);                       \
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

typedef void (*read_function)(const float *x, size_t panels, const float *state, size_t lanes,
                              size_t row, const float *pairs, const float *met,
                              const fetch_column *fetch, float *to);

/// to = x state + pairs met,  [16][lanes], for one slice. Uses up `panels` entries of `fetch` for
/// each tile and returns what follows them.
LMK_INLINE const fetch_column *read_state(const float *x, size_t panels, const float *state,
                                          size_t lanes, meeting met_by, const float *pairs,
                                          const float *met, const fetch_column *fetch, float *to) {
    const read_function whole = met_by == MEET_NONE      ? read_tile
                                : met_by == MEET_EARLIER ? read_tile_earlier
                                                         : read_tile_later,
                        half = met_by == MEET_NONE      ? read_half_tile
                               : met_by == MEET_EARLIER ? read_half_tile_earlier
                                                        : read_half_tile_later;
    const size_t columns = LMK_LANES * TILE_VECTORS;
    for (size_t column = 0; column < lanes; column += columns) {
        for (size_t row = 0; row < CHUNK_TOKENS; row += TILE_ROWS, fetch += panels) {
            (lanes - column >= columns ? whole : half)(x + LMK_LANES * row, panels, state + column,
                                                       lanes, row, pairs, met + column, fetch,
                                                       to + lanes * row + column);
        }
    }
    return fetch;
}

/// state = decay state + x^T y  for one slice; x is a chunk's panels, y [16][lanes].
LMK_INLINE void write_state(const float *x, size_t panels, const float *y, size_t lanes,
                            const float *decay, float *state) {
    const size_t columns = LMK_LANES * TILE_VECTORS;
    for (size_t column = 0; column < lanes; column += columns) {
        for (size_t row = 0; row < LMK_LANES * panels; row += TILE_ROWS) {
            (lanes - column >= columns ? write_tile : write_half_tile)(
                x + PANEL * (row / LMK_LANES) + row % LMK_LANES, y + column, lanes,
                decay ? decay + row : 0, state + lanes * row + column);
        }
    }
}

/// pairs[i][j] = sum over dimensions of x[i] y[j], [16][16]; y has its tokens in lanes.
static void multiply_pairs(const float *x, const float *y_transposed, size_t panels, float *pairs) {
    for (size_t row = 0; row < CHUNK_TOKENS; row += PAIR_ROWS) {
        f32x16 sum[PAIR_ROWS];
        LMK_UNROLL
        for (int i = 0; i < PAIR_ROWS; i++) sum[i] = splat(0);
        const float *panel = x + LMK_LANES * row, *y = y_transposed;
        for (size_t p = 0; p < panels; p++, panel += PANEL) {
            for (size_t d = 0; d < LMK_LANES; d++, y += LMK_LANES) {
                const f32x16 step = load(y);
                LMK_UNROLL
                for (int i = 0; i < PAIR_ROWS; i++)
                    sum[i] = splat(panel[LMK_LANES * i + d]) * step + sum[i];
            }
        }
        LMK_UNROLL
        for (int i = 0; i < PAIR_ROWS; i++) store(pairs + LMK_LANES * (row + (size_t)i), sum[i]);
    }
}
