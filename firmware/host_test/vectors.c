// Answers questions about the pure half of the component, one after the other until its input ends, so that a test in Go can
// hold each answer against its own. A question is a number of texts, the first of which says what is asked; number and
// lengths are 32 bits, little endian. An answer is a length and a text.
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ota_crypto.h"
#include "ota_manifest.h"
#include "ota_protocol.h"
#include "ota_url.h"
#include "ota_version.h"

#define MAX_ARGS 40
#define MAX_ARG (128u << 10)

// One text of a question, in memory of exactly its size and a NUL, so that the sanitizer sees every step beyond it.
typedef struct {
    char *s;
    uint32_t len;
} arg_t;

// A copy without anything behind it, for functions that are told a length.
static char *exactly(const arg_t *a)
{
    char *copy = malloc(a->len > 0 ? a->len : 1);
    if (!copy) {
        abort();
    }
    memcpy(copy, a->s, a->len);
    return copy;
}

static char answer[256u << 10];
static size_t answer_len;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(answer + answer_len, sizeof answer - answer_len, format, args);
    va_end(args);
    answer_len += (size_t)n;
    if (answer_len >= sizeof answer) {
        abort();
    }
}

static void say_text(const char *key, const char *s)
{
    say(" %s=\"", key);
    for (; *s; s++) {
        bool plain = *s >= ' ' && *s <= '~' && *s != '"' && *s != '\\';
        say(plain ? "%c" : "\\x%02x", (unsigned char)*s);
    }
    say("\"");
}

static void ask_version(const arg_t *a)
{
    const char *x = a[0].s, *y = a[1].s;
    say("ok=%d,%d newer=%d older=%d same=%d generic=%d", ota_version_ok(x), ota_version_ok(y), ota_version_newer(x, y),
        ota_version_older(x, y), ota_version_same(x, y), ota_version_generic(x));
}

static bool command(const arg_t *a, ota_command_t *c)
{
    ota_refusal_t why = {OTA_REASON_NONE, ""};
    char *copy = exactly(a);
    bool ok = ota_command_parse((const uint8_t *)copy, a->len, c, &why);
    free(copy);
    if (!ok) {
        say("refused %s", ota_reason_name(why.reason));
    }
    return ok;
}

static void ask_command(const arg_t *a)
{
    static const char *const actions[] = {"check", "update", "rollback", "status"};
    ota_command_t c;
    if (command(a, &c)) {
        say("%s force=%d", actions[c.action], c.force);
        say_text("id", c.id);
        say_text("version", c.version);
        if (c.expires) {
            say(" expires=%" PRId64 "+%" PRId32, c.expires_at, c.expires_ns);
        }
    }
}

static void ask_expired(const arg_t *a)
{
    ota_command_t c;
    if (command(a, &c)) {
        say("%d", ota_command_expired(&c, strtoll(a[1].s, NULL, 10)));
    }
}

static void ask_same(const arg_t *a)
{
    ota_command_t c, running;
    if (command(a, &c) && command(a + 1, &running)) {
        say("%d", ota_command_same(&c, &running));
    }
}

static void ask_version_file(const arg_t *a)
{
    ota_version_file_t f;
    ota_refusal_t why = {OTA_REASON_NONE, ""};
    char *copy = exactly(a);
    if (!ota_version_file_parse(copy, a->len, &f, &why)) {
        say("refused %s", ota_reason_name(why.reason));
        free(copy);
        return;
    }
    say("force=%d size=%" PRId64 " secure=%" PRIu32, f.force_update, f.size, f.secure_version);
    say_text("version", f.version);
    say_text("build_date", f.build_date);
    say_text("description", f.description);
    say_text("min_version", f.min_version);
    say_text("project", f.project);
    say_text("chip", f.chip);
    say_text("sha256", f.sha256);
    say_text("url", f.url);
    say_text("manifest", f.manifest);
    say_text("cosignatures", f.cosignatures);
    say_text("offer", f.offer);
    free(copy);
}

// Bits, because a printed number may hide the last one.
static void say_double(const char *key, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    say(" %s=%016" PRIx64, key, bits);
}

static void ask_ota_config(const arg_t *a)
{
    ota_config_t c;
    char why[160] = "";
    if (!ota_config_parse(a->s, a->len, &c, why, sizeof why)) {
        say("refused");
        return;
    }
    say("skip=%d timeout=%" PRId64 " auto=%d own=%d deadline=%" PRId64 " frames=%d heap=%" PRId64 " not_charging=%d temps=%d,%d threshold=%d",
        c.skip_cert_verification, c.timeout_ms, c.auto_rollback_enabled, c.own_topic_only, c.deadline_s, c.bms_frames, c.min_heap,
        c.gate.not_while_charging, c.gate.has_min_temp, c.gate.has_max_temp, c.trusted_threshold);
    say_double("soc", c.gate.min_soc_pct);
    say_double("current", c.gate.max_current_a);
    say_double("cold", c.gate.min_temp_c);
    say_double("hot", c.gate.max_temp_c);
    say_text("window", c.gate.window);
    say_text("server_url", c.server_url);
    say_text("cert_pem", c.cert_pem);
    say_text("current_version", c.current_version);
    say_text("device_id", c.device_id);
    say_text("trusted_key_pem", c.trusted_key_pem);
    say_text("server_key_pem", c.server_key_pem);
    say_text("mirror_url", c.mirror_url);
    say_text("topic_prefix", c.topic_prefix);
}

static void ask_mqtt_config(const arg_t *a)
{
    ota_mqtt_config_t c;
    char why[160] = "";
    if (!ota_mqtt_config_parse(a->s, a->len, &c, why, sizeof why)) {
        say("refused");
        return;
    }
    say("port=%d qos=%d tls=%d", c.broker_port, c.qos, c.tls);
    say_text("broker_host", c.broker_host);
    say_text("username", c.username);
    say_text("password", c.password);
    say_text("ca_pem", c.ca_pem);
    say_text("client_cert_pem", c.client_cert_pem);
    say_text("client_key_pem", c.client_key_pem);
}

static void ask_keys(const arg_t *a)
{
    char why[160] = "";
    ota_trust_t t;
    say("%s", ota_manifest_keys(a->s, 0, &t, why, sizeof why) == OTA_MANIFEST_OK ? "ok" : "refused");
}

static void ask_builtin(const arg_t *a)
{
    char why[160] = "";
    ota_trust_t t;
    if (a->len != OTA_BUILTIN_LEN || ota_manifest_builtin((const uint8_t *)a->s, &t, why, sizeof why) != OTA_MANIFEST_OK) {
        say("refused");
        return;
    }
    say("set %" PRIu32 ": %d of", t.sequence, t.threshold);
    for (int i = 0; i < t.count; i++) {
        char hex[2 * OTA_POINT_LEN + 1];
        ota_hex(t.point[i], OTA_POINT_LEN, hex);
        say(" %s", hex);
    }
}

static void say_block(const ota_manifest_t *m, size_t i)
{
    uint8_t digest[32];
    char hex[65] = "none";
    if (ota_manifest_block(m, i, digest)) {
        ota_hex(digest, sizeof digest, hex);
    }
    say(" %s", hex);
}

// Text, keys, and a word: "verify", or "read" for a device without a key.
static void ask_manifest(const arg_t *a)
{
    static const char *const results[] = {"ok", "bad_signature", "bad", "no_memory"};
    ota_manifest_t m;
    char why[160] = "";
    bool verify = strcmp(a[2].s, "verify") == 0;
    ota_trust_t t;
    ota_manifest_keys(a[1].s, 0, &t, why, sizeof why);
    ota_manifest_result_t r = ota_manifest_read(a->s, a->len, "", verify ? &t : NULL, &m, why, sizeof why);
    say("%s", results[r]);
    if (r != OTA_MANIFEST_OK) {
        return;
    }
    say(" secure=%" PRIu32 " size=%" PRId64 " force=%d sequence=%" PRId64, m.secure_version, m.size, m.force_update, m.sequence);
    say_text("project", m.project);
    say_text("chip", m.chip);
    say_text("version", m.version);
    say_text("min_version", m.min_version);
    say_text("sha256", m.sha256);
    size_t last = (size_t)((m.size - 1) / OTA_BLOCK_SIZE);
    for (size_t i = 0; i < 4; i++) {
        say_block(&m, i);
    }
    say_block(&m, last);
    say_block(&m, last + 1);
}

// Text and the server's keys.
static void ask_offer(const arg_t *a)
{
    static const char *const results[] = {"ok", "bad_signature", "bad", "no_memory"};
    ota_fresh_t said;
    char why[160] = "";
    ota_trust_t t;
    ota_manifest_keys(a[1].s, 0, &t, why, sizeof why);
    ota_manifest_result_t r = ota_offer_read(a->s, a->len, &t, &said, why, sizeof why);
    say("%s", results[r]);
    if (r != OTA_MANIFEST_OK) {
        return;
    }
    say(" sequence=%" PRId64 " valid=%" PRId64, said.sequence, said.valid_s);
    say_text("device", said.device);
    say_text("nonce", said.nonce);
    say_text("path", said.path);
    say_text("sha256", said.sha256);
    say_text("version", said.version);
}

// Text, cosignatures, keys, and how many of them have to sign.
static void ask_cosigned(const arg_t *a)
{
    static const char *const results[] = {"ok", "bad_signature", "bad", "no_memory"};
    ota_manifest_t m;
    ota_trust_t t;
    char why[160] = "";
    if (ota_manifest_keys(a[2].s, atoi(a[3].s), &t, why, sizeof why) != OTA_MANIFEST_OK) {
        say("refused");
        return;
    }
    say("%s", results[ota_manifest_read(a->s, a->len, a[1].s, &t, &m, why, sizeof why)]);
}

static int64_t number(const arg_t *a) { return strtoll(a->s, NULL, 10); }

// The fields of a status in the order of ota_status_doc_t, all as text.
static void ask_status(const arg_t *a)
{
    ota_status_doc_t s = {
        .timestamp_us = number(a), .uptime_sec = number(a + 1), .phase = (ota_phase_t)number(a + 2),
        .progress_pct = (int)number(a + 3), .message = a[4].s, .current_version = a[5].s, .available_version = a[6].s,
        .rollback_pending = number(a + 7) != 0, .free_heap = number(a + 8), .device_id = a[9].s, .boot_id = a[10].s,
        .seq = strtoull(a[11].s, NULL, 10), .reason = ota_reason_from(a[12].s, a[12].len), .command_id = a[13].s,
        .slot = a[14].s, .slot_size = number(a + 15), .chip = a[16].s, .project = a[17].s,
        .secure_version = (uint32_t)number(a + 18), .image_sha256 = a[19].s, .failed_sha256 = a[20].s,
        .rollback_protected = number(a + 21) != 0, .signed_only = number(a + 22) != 0, .reset_reason = a[23].s,
        .bytes_done = number(a + 24), .bytes_total = number(a + 25), .retries = (int)number(a + 26),
        .min_free_heap = number(a + 27), .largest_free_block = number(a + 28),
        .battery = {.valid = number(a + 29) != 0, .soc_pct = strtod(a[30].s, NULL),
                    .pack_current_a = strtod(a[31].s, NULL), .charging = number(a + 32) != 0, .has_temp = number(a + 33) != 0,
                    .temp_min_c = strtod(a[34].s, NULL), .temp_max_c = strtod(a[35].s, NULL)},
    };
    char *out = malloc(OTA_MAX_STATUS);
    if (!out) {
        abort();
    }
    size_t n = ota_status_write(&s, out, OTA_MAX_STATUS);
    say("%s", out);
    if (n != strlen(out)) {
        abort();
    }
    free(out);
}

static bool is_quarantined(const char *sha256, void *ctx) { return strcmp(sha256, ctx) == 0; }

static void ask_refuse(const arg_t *a)
{
    ota_subject_t d = {
        .chip = a[0].s, .project = a[1].s, .version = a[2].s, .image_sha256 = a[3].s, .slot_size = number(a + 4),
        .secure_version = (uint32_t)number(a + 5), .quarantined = a[6].len > 0 ? is_quarantined : NULL, .ctx = a[6].s,
    };
    ota_release_t r = {
        .chip = a[7].s, .project = a[8].s, .version = a[9].s, .sha256 = a[10].s, .size = number(a + 11),
        .secure_version = (uint32_t)number(a + 12), .min_version = a[13].s,
    };
    ota_refusal_t why = {OTA_REASON_NONE, ""};
    if (ota_may_install(&d, &r, number(a + 14) != 0, &why)) {
        say("ok");
    } else {
        say("%s: %s", ota_reason_name(why.reason), why.detail);
    }
}

static void ask_gate(const arg_t *a)
{
    ota_gate_t g = {
        .min_soc_pct = strtod(a[0].s, NULL), .not_while_charging = number(a + 1) != 0, .max_current_a = strtod(a[7].s, NULL),
        .has_min_temp = a[8].len > 0, .has_max_temp = a[9].len > 0,   // an empty text is none
        .min_temp_c = strtod(a[8].s, NULL), .max_temp_c = strtod(a[9].s, NULL),
    };
    snprintf(g.window, sizeof g.window, "%s", a[2].s);
    ota_battery_reading_t b = {
        .valid = number(a + 3) != 0, .soc_pct = strtod(a[4].s, NULL), .charging = number(a + 5) != 0,
        .pack_current_a = strtod(a[10].s, NULL), .has_temp = a[11].len > 0,
        .temp_min_c = strtod(a[11].s, NULL), .temp_max_c = strtod(a[12].s, NULL),
    };
    say("%s", ota_reason_name(ota_gate_blocked(&g, &b, (int)number(a + 6))));
}

static void ask_on_the_way(const arg_t *a) { say("%d", ota_on_the_way(a[0].s, a[1].s, a[2].s)); }

static void ask_name(const arg_t *a)
{
    say("id=%d prefix=%d digest=%d", ota_device_id_ok(a->s), ota_topic_prefix_ok(a->s), ota_digest_ok(a->s));
}

static void ask_mac(const arg_t *a)
{
    char id[OTA_MAX_DEVICE_ID + 1];
    ota_device_id_from_mac((const uint8_t *)a->s, id);
    say("%s", id);
}

static void ask_phases(const arg_t *a)
{
    (void)a;
    for (ota_phase_t p = 0; p < OTA_PHASE_COUNT; p++) {
        say("%s %d %s:", ota_phase_name(p), ota_phase_code(p), ota_phase_text(p));
        for (ota_phase_t to = 0; to < OTA_PHASE_COUNT; to++) {
            say("%s%s", ota_phase_may(p, to) ? " " : "", ota_phase_may(p, to) ? ota_phase_name(to) : "");
        }
        say("\n");
    }
}

static void ask_reasons(const arg_t *a)
{
    (void)a;
    for (ota_reason_t r = 0; r < OTA_REASON_COUNT; r++) {
        const char *name = ota_reason_name(r);
        say("%s: %s%s\n", name, ota_reason_text(r), ota_reason_from(name, strlen(name)) == r ? "" : " BUT NOT BACK");
    }
    say("%s\n", ota_reason_name(ota_reason_from("unheard_of", 10)));
}

static void ask_digest(const arg_t *a)
{
    uint8_t digest[32];
    char hex[65];
    ota_sha256_t h;
    ota_sha256_start(&h);
    ota_sha256_add(&h, a->s, a->len / 3);
    ota_sha256_add(&h, a->s + a->len / 3, a->len - a->len / 3);
    ota_sha256_end(&h, digest);
    ota_hex(digest, sizeof digest, hex);
    say("%s", hex);
}

static void ask_beside(const arg_t *a)
{
    char out[640];
    say(ota_url_beside(a[0].s, a[1].s, out, sizeof out) ? "%s" : "no", out);
}

static void ask_resolve(const arg_t *a)
{
    char out[640], why[200];
    say(ota_url_resolve(a[0].s, a[1].s, a[2].s[0] == '1', out, sizeof out, why, sizeof why) ? "%s" : "no", out);
}

static const struct {
    const char *kind;
    uint32_t args;
    void (*ask)(const arg_t *a);
} questions[] = {
    {"version", 2, ask_version}, {"command", 1, ask_command}, {"expired", 2, ask_expired}, {"same", 2, ask_same},
    {"version_file", 1, ask_version_file}, {"ota_config", 1, ask_ota_config}, {"mqtt_config", 1, ask_mqtt_config},
    {"keys", 1, ask_keys}, {"builtin", 1, ask_builtin}, {"cosigned", 4, ask_cosigned}, {"manifest", 3, ask_manifest}, {"offer", 2, ask_offer}, {"status", 36, ask_status}, {"refuse", 15, ask_refuse},
    {"gate", 13, ask_gate}, {"on_the_way", 3, ask_on_the_way}, {"name", 1, ask_name}, {"mac", 1, ask_mac},
    {"phases", 0, ask_phases}, {"reasons", 0, ask_reasons}, {"digest", 1, ask_digest},
    {"beside", 2, ask_beside}, {"resolve", 3, ask_resolve},
};

static void ask(const char *kind, const arg_t *args, uint32_t count)
{
    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        if (strcmp(questions[i].kind, kind) == 0 && questions[i].args == count) {
            questions[i].ask(args);
            return;
        }
    }
    fprintf(stderr, "vectors: no question %s with %u texts\n", kind, count);
    exit(2);
}

static bool read_number(uint32_t *v)
{
    unsigned char b[4];
    if (fread(b, 1, 4, stdin) != 4) {
        return false;
    }
    *v = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    return true;
}

static arg_t read_arg(void)
{
    arg_t a;
    if (!read_number(&a.len) || a.len > MAX_ARG || !(a.s = malloc(a.len + 1)) || fread(a.s, 1, a.len, stdin) != a.len) {
        fprintf(stderr, "vectors: the question is not whole\n");
        exit(2);
    }
    a.s[a.len] = 0;
    return a;
}

int main(void)
{
    uint32_t count;
    while (read_number(&count)) {
        arg_t args[MAX_ARGS];
        if (count == 0 || count > MAX_ARGS) {
            return 2;
        }
        for (uint32_t i = 0; i < count; i++) {
            args[i] = read_arg();
        }
        answer_len = 0;
        ask(args[0].s, args + 1, count - 1);
        for (uint32_t i = 0; i < count; i++) {
            free(args[i].s);
        }
        uint32_t n = (uint32_t)answer_len;
        unsigned char head[4] = {(unsigned char)n, (unsigned char)(n >> 8), (unsigned char)(n >> 16), (unsigned char)(n >> 24)};
        if (fwrite(head, 1, 4, stdout) != 4 || fwrite(answer, 1, answer_len, stdout) != answer_len || fflush(stdout) != 0) {
            return 1;
        }
    }
    return 0;
}
