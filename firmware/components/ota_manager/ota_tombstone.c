// What stands in the first sector of a slot whose image failed, so that nothing boots it (docs/adr/0008):
//
//   0  magic[8]   "bmstomb1"; never 0xE9, the first byte of an image
//   8  sha256[32] of the image file, zero if unknown
//  40  cause[32]  printable ASCII, NUL padded
//  72  crc        LE32, CRC-32 (IEEE) of the 72 bytes before
//  76  acked      0xFF, programmed to 0 when the report of it was acknowledged
//
// With flash encryption the last one is a block of 16 bytes at 80.
#include <string.h>

#include "esp_rom_crc.h"
#include "ota_records.h"
#include "spi_flash_mmap.h"

typedef struct {
    char magic[8];
    uint8_t digest[32];
    char cause[OTA_MAX_CAUSE];
    uint32_t crc;
    uint8_t acked;
} __attribute__((packed)) tombstone_t;

#define CRC_AT 72u
#define ACKED_AT 76u

_Static_assert(sizeof(tombstone_t) == ACKED_AT + 1, "a tombstone is what stands in flash");

static const char MAGIC[8] = { 'b', 'm', 's', 't', 'o', 'm', 'b', '1' };

static uint32_t tombstone_crc(const tombstone_t *t)
{
    return esp_rom_crc32_le(0, (const uint8_t *)t, CRC_AT);
}

static uint32_t acked_at(const esp_partition_t *slot)
{
    return slot->encrypted ? 80u : ACKED_AT;
}

// Length of the cause, or 0 where it is not 1 to OTA_MAX_CAUSE printable characters.
static size_t cause_len(const char cause[OTA_MAX_CAUSE])
{
    size_t len = OTA_MAX_CAUSE;
    while (len > 0 && cause[len - 1] == 0) {
        len--;
    }
    for (size_t i = 0; i < len; i++) {
        if (cause[i] < ' ' || cause[i] > '~') {
            return 0;
        }
    }
    return len;
}

esp_err_t ota_tombstone_read(const esp_partition_t *slot, ota_tombstone_t *out, bool *there)
{
    tombstone_t t;
    *there = false;
    memset(out, 0, sizeof *out);
    if (slot->size < OTA_SECTOR) {
        return ESP_OK;
    }
    esp_err_t err = esp_partition_read(slot, 0, &t, sizeof t);
    if (err != ESP_OK || memcmp(t.magic, MAGIC, sizeof MAGIC) != 0 || t.crc != tombstone_crc(&t)) {
        return err;
    }
    size_t len = cause_len(t.cause);
    if (len == 0) {
        return ESP_OK;
    }
    *there = true;
    memcpy(out->digest, t.digest, sizeof out->digest);
    memcpy(out->cause, t.cause, len);
    // Anything but zero is an acknowledgement that was cut short.
    return ota_flash_read_flag(slot, acked_at(slot), &out->acked);
}

esp_err_t ota_tombstone_write(const ota_slots_t *s, const esp_partition_t *slot, const uint8_t digest[32], const char *cause)
{
    ota_tombstone_t old;
    bool there;
    tombstone_t t = { .acked = 0xFF };
    size_t len = strlen(cause);
    esp_err_t err = ota_slots_check_target(s, slot);
    if (err != ESP_OK) {
        return err;
    }
    if (len > OTA_MAX_CAUSE || !ota_slots_is_numbered(slot) || slot->size < OTA_SECTOR) {
        return ESP_ERR_INVALID_ARG;
    }
    memcpy(t.magic, MAGIC, sizeof MAGIC);
    memcpy(t.digest, digest, sizeof t.digest);
    memcpy(t.cause, cause, len);
    t.crc = tombstone_crc(&t);
    if (cause_len(t.cause) != len || len == 0) {
        return ESP_ERR_INVALID_ARG;
    }
    err = ota_tombstone_read(slot, &old, &there);
    // No image can have been there since, and the first cause is the nearest to what happened.
    if (err != ESP_OK || (there && (ota_digest_unknown(digest) || memcmp(old.digest, digest, sizeof old.digest) == 0))) {
        return err;
    }
    err = ota_flash_erase_sector(slot, 0);
    if (err == ESP_OK) {
        err = ota_flash_write(slot, 0, &t, sizeof t);
    }
    return err == ESP_OK ? ota_flash_equals(slot, 0, &t, sizeof t) : err;
}

esp_err_t ota_tombstone_ack(const ota_slots_t *s, const esp_partition_t *slot)
{
    ota_tombstone_t t;
    bool there;
    esp_err_t err = ota_slots_check_target(s, slot);
    if (err == ESP_OK) {
        err = ota_tombstone_read(slot, &t, &there);
    }
    if (err != ESP_OK || (there && t.acked)) {
        return err;
    }
    if (!there) {
        return ESP_ERR_NOT_FOUND;
    }
    err = ota_flash_set_flag(slot, acked_at(slot));
    if (err == ESP_OK) {
        err = ota_flash_read_flag(slot, acked_at(slot), &t.acked);
    }
    return err == ESP_OK && !t.acked ? ESP_ERR_FLASH_OP_FAIL : err;
}
