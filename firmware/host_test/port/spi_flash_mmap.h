// Part of the host port (spi_flash_mmap.h).
#pragma once

#include "esp_err.h"

#define ESP_ERR_FLASH_OP_FAIL (ESP_ERR_FLASH_BASE + 1)
