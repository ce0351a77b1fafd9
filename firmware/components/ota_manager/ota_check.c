#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "esp_log.h"
#include "esp_random.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "ota_url.h"
#include "ota_version.h"
#include "sdkconfig.h"

static const char *TAG = "ota_check";

// Asks for one version.json, into buf of OTA_MAX_VERSION_FILE + 1 bytes. What is missing or no version file comes back as a
// refusal, so that the other place is tried.
static bool version_file(const ota_run_t *run, const char *url, char *buf, ota_version_file_t *f, ota_fault_t *why)
{
    ota_response_t r;
    if (!ota_web_get(run, &r, url, 0, "", why)) {
        return false;
    }
    size_t got = 0;
    bool ended = true;
    bool ok;
    if (r.status == 404 || r.status == 410) {
        ok = ota_refused(why, OTA_REASON_NOT_PUBLISHED, "no version file at %s", url);
    } else if (r.status != 200) {
        ok = ota_web_status(&r, why);
    } else {
        // One byte more than is allowed tells a file that is too long, whatever length it announces.
        ok = ota_web_read(&r, buf, OTA_MAX_VERSION_FILE + 1, &got, &ended, why);
    }
    bool cut = ok && r.length >= 0 && (int64_t)got < r.length && got <= OTA_MAX_VERSION_FILE;
    ota_web_close(&r);
    if (!ok) {
        return false;
    }
    if (cut) {
        return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "read version file: the server stopped after %zu bytes", got);
    }
    if (got > OTA_MAX_VERSION_FILE) {
        return ota_refused(why, OTA_REASON_BAD_VERSION_FILE, "answer is too long: more than %u bytes", OTA_MAX_VERSION_FILE);
    }
    ota_refusal_t refusal;
    return ota_version_file_parse(buf, got, f, &refusal) || ota_refused_by(why, &refusal);
}

#define NONCE_BYTES 16
#define NONCE_DIGITS 22   // in base64url

// One question for a version file, and what makes its answer one to no other.
typedef struct {
    const char *at;                 // the address asked
    char nonce[NONCE_DIGITS + 1];   // that an answer must repeat; "" where nobody has to prove anything
    int64_t asked_ms;               // by the board's own count, which no network can turn
} question_t;

static void new_nonce(char out[NONCE_DIGITS + 1])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint8_t b[NONCE_BYTES + 2] = {0};
    esp_fill_random(b, NONCE_BYTES);
    for (size_t i = 0; i < NONCE_DIGITS; i++) {
        size_t bit = i * 6;
        unsigned two = (unsigned)b[bit / 8] << 8 | b[bit / 8 + 1];
        out[i] = digits[two >> (10 - bit % 8) & 63];
    }
    out[NONCE_DIGITS] = '\0';
}

// The question for file in the folder of the image, with who asks, its address in out. A folder of files ignores that; a server
// that has nothing for this device must not be asked again as if it were nobody's question. False where it is too long.
static bool ask(ota_agent_t *a, const char *image, const char *file, char *out, size_t size, question_t *q)
{
    char name[sizeof "version.json?chip=&device=&nonce=" + 16 + 3 * OTA_MAX_DEVICE_ID + NONCE_DIGITS];
    size_t n = (size_t)snprintf(name, sizeof name, "%s?chip=%s&device=", file, CONFIG_IDF_TARGET);
    for (const char *c = a->id; *c != '\0' && n + 4 < sizeof name; c++) {
        n += (size_t)snprintf(name + n, sizeof name - n, *c == ':' ? "%%3A" : "%c", *c);
    }
    *q = (question_t){.at = out, .asked_ms = ota_now_ms()};
    if (a->cfg.server.count > 0) {
        new_nonce(q->nonce);
        snprintf(name + n, sizeof name - n, "&nonce=%s", q->nonce);
    }
    return ota_url_beside(image, name, out, size);
}

// Without blocks the download starts over where it breaks, and needs nothing of this.
static void keep_blocks(ota_offer_t *o, const ota_manifest_t *m, uint32_t slot_size)
{
    if (m->size <= 0 || m->size > (int64_t)slot_size) {
        return;   // it will be refused; nothing is allocated for a number from the network
    }
    size_t n = ((size_t)m->size + OTA_BLOCK_SIZE - 1) / OTA_BLOCK_SIZE;
    o->blocks = malloc(n * sizeof o->blocks[0]);
    if (o->blocks == NULL) {
        ESP_LOGW(TAG, "no memory for the digests of %zu blocks: this download cannot be resumed", n);
        return;
    }
    o->block_count = n;
    for (size_t i = 0; i < n; i++) {
        if (!ota_manifest_block(m, i, o->blocks[i])) {
            free(o->blocks);
            o->blocks = NULL;
            o->block_count = 0;
            return;
        }
    }
}

static bool buried(const char *sha256, void *ctx)
{
    const ota_agent_t *a = ctx;
    for (int i = 0; i < a->story.buried_count; i++) {
        char text[OTA_DIGEST_TEXT + 1];
        ota_hex(a->story.buried[i], 32, text);
        if (strcmp(text, sha256) == 0) {
            return true;
        }
    }
    return false;
}

// Whether this board takes the release. A stale one it takes only where that is newer than what runs, whatever the order says.
static bool judge(ota_agent_t *a, const ota_wish_t *w, const ota_release_t *r, bool stale, ota_refusal_t *why)
{
    const char *wanted = w->cmd.version;
    if (wanted[0] != '\0' && !ota_version_same(wanted, r->version) && !ota_on_the_way(wanted, r->version, a->version)) {
        if (ota_version_same(wanted, a->version)) {
            why->reason = OTA_REASON_UP_TO_DATE;
            snprintf(why->detail, sizeof why->detail, "%s", wanted);
        } else {
            why->reason = OTA_REASON_VERSION_MISMATCH;
            snprintf(why->detail, sizeof why->detail, "%s is asked for, the server has %s", wanted, r->version);
        }
        return false;
    }
    ota_subject_t self = {
        .chip = CONFIG_IDF_TARGET, .project = a->project, .version = a->version, .image_sha256 = a->digest,
        .slot_size = a->slots.target != NULL ? (int64_t)a->slots.target->size : 0, .secure_version = a->floor,
        .quarantined = buried, .ctx = a,
    };
    if (!ota_may_install(&self, r, w->cmd.force && !stale, why)) {
        return false;
    }
    char held[OTA_DIGEST_TEXT + 1];
    ota_hex(a->story.held, 32, held);
    if (w->retained && a->story.is_held && r->sha256[0] != '\0' && strcmp(r->sha256, held) == 0) {
        why->reason = OTA_REASON_QUARANTINED;
        snprintf(why->detail, sizeof why->detail, "%s by command; an order given while the device listens brings it back", r->version);
        return false;
    }
    return true;
}

// The question for the mirror's version file; false where there is none, and on a board that holds no key, to which a mirror
// could say anything. It is told who asks only where it may be passing the question on to the server, whose answer a board
// with the server's key can tell.
static bool ask_mirror(ota_agent_t *a, char *out, size_t size, question_t *q)
{
    const char *image = a->cfg.ota.mirror_url;
    if (a->cfg.trust.count == 0 || image[0] == '\0') {
        return false;
    }
    if (a->cfg.server.count > 0) {
        return ask(a, image, "version.json", out, size, q);
    }
    *q = (question_t){.at = out};
    return ota_url_beside(image, "version.json", out, size);
}

// Whether path is that of url.
static bool same_path(const char *url, const char *path)
{
    const char *at = strstr(url, "://");
    at = at != NULL ? strchr(at + 3, '/') : NULL;
    size_t n = at != NULL ? strcspn(at, "?#") : 0;
    return n > 0 && strlen(path) == n && memcmp(at, path, n) == 0;
}

// Whether text is not the server's answer to q that offers r; why says what is wrong with it. Never on a board that holds no key
// of the server. Age is counted from the question on by the board itself: a clock that is wrong changes nothing.
static bool is_stale(ota_agent_t *a, const question_t *q, const char *text, const ota_release_t *r, int64_t sequence, char *why, size_t size)
{
    if (a->cfg.server.count == 0) {
        return false;
    }
    ota_fresh_t said;
    // The text lies in the buffer of the version file, which is ours to overwrite.
    if (text[0] == '\0') {
        snprintf(why, size, "the answer holds no offer");
    } else if (ota_offer_read((char *)(uintptr_t)text, strlen(text), &a->cfg.server, &said, why, size) != OTA_MANIFEST_OK) {
        return true;   // with its sentence
    } else if (strcmp(said.device, a->id) != 0) {
        snprintf(why, size, "the offer is to another device");
    } else if (!same_path(q->at, said.path)) {
        snprintf(why, size, "the offer is of another place on the server");
    } else if (strcmp(said.nonce, q->nonce) != 0) {
        snprintf(why, size, "the offer answers another question");
    } else if (strcmp(said.sha256, r->sha256) != 0 || strcmp(said.version, r->version) != 0 || said.sequence != sequence) {
        snprintf(why, size, "the offer is of another release");
    } else if (ota_now_ms() - q->asked_ms > said.valid_s * 1000) {
        snprintf(why, size, "the offer came too late");
    } else {
        return false;
    }
    return true;
}

// Turns the version file into an offer. A board that holds a key takes every fact of the decision from the manifest that a
// trusted key signed; what stands beside it may be anybody's. Only where the bytes are fetched is the file's word, because
// bytes prove themselves. The file answers q, and image is where the bytes are when it does not say. What nothing shows to be of
// now is refused, but for a mirror's: that may bring what is newer than what runs.
static bool believe(ota_agent_t *a, const ota_wish_t *w, const ota_version_file_t *f, const question_t *q, const char *image, ota_offer_t *o,
                    ota_fault_t *why)
{
    const char *at = q->at;
    ota_release_t r = {.chip = f->chip, .project = f->project, .version = f->version, .sha256 = f->sha256,
                       .min_version = f->min_version, .size = f->size, .secure_version = f->secure_version};
    o->force = f->force_update;
    ota_manifest_t m;
    bool have = false;
    char text[OTA_MAX_MESSAGE];
    const ota_trust_t *trust = a->cfg.trust.count > 0 ? &a->cfg.trust : NULL;
    if (trust != NULL && f->manifest[0] == '\0') {
        return ota_refused(why, OTA_REASON_UNSIGNED, "version.json holds no manifest");
    }
    if (f->manifest[0] != '\0') {
        // The text lies in the buffer of the version file, which is ours to overwrite.
        ota_manifest_result_t got = ota_manifest_read((char *)(uintptr_t)f->manifest, strlen(f->manifest), f->cosignatures,
                                                      trust, &m, text, sizeof text);
        if (got == OTA_MANIFEST_NO_MEMORY) {
            return ota_again(why, OTA_REASON_OTHER, "check manifest: %s", text);
        }
        if (trust != NULL && got != OTA_MANIFEST_OK) {
            return ota_refused(why, OTA_REASON_BAD_SIGNATURE, "%s", text);
        }
        if (trust != NULL) {
            o->promised = true;
            o->force = m.force_update;
            r = (ota_release_t){.chip = m.chip, .project = m.project, .version = m.version, .sha256 = m.sha256,
                                .min_version = m.min_version, .size = m.size, .secure_version = m.secure_version};
            have = true;
        } else {
            // For its block digests only: they must add up to the digest in any case.
            have = got == OTA_MANIFEST_OK && strcmp(m.sha256, f->sha256) == 0 && m.size == f->size;
        }
    }
    if (f->url[0] == '\0') {
        snprintf(o->url, sizeof o->url, "%s", image);
    } else if (!ota_url_resolve(at, f->url, a->cfg.ota.skip_cert_verification || strncasecmp(at, "http://", 7) == 0, o->url, sizeof o->url, text, sizeof text)) {
        return ota_refused(why, OTA_REASON_BAD_VERSION_FILE, "%s", text);
    }
    snprintf(o->version, sizeof o->version, "%s", r.version);
    snprintf(o->sha256, sizeof o->sha256, "%s", r.sha256);
    o->size = r.size;
    o->secure_version = r.secure_version;
    if (is_stale(a, q, f->offer, &r, have ? m.sequence : 0, text, sizeof text)) {
        if (image == a->cfg.ota.server_url) {
            return ota_refused(why, OTA_REASON_STALE_OFFER, "%s", text);
        }
        o->stale = true;
    }
    o->fits = judge(a, w, &r, o->stale, &o->refusal);
    if (o->stale && !o->fits) {
        // "Up to date" would be the word of whoever keeps something newer back.
        char refusal[sizeof o->refusal.detail];
        snprintf(refusal, sizeof refusal, "%s from the mirror: %.60s; %.60s", r.version, text, ota_reason_text(o->refusal.reason));
        ota_refuse(&o->refusal, OTA_REASON_STALE_OFFER, "%s", refusal);
    }
    if (o->fits && have && a->slots.target != NULL) {
        keep_blocks(o, &m, a->slots.target->size);
    }
    return true;
}

// What the mirror offers; false where there is no mirror, or where what it has is not signed.
static bool look_at_mirror(const ota_run_t *run, const ota_wish_t *w, char *buf, ota_offer_t *o)
{
    ota_agent_t *a = run->a;
    char *at = (char *)a->io;
    question_t q;
    ota_version_file_t f;
    ota_fault_t why;
    return ask_mirror(a, at, OTA_MAX_ADDRESS, &q) && version_file(run, at, buf, &f, &why) &&
           believe(a, w, &f, &q, a->cfg.ota.mirror_url, o, &why);
}

// Asks the server what it offers: the fleet server's answer for this very device, else the file of a static one. The buffer
// is the largest there is; it lives for one look and is gone before the download.
static bool look(const ota_run_t *run, const ota_wish_t *w, ota_offer_t *o, ota_fault_t *why)
{
    ota_agent_t *a = run->a;
    char *at = (char *)a->io;   // nothing is downloaded yet
    question_t q;
    if (!ask(a, a->cfg.ota.server_url, "version", at, OTA_MAX_ADDRESS, &q)) {
        return ota_failed(why, OTA_REASON_BAD_CONFIG, "server_url is too long");
    }
    char *buf = malloc(OTA_MAX_VERSION_FILE + 1);
    if (buf == NULL) {
        return ota_again(why, OTA_REASON_OTHER, "no memory for the version file");
    }
    ota_version_file_t f;
    bool ok = version_file(run, at, buf, &f, why);
    if (!ok && why->phase == OTA_PHASE_REFUSED) {
        ota_fault_t second;
        if (ask(a, a->cfg.ota.server_url, "version.json", at, OTA_MAX_ADDRESS, &q)) {
            ok = version_file(run, at, buf, &f, &second);
            if (!ok && second.reason != OTA_REASON_NOT_PUBLISHED) {
                *why = second;
            }
        }
    }
    ok = ok && believe(a, w, &f, &q, a->cfg.ota.server_url, o, why);
    // An authority that expires must not strand a board, and what a mirror offers is signed or refused. Where it has nothing, the
    // server's own trouble is what somebody has to mend.
    if (!ok && (why->reason == OTA_REASON_TLS_FAILED || why->reason == OTA_REASON_SERVER_UNREACHABLE)) {
        ok = look_at_mirror(run, w, buf, o);
    }
    free(buf);
    return ok;
}

bool ota_check_offer(const ota_run_t *run, const ota_wish_t *w, ota_offer_t *o, ota_fault_t *why)
{
    // A server that is away for a moment must not fail an order. What it waits for is said at every try, because the wait of
    // an update can be long.
    int64_t began = ota_now_ms();
    ota_run_t patient = {run->a, began + (w->cmd.action == OTA_ACTION_CHECK ? OTA_CHECK_MS : OTA_OVERALL_MS)};
    ota_pause_t pause = {.first_ms = 1000, .limit_ms = 60 * 1000};
    ota_fault_t last = {0};
    for (bool before = false;; before = true) {
        memset(o, 0, sizeof *o);
        if (look(&patient, w, o, why)) {
            return true;
        }
        if (before && why->reason == OTA_REASON_DEADLINE) {
            *why = last;   // says more than that the time is up
            return false;
        }
        if (!why->retry || (why->reason == OTA_REASON_TLS_FAILED && ota_now_ms() - began >= OTA_CHECK_MS)) {
            return false;
        }
        last = *why;
        char text[OTA_MAX_MESSAGE];
        snprintf(text, sizeof text, "will try again: %.*s", (int)(sizeof text - sizeof "will try again: "), why->text);
        ota_report_phase(run->a, OTA_PHASE_CHECKING, OTA_REASON_NONE, text);
        uint32_t wait = ota_pause_next(&pause);
        if (!ota_run_sleep(&patient, wait > why->after_ms ? wait : why->after_ms)) {
            return false;
        }
    }
}

void ota_offer_free(ota_offer_t *o)
{
    free(o->blocks);
    o->blocks = NULL;
    o->block_count = 0;
}

// Whether the mirror has a release that a trusted key signed. It proves nothing of itself, and whoever is on the wire can answer
// in its name.
static bool mirror_answers(const ota_run_t *run)
{
    if (run->a->cfg.ota.mirror_url[0] == '\0') {
        return false;
    }
    char *buf = malloc(OTA_MAX_VERSION_FILE + 1);
    if (buf == NULL) {
        return false;
    }
    ota_offer_t o = {0};
    bool ok = look_at_mirror(run, &run->a->wish, buf, &o);
    ota_offer_free(&o);
    free(buf);
    return ok;
}

bool ota_probe_server(const ota_run_t *run)
{
    char *at = (char *)run->a->io;
    ota_response_t r;
    ota_fault_t why;
    // What is tested is the way that the next update comes, not whether there is one.
    question_t q;
    if (!ask(run->a, run->a->cfg.ota.server_url, "version", at, OTA_MAX_ADDRESS, &q) || !ota_web_get(run, &r, at, 0, "", &why)) {
        return mirror_answers(run);
    }
    bool ok = r.status < 500;
    ota_web_close(&r);
    return ok;
}
