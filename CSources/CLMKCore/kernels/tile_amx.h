// Products of bfloat16 in tile registers (Advanced Matrix Extensions), and how rows are packed for
// them. Included inside a region.
//
// One instruction adds the product of 16 rows of 16 pairs of a and 16 pairs of 16 columns of b to
// 16 x 16 sums. Of eight registers, 1 KB each, four hold sums of 32 x 32, two hold a and two b. A
// sum goes on from what was there: c, or the 32 elements of depth before. So c may be cut anywhere,
// and the depth at multiples of 32, without changing a bit.

#define TILE_ROWS 32
#define ROW_UNIT 16
#define ROW_PANEL 32
#define TILE_COLUMNS 32
#define ELEMENTS_PER_STEP 2
#define STEP_UNIT 16
// Steps after which the next rows have their turn: a panel of b is then 32 KB, which L1 keeps
// while they pass by.
#define STEPS_AT_ONCE 256

#include "lmk_tile_registers.h"
#include "pack.h"

// ---- Strips

/// Rows and columns of the sums that four registers hold.
#define SIDE 32

/// Sums that are finished and not yet in c. They are stored as vectors while the next ones are
/// made: tile registers would store a row at a time and wait for lines of c that L1 does not have.
typedef struct pending_sums {
    const float *sums;
    float *c;
    size_t rows;
} pending_sums;

/// Stores at most `count` rows.
LMK_INLINE void store_pending(pending_sums *p, size_t c_stride, const __mmask16 masks[2],
                              size_t count) {
    count = count < p->rows ? count : p->rows;
    for (size_t i = 0; i < count; i++) {
        _mm512_mask_storeu_ps(p->c, masks[0], _mm512_load_ps(p->sums));
        _mm512_mask_storeu_ps(p->c + LMK_LANES, masks[1], _mm512_load_ps(p->sums + LMK_LANES));
        p->sums += SIDE;
        p->c += c_stride;
    }
    p->rows -= count;
}

/// Rows of c where sums begin; zero where c has none.
LMK_INLINE void load_sums(float *sums, const float *c, size_t c_stride, const __mmask16 masks[2],
                          size_t rows) {
    for (size_t i = 0; i < SIDE; i++, sums += SIDE) {
        const int is_there = i < rows;
        const float *const from = is_there ? c + c_stride * i : c;
        _mm512_store_ps(sums, _mm512_maskz_loadu_ps(is_there ? masks[0] : 0, from));
        _mm512_store_ps(sums + LMK_LANES,
                        _mm512_maskz_loadu_ps(is_there ? masks[1] : 0, from + LMK_LANES));
    }
}

/// What one call of `add_products` reads: bytes from one 16 steps to the next, and from row to row
/// (of b: from step to step).
typedef struct strip_place {
    const char *a, *b, *next;
    size_t a_step, a_stride, b_step, b_stride, next_step, steps;
    /// Pending rows to store with each 16 steps, so that all are in the end.
    size_t stored_rows;
} strip_place;

/// sums = a b over a place's steps, from zero or from what is there. Constants say whether the
/// second 16 rows and the second 16 columns are wanted. Rows of a are read with the hint that they
/// need not stay in L1: there they would take the place of b, which the next rows need.
LMK_INLINE void add_products(const strip_place *place, float *sums, int continues, int rows2,
                             int columns2, pending_sums *pending, size_t c_stride,
                             const __mmask16 masks[2]) {
    enum { BYTES = sizeof(float) * SIDE };
    float *const below = sums + SIDE * ROW_UNIT;
    if (continues) {
        _tile_loadd(0, sums, BYTES);
        if (columns2) _tile_loadd(1, sums + LMK_LANES, BYTES);
        if (rows2) _tile_loadd(2, below, BYTES);
        if (rows2 && columns2) _tile_loadd(3, below + LMK_LANES, BYTES);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const char *a = place->a, *b = place->b, *next = place->next;
    const size_t a_step = place->a_step, a_stride = place->a_stride, b_step = place->b_step,
                 b_stride = place->b_stride, next_step = place->next_step,
                 stored_rows = place->stored_rows;
    for (size_t step = 0; step < place->steps; step += STEP_UNIT) {
        _tile_loadd(6, b, b_stride);
        _tile_stream_loadd(4, a, a_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (rows2) {
            _tile_stream_loadd(5, a + ROW_UNIT * a_stride, a_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (columns2) {
            _tile_loadd(7, b + 64, b_stride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (rows2 && columns2) _tile_dpbf16ps(3, 5, 7);
        store_pending(pending, c_stride, masks, stored_rows);
        for (size_t at = 0; at < next_step; at += 64) __builtin_prefetch(next + at, 0, 2);
        a += a_step;
        b += b_step;
        next += next_step;
    }
    _tile_stored(0, sums, BYTES);
    if (columns2) _tile_stored(1, sums + LMK_LANES, BYTES);
    if (rows2) _tile_stored(2, below, BYTES);
    if (rows2 && columns2) _tile_stored(3, below + LMK_LANES, BYTES);
}

/// An lmk_strip_function.
static void multiply_strip(const lmk_tile *tile, size_t rows, size_t a_panel_bytes) {
    // 32 KB, which are written and read again where the depth takes several turns.
    _Alignas(64) float sums[LMK_PACK_GROUP][SIDE * SIDE];
    const size_t columns = tile->columns, depth = tile->depth, c_stride = tile->c_stride,
                 first_columns = columns < LMK_LANES ? columns : LMK_LANES;
    const __mmask16 masks[2] = {(__mmask16)((1u << first_columns) - 1u),
                                (__mmask16)((1u << (columns - first_columns)) - 1u)};
    const int columns2 = columns > LMK_LANES;
    strip_place place = {.a_step = 4 * STEP_UNIT * tile->a.stride,
                         .a_stride = 4 * tile->a.lane_stride,
                         .b_step = 4 * STEP_UNIT * tile->b.stride,
                         .b_stride = 4 * tile->b.stride,
                         .next = tile->next,
                         .next_step = STEP_UNIT * tile->next_stride};
    pending_sums pending = {.rows = 0};
    for (size_t step = 0; step < depth; step += STEPS_AT_ONCE) {
        const int is_last = depth - step <= STEPS_AT_ONCE;
        place.steps = is_last ? depth - step : STEPS_AT_ONCE;
        place.b = (const char *)tile->b.data + place.b_stride * step;
        place.stored_rows = (STEP_UNIT * SIDE + place.steps - 1) / place.steps;
        const int continues = step > 0 || tile->accumulate;
        for (size_t row = 0, i = 0; row < rows; row += SIDE, i++) {
            const size_t height = rows - row < SIDE ? rows - row : SIDE;
            float *const c = tile->c + c_stride * row;
            place.a = (const char *)tile->a.data + a_panel_bytes * i + 4 * tile->a.stride * step;
            if (step == 0 && continues) load_sums(sums[i], c, c_stride, masks, height);
#define ADD(ROWS2, COLUMNS2)                                                                       \
    add_products(&place, sums[i], continues, ROWS2, COLUMNS2, &pending, c_stride, masks)
            if (height > ROW_UNIT && columns2) ADD(1, 1);
            else if (columns2) ADD(0, 1);
            else if (height > ROW_UNIT) ADD(1, 0);
            else ADD(0, 0);
#undef ADD
            place.next += place.next_step * (place.steps / STEP_UNIT);
            if (is_last) pending = (pending_sums){sums[i], c, height};
        }
    }
    store_pending(&pending, c_stride, masks, SIDE);
}

// ---- Rows: [16 steps][32 rows][16 steps], so that a register is 16 rows of 64 bytes in a row.

#define ROW_FLOATS STEP_UNIT
#define GROUP_FLOATS ((size_t)ROW_PANEL * ROW_FLOATS)

/// Rows of a panel that registers read, from `lane` on: those that there are, made up to whole
/// registers.
LMK_INLINE size_t packed_rows(const lmk_operand *x, size_t lane) {
    return x->lanes - lane > ROW_UNIT ? ROW_PANEL : ROW_UNIT;
}

/// The depth is contiguous: 64 bytes of a row are copied together.
LMK_INLINE void pack_rows_copied(float *panel, const lmk_operand *operand, size_t lane, size_t step,
                                 size_t steps) {
    enum { ROWS = 8 };
    const lmk_operand x = *operand;
    const size_t present = x.lanes - lane, next_rows = 2 * x.stride * ROWS;
    for (size_t row = 0; row < packed_rows(&x, lane); row += ROWS) {
        for (size_t k = 0; k < steps; k += STEP_UNIT) {
            const size_t at = (step + k) * ELEMENTS_PER_STEP, count = elements_from(at, x.depth);
            float *const to = panel + k / STEP_UNIT * GROUP_FLOATS + row * ROW_FLOATS;
            const char *from = (const char *)x.data + 2 * (x.stride * (lane + row) + at);
            if (!x.index && row + ROWS <= present && count >= STEP_UNIT * ELEMENTS_PER_STEP) {
                LMK_UNROLL
                for (size_t i = 0; i < ROWS; i++, from += 2 * x.stride) {
                    __builtin_prefetch(from + next_rows);
                    store(to + i * ROW_FLOATS, *(const f32x16_of_halves *)(const void *)from);
                }
                continue;
            }
            for (size_t i = 0; i < ROWS; i++, from += 2 * x.stride) {
                const int is_there = row + i < present && count > 0;
                if (is_there && x.index)
                    from = (const char *)x.data + 2 * (x.stride * x.index[lane + row + i] + at);
                store(to + i * ROW_FLOATS,
                      is_there ? load_steps(from, LMK_BFLOAT16, count) : splat(0));
            }
        }
    }
}

/// Rows are contiguous: 16 of 16 steps are transposed at a time.
LMK_INLINE void pack_rows_transposed(float *panel, const lmk_operand *operand, size_t lane,
                                     size_t step, size_t steps) {
    const lmk_operand x = *operand;
    const size_t row_bytes = 2 * x.stride;
    for (size_t k = 0; k < steps; k += TRANSPOSE_LANES) {
        for (size_t row = 0; row < packed_rows(&x, lane); row += ROW_UNIT) {
            f32x16 pairs[TRANSPOSE_LANES];
            LMK_UNROLL
            for (size_t i = 0; i < TRANSPOSE_LANES; i++) {
                const size_t at = (step + k + i) * ELEMENTS_PER_STEP;
                pairs[i] = splat(0);
                if (at >= x.depth) continue;
                const char *const lanes = (const char *)x.data + 2 * (lane + row), *next = 0;
                const char *const from = lanes + row_bytes * (x.index ? x.index[at] : at);
                if (at + 1 < x.depth)
                    next = lanes + row_bytes * (x.index ? x.index[at + 1] : at + 1);
                pairs[i] = load_lanes(from, next, LMK_BFLOAT16, x.lanes - lane - row);
            }
            transpose_lanes(pairs, TRANSPOSE_LANES,
                            panel + k / STEP_UNIT * GROUP_FLOATS + row * ROW_FLOATS + k % STEP_UNIT,
                            ROW_FLOATS);
        }
    }
}

static void pack_rows(void *to, size_t width, const lmk_operand *x, const size_t *lanes,
                      size_t panels, size_t step, size_t steps) {
    for (size_t i = 0; i < panels; i++) {
        float *const panel = (float *)to + i * width * steps;
        if (x->depth_contiguous) pack_rows_copied(panel, x, lanes[i], step, steps);
        else pack_rows_transposed(panel, x, lanes[i], step, steps);
    }
}
