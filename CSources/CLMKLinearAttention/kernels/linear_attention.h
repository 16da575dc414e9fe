// Everything linear attention compiles once per instruction set, and its table. The including file
// has opened the region.
#include "lmk_half.h"
#include "lmk_math.h"

#define LINEAR_ATTENTION_KERNELS {0}
