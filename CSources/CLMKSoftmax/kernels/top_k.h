// The largest entries of a row, and softmax over them. Included inside a region, after rows.h.

/// Integers in the order of x: NaN above every number, -0 and 0 equal.
LMK_INLINE i32x16 orders_of(f32x16 x) {
    const i32x16 bits = signed_of(bits_of(x + 0.0f));
    const i32x16 order = bits ^ ((bits >> 31) & 0x7fffffff);
    return x == x ? order : (i32x16)INT32_MAX;
}

LMK_INLINE float entry(const void *row, lmk_dtype dtype, size_t i) {
    return load_first_as(row, dtype, i, 1).x;
}

// ---- Few entries: the largest one, again and again.

#define FEW_COLUMNS 256
#define FEW_COUNT 32

/// Column of the largest order, the first of equal ones.
LMK_INLINE int32_t largest_of(const int32_t *orders, size_t columns) {
    i32x16 best = (i32x16)INT32_MIN, at = (i32x16)INT32_MAX;
    for (size_t i = 0; i < columns; i += LMK_LANES) {
        const i32x16 here = *(const i32x16 *)(const void *)(orders + i);
        const i32x16 is_larger = here > best;
        best = is_larger ? here : best;
        at = is_larger ? lane_numbers() + (int32_t)i : at;
    }
    const int32_t largest = __builtin_reduce_max(best);
    const i32x16 first = best == largest ? at : (i32x16)INT32_MAX;
    return __builtin_reduce_min(first);
}

LMK_INLINE void find_top_of_few(const lmk_top_k *t, const void *x, lmk_dtype dtype,
                                int32_t *indices) {
    _Alignas(64) int32_t orders[FEW_COLUMNS];
    for (size_t i = 0; i < t->columns; i += LMK_LANES) {
        const size_t count = t->columns - i;
        const i32x16 here = orders_of(entries(x, dtype, i, count));
        // No entry has the lowest integer: lanes beyond the row, and those that were taken.
        const i32x16 present = lanes_below(count) ? here : (i32x16)INT32_MIN;
        *(i32x16 *)(void *)(orders + i) = present;
    }
    for (size_t k = 0; k < t->count; k++) {
        indices[k] = largest_of(orders, t->columns);
        orders[indices[k]] = INT32_MIN;
    }
}

// ---- Many entries: a heap of the largest so far, the least of them on top.

/// Orders of this many are kept beside the heap; of larger ones they are computed again.
#define ORDERS_KEPT 1024

typedef struct top_heap {
    const void *x;
    lmk_dtype dtype;
    int32_t *indices;
    /// `room` is the size to come.
    size_t size, room;
    int32_t orders[ORDERS_KEPT];
} top_heap;

typedef struct top_entry {
    int32_t order, index;
} top_entry;

LMK_INLINE top_entry heap_at(const top_heap *heap, size_t k) {
    const int32_t index = heap->indices[k];
    if (heap->room <= ORDERS_KEPT) return (top_entry){heap->orders[k], index};
    return (top_entry){orders_of(splat(entry(heap->x, heap->dtype, (size_t)index))).x, index};
}

LMK_INLINE void put_heap(top_heap *heap, size_t k, top_entry e) {
    if (heap->room <= ORDERS_KEPT) heap->orders[k] = e.order;
    heap->indices[k] = e.index;
}

/// Whether a comes after b among the largest: it is smaller, or equal and further right.
LMK_INLINE int is_after(top_entry a, top_entry b) {
    return a.order < b.order || (a.order == b.order && a.index > b.index);
}

/// Puts `e` at `k` or below, where nothing under it comes after it.
LMK_INLINE void sift_down(top_heap *heap, size_t k, top_entry e) {
    for (size_t child = 2 * k + 1; child < heap->size; child = 2 * k + 1) {
        top_entry last = heap_at(heap, child);
        if (child + 1 < heap->size) {
            const top_entry other = heap_at(heap, child + 1);
            if (is_after(other, last)) {
                last = other;
                child++;
            }
        }
        if (!is_after(last, e)) break;
        put_heap(heap, k, last);
        k = child;
    }
    put_heap(heap, k, e);
}

LMK_INLINE void fill_heap(top_heap *heap) {
    heap->size = heap->room;
    for (size_t i = 0; i < heap->room; i++) {
        const int32_t order = orders_of(splat(entry(heap->x, heap->dtype, i))).x;
        put_heap(heap, i, (top_entry){order, (int32_t)i});
    }
    for (size_t k = heap->size / 2; k-- > 0;) sift_down(heap, k, heap_at(heap, k));
}

LMK_INLINE void find_top_of_many(const lmk_top_k *t, const void *x, lmk_dtype dtype,
                                 int32_t *indices) {
    top_heap heap;
    heap.x = x;
    heap.dtype = dtype;
    heap.indices = indices;
    heap.room = t->count;
    fill_heap(&heap);
    int32_t last = heap_at(&heap, 0).order;
    for (size_t i = t->count; i < t->columns; i += LMK_LANES) {
        const size_t count = t->columns - i;
        fetch_near(x, dtype, i);
        const i32x16 orders = orders_of(entries(x, dtype, i, count));
        // An entry that equals the least of the heap lies further right.
        if (!any_of((orders > last) & lanes_below(count))) continue;
        int32_t lanes[LMK_LANES];
        __builtin_memcpy(lanes, &orders, sizeof lanes);
        for (size_t k = 0; k < LMK_LANES && k < count; k++) {
            if (lanes[k] <= last) continue;
            sift_down(&heap, 0, (top_entry){lanes[k], (int32_t)(i + k)});
            last = heap_at(&heap, 0).order;
        }
    }
    // The least goes behind the others, then the least of those.
    while (heap.size > 1) {
        const top_entry least = heap_at(&heap, 0), bottom = heap_at(&heap, heap.size - 1);
        heap.size--;
        sift_down(&heap, 0, bottom);
        put_heap(&heap, heap.size, least);
    }
}

LMK_INLINE void top_k_row(const lmk_top_k *t, const void *x, lmk_dtype dtype, int32_t *indices,
                          void *gates) {
    if (t->columns <= FEW_COLUMNS && t->count <= FEW_COUNT) find_top_of_few(t, x, dtype, indices);
    else find_top_of_many(t, x, dtype, indices);
    for (size_t k = 0; k < t->count; k++)
        store_first_as(gates, dtype, k, splat(entry(x, dtype, (size_t)indices[k])), 1);
    // In descending order of x, the largest of scale x is at one end.
    const float scale = t->scale, max = entry(gates, dtype, scale < 0 ? t->count - 1 : 0) * scale;
    f32x16 sum = splat(0);
    for (size_t i = 0; i < t->count; i += LMK_LANES) {
        const f32x16 u = entries(gates, dtype, i, t->count - i) * scale;
        sum += choose(lanes_below(t->count - i), vexp_difference(u - max, 1), splat(0));
    }
    const float factor = 1.0f / reduce_sum(sum);
    for (size_t i = 0; i < t->count; i += LMK_LANES) {
        const f32x16 u = entries(gates, dtype, i, t->count - i) * scale;
        put_entries(gates, dtype, i, vexp_difference(u - max, 1) * factor, t->count - i);
    }
}

LMK_INLINE void top_k_gradient_row(const lmk_top_k *t, const void *x, lmk_dtype dtype,
                                   const int32_t *indices, const void *gates, const void *dgates,
                                   void *dx, float *dscale) {
    f32x16 dots = splat(0), scale_sums = splat(0);
    for (size_t i = 0; i < t->count; i += LMK_LANES) {
        const size_t count = t->count - i;
        dots = entries(gates, dtype, i, count) * entries(dgates, dtype, i, count) + dots;
    }
    const float dot = reduce_sum(dots);
    if (dx) fill_row(dx, dtype, 0, t->columns, 0);
    for (size_t i = 0; i < t->count; i += LMK_LANES) {
        const size_t count = t->count - i;
        const f32x16 gate = entries(gates, dtype, i, count);
        const f32x16 du = gate * (entries(dgates, dtype, i, count) - dot);
        const f32x16 to = du * t->scale;
        float lanes[LMK_LANES], chosen[LMK_LANES] = {0};
        store(lanes, to);
        for (size_t k = 0; k < LMK_LANES && k < count; k++) {
            const size_t column = (size_t)indices[i + k];
            if (dx) store_first_as(dx, dtype, column, splat(lanes[k]), 1);
            if (dscale) chosen[k] = entry(x, dtype, column);
        }
        const i32x16 counts = (gate != 0.0f) & lanes_below(count);
        scale_sums =
            choose(counts, load(chosen), splat(0)) * choose(counts, du, splat(0)) + scale_sums;
    }
    if (dscale) *dscale = reduce_sum(scale_sums);
}

#define FOR_DTYPE(dtype, CALL)                                                                     \
    switch (dtype) {                                                                               \
    case LMK_FLOAT32: CALL(LMK_FLOAT32); break;                                                    \
    case LMK_BFLOAT16: CALL(LMK_BFLOAT16); break;                                                  \
    case LMK_FLOAT16: CALL(LMK_FLOAT16); break;                                                    \
    }

static void top_k(const lmk_top_k *t, size_t row, size_t rows, int32_t *indices, void *gates) {
    for (size_t r = row; r < row + rows; r++) {
#define CALL(DTYPE)                                                                                \
    top_k_row(t, row_at(t->x, DTYPE, t->x_stride, r), DTYPE, indices + t->count * r,               \
              row_at(gates, DTYPE, t->count, r))
        FOR_DTYPE(t->dtype, CALL)
#undef CALL
    }
}

static void top_k_gradient(const lmk_top_k *t, size_t row, size_t rows, const int32_t *indices,
                           const void *gates, const void *dgates, void *dx, size_t dx_stride,
                           float *dscale) {
    for (size_t r = row; r < row + rows; r++) {
#define CALL(DTYPE)                                                                                \
    top_k_gradient_row(t, row_at(t->x, DTYPE, t->x_stride, r), DTYPE, indices + t->count * r,      \
                       row_at(gates, DTYPE, t->count, r), row_at(dgates, DTYPE, t->count, r),      \
                       dx ? row_at(dx, DTYPE, dx_stride, r) : 0, dscale ? dscale + r : 0)
        FOR_DTYPE(t->dtype, CALL)
#undef CALL
    }
}
