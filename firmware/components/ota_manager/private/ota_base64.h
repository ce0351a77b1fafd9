// Base64 (RFC 4648) without padding, in the one canonical form: no line breaks, no bits behind the last byte.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Decodes len digits, of the URL alphabet or the standard one. out has room for len*3/4 bytes and may be s itself.
bool ota_base64_decode(const char *s, size_t len, bool url, uint8_t *out, size_t *out_len);

#ifdef __cplusplus
}
#endif
