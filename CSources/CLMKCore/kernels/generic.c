#include "tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "core.h"

const lmk_core_kernels core_kernels_generic = CORE_KERNELS;

#include "lmk_end.h"
