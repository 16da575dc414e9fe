// Which instruction set runs, and the functions that are one call into its table.
#include "kernels/tables.h"
#include "lmk_check.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/// What the operating system saves on a context switch: registers it does not save may not be used.
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}

/// What the CPU has.
static lmk_isa detect(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return LMK_ISA_GENERIC;
    const int has_xsave = (c >> 27) & 1, has_fma = (c >> 12) & 1, has_f16c = (c >> 29) & 1;
    if (!has_xsave || !has_fma || !has_f16c) return LMK_ISA_GENERIC;
    const unsigned saved = saved_registers();
    if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return LMK_ISA_GENERIC;
    const unsigned avx2 = (1u << 5) | (1u << 3) | (1u << 8);                   // AVX2, BMI1, BMI2
    const unsigned avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); // F, DQ, BW, VL
    if ((b & avx2) != avx2) return LMK_ISA_GENERIC;
    if ((b & avx512) != avx512 || (saved & 0xe6) != 0xe6) return LMK_ISA_AVX2;
    const unsigned amx = (1u << 22) | (1u << 24); // tiles of bfloat16, tiles
    const int has_tiles = (d & amx) == amx && (saved & 0x60000) == 0x60000;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !((a >> 5) & 1)) return LMK_ISA_AVX512;
    return has_tiles ? LMK_ISA_AMX : LMK_ISA_AVX512_BF16;
}

/// Whether the process may use tiles, whose registers Linux saves for those that have asked: it
/// refuses where a thread's signal stack has no room for them. Asked only when tiles are.
static int may_use_tiles(void) {
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

/// Intel's cores issue one bfloat16 dot product every two cycles, and two multiply-adds in each:
/// widening is twice as fast there (103 and 206 GFLOP/s in registers, model 167).
static int has_fast_dot_product(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b != signature_INTEL_ebx;
}
#elif defined(__aarch64__)
static lmk_isa detect(void) { return LMK_ISA_NEON; }
static int may_use_tiles(void) { return 0; }
static int has_fast_dot_product(void) { return 0; }
#else
static lmk_isa detect(void) { return LMK_ISA_GENERIC; }
static int may_use_tiles(void) { return 0; }
static int has_fast_dot_product(void) { return 0; }
#endif

static const char *const isa_names[] = {"generic", "avx2", "avx512", "avx512bf16", "amx", "neon"};

const char *lmk_isa_name(lmk_isa isa) { return isa_names[isa]; }

int lmk_cpu_can_run(lmk_isa isa) {
    const lmk_isa best = detect();
    if (isa == LMK_ISA_AMX) return best == LMK_ISA_AMX && may_use_tiles();
    if (isa == LMK_ISA_GENERIC || isa == best) return 1;
    return best != LMK_ISA_NEON && isa != LMK_ISA_NEON && isa < best;
}

/// The fastest one.
static lmk_isa default_isa(void) {
    lmk_isa isa = detect();
    if (isa == LMK_ISA_AMX && !may_use_tiles()) isa = LMK_ISA_AVX512_BF16;
    return isa == LMK_ISA_AVX512_BF16 && !has_fast_dot_product() ? LMK_ISA_AVX512 : isa;
}

/// One more than the instruction set in use; 0 before the first query.
static atomic_int isa_in_use;

lmk_isa lmk_cpu_isa(void) {
    const int known = atomic_load_explicit(&isa_in_use, memory_order_relaxed);
    if (known) return (lmk_isa)(known - 1);
    const int sets = sizeof isa_names / sizeof *isa_names;
    const char *const cap = getenv("LMK_ISA");
    int named = 0;
    while (cap && named < sets && strcmp(cap, isa_names[named]) != 0) named++;
    const int is_named = cap && named < sets && lmk_cpu_can_run((lmk_isa)named);
    const lmk_isa isa = is_named ? (lmk_isa)named : default_isa();
    atomic_store_explicit(&isa_in_use, (int)isa + 1, memory_order_relaxed);
    return isa;
}

int lmk_cpu_use_isa(lmk_isa isa) {
    if (!lmk_cpu_can_run(isa)) return 0;
    atomic_store_explicit(&isa_in_use, (int)isa + 1, memory_order_relaxed);
    return 1;
}

/// The float32 table of the instruction set in use.
static const lmk_core_kernels *core_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX:
    case LMK_ISA_AVX512_BF16:
    case LMK_ISA_AVX512: return &core_kernels_avx512;
    case LMK_ISA_AVX2: return &core_kernels_avx2;
#elif defined(__aarch64__)
    case LMK_ISA_NEON: return &core_kernels_neon;
#endif
    default: return &core_kernels_generic;
    }
}

/// The table of what adds pairs of bfloat16, or null.
static const lmk_core_kernels *pair_kernels(void) {
    switch (lmk_cpu_isa()) {
#if defined(__x86_64__)
    case LMK_ISA_AMX: return &core_kernels_amx;
    case LMK_ISA_AVX512_BF16: return &core_kernels_avx512_bf16;
#endif
    default: return 0;
    }
}

const lmk_tile_kernels *lmk_tile_kernels_for(lmk_dtype dtype) {
    const lmk_core_kernels *const pairs = dtype == LMK_BFLOAT16 ? pair_kernels() : 0;
    return pairs ? &pairs->tile : &core_kernels()->tile;
}

size_t lmk_dtype_size(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

static int is_dtype(lmk_dtype dtype) { return (unsigned)dtype <= LMK_FLOAT16; }

lmk_status lmk_map(lmk_function function, const float *x, float *y, size_t count,
                   lmk_error *error) {
    if ((unsigned)function > LMK_SIGMOID)
        return lmk_fail_range(error, "function", "an elementwise function", function);
    if (count == 0) return LMK_OK;
    if (!x) return lmk_fail_null(error, "x");
    if (!y) return lmk_fail_null(error, "y");
    core_kernels()->map(function, x, y, count);
    return LMK_OK;
}

lmk_status lmk_convert(const void *x, lmk_dtype x_dtype, void *y, lmk_dtype y_dtype, size_t count,
                       lmk_error *error) {
    if (!is_dtype(x_dtype)) return lmk_fail_range(error, "x_dtype", "a storage type", x_dtype);
    if (!is_dtype(y_dtype)) return lmk_fail_range(error, "y_dtype", "a storage type", y_dtype);
    if (count == 0) return LMK_OK;
    if (!x) return lmk_fail_null(error, "x");
    if (!y) return lmk_fail_null(error, "y");
    core_kernels()->convert(x, x_dtype, y, y_dtype, count);
    return LMK_OK;
}

double lmk_probe_arithmetic(lmk_dtype dtype, size_t iterations) {
    if (dtype == LMK_FLOAT32) return core_kernels()->probe_arithmetic(iterations);
    const lmk_core_kernels *const pairs = dtype == LMK_BFLOAT16 ? pair_kernels() : 0;
    return pairs ? pairs->probe_arithmetic(iterations) : 0;
}

float lmk_probe_read(const float *x, size_t count) { return core_kernels()->probe_read(x, count); }

void lmk_probe_copy(const float *x, float *y, size_t count, int streaming) {
    core_kernels()->probe_copy(x, y, count, streaming);
}
