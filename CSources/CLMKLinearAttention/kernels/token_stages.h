// Everything the stages around linear attention compile once per instruction set, and its table.
// The including file has opened the region and included linear_attention.h, with its vectors and
// mathematics.
#include "stage_rows.h"
#include "recurrence.h"

#define TOKEN_STAGE_KERNELS                                                                        \
    {                                                                                              \
        .recur = {recur_f32, recur_bf16, recur_f16},                                               \
        .recur_back = {recur_back_f32, recur_back_bf16, recur_back_f16}, .carry = carry_states,    \
    }
