#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "esp_log.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "ota_records.h"
#include "sdkconfig.h"

static const char *TAG = "ota_download";

#define MAX_MISMATCHES 3   // bytes that are wrong this often are wrong on the server
#define HEADER_SIZE 24     // esp_image_header_t
#define DESC_OFFSET 32     // esp_app_desc_t, behind the header of the first segment
#define DESC_MAGIC 0xABCD5432u

// An image on its way into the slot, in as many tries as it takes until the deadline.
//
// With block digests a try goes on where flash stops being right, whoever wrote it there: an earlier try or an earlier life
// of the board. Within a block it goes on at the sector where the try before it in this life was cut off; the digest of the
// block then judges what both have brought. Without digests nothing in flash can be trusted, and each try starts over.
typedef struct {
    const ota_run_t *run;
    ota_agent_t *a;
    const ota_offer_t *o;
    int64_t slot_size;
    int64_t size;         // -1 while unknown
    bool begun;
    int64_t good;         // bytes from the start that are in flash and right; a multiple of a block, or size
    int64_t reached;      // bytes from the start that are in flash and not yet known to be wrong; whole sectors. 0: none beyond good
    bool from_zero;       // this server cannot be asked for a part
    bool partial;         // the answer being read is one
    char etag[130];       // what the server calls the file that flash has the beginning of
    int retries, mismatches;
    ota_response_t answer;
} download_t;

// How much of the image is in the slot already, block by block.
static bool scan(download_t *d, ota_fault_t *why)
{
    while (d->o->blocks != NULL && d->good < d->size) {
        size_t i = (size_t)(d->good / OTA_BLOCK_SIZE);
        int64_t rest = d->size - d->good;
        uint32_t n = rest < (int64_t)OTA_BLOCK_SIZE ? (uint32_t)rest : OTA_BLOCK_SIZE;
        uint8_t sum[32];
        esp_err_t err = ota_slots_digest(d->a->slots.target, (uint32_t)d->good, n, sum);
        if (err != ESP_OK) {
            return ota_flash_failed(why, "read slot", err);
        }
        if (i >= d->o->block_count || memcmp(sum, d->o->blocks[i], sizeof sum) != 0) {
            break;
        }
        d->good += n;
    }
    return true;
}

// The first byte to ask for.
static int64_t next(const download_t *d)
{
    if (d->from_zero) {
        return 0;
    }
    return d->reached > d->good ? d->reached : d->good;
}

// Adds to h the beginning of a block, which the try before has brought: read again, so that what is judged is what flash
// holds.
static bool rehash(download_t *d, ota_sha256_t *h, int64_t end, ota_fault_t *why)
{
    for (int64_t at = d->good; at < end;) {
        size_t n = end - at < (int64_t)OTA_IO_SIZE ? (size_t)(end - at) : OTA_IO_SIZE;
        esp_err_t err = esp_partition_read(d->a->slots.target, (size_t)at, d->a->io, n);
        if (err != ESP_OK) {
            return ota_flash_failed(why, "read slot", err);
        }
        ota_sha256_add(h, d->a->io, n);
        at += (int64_t)n;
    }
    return true;
}

// Counts bytes that are not the promised ones; *why says what is wrong. Once may be a file that is being replaced; the third
// time it is what the server has.
static bool wrong(download_t *d, ota_fault_t *why)
{
    d->mismatches++;
    d->reached = 0;
    // A cache that puts together a part of one file and a part of another has the whole of each.
    d->from_zero = d->from_zero || d->partial;
    why->retry = d->mismatches < MAX_MISMATCHES;
    return false;
}

static uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

// Looks at the start of the image before anything is erased for it.
static bool first(download_t *d, const uint8_t *p, size_t len, ota_fault_t *why)
{
    if (len < HEADER_SIZE || p[0] != 0xE9) {
        ota_again(why, OTA_REASON_IMAGE_INVALID, "the image starts with %zu bytes, the first 0x%02x: that is none", len, p[0]);
        return wrong(d, why);
    }
    unsigned chip = p[12] | (unsigned)p[13] << 8;
    if (chip != CONFIG_IDF_FIRMWARE_CHIP_ID) {
        return ota_failed(why, OTA_REASON_WRONG_CHIP, "image is for chip 0x%04x, this device is an %s", chip, CONFIG_IDF_TARGET);
    }
    if (len < DESC_OFFSET + 80 || le32(p + DESC_OFFSET) != DESC_MAGIC) {
        return true;   // no description: nothing to compare
    }
    char project[33] = {0};
    for (size_t i = 0; i < 32 && p[DESC_OFFSET + 48 + i] != 0; i++) {
        uint8_t c = p[DESC_OFFSET + 48 + i];
        project[i] = c < ' ' || c > '~' ? '?' : (char)c;
    }
    if (d->a->project[0] != '\0' && project[0] != '\0' && strcmp(project, d->a->project) != 0) {
        return ota_failed(why, OTA_REASON_WRONG_PROJECT, "image is of \"%s\", this device runs \"%s\"", project, d->a->project);
    }
    uint32_t secure = le32(p + DESC_OFFSET + 4);
    if (secure < d->a->floor) {
        return ota_failed(why, OTA_REASON_SECURITY_FLOOR, "image has secure version %" PRIu32 ", the floor is %" PRIu32, secure, d->a->floor);
    }
    return true;
}

// Judges the block that is complete at at. h is the digest over it.
static bool block_done(download_t *d, ota_sha256_t *h, int64_t at, ota_fault_t *why)
{
    uint8_t sum[32];
    bool hashed = ota_sha256_end(h, sum);
    size_t i = (size_t)((at - 1) / OTA_BLOCK_SIZE);
    if (i < d->o->block_count && (!hashed || memcmp(sum, d->o->blocks[i], sizeof sum) != 0)) {
        ota_again(why, OTA_REASON_DIGEST_MISMATCH, "block %zu is not the promised one", i);
        return wrong(d, why);
    }
    d->good = at;
    return true;
}

static bool write(download_t *d, int64_t at, const uint8_t *p, size_t n, ota_fault_t *why)
{
    if (!d->begun) {
        // The record of what was in the slot goes first, so that no record ever vouches for bytes that are being replaced.
        esp_err_t err = ota_slots_begin(&d->a->slots);
        if (err != ESP_OK) {
            return ota_flash_failed(why, "open slot", err);
        }
        d->begun = true;
    }
    esp_err_t err = ota_slots_write(&d->a->slots, (uint32_t)at, p, (uint32_t)n);
    return err == ESP_OK || ota_flash_failed(why, "write slot", err);
}

// Writes the body from start on. No byte beyond the promised ones is written, and of an unknown size none beyond the slot.
static bool receive(download_t *d, int64_t start, ota_sha256_t *h, ota_fault_t *why)
{
    ota_response_t *r = &d->answer;
    uint8_t *io = d->a->io;
    int64_t total = d->size > r->length ? d->size : r->length;
    int64_t end = d->size >= 0 ? d->size : d->slot_size;
    if (!rehash(d, h, start, why)) {
        return false;
    }
    for (int64_t at = start; at < end;) {
        size_t want = end - at < (int64_t)OTA_IO_SIZE ? (size_t)(end - at) : OTA_IO_SIZE;
        size_t n = 0;
        bool ended = false;
        if (!ota_web_read(r, io, want, &n, &ended, why)) {
            return false;
        }
        if (n > 0) {
            if (at == 0 && !first(d, io, n, why)) {
                return false;
            }
            if (!write(d, at, io, n, why)) {
                return false;
            }
            at += (int64_t)n;
            if (d->o->blocks != NULL) {
                ota_sha256_add(h, io, n);
                if (at % OTA_BLOCK_SIZE == 0 || at == d->size) {
                    if (!block_done(d, h, at, why)) {
                        return false;
                    }
                    ota_sha256_start(h);
                }
                if (at % OTA_SECTOR == 0) {
                    d->reached = at;
                }
            }
            ota_report_progress(d->a, at, total, d->retries);
        }
        if (ended && at < end) {
            // A length that only the answer announces is no promise; reached, it is the end.
            if (d->size >= 0 || (r->length >= 0 && at != r->length)) {
                return ota_again(why, OTA_REASON_SERVER_UNREACHABLE, "the server stopped at %" PRId64 " of %" PRId64 " bytes", at, total);
            }
            end = at;
        }
        if (d->size < 0 && r->length >= 0 && at == r->length) {
            end = at;
        }
    }
    // Bytes behind the promised ones are not read at all where a digest says that the promised ones are right.
    if (r->length < 0 && d->size >= 0 && d->o->sha256[0] == '\0') {
        size_t n = 0;
        bool ended;
        if (ota_web_read(r, io, 1, &n, &ended, why) && n > 0) {
            ota_again(why, OTA_REASON_SIZE_MISMATCH, "the server sends more than %" PRId64 " bytes", end);
            return wrong(d, why);
        }
    }
    d->size = d->good = end;
    return true;
}

// Compares what the answer announces with what was promised.
static bool length_ok(download_t *d, int64_t announced, int64_t start, ota_fault_t *why)
{
    if (announced < 0) {
        return true;
    }
    if (d->size < 0 && announced > d->slot_size) {
        return ota_failed(why, OTA_REASON_TOO_BIG, "%" PRId64 " bytes, the slot has %" PRId64, announced, d->slot_size);
    }
    if (d->size >= 0 && announced != d->size - start) {
        ota_again(why, OTA_REASON_SIZE_MISMATCH, "the server sends %" PRId64 " bytes, %" PRId64 " are missing", announced, d->size - start);
        return wrong(d, why);
    }
    return true;
}

// Judges the header of the answer: *start becomes where its body begins.
static bool answered(download_t *d, int64_t *start, ota_fault_t *why)
{
    ota_response_t *r = &d->answer;
    if (r->status == 200) {
        *start = d->good = d->reached = 0;   // the whole file, asked for or not
    } else if (r->status == 206 && *start > 0) {
        char want[64];
        snprintf(want, sizeof want, "bytes %" PRId64 "-%" PRId64 "/%" PRId64, *start, d->size - 1, d->size);
        if (strcmp(r->content_range, want) != 0) {
            d->from_zero = true;
            return ota_again(why, OTA_REASON_SIZE_MISMATCH, "asked for \"%s\", the server sends \"%s\"", want, r->content_range);
        }
    } else if (r->status == 416 && *start > 0) {
        d->from_zero = true;
        return ota_again(why, OTA_REASON_HTTP_STATUS, "the server has no bytes from %" PRId64 " on", *start);
    } else {
        return ota_web_status(r, why);
    }
    d->from_zero = false;
    d->partial = *start > 0;
    if (r->etag[0] != '\0') {
        memcpy(d->etag, r->etag, sizeof d->etag);
    }
    return length_ok(d, r->length, *start, why);
}

// One request, from the first missing byte to the end or to what goes wrong.
static bool attempt(download_t *d, ota_fault_t *why)
{
    if (d->good == d->size) {
        return true;
    }
    int64_t start = next(d);
    if (!ota_web_get(d->run, &d->answer, d->o->url, start, d->etag, why)) {
        return false;
    }
    ota_sha256_t h;
    ota_sha256_start(&h);
    bool ok = answered(d, &start, why) && receive(d, start, &h, why);
    uint8_t unused[32];
    ota_sha256_end(&h, unused);
    ota_web_close(&d->answer);
    return ok;
}

bool ota_download(const ota_run_t *run, const ota_offer_t *o, int64_t *size, ota_fault_t *why)
{
    download_t d = {.run = run, .a = run->a, .o = o, .slot_size = run->a->slots.target->size, .size = o->size > 0 ? o->size : -1};
    // Our server calls a file by its digest. What another calls it is known from its first answer on.
    snprintf(d.etag, sizeof d.etag, "\"%s\"", o->sha256);
    if (!scan(&d, why)) {
        return false;
    }
    ota_pause_t pause = {.first_ms = 1000, .limit_ms = 60 * 1000};
    for (;;) {
        int64_t before = next(&d);
        if (attempt(&d, why)) {
            break;
        }
        if (!why->retry) {
            return false;
        }
        if (next(&d) > before) {
            pause.n = 0;   // it gets on: a flaky line is no reason to wait ever longer
        }
        d.retries++;
        ESP_LOGI(TAG, "download interrupted after %" PRId64 " bytes: %s", next(&d), why->text);
        uint32_t wait = ota_pause_next(&pause);
        if (!ota_run_sleep(run, wait > why->after_ms ? wait : why->after_ms)) {
            if (ota_run_cause(run) == OTA_DEADLINE && why->reason != OTA_REASON_DEADLINE) {
                ota_fault_t last = *why;
                ota_failed(why, OTA_REASON_DEADLINE, "the update took longer than it may, at last: %.120s", last.text);
            }
            return false;
        }
    }
    *size = d.size;
    ota_report_progress(run->a, d.size, d.size, d.retries);
    return true;
}
