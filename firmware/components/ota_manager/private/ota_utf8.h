// UTF-8 in its one valid form (Unicode 15, table 3-7), as Go's unicode/utf8 has it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

bool ota_utf8_ok(const char *s, size_t len);
// The length of the character that begins at s, of len > 0 bytes; 0 where it is none.
size_t ota_utf8_char(const char *s, size_t len);
// Writes a character that is no surrogate, one to four bytes; returns how many.
size_t ota_utf8_put(char *out, uint32_t c);

#ifdef __cplusplus
}
#endif
