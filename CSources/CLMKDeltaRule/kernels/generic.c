#include "tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "delta_rule.h"

const delta_rule_kernels delta_rule_kernels_generic = DELTA_RULE_KERNELS;

#include "lmk_end.h"
