// A battery monitor with over-the-air updates: storage, BMS and network come up, then the component ota_manager does the rest.
//
// Order matters little, but nothing here may wait or give up for good: a new image is on trial while this runs, and what ends the trial
// well is that the component is reached. What fails for ever is found by the trial, which then goes back to the old image.
#include <stdatomic.h>

#include "bms.h"
#include "esp_log.h"
#include "esp_ota_ops.h"
#include "esp_spiffs.h"
#include "esp_system.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "network.h"
#include "nvs_flash.h"
#include "ota_manager.h"

#define READ_EVERY_MS 5000

static const char *TAG = "main";
static atomic_bool quiet; // an update is being downloaded: leave the bus alone

// What goes wrong before the component runs is said, and the board goes on with what it has.
static void report(const char *what, esp_err_t err)
{
    if (err != ESP_OK) {
        ESP_LOGE(TAG, "%s: %s", what, esp_err_to_name(err));
    }
}

// Without the component nothing could ever confirm or replace an image on trial: restarting is the way back to the one before. One that
// was proven goes on without updates: it still watches the battery.
static bool on_trial(void)
{
    esp_ota_img_states_t state;
    return esp_ota_get_state_partition(esp_ota_get_running_partition(), &state) == ESP_OK && state == ESP_OTA_IMG_PENDING_VERIFY;
}

static esp_err_t start_nvs(void)
{
    esp_err_t err = nvs_flash_init();
    if (err == ESP_ERR_NVS_NO_FREE_PAGES || err == ESP_ERR_NVS_NEW_VERSION_FOUND) {
        // Left by other firmware in a form that this one cannot read. A network that is only in there has to be set again.
        ESP_LOGW(TAG, "NVS is erased: %s", esp_err_to_name(err));
        err = nvs_flash_erase();
        if (err == ESP_OK) {
            err = nvs_flash_init();
        }
    }
    return err;
}

static esp_err_t mount_storage(void)
{
    const esp_vfs_spiffs_conf_t conf = {
        .base_path = "/spiffs",
        .partition_label = "storage",
        .max_files = 4,
        .format_if_mount_failed = false, // the board's login is in there: rather no files than none ever again
    };
    return esp_vfs_spiffs_register(&conf);
}

static bool read_battery(ota_battery_t *out, void *ctx)
{
    (void)ctx;
    return bms_read(out);
}

static void before_update(void *ctx)
{
    (void)ctx;
    ESP_LOGI(TAG, "update: the BMS is left alone"); // tell an inverter here that readings will stop
    atomic_store(&quiet, true);
}

static void after_update(bool installed, void *ctx)
{
    (void)ctx;
    ESP_LOGI(TAG, "update %s", installed ? "installed" : "not installed");
    atomic_store(&quiet, false);
}

void app_main(void)
{
    report("NVS", start_nvs());
    report("storage partition (write it with 'idf.py storage-flash')", mount_storage());
    report("BMS", bms_start());
    report("network", network_start());

    ota_manager_config_t ota = ota_manager_default_config();
    ota.read_battery = read_battery;
    ota.before_update = before_update;
    ota.after_update = after_update;
    esp_err_t err = ota_manager_init(&ota);
    report("updates do not work", err);
    if (err != ESP_OK && on_trial()) {
        esp_restart();
    }
    ESP_LOGI(TAG, "version %s%s", ota_manager_get_version(), ota_manager_is_rollback_pending() ? ", on trial" : "");

    // The monitor itself: here the readings are only logged.
    for (;;) {
        ota_battery_t pack;
        if (!atomic_load(&quiet)) {
            if (bms_read(&pack)) {
                ESP_LOGI(TAG, "%.1f %%, %.2f A", pack.soc_pct, pack.pack_current_a);
            } else {
                ESP_LOGW(TAG, "the BMS does not answer");
            }
        }
        vTaskDelay(pdMS_TO_TICKS(READ_EVERY_MS));
    }
}
