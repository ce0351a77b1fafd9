#include "host_board.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "esp_err.h"
#include "esp_image_format.h"
#include "esp_log.h"
#include "esp_ota_ops.h"
#include "esp_rom_crc.h"
#include "spi_flash_mmap.h"

host_board_t host_board;

void host_end(int status)
{
    host_flash_stop();
    FILE *f = host_board.report == NULL ? NULL : fopen(host_board.report, "w");
    if (f != NULL) {
        fprintf(f, "%llu\n%lu\n", (unsigned long long)host_flash_operations(), (unsigned long)host_board.efuse);
        fclose(f);
    }
    _exit(status);
}

static const struct {
    const char *name;
    esp_chip_id_t id;
    uint8_t secure_bits;
} chips[] = {
    { "esp32", ESP_CHIP_ID_ESP32, 32 },     { "esp32s2", ESP_CHIP_ID_ESP32S2, 16 },   { "esp32c3", ESP_CHIP_ID_ESP32C3, 16 },
    { "esp32s3", ESP_CHIP_ID_ESP32S3, 16 }, { "esp32c2", ESP_CHIP_ID_ESP32C2, 4 },    { "esp32c6", ESP_CHIP_ID_ESP32C6, 16 },
    { "esp32h2", ESP_CHIP_ID_ESP32H2, 16 }, { "esp32p4", ESP_CHIP_ID_ESP32P4, 16 },   { "esp32c61", ESP_CHIP_ID_ESP32C61, 16 },
    { "esp32c5", ESP_CHIP_ID_ESP32C5, 9 },  { "esp32h21", ESP_CHIP_ID_ESP32H21, 16 }, { "esp32h4", ESP_CHIP_ID_ESP32H4, 16 },
};

#define CHIPS (sizeof chips / sizeof chips[0])

const char *host_chip_name(uint16_t chip)
{
    for (size_t i = 0; i < CHIPS; i++) {
        if (chips[i].id == chip) {
            return chips[i].name;
        }
    }
    return NULL;
}

bool host_chip_from(const char *name, uint16_t *chip)
{
    for (size_t i = 0; i < CHIPS; i++) {
        if (strcmp(chips[i].name, name) == 0) {
            *chip = chips[i].id;
            return true;
        }
    }
    return false;
}

uint32_t host_chip_secure_bits(uint16_t chip)
{
    for (size_t i = 0; i < CHIPS; i++) {
        if (chips[i].id == chip) {
            return chips[i].secure_bits;
        }
    }
    return 16;
}

void host_log(char level, const char *tag, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "%c %s: %s\n", level, tag, text);
}

const char *esp_err_to_name(esp_err_t code)
{
    static const struct {
        esp_err_t code;
        const char *name;
    } names[] = {
#define NAME(x) { x, #x }
        NAME(ESP_OK), NAME(ESP_FAIL), NAME(ESP_ERR_NO_MEM), NAME(ESP_ERR_INVALID_ARG), NAME(ESP_ERR_INVALID_STATE),
        NAME(ESP_ERR_INVALID_SIZE), NAME(ESP_ERR_NOT_FOUND), NAME(ESP_ERR_NOT_SUPPORTED), NAME(ESP_ERR_TIMEOUT),
        NAME(ESP_ERR_INVALID_RESPONSE), NAME(ESP_ERR_INVALID_CRC), NAME(ESP_ERR_INVALID_VERSION), NAME(ESP_ERR_INVALID_MAC),
        NAME(ESP_ERR_NOT_FINISHED), NAME(ESP_ERR_NOT_ALLOWED), NAME(ESP_ERR_FLASH_OP_FAIL), NAME(ESP_ERR_IMAGE_FLASH_FAIL),
        NAME(ESP_ERR_IMAGE_INVALID), NAME(ESP_ERR_OTA_PARTITION_CONFLICT), NAME(ESP_ERR_OTA_SELECT_INFO_INVALID),
        NAME(ESP_ERR_OTA_VALIDATE_FAILED), NAME(ESP_ERR_OTA_SMALL_SEC_VER), NAME(ESP_ERR_OTA_ROLLBACK_FAILED),
        NAME(ESP_ERR_OTA_ROLLBACK_INVALID_STATE),
#undef NAME
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].code == code) {
            return names[i].name;
        }
    }
    return "UNKNOWN ERROR";
}

// CRC-32 (IEEE), bit by bit.
uint32_t esp_rom_crc32_le(uint32_t crc, uint8_t const *buf, uint32_t len)
{
    crc = ~crc;
    for (uint32_t i = 0; i < len; i++) {
        crc ^= buf[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        }
    }
    return ~crc;
}
