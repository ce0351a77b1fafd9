#include "ota_address.h"

#include <string.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

static bool is_host_name(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c);
        if (!letter && c != '.' && c != '-' && c != '_') {
            return false;
        }
    }
    return len > 0 && len <= 253;
}

// Eight groups of one to four hex digits (RFC 4291 section 2.2, forms 1 and 2); one run of at least one group may be "::".
static bool is_ipv6(const char *s, size_t len)
{
    const char *end = s + len;
    int groups = 0;
    bool gap = false;
    if (len >= 2 && s[0] == ':' && s[1] == ':') {
        gap = true;
        s += 2;
    }
    while (s < end) {
        int n = 0;
        while (s < end && is_hex(*s)) {
            s++;
            n++;
        }
        if (n == 0 || n > 4) {
            return false;
        }
        groups++;
        if (s == end) {
            break;
        }
        if (*s++ != ':' || s == end) {
            return false;
        }
        if (*s == ':') {
            if (gap) {
                return false;
            }
            gap = true;
            s++;
        }
    }
    return gap ? groups < 8 : groups == 8;
}

// ":1" to ":65535".
static bool parse_port(const char *s, size_t len, int *port)
{
    if (len < 2 || len > 6 || s[0] != ':') {
        return false;
    }
    for (size_t i = 1; i < len; i++) {
        if (!is_digit(s[i])) {
            return false;
        }
        *port = *port * 10 + (s[i] - '0');
    }
    return *port >= 1 && *port <= 65535;
}

bool ota_authority_parse(const char *s, size_t len, ota_authority_t *out)
{
    bool bracket = len > 0 && s[0] == '[';
    const char *close = memchr(s, bracket ? ']' : ':', len);
    out->host = bracket;
    out->port = 0;
    if (bracket && !close) {
        return false;
    }
    size_t host_end = close ? (size_t)(close - s) : len, tail = host_end + bracket;
    out->host_len = host_end - out->host;
    bool host_ok = bracket ? is_ipv6(s + 1, out->host_len) : is_host_name(s, out->host_len);
    return host_ok && (tail == len || parse_port(s + tail, len - tail, &out->port));
}

bool ota_server_url_ok(const char *s, bool *plain)
{
    bool secure = strncmp(s, "https://", 8) == 0;
    *plain = !secure && strncmp(s, "http://", 7) == 0;
    if (!secure && !*plain) {
        return false;
    }
    s += secure ? 8 : 7;
    ota_authority_t a;
    if (!ota_authority_parse(s, strcspn(s, "/?"), &a)) {
        return false;
    }
    for (; *s; s++) {
        if (*s <= ' ' || *s > '~' || *s == '#' || (*s == '%' && !(is_hex(s[1]) && is_hex(s[2])))) {
            return false;
        }
    }
    return true;
}
