// Opens the region of one instruction set: everything up to lmk_end.h is compiled for it. The
// including file defines one of LMK_TARGET_GENERIC, LMK_TARGET_AVX2, LMK_TARGET_AVX512,
// LMK_TARGET_AVX512_BF16, LMK_TARGET_AMX or LMK_TARGET_NEON, and has included every other header
// before: a prototype first seen inside the region would give its definition elsewhere the region's
// instructions. Features are listed one by one because `arch=x86-64-v4` makes clang halve 16-lane
// vectors. LMK_AVX512 is defined in each region that has registers of 16 floats.
#if defined(LMK_TARGET_AVX512)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))),        \
    apply_to = function)
#elif defined(LMK_TARGET_AVX512_BF16)
#pragma clang attribute push(                                                                      \
    __attribute__((target(                                                                         \
        "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))),    \
    apply_to = function)
#elif defined(LMK_TARGET_AMX)
#pragma clang attribute push(                                                                      \
    __attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,"       \
                          "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))),                                \
    apply_to = function)
#elif defined(LMK_TARGET_AVX2)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))),       \
                             apply_to = function)
#elif !defined(LMK_TARGET_NEON) && !defined(LMK_TARGET_GENERIC)
#error "define the target of this file before lmk_begin.h"
#endif

#if defined(LMK_TARGET_AVX512) || defined(LMK_TARGET_AVX512_BF16) || defined(LMK_TARGET_AMX)
#define LMK_AVX512
#endif

// Vectors wider than a register change the calling convention; every function that passes one is
// inlined, so none is called.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpsabi"

#include "lmk_vec.h"
