#include "tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define LMK_TARGET_AMX
#include "lmk_begin.h"
#include "core.h"

const lmk_core_kernels core_kernels_amx = CORE_KERNELS;

#include "lmk_end.h"

#endif
