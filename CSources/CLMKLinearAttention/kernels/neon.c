#include "tables.h"
#include "stage_tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "linear_attention.h"
#include "token_stages.h"

const linear_attention_kernels linear_attention_kernels_neon = LINEAR_ATTENTION_KERNELS;
const token_stage_kernels token_stage_kernels_neon = TOKEN_STAGE_KERNELS;

#include "lmk_end.h"

#endif
