// Gives the session of the component messages as esp-mqtt does, in pieces of any size, and holds what arrives at the loop against
// what was sent: on its two topics, compared literally, the first 513 bytes; of everything else nothing. link_tool SEED
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ota_agent.h"

#define ROUNDS 20000
#define LONGEST 4000

static esp_event_handler_t handler;
static void *handler_arg;

esp_mqtt_client_handle_t esp_mqtt_client_init(const esp_mqtt_client_config_t *config)
{
    static int client;
    (void)config;
    return (esp_mqtt_client_handle_t)(void *)&client;
}

esp_err_t esp_mqtt_client_register_event(esp_mqtt_client_handle_t c, esp_mqtt_event_id_t event, esp_event_handler_t h, void *arg)
{
    (void)c;
    (void)event;
    handler = h;
    handler_arg = arg;
    return ESP_OK;
}

esp_err_t esp_mqtt_client_start(esp_mqtt_client_handle_t c)
{
    (void)c;
    return ESP_OK;
}

esp_err_t esp_mqtt_client_stop(esp_mqtt_client_handle_t c)
{
    (void)c;
    return ESP_OK;
}

esp_err_t esp_mqtt_client_disconnect(esp_mqtt_client_handle_t c)
{
    (void)c;
    return ESP_OK;
}

esp_err_t esp_mqtt_client_destroy(esp_mqtt_client_handle_t c)
{
    (void)c;
    return ESP_OK;
}

int esp_mqtt_client_subscribe_single(esp_mqtt_client_handle_t c, const char *topic, int qos)
{
    (void)c;
    (void)topic;
    return qos;
}

int esp_mqtt_client_publish(esp_mqtt_client_handle_t c, const char *topic, const char *data, int len, int qos, int retain)
{
    (void)c;
    (void)topic;
    (void)data;
    (void)len;
    (void)retain;
    return qos;
}

static uint64_t state;

static int below(int n)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int)((state >> 33) % (uint64_t)n);
}

// One message in pieces, each in memory of exactly its size: the sanitizer sees every step beyond it.
static void deliver(const char *topic, const uint8_t *bytes, int len, bool retained)
{
    int topic_len = (int)strlen(topic);
    char *name = malloc((size_t)topic_len + 1);
    memcpy(name, topic, (size_t)topic_len);
    int at = 0;
    do {
        int n = len > at ? 1 + below(len - at) : 0;
        char *piece = malloc(n > 0 ? (size_t)n : 1);
        memcpy(piece, bytes + at, (size_t)n);
        esp_mqtt_event_t e = {.event_id = MQTT_EVENT_DATA, .data = n > 0 ? piece : NULL, .data_len = n, .total_data_len = len,
                              .current_data_offset = at, .topic = at == 0 ? name : NULL, .topic_len = at == 0 ? topic_len : 0,
                              .retain = retained};
        handler(handler_arg, "MQTT_EVENTS", MQTT_EVENT_DATA, &e);
        free(piece);
        at += n;
    } while (at < len);
    free(name);
}

static const struct {
    const char *topic;
    bool ours;
} topics[] = {
    {"bms/ota/command", true}, {"bms/ota/command/bms-a1b2c3", true}, {"bms/ota/comman", false}, {"bms/ota/command/", false},
    {"bms/ota/command/bms-a1b2c", false}, {"bms/ota/command/bms-a1b2c3/x", false}, {"bms/ota/command/bms-a1b2c4", false},
    {"bms/ota/command/#", false}, {"bms/ota/command/+", false}, {"BMS/OTA/COMMAND", false}, {"bms/ota/status/bms-a1b2c3", false}, {"", false},
};

int main(int argc, char **argv)
{
    static ota_agent_t a;
    static const esp_partition_t running = {.label = "ota_0"};
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    state = seed;
    a.slots.running = &running;
    snprintf(a.id, sizeof a.id, "bms-a1b2c3");
    a.reset = "poweron";
    a.cfg.have_mqtt = true;
    a.cfg.mqtt = (ota_mqtt_config_t){.broker_host = "h", .username = "", .password = "", .ca_pem = "", .broker_port = 1883, .qos = 1};
    a.link.messages = xQueueCreate(OTA_COMMANDS_QUEUED, sizeof(ota_message_t));
    if (ota_report_init(&a, OTA_PHASE_IDLE) != ESP_OK || ota_link_open(&a) != ESP_OK) {
        return 1;
    }
    static uint8_t bytes[LONGEST];
    for (int round = 0; round < ROUNDS; round++) {
        int which = below((int)(sizeof topics / sizeof topics[0]));
        int len = below(3) == 0 ? 500 + below(30) : below(LONGEST);
        bool retained = below(2) == 0;
        for (int i = 0; i < len; i++) {
            bytes[i] = (uint8_t)below(256);
        }
        deliver(topics[which].topic, bytes, len, retained);
        ota_message_t m;
        bool came = xQueueReceive(a.link.messages, &m, 0) == pdTRUE;
        bool due = topics[which].ours && len > 0;
        int kept = len < (int)OTA_COMMAND_KEPT ? len : (int)OTA_COMMAND_KEPT;
        if (came != due || (came && (m.len != kept || m.retained != retained || memcmp(m.bytes, bytes, (size_t)kept) != 0))) {
            fprintf(stderr, "seed %llu, round %d: %d bytes on %s: came %d, with %d\n", (unsigned long long)seed, round, len,
                    topics[which].topic, came, came ? m.len : 0);
            return 1;
        }
    }
    return 0;
}
