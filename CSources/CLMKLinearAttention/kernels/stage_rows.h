// Rows in any storage type. Included inside a region.

LMK_INLINE size_t stage_size(lmk_dtype dtype) { return dtype == LMK_FLOAT32 ? 4 : 2; }

/// Element i; null where the tensor is.
LMK_INLINE void *stage_at(const void *data, lmk_dtype dtype, size_t i) {
    return data ? (char *)(uintptr_t)data + stage_size(dtype) * i : 0;
}

/// 16 entries from entry i on, of which `count` are there; the others are 0.
LMK_INLINE f32x16 stage_load(const void *row, lmk_dtype dtype, size_t i, size_t count) {
    return count >= LMK_LANES ? load_as(row, dtype, i) : load_first_as(row, dtype, i, count);
}

LMK_INLINE void stage_store(void *row, lmk_dtype dtype, size_t i, f32x16 v, size_t count) {
    if (count >= LMK_LANES) store_as(row, dtype, i, v);
    else store_first_as(row, dtype, i, v, count);
}

/// The same past the caches where `streams`, a constant, and a whole vector; entry i then lies at a
/// multiple of a vector's size.
LMK_INLINE void stage_stream(void *row, lmk_dtype dtype, size_t i, f32x16 v, size_t count,
                             int streams) {
    if (!streams || count < LMK_LANES) {
        stage_store(row, dtype, i, v, count);
    } else if (dtype == LMK_FLOAT32) {
        __builtin_nontemporal_store(v, (f32x16 *)(void *)((float *)row + i));
    } else {
        uint16_t *const to = (uint16_t *)row + i;
        __builtin_nontemporal_store(dtype == LMK_BFLOAT16 ? to_bf16(v) : to_f16(v),
                                    (u16x16 *)(void *)to);
    }
}

/// Runs the last argument for every 16 entries of 0 ..< `end`, with `i` the first and `count` how
/// many are left, 16 in whole vectors. The first `head` < 16 entries are a vector by themselves.
#define STAGE_EACH_VECTOR(head, end, ...)                                                          \
    do {                                                                                           \
        size_t next = 0;                                                                           \
        if ((head) > 0) {                                                                          \
            const size_t i = 0, count = (head) < (end) ? (head) : (end);                           \
            __VA_ARGS__;                                                                           \
            next = count;                                                                          \
        }                                                                                          \
        for (; next + LMK_LANES <= (end); next += LMK_LANES) {                                     \
            const size_t i = next, count = LMK_LANES;                                              \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
        if (next < (end)) {                                                                        \
            const size_t i = next, count = (end)-next;                                             \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)
