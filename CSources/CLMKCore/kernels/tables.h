// The table that each instruction set exports.
#ifndef LMK_CORE_TABLES_H
#define LMK_CORE_TABLES_H

#include "lmk_core.h"
#include "lmk_tile.h"

typedef struct lmk_core_kernels {
    lmk_tile_kernels tile;
    void (*map)(lmk_function function, const float *x, float *y, size_t count);
    void (*convert)(const void *x, lmk_dtype x_dtype, void *y, lmk_dtype y_dtype, size_t count);
    double (*probe_arithmetic)(size_t iterations);
    float (*probe_read)(const float *x, size_t count);
    void (*probe_copy)(const float *x, float *y, size_t count, int streaming);
} lmk_core_kernels;

extern const lmk_core_kernels core_kernels_generic;
#if defined(__x86_64__)
extern const lmk_core_kernels core_kernels_avx2;
extern const lmk_core_kernels core_kernels_avx512;
/// Tile and arithmetic probe only: the rest is AVX-512's.
extern const lmk_core_kernels core_kernels_avx512_bf16, core_kernels_amx;
#elif defined(__aarch64__)
extern const lmk_core_kernels core_kernels_neon;
#endif

#endif
