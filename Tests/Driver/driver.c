// Runs the kernels without Swift and without an OpenMP runtime, for cross builds and sanitizers.
//
//     driver FILE...
//
// Checks kernels against conformance files, and that threads, memory budgets and ways to call
// change no bit. Prints a hash of every output, so that `diff` compares builds and instruction
// sets. Products of bfloat16 differ under avx512bf16 and amx, linear attention of bfloat16 under
// amx; for the rest both are avx512, so that under avx512bf16 it runs products only. Exits with 1
// when a check fails.
#include "driver.h"
#include "safetensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

float next_float(generator *g) {
    g->state = g->state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(g->state >> 32) >> 8) * 0x1p-23f;
}

size_t next_index(generator *g, size_t bound) {
    g->state = g->state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(g->state >> 32) % bound;
}

void *take(size_t bytes) {
    void *const memory = malloc(bytes);
    if (!memory && bytes > 0) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

float *take_floats(generator *g, size_t count, float scale) {
    float *const x = take(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = next_float(g) * scale;
    return x;
}

uint64_t hash_of(const void *data, size_t bytes) {
    const unsigned char *const p = data;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

void put_hash(const char *source, const char *name, uint64_t hash) {
    printf("%s %s %016llx\n", source, name, (unsigned long long)hash);
}

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("FAIL ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    failures++;
}

void expect_ok(const char *what, lmk_status status, const lmk_error *error) {
    if (status == LMK_OK) return;
    complain("%s: status %d, argument %s, expected %lld, actual %lld", what, (int)status,
             error->argument ? error->argument : "?", (long long)error->expected,
             (long long)error->actual);
}

static void run_file(const char *path) {
    safetensors file = safetensors_read(path);
    const char *const slash = strrchr(path, '/'), *const base = slash ? slash + 1 : path;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(base, "."), base);
    if (safetensors_is(&file, "cross_entropy")) run_cross_entropy_file(&file, name);
    else if (safetensors_is(&file, "softmax") || safetensors_is(&file, "log_softmax") ||
             safetensors_is(&file, "log_sum_exp"))
        run_softmax_file(&file, name);
    else if (safetensors_is(&file, "linear_attention")) run_linear_attention_file(&file, name);
    else if (safetensors_is(&file, "delta_rule")) run_delta_rule_file(&file, name);
    else complain("%s: an operator that is not known here", path);
    safetensors_free(&file);
}

/// The exit status.
static int finish(void) {
    if (failures) fprintf(stderr, "%d failures\n", failures);
    return failures ? 1 : 0;
}

int main(int argc, char **argv) {
    fprintf(stderr, "isa %s\n", lmk_isa_name(lmk_cpu_isa()));
    run_matmul();
    if (lmk_cpu_isa() == LMK_ISA_AVX512_BF16) return finish();
    run_elementwise();
    run_conversions();
    run_cross_entropy_seeded();
    run_softmax_seeded();
    run_softmax_relatives();
    run_linear_attention_seeded();
    run_delta_rule_seeded();
    run_householder_seeded();
    for (int i = 1; i < argc; i++) run_file(argv[i]);
    return finish();
}
