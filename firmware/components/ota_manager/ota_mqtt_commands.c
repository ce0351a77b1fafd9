// The board's one session with its broker: a second client under the same id would throw the first one off, and a second one
// under another id costs heap the board does not have.
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "esp_crt_bundle.h"
#include "esp_log.h"
#include "ota_agent.h"
#include "sdkconfig.h"

static const char *TAG = "ota_mqtt";

#define KEEPALIVE_S 60
#define NETWORK_MS 20000
#define UP_MS 60000            // a session that is not up after this is begun anew
#define NO_MEMORY_MS 30000     // until a client is made anew that there was no memory for
#define IN_BUFFER 1024         // the longest command and its topic fit

// Collects one message. What is longer than any command is cut: the parser only has to see that it is.
static void collect(ota_agent_t *a, const esp_mqtt_event_t *e)
{
    ota_link_t *l = &a->link;
    ota_message_t *m = &l->incoming;
    if (e->current_data_offset == 0) {
        // Literal comparison: a prefix or a wildcard of the topic is somebody else's. Only the first piece has the topic.
        size_t n = e->topic_len > 0 ? (size_t)e->topic_len : 0;
        l->ours = (n == strlen(l->commands) && memcmp(e->topic, l->commands, n) == 0) ||
                  (n == strlen(l->command) && memcmp(e->topic, l->command, n) == 0);
        m->len = 0;
        m->retained = e->retain;
    }
    if (!l->ours || e->data_len < 0) {
        return;
    }
    size_t room = sizeof m->bytes - m->len;
    size_t n = (size_t)e->data_len < room ? (size_t)e->data_len : room;
    if (n > 0) {
        memcpy(m->bytes + m->len, e->data, n);
        m->len = (uint16_t)(m->len + n);
    }
    bool whole = e->current_data_offset + e->data_len >= e->total_data_len;
    if (!whole || m->len == 0) {
        return;   // an empty message: the broker was told to forget what it retained
    }
    // In a flood the retained order comes again at the next connect, the rest is the flooder's loss.
    if (xQueueSend(l->messages, m, 0) == pdTRUE) {
        ota_wake(a, OTA_WAKE_COMMAND);
    }
}

static void subscribe(ota_agent_t *a, esp_mqtt_client_handle_t client)
{
    ota_link_t *l = &a->link;
    const char *topics[2] = {l->commands, l->command};
    for (int i = 0; i < 2; i++) {
        // Not the macro without _single: in ESP-IDF 5.1 it takes no const char *.
        l->subscribing[i] = esp_mqtt_client_subscribe_single(client, topics[i], 1);
        if (l->subscribing[i] <= 0) {
            ESP_LOGW(TAG, "subscribe to %s: not sent", topics[i]);
            esp_mqtt_client_disconnect(client);
        }
    }
}

static void subscribed(ota_agent_t *a, const esp_mqtt_event_t *e)
{
    ota_link_t *l = &a->link;
    bool refused = e->error_handle != NULL && e->error_handle->error_type == MQTT_ERROR_TYPE_SUBSCRIBE_FAILED;
    for (int i = 0; i < 2; i++) {
        if (l->subscribing[i] == e->msg_id) {
            l->subscribing[i] = 0;
        }
    }
    if (refused) {
        ESP_LOGW(TAG, "the broker refuses a command topic");
        esp_mqtt_client_disconnect(e->client);
    } else if (l->subscribing[0] == 0 && l->subscribing[1] == 0) {
        ota_wake(a, OTA_WAKE_UP);
    }
}

// Runs in the MQTT client's task, which holds the client's lock: it must not wait for the loop.
static void on_event(void *arg, esp_event_base_t base, int32_t id, void *data)
{
    (void)base;
    ota_agent_t *a = arg;
    const esp_mqtt_event_t *e = data;
    switch ((esp_mqtt_event_id_t)id) {
    case MQTT_EVENT_CONNECTED:
        atomic_store(&a->network, true);
        subscribe(a, e->client);
        break;
    case MQTT_EVENT_SUBSCRIBED:
        subscribed(a, e);
        break;
    case MQTT_EVENT_DATA:
        collect(a, e);
        break;
    case MQTT_EVENT_PUBLISHED:
        atomic_store(&a->link.acked_id, e->msg_id);
        ota_wake(a, OTA_WAKE_ACK);
        break;
    case MQTT_EVENT_ERROR:
        if (e->error_handle != NULL) {
            if (e->error_handle->error_type == MQTT_ERROR_TYPE_CONNECTION_REFUSED) {
                atomic_store(&a->network, true);   // somebody answers at the broker's address
            }
            ESP_LOGI(TAG, "type %d, refusal %d, tls %s, errno %d", e->error_handle->error_type,
                     e->error_handle->connect_return_code, esp_err_to_name(e->error_handle->esp_tls_last_esp_err),
                     e->error_handle->esp_transport_sock_errno);
        }
        break;
    case MQTT_EVENT_DISCONNECTED:
        ota_wake(a, OTA_WAKE_DOWN);
        break;
    default:
        break;
    }
}

static void topics(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    const char *prefix = a->cfg.have_ota && a->cfg.ota.topic_prefix[0] != '\0' ? a->cfg.ota.topic_prefix : "bms/ota";
    snprintf(l->commands, sizeof l->commands, "%s/command", prefix);
    snprintf(l->command, sizeof l->command, "%s/command/%s", prefix, a->id);
    snprintf(l->status, sizeof l->status, "%s/status/%s", prefix, a->id);
    snprintf(l->statuses, sizeof l->statuses, "%s/status", prefix);
    l->repeat = !a->cfg.have_ota || !a->cfg.ota.own_topic_only;
    l->qos = a->cfg.mqtt.qos;
}

static void begin(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    l->began_ms = ota_now_ms();
    l->running = esp_mqtt_client_start(l->client) == ESP_OK;
    if (!l->running) {
        ESP_LOGW(TAG, "session not begun");
        esp_mqtt_client_stop(l->client);   // where an earlier stop could not take leave, the client still runs
        l->next_ms = l->began_ms + ota_pause_next(&l->pause);
    }
}

esp_err_t ota_link_open(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    if (!a->cfg.have_mqtt) {
        return ESP_OK;
    }
    topics(a);
    l->pause = (ota_pause_t){.first_ms = 1000, .limit_ms = 2 * 60 * 1000};
    const ota_mqtt_config_t *cfg = &a->cfg.mqtt;
    size_t will = ota_report_will(a, a->rep.text, sizeof a->rep.text);
    esp_mqtt_client_config_t c = {
        .broker.address.hostname = cfg->broker_host,
        .broker.address.port = (uint32_t)cfg->broker_port,
        .broker.address.transport = cfg->tls ? MQTT_TRANSPORT_OVER_SSL : MQTT_TRANSPORT_OVER_TCP,
        .credentials.client_id = a->id,
        .credentials.username = cfg->username[0] != '\0' ? cfg->username : NULL,
        .credentials.authentication.password = cfg->password[0] != '\0' ? cfg->password : NULL,
        .session.last_will = {.topic = l->status, .msg = a->rep.text, .msg_len = (int)will, .qos = 1, .retain = 1},
        .session.keepalive = KEEPALIVE_S,
        // MQTT 3.1.1 repeats a message after a reconnect only, and sessions here begin with an empty outbox.
        .session.message_retransmit_timeout = INT_MAX,
        .session.protocol_ver = MQTT_PROTOCOL_V_3_1_1,
        .network.timeout_ms = NETWORK_MS,
        .network.reconnect_timeout_ms = 500,
        // Reconnecting is the loop's: the client's pauses have no jitter, and its outbox would send a status of the last
        // session after the first one of this, as the one that the broker keeps.
        .network.disable_auto_reconnect = true,
        .task.stack_size = CONFIG_OTA_MANAGER_MQTT_STACK,
        .buffer.size = IN_BUFFER,
        // CONNECT with the will has to fit.
        .buffer.out_size = (int)(will + 2 * OTA_MAX_TOPIC + strlen(cfg->username) + strlen(cfg->password)),
    };
    if (cfg->tls && cfg->ca_pem[0] != '\0') {
        c.broker.verification.certificate = cfg->ca_pem;
    } else if (cfg->tls) {
#ifdef CONFIG_MBEDTLS_CERTIFICATE_BUNDLE
        c.broker.verification.crt_bundle_attach = esp_crt_bundle_attach;
#endif
    }
    if (a->cfg.identity) {
        // Not copied there: they stand in the settings for as long as the board is on.
        c.credentials.authentication.certificate = cfg->client_cert_pem;
        c.credentials.authentication.key = cfg->client_key_pem;
    }
    l->client = esp_mqtt_client_init(&c);
    if (l->client == NULL || esp_mqtt_client_register_event(l->client, MQTT_EVENT_ANY, on_event, a) != ESP_OK) {
        ota_link_close(a);
        l->next_ms = ota_now_ms() + NO_MEMORY_MS;
        return ESP_ERR_NO_MEM;
    }
    begin(a);
    return ESP_OK;
}

void ota_link_close(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    if (l->client == NULL) {
        return;
    }
    // Between esp_mqtt_client_start and the first instruction of the client's task it "was not started", and would be freed under
    // that task. Where the task has ended by itself there is nothing to wait for, and a moment does no harm.
    for (int tries = 0; l->running && esp_mqtt_client_stop(l->client) != ESP_OK && tries < 10; tries++) {
        vTaskDelay(pdMS_TO_TICKS(20));
    }
    esp_mqtt_client_destroy(l->client);
    l->client = NULL;
    l->running = l->up = false;
}

bool ota_link_is_up(ota_agent_t *a)
{
    a->link.up = a->link.running;
    return a->link.up;
}

void ota_link_is_down(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    if (!l->running) {
        return;
    }
    int64_t now = ota_now_ms();
    ESP_LOGI(TAG, "%s", l->up ? "session lost" : "no session: connect to broker");
    // A session that held for a while was a good one: start again with short pauses. One that breaks at once (another board
    // under the same id, a broker that refuses after CONNECT) must not come back at full speed.
    if (now - l->began_ms > 2 * KEEPALIVE_S * 1000) {
        l->pause.n = 0;
    }
    l->up = l->running = false;
    esp_mqtt_client_stop(l->client);
    l->next_ms = now + ota_pause_next(&l->pause);
}

void ota_link_tick(ota_agent_t *a)
{
    ota_link_t *l = &a->link;
    int64_t now = ota_now_ms();
    if (l->client == NULL) {
        if (a->cfg.have_mqtt && now >= l->next_ms) {
            ota_link_open(a);   // there was no memory for a client; without one nobody could reach the board any more
        }
        return;
    }
    if (!l->running && now >= l->next_ms) {
        begin(a);
    } else if (l->running && !l->up && now - l->began_ms >= UP_MS) {
        ota_link_is_down(a);
    }
}

int64_t ota_link_due_ms(const ota_agent_t *a)
{
    const ota_link_t *l = &a->link;
    if (l->up || (l->client == NULL && !a->cfg.have_mqtt)) {
        return INT64_MAX;
    }
    return l->running ? l->began_ms + UP_MS : l->next_ms;
}

int ota_link_publish(ota_agent_t *a, const char *text, size_t len, int qos)
{
    ota_link_t *l = &a->link;
    if (!l->up) {
        return -1;
    }
    int id = esp_mqtt_client_publish(l->client, l->status, text, (int)len, qos, 1);
    return qos == 0 && id >= 0 ? 0 : id;
}

void ota_link_repeat(ota_agent_t *a, const char *text, size_t len)
{
    ota_link_t *l = &a->link;
    if (l->repeat && l->up && len > 0) {
        // What counts is on the board's own topic; this one may be lost.
        esp_mqtt_client_publish(l->client, l->statuses, text, (int)len, 0, 0);
    }
}
