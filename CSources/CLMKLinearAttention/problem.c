#include "kernels/tables.h"
#include "lmk_linear_problem.h"

#include <math.h>

const linear_attention_kernels *lmk_linear_attention_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &linear_attention_kernels_avx512;
    case LMK_ISA_AVX2: return &linear_attention_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &linear_attention_kernels_neon;
#endif
    default: return &linear_attention_kernels_generic;
    }
}

lmk_status lmk_linear_attention_check_rows(const lmk_linear_attention *a, tensor_names names,
                                           const void *data, lmk_token_strides strides,
                                           size_t heads, size_t width, size_t size,
                                           lmk_error *error) {
    if (a->batch == 0 || a->tokens == 0) return LMK_OK;
    struct {
        const char *name;
        size_t stride, count;
    } axes[3] = {{names.head_stride, strides.head, heads},
                 {names.token_stride, strides.token, a->tokens},
                 {names.batch_stride, strides.batch, a->batch}},
      axis;
    // Ascending by stride, those of one row apart last: they address nothing.
#define COMES_BEFORE(x, y) ((x).count > 1 && ((y).count <= 1 || (x).stride < (y).stride))
    for (int i = 1; i < 3; i++) {
        for (int j = i; j > 0 && COMES_BEFORE(axes[j], axes[j - 1]); j--) {
            axis = axes[j];
            axes[j] = axes[j - 1];
            axes[j - 1] = axis;
        }
    }
    size_t span = width;
    for (int i = 0; i < 3 && axes[i].count > 1; i++) {
        if (axes[i].stride < span) return lmk_fail_size(error, axes[i].name, span, axes[i].stride);
        if (!lmk_size_fits(axes[i].count, axes[i].stride, span, size))
            return lmk_fail_overflow(error, names.data);
        span += axes[i].stride * (axes[i].count - 1);
    }
    if (!data) return lmk_fail_null(error, names.data);
    return LMK_OK;
}

static lmk_status check_sizes(const lmk_linear_attention *a, lmk_error *error) {
    if (a->heads == 0) return lmk_fail_size(error, "heads", 1, 0);
    if (a->key_heads == 0) return lmk_fail_size(error, "key_heads", 1, 0);
    if (a->heads % a->key_heads != 0)
        return lmk_fail_range(error, "key_heads", "a divisor of heads", (int64_t)a->key_heads);
    if (a->key_dim == 0 || a->key_dim > LMK_LINEAR_ATTENTION_DIM)
        return lmk_fail_range(error, "key_dim", "from 1 to 512", (int64_t)a->key_dim);
    if (a->value_dim == 0 || a->value_dim > LMK_LINEAR_ATTENTION_DIM)
        return lmk_fail_range(error, "value_dim", "from 1 to 512", (int64_t)a->value_dim);
    // Bytes of all states, and of a few numbers for each.
    size_t bytes = sizeof(float) * a->key_dim * (a->value_dim + 4);
    if (!lmk_multiply_size(&bytes, a->heads) || !lmk_multiply_size(&bytes, sequences_of(a)))
        return lmk_fail_overflow(error, a->offsets ? "sequences" : "batch");
    return LMK_OK;
}

static lmk_status check_offsets(const lmk_linear_attention *a, lmk_error *error) {
    if (!a->offsets) return LMK_OK;
    if (a->batch != 1) {
        return lmk_fail_range(error, "batch", "1 for packed sequences", (int64_t)a->batch);
    }
    const int64_t tokens = (int64_t)a->tokens;
    for (size_t n = 0; n <= a->sequences; n++) {
        const int64_t least = n == 0 ? 0 : a->offsets[n - 1];
        const int64_t most = n == 0 ? 0 : tokens;
        const int is_last = n == a->sequences;
        if (a->offsets[n] < least || a->offsets[n] > most || (is_last && a->offsets[n] != tokens)) {
            return lmk_fail(error, (lmk_error){.status = LMK_BAD_ENTRY,
                                               .argument = "offsets",
                                               .expected = (is_last ? tokens : most) + 1,
                                               .actual = a->offsets[n],
                                               .index = (int64_t)n});
        }
    }
    return LMK_OK;
}

static lmk_status check_options(const lmk_linear_attention *a, lmk_error *error) {
    if ((unsigned)a->form > LMK_LINEAR_ATTENTION_CHUNKED)
        return lmk_fail_range(error, "form", "a form", a->form);
    if ((unsigned)a->dtype > LMK_FLOAT16)
        return lmk_fail_range(error, "dtype", "a storage type", a->dtype);
    if ((unsigned)a->decay > LMK_DECAY_KEY)
        return lmk_fail_range(error, "decay", "a kind of decay", a->decay);
    if (!isfinite(a->scale)) return lmk_fail_real(error, "scale", "finite", (double)a->scale);
    if (a->has_unit_length && !(a->epsilon >= 0 && isfinite(a->epsilon)))
        return lmk_fail_real(error, "epsilon", "finite, at least 0", (double)a->epsilon);
    if (a->initial_normalizer && !a->is_normalized)
        return lmk_fail_conflict(error, "initial_normalizer", "only with a normaliser");
    if (!a->is_bidirectional) return LMK_OK;
    if (a->decay != LMK_DECAY_NONE)
        return lmk_fail_conflict(error, "decay", "none in the bidirectional form");
    if (a->bonus) return lmk_fail_conflict(error, "bonus", "none in the bidirectional form");
    if (a->initial_state)
        return lmk_fail_conflict(error, "initial_state", "none in the bidirectional form");
    if (a->initial_normalizer)
        return lmk_fail_conflict(error, "initial_normalizer", "none in the bidirectional form");
    return LMK_OK;
}

lmk_status lmk_linear_attention_check_sizes(const lmk_linear_attention *a, lmk_error *error) {
    const lmk_status status = check_sizes(a, error);
    return status == LMK_OK ? check_offsets(a, error) : status;
}

lmk_status lmk_linear_attention_check(const lmk_linear_attention *a, int reads, lmk_error *error) {
    lmk_status status = check_options(a, error);
    if (status == LMK_OK) status = lmk_linear_attention_check_sizes(a, error);
    const size_t size = status == LMK_OK ? lmk_dtype_size(a->dtype) : 0;
    if (status == LMK_OK && reads) {
        status = lmk_linear_attention_check_rows(a, TENSOR_NAMES(q), a->q, a->q_strides, a->heads,
                                                 a->key_dim, size, error);
    }
    if (status == LMK_OK) {
        status = lmk_linear_attention_check_rows(a, TENSOR_NAMES(k), a->k, a->k_strides,
                                                 a->key_heads, a->key_dim, size, error);
    }
    if (status == LMK_OK) {
        status = lmk_linear_attention_check_rows(a, TENSOR_NAMES(v), a->v, a->v_strides,
                                                 a->key_heads, a->value_dim, size, error);
    }
    if (status != LMK_OK) return status;
    if (a->decay == LMK_DECAY_HEAD) {
        if (!a->log_decay) return lmk_fail_null(error, "log_decay");
        if (a->heads > 1 && a->log_decay_strides.head == 0)
            return lmk_fail_size(error, "log_decay_strides.head", 1, 0);
    } else if (a->decay != LMK_DECAY_NONE) {
        status = lmk_linear_attention_check_rows(
            a, TENSOR_NAMES(log_decay), a->log_decay, a->log_decay_strides, a->heads,
            a->decay == LMK_DECAY_KEY ? a->key_dim : 1, sizeof(float), error);
    }
    return status;
}

static token_rows rows_of(const lmk_linear_attention *a, const void *data,
                          lmk_token_strides strides, size_t sequence, size_t head, size_t token,
                          size_t column, size_t columns) {
    // An empty sequence may have no tensor.
    const size_t at = row_offset(a, strides, sequence, token, head) + column;
    return (token_rows){
        .data = data ? (const char *)data + lmk_dtype_size(a->dtype) * at : 0,
        .stride = strides.token,
        .dtype = a->dtype,
        .width = columns,
    };
}

linear_head lmk_linear_attention_head(const lmk_linear_attention *a,
                                      const lmk_linear_attention_results *results, size_t sequence,
                                      size_t head, size_t token, size_t column, size_t columns) {
    const size_t key_head = head / (a->heads / a->key_heads);
    linear_head result = {
        .q = rows_of(a, a->q, a->q_strides, sequence, head, token, 0, a->key_dim),
        .k = rows_of(a, a->k, a->k_strides, sequence, key_head, token, 0, a->key_dim),
        .v = rows_of(a, a->v, a->v_strides, sequence, key_head, token, column, columns),
        .decay = a->decay,
        .bonus = a->bonus ? a->bonus + a->key_dim * head : 0,
        // It cancels; a scale of 0 would not.
        .scale = a->is_normalized ? 1 : a->scale,
        .epsilon = a->epsilon,
        .has_unit_length = a->has_unit_length,
        .is_normalized = a->is_normalized,
    };
    if (results && results->o) {
        const size_t at = row_offset(a, results->o_strides, sequence, token, head) + column;
        result.o = (token_rows_out){
            .data = (char *)results->o + lmk_dtype_size(a->dtype) * at,
            .stride = results->o_strides.token,
            .dtype = a->dtype,
            .width = columns,
        };
    }
    if (a->decay == LMK_DECAY_HEAD) {
        result.log_decay = a->log_decay + a->log_decay_strides.head * head;
    } else if (a->decay != LMK_DECAY_NONE && a->log_decay) {
        result.log_decay =
            a->log_decay + row_offset(a, a->log_decay_strides, sequence, token, head);
        result.log_decay_stride = a->log_decay_strides.token;
    }
    return result;
}
