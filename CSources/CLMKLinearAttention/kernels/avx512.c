#include "tables.h"
#include "stage_tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AVX512
#include "lmk_begin.h"
#include "linear_attention.h"
#include "token_stages.h"

const linear_attention_kernels linear_attention_kernels_avx512 = LINEAR_ATTENTION_KERNELS;
const token_stage_kernels token_stage_kernels_avx512 = TOKEN_STAGE_KERNELS;

#include "lmk_end.h"

#endif
