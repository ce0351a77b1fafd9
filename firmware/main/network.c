// Wi-Fi as a station that never gives up: the broker, and with it every remedy, is on the other side.
#include "network.h"

#include <string.h>

#include "esp_check.h"
#include "esp_event.h"
#include "esp_log.h"
#include "esp_netif.h"
#include "esp_netif_sntp.h"
#include "esp_timer.h"
#include "esp_wifi.h"
#include "nvs.h"
#include "sdkconfig.h"

#define RETRY_US (5 * 1000 * 1000)

static const char *TAG = "network";
static esp_timer_handle_t retry;

static void connect(void *unused)
{
    (void)unused;
    esp_err_t err = esp_wifi_connect();
    if (err != ESP_OK) {
        ESP_LOGW(TAG, "connect: %s", esp_err_to_name(err));
    }
}

static void on_wifi(void *arg, esp_event_base_t base, int32_t id, void *data)
{
    (void)arg;
    (void)base;
    if (id == WIFI_EVENT_STA_START) {
        connect(NULL);
    } else if (id == WIFI_EVENT_STA_DISCONNECTED) {
        const wifi_event_sta_disconnected_t *gone = data;
        ESP_LOGW(TAG, "no Wi-Fi (reason %d), next try in %d s", gone->reason, RETRY_US / 1000000);
        esp_timer_stop(retry); // two of these events may come in a row; there is one next try
        esp_timer_start_once(retry, RETRY_US);
    }
}

// stored reads a text from NVS, namespace "network"; out keeps what it has where there is none.
static void stored(const char *key, char *out, size_t size)
{
    nvs_handle_t nvs;
    if (nvs_open("network", NVS_READONLY, &nvs) != ESP_OK) {
        return;
    }
    char text[65];
    size_t n = sizeof text;
    if (nvs_get_str(nvs, key, text, &n) == ESP_OK && n <= size) {
        memcpy(out, text, n);
    }
    nvs_close(nvs);
}

static esp_err_t start_clock(void)
{
    if (CONFIG_BMS_TIME_SERVER[0] == '\0') {
        return ESP_OK;
    }
    esp_sntp_config_t sntp = ESP_NETIF_SNTP_DEFAULT_CONFIG(CONFIG_BMS_TIME_SERVER);
    sntp.wait_for_sync = false; // nobody waits for it
    return esp_netif_sntp_init(&sntp);
}

esp_err_t network_start(void)
{
    ESP_RETURN_ON_ERROR(esp_netif_init(), TAG, "network stack");
    ESP_RETURN_ON_ERROR(esp_event_loop_create_default(), TAG, "event loop");
    ESP_RETURN_ON_FALSE(esp_netif_create_default_wifi_sta() != NULL, ESP_ERR_NO_MEM, TAG, "interface");
    wifi_init_config_t init = WIFI_INIT_CONFIG_DEFAULT();
    ESP_RETURN_ON_ERROR(esp_wifi_init(&init), TAG, "Wi-Fi");
    const esp_timer_create_args_t timer = {.callback = connect, .name = "wifi-retry"};
    ESP_RETURN_ON_ERROR(esp_timer_create(&timer, &retry), TAG, "timer");
    ESP_RETURN_ON_ERROR(esp_event_handler_instance_register(WIFI_EVENT, ESP_EVENT_ANY_ID, on_wifi, NULL, NULL), TAG, "events");

    char ssid[33] = CONFIG_BMS_WIFI_SSID;
    char password[65] = CONFIG_BMS_WIFI_PASSWORD;
    stored("ssid", ssid, sizeof ssid);
    stored("password", password, sizeof password);
    ESP_RETURN_ON_FALSE(ssid[0] != '\0', ESP_ERR_NOT_FOUND, TAG, "no Wi-Fi network is configured: idf.py menuconfig, BMS monitor");

    wifi_config_t station = {0};
    memcpy(station.sta.ssid, ssid, strnlen(ssid, sizeof station.sta.ssid));
    memcpy(station.sta.password, password, strnlen(password, sizeof station.sta.password));
    // An open network of the same name is somebody else's.
    station.sta.threshold.authmode = password[0] != '\0' ? WIFI_AUTH_WPA2_PSK : WIFI_AUTH_OPEN;
    ESP_RETURN_ON_ERROR(esp_wifi_set_storage(WIFI_STORAGE_RAM), TAG, "storage"); // the credentials have their place already
    ESP_RETURN_ON_ERROR(esp_wifi_set_mode(WIFI_MODE_STA), TAG, "mode");
    ESP_RETURN_ON_ERROR(esp_wifi_set_config(WIFI_IF_STA, &station), TAG, "station");
    ESP_RETURN_ON_ERROR(esp_wifi_start(), TAG, "start");
    return start_clock();
}
