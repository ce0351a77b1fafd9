// Asks mbedTLS, the chip's own library for this, what it makes of a server's certificates, as its client does in a handshake:
// chain_tool TRUSTED.pem CHAIN.pem HOST says "flags 0x…" (mbedtls/x509.h), 0x0 being trusted, or "unreadable".
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mbedtls/oid.h"
#include "mbedtls/version.h"
#include "mbedtls/x509_crt.h"

#if MBEDTLS_VERSION_MAJOR >= 3
#define PROFILE mbedtls_x509_crt_profile_default
#else
// ESP-IDF has mbedTLS 3 and later, whose default takes no curve below 256 bits.
static const mbedtls_x509_crt_profile PROFILE = {
    .allowed_mds = MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA256) | MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA384) | MBEDTLS_X509_ID_FLAG(MBEDTLS_MD_SHA512),
    .allowed_pks = 0xFFFFFFF,
    .allowed_curves = MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP256R1) | MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP384R1) |
                      MBEDTLS_X509_ID_FLAG(MBEDTLS_ECP_DP_SECP521R1),
    .rsa_min_bitlen = 2048,
};
#endif

// An error is told as a number below zero, certificates that cannot be read as their count.
static int load(mbedtls_x509_crt *into, const char *path)
{
    mbedtls_x509_crt_init(into);
    return mbedtls_x509_crt_parse_file(into, path);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: chain_tool TRUSTED.pem CHAIN.pem HOST\n");
        return 2;
    }
    mbedtls_x509_crt trusted, chain;
    int bad = load(&trusted, argv[1]);
    if (bad != 0) {
        fprintf(stderr, "chain_tool: %s: -0x%04x\n", argv[1], (unsigned)-bad);
        return 1;
    }
    if (load(&chain, argv[2]) != 0) {
        puts("unreadable");
    } else {
        uint32_t flags = 0;
        mbedtls_x509_crt_verify_with_profile(&chain, &trusted, NULL, &PROFILE, argv[3], &flags, NULL, NULL);
        // What the client adds to it: mbedtls_ssl_check_cert_usage.
        if (mbedtls_x509_crt_check_extended_key_usage(&chain, MBEDTLS_OID_SERVER_AUTH, MBEDTLS_OID_SIZE(MBEDTLS_OID_SERVER_AUTH)) != 0) {
            flags |= MBEDTLS_X509_BADCERT_EXT_KEY_USAGE;
        }
        printf("flags 0x%x\n", (unsigned)flags);
    }
    mbedtls_x509_crt_free(&chain);
    mbedtls_x509_crt_free(&trusted);
    return 0;
}
