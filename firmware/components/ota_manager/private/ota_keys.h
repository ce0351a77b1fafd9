// The trusted keys of a device, as Go's manifest.ParsePublicKeys reads them: PEM blocks PUBLIC KEY, one to eight, P-256.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ota_crypto.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_MAX_KEYS 8

// Whom a device believes (Go: manifest.Trust): a release counts when threshold of the keys signed it. No key twice.
typedef struct {
    uint32_t sequence;                          // of the set; 0: that of the settings
    uint8_t count, threshold;                   // no keys: the device holds none
    uint8_t point[OTA_MAX_KEYS][OTA_POINT_LEN];
} ota_trust_t;

// Reads the next key at *pem, which moves behind it. False at the end (*bad unset) and at a block that is none (*bad set).
// Whether the bytes are a point on the curve is asked of ota_es256_key.
bool ota_keys_next(const char **pem, uint8_t key[OTA_KEY_LEN], bool *bad);

#ifdef __cplusplus
}
#endif
