// The signed promise about one image: a compact JWS, ES256 only (Go: package manifest). It is checked with mbedTLS before
// anything it says is used, and before the first erase.
#pragma once

#include "ota_keys.h"
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
    int64_t sequence;        // 0: not said
    const char *blocks;      // base64url (no padding) of the digests, in order; points into the text that was verified
    size_t blocks_len;
} ota_manifest_t;

typedef enum {
    OTA_MANIFEST_OK,
    OTA_MANIFEST_BAD_SIGNATURE,   // no trusted key signed it
    OTA_MANIFEST_BAD,             // not a manifest: the text or a field is not what it has to be
    OTA_MANIFEST_NO_MEMORY,
} ota_manifest_result_t;

#define OTA_MAX_COSIGNATURES 3
#define OTA_MAX_COSIGNED (OTA_MAX_COSIGNATURES * 87u - 1u)   // bytes of their text

// Verifies jws (len bytes, NUL-terminated, overwritten by the decoding) and the signatures beside it in cosignatures (may be
// empty) against trust, and fills out. trust NULL means: read it without asking who signed it, for a device without a key.
// mbedTLS allocates a few KiB for the curve; nothing is allocated by a number from jws. why gets a sentence.
ota_manifest_result_t ota_manifest_read(char *jws, size_t len, const char *cosignatures, const ota_trust_t *trust,
                                        ota_manifest_t *out, char *why, size_t why_size);

// What a server says to one question of one device: an offer (Go: manifest.Offer), a compact JWS of the same form by the
// server's own key. An offer has a type and no format, a manifest a format and no type.
#define OTA_MAX_OFFER 1536u
#define OTA_MAX_NONCE 64
typedef struct {
    char device[OTA_MAX_DEVICE_ID + 1], nonce[OTA_MAX_NONCE + 1], sha256[OTA_DIGEST_TEXT + 1], version[OTA_MAX_TEXT + 1];
    const char *path;        // points into the text that was verified
    int64_t sequence, valid_s;
} ota_fresh_t;
// As ota_manifest_read. Whose offer it is and for which question is the caller's to ask.
ota_manifest_result_t ota_offer_read(char *jws, size_t len, const ota_trust_t *server, ota_fresh_t *out, char *why, size_t why_size);

// Reads a set of one to eight keys, PEM blocks PUBLIC KEY, of which threshold (0: one) have to sign: as Go's
// manifest.ParsePublicKeys and Trust.Check decide. OK, BAD or NO_MEMORY.
ota_manifest_result_t ota_manifest_keys(const char *pem, int threshold, ota_trust_t *out, char *why, size_t why_size);

// The set that an image can carry (Go: manifest.Builtin, which has its form): where it stands, how long it is, what it
// begins with. A block that is room for a set and no set gives the empty one.
#define OTA_BUILTIN_AT 312u
#define OTA_BUILTIN_LEN 272u
#define OTA_BUILTIN_MAX 4
#define OTA_BUILTIN_MAGIC "bmstrust"
ota_manifest_result_t ota_manifest_builtin(const uint8_t block[OTA_BUILTIN_LEN], ota_trust_t *out, char *why, size_t why_size);

// The promised SHA-256 of block i. False beyond the image.
bool ota_manifest_block(const ota_manifest_t *m, size_t i, uint8_t digest[32]);

#ifdef __cplusplus
}
#endif
