// How much memory a call takes: resident memory of the process before and after loss and gradients
// of 8192 rows over 256,000 classes, whose logits would be 8 GB.
//
//     memory BUDGET_IN_MIB
//
// One budget per process, since the peak that the system reports never falls. Exits with 1 when the
// call took more than the budget and 64 bytes per row.
#include "lmk_cross_entropy.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { ROWS = 8192, VOCABULARY = 256000, FEATURES = 64 };

/// Every thread takes half a megabyte of the budget: 16 MiB would not do for all those of a large
/// machine.
#define THREADS_MAX 8

static float *take_floats(size_t count) {
    float *const x = malloc(count * sizeof *x);
    if (!x) exit(2);
    uint32_t state = 1;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)((int32_t)state >> 8) * 0x1p-23f;
    }
    return x;
}

static size_t peak_bytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
    return (size_t)usage.ru_maxrss;
#else
    return (size_t)usage.ru_maxrss << 10;
#endif
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/// Bytes that loss and gradients of random inputs take, with a workspace allocated for the call.
static size_t measure(size_t rows, size_t vocabulary, size_t budget, int is_quiet) {
    int32_t *const targets = malloc(rows * sizeof *targets);
    if (!targets) exit(2);
    for (size_t i = 0; i < rows; i++) targets[i] = (int32_t)(i * 31 % vocabulary);
    float *const hidden = take_floats(rows * FEATURES);
    float *const classifier = take_floats(vocabulary * FEATURES);
    float *const hidden_gradient = take_floats(rows * FEATURES);
    float *const classifier_gradient = take_floats(vocabulary * FEATURES);
    const unsigned threads = lmk_thread_count(0) < THREADS_MAX ? 0 : THREADS_MAX;
    const lmk_cross_entropy problem = {.rows = rows,
                                       .features = FEATURES,
                                       .vocabulary = vocabulary,
                                       .hidden = hidden,
                                       .hidden_stride = FEATURES,
                                       .classifier = classifier,
                                       .classifier_stride = FEATURES,
                                       .targets = targets,
                                       .target_type = LMK_TARGET_INT32,
                                       .ignore_index = -1,
                                       .logit_scale = 1,
                                       .reduction = LMK_REDUCTION_MEAN,
                                       .memory_budget = budget,
                                       .threads = threads};
    const lmk_cross_entropy_gradients gradients = {.loss_gradient = 1,
                                                   .hidden = hidden_gradient,
                                                   .hidden_stride = FEATURES,
                                                   .classifier = classifier_gradient,
                                                   .classifier_stride = FEATURES};
    const lmk_cross_entropy_outputs outputs = {0};
    lmk_cross_entropy_summary summary;
    lmk_error error;

    const size_t before = peak_bytes();
    const double start = seconds();
    const size_t size = lmk_cross_entropy_workspace_size(&problem, &gradients);
    void *const workspace = malloc(size);
    const lmk_status status = lmk_cross_entropy_forward_backward(&problem, &outputs, &gradients,
                                                                 &summary, workspace, size, &error);
    const size_t taken = peak_bytes() - before;
    if (status != LMK_OK) {
        fprintf(stderr, "%s: expected %lld, got %lld\n", error.argument ? error.argument : "?",
                (long long)error.expected, (long long)error.actual);
        exit(2);
    }
    if (!is_quiet) {
        printf("%zu rows, %zu classes, budget %zu MiB: %s mode, %.1f s, loss %.4f, memory %.2f MiB "
               "before and %.2f MiB more\n",
               rows, vocabulary, budget >> 20,
               summary.mode == LMK_MODE_PANEL ? "panel" : "recompute", seconds() - start,
               summary.loss, (double)before / 0x1p20, (double)taken / 0x1p20);
    }
    free(workspace);
    free(targets);
    free(hidden);
    free(classifier);
    free(hidden_gradient);
    free(classifier_gradient);
    return taken;
}

int main(int argc, char **argv) {
    const size_t budget = argc == 2 ? strtoull(argv[1], NULL, 10) << 20 : 0;
    if (budget == 0) {
        fprintf(stderr, "usage: %s BUDGET_IN_MIB\n", argv[0]);
        return 2;
    }
    // Loads libraries and starts threads. The inputs of the real call are far larger than all this
    // takes, so its memory is given back and taken again before the first reading.
    measure(16, 4096, budget, 1);
    const size_t taken = measure(ROWS, VOCABULARY, budget, 0), allowed = budget + 64 * ROWS;
    if (taken <= allowed) return 0;
    fprintf(stderr, "FAIL: %zu bytes, %zu allowed\n", taken, allowed);
    return 1;
}
