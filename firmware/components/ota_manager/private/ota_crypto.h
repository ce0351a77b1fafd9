// The two pieces of cryptography that an update needs, the same over mbedTLS 2.28 (host), 3.x (ESP-IDF v5) and 4.x (v6).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mbedtls/md.h"

#ifdef __cplusplus
extern "C" {
#endif

// From mbedTLS 4.x on everything, keys and certificates too, runs over PSA, which has to be started once; later calls, and those
// with an older mbedTLS, do nothing. Digests and signatures below start it themselves.
bool ota_crypto_start(void);

// SHA-256 over pieces. start takes a context that is not in use; end frees it whatever the digest is used for. False where
// memory for the context (about 110 bytes) is not to be had; add and end after that do nothing and give zeros.
typedef struct { mbedtls_md_context_t md; bool ok; } ota_sha256_t;
bool ota_sha256_start(ota_sha256_t *h);
void ota_sha256_add(ota_sha256_t *h, const void *p, size_t len);
bool ota_sha256_end(ota_sha256_t *h, uint8_t digest[32]);

// A P-256 public key as SubjectPublicKeyInfo in DER (RFC 5480), which has one form only: 26 fixed bytes, 04, X, Y.
#define OTA_KEY_LEN 91
#define OTA_POINT_LEN 64   // X, Y: what of it tells one key from another, its end

typedef enum { OTA_ES256_OK, OTA_ES256_BAD_SIGNATURE, OTA_ES256_BAD_KEY, OTA_ES256_NO_MEMORY } ota_es256_t;

// Whether the 64-byte signature r||s (RFC 7518 section 3.4) over digest is by key. Anything but a point on P-256 in the form
// above is a bad key.
ota_es256_t ota_es256_verify(const uint8_t key[OTA_KEY_LEN], const uint8_t digest[32], const uint8_t sig[64]);
void ota_es256_from_point(const uint8_t point[OTA_POINT_LEN], uint8_t key[OTA_KEY_LEN]);
ota_es256_t ota_es256_key(const uint8_t key[OTA_KEY_LEN]);   // the key alone: OK, BAD_KEY or NO_MEMORY

void ota_hex(const uint8_t *b, size_t len, char *out);   // lower-case, 2*len digits and a NUL

#ifdef __cplusplus
}
#endif
