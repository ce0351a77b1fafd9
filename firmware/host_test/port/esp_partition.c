#include "esp_partition.h"

#include <string.h>

#include "esp_app_format.h"
#include "esp_efuse.h"
#include "esp_flash_partitions.h"
#include "esp_log.h"
#include "esp_ota_ops.h"
#include "host_board.h"

#define CIPHER_BLOCK 16u

static esp_partition_t table[ESP_PARTITION_TABLE_MAX_ENTRIES];
static size_t rows;
static bool loaded;

// The table as the bootloader has accepted it.
static void load(void)
{
    for (; !loaded && rows < ESP_PARTITION_TABLE_MAX_ENTRIES; rows++) {
        esp_partition_info_t row;
        memcpy(&row, host_flash_bytes() + ESP_PARTITION_TABLE_OFFSET + rows * sizeof row, sizeof row);
        if (row.magic != ESP_PARTITION_MAGIC || row.pos.offset > host_flash_size() ||
            row.pos.size > host_flash_size() - row.pos.offset) {
            break;
        }
        esp_partition_t *p = &table[rows];
        *p = (esp_partition_t){ .type = row.type, .subtype = row.subtype, .address = row.pos.offset, .size = row.pos.size,
                                .erase_size = HOST_SECTOR, .readonly = (row.flags & 2) != 0 };
        p->encrypted = host_board.encrypted && (p->type == ESP_PARTITION_TYPE_APP || p->subtype == ESP_PARTITION_SUBTYPE_DATA_OTA);
        memcpy(p->label, row.label, sizeof row.label);
    }
    loaded = true;
}

void host_partitions_forget(void)
{
    rows = 0;
    loaded = false;
}

const esp_partition_t *esp_partition_find_first(esp_partition_type_t type, esp_partition_subtype_t subtype, const char *label)
{
    load();
    for (size_t i = 0; i < rows; i++) {
        const esp_partition_t *p = &table[i];
        if ((type == ESP_PARTITION_TYPE_ANY || type == p->type) &&
            (subtype == ESP_PARTITION_SUBTYPE_ANY || subtype == p->subtype) &&
            (label == NULL || strcmp(label, p->label) == 0)) {
            return p;
        }
    }
    return NULL;
}

static esp_err_t within(const esp_partition_t *p, size_t offset, size_t size)
{
    if (offset > p->size) {
        return ESP_ERR_INVALID_ARG;
    }
    return size > p->size - offset ? ESP_ERR_INVALID_SIZE : ESP_OK;
}

esp_err_t esp_partition_read_raw(const esp_partition_t *partition, size_t src_offset, void *dst, size_t size)
{
    esp_err_t err = within(partition, src_offset, size);
    if (err == ESP_OK) {
        host_flash_read(partition->address + (uint32_t)src_offset, dst, size);
    }
    return err;
}

esp_err_t esp_partition_read(const esp_partition_t *partition, size_t src_offset, void *dst, size_t size)
{
    esp_err_t err = esp_partition_read_raw(partition, src_offset, dst, size);
    for (size_t i = 0; err == ESP_OK && partition->encrypted && i < size; i++) {
        ((uint8_t *)dst)[i] ^= host_flash_key(partition->address + (uint32_t)(src_offset + i));
    }
    return err;
}

// Whole blocks, each once: programmed a second time a block would be neither the old nor the new one.
static esp_err_t write_encrypted(uint32_t at, const uint8_t *from, size_t size)
{
    if (at % CIPHER_BLOCK != 0 || size % CIPHER_BLOCK != 0) {
        return ESP_ERR_INVALID_ARG;
    }
    for (; size > 0; size -= CIPHER_BLOCK, at += CIPHER_BLOCK, from += CIPHER_BLOCK) {
        uint8_t block[CIPHER_BLOCK];
        for (uint32_t i = 0; i < CIPHER_BLOCK; i++) {
            if (host_flash_bytes()[at + i] != 0xFF) {
                host_log('E', "esp_partition", "an encrypted block is written twice, at 0x%x", (unsigned)at);
                abort();
            }
            block[i] = from[i] ^ host_flash_key(at + i);
        }
        host_flash_program(at, block, sizeof block);
    }
    return ESP_OK;
}

esp_err_t esp_partition_write(const esp_partition_t *partition, size_t dst_offset, const void *src, size_t size)
{
    uint32_t at = partition->address + (uint32_t)dst_offset;
    esp_err_t err = partition->readonly ? ESP_ERR_NOT_ALLOWED : within(partition, dst_offset, size);
    if (err == ESP_OK && partition->encrypted) {
        return write_encrypted(at, src, size);
    }
    if (err == ESP_OK) {
        host_flash_program(at, src, size);
    }
    return err;
}

esp_err_t esp_partition_erase_range(const esp_partition_t *partition, size_t offset, size_t size)
{
    esp_err_t err = partition->readonly ? ESP_ERR_NOT_ALLOWED : within(partition, offset, size);
    if (err == ESP_OK && size % HOST_SECTOR != 0) {
        err = ESP_ERR_INVALID_SIZE;
    }
    if (err == ESP_OK && offset % HOST_SECTOR != 0) {
        err = ESP_ERR_INVALID_ARG;
    }
    if (err == ESP_OK) {
        host_flash_erase(partition->address + (uint32_t)offset, size);
    }
    return err;
}

const esp_partition_t *esp_ota_get_running_partition(void)
{
    const esp_partition_t *running = NULL;
    load();
    for (size_t i = 0; i < rows; i++) {
        if (table[i].type == ESP_PARTITION_TYPE_APP && table[i].subtype == host_board.running) {
            running = &table[i]; // of several the last: the bootloader's count
        }
    }
    return running;
}

esp_err_t esp_ota_get_partition_description(const esp_partition_t *partition, esp_app_desc_t *app_desc)
{
    if (partition == NULL || app_desc == NULL) {
        return ESP_ERR_INVALID_ARG;
    }
    if (partition->type != ESP_PARTITION_TYPE_APP) {
        return ESP_ERR_NOT_SUPPORTED;
    }
    size_t at = sizeof(esp_image_header_t) + sizeof(esp_image_segment_header_t);
    esp_err_t err = esp_partition_read(partition, at, app_desc, sizeof *app_desc);
    return err == ESP_OK && app_desc->magic_word != ESP_APP_DESC_MAGIC_WORD ? ESP_ERR_NOT_FOUND : err;
}

const esp_app_desc_t *esp_app_get_description(void)
{
    static esp_app_desc_t own;
    if (own.magic_word == 0 && esp_ota_get_partition_description(esp_ota_get_running_partition(), &own) != ESP_OK) {
        memset(&own, 0, sizeof own);
    }
    return &own;
}

uint32_t esp_efuse_read_secure_version(void)
{
    return host_board.efuse;
}

bool esp_efuse_check_secure_version(uint32_t secure_version)
{
    return secure_version >= host_board.efuse;
}

esp_err_t esp_efuse_update_secure_version(uint32_t secure_version)
{
    if (secure_version > host_chip_secure_bits(host_board.chip)) {
        return ESP_ERR_INVALID_ARG;
    }
    if (secure_version < host_board.efuse) {
        return ESP_FAIL;
    }
    host_board.efuse = secure_version;
    return ESP_OK;
}
