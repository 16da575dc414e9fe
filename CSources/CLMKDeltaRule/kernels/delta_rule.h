// Everything the delta rule compiles once per instruction set, and its table. The including file
// has opened the region.
#include "lmk_half.h"
#include "lmk_math.h"
#include "lmk_transpose.h"
#include "lmk_token_rows.h"
#include "lmk_state_products.h"
#include "lmk_token_decay.h"
#include "lmk_state_slices.h"
#include "sweep.h"
#include "steps.h"
#include "prepare.h"
#include "recurrent.h"
#include "lmk_decay_gradient.h"
#include "lmk_state_gradients.h"
#include "chunk.h"
#include "backward.h"

#define DELTA_RULE_KERNELS                                                                         \
    {                                                                                              \
        .import_state = import_slices, .export_state = export_slices, .advance = advance,          \
        .step = step, .import_panels = import_panels, .export_panels = export_panels,              \
        .advance_chunk = advance_chunk, .transpose = transpose_slices, .sweep = sweep_chunk,       \
        .retreat = retreat,                                                                        \
    }
