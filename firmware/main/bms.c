// STAND-IN: the place for the driver of your own BMS.
//
// It speaks no real one's language. It sends "?\n" over the UART and takes a line such as "71.5 -4.20 18.5 21\n" for an answer: state
// of charge in %, current of the pack in A, positive while charging, and, where it measures them, °C of the coldest and of the
// warmest cell. That is enough to try an update with a serial terminal as battery.
#include "bms.h"

#include "esp_log.h"
#include "sdkconfig.h"

static const char *TAG = "bms";

#if CONFIG_BMS_SOURCE_UART

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "driver/uart.h"
#include "esp_check.h"
#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"

#define PORT UART_NUM_1
#define RX_BYTES 256
#define ANSWER_MS 500

static SemaphoreHandle_t bus; // one question at a time

esp_err_t bms_start(void)
{
    bus = xSemaphoreCreateMutex();
    ESP_RETURN_ON_FALSE(bus != NULL, ESP_ERR_NO_MEM, TAG, "mutex");
    const uart_config_t line = {
        .baud_rate = 9600,
        .data_bits = UART_DATA_8_BITS,
        .parity = UART_PARITY_DISABLE,
        .stop_bits = UART_STOP_BITS_1,
        .flow_ctrl = UART_HW_FLOWCTRL_DISABLE,
        .source_clk = UART_SCLK_DEFAULT,
    };
    ESP_RETURN_ON_ERROR(uart_driver_install(PORT, RX_BYTES, 0, 0, NULL, 0), TAG, "UART");
    ESP_RETURN_ON_ERROR(uart_param_config(PORT, &line), TAG, "UART");
    return uart_set_pin(PORT, CONFIG_BMS_UART_TX, CONFIG_BMS_UART_RX, UART_PIN_NO_CHANGE, UART_PIN_NO_CHANGE);
}

// ask fills line with one answer without its end. False when there is none in time.
static bool ask(char *line, size_t size)
{
    uart_flush_input(PORT); // what came late belongs to an earlier question
    uart_write_bytes(PORT, "?\n", 2);
    const TickType_t begun = xTaskGetTickCount();
    size_t n = 0;
    while (n < size - 1) {
        const TickType_t spent = xTaskGetTickCount() - begun;
        if (spent >= pdMS_TO_TICKS(ANSWER_MS) || uart_read_bytes(PORT, line + n, 1, pdMS_TO_TICKS(ANSWER_MS) - spent) != 1) {
            return false;
        }
        if (line[n] == '\n') {
            line[n] = '\0';
            return true;
        }
        n++;
    }
    return false;
}

bool bms_read(ota_battery_t *out)
{
    char line[48];
    if (bus == NULL || xSemaphoreTake(bus, pdMS_TO_TICKS(ANSWER_MS)) != pdTRUE) {
        return false;
    }
    const bool heard = ask(line, sizeof line);
    xSemaphoreGive(bus);
    double soc, current, coldest, warmest;
    const int read = heard ? sscanf(line, "%lf %lf %lf %lf", &soc, &current, &coldest, &warmest) : 0;
    if ((read != 2 && read != 4) || !(soc >= 0 && soc <= 100) || !isfinite(current)) {
        return false;
    }
    *out = (ota_battery_t){.soc_pct = soc, .pack_current_a = current, .charging = current > 0};
    if (read == 4) {
        out->has_temp = true;
        out->temp_min_c = coldest;
        out->temp_max_c = warmest;
    }
    return true;
}

#else // CONFIG_BMS_SOURCE_NONE

esp_err_t bms_start(void)
{
    ESP_LOGW(TAG, "NO BATTERY: every reading is made up (idf.py menuconfig, BMS monitor)");
    return ESP_OK;
}

bool bms_read(ota_battery_t *out)
{
    *out = (ota_battery_t){.soc_pct = 80, .pack_current_a = -1, .charging = false};
    return true;
}

#endif
