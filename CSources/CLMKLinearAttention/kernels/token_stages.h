// Everything the stages around linear attention compile once per instruction set, and its table.
// The including file has opened the region and included linear_attention.h, with its vectors and
// mathematics.
#include "stage_rows.h"
#include "recurrence.h"
#include "convolution.h"
#include "norms.h"
#include "features.h"
#include "feature_powers.h"

/// The functions of a kernel for each storage type.
#define EACH_DTYPE(kernel)                                                                         \
    { kernel##_f32, kernel##_bf16, kernel##_f16 }

/// In the order of lmk_features.
#define EACH_MAP(way)                                                                              \
    {                                                                                              \
        EACH_DTYPE(way##_identity), EACH_DTYPE(way##_elu), EACH_DTYPE(way##_relu),                 \
            EACH_DTYPE(way##_squared_relu), EACH_DTYPE(way##_softmax), EACH_DTYPE(way##_exp_pair), \
            EACH_DTYPE(way##_softmax_pair), EACH_DTYPE(way##_taylor), EACH_DTYPE(way##_focused),   \
            EACH_DTYPE(way##_cosine)                                                               \
    }

#define TOKEN_STAGE_KERNELS                                                                        \
    {                                                                                              \
        .recur = EACH_DTYPE(recur), .recur_back = EACH_DTYPE(recur_back), .carry = carry_states,   \
        .convolve = EACH_DTYPE(convolve), .convolve_back = EACH_DTYPE(convolve_back),              \
        .transpose_weights = transpose_weights, .widen = EACH_DTYPE(widen), .add = add_sums,       \
        .l2_norm = EACH_DTYPE(l2_norm), .l2_norm_back = EACH_DTYPE(l2_norm_back),                  \
        .gated_norm = EACH_DTYPE(gated_norm), .gated_norm_back = EACH_DTYPE(gated_norm_back),      \
        .features = EACH_MAP(map), .features_back = EACH_MAP(back),                                \
    }
