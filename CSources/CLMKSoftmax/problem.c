#include "problem.h"

#include <math.h>

lmk_status lmk_softmax_check_matrix(const char *name, const char *stride_name, const void *data,
                                    size_t rows, size_t columns, size_t stride, size_t size,
                                    lmk_error *error) {
    if (rows == 0 || columns == 0) return LMK_OK;
    if (stride < columns) return lmk_fail_size(error, stride_name, columns, stride);
    if (!lmk_size_fits(rows, stride, columns, size)) return lmk_fail_overflow(error, name);
    if (!data) return lmk_fail_null(error, name);
    return LMK_OK;
}

lmk_status lmk_softmax_check_dtype(lmk_dtype dtype, lmk_error *error) {
    if ((unsigned)dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", dtype);
    return LMK_OK;
}

lmk_status lmk_softmax_check_scale(float scale, lmk_error *error) {
    if (!isfinite(scale)) return lmk_fail_real(error, "scale", "finite", (double)scale);
    return LMK_OK;
}

/// Positions and columns are far below this, so that their sum with an offset fits.
#define OFFSET_LIMIT ((int64_t)1 << 62)

static lmk_status check_lengths(const lmk_softmax *s, lmk_error *error) {
    for (size_t row = 0; s->lengths && row < s->rows; row++) {
        if (s->lengths[row] < 0 || s->lengths[row] > (int64_t)s->columns) {
            return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                               .argument = "lengths",
                                               .expected = (int64_t)s->columns + 1,
                                               .actual = s->lengths[row],
                                               .index = (int64_t)row});
        }
    }
    return LMK_OK;
}

lmk_status lmk_softmax_check_kind(const lmk_softmax *s, lmk_error *error) {
    if ((unsigned)s->function > LMK_LOG_STABLE_MAX)
        return lmk_fail_range(error, "function", "a function of rows", s->function);
    if ((unsigned)s->algorithm > LMK_SOFTMAX_TWO_PASS)
        return lmk_fail_range(error, "algorithm", "an algorithm", s->algorithm);
    return lmk_softmax_check_dtype(s->dtype, error);
}

lmk_status lmk_softmax_check_options(const lmk_softmax *s, lmk_error *error) {
    lmk_status status = lmk_softmax_check_kind(s, error);
    if (status == LMK_OK) status = lmk_softmax_check_scale(s->scale, error);
    if (status != LMK_OK) return status;
    const int needs_columns = s->function == LMK_SOFTMAX || s->function == LMK_LOG_SOFTMAX ||
                              s->function == LMK_STABLE_MAX || s->function == LMK_LOG_STABLE_MAX;
    if (needs_columns && s->columns == 0) return lmk_fail_size(error, "columns", 1, 0);
    if (s->is_causal && (s->causal_offset > OFFSET_LIMIT || s->causal_offset < -OFFSET_LIMIT)) {
        return lmk_fail_range(error, "causal_offset", "from -2^62 to 2^62", s->causal_offset);
    }
    if (s->mask) {
        if (s->mask_rows == 0) return lmk_fail_size(error, "mask_rows", 1, 0);
        status = lmk_softmax_check_matrix("mask", "mask_stride", s->mask, s->mask_rows, s->columns,
                                          s->mask_stride, sizeof(float), error);
        if (status != LMK_OK) return status;
    }
    return check_lengths(s, error);
}

lmk_status lmk_softmax_check_x(const lmk_softmax *s, lmk_error *error) {
    return lmk_softmax_check_matrix("x", "x_stride", s->x, s->rows, s->columns, s->x_stride,
                                    lmk_dtype_size(s->dtype), error);
}
