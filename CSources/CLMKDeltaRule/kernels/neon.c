#include "tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "delta_rule.h"

const delta_rule_kernels delta_rule_kernels_neon = DELTA_RULE_KERNELS;

#include "lmk_end.h"

#endif
