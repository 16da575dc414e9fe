#include "tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "core.h"

const lmk_core_kernels core_kernels_neon = CORE_KERNELS;

#include "lmk_end.h"

#endif
