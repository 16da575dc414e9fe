#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AVX512
#include "lmk_begin.h"
#include "cross_entropy.h"

const cross_entropy_kernels cross_entropy_kernels_avx512 = CROSS_ENTROPY_KERNELS;

#include "lmk_end.h"

#endif
