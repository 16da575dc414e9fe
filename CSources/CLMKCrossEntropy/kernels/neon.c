#include "tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "cross_entropy.h"

const cross_entropy_kernels cross_entropy_kernels_neon = CROSS_ENTROPY_KERNELS;

#include "lmk_end.h"

#endif
