#include "safetensors.h"
#include "driver.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void fail(const char *path, const char *why) {
    fprintf(stderr, "%s: %s\n", path, why);
    exit(2);
}

safetensors safetensors_read(const char *path) {
    FILE *const stream = fopen(path, "rb");
    if (!stream) fail(path, "cannot be opened");
    fseek(stream, 0, SEEK_END);
    const long size = ftell(stream);
    rewind(stream);
    uint64_t length;
    if (size < 8 || fread(&length, 1, 8, stream) != 8 || length > (uint64_t)size - 8)
        fail(path, "no header");
    safetensors file = {.data_size = (size_t)size - 8 - length};
    file.header = calloc(length + 1, 1);
    file.data = malloc(file.data_size + 1);
    if (!file.header || !file.data) fail(path, "no memory");
    if (fread(file.header, 1, length, stream) != length ||
        fread(file.data, 1, file.data_size, stream) != file.data_size) {
        fail(path, "shorter than it says");
    }
    fclose(stream);
    return file;
}

void safetensors_free(safetensors *file) {
    free(file->header);
    free(file->data);
    *file = (safetensors){0};
}

/// What follows `"name":` after `from`, without spaces; null where there is none.
static const char *value_of(const char *from, const char *name, const char *quote) {
    char key[80];
    snprintf(key, sizeof key, "%s%s%s:", quote, name, quote);
    const char *const at = from ? strstr(from, key) : 0;
    return at ? at + strlen(key) + strspn(at + strlen(key), " ") : 0;
}

static size_t element_size(const char *dtype) {
    if (strstr(dtype, "64")) return 8;
    return strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0 ? 4 : 2;
}

tensor safetensors_tensor(const safetensors *file, const char *name) {
    tensor t = {.count = 1};
    const char *const entry = value_of(file->header, name, "\"");
    const char *const dtype = value_of(entry, "dtype", "\""),
                      *shape = value_of(entry, "shape", "\"");
    const char *const offsets = value_of(entry, "data_offsets", "\"");
    size_t begin, end;
    if (!entry) return t;
    if (!dtype || !shape || !offsets || sscanf(dtype, "\"%7[A-Z0-9]", t.dtype) != 1 ||
        sscanf(offsets, "[%zu,%zu]", &begin, &end) != 2 || begin > end || end > file->data_size) {
        fail(name, "bad entry");
    }
    for (shape++; *shape != ']' && t.dimensions < 4;) {
        char *next;
        t.shape[t.dimensions] = strtoull(shape, &next, 10);
        t.count *= t.shape[t.dimensions++];
        shape = next + strspn(next, ", ");
    }
    if (t.count * element_size(t.dtype) != end - begin) fail(name, "shape and offsets disagree");
    t.data = malloc(end - begin);
    if (!t.data) fail(name, "no memory");
    memcpy(t.data, file->data + begin, end - begin);
    return t;
}

double safetensors_number(const safetensors *file, const char *group, const char *name,
                          double otherwise) {
    // The groups are JSON objects in strings: their quotes are escaped.
    const char *const value = value_of(value_of(file->header, group, "\""), name, "\\\"");
    return !value || strncmp(value, "null", 4) == 0 ? otherwise : strtod(value, 0);
}

int safetensors_flag(const safetensors *file, const char *name) {
    const char *const value = value_of(value_of(file->header, "attributes", "\""), name, "\\\"");
    return value && strncmp(value, "true", 4) == 0;
}

int safetensors_is(const safetensors *file, const char *op) {
    const char *const value = value_of(file->header, "op", "\"");
    const size_t length = strlen(op);
    return value && value[0] == '"' && strncmp(value + 1, op, length) == 0 &&
           value[length + 1] == '"';
}

void safetensors_check(const safetensors *file, const char *source, const char *name,
                       const float *got) {
    tensor expected = safetensors_tensor(file, name);
    const double tolerance = safetensors_number(file, "tolerance", name, NAN);
    if (!expected.data) return;
    double difference = 0, norm = 0;
    int non_finite = 0;
    for (size_t k = 0; k < expected.count; k++) {
        const double want = ((const double *)expected.data)[k], have = (double)got[k];
        if (isfinite(want)) {
            difference += (have - want) * (have - want);
            norm += want * want;
        } else {
            non_finite |= isnan(want) ? !isnan(have) : have != want;
        }
    }
    const double error =
        sqrt(norm) < 1e-30 ? sqrt(difference) / 1e-6 * tolerance : sqrt(difference / norm);
    if (non_finite || !(error <= tolerance))
        complain("%s %s: error %g, tolerance %g", source, name, error, tolerance);
    free(expected.data);
}
