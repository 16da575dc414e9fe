#include "product_tables.h"
#include "self_reference_tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "products.h"
#include "self_reference.h"

const product_kernels product_kernels_generic = PRODUCT_KERNELS;
const self_reference_kernels self_reference_kernels_generic = SELF_REFERENCE_KERNELS;

#include "lmk_end.h"
