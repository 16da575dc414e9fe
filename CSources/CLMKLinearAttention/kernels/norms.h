// Normalisation of rows: see lmk_row_norm. Included inside a region.

/// Vectors of one round of a sum.
#define NORM_LANES 4

/// Sums BODY, an expression of `i` and `count`, over 0 ..< `end`: in NORM_LANES accumulators by
/// whole rounds, what is left in the first. A sum of products is written with `sum[lane]` as its
/// addend.
#define NORM_SUM(sum, end, ...)                                                                    \
    do {                                                                                           \
        for (int k = 0; k < NORM_LANES; k++) sum[k] = splat(0);                                    \
        size_t next = 0;                                                                           \
        for (; next + NORM_LANES * LMK_LANES <= (end); next += NORM_LANES * LMK_LANES) {           \
            LMK_UNROLL                                                                             \
            for (size_t lane = 0; lane < NORM_LANES; lane++) {                                     \
                const size_t i = next + LMK_LANES * lane, count = LMK_LANES;                       \
                sum[lane] = __VA_ARGS__;                                                           \
            }                                                                                      \
        }                                                                                          \
        for (; next + LMK_LANES <= (end); next += LMK_LANES) {                                     \
            const size_t lane = 0, i = next, count = LMK_LANES;                                    \
            sum[lane] = __VA_ARGS__;                                                               \
        }                                                                                          \
        if (next < (end)) {                                                                        \
            const size_t lane = 0, i = next, count = (end)-next;                                   \
            sum[lane] = __VA_ARGS__;                                                               \
        }                                                                                          \
    } while (0)

LMK_INLINE float norm_total(const f32x16 sum[NORM_LANES]) {
    return reduce_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

LMK_INLINE f32x16 norm_square_added(const void *row, lmk_dtype dtype, size_t i, size_t count,
                                    f32x16 to) {
    const f32x16 x = stage_load(row, dtype, i, count);
    return x * x + to;
}

LMK_INLINE f32x16 norm_product_added(const void *a, const void *b, lmk_dtype dtype, size_t i,
                                     size_t count, f32x16 to) {
    return stage_load(a, dtype, i, count) * stage_load(b, dtype, i, count) + to;
}

/// r of a row.
LMK_INLINE float norm_factor(const norm_job *job, const void *row, lmk_dtype dtype) {
    f32x16 sum[NORM_LANES];
    NORM_SUM(sum, job->norm->columns, norm_square_added(row, dtype, i, count, sum[lane]));
    const float mean = norm_total(sum) / job->divisor;
    const f32x16 root = __builtin_elementwise_sqrt(splat(mean + job->norm->epsilon));
    return 1.0f / root.x;
}

LMK_INLINE void l2_norm(const norm_job *job, size_t row, size_t rows, lmk_dtype dtype) {
    const lmk_row_norm n = *job->norm;
    stage_row at = stage_row_of(row, n.tokens, n.heads);
    for (size_t end = row + rows; row < end; row++, stage_next_row(&at, n.tokens, n.heads)) {
        const void *const x = stage_at(n.x, dtype, stage_row_place(at, n.x_strides));
        void *const y = stage_at(job->y, dtype, stage_row_place(at, job->y_strides));
        const float r = norm_factor(job, x, dtype);
        STAGE_EACH_VECTOR(0, n.columns,
                          { stage_store(y, dtype, i, stage_load(x, dtype, i, count) * r, count); });
    }
}

LMK_INLINE void l2_norm_back(const norm_job *job, size_t row, size_t rows, lmk_dtype dtype) {
    const lmk_row_norm n = *job->norm;
    const lmk_gated_rms_norm_gradients g = job->gradients;
    stage_row at = stage_row_of(row, n.tokens, n.heads);
    for (size_t end = row + rows; row < end; row++, stage_next_row(&at, n.tokens, n.heads)) {
        const void *const x = stage_at(n.x, dtype, stage_row_place(at, n.x_strides));
        const void *const dy = stage_at(g.dy, dtype, stage_row_place(at, g.dy_strides));
        void *const dx = stage_at(g.dx, dtype, stage_row_place(at, g.dx_strides));
        const float r = norm_factor(job, x, dtype);
        f32x16 sum[NORM_LANES];
        NORM_SUM(sum, n.columns, norm_product_added(x, dy, dtype, i, count, sum[lane]));
        const float along = r * r * norm_total(sum);
        STAGE_EACH_VECTOR(0, n.columns, {
            const f32x16 entry = stage_load(x, dtype, i, count);
            const f32x16 across = stage_load(dy, dtype, i, count) - along * entry;
            stage_store(dx, dtype, i, across * r, count);
        });
    }
}

LMK_INLINE f32x16 norm_silu(f32x16 x) { return x * vsigmoid(x); }

LMK_INLINE void gated_norm(const norm_job *job, size_t row, size_t rows, lmk_dtype dtype) {
    const lmk_row_norm n = *job->norm;
    const lmk_norm_gate gate = job->gate;
    stage_row at = stage_row_of(row, n.tokens, n.heads);
    for (size_t end = row + rows; row < end; row++, stage_next_row(&at, n.tokens, n.heads)) {
        const void *const x = stage_at(n.x, dtype, stage_row_place(at, n.x_strides));
        const void *const z = stage_at(gate.gate, dtype, stage_row_place(at, gate.gate_strides));
        void *const y = stage_at(job->y, dtype, stage_row_place(at, job->y_strides));
        const float r = norm_factor(job, x, dtype);
        STAGE_EACH_VECTOR(0, n.columns, {
            const f32x16 w = stage_load(gate.weight, LMK_FLOAT32, i, count);
            const f32x16 normal = stage_load(x, dtype, i, count) * r;
            const f32x16 open = norm_silu(stage_load(z, dtype, i, count));
            stage_store(y, dtype, i, normal * w * open, count);
        });
    }
}

/// t_j = dy_j w_j silu(gate_j)
LMK_INLINE f32x16 gated_upstream(const lmk_norm_gate *gate, const void *z, const void *dy,
                                 lmk_dtype dtype, size_t i, size_t count) {
    const f32x16 w = stage_load(gate->weight, LMK_FLOAT32, i, count);
    return stage_load(dy, dtype, i, count) * w * norm_silu(stage_load(z, dtype, i, count));
}

LMK_INLINE void gated_norm_back(const norm_job *job, size_t row, size_t rows, lmk_dtype dtype) {
    const lmk_row_norm n = *job->norm;
    const lmk_norm_gate gate = job->gate;
    const lmk_gated_rms_norm_gradients g = job->gradients;
    float *const weight_sums = job->weight_sums;
    stage_row at = stage_row_of(row, n.tokens, n.heads);
    for (size_t end = row + rows; row < end; row++, stage_next_row(&at, n.tokens, n.heads)) {
        const void *const x = stage_at(n.x, dtype, stage_row_place(at, n.x_strides));
        const void *const z = stage_at(gate.gate, dtype, stage_row_place(at, gate.gate_strides));
        const void *const dy = stage_at(g.dy, dtype, stage_row_place(at, g.dy_strides));
        void *const dx = stage_at(g.dx, dtype, stage_row_place(at, g.dx_strides));
        void *const dgate = stage_at(g.dgate, dtype, stage_row_place(at, g.dgate_strides));
        const float r = norm_factor(job, x, dtype);
        float along = 0;
        if (dx) {
            f32x16 sum[NORM_LANES];
            NORM_SUM(sum, n.columns,
                     stage_load(x, dtype, i, count) *
                             gated_upstream(&gate, z, dy, dtype, i, count) +
                         sum[lane]);
            along = r * r * norm_total(sum) / job->divisor;
        }
        STAGE_EACH_VECTOR(0, n.columns, {
            const f32x16 entry = stage_load(x, dtype, i, count);
            const f32x16 upstream = stage_load(dy, dtype, i, count);
            const f32x16 w = stage_load(gate.weight, LMK_FLOAT32, i, count);
            const f32x16 opening = stage_load(z, dtype, i, count);
            const f32x16 s = vsigmoid(opening);
            const f32x16 silu = opening * s;
            const f32x16 moment = upstream * (entry * r);
            if (dx) {
                const f32x16 through = upstream * w * silu;
                const f32x16 across = through - along * entry;
                stage_store(dx, dtype, i, across * r, count);
            }
            if (dgate) {
                const f32x16 slope = silu * (1.0f - s) + s;
                stage_store(dgate, dtype, i, moment * w * slope, count);
            }
            if (weight_sums) {
                const f32x16 before = stage_load(weight_sums, LMK_FLOAT32, i, count);
                stage_store(weight_sums, LMK_FLOAT32, i, moment * silu + before, count);
            }
        });
    }
}

/// A kernel over rows of each storage type.
#define ROW_KERNELS(kernel, job_type)                                                              \
    static void kernel##_f32(const job_type *job, size_t row, size_t rows) {                       \
        kernel(job, row, rows, LMK_FLOAT32);                                                       \
    }                                                                                              \
    static void kernel##_bf16(const job_type *job, size_t row, size_t rows) {                      \
        kernel(job, row, rows, LMK_BFLOAT16);                                                      \
    }                                                                                              \
    static void kernel##_f16(const job_type *job, size_t row, size_t rows) {                       \
        kernel(job, row, rows, LMK_FLOAT16);                                                       \
    }

ROW_KERNELS(l2_norm, norm_job)
ROW_KERNELS(l2_norm_back, norm_job)
ROW_KERNELS(gated_norm, norm_job)
ROW_KERNELS(gated_norm_back, norm_job)
