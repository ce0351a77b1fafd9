// Boot records, the notes behind them and the tombstones in slots: what ota_slots.h is made of. The formats are those of
// Go's esp/otadata, agent/note.go and otaops/tombstone.go. Nothing outside ota_slots*.c, ota_records.c, ota_note.c,
// ota_tombstone.c and ota_settle.c includes this.
//
// With flash encryption a byte cannot be programmed a second time, and writes are whole blocks of 16 bytes. A record is
// then rewritten as ESP-IDF rewrites it (erase, one write), and the flags of notes and tombstones stand in blocks of their own.
#pragma once

#include <string.h>

#include "esp_flash_partitions.h"
#include "ota_slots.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_SECTOR 4096u
#define OTA_CIPHER_BLOCK 16u
#define OTA_RECORDS 2
#define OTA_NO_SLOT (-1)

typedef esp_ota_select_entry_t ota_record_t;

// Flash, in the forms that all parts use. Only equals reads back.
esp_err_t ota_flash_equals(const esp_partition_t *p, uint32_t at, const void *want, uint32_t len);   // ESP_ERR_FLASH_OP_FAIL: no
esp_err_t ota_flash_write(const esp_partition_t *p, uint32_t at, const void *bytes, uint32_t len);   // pads where encrypted
esp_err_t ota_flash_erase_sector(const esp_partition_t *p, uint32_t at);
esp_err_t ota_flash_is_blank(const esp_partition_t *p, uint32_t at, uint32_t len, bool *blank);
// A flag that is set once, without an erase. One byte, or a block of its own where encrypted; set means all zero.
esp_err_t ota_flash_set_flag(const esp_partition_t *p, uint32_t at);
esp_err_t ota_flash_read_flag(const esp_partition_t *p, uint32_t at, bool *set);

// The digest of an image file that is not known.
static inline bool ota_digest_unknown(const uint8_t digest[32])
{
    const uint8_t zero[32] = { 0 };
    return memcmp(digest, zero, sizeof zero) == 0;
}

bool ota_slots_same(const esp_partition_t *a, const esp_partition_t *b);
bool ota_slots_is_numbered(const esp_partition_t *p);           // ota_0 to ota_15
// Whether p may be written to: a numbered slot or no application, and not the running one.
esp_err_t ota_slots_check_target(const ota_slots_t *s, const esp_partition_t *p);
// SHA-256 of the file that an image in p was published as.
esp_err_t ota_slots_file_digest(const esp_partition_t *p, uint8_t digest[32]);
// The secure version of what is in p. ESP_ERR_NOT_FOUND without a description.
esp_err_t ota_slots_secure_version(const esp_partition_t *p, uint32_t *version);
esp_err_t ota_slots_unprove(const ota_slots_t *s);              // makes images unbootable that no record vouches for

esp_err_t ota_records_read(const ota_slots_t *s, ota_record_t rec[OTA_RECORDS]);  // ESP_ERR_NOT_FOUND without otadata
uint32_t ota_record_crc(uint32_t seq);
bool ota_record_crc_ok(const ota_record_t *r);
bool ota_record_erased(const ota_record_t *r);
bool ota_record_usable(const ota_record_t *r);                  // may boot: not given up, and the CRC fits
// Whether the image of the record has still to prove itself. A state that ESP-IDF has no name for is a record whose erase the
// power cut short: the bootloader takes it for one that needs no trial, but its image has passed none.
bool ota_record_on_trial(const ota_record_t *r);
int ota_record_slot(const ota_slots_t *s, const ota_record_t *r);   // that its number means, usable or not; OTA_NO_SLOT
bool ota_record_names(const ota_slots_t *s, const ota_record_t *r, int slot);     // usable, and means slot
int ota_records_active(const ota_record_t rec[OTA_RECORDS]);    // index, -1 where neither is usable
// What the records ask for, not what the bootloader may fall back to; NULL where they lead to nothing.
esp_err_t ota_records_asked(const ota_slots_t *s, const esp_partition_t **out);
// Gives the running slot its record back where another one is active, see otaops.RepairRecords.
esp_err_t ota_records_repair(const ota_slots_t *s, bool *changed);
// Which records do not read the same each time, and what makes them, see otaops.SteadyRecords.
esp_err_t ota_records_unsteady(const ota_slots_t *s, bool unsteady[OTA_RECORDS]); // ESP_ERR_NOT_FOUND without otadata
esp_err_t ota_records_steady(const ota_slots_t *s, bool *changed);
// The smallest sequence number of at least least that means slot. False where the numbers are used up.
bool ota_record_seq_for(const ota_slots_t *s, int slot, uint64_t least, uint32_t *seq);
// Writes rec over old so that no power cut can make anything else of the two: old stops counting before its sector is
// erased, and rec counts only once its CRC, written last, is complete.
esp_err_t ota_record_replace(const ota_slots_t *s, int i, const ota_record_t *old, const ota_record_t *rec);
// As ESP-IDF rewrites a record: between its two operations there is none.
esp_err_t ota_record_write_over(const ota_slots_t *s, int i, const ota_record_t *rec);
// Makes a record with a good CRC one without, in one operation that a power cut cannot make anything else of.
esp_err_t ota_record_silence(const ota_slots_t *s, int i, const ota_record_t *r);

typedef struct {
    uint8_t digest[32];
    ota_reason_t cause;
    bool told, voided;
} ota_note_t;

typedef enum { OTA_NOTE_TOLD, OTA_NOTE_VOID } ota_note_flag_t;

esp_err_t ota_note_read(const ota_slots_t *s, int record, ota_note_t *out, bool *there);
// There is room for one note until the record is rewritten: another one is ESP_ERR_INVALID_STATE, the same one no write.
esp_err_t ota_note_write(const ota_slots_t *s, int record, const uint8_t digest[32], ota_reason_t cause);
esp_err_t ota_note_mark(const ota_slots_t *s, int record, ota_note_flag_t flag);

#define OTA_MAX_CAUSE 32

typedef struct {
    uint8_t digest[32];
    char cause[OTA_MAX_CAUSE + 1];
    bool acked;
} ota_tombstone_t;

esp_err_t ota_tombstone_read(const esp_partition_t *slot, ota_tombstone_t *out, bool *there);
// A slot that has one with the same digest, or any where digest is zero, keeps it and its cause.
esp_err_t ota_tombstone_write(const ota_slots_t *s, const esp_partition_t *slot, const uint8_t digest[32], const char *cause);
esp_err_t ota_tombstone_ack(const ota_slots_t *s, const esp_partition_t *slot);

#ifdef __cplusplus
}
#endif
