// The battery management system. bms.c is a stand-in: put the driver of yours in its place (UART, CAN, Bluetooth) and keep these.
#pragma once

#include <stdbool.h>

#include "esp_err.h"
#include "ota_manager.h"

// Opens the way to the BMS. Call once.
esp_err_t bms_start(void);

// Reads the pack once, within a second. False when the BMS does not answer or what it says cannot be right: a reading decides whether
// an update may start and whether a new image may stay, so a guess is worse than none. May be called from any task.
bool bms_read(ota_battery_t *out);
