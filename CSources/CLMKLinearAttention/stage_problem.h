// Validation of the stages around linear attention, and where their sequences lie.
#ifndef LMK_STAGE_PROBLEM_H
#define LMK_STAGE_PROBLEM_H

#include "lmk_check.h"
#include "lmk_token_stages.h"

/// Extents of a tensor of rows.
typedef struct stage_extents {
    size_t batch, tokens, heads, columns;
} stage_extents;

lmk_status lmk_stage_check_dtype(lmk_dtype dtype, lmk_error *error);

/// The names of a tensor and of its strides in errors.
typedef struct stage_name {
    const char *data, *batch, *token, *head;
} stage_name;

#define STAGE_NAME(name)                                                                           \
    (stage_name) { name, name "_strides.batch", name "_strides.token", name "_strides.head" }

/// Rows must not overlap, and the data must be there if there are any.
lmk_status lmk_stage_check_tensor(stage_name name, const void *data, stage_extents extents,
                                  lmk_token_strides strides, size_t size, lmk_error *error);

/// What is not a tensor by strides: its bytes must be countable, and it must be there if it has
/// any. Null is let pass where it is optional.
lmk_status lmk_stage_check_dense(const char *name, const void *data, size_t rows, size_t columns,
                                 int is_optional, lmk_error *error);

lmk_status lmk_stage_check_offsets(size_t batch, size_t tokens, const int64_t *offsets,
                                   size_t sequences, lmk_error *error);

lmk_status lmk_stage_check_workspace(const void *workspace, size_t size, size_t needed,
                                     lmk_error *error);

/// Sequences of a batch, packed or not.
typedef struct stage_sequences {
    size_t count, tokens;
    /// Null: sequence n is the batch's n-th.
    const int64_t *offsets;
} stage_sequences;

static inline stage_sequences stage_sequences_of(size_t batch, size_t tokens,
                                                 const int64_t *offsets, size_t sequences) {
    return (stage_sequences){offsets ? sequences : batch, tokens, offsets};
}

static inline size_t stage_length(const stage_sequences *s, size_t n) {
    return s->offsets ? (size_t)(s->offsets[n + 1] - s->offsets[n]) : s->tokens;
}

/// Where sequence n begins among the rows of the whole batch.
static inline size_t stage_start(const stage_sequences *s, size_t n) {
    return s->offsets ? (size_t)s->offsets[n] : s->tokens * n;
}

/// The element at which token `t` of sequence n begins.
static inline size_t stage_place(const stage_sequences *s, lmk_token_strides strides, size_t n,
                                 size_t t) {
    if (s->offsets) return strides.token * ((size_t)s->offsets[n] + t);
    return strides.batch * n + strides.token * t;
}

/// The sequence that has a row of the batch; one that has any if several begin there.
size_t lmk_stage_sequence_of(const stage_sequences *sequences, size_t row);

/// Null where the tensor is.
static inline void *stage_element(const void *data, lmk_dtype dtype, size_t i) {
    return data ? (char *)(uintptr_t)data + lmk_dtype_size(dtype) * i : 0;
}

/// lmk_cut, also into no parts of nothing.
static inline lmk_parts stage_cut(size_t total, size_t parts) {
    return parts > 0 ? lmk_cut(total, parts) : (lmk_parts){0, 0, 0};
}

/// Bytes of output that no cache is expected to keep.
#define STAGE_STREAMING_BYTES ((size_t)32 << 20)

/// Whether an output [batch, tokens, channels] is more than caches keep, and each of its rows
/// begins at the same distance from a line of 16 entries.
static inline int stage_streams(stage_extents extents, lmk_token_strides strides, size_t size) {
    const size_t columns = extents.columns;
    return columns > 0 &&
           extents.batch * extents.tokens >= STAGE_STREAMING_BYTES / columns / size &&
           strides.token % 16 == 0 && (extents.batch == 1 || strides.batch % 16 == 0);
}

/// Entries from `data` to the next line of 16.
static inline size_t stage_entries_to_line(const void *data, size_t size) {
    return (16 - (uintptr_t)data / size % 16) % 16;
}

/// Entries below which a call stays on its thread.
#define STAGE_SERIAL_ENTRIES ((size_t)16384)

#endif
