#include "product_tables.h"

#define LMK_TARGET_GENERIC
#include "lmk_begin.h"
#include "lmk_half.h"
#include "lmk_transpose.h"
#include "products.h"

const product_kernels product_kernels_generic = PRODUCT_KERNELS;

#include "lmk_end.h"
