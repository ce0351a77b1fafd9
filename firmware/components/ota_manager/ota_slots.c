#include "ota_slots.h"

#include <stdio.h>
#include <string.h>

#include "esp_app_format.h"
#include "esp_image_format.h"
#include "esp_ota_ops.h"
#include "esp_rom_crc.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "ota_crypto.h"
#include "ota_records.h"
#include "sdkconfig.h"
#include "spi_flash_mmap.h"

#define PIECE 256u          // of flash in memory at a time, bytes
#define DIGEST_PIECE 1024u
#define BREATH 0x10000u      // of flash in one go, bytes; the task watchdog has five seconds for all that follows one another

// ---- finding partitions

static const esp_partition_t *find_app(int number)
{
    return esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_OTA(number), NULL);
}

bool ota_slots_same(const esp_partition_t *a, const esp_partition_t *b)
{
    return a != NULL && b != NULL && a->address == b->address;
}

bool ota_slots_is_numbered(const esp_partition_t *p)
{
    return p->type == ESP_PARTITION_TYPE_APP && p->subtype >= ESP_PARTITION_SUBTYPE_APP_OTA_MIN &&
           p->subtype < ESP_PARTITION_SUBTYPE_APP_OTA_MAX;
}

// The slot after the running one, round and round, gaps passed over (esp_ota_get_next_update_partition).
static const esp_partition_t *next_slot(const esp_partition_t *running)
{
    int from = ota_slots_is_numbered(running) ? (int)running->subtype - ESP_PARTITION_SUBTYPE_APP_OTA_MIN + 1 : 0;
    for (int i = 0; i < OTA_MAX_SLOTS; i++) {
        const esp_partition_t *p = find_app((from + i) % OTA_MAX_SLOTS);
        if (p != NULL) {
            return p;
        }
    }
    return NULL;
}

static bool counts(const ota_slots_t *s, const esp_partition_t *p)
{
    for (int i = 0; i < s->slots; i++) {
        if (ota_slots_same(s->slot[i], p)) {
            return true;
        }
    }
    return false;
}

static void find_target(ota_slots_t *s)
{
    const esp_partition_t *p = next_slot(s->running);
    if (p == NULL || ota_slots_same(p, s->running)) {
        snprintf(s->no_target, sizeof s->no_target, "the partition table has no slot beside the running one");
    } else if (!counts(s, p)) {
        snprintf(s->no_target, sizeof s->no_target, "the partition table has a gap before %s, so nothing can boot it", p->label);
    } else if (s->otadata == NULL) {
        snprintf(s->no_target, sizeof s->no_target,
                 "the partition table has no otadata partition, so no other slot can be selected");
    } else {
        s->target = p;
    }
}

esp_err_t ota_slots_open(ota_slots_t *s)
{
    memset(s, 0, sizeof *s);
    s->running = esp_ota_get_running_partition();
    s->running_slot = OTA_NO_SLOT;
    if (s->running == NULL || s->running->type != ESP_PARTITION_TYPE_APP) {
        return ESP_ERR_INVALID_STATE;
    }
    // Defined to 1, or not at all.
#ifdef CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE
    s->rollback = CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE;
#endif
#ifdef CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK
    s->anti_rollback = CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK;
#endif
    s->encrypted = s->running->encrypted;
    const esp_partition_t *data =
        esp_partition_find_first(ESP_PARTITION_TYPE_DATA, ESP_PARTITION_SUBTYPE_DATA_OTA, NULL);
    if (data != NULL && data->size >= OTA_RECORDS * OTA_SECTOR) {
        s->otadata = data;
    }
    for (; s->slots < OTA_MAX_SLOTS; s->slots++) {
        const esp_partition_t *p = find_app(s->slots);
        if (p == NULL) {
            break;
        }
        s->slot[s->slots] = p;
        if (ota_slots_same(p, s->running)) {
            s->running_slot = s->slots;
        }
    }
    find_target(s);
    return ESP_OK;
}

esp_err_t ota_slots_check_target(const ota_slots_t *s, const esp_partition_t *p)
{
    if (p == NULL) {
        return ESP_ERR_NOT_FOUND;
    }
    if (p->type == ESP_PARTITION_TYPE_APP && !ota_slots_is_numbered(p)) {
        return ESP_ERR_INVALID_ARG;
    }
    return ota_slots_same(p, s->running) ? ESP_ERR_OTA_PARTITION_CONFLICT : ESP_OK;
}

// ---- flash

esp_err_t ota_flash_equals(const esp_partition_t *p, uint32_t at, const void *want, uint32_t len)
{
    uint8_t got[PIECE];
    for (uint32_t done = 0; done < len;) {
        uint32_t n = len - done < PIECE ? len - done : PIECE;
        esp_err_t err = esp_partition_read(p, at + done, got, n);
        if (err != ESP_OK) {
            return err;
        }
        if (memcmp(got, (const uint8_t *)want + done, n) != 0) {
            return ESP_ERR_FLASH_OP_FAIL;
        }
        done += n;
    }
    return ESP_OK;
}

esp_err_t ota_flash_write(const esp_partition_t *p, uint32_t at, const void *bytes, uint32_t len)
{
    uint32_t tail = p->encrypted ? len % OTA_CIPHER_BLOCK : 0;
    if (len > tail) {
        esp_err_t err = esp_partition_write(p, at, bytes, len - tail);
        if (err != ESP_OK || tail == 0) {
            return err;
        }
    }
    if (tail == 0) {
        return ESP_OK;
    }
    uint8_t block[OTA_CIPHER_BLOCK];
    memset(block, 0xFF, sizeof block);
    memcpy(block, (const uint8_t *)bytes + (len - tail), tail);
    return esp_partition_write(p, at + (len - tail), block, sizeof block);
}

esp_err_t ota_flash_erase_sector(const esp_partition_t *p, uint32_t at)
{
    return esp_partition_erase_range(p, at, OTA_SECTOR);
}

esp_err_t ota_flash_is_blank(const esp_partition_t *p, uint32_t at, uint32_t len, bool *blank)
{
    uint8_t got[PIECE];
    *blank = false;
    for (uint32_t done = 0; done < len;) {
        uint32_t n = len - done < PIECE ? len - done : PIECE;
        // Raw: erased flash reads as ones, but decrypts to anything.
        esp_err_t err = esp_partition_read_raw(p, at + done, got, n);
        if (err != ESP_OK) {
            return err;
        }
        for (uint32_t i = 0; i < n; i++) {
            if (got[i] != 0xFF) {
                return ESP_OK;
            }
        }
        done += n;
    }
    *blank = true;
    return ESP_OK;
}

esp_err_t ota_flash_set_flag(const esp_partition_t *p, uint32_t at)
{
    const uint8_t zero[OTA_CIPHER_BLOCK] = { 0 };
    return esp_partition_write(p, at, zero, p->encrypted ? sizeof zero : 1);
}

esp_err_t ota_flash_read_flag(const esp_partition_t *p, uint32_t at, bool *set)
{
    const uint8_t zero[OTA_CIPHER_BLOCK] = { 0 };
    esp_err_t err = ota_flash_equals(p, at, zero, p->encrypted ? sizeof zero : 1);
    *set = err == ESP_OK;
    return err == ESP_ERR_FLASH_OP_FAIL ? ESP_OK : err;
}

// ---- images

// Lets the idle task run, which feeds the task watchdog. A boot looks at whole slots five times over and never waits.
static void breathe(void) { vTaskDelay(1); }

esp_err_t ota_slots_digest(const esp_partition_t *p, uint32_t at, uint32_t len, uint8_t digest[32])
{
    uint8_t piece[DIGEST_PIECE];
    ota_sha256_t hash;
    if (at > p->size || len > p->size - at) {
        return ESP_ERR_INVALID_SIZE;
    }
    if (!ota_sha256_start(&hash)) {
        return ESP_ERR_NO_MEM;
    }
    esp_err_t err = ESP_OK;
    for (uint32_t done = 0; done < len && err == ESP_OK;) {
        uint32_t n = len - done < DIGEST_PIECE ? len - done : DIGEST_PIECE;
        err = esp_partition_read(p, at + done, piece, n);
        if (err == ESP_OK) {
            ota_sha256_add(&hash, piece, n);
        }
        done += n;
        if (done % BREATH == 0) {
            breathe();
        }
    }
    return ota_sha256_end(&hash, digest) || err != ESP_OK ? err : ESP_FAIL;
}

// What stands behind a signed image, at the next sector: a Secure Boot v2 signature block of 1216 bytes in a sector of its
// own, known by its first byte and by the CRC-32 before its last 20 bytes.
static bool signature_at(const esp_partition_t *p, uint32_t at)
{
    const uint32_t crc_at = 1196;
    uint8_t piece[PIECE];
    uint32_t crc = 0, stored;
    for (uint32_t done = 0; done < crc_at;) {
        uint32_t n = crc_at - done < PIECE ? crc_at - done : PIECE;
        if (esp_partition_read(p, at + done, piece, n) != ESP_OK || (done == 0 && piece[0] != 0xE7)) {
            return false;
        }
        crc = esp_rom_crc32_le(crc, piece, n);
        done += n;
    }
    return esp_partition_read(p, at + crc_at, &stored, sizeof stored) == ESP_OK && stored == crc;
}

// Length of the published file, from flash alone (Go: appimage.FileLength).
static uint32_t file_length(const esp_partition_t *p, uint32_t image_len)
{
    uint64_t sector = ((uint64_t)image_len + OTA_SECTOR - 1) / OTA_SECTOR * OTA_SECTOR;
    if (sector + OTA_SECTOR > p->size || !signature_at(p, (uint32_t)sector)) {
        return image_len;
    }
    return (uint32_t)sector + OTA_SECTOR;
}

static void copy_printable(char out[33], const char field[32])
{
    size_t n = 0;
    for (; n < 32 && field[n] != 0; n++) {
        out[n] = field[n] >= ' ' && field[n] <= '~' ? field[n] : '?';
    }
    out[n] = 0;
}

esp_err_t ota_slots_verify(const esp_partition_t *p, ota_image_facts_t *out)
{
    esp_image_metadata_t meta = { .start_addr = p->address };
    const esp_partition_pos_t pos = { .offset = p->address, .size = p->size };
    memset(out, 0, sizeof *out);
    esp_err_t err = esp_image_verify(ESP_IMAGE_VERIFY_SILENT, &pos, &meta);
    if (err == ESP_ERR_IMAGE_FLASH_FAIL || err == ESP_ERR_NO_MEM) {
        return err;
    }
    if (err != ESP_OK) {
        return ESP_ERR_IMAGE_INVALID;
    }
    if (meta.image_len >= BREATH) {
        breathe();
    }
    out->image_len = meta.image_len;
    out->file_len = file_length(p, meta.image_len);
    out->chip_id = (uint16_t)meta.image.chip_id;
    esp_app_desc_t desc;
    if (meta.image.segment_count > 0 && esp_ota_get_partition_description(p, &desc) == ESP_OK) {
        out->has_desc = true;
        out->secure_version = desc.secure_version;
        copy_printable(out->version, desc.version);
        copy_printable(out->project, desc.project_name);
    }
    return ESP_OK;
}

esp_err_t ota_slots_file_digest(const esp_partition_t *p, uint8_t digest[32])
{
    ota_image_facts_t facts;
    esp_err_t err = ota_slots_verify(p, &facts);
    return err == ESP_OK ? ota_slots_digest(p, 0, facts.file_len, digest) : err;
}

esp_err_t ota_slots_secure_version(const esp_partition_t *p, uint32_t *version)
{
    esp_app_desc_t desc;
    esp_err_t err = esp_ota_get_partition_description(p, &desc);
    if (err == ESP_OK) {
        *version = desc.secure_version;
    }
    return err;
}

// ---- writing a slot

// The state of the first record with a good CRC that means the running slot (esp_ota_get_state_partition).
static bool on_trial(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS])
{
    for (int i = 0; s->running_slot >= 0 && i < OTA_RECORDS; i++) {
        if (ota_record_crc_ok(&rec[i]) && ota_record_slot(s, &rec[i]) == s->running_slot) {
            return rec[i].ota_state == ESP_OTA_IMG_PENDING_VERIFY;
        }
    }
    return false;
}

// What esp_ota_begin does to the records: the one that is not active goes, if it means another slot than the running one.
static esp_err_t drop_last_boot(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS])
{
    int active = ota_records_active(rec);
    if (active < 0) {
        return ESP_OK;
    }
    int other = 1 - active, slot = ota_record_slot(s, &rec[other]);
    if (ota_record_erased(&rec[other]) || !ota_record_crc_ok(&rec[other]) || slot < 0 || slot == s->running_slot) {
        return ESP_OK;
    }
    return ota_flash_erase_sector(s->otadata, (uint32_t)other * OTA_SECTOR);
}

// Makes every record that means p stop counting, whatever its state: one that was written for the old content must not
// boot the new one without a trial.
static esp_err_t disown(const ota_slots_t *s, const esp_partition_t *p)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    for (int i = 0; err == ESP_OK && i < OTA_RECORDS; i++) {
        int slot = ota_record_slot(s, &rec[i]);
        if (slot >= 0 && ota_slots_same(s->slot[slot], p) && !ota_record_erased(&rec[i]) && ota_record_crc_ok(&rec[i])) {
            err = ota_record_silence(s, i, &rec[i]);
        }
    }
    return err;
}

esp_err_t ota_slots_begin(const ota_slots_t *s)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_slots_check_target(s, s->target);
    if (err == ESP_OK) {
        err = ota_records_read(s, rec);
    }
    if (err == ESP_OK && s->rollback) {
        err = on_trial(s, rec) ? ESP_ERR_INVALID_STATE : drop_last_boot(s, rec);
    }
    return err == ESP_OK ? disown(s, s->target) : err;
}

esp_err_t ota_slots_write(const ota_slots_t *s, uint32_t at, const void *bytes, uint32_t len)
{
    esp_err_t err = ota_slots_check_target(s, s->target);
    if (err != ESP_OK || len == 0) {
        return err;
    }
    const esp_partition_t *p = s->target;
    uint64_t end = (uint64_t)at + len;
    // Both in whole sectors: what is not erased here was by the piece before.
    uint64_t first = ((uint64_t)at + OTA_SECTOR - 1) / OTA_SECTOR * OTA_SECTOR;
    uint64_t last = (end + OTA_SECTOR - 1) / OTA_SECTOR * OTA_SECTOR;
    if (last > p->size) {
        return ESP_ERR_INVALID_SIZE;
    }
    if (last > first) {
        err = esp_partition_erase_range(p, (uint32_t)first, (uint32_t)(last - first));
    }
    if (err == ESP_OK && at == 0 && *(const uint8_t *)bytes != ESP_IMAGE_HEADER_MAGIC) {
        err = ESP_ERR_IMAGE_INVALID;
    }
    if (err == ESP_OK) {
        err = ota_flash_write(p, at, bytes, len);
    }
    return err == ESP_OK ? ota_flash_equals(p, at, bytes, len) : err;
}

esp_err_t ota_slots_unboot(const ota_slots_t *s, const esp_partition_t *slot)
{
    esp_err_t err = ota_slots_check_target(s, slot);
    return err == ESP_OK ? ota_flash_erase_sector(slot, 0) : err;
}

esp_err_t ota_slots_blank(const ota_slots_t *s, uint32_t at)
{
    bool blank;
    esp_err_t err = ota_slots_check_target(s, s->target);
    if (err == ESP_OK) {
        err = ota_flash_is_blank(s->target, at, OTA_SECTOR, &blank);
    }
    return err == ESP_OK && !blank ? ota_flash_erase_sector(s->target, at) : err;
}
