// What a boot finds out from flash, and what it puts right there (Go: agent/boot.go).
#include <string.h>

#include "esp_image_format.h"
#include "esp_log.h"
#include "ota_records.h"

static const char TAG[] = "ota_settle";

// Whether what is in p is known to be no image. Flash that was not read and memory that was not to be had say nothing about it.
static bool broken(const esp_partition_t *p)
{
    ota_image_facts_t facts;
    return ota_slots_verify(p, &facts) == ESP_ERR_IMAGE_INVALID;
}

typedef struct {
    const ota_slots_t *slots;
    const char *reset;
    ota_boot_story_t *story;
} settle_t;

static bool verifies(const esp_partition_t *p)
{
    ota_image_facts_t facts;
    return ota_slots_verify(p, &facts) == ESP_OK;
}

// Mends the records after the bootloader passed over a damaged slot without a word: they still name that slot, and an
// update begun now would overwrite the record of the slot that runs.
static esp_err_t fallen_back(const settle_t *st)
{
    static const uint8_t unknown[32];
    const ota_slots_t *s = st->slots;
    const esp_partition_t *asked;
    bool changed;
    esp_err_t err = ota_records_asked(s, &asked);
    if (err != ESP_OK) {
        return err;
    }
    if (asked != NULL && !ota_slots_same(asked, s->running) && ota_slots_is_numbered(asked) && broken(asked)) {
        // The tombstone before the records: the records are what tells of it, and mending them is what forgets.
        err = ota_tombstone_write(s, asked, unknown, ota_reason_name(OTA_REASON_IMAGE_CORRUPT));
        if (err != ESP_OK) {
            return err;
        }
    }
    err = ota_records_repair(s, &changed);
    if (changed) {
        ESP_LOGW(TAG, "boot records mended for %s", s->running->label);
    }
    return err;
}

// The cause of a failed trial, from how the chip was reset, where the firmware on trial left no note.
static ota_reason_t cause_of(const settle_t *st, uint32_t state)
{
    if (state == ESP_OTA_IMG_INVALID) {
        return OTA_REASON_OTHER; // it gave itself up, and the power failed before it could say why
    }
    if (strcmp(st->reset, "poweron") == 0) {
        return OTA_REASON_POWER_LOSS;
    }
    if (strcmp(st->reset, "watchdog") == 0) {
        return OTA_REASON_WATCHDOG;
    }
    return strcmp(st->reset, "brownout") == 0 ? OTA_REASON_BROWNOUT : OTA_REASON_CRASH;
}

// Makes the slot of a record that was given up or aborted unbootable, and keeps why.
static esp_err_t bury(const settle_t *st, int i, const ota_record_t *r, const esp_partition_t *slot, ota_note_t note, bool noted)
{
    ota_tombstone_t grave;
    bool buried;
    esp_err_t err = ota_tombstone_read(slot, &grave, &buried);
    if (err != ESP_OK || buried) {
        return err;
    }
    if (noted) {
        return ota_tombstone_write(st->slots, slot, note.digest, ota_reason_name(note.cause));
    }
    if (broken(slot)) {
        // Nothing that could boot, and nothing known: the record alone tells that it was tried.
        memset(note.digest, 0, sizeof note.digest);
        return ota_tombstone_write(st->slots, slot, note.digest, ota_reason_name(OTA_REASON_IMAGE_CORRUPT));
    }
    note.cause = cause_of(st, r->ota_state);
    if (st->story->leaving >= 0 && note.cause == OTA_REASON_POWER_LOSS) {
        return ESP_OK; // an operator's rollback, proven before, and only the power failed: finish_rollback tries again
    }
    err = ota_slots_file_digest(slot, note.digest);
    if (err != ESP_OK) {
        return err;
    }
    // The digest is known only as long as the image is there. So it is written down before the erase, and a power cut
    // between erase and tombstone loses nothing.
    err = ota_note_write(st->slots, i, note.digest, note.cause);
    if (err != ESP_OK) {
        ESP_LOGW(TAG, "note of the failed %s not written: %s", slot->label, esp_err_to_name(err));
    }
    return ota_tombstone_write(st->slots, slot, note.digest, ota_reason_name(note.cause));
}

// What the record of the running slot says: whether this is a trial, and an order to leave it that was not carried out.
static void own_slot(const settle_t *st, int i, const ota_record_t *r, const ota_note_t *note, bool noted)
{
    if (st->slots->rollback && ota_record_on_trial(r)) {
        st->story->trial = true;
    }
    if (noted && !note->voided) {
        st->story->leaving = i;
    }
}

// A slot that an operator left: the image is fine, but an older order does not bring it back.
static void left_slot(const settle_t *st, int i, const ota_note_t *note)
{
    ota_boot_story_t *story = st->story;
    memcpy(story->held, note->digest, sizeof story->held);
    story->is_held = !ota_digest_unknown(note->digest);
    story->manual = true;
    if (!note->told) {
        story->told_pending = true;
        story->told_noted = true;
        story->told_record = i;
        story->told_slot = NULL;
        story->cause = note->cause;
        memcpy(story->failed, note->digest, sizeof story->failed);
    }
}

static esp_err_t failed_slot(const settle_t *st, int i, const ota_record_t *r, const esp_partition_t *slot)
{
    ota_note_t note;
    bool noted;
    esp_err_t err = ota_note_read(st->slots, i, &note, &noted);
    if (err != ESP_OK) {
        return err;
    }
    if (ota_slots_same(slot, st->slots->running)) {
        own_slot(st, i, r, &note, noted);
    } else if (r->ota_state == ESP_OTA_IMG_INVALID || r->ota_state == ESP_OTA_IMG_ABORTED) {
        return bury(st, i, r, slot, note, noted);
    } else if (noted && note.cause == OTA_REASON_OPERATOR && !note.voided) {
        left_slot(st, i, &note);
    }
    return ESP_OK;
}

// The slot that a record means, usable or not; NULL where it means none.
static const esp_partition_t *slot_of(const ota_slots_t *s, const ota_record_t *r)
{
    int slot = ota_record_slot(s, r);
    return slot < 0 || ota_record_erased(r) || !ota_record_crc_ok(r) ? NULL : s->slot[slot];
}

// Buries every image that was given up or aborted: its slot is made unbootable BEFORE anything is told. As long as the
// image is there, a few flipped bits in the records, which no checksum covers, boot it again for ever on a board without
// a factory image.
static esp_err_t failed_slots(const settle_t *st)
{
    const ota_slots_t *s = st->slots;
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err == ESP_ERR_NOT_FOUND ? ESP_OK : err;
    }
    // The running slot's own record first: what it says decides about the other.
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < OTA_RECORDS; i++) {
            const esp_partition_t *slot = slot_of(s, &rec[i]);
            if (slot == NULL || ota_slots_same(slot, s->running) != (pass == 0)) {
                continue;
            }
            err = failed_slot(st, i, &rec[i], slot);
            if (err != ESP_OK) {
                return err;
            }
        }
    }
    return ESP_OK;
}

// Settles records that read now so and now so, before anything is decided on them.
static esp_err_t steady_records(const settle_t *st)
{
    const ota_slots_t *s = st->slots;
    ota_record_t rec[OTA_RECORDS];
    bool unsteady[OTA_RECORDS], changed;
    esp_err_t err = ota_records_unsteady(s, unsteady);
    if (err != ESP_OK || (!unsteady[0] && !unsteady[1])) {
        return err == ESP_ERR_NOT_FOUND ? ESP_OK : err;
    }
    err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err;
    }
    for (int i = 0; i < OTA_RECORDS; i++) {
        // Before the other record goes: for a moment none would count, and the failed image could be what boots.
        const esp_partition_t *slot = unsteady[i] ? NULL : slot_of(s, &rec[i]);
        if (slot != NULL && !ota_slots_same(slot, s->running)) {
            err = failed_slot(st, i, &rec[i], slot);
            if (err != ESP_OK) {
                ESP_LOGE(TAG, "failed image in %s not buried: %s", slot->label, esp_err_to_name(err));
            }
        }
    }
    err = ota_records_steady(s, &changed);
    if (changed) {
        ESP_LOGW(TAG, "boot records that read differently written anew for %s", s->running->label);
    }
    return err;
}

// Settles a note that the running image left about itself. Either the image that it went back to failed, and then the note
// says nothing any more. Or the power failed before the other slot was switched to: the order was taken, so it is carried
// out now. Leaving it would cost the other image, whose record the switch may have silenced already.
static esp_err_t finish_rollback(const settle_t *st)
{
    const ota_slots_t *s = st->slots;
    if (st->story->leaving < 0) {
        return ESP_OK;
    }
    for (int i = 0; i < s->slots; i++) {
        // The one that verifies is the one that was meant: ota_slots_go_back saw to it that there is no other.
        if (i == s->running_slot || st->story->trial || !verifies(s->slot[i])) {
            continue;
        }
        if (ota_slots_switch(s, s->slot[i]) == ESP_OK) {
            st->story->restart = true;
            return ESP_OK;
        }
    }
    return ota_note_mark(s, st->story->leaving, OTA_NOTE_VOID);
}

// Images that no record vouches for: a download that was complete when the power went, or a trial whose record was lost
// half way. Nobody has seen them run, and without records the bootloader takes the lowest slot that verifies. An update
// that comes back for such an image fetches one block again.
esp_err_t ota_slots_unprove(const ota_slots_t *s)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK || !ota_slots_is_numbered(s->running)) {
        return err == ESP_ERR_NOT_FOUND ? ESP_OK : err;
    }
    for (int i = 0; i < s->slots; i++) {
        ota_tombstone_t grave;
        bool buried;
        if (i == s->running_slot || ota_record_names(s, &rec[0], i) || ota_record_names(s, &rec[1], i)) {
            continue;
        }
        err = ota_tombstone_read(s->slot[i], &grave, &buried);
        if (err != ESP_OK) {
            return err;
        }
        if (buried || !verifies(s->slot[i])) {
            continue;
        }
        ESP_LOGW(TAG, "image in %s, that no record vouches for, is made unbootable", s->slot[i]->label);
        err = ota_slots_unboot(s, s->slot[i]);
        if (err != ESP_OK) {
            return err;
        }
    }
    return ESP_OK;
}

static esp_err_t unproven_slots(const settle_t *st)
{
    return st->story->trial || st->story->restart ? ESP_OK : ota_slots_unprove(st->slots);
}

// Reads the tombstones: what is not installed again, and what is not told yet.
static esp_err_t read_graves(const settle_t *st)
{
    ota_boot_story_t *story = st->story;
    for (int i = 0; i < st->slots->slots; i++) {
        const esp_partition_t *slot = st->slots->slot[i];
        ota_tombstone_t t;
        bool there = false;
        esp_err_t err = i == st->slots->running_slot ? ESP_OK : ota_tombstone_read(slot, &t, &there);
        if (err != ESP_OK) {
            return err;
        }
        if (!there) {
            continue;
        }
        ota_reason_t cause = ota_reason_from(t.cause, strlen(t.cause));
        // Power loss and a damaged slot are no fault of the image: it may be tried again.
        if (cause != OTA_REASON_POWER_LOSS && cause != OTA_REASON_IMAGE_CORRUPT && !ota_digest_unknown(t.digest)) {
            memcpy(story->buried[story->buried_count++], t.digest, sizeof t.digest);
        }
        if (!t.acked) {
            story->told_pending = true;
            story->told_noted = false;
            story->told_slot = slot;
            story->cause = cause;
            memcpy(story->failed, t.digest, sizeof story->failed);
        }
    }
    return ESP_OK;
}

esp_err_t ota_slots_settle(const ota_slots_t *s, const char *reset, ota_boot_story_t *out)
{
    static esp_err_t (*const steps[])(const settle_t *) = { steady_records, fallen_back, failed_slots, finish_rollback, unproven_slots, read_graves };
    const settle_t st = { .slots = s, .reset = reset, .story = out };
    ota_record_t rec[OTA_RECORDS];
    memset(out, 0, sizeof *out);
    out->leaving = -1;
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK && err != ESP_ERR_NOT_FOUND) {
        return err;
    }
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        err = steps[i](&st);
        if (err != ESP_OK) {
            ESP_LOGE(TAG, "boot state not settled: %s", esp_err_to_name(err));
        }
    }
    return ESP_OK;
}

esp_err_t ota_slots_told(const ota_slots_t *s, const ota_boot_story_t *story)
{
    if (!story->told_pending) {
        return ESP_OK;
    }
    return story->told_noted ? ota_note_mark(s, story->told_record, OTA_NOTE_TOLD) : ota_tombstone_ack(s, story->told_slot);
}
