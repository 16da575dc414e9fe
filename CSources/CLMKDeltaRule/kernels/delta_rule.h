// Everything the delta rule compiles once per instruction set, and its table. The including file
// has opened the region.
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "lmk_token_rows.h"
#include "lmk_state_products.h"
#include "lmk_token_decay.h"
#include "sweep.h"
#include "prepare.h"
#include "recurrent.h"

#define DELTA_RULE_KERNELS                                                                         \
    { .import_state = import_state, .export_state = export_state, .advance = advance, }
