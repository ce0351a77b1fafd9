#include "ota_version.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ota_protocol.h"

// A version in its parts. pre points into the text that was read, with the length of its part: "rc.1" of "1.0.0-rc.1+b7".
typedef struct {
    uint64_t number[3];
    const char *pre;
    size_t pre_len;
} version_t;

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-'; }

// Reads all of s[0:len] as a number; false for what is none or has no room in 64 bits.
static bool number(const char *s, size_t len, uint64_t *v)
{
    *v = 0;
    for (size_t i = 0; i < len; i++) {
        uint64_t digit = (uint64_t)(s[i] - '0');
        if (!is_digit(s[i]) || *v > (UINT64_MAX - digit) / 10) {
            return false;
        }
        *v = *v * 10 + digit;
    }
    return len > 0;
}

static size_t digits(const char *s)
{
    size_t n = 0;
    while (is_digit(s[n])) {
        n++;
    }
    return n;
}

// The length of the dot-separated identifiers at s, 0 where one is missing or, with strict, a number has a leading zero.
static size_t identifiers(const char *s, bool strict)
{
    size_t at = 0;
    for (;;) {
        size_t from = at, d = digits(s + at);
        while (is_digit(s[at]) || is_letter(s[at])) {
            at++;
        }
        size_t len = at - from;
        if (len == 0 || (strict && d == len && len > 1 && s[from] == '0')) {
            return 0;
        }
        if (s[at] != '.') {
            return at;
        }
        at++;
    }
}

static bool parse(const char *s, version_t *v)
{
    if (strlen(s) > OTA_MAX_TEXT) {
        return false;
    }
    if (*s == 'v') {
        s++;
    }
    for (int i = 0; i < 3; i++) {
        size_t n = digits(s);
        if ((n > 1 && *s == '0') || !number(s, n, &v->number[i])) {
            return false;
        }
        s += n;
        if (i < 2 && *s++ != '.') {
            return false;
        }
    }
    v->pre = "";
    v->pre_len = 0;
    if (*s == '-') {
        v->pre = s + 1;
        v->pre_len = identifiers(v->pre, true);
        if (v->pre_len == 0) {
            return false;
        }
        s = v->pre + v->pre_len;
    }
    if (*s == '+') {
        size_t n = identifiers(s + 1, false);
        if (n == 0) {
            return false;
        }
        s += 1 + n;
    }
    return *s == 0;
}

// Compares two texts of digits and letters as bytes.
static int compare_bytes(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    if (c != 0) {
        return c < 0 ? -1 : 1;
    }
    return (a_len > b_len) - (a_len < b_len);
}

// One identifier of a pre-release: numbers by value and below words (SemVer 2.0.0 section 11.4). A number that has no room
// in 64 bits counts as a word, as in Go.
static int compare_identifier(const char *a, size_t a_len, const char *b, size_t b_len)
{
    uint64_t m, n;
    bool a_number = number(a, a_len, &m), b_number = number(b, b_len, &n);
    if (a_number && b_number) {
        return (m > n) - (m < n);
    }
    if (a_number != b_number) {
        return a_number ? -1 : 1;
    }
    return compare_bytes(a, a_len, b, b_len);
}

static int compare_pre(const version_t *a, const version_t *b)
{
    if (a->pre_len == 0 || b->pre_len == 0) {
        return (a->pre_len == 0) - (b->pre_len == 0);   // a release is above its pre-releases
    }
    const char *p = a->pre, *q = b->pre, *p_end = p + a->pre_len, *q_end = q + b->pre_len;
    while (p < p_end && q < q_end) {
        const char *p_dot = memchr(p, '.', (size_t)(p_end - p)), *q_dot = memchr(q, '.', (size_t)(q_end - q));
        p_dot = p_dot ? p_dot : p_end;
        q_dot = q_dot ? q_dot : q_end;
        int c = compare_identifier(p, (size_t)(p_dot - p), q, (size_t)(q_dot - q));
        if (c != 0) {
            return c;
        }
        p = p_dot + 1;
        q = q_dot + 1;
    }
    return (p < p_end) - (q < q_end);   // more identifiers are above fewer
}

static int compare(const version_t *a, const version_t *b)
{
    for (int i = 0; i < 3; i++) {
        if (a->number[i] != b->number[i]) {
            return a->number[i] < b->number[i] ? -1 : 1;
        }
    }
    return compare_pre(a, b);
}

bool ota_version_ok(const char *s)
{
    version_t v;
    return parse(s, &v);
}

bool ota_version_newer(const char *available, const char *running)
{
    version_t a, r;
    return parse(available, &a) && (!parse(running, &r) || compare(&a, &r) > 0);
}

bool ota_version_older(const char *running, const char *floor)
{
    version_t r, f;
    return parse(floor, &f) && (!parse(running, &r) || compare(&r, &f) < 0);
}

bool ota_version_same(const char *a, const char *b)
{
    return strcmp(a + (*a == 'v'), b + (*b == 'v')) == 0;
}

bool ota_version_generic(const char *v)
{
    static const char arduino[] = "esp-idf: ";
    return *v == 0 || strcmp(v, "1") == 0 || strncmp(v, arduino, sizeof arduino - 1) == 0;
}
