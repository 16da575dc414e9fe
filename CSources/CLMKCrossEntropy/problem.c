#include "problem.h"

#include <math.h>

static int64_t stored_target(const lmk_cross_entropy *p, size_t at) {
    return p->target_type == LMK_TARGET_INT32 ? ((const int32_t *)p->targets)[at]
                                              : ((const int64_t *)p->targets)[at];
}

int32_t lmk_cross_entropy_target(const lmk_cross_entropy *p, size_t row) {
    size_t at = row;
    if (p->target_shift > 0) {
        if (row % p->tokens_per_sequence + p->target_shift >= p->tokens_per_sequence) return -1;
        at += p->target_shift;
    }
    const int64_t target = stored_target(p, at);
    return target == p->ignore_index ? -1 : (int32_t)target;
}

static lmk_status check_matrix(const char *name, const char *stride_name, const void *data,
                               size_t rows, size_t columns, size_t stride, lmk_error *error) {
    if (stride < columns) return lmk_fail_size(error, stride_name, columns, stride);
    if (!lmk_size_fits(rows, stride, columns, sizeof(float))) return lmk_fail_overflow(error, name);
    if (rows > 0 && !data) return lmk_fail_null(error, name);
    return LMK_OK;
}

lmk_status lmk_cross_entropy_check_options(const lmk_cross_entropy *p, lmk_error *error) {
    if (p->rows > UINT32_MAX)
        return lmk_fail_range(error, "rows", "at most 2^32 - 1", (int64_t)p->rows);
    if (p->features == 0) return lmk_fail_size(error, "features", 1, 0);
    if (p->vocabulary == 0) return lmk_fail_size(error, "vocabulary", 1, 0);
    if (p->vocabulary > INT32_MAX)
        return lmk_fail_range(error, "vocabulary", "at most 2^31 - 1", (int64_t)p->vocabulary);
    if ((unsigned)p->target_type > LMK_TARGET_INT32) {
        return lmk_fail_range(error, "target_type", "int64 or int32", p->target_type);
    }
    if ((unsigned)p->reduction > LMK_REDUCTION_SUM) {
        return lmk_fail_range(error, "reduction", "none, mean or sum", p->reduction);
    }
    if (!(p->softcap >= 0 && isfinite(p->softcap))) {
        return lmk_fail_real(error, "softcap", "finite and above 0, or 0 for none", p->softcap);
    }
    if (!isfinite(p->logit_scale) || p->logit_scale == 0) {
        return lmk_fail_real(error, "logit_scale", "finite and not 0", p->logit_scale);
    }
    if (!(p->label_smoothing >= 0 && p->label_smoothing <= 1)) {
        return lmk_fail_real(error, "label_smoothing", "from 0 to 1", p->label_smoothing);
    }
    if (!(p->z_loss >= 0 && isfinite(p->z_loss)))
        return lmk_fail_real(error, "z_loss", "finite and at least 0", p->z_loss);
    if (p->target_shift > 0) {
        if (p->tokens_per_sequence == 0) return lmk_fail_size(error, "tokens_per_sequence", 1, 0);
        if (p->rows % p->tokens_per_sequence != 0) {
            return lmk_fail_range(error, "tokens_per_sequence", "a divisor of rows",
                                  (int64_t)p->tokens_per_sequence);
        }
    }
    return LMK_OK;
}

lmk_status lmk_cross_entropy_check_problem(const lmk_cross_entropy *p, lmk_error *error) {
    lmk_status status = lmk_cross_entropy_check_options(p, error);
    if (status != LMK_OK) return status;
    status = check_matrix("hidden", "hidden_stride", p->hidden, p->rows, p->features,
                          p->hidden_stride, error);
    if (status != LMK_OK) return status;
    status =
        check_matrix("classifier", "classifier_stride", p->classifier,
                     p->rows > 0 ? p->vocabulary : 0, p->features, p->classifier_stride, error);
    if (status != LMK_OK) return status;
    if (p->rows > 0 && !p->targets) return lmk_fail_null(error, "targets");
    for (size_t row = 0; row < p->rows; row++) {
        const int64_t target = stored_target(p, row);
        if (target == p->ignore_index || (target >= 0 && target < (int64_t)p->vocabulary)) continue;
        return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                           .argument = "targets",
                                           .expected = (int64_t)p->vocabulary,
                                           .actual = target,
                                           .index = (int64_t)row});
    }
    for (size_t j = 0; p->class_weights && j < p->vocabulary; j++) {
        const float weight = p->class_weights[j];
        if (weight >= 0 && isfinite(weight)) continue;
        lmk_error what = {.status = LMK_BAD_ENTRY,
                          .argument = "class_weights",
                          .allowed = "finite and at least 0",
                          .index = (int64_t)j,
                          .real = weight,
                          .is_real = 1};
        return lmk_fail(error, what);
    }
    return LMK_OK;
}

lmk_status lmk_cross_entropy_check_gradients(const lmk_cross_entropy *p,
                                             const lmk_cross_entropy_gradients *g,
                                             lmk_error *error) {
    const int has_other = g->log_sum_exp_gradients || g->entropy_gradients;
    if (p->reduction == LMK_REDUCTION_NONE && !g->loss_gradients && !has_other) {
        return lmk_fail_conflict(error, "loss_gradients", "needed when the reduction is none");
    }
    if (p->reduction != LMK_REDUCTION_NONE && g->loss_gradients) {
        return lmk_fail_conflict(error, "loss_gradients",
                                 "only for the reduction none; mean and sum take loss_gradient");
    }
    lmk_status status = LMK_OK;
    if (g->hidden) {
        status = check_matrix("hidden_gradient", "hidden_gradient_stride", g->hidden, p->rows,
                              p->features, g->hidden_stride, error);
    }
    if (status == LMK_OK && g->classifier) {
        status = check_matrix("classifier_gradient", "classifier_gradient_stride", g->classifier,
                              p->vocabulary, p->features, g->classifier_stride, error);
    }
    return status;
}
