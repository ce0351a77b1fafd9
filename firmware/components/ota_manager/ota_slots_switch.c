#include "ota_slots.h"

#include <stdio.h>
#include <string.h>

#include "esp_efuse.h"
#include "esp_image_format.h"
#include "esp_log.h"
#include "esp_ota_ops.h"
#include "ota_records.h"
#include "ota_version.h"

static const char TAG[] = "ota_slots";

// Refuses an image below the board's floor, and destroys it, as ESP-IDF does.
static esp_err_t check_secure(const ota_slots_t *s, const esp_partition_t *slot)
{
    uint32_t version;
    esp_err_t err = ota_slots_secure_version(slot, &version);
    if (err != ESP_OK || esp_efuse_check_secure_version(version)) {
        return err;
    }
    if (!ota_slots_same(slot, s->running)) {
        err = esp_partition_erase_range(slot, 0, slot->size);
    }
    return err == ESP_OK ? ESP_ERR_OTA_SMALL_SEC_VER : err;
}

static esp_err_t write_switch(const ota_slots_t *s, int slot)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err;
    }
    int active = ota_records_active(rec), sector = active < 0 ? 0 : 1 - active;
    // Never the number 0, which can be arrived at over a record that has it: with three slots it would be computed for the
    // last one and means the first.
    uint64_t least = active < 0 ? 0 : rec[active].ota_seq;
    ota_record_t next = rec[sector]; // its label stays
    if (!ota_record_seq_for(s, slot, least > 0 ? least : 1, &next.ota_seq)) {
        return ESP_ERR_OTA_SELECT_INFO_INVALID;
    }
    next.ota_state = s->rollback ? ESP_OTA_IMG_NEW : ESP_OTA_IMG_UNDEFINED;
    next.crc = ota_record_crc(next.ota_seq);
    return ota_record_replace(s, sector, &rec[sector], &next);
}

esp_err_t ota_slots_switch(const ota_slots_t *s, const esp_partition_t *slot)
{
    ota_image_facts_t facts;
    const esp_partition_t *asked;
    if (slot == NULL || !ota_slots_is_numbered(slot)) {
        return ESP_ERR_INVALID_ARG;
    }
    esp_err_t err = ota_slots_verify(slot, &facts);
    if (err != ESP_OK) {
        return err == ESP_ERR_IMAGE_INVALID ? ESP_ERR_OTA_VALIDATE_FAILED : err;
    }
    int number = (int)slot->subtype - ESP_PARTITION_SUBTYPE_APP_OTA_MIN;
    if (s->anti_rollback && (err = check_secure(s, slot)) != ESP_OK) {
        return err;
    }
    if (s->otadata != NULL && number >= s->slots) {
        return ESP_ERR_INVALID_ARG;
    }
    err = write_switch(s, number);
    if (err != ESP_OK) {
        return err;
    }
    // A board that restarts for a slot that the records do not ask for would do it again and again.
    err = ota_records_asked(s, &asked);
    return err == ESP_OK && !ota_slots_same(asked, slot) ? ESP_FAIL : err;
}

esp_err_t ota_slots_confirm(const ota_slots_t *s)
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err;
    }
    int active = ota_records_active(rec);
    if (active < 0 || s->slots == 0) {
        return ESP_FAIL;
    }
    if (rec[active].ota_state == ESP_OTA_IMG_VALID) {
        return ESP_OK;
    }
    rec[active].ota_state = ESP_OTA_IMG_VALID;
    err = ota_record_write_over(s, active, &rec[active]);
    if (err != ESP_OK || !s->anti_rollback) {
        return err;
    }
    // Only now: a cut between the two must not leave a board whose one image is below its floor.
    uint32_t version;
    err = ota_slots_secure_version(s->running, &version);
    return err == ESP_OK ? esp_efuse_update_secure_version(version) : err;
}

// Where giving the active record up leads to, NULL for nowhere.
static const esp_partition_t *way_back(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS], int active)
{
    const ota_record_t *other = &rec[1 - active];
    if (ota_record_usable(other)) {
        // ESP-IDF does not ask whether that is another slot, and would mark an image as failed to boot it again by the other
        // record, for good.
        const esp_partition_t *slot = s->slot[ota_record_slot(s, other)];
        return ota_slots_same(slot, s->running) ? NULL : slot;
    }
    if (s->anti_rollback) {
        return NULL;
    }
    return esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_APP_FACTORY, NULL);
}

esp_err_t ota_slots_rollback_possible(const ota_slots_t *s, bool *possible)
{
    ota_record_t rec[OTA_RECORDS];
    ota_image_facts_t facts;
    *possible = false;
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err == ESP_ERR_NOT_FOUND ? ESP_OK : err;
    }
    int active = ota_records_active(rec);
    const esp_partition_t *p = active >= 0 && s->slots > 0 ? way_back(s, rec, active) : NULL;
    if (p == NULL) {
        return ESP_OK;
    }
    err = ota_slots_verify(p, &facts);
    if (err != ESP_OK) {
        return err == ESP_ERR_IMAGE_INVALID ? ESP_OK : err;
    }
    *possible = !s->anti_rollback || (facts.has_desc && esp_efuse_check_secure_version(facts.secure_version));
    return ESP_OK;
}

esp_err_t ota_slots_give_up(const ota_slots_t *s, ota_reason_t cause, const uint8_t running_digest[32])
{
    ota_record_t rec[OTA_RECORDS];
    bool possible;
    esp_err_t err = ota_slots_rollback_possible(s, &possible);
    if (err == ESP_OK && !possible) {
        err = ESP_ERR_OTA_ROLLBACK_FAILED;
    }
    if (err == ESP_OK) {
        err = ota_records_read(s, rec);
    }
    if (err != ESP_OK) {
        return err;
    }
    int own = ota_records_active(rec);
    ota_record_t given_up = rec[own];
    given_up.ota_state = ESP_OTA_IMG_INVALID;
    err = ota_record_replace(s, own, &rec[own], &given_up);
    if (err != ESP_OK) {
        // The record stops counting before it is rewritten. Where only the second failed, it is given up all the same.
        const esp_partition_t *asked;
        if (ota_records_asked(s, &asked) != ESP_OK || asked == NULL || ota_slots_same(asked, s->running)) {
            return err;
        }
        ESP_LOGE(TAG, "record of a new image that failed not rewritten: %s", esp_err_to_name(err));
        return ESP_OK;
    }
    // The cause goes where the record is, and after it, because writing the record erases the sector.
    err = ota_note_write(s, own, running_digest, cause);
    if (err != ESP_OK) {
        ESP_LOGW(TAG, "cause not noted: %s", esp_err_to_name(err));
    }
    return ESP_OK;
}

// ---- an operator's rollback

static esp_err_t no_way(ota_refusal_t *why, ota_reason_t reason, const char *what, const char *detail)
{
    why->reason = reason;
    snprintf(why->detail, sizeof why->detail, "%s%s", what, detail);
    return ESP_ERR_NOT_FOUND;
}

// The active record, where it means the running slot; else -1.
static int own_record(const ota_slots_t *s, const ota_record_t rec[OTA_RECORDS])
{
    int active = ota_records_active(rec);
    return active >= 0 && s->running_slot >= 0 && ota_record_slot(s, &rec[active]) == s->running_slot ? active : -1;
}

// Whether what p holds trusts keys that the running image gave up. A running image whose own keys cannot be read gave up
// none: it takes no update, so the way back is the only one it has.
static bool older_keys(const ota_slots_t *s, const esp_partition_t *p)
{
    ota_trust_t t;
    esp_err_t err = ota_slots_builtin(s->running, &t);
    uint32_t mine = t.sequence;   // 0 where there was an error
    return (err != ESP_OK && err != ESP_ERR_IMAGE_INVALID) || ota_slots_builtin(p, &t) != ESP_OK || t.sequence < mine;
}

// Whether what p holds may be gone back to. version may be empty.
static esp_err_t judge_target(const ota_slots_t *s, const esp_partition_t *p, const char *version, uint32_t floor, ota_refusal_t *why)
{
    ota_image_facts_t image;
    if (ota_slots_verify(p, &image) != ESP_OK) {
        return no_way(why, OTA_REASON_NO_ROLLBACK, p->label, " holds no good image to go back to");
    }
    if (image.has_desc && version[0] != 0 && !ota_version_same(version, image.version) && !ota_version_generic(image.version)) {
        no_way(why, OTA_REASON_VERSION_MISMATCH, p->label, " holds ");
        strncat(why->detail, image.version, sizeof why->detail - strlen(why->detail) - 1);
        return ESP_ERR_NOT_FOUND;
    }
    if (older_keys(s, p)) {
        return no_way(why, OTA_REASON_NO_ROLLBACK, p->label, " carries trusted keys that were given up");
    }
    if (s->anti_rollback && (!image.has_desc || image.secure_version < floor)) {
        // Asked here because the switch answers it by erasing the slot.
        return no_way(why, OTA_REASON_SECURITY_FLOOR, p->label, " is below the floor");
    }
    return ESP_OK;
}

esp_err_t ota_slots_rollback_target(const ota_slots_t *s, const char *version, uint32_t floor, const esp_partition_t **slot,
                                    ota_refusal_t *why)
{
    ota_record_t rec[OTA_RECORDS];
    *slot = NULL;
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        no_way(why, OTA_REASON_NO_ROLLBACK, "boot records not read: ", esp_err_to_name(err));
        return err;
    }
    int own = own_record(s, rec);
    if (own < 0) {
        return no_way(why, OTA_REASON_NO_ROLLBACK, "the boot records do not name the running slot", "");
    }
    const esp_partition_t *p = s->target;
    if (ota_record_usable(&rec[1 - own])) {
        p = s->slot[ota_record_slot(s, &rec[1 - own])];
    }
    if (p == NULL || ota_slots_same(p, s->running)) {
        return no_way(why, OTA_REASON_NO_ROLLBACK, "there is no other slot", "");
    }
    err = judge_target(s, p, version == NULL ? "" : version, floor, why);
    *slot = err == ESP_OK ? p : NULL;
    return err;
}

esp_err_t ota_slots_go_back(const ota_slots_t *s, const esp_partition_t *slot, const uint8_t running_digest[32])
{
    ota_record_t rec[OTA_RECORDS];
    esp_err_t err = ota_records_read(s, rec);
    if (err != ESP_OK) {
        return err;
    }
    int own = own_record(s, rec);
    if (own < 0) {
        return ESP_ERR_INVALID_STATE;
    }
    // With three slots and more an image from before the last two may still be there. It goes first: should the power fail
    // while the records are rewritten, what verifies is what tells the next boot where this one was going.
    err = ota_slots_unprove(s);
    if (err != ESP_OK) {
        return err;
    }
    // The note before the pointer: the other way round, a power cut between the two would come up with the older image and
    // no word why.
    err = ota_note_write(s, own, running_digest, OTA_REASON_OPERATOR);
    if (err != ESP_OK) {
        ESP_LOGW(TAG, "note of a rollback not written: %s", esp_err_to_name(err));
    }
    return ota_slots_switch(s, slot);
}
