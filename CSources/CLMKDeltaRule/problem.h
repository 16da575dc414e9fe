// Validation that the entry points of the delta rule share, and where each head lies.
#ifndef LMK_DELTA_RULE_PROBLEM_H
#define LMK_DELTA_RULE_PROBLEM_H

#include "kernels/tables.h"
#include "lmk_linear_plan.h"

const delta_rule_kernels *lmk_delta_rule_kernels(void);

/// The rule as far as linear attention has it too: sizes, tokens, q and the decay.
lmk_linear_attention lmk_delta_rule_view(const lmk_delta_rule *rule);

/// What forward and backward need alike. `reads` is whether there are queries.
lmk_status lmk_delta_rule_check(const lmk_delta_rule *rule, int reads, lmk_error *error);

/// [batch, tokens * steps, heads, width] at these strides, without two rows on one another; steps
/// is 1 for a tensor of tokens.
lmk_status lmk_delta_rule_check_rows(const lmk_delta_rule *rule, tensor_names names,
                                     const void *data, lmk_token_strides strides, size_t steps,
                                     size_t heads, size_t width, size_t size, lmk_error *error);

/// Elements from the start of such a tensor to a head's first row of a sequence.
size_t lmk_delta_rule_offset(const lmk_delta_rule *rule, lmk_token_strides strides, size_t steps,
                             size_t sequence, size_t head);

/// A head with `columns` values from `column` on; o is that of the results, if any.
delta_head lmk_delta_head(const lmk_delta_rule *rule, const lmk_delta_rule_results *results,
                          size_t sequence, size_t head, size_t column, size_t columns);

/// Lays out a worker's memory for `columns` columns; without memory only counts. Returns the floats
/// that they take.
size_t lmk_delta_memory_layout(const lmk_delta_rule *rule, size_t columns, float *memory,
                               delta_memory *to);

#endif
