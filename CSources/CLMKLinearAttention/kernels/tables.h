// What the entry points and the kernels of linear attention share: the table of each instruction
// set.
#ifndef LMK_LINEAR_ATTENTION_TABLES_H
#define LMK_LINEAR_ATTENTION_TABLES_H

#include "lmk_check.h"
#include "lmk_linear_attention.h"

typedef struct linear_attention_kernels {
    int unused;
} linear_attention_kernels;

extern const linear_attention_kernels linear_attention_kernels_generic;
#if defined(__x86_64__)
extern const linear_attention_kernels linear_attention_kernels_avx2;
extern const linear_attention_kernels linear_attention_kernels_avx512;
#elif defined(__aarch64__)
extern const linear_attention_kernels linear_attention_kernels_neon;
#endif

#endif
