// What firmware tells the firmware after the restart: why a slot was left, and which image was in it. It stands behind the
// slot's record, in bytes that ESP-IDF leaves erased (docs/adr/0011):
//
//   0  magic[8]   "bmsnote1"
//   8  sha256[32] of the image file that was in the slot
//  40  cause[20]  a reason, NUL padded
//  60  crc        LE32, CRC-32 (IEEE) of the 60 bytes before
//  64  told       programmed to 0 when the report of it was acknowledged
//  65  void       programmed to 0 when the slot runs again
//
// With flash encryption the two flags are blocks of 16 bytes, at 64 and 80.
#include <string.h>

#include "esp_rom_crc.h"
#include "ota_records.h"
#include "spi_flash_mmap.h"

#define NOTE_AT 64u
#define CAUSE_SIZE 20u
#define FLAGS_AT 64u
#define FLAGS_SIZE (2u * OTA_CIPHER_BLOCK)

typedef struct {
    char magic[8];
    uint8_t digest[32];
    char cause[CAUSE_SIZE];
    uint32_t crc;
} note_t;

_Static_assert(sizeof(note_t) == FLAGS_AT, "a note is what stands in flash");

static const char MAGIC[8] = { 'b', 'm', 's', 'n', 'o', 't', 'e', '1' };

static uint32_t note_at(int record)
{
    return (uint32_t)record * OTA_SECTOR + NOTE_AT;
}

static uint32_t note_crc(const note_t *n)
{
    return esp_rom_crc32_le(0, (const uint8_t *)n, sizeof *n - sizeof n->crc);
}

static uint32_t flag_at(const ota_slots_t *s, int record, ota_note_flag_t flag)
{
    return note_at(record) + FLAGS_AT + (flag == OTA_NOTE_TOLD ? 0 : s->otadata->encrypted ? OTA_CIPHER_BLOCK : 1u);
}

static esp_err_t read_raw(const ota_slots_t *s, int record, note_t *n, bool *sound)
{
    if (s->otadata == NULL) {
        return ESP_ERR_NOT_FOUND;
    }
    esp_err_t err = esp_partition_read(s->otadata, note_at(record), n, sizeof *n);
    *sound = err == ESP_OK && memcmp(n->magic, MAGIC, sizeof MAGIC) == 0 && n->crc == note_crc(n);
    return err;
}

esp_err_t ota_note_read(const ota_slots_t *s, int record, ota_note_t *out, bool *there)
{
    note_t n;
    memset(out, 0, sizeof *out);
    esp_err_t err = read_raw(s, record, &n, there);
    if (err != ESP_OK || !*there) {
        return err;
    }
    size_t len = CAUSE_SIZE;
    while (len > 0 && n.cause[len - 1] == 0) {
        len--;
    }
    out->cause = ota_reason_from(n.cause, len);
    memcpy(out->digest, n.digest, sizeof out->digest);
    err = ota_flash_read_flag(s->otadata, flag_at(s, record, OTA_NOTE_TOLD), &out->told);
    return err == ESP_OK ? ota_flash_read_flag(s->otadata, flag_at(s, record, OTA_NOTE_VOID), &out->voided) : err;
}

// Whether want can be programmed over what is there: NOR flash only clears bits, and an encrypted block takes one write.
static esp_err_t fits(const ota_slots_t *s, int record, const note_t *want, const note_t *have, bool *yes)
{
    bool flags_free = false;
    const uint8_t *w = (const uint8_t *)want, *h = (const uint8_t *)have;
    esp_err_t err = ota_flash_is_blank(s->otadata, note_at(record) + FLAGS_AT, s->otadata->encrypted ? FLAGS_SIZE : 2, &flags_free);
    *yes = err == ESP_OK && flags_free;
    if (s->otadata->encrypted) {
        bool free_now = false;
        err = err == ESP_OK ? ota_flash_is_blank(s->otadata, note_at(record), sizeof *want, &free_now) : err;
        *yes = *yes && free_now;
        return err;
    }
    for (size_t i = 0; i < sizeof *want; i++) {
        *yes = *yes && (h[i] & w[i]) == w[i];
    }
    return err;
}

esp_err_t ota_note_write(const ota_slots_t *s, int record, const uint8_t digest[32], ota_reason_t cause)
{
    note_t want = { 0 }, have;
    bool sound, room;
    const char *word = ota_reason_name(cause);
    size_t len = strlen(word);
    if (len > CAUSE_SIZE) {
        return ESP_ERR_INVALID_ARG;
    }
    memcpy(want.magic, MAGIC, sizeof MAGIC);
    memcpy(want.digest, digest, sizeof want.digest);
    memcpy(want.cause, word, len);
    want.crc = note_crc(&want);
    esp_err_t err = read_raw(s, record, &have, &sound);
    if (err != ESP_OK) {
        return err;
    }
    bool same = memcmp(&have, &want, sizeof want) == 0;
    if (same && s->otadata->encrypted) {
        return ESP_OK;
    }
    err = fits(s, record, &want, &have, &room);
    if (err != ESP_OK || !room) {
        return err != ESP_OK ? err : ESP_ERR_INVALID_STATE;
    }
    if (same) {
        return ESP_OK;
    }
    err = ota_flash_write(s->otadata, note_at(record), &want, sizeof want);
    return err == ESP_OK ? ota_flash_equals(s->otadata, note_at(record), &want, sizeof want) : err;
}

esp_err_t ota_note_mark(const ota_slots_t *s, int record, ota_note_flag_t flag)
{
    return s->otadata == NULL ? ESP_ERR_NOT_FOUND : ota_flash_set_flag(s->otadata, flag_at(s, record, flag));
}
