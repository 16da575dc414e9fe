#include "product_tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "lmk_half.h"
#include "lmk_transpose.h"
#include "products.h"

const product_kernels product_kernels_neon = PRODUCT_KERNELS;

#include "lmk_end.h"

#endif
