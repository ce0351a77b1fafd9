// The two files of the storage partition, each in either of its forms: JSON, or key=value lines.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ota_address.h"
#include "ota_gate.h"
#include "ota_json.h"
#include "ota_manifest.h"
#include "ota_protocol.h"
#include "ota_utf8.h"

// A piece of the file.
typedef struct {
    char *s;
    size_t len;
} piece_t;

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static piece_t trim(char *s, size_t len)
{
    while (len > 0 && is_blank(*s)) {
        s++;
        len--;
    }
    while (len > 0 && is_blank(s[len - 1])) {
        len--;
    }
    return (piece_t){s, len};
}

static bool is_word(piece_t p, const char *word)
{
    return p.len == strlen(word) && memcmp(p.s, word, p.len) == 0;
}

static bool is_one_of(piece_t p, const char *const words[])
{
    for (; *words; words++) {
        if (is_word(p, *words)) {
            return true;
        }
    }
    return false;
}

static bool say(char *why, size_t why_size, const char *sentence)
{
    snprintf(why, why_size, "%s", sentence);
    return false;
}

// Says what is wrong with a line, of which the beginning is quoted.
static bool refuse(ota_object_t *o, piece_t line, const char *what)
{
    snprintf(o->why, o->why_size, "\"%.*s\" %s", (int)(line.len < 64 ? line.len : 64), line.s, what);
    return false;
}

static bool add(ota_object_t *o, const char *key, size_t key_len, piece_t value, ota_field_kind_t kind)
{
    return ota_object_add(o, (ota_field_t){
        .key = key, .key_len = (uint16_t)key_len,
        .value = (uint16_t)(value.s - o->base), .value_len = (uint16_t)value.len, .kind = (uint8_t)kind,
    });
}

// broker=mqtts://host:port stands for broker_host, broker_port and tls.
static bool add_broker(ota_object_t *o, piece_t value)
{
    static const struct {
        const char *scheme;
        bool tls;
    } schemes[] = {{"mqtt://", false}, {"tcp://", false}, {"mqtts://", true}, {"ssl://", true}};
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        size_t n = strlen(schemes[i].scheme);
        if (value.len < n || memcmp(value.s, schemes[i].scheme, n) != 0) {
            continue;
        }
        char *rest = value.s + n;
        size_t len = value.len - n;
        len -= len > 0 && rest[len - 1] == '/';
        ota_authority_t a;
        if (!ota_authority_parse(rest, len, &a)) {
            break;
        }
        piece_t host = {rest + a.host, a.host_len};
        char *digits = rest + len;
        while (digits > rest && digits[-1] != ':') {
            digits--;
        }
        piece_t port = {digits, (size_t)(rest + len - digits)};
        return add(o, "broker_host", 11, host, OTA_FIELD_TEXT) &&
               (a.port == 0 || add(o, "broker_port", 11, port, OTA_FIELD_TEXT)) &&
               (!schemes[i].tls || add(o, "tls", 3, value, OTA_FIELD_TRUE));
    }
    return refuse(o, value, "is not mqtt://host:port or mqtts://host:port");
}

// One line of the older form. Its words become the newer ones.
static bool add_line(ota_object_t *o, piece_t line)
{
    static const char *const numbers[] = {"broker_port", "qos", "timeout_ms", "trusted_threshold", NULL};
    char *equals = memchr(line.s, '=', line.len);
    if (!equals) {
        return refuse(o, line, "is not key=value");
    }
    piece_t key = trim(line.s, (size_t)(equals - line.s));
    piece_t value = trim(equals + 1, (size_t)(line.s + line.len - equals - 1));
    int64_t number;
    if (is_word(key, "broker")) {
        return add_broker(o, value);
    }
    if (is_word(key, "url")) {
        return add(o, "server_url", 10, value, OTA_FIELD_TEXT);
    }
    if (is_word(key, "version")) {
        return add(o, "current_version", 15, value, OTA_FIELD_TEXT);
    }
    if (is_one_of(key, numbers) && !ota_parse_int(value.s, value.len, true, &number)) {
        return refuse(o, line, "is not a number");
    }
    return add(o, key.s, key.len, value, OTA_FIELD_TEXT);
}

// Gives every text of the older form its NUL, over the blank or line end behind it or at the end of the buffer. Only when
// all lines have been read: the byte may be what ends a line.
static void terminate(ota_object_t *o)
{
    for (uint16_t i = 0; i < o->count; i++) {
        if (o->field[i].kind == OTA_FIELD_TEXT) {
            o->base[o->field[i].value + o->field[i].value_len] = 0;
        }
    }
}

// Reads b into fields, whichever form it has.
static bool parse(ota_object_t *o, char *b, size_t len, char *why, size_t why_size)
{
    ota_object_init(o, b, why, why_size);
    if (len > OTA_MAX_CONFIG) {
        return say(why, why_size, "larger than a device reads");
    }
    piece_t text = trim(b, len);
    if (text.len == 0 || *text.s == '{' || !memchr(text.s, '=', text.len)) {
        return ota_object_parse(o, text.s, text.len, why, why_size);
    }
    if (!ota_utf8_ok(text.s, text.len)) {
        return say(why, why_size, "not valid UTF-8");
    }
    char *p = text.s, *end = text.s + text.len;
    while (p < end) {
        char *newline = memchr(p, '\n', (size_t)(end - p)), *line_end = newline ? newline : end;
        piece_t line = trim(p, (size_t)(line_end - p));
        if (line.len > 0 && *line.s != '#' && !add_line(o, line)) {
            return false;
        }
        p = line_end + (newline != NULL);
    }
    terminate(o);
    return true;
}

static bool within(int64_t v, int64_t max) { return v >= 0 && v <= max; }

static bool check_ota(const ota_config_t *c, int64_t frames, int64_t threshold, char *why, size_t why_size)
{
    bool plain;
    if (*c->server_url == 0) {
        return say(why, why_size, "no server_url");
    }
    if (!ota_server_url_ok(c->server_url, &plain)) {
        return say(why, why_size, "server_url is not an http(s) address");
    }
    if (plain && !c->skip_cert_verification) {
        return say(why, why_size, "server_url is plain http: use https, or set skip_cert_verification for a test bench");
    }
    if (!within(c->timeout_ms, 3600000)) {
        return say(why, why_size, "timeout_ms is not within 0 to 3600000");
    }
    if (!within(c->deadline_s, 86400) || !within(frames, 10000) || c->min_heap < 0) {
        return say(why, why_size, "health: a value is out of range");
    }
    if (*c->mirror_url && !ota_server_url_ok(c->mirror_url, &plain)) {
        return say(why, why_size, "mirror_url is not an http(s) address");
    }
    if (!within(threshold, 1 + OTA_MAX_COSIGNATURES)) {
        return say(why, why_size, "trusted_threshold is not within 0 to 4");
    }
    if (*c->device_id && !ota_device_id_ok(c->device_id)) {
        return say(why, why_size, "device_id may hold letters, digits and . _ : - only, and starts with a letter or digit");
    }
    if (*c->topic_prefix && !ota_topic_prefix_ok(c->topic_prefix)) {
        return say(why, why_size, "topic_prefix has an empty level or a character that is not allowed");
    }
    if (!ota_gate_ok(&c->gate)) {
        return say(why, why_size, "gate: a value is out of range, or window is not HH:MM-HH:MM");
    }
    return true;
}

static void read_health(ota_object_t *o, ota_config_t *out, int64_t *frames)
{
    ota_object_t sub;
    if (ota_object_sub(o, "health", &sub)) {
        ota_object_int(&sub, "deadline_s", &out->deadline_s);
        ota_object_int(&sub, "bms_frames", frames);
        ota_object_int(&sub, "min_heap", &out->min_heap);
        ota_object_close(o, &sub);
    }
}

// A number that may be missing: zero is a value like any other.
static void read_optional(ota_object_t *o, const char *key, bool *has, double *v)
{
    double got = NAN;   // which JSON cannot say
    ota_object_double(o, key, &got);
    *has = !isnan(got);
    *v = *has ? got : 0;
}

static void read_gate(ota_object_t *o, ota_gate_t *gate)
{
    ota_object_t sub;
    const char *window = "";
    if (ota_object_sub(o, "gate", &sub)) {
        ota_object_double(&sub, "min_soc_pct", &gate->min_soc_pct);
        ota_object_bool(&sub, "not_while_charging", &gate->not_while_charging);
        ota_object_double(&sub, "max_current_a", &gate->max_current_a);
        read_optional(&sub, "min_temp_c", &gate->has_min_temp, &gate->min_temp_c);
        read_optional(&sub, "max_temp_c", &gate->has_max_temp, &gate->max_temp_c);
        ota_object_text(&sub, "window", sizeof gate->window - 1, &window);
        ota_object_close(o, &sub);
    }
    strcpy(gate->window, window);
}

bool ota_config_parse(char *b, size_t len, ota_config_t *out, char *why, size_t why_size)
{
    *out = (ota_config_t){
        .server_url = "", .cert_pem = "", .current_version = "", .device_id = "", .trusted_key_pem = "", .server_key_pem = "",
        .mirror_url = "", .topic_prefix = "", .auto_rollback_enabled = true,
    };
    ota_object_t o;
    if (!parse(&o, b, len, why, why_size)) {
        return false;
    }
    int64_t frames = 0, threshold = 0;
    ota_object_text(&o, "server_url", OTA_MAX_URL, &out->server_url);
    ota_object_text(&o, "cert_pem", OTA_MAX_CONFIG, &out->cert_pem);
    ota_object_bool(&o, "skip_cert_verification", &out->skip_cert_verification);
    ota_object_int(&o, "timeout_ms", &out->timeout_ms);
    ota_object_text(&o, "current_version", OTA_MAX_TEXT, &out->current_version);
    ota_object_bool(&o, "auto_rollback_enabled", &out->auto_rollback_enabled);
    ota_object_text(&o, "device_id", OTA_MAX_DEVICE_ID, &out->device_id);
    ota_object_text(&o, "trusted_key_pem", OTA_MAX_CONFIG, &out->trusted_key_pem);
    ota_object_int(&o, "trusted_threshold", &threshold);
    ota_object_text(&o, "server_key_pem", OTA_MAX_CONFIG, &out->server_key_pem);
    ota_object_text(&o, "mirror_url", OTA_MAX_URL, &out->mirror_url);
    ota_object_text(&o, "topic_prefix", 128, &out->topic_prefix);
    ota_object_bool(&o, "own_topic_only", &out->own_topic_only);
    read_health(&o, out, &frames);
    read_gate(&o, &out->gate);
    if (o.bad || !check_ota(out, frames, threshold, why, why_size)) {
        return false;
    }
    out->bms_frames = (int)frames;
    out->trusted_threshold = (int)threshold;
    return true;
}

bool ota_mqtt_config_parse(char *b, size_t len, ota_mqtt_config_t *out, char *why, size_t why_size)
{
    *out = (ota_mqtt_config_t){.broker_host = "", .username = "", .password = "", .ca_pem = "", .client_cert_pem = "", .client_key_pem = ""};
    ota_object_t o;
    if (!parse(&o, b, len, why, why_size)) {
        return false;
    }
    int64_t port = 0, qos = 1;
    ota_object_text(&o, "broker_host", 253, &out->broker_host);
    ota_object_int(&o, "broker_port", &port);
    ota_object_text(&o, "username", 128, &out->username);
    ota_object_text(&o, "password", 256, &out->password);
    ota_object_int(&o, "qos", &qos);
    ota_object_bool(&o, "tls", &out->tls);
    ota_object_text(&o, "ca_pem", OTA_MAX_CONFIG, &out->ca_pem);
    ota_object_text(&o, "client_cert_pem", OTA_MAX_CONFIG, &out->client_cert_pem);
    ota_object_text(&o, "client_key_pem", OTA_MAX_CONFIG, &out->client_key_pem);
    if (o.bad) {
        return false;
    }
    if (*out->broker_host == 0) {
        return say(why, why_size, "no broker_host");
    }
    if (strpbrk(out->broker_host, "/ @")) {
        return say(why, why_size, "broker_host is a host name or address only, without scheme or path");
    }
    if (!within(port, 65535)) {
        return say(why, why_size, "broker_port is not within 0 to 65535");
    }
    if (!within(qos, 2)) {
        return say(why, why_size, "qos is not 0, 1 or 2");
    }
    if ((*out->client_cert_pem == 0) != (*out->client_key_pem == 0)) {
        return say(why, why_size, "client_cert_pem and client_key_pem go together");
    }
    if (*out->client_cert_pem && !out->tls) {
        return say(why, why_size, "client_cert_pem needs tls");
    }
    out->qos = (int)qos;
    out->broker_port = port != 0 ? (int)port : out->tls ? 8883 : 1883;
    return true;
}
