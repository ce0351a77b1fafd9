// esp_image_verify for any chip, as Go's esp/appimage verifies: structure, checksum and appended hash, in the order of
// ESP-IDF's image_load, which decides the error that a doubly wrong image gets.
#include "esp_image_format.h"

#include <string.h>

#include "esp_app_desc.h"
#include "host_board.h"
#include "mbedtls/md.h"

#define MAX_PARTITION (16u << 20)
#define MAX_SEGMENT (16u << 20)   // exclusive
#define PAGE_64K (64u << 10)

typedef struct {
    uint32_t low, high;
} range_t;

// Windows that the loader maps instead of copying (soc.h of each chip), and whether the MMU page size comes from the image.
static const struct {
    esp_chip_id_t id;
    range_t drom, irom;
    bool any_page, by_pages;
} windows[] = {
    { ESP_CHIP_ID_ESP32, { 0x3F400000, 0x3F800000 }, { 0x400D0000, 0x40400000 }, false, false },
    { ESP_CHIP_ID_ESP32S2, { 0x3F000000, 0x3FF80000 }, { 0x40080000, 0x40800000 }, false, false },
    { ESP_CHIP_ID_ESP32C3, { 0x3C000000, 0x3C800000 }, { 0x42000000, 0x42800000 }, false, false },
    { ESP_CHIP_ID_ESP32S3, { 0x3C000000, 0x3E000000 }, { 0x42000000, 0x44000000 }, false, false },
    { ESP_CHIP_ID_ESP32C2, { 0x3C000000, 0x3C400000 }, { 0x42000000, 0x42400000 }, true, false },
    { ESP_CHIP_ID_ESP32C6, { 0, 0 }, { 0x42000000, 0x43000000 }, true, true },
    { ESP_CHIP_ID_ESP32H2, { 0, 0 }, { 0x42000000, 0x43000000 }, true, true },
    { ESP_CHIP_ID_ESP32P4, { 0, 0 }, { 0x40000000, 0x44000000 }, false, false },
    { ESP_CHIP_ID_ESP32C61, { 0, 0 }, { 0x42000000, 0x44000000 }, true, false },
    { ESP_CHIP_ID_ESP32C5, { 0, 0 }, { 0x42000000, 0x44000000 }, false, false },
    { ESP_CHIP_ID_ESP32H21, { 0, 0 }, { 0x42000000, 0x43000000 }, false, false },
    { ESP_CHIP_ID_ESP32H4, { 0, 0 }, { 0x42000000, 0x44000000 }, false, false },
};

typedef struct {
    const uint8_t *bytes;      // of the partition
    uint32_t size, address;
    uint64_t page;
    uint8_t checksum;
    esp_image_metadata_t *out;
} load_t;

static bool in(range_t r, uint32_t address)
{
    return address >= r.low && address < r.high;
}

static bool mapped(const load_t *l, uint32_t address)
{
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
        if (windows[i].id != l->out->image.chip_id) {
            continue;
        }
        if (windows[i].by_pages) {
            return address >= windows[i].irom.low && address < windows[i].irom.low + (l->page << 8);
        }
        return in(windows[i].drom, address) || in(windows[i].irom, address);
    }
    return false;
}

static bool any_page(esp_chip_id_t id)
{
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
        if (windows[i].id == id) {
            return windows[i].any_page;
        }
    }
    return false;
}

static bool limit_set(uint16_t revision)
{
    return revision != 0 && revision != 65535;
}

static esp_err_t check_header(const load_t *l)
{
    const esp_image_header_t *h = &l->out->image;
    if (h->magic != ESP_IMAGE_HEADER_MAGIC) {
        return ESP_ERR_IMAGE_INVALID;
    }
    if (h->chip_id != host_board.chip || host_board.revision < h->min_chip_rev_full ||
        (limit_set(h->max_chip_rev_full) && host_board.revision > h->max_chip_rev_full)) {
        return ESP_FAIL;
    }
    return h->segment_count > ESP_IMAGE_MAX_SEGMENTS ? ESP_ERR_IMAGE_INVALID : ESP_OK;
}

// The description, however short the first segment is: flash behind the partition's end reads as erased here.
static esp_app_desc_t description(const load_t *l, uint64_t at)
{
    esp_app_desc_t desc;
    memset(&desc, 0xFF, sizeof desc);
    if (at < l->size) {
        uint64_t n = l->size - at;
        memcpy(&desc, l->bytes + at, n < sizeof desc ? (size_t)n : sizeof desc);
    }
    return desc;
}

static esp_err_t check_segment(load_t *l, int i, const esp_image_segment_header_t *seg, uint64_t at)
{
    if (seg->data_len % 4 != 0 || seg->data_len >= MAX_SEGMENT) {
        return ESP_ERR_IMAGE_INVALID;
    }
    esp_app_desc_t desc = description(l, at);
    if (i == 0 && any_page(l->out->image.chip_id)) {
        if (desc.magic_word != ESP_APP_DESC_MAGIC_WORD) {
            return ESP_FAIL;
        }
        if (desc.mmu_page_size > 31) {
            return ESP_ERR_IMAGE_INVALID;
        }
        l->page = desc.mmu_page_size > 0 ? UINT64_C(1) << desc.mmu_page_size : PAGE_64K;
    }
    if (mapped(l, seg->load_addr) && (l->address + at) % l->page != seg->load_addr % l->page) {
        return ESP_ERR_IMAGE_INVALID;
    }
    // The board's eFuse block revision is 0, so only a limit from below counts. The ESP32 does not read it.
    if (i == 0 && l->out->image.chip_id != ESP_CHIP_ID_ESP32 && limit_set(desc.min_efuse_blk_rev_full)) {
        return ESP_FAIL;
    }
    return at + seg->data_len > l->size ? ESP_ERR_IMAGE_INVALID : ESP_OK;
}

static esp_err_t load_segments(load_t *l, uint64_t *end)
{
    uint64_t at = sizeof(esp_image_header_t);
    for (int i = 0; i < l->out->image.segment_count; i++) {
        esp_image_segment_header_t *seg = &l->out->segments[i];
        if (at + sizeof *seg > l->size) {
            return ESP_ERR_IMAGE_INVALID;
        }
        memcpy(seg, l->bytes + at, sizeof *seg);
        at += sizeof *seg;
        esp_err_t err = check_segment(l, i, seg, at);
        if (err != ESP_OK) {
            return err;
        }
        l->out->segment_data[i] = (uint32_t)(l->address + at);
        for (uint32_t n = 0; n < seg->data_len; n++) {
            l->checksum ^= l->bytes[at + n];
        }
        at += seg->data_len;
    }
    *end = at;
    return ESP_OK;
}

static esp_err_t check_end(const load_t *l, uint64_t end)
{
    // One byte for the checksum, then up to the next multiple of 16; the checksum is the last byte of that block.
    uint64_t hashed = (end + 1 + 15) & ~UINT64_C(15);
    bool appended = l->out->image.hash_appended != 0;
    uint8_t hash[32];
    if (hashed > l->size || l->bytes[hashed - 1] != l->checksum || (appended && hashed + sizeof hash > l->size)) {
        return ESP_ERR_IMAGE_INVALID;
    }
    if (mbedtls_md(mbedtls_md_info_from_type(MBEDTLS_MD_SHA256), l->bytes, (size_t)hashed, hash) != 0) {
        return ESP_ERR_NO_MEM;
    }
    if (appended && memcmp(l->bytes + hashed, hash, sizeof hash) != 0) {
        return ESP_ERR_IMAGE_INVALID;
    }
    memcpy(l->out->image_digest, hash, sizeof hash);
    l->out->image_len = (uint32_t)(hashed + (appended ? sizeof hash : 0));
    return ESP_OK;
}

// The partition as an application reads it. A copy where it is encrypted, valid until the next call.
static const uint8_t *decrypted(const esp_partition_pos_t *part)
{
    static uint8_t plain[MAX_PARTITION];
    if (!host_board.encrypted) {
        return host_flash_bytes() + part->offset;
    }
    for (uint32_t i = 0; i < part->size; i++) {
        plain[i] = host_flash_bytes()[part->offset + i] ^ host_flash_key(part->offset + i);
    }
    return plain;
}

esp_err_t esp_image_verify(esp_image_load_mode_t mode, const esp_partition_pos_t *part, esp_image_metadata_t *data)
{
    (void)mode; // nothing is printed here
    if (part == NULL || data == NULL || part->size > MAX_PARTITION) {
        return ESP_ERR_INVALID_ARG;
    }
    load_t l = { .bytes = decrypted(part), .size = part->size, .address = part->offset, .page = PAGE_64K,
                 .checksum = 0xEF, .out = data };
    uint64_t end = 0;
    memset(data, 0, sizeof *data);
    data->start_addr = part->offset;
    if (part->size < sizeof data->image) {
        return ESP_ERR_IMAGE_INVALID;
    }
    memcpy(&data->image, l.bytes, sizeof data->image);
    esp_err_t err = check_header(&l);
    if (err == ESP_OK) {
        err = load_segments(&l, &end);
    }
    if (err == ESP_OK) {
        err = check_end(&l, end);
    }
    if (err != ESP_OK) {
        memset(data, 0, sizeof *data);
    }
    return err;
}
