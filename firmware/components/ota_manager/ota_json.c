#include "ota_json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ota_utf8.h"

__attribute__((format(printf, 2, 3))) static bool refuse(ota_object_t *o, const char *format, ...)
{
    if (!o->bad && o->why && o->why_size > 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(o->why, o->why_size, format, args);
        va_end(args);
    }
    o->bad = true;
    return false;
}

// ---- The grammar (RFC 8259). Each function is given where something begins and gives back where it ends, NULL where it is
// not there.

static const char *skip_blank(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) {
        p++;
    }
    return p;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static const char *skip_string(const char *p, const char *end)
{
    if (p == end || *p++ != '"') {
        return NULL;
    }
    while (p < end) {
        char c = *p++;
        if (c == '"') {
            return p;
        }
        if ((uint8_t)c < ' ') {
            return NULL;
        }
        if (c != '\\') {
            continue;
        }
        if (p == end || *p == 0 || !strchr("\"\\/bfnrtu", *p)) {
            return NULL;
        }
        if (*p++ != 'u') {
            continue;
        }
        for (int i = 0; i < 4; i++) {
            if (p == end || hex_digit(*p++) < 0) {
                return NULL;
            }
        }
    }
    return NULL;
}

static const char *skip_digits(const char *p, const char *end)
{
    const char *from = p;
    while (p < end && *p >= '0' && *p <= '9') {
        p++;
    }
    return p > from ? p : NULL;
}

static const char *skip_number(const char *p, const char *end)
{
    if (p < end && *p == '-') {
        p++;
    }
    if (p < end && *p == '0') {
        p++;
    } else if (!(p = skip_digits(p, end))) {
        return NULL;
    }
    if (p < end && *p == '.' && !(p = skip_digits(p + 1, end))) {
        return NULL;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-')) {
            p++;
        }
        p = skip_digits(p, end);
    }
    return p;
}

static const char *skip_word(const char *p, const char *end, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(end - p) >= n && memcmp(p, word, n) == 0 ? p + n : NULL;
}

static const char *skip_scalar(const char *p, const char *end)
{
    switch (p < end ? *p : 0) {
    case '"': return skip_string(p, end);
    case 't': return skip_word(p, end, "true");
    case 'f': return skip_word(p, end, "false");
    case 'n': return skip_word(p, end, "null");
    default:  return skip_number(p, end);
    }
}

// A key and its colon.
static const char *skip_key(const char *p, const char *end)
{
    p = skip_string(skip_blank(p, end), end);
    if (!p) {
        return NULL;
    }
    p = skip_blank(p, end);
    return p < end && *p == ':' ? p + 1 : NULL;
}

// Any value. objects remembers what is open: one bit a level, set for an object.
static const char *skip_value(const char *p, const char *end, bool *deep)
{
    uint32_t objects = 0;
    int depth = 0;
    while (p) {
        p = skip_blank(p, end);
        bool opens = p < end && (*p == '{' || *p == '[');
        if (opens) {
            if (depth == OTA_JSON_MAX_DEPTH) {
                *deep = true;
                return NULL;
            }
            bool object = *p == '{';
            depth++;
            objects = objects << 1 | object;
            p = skip_blank(p + 1, end);
            if (p == end || *p != (object ? '}' : ']')) {
                p = object ? skip_key(p, end) : p;
                continue;
            }
        } else if (!(p = skip_scalar(p, end))) {
            return NULL;
        }
        for (; depth > 0; depth--, objects >>= 1, p++) {   // behind a value: closed ends, or a comma
            p = skip_blank(p, end);
            if (p < end && *p == ',') {
                p = objects & 1 ? skip_key(p + 1, end) : p + 1;
                break;
            }
            if (p == end || *p != (objects & 1 ? '}' : ']')) {
                return NULL;
            }
        }
        if (depth == 0) {
            return p;
        }
    }
    return NULL;
}

// ---- Decoding in place

static uint32_t four_hex(const char *p)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        v = v << 4 | (uint32_t)hex_digit(p[i]);
    }
    return v;
}

// The character of the escape \uXXXX at *p, which moves behind it. Two halves that belong together are one character, any
// other half is U+FFFD.
static uint32_t unicode_escape(const char **p)
{
    uint32_t c = four_hex(*p + 2);
    *p += 6;
    if (c < 0xd800 || c > 0xdfff) {
        return c;
    }
    if (c <= 0xdbff && (*p)[0] == '\\' && (*p)[1] == 'u') {
        uint32_t low = four_hex(*p + 2);
        if (low >= 0xdc00 && low <= 0xdfff) {
            *p += 6;
            return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    return 0xfffd;
}

// Decodes the string at s, which skip_string has accepted, to where it stands. The end is NUL-terminated, over the closing
// quotation mark at the latest.
static size_t decode_string(char *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char *out = s;
    const char *p = s + 1;
    while (*p != '"') {
        if (*p != '\\') {
            *out++ = *p++;
        } else if (p[1] == 'u') {
            out += ota_utf8_put(out, unicode_escape(&p));
        } else {
            *out++ = to[strchr(from, p[1]) - from];
            p += 2;
        }
    }
    *out = 0;
    return (size_t)(out - s);
}

// ---- Objects

void ota_object_init(ota_object_t *o, char *base, char *why, size_t why_size)
{
    o->base = base;
    o->why = why;
    o->why_size = why_size;
    o->count = 0;
    o->bad = false;
}

static ota_field_t *find(ota_object_t *o, const char *key, size_t len)
{
    for (uint16_t i = 0; i < o->count; i++) {
        if (o->field[i].key_len == len && memcmp(o->field[i].key, key, len) == 0) {
            return &o->field[i];
        }
    }
    return NULL;
}

bool ota_object_add(ota_object_t *o, ota_field_t f)
{
    if (find(o, f.key, f.key_len)) {
        return refuse(o, "key \"%.*s\" stands twice", f.key_len, f.key);
    }
    if (o->count == OTA_JSON_MAX_KEYS) {
        return refuse(o, "more than %d keys", OTA_JSON_MAX_KEYS);
    }
    o->field[o->count++] = f;
    return true;
}

// One key with its value; gives back where the value ends.
static char *parse_field(ota_object_t *o, char *p, char *end)
{
    char *key = p, *value = (char *)skip_key(p, end);
    if (!value) {
        refuse(o, "not JSON: a key is not in order");
        return NULL;
    }
    value = (char *)skip_blank(value, end);
    bool deep = false;
    char *behind = (char *)skip_value(value, end, &deep);
    if (!behind) {
        refuse(o, deep ? "nests more than %d deep" : "not JSON: a value is not in order", OTA_JSON_MAX_DEPTH);
        return NULL;
    }
    ota_field_t f = {
        .key = key, .key_len = (uint16_t)decode_string(key),
        .value = (uint16_t)(value - o->base), .value_len = (uint16_t)(behind - value), .kind = OTA_FIELD_JSON,
    };
    return ota_object_add(o, f) ? behind : NULL;
}

bool ota_object_parse(ota_object_t *o, char *b, size_t len, char *why, size_t why_size)
{
    ota_object_init(o, b, why, why_size);
    if (len > UINT16_MAX) {
        return refuse(o, "%u bytes are too many", (unsigned)len);
    }
    if (!ota_utf8_ok(b, len)) {
        return refuse(o, "not valid UTF-8");
    }
    char *end = b + len, *p = (char *)skip_blank(b, end);
    if (p == end || *p != '{') {
        return refuse(o, "not a JSON object");
    }
    p = (char *)skip_blank(p + 1, end);
    bool more = p < end && *p != '}';
    while (more) {
        p = parse_field(o, (char *)skip_blank(p, end), end);
        if (!p) {
            return false;
        }
        p = (char *)skip_blank(p, end);
        more = p < end && *p == ',';
        p += more;
    }
    if (p == end || *p != '}') {
        return refuse(o, "not JSON: the object does not end");
    }
    if (skip_blank(p + 1, end) != end) {
        return refuse(o, "data after the JSON object");
    }
    return true;
}

// ---- Taking fields

// The field, unless it is absent or null or there was an error before.
static ota_field_t *present(ota_object_t *o, const char *key)
{
    ota_field_t *f = o->bad ? NULL : find(o, key, strlen(key));
    bool null = f && f->kind == OTA_FIELD_JSON && o->base[f->value] == 'n';
    return null ? NULL : f;
}

static void wrong(ota_object_t *o, const char *key)
{
    refuse(o, "field \"%s\" has the wrong type or range", key);
}

void ota_object_bool(ota_object_t *o, const char *key, bool *v)
{
    ota_field_t *f = present(o, key);
    if (!f) {
        return;
    }
    const char *s = o->base + f->value;
    if (f->kind == OTA_FIELD_JSON && *s != 't' && *s != 'f') {
        wrong(o, key);
        return;
    }
    bool one = f->value_len == 1 && *s == '1';   // in a key=value line; as JSON it is a number
    *v = f->kind == OTA_FIELD_TRUE || one || (f->value_len == 4 && memcmp(s, "true", 4) == 0);
}

bool ota_parse_int(const char *s, size_t len, bool plus, int64_t *v)
{
    size_t i = 0;
    bool negative = len > 0 && s[0] == '-';
    if (negative || (plus && len > 0 && s[0] == '+')) {
        i++;
    }
    if (i == len) {
        return false;
    }
    uint64_t limit = (uint64_t)INT64_MAX + negative, n = 0;
    for (; i < len; i++) {
        if (s[i] < '0' || s[i] > '9') {
            return false;
        }
        uint64_t digit = (uint64_t)(s[i] - '0');
        if (n > (limit - digit) / 10) {
            return false;
        }
        n = n * 10 + digit;
    }
    *v = negative ? (int64_t)(0 - n) : (int64_t)n;
    return true;
}

void ota_object_int(ota_object_t *o, const char *key, int64_t *v)
{
    ota_field_t *f = present(o, key);
    bool json = f && f->kind == OTA_FIELD_JSON;
    if (!f) {
        return;
    }
    if (f->kind == OTA_FIELD_TRUE || (json && f->value_len > OTA_JSON_MAX_NUMBER) ||
        !ota_parse_int(o->base + f->value, f->value_len, !json, v)) {
        wrong(o, key);
    }
}

void ota_object_uint32(ota_object_t *o, const char *key, uint32_t *v)
{
    ota_field_t *f = present(o, key);
    int64_t n = *v;
    ota_object_int(o, key, &n);
    // Go's unsigned numbers know no sign, not even that of -0.
    if (n < 0 || n > UINT32_MAX || (f && o->base[f->value] == '-')) {
        wrong(o, key);
        return;
    }
    *v = (uint32_t)n;
}

void ota_object_double(ota_object_t *o, const char *key, double *v)
{
    ota_field_t *f = present(o, key);
    if (!f) {
        return;
    }
    const char *s = o->base + f->value;
    if (f->kind != OTA_FIELD_JSON || f->value_len > OTA_JSON_MAX_NUMBER || (*s != '-' && (*s < '0' || *s > '9'))) {
        wrong(o, key);
        return;
    }
    char number[OTA_JSON_MAX_NUMBER + 1];
    memcpy(number, s, f->value_len);
    number[f->value_len] = 0;
    double n = strtod(number, NULL);
    if (isinf(n)) {
        wrong(o, key);
        return;
    }
    *v = n;
}

void ota_object_text(ota_object_t *o, const char *key, size_t limit, const char **v)
{
    ota_field_t *f = present(o, key);
    if (!f) {
        return;
    }
    char *s = o->base + f->value;
    if (f->kind == OTA_FIELD_JSON && *s == '"') {
        f->value_len = (uint16_t)decode_string(s);
        f->kind = OTA_FIELD_TEXT;
    }
    if (f->kind != OTA_FIELD_TEXT) {
        wrong(o, key);
        return;
    }
    if (f->value_len > limit) {
        refuse(o, "field \"%s\" is longer than %u bytes", key, (unsigned)limit);
        return;
    }
    for (uint16_t i = 0; i < f->value_len; i++) {
        uint8_t c = (uint8_t)s[i];
        if ((c < ' ' && c != '\n' && c != '\t') || c == 0x7f) {
            refuse(o, "field \"%s\" holds a control character", key);
            return;
        }
    }
    if (f->value_len > 0) {
        *v = s;
    }
}

bool ota_object_sub(ota_object_t *o, const char *key, ota_object_t *sub)
{
    ota_field_t *f = present(o, key);
    if (!f) {
        return false;
    }
    if (f->kind != OTA_FIELD_JSON) {
        wrong(o, key);
        return false;
    }
    if (!ota_object_parse(sub, o->base + f->value, f->value_len, o->why, o->why_size)) {
        o->bad = true;
        return false;
    }
    return true;
}

void ota_object_close(ota_object_t *o, const ota_object_t *sub)
{
    o->bad = o->bad || sub->bad;
}
