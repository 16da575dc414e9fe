// Validation of a problem, and the target of a row.
#ifndef LMK_CROSS_ENTROPY_PROBLEM_H
#define LMK_CROSS_ENTROPY_PROBLEM_H

#include "lmk_check.h"
#include "lmk_cross_entropy.h"

/// Sizes and options: all that decides the workspace.
lmk_status lmk_cross_entropy_check_options(const lmk_cross_entropy *p, lmk_error *error);

/// Options, arrays, targets and class weights.
lmk_status lmk_cross_entropy_check_problem(const lmk_cross_entropy *p, lmk_error *error);

lmk_status lmk_cross_entropy_check_gradients(const lmk_cross_entropy *p,
                                             const lmk_cross_entropy_gradients *g,
                                             lmk_error *error);

/// Class of a row; -1 where it is ignored.
int32_t lmk_cross_entropy_target(const lmk_cross_entropy *p, size_t row);

#endif
