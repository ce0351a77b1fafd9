// Only what is public in each generation of mbedTLS is used. Digests: mbedtls/md.h without HMAC, in all of them. Signatures:
// mbedtls/pk.h, and from 4.x on PSA, because pk.h says there of a key that it had no memory for that it is none, and is to
// go. What kind of key it is need not be asked: the one DER form of a P-256 key is told by its first bytes.
#include "ota_crypto.h"

#include <string.h>

#include "mbedtls/version.h"
#if MBEDTLS_VERSION_MAJOR >= 4
#include "psa/crypto.h"
#else
#include "mbedtls/bignum.h"
#include "mbedtls/ecp.h"
#include "mbedtls/pk.h"
#endif

// SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING { 04 ... } }
static const uint8_t p256_prefix[] = {
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
    0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
};

#define POINT_AT (sizeof p256_prefix - 1)   // 04, X, Y

bool ota_crypto_start(void)
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
    h->ok = ota_crypto_start() && info && mbedtls_md_setup(&h->md, info, 0) == 0 && mbedtls_md_starts(&h->md) == 0;
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

#if MBEDTLS_VERSION_MAJOR >= 4

static ota_es256_t verdict(psa_status_t status, ota_es256_t otherwise)
{
    if (status == PSA_SUCCESS) {
        return OTA_ES256_OK;
    }
    return status == PSA_ERROR_INSUFFICIENT_MEMORY ? OTA_ES256_NO_MEMORY : otherwise;
}

_Static_assert(sizeof p256_prefix + OTA_POINT_LEN == OTA_KEY_LEN, "a key ends with its point");

// Reads the key and, unless sig is NULL, verifies with it. PSA takes point and r||s as they are.
static ota_es256_t check(const uint8_t key[OTA_KEY_LEN], const uint8_t *digest, const uint8_t *sig)
{
    psa_key_attributes_t as = PSA_KEY_ATTRIBUTES_INIT;
    psa_set_key_type(&as, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&as, 256);
    psa_set_key_algorithm(&as, PSA_ALG_ECDSA(PSA_ALG_SHA_256));
    psa_set_key_usage_flags(&as, PSA_KEY_USAGE_VERIFY_HASH);
    psa_key_id_t id;
    psa_status_t status = psa_import_key(&as, key + POINT_AT, OTA_KEY_LEN - POINT_AT, &id);
    if (status != PSA_SUCCESS) {
        return verdict(status, OTA_ES256_BAD_KEY);
    }
    if (sig) {
        status = psa_verify_hash(id, PSA_ALG_ECDSA(PSA_ALG_SHA_256), digest, 32, sig, 64);
    }
    psa_destroy_key(id);
    return verdict(status, OTA_ES256_BAD_SIGNATURE);
}

#else

static ota_es256_t verdict(int ret, ota_es256_t otherwise)
{
    if (ret == 0) {
        return OTA_ES256_OK;
    }
    // A high-level code may carry a low-level one in its last seven bits: mbedtls/error.h. Digests take part in a check of a
    // signature because the numbers of the curve are blinded.
    int low = -ret & 0x7f, high = -ret & ~0x7f;
    bool memory = low == -MBEDTLS_ERR_MPI_ALLOC_FAILED || high == -MBEDTLS_ERR_ECP_ALLOC_FAILED ||
                  high == -MBEDTLS_ERR_PK_ALLOC_FAILED || high == -MBEDTLS_ERR_MD_ALLOC_FAILED;
    return memory ? OTA_ES256_NO_MEMORY : otherwise;
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

static ota_es256_t verify(mbedtls_pk_context *pk, const uint8_t digest[32], const uint8_t sig[64])
{
    uint8_t der[2 + 2 * 35];
    size_t len = der_integer(der + 2, sig);
    len += der_integer(der + 2 + len, sig + 32);
    der[0] = 0x30;
    der[1] = (uint8_t)len;
    return verdict(mbedtls_pk_verify(pk, MBEDTLS_MD_SHA256, digest, 32, der, 2 + len), OTA_ES256_BAD_SIGNATURE);
}

// Reads the key and, unless sig is NULL, verifies with it.
static ota_es256_t check(const uint8_t key[OTA_KEY_LEN], const uint8_t *digest, const uint8_t *sig)
{
    mbedtls_pk_context pk;
    mbedtls_pk_init(&pk);
    ota_es256_t result = verdict(mbedtls_pk_parse_public_key(&pk, key, OTA_KEY_LEN), OTA_ES256_BAD_KEY);
    if (result == OTA_ES256_OK && sig) {
        result = verify(&pk, digest, sig);
    }
    mbedtls_pk_free(&pk);
    return result;
}

#endif

// Both ways of reading a key check that the point is on the curve.
static ota_es256_t check_form(const uint8_t key[OTA_KEY_LEN], const uint8_t *digest, const uint8_t *sig)
{
    if (memcmp(key, p256_prefix, sizeof p256_prefix) != 0) {
        return OTA_ES256_BAD_KEY;
    }
    return ota_crypto_start() ? check(key, digest, sig) : OTA_ES256_NO_MEMORY;
}

void ota_es256_from_point(const uint8_t point[OTA_POINT_LEN], uint8_t key[OTA_KEY_LEN])
{
    memcpy(key, p256_prefix, sizeof p256_prefix);
    memcpy(key + sizeof p256_prefix, point, OTA_POINT_LEN);
}

ota_es256_t ota_es256_key(const uint8_t key[OTA_KEY_LEN]) { return check_form(key, NULL, NULL); }

ota_es256_t ota_es256_verify(const uint8_t key[OTA_KEY_LEN], const uint8_t digest[32], const uint8_t sig[64])
{
    return check_form(key, digest, sig);
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
