#include "stage_problem.h"

lmk_status lmk_stage_check_dtype(lmk_dtype dtype, lmk_error *error) {
    if ((unsigned)dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", dtype);
    return LMK_OK;
}

typedef struct dimension {
    const char *name;
    size_t count, stride;
} dimension;

lmk_status lmk_stage_check_tensor(stage_name name, const void *data, stage_extents extents,
                                  lmk_token_strides strides, size_t size, lmk_error *error) {
    if (extents.batch == 0 || extents.tokens == 0 || extents.heads == 0 || extents.columns == 0)
        return LMK_OK;
    dimension dimensions[3] = {{name.head, extents.heads, strides.head},
                               {name.token, extents.tokens, strides.token},
                               {name.batch, extents.batch, strides.batch}};
    // From the smallest stride to the largest, each steps over all that the ones before reach.
    for (int i = 1; i < 3; i++) {
        for (int j = i; j > 0 && dimensions[j].stride < dimensions[j - 1].stride; j--) {
            const dimension d = dimensions[j];
            dimensions[j] = dimensions[j - 1];
            dimensions[j - 1] = d;
        }
    }
    size_t reach = extents.columns;
    for (int i = 0; i < 3; i++) {
        const dimension d = dimensions[i];
        if (d.count <= 1) continue;
        if (d.stride < reach) return lmk_fail_size(error, d.name, reach, d.stride);
        if (!lmk_size_fits(d.count - 1, d.stride, reach, size))
            return lmk_fail_overflow(error, name.data);
        reach += (d.count - 1) * d.stride;
    }
    if (!lmk_size_fits(1, reach, 0, size)) return lmk_fail_overflow(error, name.data);
    if (!data) return lmk_fail_null(error, name.data);
    return LMK_OK;
}

lmk_status lmk_stage_check_dense(const char *name, const void *data, size_t rows, size_t columns,
                                 int is_optional, lmk_error *error) {
    if (is_optional && !data) return LMK_OK;
    if (!lmk_size_fits(rows, columns, 0, sizeof(float))) return lmk_fail_overflow(error, name);
    if (rows > 0 && columns > 0 && !data) return lmk_fail_null(error, name);
    return LMK_OK;
}

static lmk_status fail_offset(lmk_error *error, const char *allowed, int64_t actual, size_t index) {
    return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                       .argument = "offsets",
                                       .allowed = allowed,
                                       .actual = actual,
                                       .index = (int64_t)index});
}

lmk_status lmk_stage_check_offsets(size_t batch, size_t tokens, const int64_t *offsets,
                                   size_t sequences, lmk_error *error) {
    size_t rows = batch;
    if (!lmk_multiply_size(&rows, tokens)) return lmk_fail_overflow(error, "tokens");
    if (!offsets) return LMK_OK;
    if (batch != 1) return lmk_fail_conflict(error, "offsets", "only with batch 1");
    if (offsets[0] != 0) return fail_offset(error, "0", offsets[0], 0);
    for (size_t n = 0; n < sequences; n++) {
        if (offsets[n + 1] < offsets[n])
            return fail_offset(error, "not below the one before", offsets[n + 1], n + 1);
    }
    if (offsets[sequences] != (int64_t)tokens)
        return fail_offset(error, "the number of tokens", offsets[sequences], sequences);
    return LMK_OK;
}

lmk_status lmk_stage_check_workspace(const void *workspace, size_t size, size_t needed,
                                     lmk_error *error) {
    if (size < needed) return lmk_fail_size(error, "workspace", needed, size);
    if (needed > 0 && !workspace) return lmk_fail_null(error, "workspace");
    return LMK_OK;
}

size_t lmk_stage_sequence_of(const stage_sequences *s, size_t row) {
    if (!s->offsets) return row / s->tokens;
    // The last that begins at or before the row, which is the one that is not empty.
    size_t low = 0, high = s->count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if ((size_t)s->offsets[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}
