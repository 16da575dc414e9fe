#include "tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "linear_attention.h"

const linear_attention_kernels linear_attention_kernels_neon = LINEAR_ATTENTION_KERNELS;

#include "lmk_end.h"

#endif
