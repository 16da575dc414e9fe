// One pass over columns of the state. Included inside a region.
//
// A state of `rows` rows is multiplied by its decay, gets what a group of steps writes, and is read
// for the next group: each element is loaded and stored once for two writes and up to four reads.
// Each sum is one chain of fused multiply-adds in ascending rows, whatever the number of vectors.

/// What is read for the next group: nothing, for u, or for o of its steps as well.
enum { READ_NONE = 0, READ_STEPS = 1, READ_FIRST = 2, READ_LAST = 4 };

typedef struct state_sweep {
    const float *from;
    float *to;
    /// Floats from row to row.
    size_t stride, rows;
    /// [rows]; `second` with a second write of each step.
    const float *write[GROUP_STEPS], *second[GROUP_STEPS], *read[GROUP_STEPS], *query[GROUP_STEPS];
    float fold;
    const float *fold_rows;
    /// What is written, [GROUP_STEPS][SLICE_COLUMNS].
    const float *u, *v;
    /// What is read: z, then y.
    float *carry;
} state_sweep;

#define DEFINE_SWEEP(NAME, VECTORS, FOLDING, SECOND, READS)                                        \
    static void NAME(const state_sweep *s) {                                                       \
        f32x16 u0[VECTORS], u1[VECTORS], v0[VECTORS], v1[VECTORS];                                 \
        f32x16 z0[VECTORS], z1[VECTORS], y0[VECTORS], y1[VECTORS];                                 \
        FOR_SWEEP(VECTORS) {                                                                       \
            u0[j] = load(s->u + LMK_LANES * j);                                                    \
            u1[j] = load(s->u + SLICE_COLUMNS + LMK_LANES * j);                                    \
            if (SECOND) {                                                                          \
                v0[j] = load(s->v + LMK_LANES * j);                                                \
                v1[j] = load(s->v + SLICE_COLUMNS + LMK_LANES * j);                                \
            }                                                                                      \
            z0[j] = z1[j] = y0[j] = y1[j] = splat(0);                                              \
        }                                                                                          \
        const float *from = s->from, *w0 = s->write[0], *w1 = s->write[1], *x0 = s->second[0],     \
                    *x1 = s->second[1], *r0 = s->read[0], *r1 = s->read[1], *q0 = s->query[0],     \
                    *q1 = s->query[1], *fold_rows = s->fold_rows;                                  \
        float *to = s->to;                                                                         \
        const size_t stride = s->stride;                                                           \
        const f32x16 fold = splat(s->fold);                                                        \
        const size_t rows = s->rows;                                                               \
        _Pragma("clang loop unroll_count(4)") for (size_t d = 0; d < rows; d++) {                  \
            /* Before anything is stored: the compiler would load them for each vector. */         \
            const f32x16 a0 = splat(w0[d]), a1 = splat(w1[d]);                                     \
            const f32x16 b0 = splat((SECOND) ? x0[d] : 0), b1 = splat((SECOND) ? x1[d] : 0);       \
            const f32x16 c0 = splat((READS)&READ_STEPS ? r0[d] : 0),                               \
                         c1 = splat((READS)&READ_STEPS ? r1[d] : 0),                               \
                         d0 = splat((READS)&READ_FIRST ? q0[d] : 0),                               \
                         d1 = splat((READS)&READ_LAST ? q1[d] : 0),                                \
                         row = splat((FOLDING) == FOLD_ROWS ? fold_rows[d] : 0);                   \
            FOR_SWEEP(VECTORS) {                                                                   \
                f32x16 x = load(from + LMK_LANES * j);                                             \
                if ((FOLDING) == FOLD_NUMBER) x = x * fold;                                        \
                if ((FOLDING) == FOLD_ROWS) x = x * row;                                           \
                x = u0[j] * a0 + x;                                                                \
                if (SECOND) x = v0[j] * b0 + x;                                                    \
                x = u1[j] * a1 + x;                                                                \
                if (SECOND) x = v1[j] * b1 + x;                                                    \
                store(to + LMK_LANES * j, x);                                                      \
                if ((READS)&READ_STEPS) {                                                          \
                    z0[j] = x * c0 + z0[j];                                                        \
                    z1[j] = x * c1 + z1[j];                                                        \
                }                                                                                  \
                if ((READS)&READ_FIRST) y0[j] = x * d0 + y0[j];                                    \
                if ((READS)&READ_LAST) y1[j] = x * d1 + y1[j];                                     \
            }                                                                                      \
            from += stride;                                                                        \
            to += stride;                                                                          \
        }                                                                                          \
        float *const carry = s->carry;                                                             \
        FOR_SWEEP(VECTORS) {                                                                       \
            if ((READS)&READ_STEPS) {                                                              \
                store(carry + LMK_LANES * j, z0[j]);                                               \
                store(carry + SLICE_COLUMNS + LMK_LANES * j, z1[j]);                               \
            }                                                                                      \
            if ((READS)&READ_FIRST) store(carry + 2 * SLICE_COLUMNS + LMK_LANES * j, y0[j]);       \
            if ((READS)&READ_LAST) store(carry + 3 * SLICE_COLUMNS + LMK_LANES * j, y1[j]);        \
        }                                                                                          \
    }

/// Every way of reading, for one way of folding.
#define DEFINE_SWEEPS(NAME, VECTORS, FOLDING, SECOND)                                              \
    DEFINE_SWEEP(NAME##_0, VECTORS, FOLDING, SECOND, READ_NONE)                                    \
    DEFINE_SWEEP(NAME##_1, VECTORS, FOLDING, SECOND, READ_STEPS)                                   \
    DEFINE_SWEEP(NAME##_3, VECTORS, FOLDING, SECOND, READ_STEPS | READ_FIRST)                      \
    DEFINE_SWEEP(NAME##_5, VECTORS, FOLDING, SECOND, READ_STEPS | READ_LAST)                       \
    DEFINE_SWEEP(NAME##_7, VECTORS, FOLDING, SECOND, READ_STEPS | READ_FIRST | READ_LAST)

#define SWEEPS_OF(NAME)                                                                            \
    { NAME##_0, NAME##_1, 0, NAME##_3, 0, NAME##_5, 0, NAME##_7 }

DEFINE_SWEEPS(sweep_1, 1, FOLD_NONE, 0)
DEFINE_SWEEPS(sweep_fold_1, 1, FOLD_NUMBER, 0)
DEFINE_SWEEPS(sweep_rows_1, 1, FOLD_ROWS, 0)
DEFINE_SWEEPS(sweep_both_1, 1, FOLD_ROWS, 1)
#if SWEEP_VECTORS == 2
DEFINE_SWEEPS(sweep_2, 2, FOLD_NONE, 0)
DEFINE_SWEEPS(sweep_fold_2, 2, FOLD_NUMBER, 0)
DEFINE_SWEEPS(sweep_rows_2, 2, FOLD_ROWS, 0)
DEFINE_SWEEPS(sweep_both_2, 2, FOLD_ROWS, 1)
#endif

/// By vectors, folding (with two writes of each step the last), and what is read.
static void (*const sweeps[SWEEP_VECTORS][4][8])(const state_sweep *) = {
    {SWEEPS_OF(sweep_1), SWEEPS_OF(sweep_fold_1), SWEEPS_OF(sweep_rows_1), SWEEPS_OF(sweep_both_1)},
#if SWEEP_VECTORS == 2
    {SWEEPS_OF(sweep_2), SWEEPS_OF(sweep_fold_2), SWEEPS_OF(sweep_rows_2), SWEEPS_OF(sweep_both_2)},
#endif
};

/// What a state is read for, before its first group: z, then y, of one vector of columns.
static void read_first(const state_sweep *s, int reads) {
    f32x16 sums[2 * GROUP_STEPS];
    LMK_UNROLL
    for (int i = 0; i < 2 * GROUP_STEPS; i++) sums[i] = splat(0);
    for (size_t d = 0; d < s->rows; d++) {
        const f32x16 x = load(s->from + s->stride * d);
        sums[0] = x * s->read[0][d] + sums[0];
        sums[1] = x * s->read[1][d] + sums[1];
        if (reads & READ_FIRST) sums[2] = x * s->query[0][d] + sums[2];
        if (reads & READ_LAST) sums[3] = x * s->query[1][d] + sums[3];
    }
    LMK_UNROLL
    for (int i = 0; i < 2 * GROUP_STEPS; i++) store(s->carry + SLICE_COLUMNS * i, sums[i]);
}
