#include "tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "linear_attention.h"

const linear_attention_kernels linear_attention_kernels_generic = LINEAR_ATTENTION_KERNELS;

#include "lmk_end.h"
