// What the machine can do at best: arithmetic in registers, reading and copying. Included inside a
// region.

#if defined(LMK_TARGET_AMX)

/// Six independent chains: one product takes 16 cycles, and 52 until its sums can be used. Of
/// numbers with all their bits: with simple ones the processor runs faster than in any product.
static double probe_arithmetic(size_t iterations) {
    enum { CHAINS = 6 };
    uint16_t numbers[16][32];
    for (size_t i = 0; i < 16; i++) {
        for (size_t j = 0; j < 32; j++) {
            const uint32_t mixed = (uint32_t)(32 * i + j + 1) * 0x9e3779b1u;
            numbers[i][j] = (uint16_t)(0x3c00 + (mixed >> 23) | (mixed & 0x8000));
        }
    }
    begin_tiles();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_loadd(6, numbers, 64);
    _tile_loadd(7, numbers, 64);
    for (size_t k = 0; k < iterations; k++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    end_tiles();
    return 2.0 * CHAINS * 16 * 16 * 32 * (double)iterations;
}

#else

/// 24 independent chains: two units with a latency of four to five cycles need ten; loops are long
/// enough to hide the counter.
static double probe_arithmetic(size_t iterations) {
#if defined(LMK_TARGET_GENERIC)
    enum { CHAINS = 3 }; // 3 x 4 registers of 4 lanes
#elif defined(LMK_TARGET_AVX2)
    enum { CHAINS = 6 };
#elif defined(LMK_TARGET_NEON)
    enum { CHAINS = 6 };
#else
    enum { CHAINS = 24 };
#endif
    f32x16 sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) sum[i] = splat(0.001f * (float)(i + 1));
    f32x16 a = splat(0.999f), b = splat(0.0001f);
    for (size_t k = 0; k < iterations; k++) {
        // Opaque to the optimiser, or it would fold the loop.
        LMK_UNROLL
        for (int i = 0; i < CHAINS; i++) {
#if defined(LMK_TARGET_AVX512_BF16)
            TILE_STEP(sum[i], a, b);
#else
            sum[i] = sum[i] * a + b;
#endif
        }
#if defined(__x86_64__) && (defined(LMK_AVX512))
        __asm__ volatile("" : "+v"(a), "+v"(b));
#endif
    }
    f32x16 total = splat(0);
    for (int i = 0; i < CHAINS; i++) total += sum[i];
    // The sum is finite, so this adds nothing; it keeps the loop alive.
    const float s = reduce_sum(total);
    return 2.0 * ELEMENTS_PER_STEP * LMK_LANES * CHAINS * (double)iterations + (s == s ? 0.0 : 1.0);
}

#endif

#if ELEMENTS_PER_STEP == 1

static float probe_read(const float *x, size_t count) {
    f32x16 sum[8];
    for (int i = 0; i < 8; i++) sum[i] = splat(0);
    size_t k = 0;
    for (; k + 8 * LMK_LANES <= count; k += 8 * LMK_LANES) {
        LMK_UNROLL
        for (int i = 0; i < 8; i++) sum[i] += load(x + k + LMK_LANES * i);
    }
    f32x16 total = splat(0);
    for (int i = 0; i < 8; i++) total += sum[i];
    float rest = reduce_sum(total);
    for (; k < count; k++) rest += x[k];
    return rest;
}

static void probe_copy(const float *x, float *y, size_t count, int streaming) {
    size_t k = 0;
    if (streaming && ((uintptr_t)y & 63u) == 0) {
        for (; k + LMK_LANES <= count; k += LMK_LANES)
            __builtin_nontemporal_store(load(x + k), (f32x16 *)(void *)(y + k));
#if defined(__x86_64__)
        __asm__ volatile("sfence" ::: "memory");
#endif
    }
    for (; k + LMK_LANES <= count; k += LMK_LANES) store(y + k, load(x + k));
    for (; k < count; k++) y[k] = x[k];
}

#endif
