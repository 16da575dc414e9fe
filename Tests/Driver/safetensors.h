// A reader for safetensors files that are known to be good: those of Tests/Conformance.
#ifndef DRIVER_SAFETENSORS_H
#define DRIVER_SAFETENSORS_H

#include <stddef.h>

typedef struct safetensors {
    /// The JSON header, zero-terminated, and the bytes behind it.
    char *header, *data;
    size_t data_size;
} safetensors;

typedef struct tensor {
    /// "F32", "F64", "I64", ...; empty when the file has no such tensor.
    char dtype[8];
    size_t shape[4];
    size_t dimensions, count;
    /// A copy of its own, so that sanitizers see its ends. Free with free().
    void *data;
} tensor;

/// Exits with 2 and a message when the file cannot be read.
safetensors safetensors_read(const char *path);
void safetensors_free(safetensors *file);

/// `data` is null when there is no such tensor.
tensor safetensors_tensor(const safetensors *file, const char *name);

/// Whether this is the file's operator.
int safetensors_is(const safetensors *file, const char *op);

/// Complains, in the name of `source`, unless `got` is the tensor `name` to its tolerance; says
/// nothing when there is no such tensor.
void safetensors_check(const safetensors *file, const char *source, const char *name,
                       const float *got);

/// A number of the metadata's `attributes` or `tolerance`; `otherwise` where it is absent or null.
double safetensors_number(const safetensors *file, const char *group, const char *name,
                          double otherwise);

/// Whether an attribute is true.
int safetensors_flag(const safetensors *file, const char *name);

#endif
