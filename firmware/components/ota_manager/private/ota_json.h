// Reads one JSON object in the buffer it came in, with the verdicts of Go's package strictjson: UTF-8, keys exactly as
// written and each at most once, nothing after the object, limits on keys, nesting and numbers. Unknown keys are skipped.
//
// Nothing is allocated and nothing recurses: the nesting of a value is a word of bits. Texts are decoded where they stand
// (a decoded text is never longer than its JSON), so the buffer is spent when the fields have been taken.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_JSON_MAX_KEYS 64      // of one object
#define OTA_JSON_MAX_DEPTH 32     // objects and arrays within each other, in the value of one key
#define OTA_JSON_MAX_NUMBER 32    // bytes of a number that is read

typedef enum {
    OTA_FIELD_JSON,    // a JSON value as it came
    OTA_FIELD_TEXT,    // a text: decoded, or from a key=value line
    OTA_FIELD_TRUE,    // the boolean, said by something else than a value
} ota_field_kind_t;

typedef struct {
    const char *key;                  // not NUL-terminated
    uint16_t key_len;
    uint16_t value, value_len;        // in the buffer
    uint8_t kind;
} ota_field_t;

// The fields of one object, about 800 bytes on a 32-bit chip. The functions that take fields keep the first error, so that a
// caller reads a list of them and asks once.
typedef struct {
    char *base;
    char *why;                        // gets the sentence of the first error
    size_t why_size;
    uint16_t count;
    bool bad;
    ota_field_t field[OTA_JSON_MAX_KEYS];
} ota_object_t;

// Starts an object without fields over base, of at most 65,535 bytes; why (may be NULL) must outlive it.
void ota_object_init(ota_object_t *o, char *base, char *why, size_t why_size);
// Adds a field that lies in base; false (and bad) for a key that stands twice or one too many.
bool ota_object_add(ota_object_t *o, ota_field_t f);
// Reads the top level of the JSON object b. False: it is none, and why says so.
bool ota_object_parse(ota_object_t *o, char *b, size_t len, char *why, size_t why_size);

// Each leaves *v alone when the field is absent or null, and marks the object bad when it has another type or range.
void ota_object_bool(ota_object_t *o, const char *key, bool *v);
void ota_object_int(ota_object_t *o, const char *key, int64_t *v);
void ota_object_uint32(ota_object_t *o, const char *key, uint32_t *v);
void ota_object_double(ota_object_t *o, const char *key, double *v);
// A text of at most limit bytes without control characters but newline and tab. *v points into the buffer, NUL-terminated;
// an empty text leaves it alone.
void ota_object_text(ota_object_t *o, const char *key, size_t limit, const char **v);
// Opens a nested object; false when it is absent, null or bad. When its fields have been taken, ota_object_close hands what
// was bad in it to the outer one.
bool ota_object_sub(ota_object_t *o, const char *key, ota_object_t *sub);
void ota_object_close(ota_object_t *o, const ota_object_t *sub);

// Reads a number of digits, with a sign perhaps, as Go's strconv.Atoi does; plus says whether + is one.
bool ota_parse_int(const char *s, size_t len, bool plus, int64_t *v);

#ifdef __cplusplus
}
#endif
