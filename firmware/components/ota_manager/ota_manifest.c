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

// Adds to by the keys that made this signature over digest, a bit for each. A key counts once, however many signatures are its
// own: ECDSA lets anybody make a second one out of a first.
static bool add_signers(const ota_trust_t *trust, const uint8_t digest[32], const uint8_t sig[64], uint32_t *by)
{
    for (int k = 0; k < trust->count; k++) {
        uint8_t key[OTA_KEY_LEN];
        if (*by >> k & 1) {
            continue;
        }
        ota_es256_from_point(trust->point[k], key);
        switch (ota_es256_verify(key, digest, sig)) {
        case OTA_ES256_OK:
            *by |= UINT32_C(1) << k;
            return true;   // no two keys make the same signature
        case OTA_ES256_NO_MEMORY:
            return false;
        default:
            break;
        }
    }
    return true;
}

// The next of the signatures with dots between them, into sig; *text moves behind it. False where it is none.
static bool next_cosignature(const char **text, uint8_t sig[64])
{
    size_t len = strcspn(*text, "."), n;
    if (len != SIGNATURE_DIGITS || !ota_base64_decode(*text, len, true, sig, &n)) {
        return false;
    }
    *text += len;
    return **text != '.' || *++*text != 0;   // behind a dot another one follows
}

// Whether enough of the keys signed digest, with sig or with one of the signatures beside it. sig is used up.
static ota_manifest_result_t verify(const ota_trust_t *trust, const uint8_t digest[32], uint8_t sig[64], const char *cosignatures)
{
    uint32_t by = 0;
    bool memory = add_signers(trust, digest, sig, &by);
    for (int n = 0; *cosignatures && memory; n++) {
        if (n == OTA_MAX_COSIGNATURES || !next_cosignature(&cosignatures, sig)) {
            return OTA_MANIFEST_BAD;
        }
        memory = add_signers(trust, digest, sig, &by);
    }
    if (!memory) {
        return OTA_MANIFEST_NO_MEMORY;
    }
    int need = trust->threshold > 1 ? trust->threshold : 1;
    for (; by != 0; by &= by - 1) {
        need--;
    }
    return need > 0 ? OTA_MANIFEST_BAD_SIGNATURE : OTA_MANIFEST_OK;
}

// Whether point is in the set already.
static bool holds(const ota_trust_t *t, const uint8_t point[OTA_POINT_LEN])
{
    for (int i = 0; i < t->count; i++) {
        if (memcmp(t->point[i], point, OTA_POINT_LEN) == 0) {
            return true;
        }
    }
    return false;
}

static ota_manifest_result_t add_key(ota_trust_t *t, const uint8_t key[OTA_KEY_LEN], char *why, size_t why_size)
{
    switch (ota_es256_key(key)) {
    case OTA_ES256_OK:
        break;
    case OTA_ES256_NO_MEMORY:
        return say(why, why_size, OTA_MANIFEST_NO_MEMORY, "trusted key: no memory to read it");
    default:
        return say(why, why_size, OTA_MANIFEST_BAD, "trusted key: not an ECDSA P-256 public key");
    }
    const uint8_t *point = key + OTA_KEY_LEN - OTA_POINT_LEN;
    if (!holds(t, point)) {
        memcpy(t->point[t->count++], point, OTA_POINT_LEN);
    }
    return OTA_MANIFEST_OK;
}

static ota_manifest_result_t read_keys(const char *pem, int threshold, ota_trust_t *out, char *why, size_t why_size)
{
    uint8_t key[OTA_KEY_LEN];
    bool bad;
    int blocks = 0;
    while (ota_keys_next(&pem, key, &bad)) {
        ota_manifest_result_t r = ++blocks > OTA_MAX_KEYS ? OTA_MANIFEST_OK : add_key(out, key, why, why_size);
        if (r != OTA_MANIFEST_OK) {
            return r;
        }
    }
    if (bad || blocks == 0 || blocks > OTA_MAX_KEYS) {
        return say(why, why_size, OTA_MANIFEST_BAD, "trusted key: not one to eight PEM blocks PUBLIC KEY of P-256 keys");
    }
    if (threshold < 0 || threshold > out->count) {
        return say(why, why_size, OTA_MANIFEST_BAD, "trusted keys: fewer than have to sign");
    }
    out->threshold = (uint8_t)threshold;
    return OTA_MANIFEST_OK;
}

// What is refused must not be half a set: that would trust less or more than was meant.
static ota_manifest_result_t all_or_none(ota_manifest_result_t r, ota_trust_t *t)
{
    if (r != OTA_MANIFEST_OK) {
        memset(t, 0, sizeof *t);
    }
    return r;
}

ota_manifest_result_t ota_manifest_keys(const char *pem, int threshold, ota_trust_t *out, char *why, size_t why_size)
{
    memset(out, 0, sizeof *out);
    return all_or_none(read_keys(pem, threshold, out, why, why_size), out);
}

static bool all_zero(const uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (b[i] != 0) {
            return false;
        }
    }
    return true;
}

static ota_manifest_result_t read_builtin(const uint8_t *block, ota_trust_t *out, char *why, size_t why_size)
{
    const uint8_t *points = block + 16;
    size_t count = block[9];
    if (memcmp(block, OTA_BUILTIN_MAGIC, 8) != 0) {
        return OTA_MANIFEST_OK;
    }
    uint32_t sequence = (uint32_t)block[12] | (uint32_t)block[13] << 8 | (uint32_t)block[14] << 16 | (uint32_t)block[15] << 24;
    bool room = count == 0 && block[10] == 0 && sequence == 0, set = count > 0 && block[10] > 0 && block[10] <= count && sequence > 0;
    if (block[8] != 1 || block[11] != 0 || count > OTA_BUILTIN_MAX || !(room || set) ||
        !all_zero(points + count * OTA_POINT_LEN, (OTA_BUILTIN_MAX - count) * OTA_POINT_LEN)) {
        return say(why, why_size, OTA_MANIFEST_BAD, "the image's keys are not as they have to be");
    }
    for (size_t i = 0; i < count; i++) {
        uint8_t key[OTA_KEY_LEN];
        ota_es256_from_point(points + i * OTA_POINT_LEN, key);
        ota_manifest_result_t r = add_key(out, key, why, why_size);
        if (r != OTA_MANIFEST_OK) {
            return r;
        }
    }
    if (out->count != count) {
        return say(why, why_size, OTA_MANIFEST_BAD, "the image's keys: one stands twice");
    }
    out->sequence = sequence;
    out->threshold = block[10];
    return OTA_MANIFEST_OK;
}

ota_manifest_result_t ota_manifest_builtin(const uint8_t block[OTA_BUILTIN_LEN], ota_trust_t *out, char *why, size_t why_size)
{
    memset(out, 0, sizeof *out);
    return all_or_none(read_builtin(block, out, why, why_size), out);
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
    ota_object_int(&o, "sequence", &out->sequence);
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
    if (out->sequence < 0) {
        return say(why, why_size, OTA_MANIFEST_BAD, "manifest: sequence is negative");
    }
    return version ? OTA_MANIFEST_OK : say(why, why_size, OTA_MANIFEST_BAD, "manifest: no version");
}

// Opens the envelope of a manifest or an offer: *payload is decoded where it stands, and signed as trust wants it (NULL: by
// nobody).
static ota_manifest_result_t open_jws(char *jws, size_t len, size_t max, const char *cosignatures, const ota_trust_t *trust, char **payload,
                                      size_t *payload_len, char *why, size_t why_size)
{
    if (len > max || len < sizeof header - 1 || memcmp(jws, header, sizeof header - 1) != 0) {
        return say(why, why_size, OTA_MANIFEST_BAD, "too long, or its header is not {\"alg\":\"ES256\"}");
    }
    uint8_t digest[32], sig[64];
    bool no_memory = false;
    if (!hash_and_decode(jws, len, digest, sig, payload, payload_len, &no_memory)) {
        return say(why, why_size, OTA_MANIFEST_BAD, "not three parts in canonical base64url");
    }
    if (no_memory) {
        return say(why, why_size, OTA_MANIFEST_NO_MEMORY, "no memory to hash it");
    }
    ota_manifest_result_t result = trust ? verify(trust, digest, sig, cosignatures) : OTA_MANIFEST_OK;
    switch (result) {
    case OTA_MANIFEST_NO_MEMORY:
        return say(why, why_size, result, "no memory to check the signature");
    case OTA_MANIFEST_BAD:
        return say(why, why_size, result, "cosignatures: not one to three signatures in canonical base64url");
    case OTA_MANIFEST_BAD_SIGNATURE:
        return say(why, why_size, result, "not signed by a trusted key, or not by enough of them");
    default:
        return result;
    }
}

ota_manifest_result_t ota_manifest_read(char *jws, size_t len, const char *cosignatures, const ota_trust_t *trust,
                                        ota_manifest_t *out, char *why, size_t why_size)
{
    char *payload;
    size_t n;
    memset(out, 0, sizeof *out);
    ota_manifest_result_t result = open_jws(jws, len, MAX_JWS, cosignatures, trust, &payload, &n, why, why_size);
    return result == OTA_MANIFEST_OK ? read_payload(payload, n, out, why, why_size) : result;
}

static bool nonce_ok(const char *s)
{
    size_t n = strlen(s);
    return n >= 16 && n == strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");
}

ota_manifest_result_t ota_offer_read(char *jws, size_t len, const ota_trust_t *server, ota_fresh_t *out, char *why, size_t why_size)
{
    char *payload, type[OTA_MAX_TEXT + 1];
    size_t n;
    memset(out, 0, sizeof *out);
    ota_manifest_result_t result = open_jws(jws, len, OTA_MAX_OFFER, "", server, &payload, &n, why, why_size);
    if (result != OTA_MANIFEST_OK) {
        return result;
    }
    ota_object_t o;
    if (!ota_object_parse(&o, payload, n, why, why_size)) {
        return OTA_MANIFEST_BAD;
    }
    copy_text(&o, "type", type, sizeof type);
    bool device = copy_text(&o, "device", out->device, sizeof out->device);
    copy_text(&o, "nonce", out->nonce, sizeof out->nonce);
    out->path = "";
    ota_object_text(&o, "path", 512, &out->path);
    copy_text(&o, "sha256", out->sha256, sizeof out->sha256);
    bool version = copy_text(&o, "version", out->version, sizeof out->version);
    ota_object_int(&o, "sequence", &out->sequence);
    ota_object_int(&o, "valid_s", &out->valid_s);
    if (o.bad) {
        return OTA_MANIFEST_BAD;
    }
    if (strcmp(type, "offer") != 0 || !device || !version || !nonce_ok(out->nonce) || out->path[0] != '/' || !ota_digest_ok(out->sha256) ||
        out->sequence < 0 || out->valid_s < 1 || out->valid_s > 86400) {
        return say(why, why_size, OTA_MANIFEST_BAD, "it is no offer, or a field is out of range");
    }
    return OTA_MANIFEST_OK;
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
