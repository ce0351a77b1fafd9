// A line of log for every status, as the first firmware had it.
#pragma once

#include <stddef.h>

#include "esp_err.h"

#ifdef __cplusplus
extern "C" {
#endif

// Gets one line without a newline, from the component's loop.
typedef void (*ota_status_log_t)(const char *line, void *ctx);

// Sends the lines to sink; NULL is ESP_LOGI. May be called again at any time before ota_manager_init.
esp_err_t ota_status_logger_init(ota_status_log_t sink, void *ctx);

// To be given to ota_manager_config_t as on_status. It says a phase or a reason that is new, and progress every ten percent.
void ota_status_logger_on_status(const char *json, size_t len, void *ctx);

#ifdef __cplusplus
}
#endif
