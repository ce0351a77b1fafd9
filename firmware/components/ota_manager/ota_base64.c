#include "ota_base64.h"

static int digit(char c, bool url)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    if (c == (url ? '-' : '+')) {
        return 62;
    }
    return c == (url ? '_' : '/') ? 63 : -1;
}

bool ota_base64_decode(const char *s, size_t len, bool url, uint8_t *out, size_t *out_len)
{
    uint32_t bits = 0;
    int have = 0;
    uint8_t *from = out;
    for (size_t i = 0; i < len; i++) {
        int d = digit(s[i], url);
        if (d < 0) {
            return false;
        }
        bits = bits << 6 | (uint32_t)d;
        have += 6;
        if (have >= 8) {
            have -= 8;
            *out++ = (uint8_t)(bits >> have);
        }
    }
    *out_len = (size_t)(out - from);
    // One digit alone is no byte; what stands behind the last byte has to be zero.
    return have != 6 && (bits & ((1u << have) - 1)) == 0;
}
