// lmk_core.h: what every kernel family shares. Status codes and errors, the instruction set in use,
// threads, storage types, elementwise functions, and the matrix product.
//
// Conventions: sizes are counts of elements, strides are distances in elements, the last dimension
// of a tensor is contiguous. Functions return a status; when it is not LMK_OK nothing was written
// and `error`, if given, says which argument was at fault. No function allocates: scratch memory is
// the caller's workspace.
#ifndef LMK_CORE_H
#define LMK_CORE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#define LMK_NONNULL_BEGIN _Pragma("clang assume_nonnull begin")
#define LMK_NONNULL_END _Pragma("clang assume_nonnull end")
#define LMK_NULLABLE _Nullable
#define LMK_NOESCAPE __attribute__((noescape))
#define LMK_CLOSED_ENUM __attribute__((enum_extensibility(closed)))
#else
#define LMK_NONNULL_BEGIN
#define LMK_NONNULL_END
#define LMK_NULLABLE
#define LMK_NOESCAPE
#define LMK_CLOSED_ENUM
#endif

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// What a call came to.
typedef enum LMK_CLOSED_ENUM lmk_status {
    LMK_OK = 0,
    /// A value outside its range: `actual` (or `real`, when `is_real` is set) is what came,
    /// `allowed` says what may come.
    LMK_OUT_OF_RANGE = 1,
    /// A size, stride or buffer smaller than needed: `expected` is the least that is needed,
    /// `actual` what came.
    LMK_TOO_SMALL = 2,
    /// A size whose bytes cannot be counted in 64 bits.
    LMK_OVERFLOW = 3,
    /// A pointer is null where data is needed.
    LMK_NULL = 4,
    /// Entry `index` of an array is out of range: `actual` is its value, `expected` the first value
    /// above the range.
    LMK_BAD_ENTRY = 5,
    /// Two arguments exclude each other, or one needs another that is missing: `allowed` says
    /// which.
    LMK_CONFLICT = 6,
} lmk_status;

/// The argument at fault, and both values.
typedef struct lmk_error {
    lmk_status status;
    /// Name of the argument. Strings here live as long as the program.
    const char *LMK_NULLABLE argument;
    /// What is allowed, in words.
    const char *LMK_NULLABLE allowed;
    int64_t expected;
    int64_t actual;
    /// Position in the argument, for LMK_BAD_ENTRY.
    int64_t index;
    /// The value that came, for arguments that are real numbers.
    double real;
    int is_real;
} lmk_error;

/// Storage type of a tensor. Accumulation is in float32 whatever the storage type.
typedef enum LMK_CLOSED_ENUM lmk_dtype {
    LMK_FLOAT32 = 0,
    LMK_BFLOAT16 = 1,
    LMK_FLOAT16 = 2,
} lmk_dtype;

/// Bytes of one element.
size_t lmk_dtype_size(lmk_dtype dtype);

// MARK: Instruction sets

/// Instruction sets that kernels are compiled for. On x86-64 a larger value contains the smaller
/// ones.
typedef enum LMK_CLOSED_ENUM lmk_isa {
    /// The platform's baseline, without fused multiply-add on x86-64.
    LMK_ISA_GENERIC = 0,
    LMK_ISA_AVX2 = 1,
    LMK_ISA_AVX512 = 2,
    /// AVX-512 with the bfloat16 dot product.
    LMK_ISA_AVX512_BF16 = 3,
    /// The same with tiles of bfloat16 (Advanced Matrix Extensions), where the operating system
    /// lets the process use them. Linux does once it is asked, on first use of the library unless
    /// LMK_ISA names another set, and from then on refuses signal stacks smaller than
    /// AT_MINSIGSTKSZ, about 11 KB.
    LMK_ISA_AMX = 4,
    LMK_ISA_NEON = 5,
} lmk_isa;

/// The instruction set in use: the fastest on this CPU (avx512bf16 only where a dot product is
/// faster than the multiply-adds it stands for), or the one that the environment variable LMK_ISA
/// (generic, avx2, avx512, avx512bf16, amx, neon) names if the CPU can run it; read once.
lmk_isa lmk_cpu_isa(void);

/// Whether this CPU can run `isa`.
int lmk_cpu_can_run(lmk_isa isa);

/// Makes later calls use `isa`; for tests. Returns 0 and changes nothing when the CPU cannot run
/// it. Not to be called while a kernel runs.
int lmk_cpu_use_isa(lmk_isa isa);

/// "generic", "avx2", "avx512", "avx512bf16", "amx" or "neon".
const char *lmk_isa_name(lmk_isa isa);

// MARK: Threads

/// The largest number of threads a call uses.
#define LMK_MAX_THREADS 1024

/// Threads a call uses when it asks for `limit`: 0 is the OpenMP runtime's default
/// (OMP_NUM_THREADS, else the CPUs).
unsigned lmk_thread_count(unsigned limit);

/// Name of the threading runtime found: "libomp", "libgomp" or "libdispatch".
const char *lmk_thread_runtime(void);

/// Runs `body(context, slot, worker)` for every slot in 0..<slots on at most `threads` threads. A
/// worker takes slots from a counter, so any team the runtime provides completes the work; `worker`
/// is below `threads` and distinct among concurrent bodies.
void lmk_parallel_for(size_t slots, unsigned threads,
                      void (*body)(void *LMK_NULLABLE context, size_t slot, unsigned worker),
                      void *LMK_NULLABLE context);

// MARK: Conversion of storage types

/// y[i] = x[i], rounded to nearest even. NaN stays NaN (quiet). x and y may be the same buffer when
/// both types have the same size; otherwise they must not overlap.
lmk_status lmk_convert(const void *LMK_NULLABLE x LMK_NOESCAPE, lmk_dtype x_dtype,
                       void *LMK_NULLABLE y LMK_NOESCAPE, lmk_dtype y_dtype, size_t count,
                       lmk_error *LMK_NULLABLE error);

// MARK: Elementwise functions

/// Elementwise functions on float32. Largest error in ulp over every float32 stands in
/// CONTRIBUTING.md.
typedef enum LMK_CLOSED_ENUM lmk_function {
    LMK_EXP = 0,
    LMK_LOG = 1,
    LMK_LOG1P = 2,
    LMK_EXPM1 = 3,
    LMK_TANH = 4,
    LMK_SIGMOID = 5,
} lmk_function;

/// y[i] = f(x[i]). x and y may be the same buffer.
lmk_status lmk_map(lmk_function function, const float *LMK_NULLABLE x LMK_NOESCAPE,
                   float *LMK_NULLABLE y LMK_NOESCAPE, size_t count, lmk_error *LMK_NULLABLE error);

// MARK: Matrix product

/// How the operands of a product lie in memory, named as in BLAS. N: as written. T: transposed.
typedef enum LMK_CLOSED_ENUM lmk_layout {
    /// a [rows, depth], b [depth, columns]
    LMK_NN = 0,
    /// a [rows, depth], b [columns, depth]
    LMK_NT = 1,
    /// a [depth, rows], b [depth, columns]
    LMK_TN = 2,
} lmk_layout;

/// c = a b, or c += a b, for each matrix of a batch. Strides of rows and of matrices are in
/// elements.
typedef struct lmk_matmul {
    lmk_layout layout;
    /// Storage of a and b; c is float32.
    lmk_dtype dtype;
    size_t batch, rows, columns, depth;
    const void *LMK_NULLABLE a;
    size_t a_stride, a_batch_stride;
    const void *LMK_NULLABLE b;
    size_t b_stride, b_batch_stride;
    float *LMK_NULLABLE c;
    size_t c_stride, c_batch_stride;
    /// Nonzero: add to c.
    int accumulate;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_matmul;

/// Bytes of workspace that `lmk_matmul_run` needs for these sizes and this number of threads.
size_t lmk_matmul_workspace_size(const lmk_matmul *matmul);

/// Computes c. c must not overlap a or b.
///
/// Sums are taken over blocks of 512 elements (1024 for bfloat16 with avx512bf16) along the depth:
/// each block is one chain of fused multiply-adds in ascending order from zero, and blocks are
/// added in order. With amx blocks of bfloat16 are 32 elements, summed as the processor does it and
/// added one after the other, to c if `accumulate` is set. These two count denormal numbers as 0.
/// The result does not depend on threads, nor on the instruction set as long as it has fused
/// multiply-add, but for bfloat16 with these two.
lmk_status lmk_matmul_run(const lmk_matmul *matmul, void *LMK_NULLABLE workspace,
                          size_t workspace_size, lmk_error *LMK_NULLABLE error);

// MARK: Limits of the machine

/// Runs `iterations` rounds of independent fused multiply-adds in registers on this thread and
/// returns the number of floating-point operations done (a multiply-add is two). `dtype` BFLOAT16
/// runs the dot product of pairs, or tiles of it; returns 0 where there is neither.
double lmk_probe_arithmetic(lmk_dtype dtype, size_t iterations);

/// Reads `count` floats once and returns their sum.
float lmk_probe_read(const float *x LMK_NOESCAPE, size_t count);

/// Copies `count` floats; `streaming` nonzero bypasses the caches where the instruction set can.
void lmk_probe_copy(const float *x LMK_NOESCAPE, float *y LMK_NOESCAPE, size_t count,
                    int streaming);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
