#include "mqtt_client.h"

#include <errno.h>
#include <mosquitto.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host_chip.h"

#define TLS_HEAP (42u << 10)

struct esp_mqtt_client {
    esp_mqtt_client_config_t cfg;
    struct mosquitto *session;       // one connection; NULL between two
    pthread_t thread;
    bool running;                    // the loop's side: the thread is to be joined
    atomic_bool leave, connected;
    size_t heap;
    esp_event_handler_t handler;
    void *arg;
};

static void tell(esp_mqtt_client_handle_t c, esp_mqtt_event_t *e)
{
    e->client = c;
    c->handler(c->arg, "MQTT_EVENTS", e->event_id, e);
}

static void on_connect(struct mosquitto *m, void *arg, int rc)
{
    esp_mqtt_client_handle_t c = arg;
    if (rc == 0) {
        atomic_store(&c->connected, true);
        tell(c, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_CONNECTED});
        return;
    }
    esp_mqtt_error_codes_t codes = {.error_type = MQTT_ERROR_TYPE_CONNECTION_REFUSED, .connect_return_code = rc};
    tell(c, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_ERROR, .error_handle = &codes});
    atomic_store(&c->leave, true);
    mosquitto_disconnect(m);
}

static void on_subscribe(struct mosquitto *m, void *arg, int mid, int n, const int *granted)
{
    (void)m;
    esp_mqtt_error_codes_t codes = {0};
    for (int i = 0; i < n; i++) {
        if (granted[i] > 2) {
            codes.error_type = MQTT_ERROR_TYPE_SUBSCRIBE_FAILED;
        }
    }
    tell(arg, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_SUBSCRIBED, .msg_id = mid, .error_handle = &codes});
}

static void on_publish(struct mosquitto *m, void *arg, int mid)
{
    (void)m;
    tell(arg, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_PUBLISHED, .msg_id = mid});
}

// As esp-mqtt: what does not fit the buffer comes in pieces, and only the first has the topic.
static void on_message(struct mosquitto *m, void *arg, const struct mosquitto_message *msg)
{
    (void)m;
    esp_mqtt_client_handle_t c = arg;
    int topic = (int)strlen(msg->topic);
    int room = c->cfg.buffer.size - topic - 8;
    int at = 0;
    do {
        int n = msg->payloadlen - at < room ? msg->payloadlen - at : room;
        // A copy of its own: the sanitizer sees who reads beyond it.
        char *piece = malloc(n > 0 ? (size_t)n : 1);
        if (piece == NULL) {
            return;
        }
        if (n > 0) {
            memcpy(piece, (const char *)msg->payload + at, (size_t)n);
        }
        tell(c, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_DATA, .data = n > 0 ? piece : NULL, .data_len = n,
                                    .total_data_len = msg->payloadlen, .current_data_offset = at,
                                    .topic = at == 0 ? msg->topic : NULL, .topic_len = at == 0 ? topic : 0,
                                    .retain = msg->retain, .qos = msg->qos, .msg_id = msg->mid});
        free(piece);
        at += n;
        room = c->cfg.buffer.size;
    } while (at < msg->payloadlen);
}

#define PATH_SIZE 32

// Writes a file that only we can read, and gives its path; for no text an empty one.
static bool put_file(char path[PATH_SIZE], const char *text)
{
    path[0] = '\0';
    if (text == NULL) {
        return true;
    }
    snprintf(path, PATH_SIZE, "/tmp/bmsota-pem-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0) {
        return false;
    }
    size_t len = strlen(text);
    bool ok = write(fd, text, len) == (ssize_t)len;
    close(fd);
    return ok;
}

static bool connect_tcp(esp_mqtt_client_handle_t c)
{
    const esp_mqtt_client_config_t *cfg = &c->cfg;
    return mosquitto_connect(c->session, cfg->broker.address.hostname, (int)cfg->broker.address.port, cfg->session.keepalive) == MOSQ_ERR_SUCCESS;
}

// libmosquitto takes files only, and reads them when it connects.
static bool connect_tls(esp_mqtt_client_handle_t c)
{
    const char *ca = c->cfg.broker.verification.certificate;
    const char *cert = c->cfg.credentials.authentication.certificate, *key = c->cfg.credentials.authentication.key;
    char ca_path[PATH_SIZE], cert_path[PATH_SIZE], key_path[PATH_SIZE];
    bool put = put_file(ca_path, ca);
    put = put_file(cert_path, cert) && put;
    put = put_file(key_path, key) && put;
    bool ok = put &&
              mosquitto_tls_set(c->session, ca != NULL ? ca_path : NULL, ca != NULL ? NULL : "/etc/ssl/certs",
                                cert != NULL ? cert_path : NULL, key != NULL ? key_path : NULL, NULL) == MOSQ_ERR_SUCCESS &&
              connect_tcp(c);
    unlink(ca_path);
    unlink(cert_path);
    unlink(key_path);
    return ok;
}

static bool connect_now(esp_mqtt_client_handle_t c)
{
    return c->cfg.broker.address.transport == MQTT_TRANSPORT_OVER_SSL ? connect_tls(c) : connect_tcp(c);
}

static void *run(void *arg)
{
    esp_mqtt_client_handle_t c = arg;
    if (connect_now(c)) {
        // A timeout of the socket's loop is how often it looks whether it is to leave.
        while (mosquitto_loop(c->session, 50, 1) == MOSQ_ERR_SUCCESS && !atomic_load(&c->leave)) {
        }
        if (atomic_load(&c->leave)) {
            mosquitto_disconnect(c->session);
            mosquitto_loop(c->session, 0, 1);
        }
    } else {
        esp_mqtt_error_codes_t codes = {.error_type = MQTT_ERROR_TYPE_TCP_TRANSPORT, .esp_transport_sock_errno = errno};
        tell(c, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_ERROR, .error_handle = &codes});
    }
    atomic_store(&c->connected, false);
    tell(c, &(esp_mqtt_event_t){.event_id = MQTT_EVENT_DISCONNECTED});
    return NULL;
}

esp_mqtt_client_handle_t esp_mqtt_client_init(const esp_mqtt_client_config_t *config)
{
    esp_mqtt_client_handle_t c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    mosquitto_lib_init();
    c->cfg = *config;
    char *will = malloc((size_t)config->session.last_will.msg_len + 1);
    if (will == NULL) {
        free(c);
        return NULL;
    }
    memcpy(will, config->session.last_will.msg, (size_t)config->session.last_will.msg_len);   // copied there, too
    c->cfg.session.last_will.msg = will;
    c->heap = (size_t)(config->buffer.size + config->buffer.out_size);
    host_heap_take(c->heap);
    return c;
}

esp_err_t esp_mqtt_client_register_event(esp_mqtt_client_handle_t c, esp_mqtt_event_id_t event, esp_event_handler_t handler, void *arg)
{
    (void)event;
    c->handler = handler;
    c->arg = arg;
    return ESP_OK;
}

static size_t session_heap(const esp_mqtt_client_config_t *cfg)
{
    return (size_t)cfg->task.stack_size + (cfg->broker.address.transport == MQTT_TRANSPORT_OVER_SSL ? TLS_HEAP : 0);
}

esp_err_t esp_mqtt_client_start(esp_mqtt_client_handle_t c)
{
    const esp_mqtt_client_config_t *cfg = &c->cfg;
    if (c->running) {
        return ESP_FAIL;
    }
    c->session = mosquitto_new(cfg->credentials.client_id, true, c);
    if (c->session == NULL) {
        return ESP_FAIL;
    }
    mosquitto_threaded_set(c->session, true);
    mosquitto_connect_callback_set(c->session, on_connect);
    mosquitto_subscribe_callback_set(c->session, on_subscribe);
    mosquitto_publish_callback_set(c->session, on_publish);
    mosquitto_message_callback_set(c->session, on_message);
    mosquitto_username_pw_set(c->session, cfg->credentials.username, cfg->credentials.authentication.password);
    mosquitto_will_set(c->session, cfg->session.last_will.topic, cfg->session.last_will.msg_len, cfg->session.last_will.msg,
                       cfg->session.last_will.qos, cfg->session.last_will.retain);
    atomic_store(&c->leave, false);
    if (pthread_create(&c->thread, NULL, run, c) != 0) {
        mosquitto_destroy(c->session);
        c->session = NULL;
        return ESP_FAIL;
    }
    host_heap_take(session_heap(cfg));
    c->running = true;
    return ESP_OK;
}

esp_err_t esp_mqtt_client_stop(esp_mqtt_client_handle_t c)
{
    if (!c->running) {
        return ESP_FAIL;
    }
    atomic_store(&c->leave, true);
    pthread_join(c->thread, NULL);
    mosquitto_destroy(c->session);
    c->session = NULL;
    c->running = false;
    host_heap_give(session_heap(&c->cfg));
    return ESP_OK;
}

esp_err_t esp_mqtt_client_disconnect(esp_mqtt_client_handle_t c)
{
    atomic_store(&c->leave, true);
    return ESP_OK;
}

esp_err_t esp_mqtt_client_destroy(esp_mqtt_client_handle_t c)
{
    if (c->running) {
        esp_mqtt_client_stop(c);
    }
    host_heap_give(c->heap);
    free((void *)(uintptr_t)c->cfg.session.last_will.msg);
    free(c);
    return ESP_OK;
}

int esp_mqtt_client_subscribe_single(esp_mqtt_client_handle_t c, const char *topic, int qos)
{
    int id = 0;
    return mosquitto_subscribe(c->session, &id, topic, qos) == MOSQ_ERR_SUCCESS ? id : -1;
}

int esp_mqtt_client_publish(esp_mqtt_client_handle_t c, const char *topic, const char *data, int len, int qos, int retain)
{
    int id = 0;
    if (!atomic_load(&c->connected) || mosquitto_publish(c->session, &id, topic, len, data, qos, retain != 0) != MOSQ_ERR_SUCCESS) {
        return -1;
    }
    return qos > 0 ? id : 0;
}
