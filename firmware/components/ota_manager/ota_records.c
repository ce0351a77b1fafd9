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

bool ota_record_on_trial(const ota_record_t *r)
{
    bool named = r->ota_state <= ESP_OTA_IMG_ABORTED || r->ota_state == ESP_OTA_IMG_UNDEFINED;
    return r->ota_state == ESP_OTA_IMG_PENDING_VERIFY || !named;
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

// Writes rec where nothing counts. Its CRC comes last.
static esp_err_t put_record(const ota_slots_t *s, int i, const ota_record_t *rec)
{
    if (s->otadata->encrypted) {
        return ota_record_write_over(s, i, rec);
    }
    esp_err_t err = ota_flash_erase_sector(s->otadata, sector_of(i));
    if (err == ESP_OK) {
        err = esp_partition_write(s->otadata, sector_of(i), rec, CRC_AT);
    }
    if (err == ESP_OK) {
        err = esp_partition_write(s->otadata, sector_of(i) + CRC_AT, &rec->crc, sizeof rec->crc);
    }
    return err == ESP_OK ? ota_flash_equals(s->otadata, sector_of(i), rec, sizeof *rec) : err;
}

esp_err_t ota_record_replace(const ota_slots_t *s, int i, const ota_record_t *old, const ota_record_t *rec)
{
    if (s->otadata->encrypted) {
        return ota_record_write_over(s, i, rec);
    }
    // Silenced before the erase: one that stops early can turn a record that was given up into one that boots.
    esp_err_t err = ota_record_crc_ok(old) ? ota_record_silence(s, i, old) : ESP_OK;
    return err == ESP_OK ? put_record(s, i, rec) : err;
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

// ---- records that read now so and now so

#define LOOKS 16 // one bit that is a coin toss passes for steady one time in 32,768

typedef struct {
    ota_record_t rec[OTA_RECORDS]; // as they were read the last time
    bool steady[OTA_RECORDS];      // and each time before
    bool proven[OTA_RECORDS];      // each time it said that the image needs no trial
} look_t;

static esp_err_t look_at(const ota_slots_t *s, look_t *l)
{
    esp_err_t err = ESP_OK;
    for (int k = 0; err == ESP_OK && k < LOOKS; k++) {
        ota_record_t now[OTA_RECORDS];
        err = ota_records_read(s, now);
        for (int i = 0; err == ESP_OK && i < OTA_RECORDS; i++) {
            bool same = k == 0 || memcmp(&now[i], &l->rec[i], sizeof now[i]) == 0;
            bool proven = now[i].ota_state == ESP_OTA_IMG_VALID || now[i].ota_state == ESP_OTA_IMG_UNDEFINED;
            l->steady[i] = same && (k == 0 || l->steady[i]);
            l->proven[i] = proven && (k == 0 || l->proven[i]);
            l->rec[i] = now[i];
        }
    }
    return err;
}

esp_err_t ota_records_unsteady(const ota_slots_t *s, bool unsteady[OTA_RECORDS])
{
    look_t l;
    esp_err_t err = look_at(s, &l);
    for (int i = 0; i < OTA_RECORDS; i++) {
        unsteady[i] = err == ESP_OK && !l.steady[i];
    }
    return err;
}

// Silences a record of which nobody can say what it is.
static esp_err_t quiet(const ota_slots_t *s, int i)
{
    const ota_record_t any = { .crc = UINT32_MAX };
    return ota_record_silence(s, i, &any);
}

// Erases it. It stops counting before: an erase that stops early could bring it back.
static esp_err_t wipe(const ota_slots_t *s, int i)
{
    esp_err_t err = quiet(s, i);
    return err == ESP_OK ? ota_flash_erase_sector(s->otadata, sector_of(i)) : err;
}

static esp_err_t make_steady(const ota_slots_t *s, const look_t *l, int i)
{
    const ota_record_t *other = &l->rec[1 - i];
    bool firm = l->steady[1 - i];
    if (s->running_slot < 0 || (firm && ota_record_names(s, other, s->running_slot))) {
        return wipe(s, i);
    }
    int at = i;
    uint32_t seq = (uint32_t)s->running_slot + 1;
    if (!firm || !ota_record_crc_ok(other) || ota_record_erased(other)) {
        at = 1 - i; // the sector that says nothing: there is no moment without any record
    } else if (!ota_record_seq_for(s, s->running_slot, other->ota_seq + UINT64_C(1), &seq)) {
        // The other record means another slot, and decides until the new one is complete; or it tells of a failed one, and
        // what it tells is needed. Only that the numbers are used up: ota_records_repair knows what to do then.
        return wipe(s, i);
    }
    const ota_record_t mine =
        new_record(seq, l->proven[i] || !s->rollback ? ESP_OTA_IMG_VALID : ESP_OTA_IMG_PENDING_VERIFY);
    esp_err_t err = quiet(s, at);
    if (err == ESP_OK) {
        err = put_record(s, at, &mine);
    }
    return err == ESP_OK && at != i ? wipe(s, i) : err;
}

esp_err_t ota_records_steady(const ota_slots_t *s, bool *changed)
{
    *changed = false;
    for (int i = 0; i < OTA_RECORDS; i++) {
        look_t l;
        esp_err_t err = look_at(s, &l); // anew for the second: the first may have been written
        if (err == ESP_OK && !l.steady[i]) {
            *changed = true;
            err = make_steady(s, &l, i);
        }
        if (err != ESP_OK) {
            return err;
        }
    }
    return ESP_OK;
}
