// Validation and size arithmetic shared by the entry points of every family.
#ifndef LMK_CHECK_H
#define LMK_CHECK_H

#include "lmk_core.h"

/// Fills in `error` when there is one, and returns its status.
static inline lmk_status lmk_fail(lmk_error *error, lmk_error what) {
    if (error) *error = what;
    return what.status;
}

static inline lmk_status lmk_fail_range(lmk_error *error, const char *argument, const char *allowed,
                                        int64_t actual) {
    return lmk_fail(error, (lmk_error){.status = LMK_OUT_OF_RANGE,
                                       .argument = argument,
                                       .allowed = allowed,
                                       .actual = actual});
}

static inline lmk_status lmk_fail_real(lmk_error *error, const char *argument, const char *allowed,
                                       double actual) {
    return lmk_fail(error, (lmk_error){.status = LMK_OUT_OF_RANGE,
                                       .argument = argument,
                                       .allowed = allowed,
                                       .real = actual,
                                       .is_real = 1});
}

static inline lmk_status lmk_fail_size(lmk_error *error, const char *argument, size_t least,
                                       size_t actual) {
    return lmk_fail(error, (lmk_error){.status = LMK_TOO_SMALL,
                                       .argument = argument,
                                       .expected = (int64_t)least,
                                       .actual = (int64_t)actual});
}

static inline lmk_status lmk_fail_overflow(lmk_error *error, const char *argument) {
    return lmk_fail(
        error, (lmk_error){.status = LMK_OVERFLOW, .argument = argument, .expected = INT64_MAX});
}

static inline lmk_status lmk_fail_null(lmk_error *error, const char *argument) {
    return lmk_fail(error, (lmk_error){.status = LMK_NULL, .argument = argument});
}

static inline lmk_status lmk_fail_conflict(lmk_error *error, const char *argument,
                                           const char *allowed) {
    return lmk_fail(error,
                    (lmk_error){.status = LMK_CONFLICT, .argument = argument, .allowed = allowed});
}

/// *product *= factor; 0 when it does not fit in a signed 64-bit byte count.
static inline int lmk_multiply_size(size_t *product, size_t factor) {
    return !__builtin_mul_overflow(*product, factor, product) && *product <= (size_t)INT64_MAX;
}

/// Whether `rows` rows of `columns` elements at `stride`, each of `size` bytes, can be addressed.
static inline int lmk_size_fits(size_t rows, size_t stride, size_t columns, size_t size) {
    size_t bytes = rows;
    if (!lmk_multiply_size(&bytes, stride) || __builtin_add_overflow(bytes, columns, &bytes))
        return 0;
    return lmk_multiply_size(&bytes, size);
}

static inline size_t lmk_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t lmk_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t lmk_divide_up(size_t a, size_t b) { return a / b + (a % b != 0); }
static inline size_t lmk_round_up(size_t a, size_t multiple) {
    return lmk_divide_up(a, multiple) * multiple;
}

/// Something cut into parts whose sizes differ by at most one.
typedef struct lmk_parts {
    size_t count, size, larger;
} lmk_parts;

static inline lmk_parts lmk_cut(size_t total, size_t parts) {
    return (lmk_parts){parts, total / parts, total % parts};
}

/// Where part `i` begins; part i ends where part i + 1 begins.
static inline size_t lmk_part(lmk_parts parts, size_t i) {
    return parts.size * i + lmk_min(i, parts.larger);
}

#endif
