// Two pieces of a sequence become one.
#include "kernels/tables.h"
#include "lmk_linear_problem.h"

lmk_status lmk_linear_attention_combine(size_t states, size_t key_dim, size_t value_dim,
                                        const lmk_linear_attention_piece *first,
                                        const lmk_linear_attention_piece *second,
                                        const lmk_linear_attention_piece *result,
                                        lmk_error *error) {
    size_t floats = states;
    if (!lmk_multiply_size(&floats, key_dim) || !lmk_multiply_size(&floats, value_dim) ||
        !lmk_multiply_size(&floats, sizeof(float)))
        return lmk_fail_overflow(error, "states");
    if (!second->decay || (result->decay && !first->decay)) return lmk_fail_null(error, "decay");
    const struct {
        const char *name;
        const float *first, *second, *result;
    } parts[] = {{"state", first->state, second->state, result->state},
                 {"normalizer", first->normalizer, second->normalizer, result->normalizer}};
    for (int i = 0; i < 2; i++) {
        if (parts[i].result && (!parts[i].first || !parts[i].second))
            return lmk_fail_null(error, parts[i].name);
    }
    const linear_attention_kernels *const kernels = lmk_linear_attention_kernels();
    const size_t rows = states * key_dim;
    if (result->state) {
        kernels->combine(second->decay, first->state, second->state, rows, value_dim,
                         result->state);
    }
    if (result->normalizer) {
        kernels->combine(second->decay, first->normalizer, second->normalizer, rows, 1,
                         result->normalizer);
    }
    for (size_t i = 0; result->decay && i < rows; i++)
        result->decay[i] = first->decay[i] * second->decay[i];
    return LMK_OK;
}
