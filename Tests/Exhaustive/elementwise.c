// Every float32 through the elementwise functions and the storage conversions.
//
//     make exhaustive                            everything, every bit pattern: 177 s of CPU time
//     .build/driver/exhaustive exp 1009          one function, every 1009th bit pattern
//     LMK_ISA=avx2 .build/driver/exhaustive      generic, avx2, avx512 or neon
//
// Prints, for each function, the largest error in ulp against the C library in double, the argument
// it was found at, and how many special values came out wrong; for each conversion, how many
// results differ from the scalar reference below. Exits with 1 when an error is above its bound or
// a value is wrong.

#define _POSIX_C_SOURCE 200809L
#include "lmk_core.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 2
#define BLOCK 65536

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// Largest error allowed, in ulp: measured over every float32 and rounded up. `fused` is for
// instruction sets with fused multiply-add, whose results all have the same bits.
typedef struct function_case {
    const char *name;
    lmk_function function;
    double (*reference)(double);
    double fused, unfused;
} function_case;

static const function_case functions[] = {
    {"exp", LMK_EXP, exp, 0.92, 1.19},       {"log", LMK_LOG, log, 0.92, 0.98},
    {"log1p", LMK_LOG1P, log1p, 0.92, 1.00}, {"expm1", LMK_EXPM1, expm1, 1.24, 1.26},
    {"tanh", LMK_TANH, tanh, 1.75, 1.81},    {"sigmoid", LMK_SIGMOID, sigmoid, 1.65, 1.99},
};

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/// Distance in ulp of the float32 nearest to `want`, which is finite; 2^-149 where that is
/// denormal. Infinity counts as 2^128.
static double error_in_ulp(float got, double want) {
    uint64_t bits;
    memcpy(&bits, &want, sizeof bits);
    const int exponent = (int)(bits >> 52 & 0x7ff) - 1023;
    const uint64_t inverse_bits = (uint64_t)(1023 + 23 - (exponent < -126 ? -126 : exponent)) << 52;
    double inverse;
    memcpy(&inverse, &inverse_bits, sizeof inverse);
    const double value = isinf(got) ? copysign(0x1p128, got) : got;
    return fabs(value - want) * inverse;
}

/// NaN for NaN, infinity for what is beyond 2^128, zero with the sign of the exact result.
static int special_is_right(float got, double want) {
    if (isnan(want)) return isnan(got);
    if (fabs(want) >= 0x1p128) return isinf(got) && signbit(got) == signbit(want);
    if (want == 0) return got == 0 && signbit(got) == signbit(want);
    return !isnan(got) && (got != 0 || signbit(got) == signbit(want));
}

// ---- Conversions
// -----------------------------------------------------------------------------------------------------

/// `kept` with the discarded `rest` rounded to nearest even, `rest` in [0, 2 half).
static uint32_t rounded(uint32_t kept, uint32_t rest, uint32_t half) {
    return kept + (rest > half || (rest == half && (kept & 1)));
}

static uint16_t reference_to_bf16(uint32_t u) {
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)rounded(u >> 16, u & 0xffff, 0x8000);
}

static uint16_t reference_to_f16(uint32_t u) {
    const uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff, exponent = magnitude >> 23;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (exponent >= 127 + 16) return (uint16_t)(sign | 0x7c00);
    if (exponent >= 127 - 14)
        return (uint16_t)(sign |
                          rounded((magnitude >> 13) - (112 << 10), magnitude & 0x1fff, 0x1000));
    if (exponent < 127 - 25) return (uint16_t)sign;
    // Denormal: the 24 bits of the mantissa, in units of 2^(exponent - 150), are shifted to units
    // of 2^-24.
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000, shift = 126 - exponent;
    return (uint16_t)(sign | rounded(mantissa >> shift, mantissa & ((1u << shift) - 1),
                                     1u << (shift - 1)));
}

static uint32_t reference_from_bf16(uint16_t h) { return (uint32_t)h << 16; }

static uint32_t reference_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude > 0x7c00) return sign | 0x7fc00000 | magnitude << 13;
    if (magnitude == 0x7c00) return sign | 0x7f800000;
    return sign | bits_of_float(magnitude >= 0x400 ? ldexpf((float)(0x400 | (magnitude & 0x3ff)),
                                                            (int)(magnitude >> 10) - 25)
                                                   : ldexpf((float)magnitude, -24));
}

typedef struct conversion_case {
    const char *name;
    lmk_dtype dtype;
    uint16_t (*to)(uint32_t);
    uint32_t (*from)(uint16_t);
    uint32_t infinity;
} conversion_case;

static const conversion_case conversions[] = {
    {"bf16", LMK_BFLOAT16, reference_to_bf16, reference_from_bf16, 0x7f80},
    {"f16", LMK_FLOAT16, reference_to_f16, reference_from_f16, 0x7c00},
};

// ---- Scans over all bit patterns, on two threads
// ---------------------------------------------------------------------

typedef struct scan {
    const function_case *function;
    const conversion_case *conversion;
    uint64_t step;
    atomic_ullong next_block;
    pthread_mutex_t lock;
    double worst;
    float worst_argument;
    uint64_t wrong;
    uint32_t first_wrong;
} scan;

static void map_block(scan *scan, const float *x, size_t count) {
    static _Thread_local float y[BLOCK];
    double worst = 0;
    float worst_argument = 0;
    uint64_t wrong = 0;
    uint32_t first_wrong = 0;
    if (lmk_map(scan->function->function, x, y, count, NULL) != LMK_OK) abort();
    for (size_t i = 0; i < count; i++) {
        const double want = scan->function->reference((double)x[i]);
        if (!special_is_right(y[i], want)) {
            if (wrong++ == 0) first_wrong = bits_of_float(x[i]);
        } else if (fabs(want) < 0x1p128) {
            const double error = error_in_ulp(y[i], want);
            if (error > worst) worst = error, worst_argument = x[i];
        }
    }
    pthread_mutex_lock(&scan->lock);
    if (worst > scan->worst) scan->worst = worst, scan->worst_argument = worst_argument;
    if (scan->wrong == 0) scan->first_wrong = first_wrong;
    scan->wrong += wrong;
    pthread_mutex_unlock(&scan->lock);
}

static void convert_block(scan *scan, const float *x, size_t count) {
    static _Thread_local uint16_t y[BLOCK];
    uint64_t wrong = 0;
    uint32_t first_wrong = 0;
    if (lmk_convert(x, LMK_FLOAT32, y, scan->conversion->dtype, count, NULL) != LMK_OK) abort();
    for (size_t i = 0; i < count; i++)
        if (y[i] != scan->conversion->to(bits_of_float(x[i])) && wrong++ == 0)
            first_wrong = bits_of_float(x[i]);
    pthread_mutex_lock(&scan->lock);
    if (scan->wrong == 0) scan->first_wrong = first_wrong;
    scan->wrong += wrong;
    pthread_mutex_unlock(&scan->lock);
}

static void *worker(void *context) {
    static _Thread_local float x[BLOCK];
    scan *const scan = context;
    for (;;) {
        const uint64_t first = atomic_fetch_add(&scan->next_block, 1) * BLOCK;
        size_t count = 0;
        for (; count < BLOCK && (first + count) * scan->step <= UINT32_MAX; count++)
            x[count] = float_of((uint32_t)((first + count) * scan->step));
        if (count == 0) return NULL;
        if (scan->function) map_block(scan, x, count);
        else convert_block(scan, x, count);
    }
}

static void run_scan(scan *scan) {
    pthread_t threads[THREADS];
    pthread_mutex_init(&scan->lock, NULL);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, worker, scan) != 0) abort();
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&scan->lock);
}

static int is_unfused(void) {
#if defined(__x86_64__)
    return lmk_cpu_isa() == LMK_ISA_GENERIC;
#else
    return 0;
#endif
}

static int check_function(const function_case *function, uint64_t step) {
    scan scan = {.function = function, .step = step};
    run_scan(&scan);
    const double bound = is_unfused() ? function->unfused : function->fused;
    printf("%-10s %-8s max %.4f ulp at %-15a (bound %.2f)  wrong special values %llu",
           lmk_isa_name(lmk_cpu_isa()), function->name, scan.worst, (double)scan.worst_argument,
           bound, (unsigned long long)scan.wrong);
    if (scan.wrong) printf(", one at 0x%08x", scan.first_wrong);
    printf("\n");
    fflush(stdout);
    return scan.worst <= bound && scan.wrong == 0;
}

static int check_conversion(const conversion_case *conversion, uint64_t step) {
    scan scan = {.conversion = conversion, .step = step};
    run_scan(&scan);

    static uint16_t h[65536], back[65536];
    static float x[65536];
    unsigned wrong_from = 0, wrong_back = 0;
    for (uint32_t i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    if (lmk_convert(h, conversion->dtype, x, LMK_FLOAT32, 65536, NULL) != LMK_OK) abort();
    if (lmk_convert(x, LMK_FLOAT32, back, conversion->dtype, 65536, NULL) != LMK_OK) abort();
    const uint32_t quiet_bit = (conversion->infinity & -conversion->infinity) >> 1;
    for (uint32_t i = 0; i < 65536; i++) {
        const int is_nan = (i & 0x7fff) > conversion->infinity;
        wrong_from += bits_of_float(x[i]) != conversion->from((uint16_t)i);
        wrong_back += back[i] != (is_nan ? (i | quiet_bit) : i);
    }
    printf("%-10s %-8s wrong to %llu, from %u, there and back %u", lmk_isa_name(lmk_cpu_isa()),
           conversion->name, (unsigned long long)scan.wrong, wrong_from, wrong_back);
    if (scan.wrong) printf(", one at 0x%08x", scan.first_wrong);
    printf("\n");
    fflush(stdout);
    return scan.wrong == 0 && wrong_from == 0 && wrong_back == 0;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "all";
    const uint64_t step = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const int all = strcmp(name, "all") == 0;
    int found = 0, right = 1;
    if (step != 0) {
        for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
            if (all || strcmp(name, functions[i].name) == 0)
                found = 1, right &= check_function(&functions[i], step);
        for (size_t i = 0; i < sizeof conversions / sizeof *conversions; i++)
            if (all || strcmp(name, conversions[i].name) == 0)
                found = 1, right &= check_conversion(&conversions[i], step);
    }
    if (!found) {
        fprintf(
            stderr,
            "usage: %s [all | exp | log | log1p | expm1 | tanh | sigmoid | bf16 | f16] [step]\n",
            argv[0]);
        return 2;
    }
    return right ? 0 : 1;
}
