#include "product_tables.h"
#include "self_reference_tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define LMK_TARGET_NEON
#include "lmk_begin.h"
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "products.h"
#include "self_reference.h"

const product_kernels product_kernels_neon = PRODUCT_KERNELS;
const self_reference_kernels self_reference_kernels_neon = SELF_REFERENCE_KERNELS;

#include "lmk_end.h"

#endif
