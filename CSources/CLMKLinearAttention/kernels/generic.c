#include "tables.h"
#include "stage_tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "linear_attention.h"
#include "token_stages.h"

const linear_attention_kernels linear_attention_kernels_generic = LINEAR_ATTENTION_KERNELS;
const token_stage_kernels token_stage_kernels_generic = TOKEN_STAGE_KERNELS;

#include "lmk_end.h"
