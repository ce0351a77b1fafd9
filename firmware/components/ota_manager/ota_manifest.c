#include "ota_manifest.h"

#include <stdio.h>
#include <string.h>

#include "ota_base64.h"
#include "ota_crypto.h"
#include "ota_json.h"
#include "ota_keys.h"

#define MAX_JWS (48u << 10)
#define MAX_SIZE (16ll << 20)     // ESP-IDF refuses app partitions above 16 MiB
#define SIGNATURE_DIGITS 86       // 64 bytes in base64url

// {"alg":"ES256"} and the dot behind it: the only header there is, so its bytes are compared and nothing in it is believed.
static const char header[] = "eyJhbGciOiJFUzI1NiJ9.";

static ota_manifest_result_t say(char *why, size_t why_size, ota_manifest_result_t result, const char *sentence)
{
    if (why && why_size > 0) {
        snprintf(why, why_size, "%s", sentence);
    }
    return result;
}

// Whether one of the keys signed digest. All of keys_pem has to be keys, whichever of them it was.
static ota_manifest_result_t verify(const char *keys_pem, const uint8_t digest[32], const uint8_t sig[64])
{
    ota_manifest_result_t result = OTA_MANIFEST_BAD_SIGNATURE;
    uint8_t key[OTA_KEY_LEN];
    bool bad;
    int count = 0;
    while (ota_keys_next(&keys_pem, key, &bad)) {
        ota_es256_t v = result == OTA_MANIFEST_OK ? ota_es256_key(key) : ota_es256_verify(key, digest, sig);
        if (v == OTA_ES256_NO_MEMORY) {
            return OTA_MANIFEST_NO_MEMORY;
        }
        if (v == OTA_ES256_BAD_KEY || ++count > OTA_MAX_KEYS) {
            return OTA_MANIFEST_BAD_SIGNATURE;
        }
        if (v == OTA_ES256_OK) {
            result = OTA_MANIFEST_OK;
        }
    }
    return bad ? OTA_MANIFEST_BAD_SIGNATURE : result;
}

bool ota_manifest_keys_ok(const char *keys_pem, char *why, size_t why_size)
{
    uint8_t key[OTA_KEY_LEN];
    bool bad;
    int count = 0;
    while (ota_keys_next(&keys_pem, key, &bad)) {
        switch (ota_es256_key(key)) {
        case OTA_ES256_OK:
            break;
        case OTA_ES256_NO_MEMORY:
            say(why, why_size, OTA_MANIFEST_NO_MEMORY, "trusted key: no memory to read it");
            return false;
        default:
            say(why, why_size, OTA_MANIFEST_BAD, "trusted key: not an ECDSA P-256 public key");
            return false;
        }
        count++;
    }
    if (bad || count == 0 || count > OTA_MAX_KEYS) {
        say(why, why_size, OTA_MANIFEST_BAD, "trusted key: not one to eight PEM blocks PUBLIC KEY of P-256 keys");
        return false;
    }
    return true;
}

// Cuts the text behind the header into payload and signature. The payload is decoded where it stands, but only after its
// text has been hashed.
static bool hash_and_decode(char *jws, size_t len, uint8_t digest[32], uint8_t sig[64], char **payload, size_t *payload_len,
                            bool *no_memory)
{
    size_t head = sizeof header - 1, n;
    char *dot = memchr(jws + head, '.', len - head);
    if (!dot) {
        return false;
    }
    const char *tail = dot + 1;
    size_t tail_len = (size_t)(jws + len - tail);
    if (tail_len != SIGNATURE_DIGITS || !ota_base64_decode(tail, tail_len, true, sig, &n)) {
        return false;
    }
    ota_sha256_t h;
    ota_sha256_start(&h);
    ota_sha256_add(&h, jws, (size_t)(dot - jws));
    *no_memory = !ota_sha256_end(&h, digest);
    *payload = jws + head;
    return ota_base64_decode(*payload, (size_t)(dot - *payload), true, (uint8_t *)*payload, payload_len);
}

static bool copy_text(ota_object_t *o, const char *key, char *out, size_t size)
{
    const char *s = "";
    ota_object_text(o, key, size - 1, &s);
    memcpy(out, s, strlen(s) + 1);
    return *out != 0;
}

// Whether blocks is the base64url of one digest for each block of an image of size bytes.
static bool blocks_cover(const char *blocks, size_t len, int64_t size)
{
    uint64_t bytes = ((uint64_t)size + OTA_BLOCK_SIZE - 1) / OTA_BLOCK_SIZE * 32;
    if (len != (bytes * 4 + 2) / 3) {
        return false;
    }
    uint8_t scratch[3];
    size_t n;
    for (size_t at = 0; at < len; at += 4) {
        if (!ota_base64_decode(blocks + at, len - at < 4 ? len - at : 4, true, scratch, &n)) {
            return false;
        }
    }
    return true;
}

static ota_manifest_result_t read_payload(char *payload, size_t len, ota_manifest_t *out, char *why, size_t why_size)
{
    ota_object_t o;
    if (!ota_object_parse(&o, payload, len, why, why_size)) {
        return OTA_MANIFEST_BAD;
    }
    int64_t format = 0;
    const char *blocks = "";
    char build_date[OTA_MAX_TEXT + 1];
    ota_object_int(&o, "format", &format);
    copy_text(&o, "project", out->project, sizeof out->project);
    copy_text(&o, "chip", out->chip, sizeof out->chip);
    bool version = copy_text(&o, "version", out->version, sizeof out->version);
    copy_text(&o, "min_version", out->min_version, sizeof out->min_version);
    ota_object_uint32(&o, "secure_version", &out->secure_version);
    ota_object_int(&o, "size", &out->size);
    copy_text(&o, "sha256", out->sha256, sizeof out->sha256);
    ota_object_text(&o, "blocks", MAX_JWS, &blocks);
    copy_text(&o, "build_date", build_date, sizeof build_date);   // for people; held to its length like the others
    ota_object_bool(&o, "force_update", &out->force_update);
    if (o.bad) {
        return OTA_MANIFEST_BAD;
    }
    out->blocks = blocks;
    out->blocks_len = strlen(blocks);
    if (format != 1) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: its format is not known");
    }
    if (out->size <= 0 || out->size > MAX_SIZE) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: size is not within 1 to 16777216");
    }
    if (!ota_digest_ok(out->sha256)) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: sha256 is not 64 lower-case hex digits");
    }
    if (!blocks_cover(blocks, out->blocks_len, out->size)) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: blocks do not cover the image");
    }
    return version ? OTA_MANIFEST_OK : say(why, why_size, OTA_MANIFEST_BAD, "manifest: no version");
}

ota_manifest_result_t ota_manifest_read(char *jws, size_t len, const char *keys_pem, ota_manifest_t *out, char *why,
                                        size_t why_size)
{
    memset(out, 0, sizeof *out);
    if (len > MAX_JWS || len < sizeof header - 1 || memcmp(jws, header, sizeof header - 1) != 0) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: too long, or its header is not {\"alg\":\"ES256\"}");
    }
    uint8_t digest[32], sig[64];
    char *payload;
    size_t payload_len;
    bool no_memory = false;
    if (!hash_and_decode(jws, len, digest, sig, &payload, &payload_len, &no_memory)) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: not three parts in canonical base64url");
    }
    if (no_memory) {
        return say(why, why_size, OTA_MANIFEST_NO_MEMORY, "manifest: no memory to hash it");
    }
    ota_manifest_result_t result = keys_pem ? verify(keys_pem, digest, sig) : OTA_MANIFEST_OK;
    if (result == OTA_MANIFEST_NO_MEMORY) {
        return say(why, why_size, result, "manifest: no memory to check the signature");
    }
    if (result != OTA_MANIFEST_OK) {
        return say(why, why_size, result, "manifest is not signed by a trusted key");
    }
    return read_payload(payload, payload_len, out, why, why_size);
}

bool ota_manifest_block(const ota_manifest_t *m, size_t i, uint8_t digest[32])
{
    if (m->size <= 0 || i >= ((uint64_t)m->size + OTA_BLOCK_SIZE - 1) / OTA_BLOCK_SIZE) {
        return false;
    }
    // Four digits hold three bytes; a digest begins in the middle of four, with its first, second or third byte.
    size_t from = i * 32 / 3 * 4, skip = i * 32 % 3;
    for (size_t done = 0; done < 32; from += 4, skip = 0) {
        uint8_t three[3];
        size_t left = m->blocks_len - from, n;
        if (from >= m->blocks_len || !ota_base64_decode(m->blocks + from, left < 4 ? left : 4, true, three, &n)) {
            return false;
        }
        for (size_t j = skip; j < n && done < 32; j++) {
            digest[done++] = three[j];
        }
    }
    return true;
}
