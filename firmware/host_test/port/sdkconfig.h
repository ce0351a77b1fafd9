// Part of the host port: what menuconfig decides when a firmware is built, the board decides here when it is started.
#pragma once

#include "host_board.h"

#define CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE (host_board.rollback)
#define CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK (host_board.anti_rollback)

#define CONFIG_IDF_TARGET (host_chip_name(host_board.chip))
#define CONFIG_IDF_FIRMWARE_CHIP_ID (host_board.chip)
#define CONFIG_MBEDTLS_CERTIFICATE_BUNDLE 1
#define CONFIG_ESP_TLS_INSECURE 1
#define CONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY 1

// The defaults of the component's Kconfig.
#define CONFIG_OTA_MANAGER_TASK_STACK 6144
#define CONFIG_OTA_MANAGER_WORKER_STACK 12288
#define CONFIG_OTA_MANAGER_MQTT_STACK 6144
#define CONFIG_OTA_MANAGER_TASK_PRIORITY 5
#define CONFIG_OTA_MANAGER_TLS_BLOCK 20480
#define CONFIG_OTA_MANAGER_KEY_ROOM 1
