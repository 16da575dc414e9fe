#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AVX2
#include "lmk_begin.h"
#include "linear_attention.h"

const linear_attention_kernels linear_attention_kernels_avx2 = LINEAR_ATTENTION_KERNELS;

#include "lmk_end.h"

#endif
