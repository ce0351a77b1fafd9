// The narrow form of the addresses in configuration files (docs/protocol.md section 8; Go: protocol/address.go).
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    size_t host, host_len;   // within the text, without brackets
    int port;                // 0: none is given
} ota_authority_t;

// Reads host, host:port, [IPv6] and [IPv6]:port.
bool ota_authority_parse(const char *s, size_t len, ota_authority_t *out);

// Whether s is an http(s) address; *plain says that it is http.
bool ota_server_url_ok(const char *s, bool *plain);

#ifdef __cplusplus
}
#endif
