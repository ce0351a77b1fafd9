// The signed promise about one image: a compact JWS, ES256 only (Go: package manifest). It is checked with mbedTLS before
// anything it says is used, and before the first erase.
#pragma once

#include "ota_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_BLOCK_SIZE (64u << 10)   // bytes of an image that one digest covers

typedef struct {
    char project[33], chip[33], version[OTA_MAX_TEXT + 1], min_version[OTA_MAX_TEXT + 1], sha256[OTA_DIGEST_TEXT + 1];
    uint32_t secure_version;
    int64_t size;
    bool force_update;
    const char *blocks;      // base64url (no padding) of the digests, in order; points into the text that was verified
    size_t blocks_len;
} ota_manifest_t;

typedef enum {
    OTA_MANIFEST_OK,
    OTA_MANIFEST_BAD_SIGNATURE,   // no trusted key signed it
    OTA_MANIFEST_BAD,             // not a manifest: the text or a field is not what it has to be
    OTA_MANIFEST_NO_MEMORY,
} ota_manifest_result_t;

// Verifies jws (len bytes, NUL-terminated, overwritten by the decoding) against the P-256 public keys in keys_pem (one or
// more PEM blocks) and fills out. keys_pem NULL means: read it without asking who signed it, for a device without a key.
// mbedTLS allocates a few KiB for the curve; nothing is allocated by a number from jws. why gets a sentence.
ota_manifest_result_t ota_manifest_read(char *jws, size_t len, const char *keys_pem, ota_manifest_t *out, char *why, size_t why_size);

// Whether keys_pem holds at least one P-256 public key and nothing that is none, as Go's manifest.ParsePublicKeys decides.
bool ota_manifest_keys_ok(const char *keys_pem, char *why, size_t why_size);

// The promised SHA-256 of block i. False beyond the image.
bool ota_manifest_block(const ota_manifest_t *m, size_t i, uint8_t digest[32]);

#ifdef __cplusplus
}
#endif
