// Everything cross-entropy compiles once per instruction set, and its table. The including file has
// opened the region.
#include "lmk_math.h"
#include "logits.h"
#include "statistics.h"
#include "gradient.h"

#define CROSS_ENTROPY_KERNELS                                                                      \
    {                                                                                              \
        .take_in = take_in, .finish = finish, .gradient = gradient, .log_sum_exp = log_sum_exp,    \
        .target_probabilities = target_probabilities,                                              \
    }
