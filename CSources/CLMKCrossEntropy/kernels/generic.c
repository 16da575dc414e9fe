#include "tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "cross_entropy.h"

const cross_entropy_kernels cross_entropy_kernels_generic = CROSS_ENTROPY_KERNELS;

#include "lmk_end.h"
