// Validation of the softmax family.
#ifndef LMK_SOFTMAX_PROBLEM_H
#define LMK_SOFTMAX_PROBLEM_H

#include "lmk_check.h"
#include "lmk_softmax.h"

/// A matrix [rows, columns] with rows `stride` elements apart; `stride_name` null: dense.
lmk_status lmk_softmax_check_matrix(const char *name, const char *stride_name, const void *data,
                                    size_t rows, size_t columns, size_t stride, size_t size,
                                    lmk_error *error);

lmk_status lmk_softmax_check_dtype(lmk_dtype dtype, lmk_error *error);

lmk_status lmk_softmax_check_scale(float scale, lmk_error *error);

/// Function, algorithm and storage type: what decides the workspace, besides sizes and threads.
lmk_status lmk_softmax_check_kind(const lmk_softmax *softmax, lmk_error *error);

/// Everything but x and the outputs.
lmk_status lmk_softmax_check_options(const lmk_softmax *softmax, lmk_error *error);

lmk_status lmk_softmax_check_x(const lmk_softmax *softmax, lmk_error *error);

#endif
