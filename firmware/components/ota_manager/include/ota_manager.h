// Over-the-air updates for a battery monitor: checks, downloads, proves and switches firmware, and undoes what does not
// prove healthy. docs/protocol.md is what it says to broker and server; docs/ARCHITECTURE.md how an update goes.
//
// The application brings the network up (Wi-Fi or Ethernet alike), mounts the storage partition and calls ota_manager_init.
// From then on two tasks of the component do everything: a loop, and a worker for what waits for the server. The functions below
// may be called from any task and return at once.
//
// Promises: nothing is erased before the release was found fit and, with a trusted key, its manifest's signature was checked;
// no record points at an image that was not read back from flash; a new image stays only when it reached network, broker,
// server and battery in time; a power cut anywhere leaves a board that boots a proven image.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "esp_err.h"

#ifdef __cplusplus
extern "C" {
#endif

// One reading of the pack.
typedef struct {
    double soc_pct;           // 0 to 100
    double pack_current_a;    // positive while charging
    bool charging;
    bool has_temp;            // the BMS measures temperatures; without, a gate on one stays closed
    double temp_min_c;        // of the coldest cell and of the warmest; alike where there is one sensor. What is not within
    double temp_max_c;        // -100 to 200 is taken for not measured
} ota_battery_t;

typedef struct {
    // Reads the pack once, within a second. False when the BMS does not answer. Needed: an image whose BMS is silent is undone.
    // Called from both tasks, never twice at a time.
    bool (*read_battery)(ota_battery_t *out, void *ctx);
    // Right before the download begins: quiesce what must not be disturbed (CAN, UART), tell the inverter. May be NULL.
    void (*before_update)(void *ctx);
    // Once for each before_update. With installed the board restarts into the new image next; without, the update failed and
    // what was quiesced is to be restored. Both are called from the worker's task, and longer than five minutes is taken for a
    // hang. May be NULL.
    void (*after_update)(bool installed, void *ctx);
    // Sees every status as it is said, from the component's task: for logs and displays. JSON, NUL-terminated. May be NULL.
    void (*on_status)(const char *json, size_t len, void *ctx);
    void *ctx;

    const char *storage_path; // where ota_config.txt and mqtt_config.txt are; default "/spiffs"
    uint32_t task_stack;      // bytes, of the loop; default CONFIG_OTA_MANAGER_TASK_STACK
    unsigned task_priority;   // of both tasks; default CONFIG_OTA_MANAGER_TASK_PRIORITY
    uint32_t frame_ms;        // between two readings of the pack in a trial; default 1000
} ota_manager_config_t;

ota_manager_config_t ota_manager_default_config(void);

// The numbers of the original firmware.
typedef enum {
    OTA_STATUS_IDLE = 0, OTA_STATUS_CHECKING = 1, OTA_STATUS_DOWNLOADING = 2, OTA_STATUS_INSTALLING = 3,
    OTA_STATUS_SUCCESS = 4, OTA_STATUS_FAILED = 5, OTA_STATUS_ROLLBACK = 6
} ota_status_code_t;

typedef struct {
    ota_status_code_t status;
    int progress_pct;                // 0 to 100
    char phase[16];                  // docs/protocol.md section 4
    char reason[24];                 // section 5, empty for none
    char message[128];
    char current_version[65];
    char available_version[65];
    bool rollback_pending;           // this boot is a trial
} ota_status_t;

// Settles what the last boot left in flash, then starts the component's task. Call once, after NVS, network stack and
// storage are up. ESP_ERR_INVALID_STATE the second time, ESP_ERR_NO_MEM, ESP_ERR_INVALID_ARG without read_battery. A missing
// or broken configuration file is no error here: the board says so in its statuses and goes on.
esp_err_t ota_manager_init(const ota_manager_config_t *cfg);

// Reads the two configuration files again, once no update runs. What changed is in force with the session that then begins and
// with the next check; a changed device_id waits for the next start.
esp_err_t ota_manager_load_config(void);

// As the commands of the same names on the command topic. ESP_ERR_INVALID_STATE before init.
esp_err_t ota_manager_check_update(void);
esp_err_t ota_manager_start_update(bool force);   // force skips the version comparison only
esp_err_t ota_manager_rollback(void);

// Confirms the running image at once, whatever it has shown. The trial does this by itself; calling it early takes the
// protection away. ESP_OK also where there is nothing to confirm.
esp_err_t ota_manager_mark_valid(void);

esp_err_t ota_manager_get_status(ota_status_t *out);
const char *ota_manager_get_version(void);        // of the running image; valid for ever after init
bool ota_manager_is_rollback_pending(void);       // this boot is a trial that has not been decided

#ifdef __cplusplus
}
#endif
