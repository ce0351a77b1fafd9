#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "esp_crt_bundle.h"
#include "esp_log.h"
#include "esp_random.h"
#include "esp_tls.h"
#include "mbedtls/pk.h"
#include "mbedtls/ssl.h"
#include "mbedtls/version.h"
#include "mbedtls/x509_crt.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "sdkconfig.h"

static const char *TAG = "ota_web";

#define CONNECT_MS (20 * 1000)
#define SLICE_MS 500           // of waiting: how long a cancelled request may go on
#define RATE_WINDOW_MS (30 * 1000)
#define RATE_BYTES (30 << 10)  // 1 KiB/s over the window
#define RETRY_AFTER_S (5 * 60) // the longest pause a server may ask for

static void keep(char *to, size_t size, const char *value)
{
    // What does not fit is not worth its memory: a tag cut short would be another tag.
    snprintf(to, size, "%s", strlen(value) < size ? value : "");
}

// ESP-IDF v6 with CONFIG_ESP_HTTP_CLIENT_ENABLE_GET_CONTENT_RANGE hands this header on with its value written twice.
static void keep_once(char *to, size_t size, const char *value)
{
    size_t half = strlen(value) / 2;
    keep(to, size, half > 0 && strncmp(value, value + half, half) == 0 && value[2 * half] == '\0' ? value + half : value);
}

static int64_t parse_length(const char *s)
{
    int64_t n = 0;
    size_t digits = strspn(s, "0123456789");
    if (digits == 0 || digits > 18 || s[digits] != '\0') {
        return -1;
    }
    for (size_t i = 0; i < digits; i++) {
        n = n * 10 + (s[i] - '0');
    }
    return n;
}

static void on_header(ota_response_t *r, const char *key, const char *value)
{
    if (strcasecmp(key, "ETag") == 0) {
        // A weak tag must not be used for ranges (RFC 9110 section 8.8.3.2).
        keep(r->etag, sizeof r->etag, value[0] == '"' ? value : "");
    } else if (strcasecmp(key, "Content-Range") == 0) {
        keep_once(r->content_range, sizeof r->content_range, value);
    } else if (strcasecmp(key, "Content-Length") == 0) {
        r->length = parse_length(value);
    } else if (strcasecmp(key, "Transfer-Encoding") == 0) {
        r->chunked = true;
    } else if (strcasecmp(key, "Retry-After") == 0) {
        keep(r->retry_after, sizeof r->retry_after, value);
    }
}

// A rate below the smallest that is of use ends the request as silence does.
static void pace(ota_response_t *r, int64_t now)
{
    if (now - r->window_ms < RATE_WINDOW_MS) {
        return;
    }
    r->slow = r->slow || r->window_bytes < RATE_BYTES;
    r->window_ms = now;
    r->window_bytes = 0;
}

static esp_err_t on_event(esp_http_client_event_t *e)
{
    ota_response_t *r = e->user_data;
    switch (e->event_id) {
    case HTTP_EVENT_ON_HEADER:
        on_header(r, e->header_key, e->header_value);
        break;
    case HTTP_EVENT_ON_DATA: {
        int64_t now = ota_now_ms();
        r->last_ms = now;
        r->window_bytes += e->data_len;
        pace(r, now);
        if (r->slow || ota_run_cause(r->run) != OTA_GOES_ON) {
            // esp_http_client_read waits for a full buffer, each drop anew: a trickle would hold it for hours.
            esp_http_client_set_timeout_ms(r->client, 1);
        }
        break;
    }
    case HTTP_EVENT_ERROR:
        // The data is the transport's error handle, in every version from 5.1 on.
        if (e->data != NULL) {
            r->tls_err = esp_tls_get_and_clear_last_error((esp_tls_error_handle_t)e->data, &r->tls_code, &r->tls_flags);
        }
        break;
    default:
        break;
    }
    return ESP_OK;
}

// Why the line is given up although nothing is wrong with it; true where it goes on.
static bool goes_on(const ota_response_t *r, const char *doing, ota_fault_t *why)
{
    switch (ota_run_cause(r->run)) {
    case OTA_GOES_ON:
        break;
    case OTA_DEADLINE:
        return ota_again(why, OTA_REASON_DEADLINE, "%s: the update took longer than it may", doing);
    default:
        return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "%s: stopped", doing);
    }
    if (r->slow || ota_now_ms() - r->last_ms >= r->stall_ms) {
        return ota_again(why, OTA_REASON_STALLED, "%s: the server sent nothing or next to nothing for too long", doing);
    }
    return true;
}

static bool is_tls(const ota_response_t *r)
{
    // mbedTLS's codes come without their sign. A line that breaks in the handshake says nothing about a certificate.
    bool broken = r->tls_code == -MBEDTLS_ERR_SSL_CONN_EOF || r->tls_code == 0x50 || r->tls_code == 0x4C || r->tls_code == 0x4E;
    return r->tls_flags != 0 || r->tls_err == ESP_ERR_MBEDTLS_X509_CRT_PARSE_FAILED ||
           r->tls_err == ESP_ERR_MBEDTLS_SSL_SETUP_FAILED ||
           (r->tls_err == ESP_ERR_MBEDTLS_SSL_HANDSHAKE_FAILED && !broken);
}

// In the words of the board that Go runs, as far as they can be known from mbedTLS's flags.
static const char *certificate_fault(const ota_response_t *r)
{
    if (r->tls_flags & MBEDTLS_X509_BADCERT_CN_MISMATCH) {
        return "certificate is valid for another name";
    }
    if (r->tls_flags & MBEDTLS_X509_BADCERT_EXPIRED) {
        return "certificate has expired";
    }
    if (r->tls_flags & MBEDTLS_X509_BADCERT_FUTURE) {
        return "certificate is not yet valid";
    }
    return r->tls_flags & MBEDTLS_X509_BADCERT_NOT_TRUSTED ? "certificate signed by unknown authority" : "no secure connection";
}

static bool unreachable(ota_response_t *r, esp_err_t err, ota_fault_t *why)
{
    if (!goes_on(r, "reach server", why)) {
        return false;
    }
    if (is_tls(r)) {
        return ota_again(why, OTA_REASON_TLS_FAILED, "reach server: %s (mbedTLS -0x%04x, flags 0x%x)", certificate_fault(r),
                         (unsigned)r->tls_code, (unsigned)r->tls_flags);
    }
    if (esp_http_client_get_errno(r->client) == ECONNREFUSED) {
        return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "reach server: connection refused");
    }
    return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "reach server: %s", esp_err_to_name(r->tls_err != ESP_OK ? r->tls_err : err));
}

// The given certificate, else the bundle, else, only when the configuration asks for it in so many words, anybody. Whether
// the build allows that was asked in ota_settings.c.
static void trust(const ota_config_t *cfg, esp_http_client_config_t *c)
{
    if (cfg->skip_cert_verification) {
#ifdef CONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY
        c->skip_cert_common_name_check = true;
        return;
#endif
    }
    if (cfg->cert_pem[0] != '\0') {
        c->cert_pem = cfg->cert_pem;
        return;
    }
#ifdef CONFIG_MBEDTLS_CERTIFICATE_BUNDLE
    c->crt_bundle_attach = esp_crt_bundle_attach;
#endif
}

// Whether url is at the host and port of the configured server, spelled alike.
static bool at_own_server(const ota_config_t *cfg, const char *url)
{
    const char *host = strstr(cfg->server_url, "://");
    if (host == NULL) {
        return false;
    }
    size_t n = (size_t)(host - cfg->server_url) + 3;
    n += strcspn(cfg->server_url + n, "/?");
    return strncasecmp(cfg->server_url, url, n) == 0 && (url[n] == '\0' || url[n] == '/' || url[n] == '?');
}

// The board's certificate is shown to its own server, where that asks for it, and to nobody else: a mirror is not told who asks.
static void identify(const ota_settings_t *s, const char *url, esp_http_client_config_t *c)
{
    if (s->identity && at_own_server(&s->ota, url)) {
        c->client_cert_pem = s->mqtt.client_cert_pem;
        c->client_key_pem = s->mqtt.client_key_pem;
    }
}

static bool request(ota_response_t *r, const char *url, int64_t range_from, const char *etag, ota_fault_t *why)
{
    const ota_config_t *cfg = &r->run->a->cfg.ota;
    esp_http_client_config_t c = {
        .url = url,
        .user_agent = "bmsota-device/1",
        .timeout_ms = (int)(r->stall_ms < CONNECT_MS ? r->stall_ms : CONNECT_MS),
        // A redirect could lead away from the server that was configured.
        .disable_auto_redirect = true,
        .max_authorization_retries = -1,
        .event_handler = on_event,
        .user_data = r,
        .buffer_size = 2048,
        .buffer_size_tx = 1024 + OTA_MAX_ADDRESS,
        .keep_alive_enable = true,
    };
    trust(cfg, &c);
    identify(&r->run->a->cfg, url, &c);
    r->client = esp_http_client_init(&c);
    if (r->client == NULL) {
        return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "reach server: no memory for a connection");
    }
    if (range_from > 0) {
        char range[40];
        snprintf(range, sizeof range, "bytes=%" PRId64 "-", range_from);
        // If-Range makes a server that has other bytes by now send all of them instead of the rest (RFC 9110 section 13.1.5).
        if (esp_http_client_set_header(r->client, "Range", range) != ESP_OK ||
            esp_http_client_set_header(r->client, "If-Range", etag) != ESP_OK) {
            return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "reach server: no memory for a header");
        }
    }
    esp_err_t err = esp_http_client_open(r->client, 0);
    if (err != ESP_OK) {
        return unreachable(r, err, why);
    }
    esp_http_client_set_timeout_ms(r->client, SLICE_MS);
    for (;;) {
        int64_t n = esp_http_client_fetch_headers(r->client);
        if (n >= 0) {
            break;
        }
        if (n != -ESP_ERR_HTTP_EAGAIN) {
            return unreachable(r, ESP_ERR_HTTP_FETCH_HEADER, why);
        }
        if (!goes_on(r, "reach server", why)) {
            return false;
        }
    }
    r->status = esp_http_client_get_status_code(r->client);
    r->last_ms = r->window_ms = r->left_ms = ota_now_ms();
    r->window_bytes = 0;
    if (r->chunked) {
        r->length = -1;   // RFC 9112 section 6.3: the coding has the word
    }
    return true;
}

bool ota_web_get(const ota_run_t *run, ota_response_t *r, const char *url, int64_t range_from, const char *etag, ota_fault_t *why)
{
    memset(r, 0, sizeof *r);
    r->run = run;
    r->length = -1;
    r->stall_ms = run->a->cfg.ota.timeout_ms > 0 ? run->a->cfg.ota.timeout_ms : 60 * 1000;
    r->began_ms = r->last_ms = r->window_ms = ota_now_ms();
    if (request(r, url, range_from, etag, why)) {
        return true;
    }
    ESP_LOGD(TAG, "%s: %s", url, why->text);
    ota_web_close(r);
    return false;
}

static bool read_answer(ota_response_t *r, void *buf, size_t size, size_t *got, bool *ended, ota_fault_t *why)
{
    *got = 0;
    *ended = false;
    while (*got < size) {
        pace(r, ota_now_ms());
        if (!goes_on(r, "read answer", why)) {
            return false;
        }
        int n = esp_http_client_read(r->client, (char *)buf + *got, (int)(size - *got));
        if (n > 0) {
            *got += (size_t)n;
        } else if (n != -ESP_ERR_HTTP_EAGAIN) {
            // The end, or a line that broke: which of the two, the promised length says.
            *ended = true;
            return true;
        }
    }
    return true;
}

bool ota_web_read(ota_response_t *r, void *buf, size_t size, size_t *got, bool *ended, ota_fault_t *why)
{
    // Only the time counts in which the board waits for the server: while it erases and writes, that has no say in how long it takes.
    int64_t away = ota_now_ms() - r->left_ms;
    r->last_ms += away;
    r->window_ms += away;
    bool ok = read_answer(r, buf, size, got, ended, why);
    r->left_ms = ota_now_ms();
    return ok;
}

void ota_web_close(ota_response_t *r)
{
    if (r->client != NULL) {
        esp_http_client_close(r->client);
        esp_http_client_cleanup(r->client);
        r->client = NULL;
    }
}

bool ota_web_status(const ota_response_t *r, ota_fault_t *why)
{
    if (r->status >= 300 && r->status < 400) {
        return ota_failed(why, OTA_REASON_HTTP_STATUS, "server answered %d: redirects are not followed", r->status);
    }
    ota_failed(why, OTA_REASON_HTTP_STATUS, "server answered %d", r->status);
    if (r->status >= 500 || r->status == 429 || r->status == 408) {
        why->retry = true;
        int64_t s = parse_length(r->retry_after);
        if (s > 0) {
            why->after_ms = (uint32_t)(s < RETRY_AFTER_S ? s : RETRY_AFTER_S) * 1000u;
        }
    }
    return false;
}

bool ota_web_certs_ok(const char *pem)
{
    mbedtls_x509_crt chain;
    mbedtls_x509_crt_init(&chain);
    // Of several certificates one that can be read will do: the result counts those that cannot.
    int err = ota_crypto_start() ? mbedtls_x509_crt_parse(&chain, (const unsigned char *)pem, strlen(pem) + 1) : -1;
    mbedtls_x509_crt_free(&chain);
    return err >= 0;
}

#if MBEDTLS_VERSION_MAJOR == 3
static int random_bytes(void *ctx, unsigned char *out, size_t len)
{
    (void)ctx;
    esp_fill_random(out, len);
    return 0;
}
#define WITH_RANDOM , random_bytes, NULL   // 3.x blinds with it; 4.x has its own, 2.x none
#else
#define WITH_RANDOM
#endif

bool ota_web_identity_ok(const char *cert_pem, const char *key_pem)
{
    mbedtls_x509_crt chain;
    mbedtls_pk_context key;
    mbedtls_x509_crt_init(&chain);
    mbedtls_pk_init(&key);
    bool ok = ota_crypto_start() && mbedtls_x509_crt_parse(&chain, (const unsigned char *)cert_pem, strlen(cert_pem) + 1) == 0 &&
              mbedtls_pk_parse_key(&key, (const unsigned char *)key_pem, strlen(key_pem) + 1, NULL, 0 WITH_RANDOM) == 0 &&
              mbedtls_pk_check_pair(&chain.pk, &key WITH_RANDOM) == 0;
    mbedtls_pk_free(&key);
    mbedtls_x509_crt_free(&chain);
    return ok;
}
