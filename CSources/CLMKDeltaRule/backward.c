#include "lmk_delta_rule.h"

size_t lmk_delta_rule_backward_workspace_size(const lmk_delta_rule *rule) { return rule->tokens; }

lmk_status lmk_delta_rule_backward(const lmk_delta_rule *rule,
                                   const lmk_delta_rule_gradients *gradients, void *workspace,
                                   size_t workspace_size, lmk_error *error) {
    (void)rule, (void)gradients, (void)workspace, (void)workspace_size, (void)error;
    return LMK_CONFLICT;
}
