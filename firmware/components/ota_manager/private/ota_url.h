// Addresses as the server's files name them (RFC 3986). Pure, no allocation. False where the result does not fit, or is none that
// may be asked for; then out is not to be used.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// name in the folder of url: what stands behind the last slash of its path goes, and its query.
bool ota_url_beside(const char *url, const char *name, char *out, size_t size);
// What ref means where base was read. It has to be https, or http where that is allowed, without a user in it.
bool ota_url_resolve(const char *base, const char *ref, bool plain_allowed, char *out, size_t size, char *why, size_t why_size);

#ifdef __cplusplus
}
#endif
