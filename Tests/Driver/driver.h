// What the parts of the driver share.
#ifndef DRIVER_H
#define DRIVER_H

#include "lmk_core.h"

#include <stddef.h>
#include <stdint.h>

/// Numbers that are the same on every machine: multiples of 2^-23 in [-1, 1).
typedef struct generator {
    uint64_t state;
} generator;

float next_float(generator *g);
/// In 0..<bound.
size_t next_index(generator *g, size_t bound);

/// Memory of exactly this size, so that sanitizers see its ends; ends the program when there is
/// none.
void *take(size_t bytes);
/// Floats of `g`, times `scale`.
float *take_floats(generator *g, size_t count, float scale);

/// 64-bit FNV-1a of the bytes.
uint64_t hash_of(const void *data, size_t bytes);
/// Prints one line: where it comes from, what it is, its hash.
void put_hash(const char *source, const char *name, uint64_t hash);

/// Counts a failure and says what it is.
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/// Complains unless the call went well.
void expect_ok(const char *what, lmk_status status, const lmk_error *error);

void run_elementwise(void);
void run_conversions(void);
void run_matmul(void);
void run_cross_entropy_seeded(void);
void run_softmax_seeded(void);
void run_softmax_relatives(void);
void run_linear_attention_seeded(void);
void run_delta_rule_seeded(void);
void run_householder_seeded(void);

// One conformance file.
struct safetensors;
void run_cross_entropy_file(const struct safetensors *file, const char *name);
void run_softmax_file(const struct safetensors *file, const char *name);
void run_linear_attention_file(const struct safetensors *file, const char *name);
void run_delta_rule_file(const struct safetensors *file, const char *name);

#endif
