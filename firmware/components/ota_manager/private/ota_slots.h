// What running firmware writes to the boot records and to the slot beside it, so that no power cut anywhere loses a board.
// The same bytes and the same order as Go's device/internal/otaops (the safer half) and agent/boot.go, agent/note.go;
// docs/adr 8, 10 and 11 say why. The flash is the only memory: every function reads it anew, nothing is cached.
//
// For one task at a time. It goes through esp_partition_* and esp_image_verify only. With flash encryption a byte takes one
// write: records are then rewritten as ESP-IDF rewrites them, and the flags of notes and tombstones are blocks of their own.
// No function takes more than 1.5 KiB of stack, besides esp_image_verify's. Functions return ESP_OK, or the error of the flash that stopped them; ESP_ERR_NOT_FOUND where there is no
// otadata partition.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "esp_err.h"
#include "esp_partition.h"
#include "ota_keys.h"
#include "ota_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_MAX_SLOTS 16

typedef struct {
    const esp_partition_t *running;        // esp_ota_get_running_partition
    const esp_partition_t *otadata;        // NULL: none of at least 8 KiB
    const esp_partition_t *slot[OTA_MAX_SLOTS];   // consecutive ota_0, ota_1, ... until the first that is missing
    int slots;
    int running_slot;                      // index into slot, -1 for factory or test
    const esp_partition_t *target;         // where an update goes; NULL: nowhere, no_target says why
    char no_target[96];
    bool rollback;                         // this firmware was built with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE
    bool anti_rollback;
    bool encrypted;                        // flash encryption: records cannot be programmed in place, ESP-IDF's forms are used
} ota_slots_t;

// Finds partitions. Never fails but for a running partition that is no application.
esp_err_t ota_slots_open(ota_slots_t *s);

// What a boot found out and put right.
typedef struct {
    bool trial;                            // this boot is one
    bool manual;                           // ... of a rollback that an operator ordered
    bool restart;                          // an operator's rollback was finished now: restart
    bool told_pending;                     // a rollback is to be told:
    ota_reason_t cause;                    //   why
    uint8_t failed[32];                    //   digest of the image file that failed or was left; zero: unknown
    const esp_partition_t *told_slot;      //   with a tombstone there, or
    int told_record;                       //   with a note behind this record (told_noted)
    bool told_noted;
    uint8_t buried[OTA_MAX_SLOTS][32];     // digests that are not installed again
    int buried_count;
    uint8_t held[32];                      // an operator left this image: only an order given now brings it back
    bool is_held;
    int leaving;                           // the record of the running slot with an operator's rollback noted and not done; -1
} ota_boot_story_t;

// Settles what the last life left in flash, in the order of agent.repair: fallen back, failed slots, finish rollback,
// unproven slots, graves. reset is this boot's reset reason as a word of statuses ("poweron", "panic", ...). Only an error of
// the flash that makes going on senseless is returned; others are logged, a board that cannot write a tombstone still has a
// battery to watch.
esp_err_t ota_slots_settle(const ota_slots_t *s, const char *reset, ota_boot_story_t *out);

// Marks the story as told (the broker acknowledged it): the tombstone's or the note's byte.
esp_err_t ota_slots_told(const ota_slots_t *s, const ota_boot_story_t *story);

// Before the first byte of an image goes into target: no record may vouch for it any more (otaops.Disown and what
// esp_ota_begin erases). Refuses with ESP_ERR_INVALID_STATE while this boot is a trial.
esp_err_t ota_slots_begin(const ota_slots_t *s);
// Erases the sectors that bytes [at, at+len) begin, programs, reads back. at is from the start of target; bytes are whole
// sectors but for the last piece. ESP_ERR_INVALID_SIZE beyond the slot, ESP_ERR_FLASH_OP_FAIL where it reads back differently.
esp_err_t ota_slots_write(const ota_slots_t *s, uint32_t at, const void *bytes, uint32_t len);
// SHA-256 of bytes [at, at+len) of a partition, read from flash through a 1 KiB buffer.
esp_err_t ota_slots_digest(const esp_partition_t *p, uint32_t at, uint32_t len, uint8_t digest[32]);
// Erases the first sector of target, or the sector at offset at unless it is erased already.
esp_err_t ota_slots_unboot(const ota_slots_t *s, const esp_partition_t *slot);
esp_err_t ota_slots_blank(const ota_slots_t *s, uint32_t at);

typedef struct {
    uint32_t image_len;      // as esp_image_verify says
    uint32_t file_len;       // of the file it was published as: with the signature sector where there is one (appimage.FileLength)
    bool has_desc;
    char version[33], project[33];   // printable ASCII, others as '?'
    uint32_t secure_version;
    uint16_t chip_id;
} ota_image_facts_t;
// Verifies the image in a partition as the bootloader would, and reads its description. ESP_ERR_IMAGE_INVALID where it is none.
esp_err_t ota_slots_verify(const esp_partition_t *p, ota_image_facts_t *out);

// The set of trusted keys that the verified image in a partition carries; empty where it carries none.
// ESP_ERR_IMAGE_INVALID where it is not as it has to be.
esp_err_t ota_slots_builtin(const esp_partition_t *p, ota_trust_t *out);

// Makes slot the one that boots next (otaops.Switch), then holds that against the records.
esp_err_t ota_slots_switch(const ota_slots_t *s, const esp_partition_t *slot);
// Confirms the running image (VALID), then raises the security floor where anti-rollback is built in.
esp_err_t ota_slots_confirm(const ota_slots_t *s);
// Whether giving the running image up leads to another that boots.
esp_err_t ota_slots_rollback_possible(const ota_slots_t *s, bool *possible);
// Gives the running image up: its record stops counting in one program, then INVALID, then the note with cause and digest.
esp_err_t ota_slots_give_up(const ota_slots_t *s, ota_reason_t cause, const uint8_t running_digest[32]);
// An operator's rollback: the note first, then the switch. slot is what ota_slots_rollback_target found.
esp_err_t ota_slots_rollback_target(const ota_slots_t *s, const char *version, uint32_t floor, const esp_partition_t **slot, ota_refusal_t *why);
esp_err_t ota_slots_go_back(const ota_slots_t *s, const esp_partition_t *slot, const uint8_t running_digest[32]);

#ifdef __cplusplus
}
#endif
