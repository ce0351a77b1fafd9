// Only what is public in all three generations of mbedTLS is used: mbedtls/md.h without HMAC, and mbedtls/pk.h to read a
// public key in DER and verify with it. mbedtls_pk_can_do, mbedtls_pk_get_bitlen and everything below them (ecp, ecdsa,
// bignum) are private in 4.x; they are not needed, because the one DER form of a P-256 key is told by its first bytes.
#include "ota_crypto.h"

#include <string.h>

#include "mbedtls/pk.h"
#include "mbedtls/version.h"
#if MBEDTLS_VERSION_MAJOR >= 4
#include "psa/crypto.h"
#else
#include "mbedtls/bignum.h"
#include "mbedtls/ecp.h"
#endif

// SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING { 04 ... } }
static const uint8_t p256_prefix[] = {
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
    0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
};

// From 4.x on everything runs over PSA, which has to be started once; later calls do nothing.
static bool library_ready(void)
{
#if MBEDTLS_VERSION_MAJOR >= 4
    return psa_crypto_init() == PSA_SUCCESS;
#else
    return true;
#endif
}

bool ota_sha256_start(ota_sha256_t *h)
{
    mbedtls_md_init(&h->md);
    const mbedtls_md_info_t *info = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
    h->ok = library_ready() && info && mbedtls_md_setup(&h->md, info, 0) == 0 && mbedtls_md_starts(&h->md) == 0;
    return h->ok;
}

void ota_sha256_add(ota_sha256_t *h, const void *p, size_t len)
{
    if (h->ok && len > 0) {
        h->ok = mbedtls_md_update(&h->md, p, len) == 0;
    }
}

bool ota_sha256_end(ota_sha256_t *h, uint8_t digest[32])
{
    bool ok = h->ok && mbedtls_md_finish(&h->md, digest) == 0;
    mbedtls_md_free(&h->md);
    h->ok = false;
    if (!ok) {
        memset(digest, 0, 32);
    }
    return ok;
}

static bool out_of_memory(int ret)
{
#if MBEDTLS_VERSION_MAJOR >= 4
    return ret == PSA_ERROR_INSUFFICIENT_MEMORY;
#else
    // A high-level code may carry a low-level one in its last seven bits: mbedtls/error.h. Digests take part in a check of a
    // signature because the numbers of the curve are blinded.
    int low = -ret & 0x7f, high = -ret & ~0x7f;
    return low == -MBEDTLS_ERR_MPI_ALLOC_FAILED || high == -MBEDTLS_ERR_ECP_ALLOC_FAILED ||
           high == -MBEDTLS_ERR_PK_ALLOC_FAILED || high == -MBEDTLS_ERR_MD_ALLOC_FAILED;
#endif
}

// Opens key; the caller frees pk whatever comes back.
static ota_es256_t open_key(mbedtls_pk_context *pk, const uint8_t key[OTA_KEY_LEN])
{
    mbedtls_pk_init(pk);
    if (memcmp(key, p256_prefix, sizeof p256_prefix) != 0) {
        return OTA_ES256_BAD_KEY;
    }
    if (!library_ready()) {
        return OTA_ES256_NO_MEMORY;
    }
    int ret = mbedtls_pk_parse_public_key(pk, key, OTA_KEY_LEN);   // checks that the point is on the curve
    if (ret == 0) {
        return OTA_ES256_OK;
    }
    return out_of_memory(ret) ? OTA_ES256_NO_MEMORY : OTA_ES256_BAD_KEY;
}

ota_es256_t ota_es256_key(const uint8_t key[OTA_KEY_LEN])
{
    mbedtls_pk_context pk;
    ota_es256_t result = open_key(&pk, key);
    mbedtls_pk_free(&pk);
    return result;
}

// Writes a 32-byte number as a DER INTEGER: without leading zeros, with one where the first bit would be a sign. At most 35
// bytes.
static size_t der_integer(uint8_t *out, const uint8_t n[32])
{
    size_t skip = 0;
    while (skip < 31 && n[skip] == 0) {
        skip++;
    }
    size_t sign = n[skip] >> 7, len = 32 - skip;
    out[0] = 0x02;
    out[1] = (uint8_t)(sign + len);
    out[2] = 0;
    memcpy(out + 2 + sign, n + skip, len);
    return 2 + sign + len;
}

ota_es256_t ota_es256_verify(const uint8_t key[OTA_KEY_LEN], const uint8_t digest[32], const uint8_t sig[64])
{
    mbedtls_pk_context pk;
    ota_es256_t result = open_key(&pk, key);
    if (result == OTA_ES256_OK) {
        uint8_t der[2 + 2 * 35];
        size_t len = der_integer(der + 2, sig);
        len += der_integer(der + 2 + len, sig + 32);
        der[0] = 0x30;
        der[1] = (uint8_t)len;
        int ret = mbedtls_pk_verify(&pk, MBEDTLS_MD_SHA256, digest, 32, der, 2 + len);
        if (ret != 0) {
            result = out_of_memory(ret) ? OTA_ES256_NO_MEMORY : OTA_ES256_BAD_SIGNATURE;
        }
    }
    mbedtls_pk_free(&pk);
    return result;
}

void ota_hex(const uint8_t *b, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        *out++ = digits[b[i] >> 4];
        *out++ = digits[b[i] & 15];
    }
    *out = 0;
}
