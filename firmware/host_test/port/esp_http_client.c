#include "esp_http_client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "esp_crt_bundle.h"
#include "esp_timer.h"
#include "esp_tls.h"
#include "host_chip.h"

// What mbedTLS takes for one session with its record buffers as ESP-IDF sets them up (16 KiB in, 4 KiB out), and its handshake.
#define TLS_HEAP (42u << 10)

struct esp_http_client {
    CURL *easy;
    CURLM *multi;
    struct curl_slist *headers;
    esp_http_client_config_t cfg;
    struct esp_tls_last_error tls;
    char error[CURL_ERROR_SIZE];
    bool done, header_done;
    CURLcode result;
    size_t heap;
    char *out;             // where the reader wants the body
    size_t room;
    char kept[CURL_MAX_WRITE_SIZE];   // body that came when nobody read
    size_t kept_from, kept_to;
    bool paused;
};

esp_err_t esp_crt_bundle_attach(void *conf)
{
    (void)conf;
    return ESP_OK;
}

esp_err_t esp_tls_get_and_clear_last_error(esp_tls_error_handle_t h, int *code, int *flags)
{
    esp_err_t err = h->last_error;
    *code = h->esp_tls_error_code;
    *flags = h->esp_tls_flags;
    memset(h, 0, sizeof *h);
    return err;
}

static void tell(esp_http_client_handle_t c, esp_http_client_event_id_t id, void *data, int len, char *key, char *value)
{
    esp_http_client_event_t e = {.event_id = id, .client = c, .data = data, .data_len = len,
                                 .user_data = c->cfg.user_data, .header_key = key, .header_value = value};
    if (c->cfg.event_handler != NULL) {
        c->cfg.event_handler(&e);
    }
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    esp_http_client_handle_t c = arg;
    (void)size;
    if (n >= 5 && memcmp(line, "HTTP/", 5) == 0) {
        return n;
    }
    char text[1024];
    size_t len = n < sizeof text - 1 ? n : sizeof text - 1;
    memcpy(text, line, len);
    text[len] = '\0';
    text[strcspn(text, "\r\n")] = '\0';
    char *value = strchr(text, ':');
    if (text[0] == '\0') {
        long status = 0;
        curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
        c->header_done = status >= 200;
    } else if (value != NULL) {
        *value++ = '\0';
        value += strspn(value, " \t");
        tell(c, HTTP_EVENT_ON_HEADER, NULL, 0, text, value);
    }
    return n;
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    esp_http_client_handle_t c = arg;
    (void)size;
    if (c->kept_to > c->kept_from || c->room == 0) {
        if (c->kept_to == c->kept_from && n <= sizeof c->kept) {
            memcpy(c->kept, p, n);
            c->kept_from = 0;
            c->kept_to = n;
            return n;
        }
        c->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    size_t now = n < c->room ? n : c->room;
    memcpy(c->out, p, now);
    c->out += now;
    c->room -= now;
    memcpy(c->kept, p + now, n - now);
    c->kept_from = 0;
    c->kept_to = n - now;
    tell(c, HTTP_EVENT_ON_DATA, p, (int)now, NULL, NULL);
    return n;
}

esp_http_client_handle_t esp_http_client_init(const esp_http_client_config_t *config)
{
    esp_http_client_handle_t c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->cfg = *config;
    c->easy = curl_easy_init();
    c->multi = curl_multi_init();
    c->heap = (size_t)(config->buffer_size + config->buffer_size_tx) + (strncmp(config->url, "https:", 6) == 0 ? TLS_HEAP : 0);
    host_heap_take(c->heap);
    curl_easy_setopt(c->easy, CURLOPT_URL, config->url);
    curl_easy_setopt(c->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c->easy, CURLOPT_USERAGENT, config->user_agent);
    curl_easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(c->easy, CURLOPT_CONNECTTIMEOUT_MS, (long)host_real_ms(config->timeout_ms));
    curl_easy_setopt(c->easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(c->easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c->easy, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->error);
    // As esp-tls: a certificate that is given is the only one trusted, else the bundle, else nothing is verified.
    if (config->cert_pem != NULL) {
        struct curl_blob pem = {.data = (void *)(uintptr_t)config->cert_pem, .len = strlen(config->cert_pem), .flags = CURL_BLOB_COPY};
        curl_easy_setopt(c->easy, CURLOPT_CAINFO_BLOB, &pem);
    } else if (config->crt_bundle_attach == NULL) {
        curl_easy_setopt(c->easy, CURLOPT_SSL_VERIFYPEER, 0L);
    }
    if (config->client_cert_pem != NULL) {
        struct curl_blob cert = {.data = (void *)(uintptr_t)config->client_cert_pem, .len = strlen(config->client_cert_pem), .flags = CURL_BLOB_COPY};
        struct curl_blob key = {.data = (void *)(uintptr_t)config->client_key_pem, .len = strlen(config->client_key_pem), .flags = CURL_BLOB_COPY};
        curl_easy_setopt(c->easy, CURLOPT_SSLCERT_BLOB, &cert);
        curl_easy_setopt(c->easy, CURLOPT_SSLKEY_BLOB, &key);
    }
    if (config->skip_cert_common_name_check) {
        curl_easy_setopt(c->easy, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    return c;
}

esp_err_t esp_http_client_set_header(esp_http_client_handle_t c, const char *key, const char *value)
{
    char line[512];
    snprintf(line, sizeof line, "%s: %s", key, value);
    c->headers = curl_slist_append(c->headers, line);
    return c->headers != NULL ? ESP_OK : ESP_ERR_NO_MEM;
}

esp_err_t esp_http_client_set_timeout_ms(esp_http_client_handle_t c, int timeout_ms)
{
    c->cfg.timeout_ms = timeout_ms;
    return ESP_OK;
}

// Lets libcurl do what it can without waiting.
static void step(esp_http_client_handle_t c)
{
    int running = 0;
    if (c->paused) {
        c->paused = false;
        curl_easy_pause(c->easy, CURLPAUSE_CONT);
    }
    curl_multi_perform(c->multi, &running);
    CURLMsg *msg;
    int left;
    while ((msg = curl_multi_info_read(c->multi, &left)) != NULL) {
        if (msg->msg == CURLMSG_DONE) {
            c->done = true;
            c->result = msg->data.result;
        }
    }
}

// Waits until something came, for ms of the chip's time at most. False when nothing did.
static bool wait(esp_http_client_handle_t c, int64_t ms)
{
    int came = 0;
    curl_multi_poll(c->multi, NULL, 0, (int)host_real_ms(ms), &came);
    return came > 0;
}

static void judge(esp_http_client_handle_t c)
{
    c->tls.last_error = ESP_ERR_ESP_TLS_FAILED_CONNECT_TO_HOST;
    switch (c->result) {
    case CURLE_COULDNT_RESOLVE_HOST:
        c->tls.last_error = ESP_ERR_ESP_TLS_CANNOT_RESOLVE_HOSTNAME;
        break;
    case CURLE_OPERATION_TIMEDOUT:
        c->tls.last_error = ESP_ERR_ESP_TLS_CONNECTION_TIMEOUT;
        break;
    case CURLE_PEER_FAILED_VERIFICATION:
        c->tls.last_error = ESP_ERR_MBEDTLS_SSL_HANDSHAKE_FAILED;
        c->tls.esp_tls_error_code = 0x2700;   // MBEDTLS_ERR_X509_CERT_VERIFY_FAILED
        // MBEDTLS_X509_BADCERT_CN_MISMATCH, _EXPIRED, _NOT_TRUSTED
        c->tls.esp_tls_flags = strstr(c->error, "does not match") != NULL || strstr(c->error, "no alternative") != NULL ? 4
                               : strstr(c->error, "expired") != NULL                                                    ? 1
                                                                                                                        : 8;
        break;
    case CURLE_SSL_CONNECT_ERROR:
        c->tls.last_error = ESP_ERR_MBEDTLS_SSL_HANDSHAKE_FAILED;
        // A line that breaks in the handshake is MBEDTLS_ERR_NET_CONN_RESET there; the rest is MBEDTLS_ERR_SSL_INVALID_RECORD.
        c->tls.esp_tls_error_code = strstr(c->error, "SYSCALL") != NULL || strstr(c->error, "eset by peer") != NULL ? 0x50 : 0x7200;
        break;
    default:
        break;
    }
}

esp_err_t esp_http_client_open(esp_http_client_handle_t c, int write_len)
{
    (void)write_len;
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_multi_add_handle(c->multi, c->easy);
    for (;;) {
        step(c);
        curl_off_t sent = 0;
        curl_easy_getinfo(c->easy, CURLINFO_PRETRANSFER_TIME_T, &sent);
        if (sent > 0 || c->header_done) {
            return ESP_OK;
        }
        if (c->done) {
            judge(c);
            tell(c, HTTP_EVENT_ERROR, &c->tls, 0, NULL, NULL);
            return ESP_ERR_HTTP_CONNECT;
        }
        wait(c, 50);
    }
}

int64_t esp_http_client_fetch_headers(esp_http_client_handle_t c)
{
    while (getenv("OTA_HOST_HANG") != NULL) {
        pause();   // as on a header that trickles without an end
    }
    int64_t until = esp_timer_get_time() / 1000 + c->cfg.timeout_ms;
    for (step(c); !c->header_done; step(c)) {
        if (c->done) {
            return ESP_FAIL;
        }
        int64_t rest = until - esp_timer_get_time() / 1000;
        if (rest <= 0) {
            return -ESP_ERR_HTTP_EAGAIN;
        }
        if (wait(c, rest)) {
            until = esp_timer_get_time() / 1000 + c->cfg.timeout_ms;   // each drop starts the time anew, as there
        }
    }
    curl_off_t length = -1;
    curl_easy_getinfo(c->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    return length > 0 ? length : 0;
}

int esp_http_client_get_status_code(esp_http_client_handle_t c)
{
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    return (int)status;
}

int esp_http_client_read(esp_http_client_handle_t c, char *buffer, int len)
{
    size_t n = c->kept_to - c->kept_from;
    if (n > (size_t)len) {
        n = (size_t)len;
    }
    memcpy(buffer, c->kept + c->kept_from, n);
    c->kept_from += n;
    if (n > 0) {
        tell(c, HTTP_EVENT_ON_DATA, buffer, (int)n, NULL, NULL);
    }
    c->out = buffer + n;
    c->room = (size_t)len - n;
    int64_t from = esp_timer_get_time() / 1000;
    while (c->room > 0 && !c->done) {
        size_t before = c->room;
        step(c);
        if (c->room != before) {
            from = esp_timer_get_time() / 1000;   // and here
            continue;
        }
        int64_t rest = from + c->cfg.timeout_ms - esp_timer_get_time() / 1000;
        if (rest <= 0) {
            break;
        }
        if (!c->done) {
            wait(c, rest);
        }
    }
    int got = len - (int)c->room;
    c->room = 0;
    if (got > 0 || len == 0) {
        return got;
    }
    if (!c->done) {
        return -ESP_ERR_HTTP_EAGAIN;
    }
    return c->result == CURLE_OK ? 0 : ESP_FAIL;
}

int esp_http_client_get_errno(esp_http_client_handle_t c)
{
    long err = 0;
    curl_easy_getinfo(c->easy, CURLINFO_OS_ERRNO, &err);
    return (int)err;
}

esp_err_t esp_http_client_close(esp_http_client_handle_t c)
{
    curl_multi_remove_handle(c->multi, c->easy);
    return ESP_OK;
}

esp_err_t esp_http_client_cleanup(esp_http_client_handle_t c)
{
    host_heap_give(c->heap);
    curl_easy_cleanup(c->easy);
    curl_multi_cleanup(c->multi);
    curl_slist_free_all(c->headers);
    free(c);
    return ESP_OK;
}
