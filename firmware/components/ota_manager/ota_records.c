#include "ota_records.h"

#include <stddef.h>
#include <string.h>

#include "esp_rom_crc.h"

#define SEQ_ERASED UINT32_MAX
#define CRC_AT ((uint32_t)offsetof(ota_record_t, crc))

// ---- what a record says (esp_flash_partitions.h, bootloader_common_loader.c)

uint32_t ota_record_crc(uint32_t seq)
{
    return esp_rom_crc32_le(UINT32_MAX, (const uint8_t *)&seq, sizeof seq);
}

bool ota_record_crc_ok(const ota_record_t *r)
{
    return r->crc == ota_record_crc(r->ota_seq);
}

bool ota_record_erased(const ota_record_t *r)
{
    return r->ota_seq == SEQ_ERASED;
}

bool ota_record_usable(const ota_record_t *r)
{
    return !ota_record_erased(r) && r->ota_state != ESP_OTA_IMG_INVALID && r->ota_state != ESP_OTA_IMG_ABORTED &&
           ota_record_crc_ok(r);
}

int ota_record_slot(const ota_slots_t *s, const ota_record_t *r)
{
    // In 32 bits, so that the number 0 is legal and means what the bootloader takes it for.
    return s->slots == 0 ? OTA_NO_SLOT : (int)((r->ota_seq - 1u) % (uint32_t)s->slots);
}

bool ota_record_names(const ota_slots_t *s, const ota_record_t *r, int slot)
{
    return ota_record_usable(r) && ota_record_slot(s, r) == slot;
}

int ota_records_active(const ota_record_t rec[OTA_RECORDS])
{
    bool a = ota_record_usable(&rec[0]), b = ota_record_usable(&rec[1]);
    if (a && b) {
        return rec[1].ota_seq > rec[0].ota_seq ? 1 : 0;
    }
    return a ? 0 : b ? 1 : -1;
}

bool ota_record_seq_for(const ota_slots_t *s, int slot, uint64_t least, uint32_t *out)
{
    uint64_t n = (uint64_t)s->slots, seq = (uint64_t)(slot + 1) % n;
    if (least > seq) {
        seq += (least - seq + n - 1) / n * n;
    }
    *out = (uint32_t)seq;
    return seq < SEQ_ERASED;
}

// ---- reading and writing records

static uint32_t sector_of(int i)
{
    return (uint32_t)i * OTA_SECTOR;
}

esp_err_t ota_records_read(const ota_slots_t *s, ota_record_t rec[OTA_RECORDS])
{
    esp_err_t err = s->otadata == NULL ? ESP_ERR_NOT_FOUND : ESP_OK;
    for (int i = 0; err == ESP_OK && i < OTA_RECORDS; i++) {
        err = esp_partition_read(s->otadata, sector_of(i), &rec[i], sizeof rec[i]);
    }
    return err;
}

esp_err_t ota_record_write_over(const ota_slots_t *s, int i, const ota_record_t *rec)
{
    esp_err_t err = ota_flash_erase_sector(s->otadata, sector_of(i));
    if (err == ESP_OK) {
        err = esp_partition_write(s->otadata, sector_of(i), rec, sizeof *rec);
    }
    return err == ESP_OK ? ota_flash_equals(s->otadata, sector_of(i), rec, sizeof *rec) : err;
}

esp_err_t ota_record_silence(const ota_slots_t *s, int i, const ota_record_t *r)
{
    const uint32_t zero = 0;
    if (s->otadata->encrypted) {
        return ota_flash_erase_sector(s->otadata, sector_of(i));
    }
    // Clearing any bit of the CRC, or of a number whose CRC is 0, breaks the match: cut, it is done or not done.
    uint32_t at = sector_of(i) + (r->crc != 0 ? CRC_AT : 0);
    esp_err_t err = esp_partition_write(s->otadata, at, &zero, sizeof zero);
    return err == ESP_OK ? ota_flash_equals(s->otadata, at, &zero, sizeof zero) : err;
}

esp_err_t ota_record_replace(const ota_slots_t *s, int i, const ota_record_t *old, const ota_record_t *rec)
{
    if (s->otadata->encrypted) {
        return ota_record_write_over(s, i, rec);
    }
    // Silenced before the erase: one that stops early can turn a record that was given up into one that boots.
    esp_err_t err = ota_record_crc_ok(old) ? ota_record_silence(s, i, old) : ESP_OK;
    if (err == ESP_OK) {
        err = ota_flash_erase_sector(s->otadata, sector_of(i));
    }
    if (err == ESP_OK) {
        err = esp_partition_write(s->otadata, sector_of(i), rec, CRC_AT);
    }
    if (err == ESP_OK) {
        err = esp_partition_write(s->otadata, sector_of(i) + CRC_AT, &rec->crc, sizeof rec->crc);
    }
    return err == ESP_OK ? ota_flash_equals(s->otadata, sector_of(i), rec, sizeof *rec) : err;
}

// ---- what the records ask for

// The application that boots where no record counts, among those that esp_ota_get_boot_partition knows.
static const esp_partition_t *default_app(void)
{
    const esp_partition_t *p =
        esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_APP_FACTORY, NULL);
    for (int i = 0; p == NULL && i < OTA_MAX_SLOTS; i++) {
        p = esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_OTA(i), NULL);
    }
    return p != NULL ? p : esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_APP_TEST, NULL);
}

esp_err_t ota_records_asked(const ota_slots_t *s, const esp_partition_t **out)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    *out = NULL;
    if (err != ESP_OK) {
        return err == ESP_ERR_NOT_FOUND ? ESP_OK : err;
    }
    int active = ota_records_active(rec);
    *out = active >= 0 && s->slots > 0 ? s->slot[ota_record_slot(s, &rec[active])] : default_app();
    return ESP_OK;
}

static ota_record_t new_record(uint32_t seq, uint32_t state)
{
    ota_record_t r = { .ota_seq = seq, .ota_state = state, .crc = ota_record_crc(seq) };
    memset(r.seq_label, 0xFF, sizeof r.seq_label);
    return r;
}

// Writes, to sector i, a VALID record of the running slot that beats the record in the other sector.
static esp_err_t take_over(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS], int i)
{
    const ota_record_t *other = &rec[1 - i];
    uint32_t seq = (uint32_t)s->running_slot + 1, higher;
    bool beaten = true;
    if (ota_record_crc_ok(other) && !ota_record_erased(other)) {
        // Also above a record that does not count now: one flipped bit of its state, which no CRC covers, could make it
        // count again.
        beaten = ota_record_seq_for(s, s->running_slot, other->ota_seq + UINT64_C(1), &higher);
        seq = beaten ? higher : seq;
    }
    const ota_record_t mine = new_record(seq, ESP_OTA_IMG_VALID);
    esp_err_t err = ota_record_replace(s, i, &rec[i], &mine);
    // The numbers are used up: the other record goes now that there is one to take its place.
    return err == ESP_OK && !beaten ? ota_record_silence(s, 1 - i, other) : err;
}

// The sector to write when no record counts: one that does not tell of a failed slot, else the older one.
static int least_useful(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS])
{
    bool foreign[OTA_RECORDS];
    for (int i = 0; i < OTA_RECORDS; i++) {
        foreign[i] = ota_record_crc_ok(&rec[i]) && !ota_record_erased(&rec[i]) && ota_record_slot(s, &rec[i]) != s->running_slot;
    }
    return foreign[0] && (!foreign[1] || rec[1].ota_seq < rec[0].ota_seq) ? 1 : 0;
}

esp_err_t ota_records_repair(const ota_slots_t *s, bool *changed)
{
    ota_record_t rec[OTA_RECORDS];
    *changed = false;
    if (!ota_slots_is_numbered(s->running)) {
        return ESP_OK;
    }
    if (s->running_slot < 0) {
        return ESP_ERR_NOT_SUPPORTED; // behind a gap: no record can mean it
    }
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err;
    }
    int active = ota_records_active(rec);
    if (active >= 0 && ota_record_names(s, &rec[active], s->running_slot)) {
        return ESP_OK; // whatever its state: a trial stays a trial
    }
    *changed = true;
    if (active < 0) {
        return take_over(s, rec, least_useful(s, rec));
    }
    if (!ota_record_names(s, &rec[1 - active], s->running_slot)) {
        // The active record decides until the new one is complete, as it did before.
        return take_over(s, rec, 1 - active);
    }
    // The good record is there and only loses the vote. Silencing the other one is a single operation, so there is no
    // moment without a record; erasing first could bring back a record that was given up.
    err = ota_record_silence(s, active, &rec[active]);
    return err == ESP_OK && rec[1 - active].ota_state != ESP_OTA_IMG_VALID ? take_over(s, rec, active) : err;
}
