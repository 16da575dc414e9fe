#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AVX2
#include "lmk_begin.h"
#include "delta_rule.h"

const delta_rule_kernels delta_rule_kernels_avx2 = DELTA_RULE_KERNELS;

#include "lmk_end.h"

#endif
