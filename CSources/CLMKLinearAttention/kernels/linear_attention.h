// Everything linear attention compiles once per instruction set, and its table. The including file
// has opened the region.
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "lmk_token_rows.h"
#include "lmk_state_products.h"
#include "lmk_token_decay.h"
#include "lmk_state_slices.h"
#include "prepare.h"
#include "forward.h"
#include "recurrent.h"
#include "passes.h"
#include "lmk_decay_gradient.h"
#include "lmk_state_gradients.h"
#include "backward.h"

#define LINEAR_ATTENTION_KERNELS                                                                   \
    {                                                                                              \
        .import_state = import_panels, .export_state = export_panels, .advance = advance,          \
        .look = look, .step = step, .import_slices = import_slices,                                \
        .export_slices = export_slices, .pass = pass_tokens, .total_decay = total_decay,           \
        .combine = combine, .sweep = sweep, .retreat = retreat, .read_back = read_back,            \
        .join = join, .look_back = look_back, .write_back = write_back,                            \
    }
