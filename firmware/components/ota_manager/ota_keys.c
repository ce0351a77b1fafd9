#include "ota_keys.h"

#include <string.h>

#include "ota_base64.h"

// 91 bytes in base64 with its padding.
#define KEY_DIGITS 122
#define KEY_TEXT (KEY_DIGITS + 2)

typedef struct {
    const char *s;
    size_t len;
} line_t;

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

// The next line without the blanks around it; *pem moves behind it.
static line_t next_line(const char **pem)
{
    const char *s = *pem;
    size_t len = strcspn(s, "\n");
    *pem = s + len + (s[len] == '\n');
    while (len > 0 && is_blank(*s)) {
        s++;
        len--;
    }
    while (len > 0 && is_blank(s[len - 1])) {
        len--;
    }
    return (line_t){s, len};
}

static bool is(line_t l, const char *text) { return l.len == strlen(text) && memcmp(l.s, text, l.len) == 0; }

static bool has_dashes(line_t l)
{
    size_t run = 0;
    for (size_t i = 0; i < l.len && run < 5; i++) {
        run = l.s[i] == '-' ? run + 1 : 0;
    }
    return run == 5;
}

static bool decode(const char *text, size_t len, uint8_t key[OTA_KEY_LEN])
{
    size_t n;
    return len == KEY_TEXT && memcmp(text + KEY_DIGITS, "==", 2) == 0 &&
           ota_base64_decode(text, KEY_DIGITS, false, key, &n);
}

bool ota_keys_next(const char **pem, uint8_t key[OTA_KEY_LEN], bool *bad)
{
    char text[KEY_TEXT];
    size_t len = 0;
    bool inside = false;
    *bad = false;
    while (**pem) {
        line_t l = next_line(pem);
        if (!inside && is(l, "-----BEGIN PUBLIC KEY-----")) {
            inside = true;
        } else if (inside && is(l, "-----END PUBLIC KEY-----")) {
            *bad = !decode(text, len, key);
            return !*bad;
        } else if (has_dashes(l) || (inside && len + l.len > sizeof text)) {
            *bad = true;
            return false;
        } else if (inside) {
            memcpy(text + len, l.s, l.len);
            len += l.len;
        }
    }
    *bad = inside;
    return false;
}
