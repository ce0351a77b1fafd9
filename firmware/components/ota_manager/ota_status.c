// Writes a status. What it writes is always one that a server reads: texts are cut to what docs/protocol.md section 3 allows
// them, made valid UTF-8, and numbers are held to their ranges.
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ota_protocol.h"
#include "ota_utf8.h"

typedef struct {
    char *out;
    size_t size, len;
    bool full;
} writer_t;

static void put_bytes(writer_t *w, const char *s, size_t n)
{
    if (w->full || n >= w->size - w->len) {
        w->full = true;
        return;
    }
    memcpy(w->out + w->len, s, n);
    w->len += n;
}

__attribute__((format(printf, 2, 3))) static void put(writer_t *w, const char *format, ...)
{
    char piece[64];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    put_bytes(w, piece, (size_t)n);
}

static void put_key(writer_t *w, const char *key)
{
    put(w, "%s\"%s\":", w->len > 1 ? "," : "", key);
}

static void put_int(writer_t *w, const char *key, int64_t v)
{
    put_key(w, key);
    put(w, "%" PRId64, v);
}

static void put_bool(writer_t *w, const char *key, bool v)
{
    put_key(w, key);
    put(w, v ? "true" : "false");
}

// One character of n bytes as Go's encoding/json writes it; <, > and & so that a page may hold the JSON. What a server would
// refuse, a control character or a byte that is no UTF-8 (n is 0), becomes a question mark.
static void put_char(writer_t *w, const char *s, size_t n)
{
    uint8_t c = (uint8_t)*s;
    if (n == 0) {
        put(w, "?");
    } else if (c == '"' || c == '\\') {
        put(w, "\\%c", c);
    } else if (c == '\n') {
        put(w, "\\n");
    } else if (c == '\t') {
        put(w, "\\t");
    } else if (c < ' ' || c == 0x7f) {
        put(w, "?");
    } else if (c == '<' || c == '>' || c == '&') {
        put(w, "\\u%04x", c);
    } else if (n == 3 && (memcmp(s, "\xe2\x80\xa8", 3) == 0 || memcmp(s, "\xe2\x80\xa9", 3) == 0)) {
        put(w, "\\u202%c", (uint8_t)s[2] == 0xa8 ? '8' : '9');   // line ends for JavaScript
    } else {
        put_bytes(w, s, n);
    }
}

// A text of at most limit bytes, cut between characters.
static void put_text(writer_t *w, const char *key, const char *s, size_t limit)
{
    put_key(w, key);
    put(w, "\"");
    while (s && *s) {
        size_t n = ota_utf8_char(s, strnlen(s, 4)), step = n > 0 ? n : 1;
        if (step > limit) {
            break;
        }
        limit -= step;
        put_char(w, s, n);
        s += step;
    }
    put(w, "\"");
}

static void put_text_if(writer_t *w, const char *key, const char *s, size_t limit)
{
    if (s && *s) {
        put_text(w, key, s, limit);
    }
}

static void put_int_if(writer_t *w, const char *key, int64_t v)
{
    if (v > 0) {
        put_int(w, key, v);
    }
}

static void put_digest_if(writer_t *w, const char *key, const char *hex)
{
    if (hex && ota_digest_ok(hex)) {
        put_text(w, key, hex, OTA_DIGEST_TEXT);
    }
}

// A measured value to a thousandth, as Go writes the same number. printf would need its part for floating point, which
// small C libraries leave out.
static void put_measured(writer_t *w, const char *key, double v)
{
    put_key(w, key);
    double most = 1e12;
    double held = v > most ? most : v < -most ? -most : v;
    int64_t n = isnan(v) ? 0 : (int64_t)llround(held * 1000);
    uint64_t size = (uint64_t)(n < 0 ? -n : n);
    put(w, "%s%" PRIu64, n < 0 ? "-" : "", size / 1000);
    unsigned rest = (unsigned)(size % 1000);
    if (rest % 10 != 0) {
        put(w, ".%03u", rest);
    } else if (rest % 100 != 0) {
        put(w, ".%02u", rest / 10);
    } else if (rest != 0) {
        put(w, ".%u", rest / 100);
    }
}

static void put_battery(writer_t *w, const ota_battery_reading_t *b)
{
    put_key(w, "battery");
    writer_t inner = {w->out + w->len, w->size - w->len, 0, w->full};
    put(&inner, "{");
    put_measured(&inner, "soc_pct", b->soc_pct);
    put_measured(&inner, "pack_current_a", b->pack_current_a);
    put_bool(&inner, "charging", b->charging);
    if (b->has_temp && ota_temp_ok(b->temp_min_c)) {
        put_measured(&inner, "temp_min_c", b->temp_min_c);
    }
    if (b->has_temp && ota_temp_ok(b->temp_max_c)) {
        put_measured(&inner, "temp_max_c", b->temp_max_c);
    }
    put(&inner, "}");
    w->len += inner.len;
    w->full = inner.full;
}

static int64_t at_least_0(int64_t v) { return v < 0 ? 0 : v; }

size_t ota_status_write(const ota_status_doc_t *s, char *out, size_t size)
{
    if (size == 0) {
        return 0;
    }
    writer_t w = {out, size, 0, false};
    put(&w, "{");
    put_int(&w, "timestamp_us", s->timestamp_us);
    put_int(&w, "uptime_sec", at_least_0(s->uptime_sec));
    put_int(&w, "status", ota_phase_code(s->phase));
    put_int(&w, "progress_pct", s->progress_pct < 0 ? 0 : s->progress_pct > 100 ? 100 : s->progress_pct);
    put_text(&w, "message", s->message, 512);
    put_text(&w, "current_version", s->current_version, OTA_MAX_TEXT);
    put_text(&w, "available_version", s->available_version, OTA_MAX_TEXT);
    put_bool(&w, "rollback_pending", s->rollback_pending);
    put_int(&w, "free_heap", s->free_heap);
    if (s->device_id && ota_device_id_ok(s->device_id)) {
        put_text(&w, "device_id", s->device_id, OTA_MAX_DEVICE_ID);
    }
    put_int(&w, "protocol", OTA_PROTOCOL_VERSION);
    put_text_if(&w, "boot_id", s->boot_id, OTA_MAX_TEXT);
    if (s->seq > 0) {
        put_key(&w, "seq");
        put(&w, "%" PRIu64, s->seq);
    }
    put_text(&w, "phase", ota_phase_name(s->phase), 32);
    put_text_if(&w, "reason", ota_reason_name(s->reason), OTA_MAX_TEXT);
    put_text_if(&w, "command_id", s->command_id, OTA_MAX_TEXT);
    put_text_if(&w, "slot", s->slot, 16);
    put_int_if(&w, "slot_size", s->slot_size);
    put_text_if(&w, "chip", s->chip, 32);
    put_text_if(&w, "project", s->project, 32);
    put_int_if(&w, "secure_version", s->secure_version);
    put_digest_if(&w, "image_sha256", s->image_sha256);
    put_digest_if(&w, "failed_sha256", s->failed_sha256);
    put_bool(&w, "rollback_protected", s->rollback_protected);
    put_bool(&w, "signed_only", s->signed_only);
    put_text_if(&w, "reset_reason", s->reset_reason, 32);
    put_int_if(&w, "bytes_done", s->bytes_done);
    put_int_if(&w, "bytes_total", s->bytes_total);
    put_int_if(&w, "retries", s->retries);
    put_int_if(&w, "min_free_heap", s->min_free_heap);
    put_int_if(&w, "largest_free_block", s->largest_free_block);
    if (s->battery.valid) {
        put_battery(&w, &s->battery);
    }
    put(&w, "}");
    out[w.full ? 0 : w.len] = 0;
    return w.full ? 0 : w.len;
}
