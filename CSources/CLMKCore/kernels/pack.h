// Packing of operands into panels. Included inside a region, after the header that says how wide
// panels are (ROW_PANEL), how many elements a step has (ELEMENTS_PER_STEP) and of how many steps
// operands are made up with zeros to a multiple (STEP_UNIT).

LMK_INLINE size_t bytes_of(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// Elements of a lane from `at` on; steps that make up a multiple of STEP_UNIT have none.
LMK_INLINE size_t elements_from(size_t at, size_t depth) {
    return STEP_UNIT > 1 && at > depth ? 0 : depth - at;
}

/// 16 elements as float32, or those below `count` and zero.
LMK_INLINE f32x16 load_elements(const void *x, lmk_dtype dtype, size_t count) {
    return count >= LMK_LANES ? load_as(x, dtype, 0) : load_first_as(x, dtype, 0, count);
}

/// 16 steps of one lane; elements beyond `count` are zero.
LMK_INLINE f32x16 load_steps(const void *x, lmk_dtype dtype, size_t count) {
#if ELEMENTS_PER_STEP == 2
    (void)dtype;
    if (count >= 2 * LMK_LANES) return *(const f32x16_of_halves *)x;
    const uint16_t *const halves = x;
    const size_t second = count > LMK_LANES ? count - LMK_LANES : 0;
    uint16_t pairs[2 * LMK_LANES];
    load_first_halves(pairs, halves, count < LMK_LANES ? count : LMK_LANES);
    load_first_halves(pairs + LMK_LANES, second > 0 ? halves + LMK_LANES : halves, second);
    return *(const f32x16_of_halves *)(const void *)pairs;
#else
    return load_elements(x, dtype, count);
#endif
}

/// The depth is contiguous: 16 steps of `lanes` lanes from `lane` on are transposed at a time.
LMK_INLINE void pack_transposed(float *panel, size_t width, int lanes, const lmk_operand *x,
                                lmk_dtype dtype, size_t lane, size_t step, size_t steps) {
    const size_t bytes = bytes_of(dtype), depth = x->depth,
                 present = lane < x->lanes ? x->lanes - lane : 0;
    // The lanes after these are fetched meanwhile: 8 short streams are more than the hardware
    // follows.
    const size_t next_group = bytes * x->stride * (size_t)lanes;
    const char *source[TRANSPOSE_LANES];
    for (int i = 0; i < lanes; i++) {
        // An absent lane repeats the first one; nobody keeps what is computed from it.
        const size_t at = (size_t)i < present ? lane + (size_t)i : x->lanes - 1;
        source[i] = (const char *)x->data + bytes * x->stride * (x->index ? x->index[at] : at);
    }
    for (size_t k = 0; k < steps; k += LMK_LANES) {
        const size_t at = (step + k) * ELEMENTS_PER_STEP, count = elements_from(at, depth);
        f32x16 rows[TRANSPOSE_LANES];
        if (count >= LMK_LANES * ELEMENTS_PER_STEP && steps - k >= LMK_LANES) {
            LMK_UNROLL
            for (int i = 0; i < lanes; i++) {
                __builtin_prefetch(source[i] + bytes * at + next_group);
                rows[i] = load_steps(source[i] + bytes * at, dtype, LMK_LANES * ELEMENTS_PER_STEP);
            }
            transpose_lanes(rows, lanes, panel + k * width, width);
            continue;
        }
        _Alignas(64) float last[LMK_LANES][LMK_LANES];
        for (int i = 0; i < lanes; i++) rows[i] = load_steps(source[i] + bytes * at, dtype, count);
        transpose_lanes(rows, lanes, last[0], LMK_LANES);
        for (size_t s = 0; s < steps - k && s < LMK_LANES; s++) {
            for (int i = 0; i < lanes; i++) panel[(k + s) * width + (size_t)i] = last[s][i];
        }
    }
}

/// 16 lanes of one step, from the row that holds them (and the next, for pairs of bfloat16); zero
/// from `count` on.
LMK_INLINE f32x16 load_lanes(const char *row, const char *next, lmk_dtype dtype, size_t count) {
#if ELEMENTS_PER_STEP == 2
    (void)dtype;
    const __mmask16 mask = (__mmask16)(count >= LMK_LANES ? 0xffffu : (1u << count) - 1u);
    const u32x16 first = (u32x16)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    if (!next) return floats_of(first);
    const u32x16 second = (u32x16)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, next));
    return floats_of(first | second << 16);
#else
    (void)next;
    return load_elements(row, dtype, count);
#endif
}

/// The lanes are contiguous: rows of them are copied.
LMK_INLINE void pack_copied(float *to, size_t width, const lmk_operand *operand, lmk_dtype dtype,
                            const size_t *lanes, size_t panels, size_t step, size_t steps) {
    // Copies on the stack: stores to the panel could otherwise change them, for all the compiler
    // knows.
    const lmk_operand x = *operand;
    size_t offset[LMK_PACK_GROUP], present[LMK_PACK_GROUP];
    for (size_t panel = 0; panel < panels; panel++) {
        offset[panel] = bytes_of(dtype) * lanes[panel];
        present[panel] = x.lanes - lanes[panel];
    }
    const size_t row_bytes = bytes_of(dtype) * x.stride;
    for (size_t k = 0; k < steps; k++) {
        const size_t at = (step + k) * ELEMENTS_PER_STEP;
        if (STEP_UNIT > 1 && at >= x.depth) {
            for (size_t panel = 0; panel < panels; panel++)
                __builtin_memset(to + (panel * steps + k) * width, 0, sizeof *to * width);
            continue;
        }
        const char *const row = (const char *)x.data + row_bytes * (x.index ? x.index[at] : at);
        const char *next = 0;
        if (ELEMENTS_PER_STEP == 2 && at + 1 < x.depth) {
            next = (const char *)x.data + row_bytes * (x.index ? x.index[at + 1] : at + 1);
        }
        for (size_t panel = 0; panel < panels; panel++) {
            float *const put = to + (panel * steps + k) * width;
            const char *const lane = row + offset[panel], *const next_lane =
                                                              next ? next + offset[panel] : 0;
            const f32x16 values = load_lanes(lane, next_lane, dtype, present[panel]);
            if (width == 4) {
                *(f32x4_unaligned *)put = values.lo.lo;
            } else if (width == 8) {
                *(f32x8_unaligned *)put = values.lo;
            } else {
                store(put, values);
            }
            if (width <= LMK_LANES) continue;
            const size_t more = present[panel] > LMK_LANES ? present[panel] - LMK_LANES : 0;
            const size_t skip = bytes_of(dtype) * LMK_LANES;
            store(put + LMK_LANES,
                  more == 0 ? splat(0)
                            : load_lanes(lane + skip, next ? next_lane + skip : 0, dtype, more));
        }
    }
}

LMK_INLINE void pack_as(float *to, size_t width, const lmk_operand *x, lmk_dtype dtype,
                        const size_t *lanes, size_t panels, size_t step, size_t steps) {
    if (!x->depth_contiguous) {
        pack_copied(to, width, x, dtype, lanes, panels, step, steps);
        return;
    }
    const int group = width < TRANSPOSE_LANES ? (int)width : TRANSPOSE_LANES;
    for (size_t i = 0; i < panels; i++) {
        for (size_t j = 0; j < width; j += (size_t)group) {
            pack_transposed(to + i * width * steps + j, width, group, x, dtype, lanes[i] + j, step,
                            steps);
        }
    }
}

static void pack_panels(void *to, size_t width, const lmk_operand *x, const size_t *lanes,
                        size_t panels, size_t step, size_t steps) {
    // Constant widths and types: the loops inside are then without tests.
#define PACK(DTYPE)                                                                                \
    case DTYPE:                                                                                    \
        if (width == ROW_PANEL) pack_as(to, ROW_PANEL, x, DTYPE, lanes, panels, step, steps);      \
        else if (width == LMK_LANES) pack_as(to, LMK_LANES, x, DTYPE, lanes, panels, step, steps); \
        else pack_as(to, 2 * LMK_LANES, x, DTYPE, lanes, panels, step, steps);                     \
        break;
    switch (x->dtype) {
#if ELEMENTS_PER_STEP == 1
        PACK(LMK_FLOAT32)
        PACK(LMK_FLOAT16)
#endif
        PACK(LMK_BFLOAT16)
    default: break;
    }
#undef PACK
}
