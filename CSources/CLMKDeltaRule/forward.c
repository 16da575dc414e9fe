#include "lmk_delta_rule.h"

size_t lmk_delta_rule_workspace_size(const lmk_delta_rule *rule) { return rule->tokens; }

lmk_status lmk_delta_rule_forward(const lmk_delta_rule *rule, const lmk_delta_rule_results *results,
                                  void *workspace, size_t workspace_size, lmk_error *error) {
    (void)rule, (void)results, (void)workspace, (void)workspace_size, (void)error;
    return LMK_CONFLICT;
}
