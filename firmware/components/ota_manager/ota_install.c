#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "esp_heap_caps.h"
#include "esp_log.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "sdkconfig.h"

static const char *TAG = "ota_install";

#define GATE_POLL_MS 5000   // between two looks at a closed gate
#define SECTOR 4096

static int minute_of_day(void)
{
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    return local.tm_hour * 60 + local.tm_min;
}

// Holds the update back while a gate is closed. *waited says whether it was.
static bool gate(const ota_run_t *run, const ota_wish_t *w, bool *waited, ota_fault_t *why)
{
    ota_agent_t *a = run->a;
    ota_reason_t said = OTA_REASON_NONE;
    *waited = false;
    for (;;) {
        ota_battery_reading_t battery;
        ota_battery(a, &battery);
        ota_reason_t reason = ota_gate_blocked(&a->cfg.ota.gate, &battery, minute_of_day());
        if (reason == OTA_REASON_NONE && a->cfg.ota.gate.window[0] != '\0' && !ota_clock_set(ota_clock_us())) {
            reason = OTA_REASON_OUTSIDE_WINDOW;   // whatever the clock shows, it is not the time of day
        }
        if (reason == OTA_REASON_NONE) {
            return true;
        }
        if (w->cmd.expires && ota_command_expired(&w->cmd, ota_clock_us())) {
            ota_failed(why, OTA_REASON_EXPIRED_COMMAND, "the order expired while the device waited");
            why->phase = OTA_PHASE_IDLE;
            return false;
        }
        if (reason != said) {
            ota_report_phase(a, OTA_PHASE_WAITING, reason, "");
            said = reason;
        }
        *waited = true;
        if (!ota_run_sleep(run, GATE_POLL_MS)) {
            return ota_failed(why, OTA_REASON_OTHER, "stopped");
        }
    }
}

// Judges what is in flash, not what was received: size bytes of it, from the start of the slot.
static bool prove(ota_agent_t *a, const ota_offer_t *o, int64_t size, ota_fault_t *why)
{
    const esp_partition_t *slot = a->slots.target;
    // A signature sector of an earlier, longer file behind the image would count as a part of it.
    int64_t next = (size + SECTOR - 1) / SECTOR * SECTOR;
    if (next < (int64_t)slot->size) {
        esp_err_t err = ota_slots_blank(&a->slots, (uint32_t)next);
        if (err != ESP_OK) {
            return ota_flash_failed(why, "clear behind the image", err);
        }
    }
    uint8_t sum[32];
    esp_err_t err = ota_slots_digest(slot, 0, (uint32_t)size, sum);
    if (err != ESP_OK) {
        return ota_flash_failed(why, "read back", err);
    }
    char text[OTA_DIGEST_TEXT + 1];
    ota_hex(sum, sizeof sum, text);
    if (o->sha256[0] != '\0' && strcmp(text, o->sha256) != 0) {
        return ota_failed(why, OTA_REASON_DIGEST_MISMATCH, "flash holds %s, promised is %s", text, o->sha256);
    }
    ota_image_facts_t facts;
    err = ota_slots_verify(slot, &facts);
    if (err != ESP_OK) {
        return ota_failed(why, OTA_REASON_IMAGE_INVALID, "verify %s: %s", slot->label, esp_err_to_name(err));
    }
    if ((int64_t)facts.file_len != size) {
        return ota_failed(why, OTA_REASON_IMAGE_INVALID, "the image has %" PRIu32 " bytes, the file %" PRId64, facts.image_len, size);
    }
    ota_trust_t carried;
    err = ota_slots_builtin(slot, &carried);
    if (err != ESP_OK) {
        return ota_failed(why, OTA_REASON_IMAGE_INVALID, "trusted keys in %s: %s", slot->label, esp_err_to_name(err));
    }
    if (carried.sequence < a->cfg.trust.sequence) {
        // It would bring back keys that were given up, or none.
        return ota_failed(why, OTA_REASON_SECURITY_FLOOR, "image carries set %" PRIu32 " of trusted keys, this device trusts set %" PRIu32,
                          carried.sequence, a->cfg.trust.sequence);
    }
    if (memcmp(sum, a->sum, sizeof sum) == 0) {
        // Only without a promised digest: it would be installed again at every order.
        return ota_failed(why, OTA_REASON_UP_TO_DATE, "the server's file is the image that runs");
    }
    if (!facts.has_desc) {
        return true;
    }
    if (facts.secure_version < a->floor) {
        return ota_failed(why, OTA_REASON_SECURITY_FLOOR, "image has secure version %" PRIu32 ", the floor is %" PRIu32,
                          facts.secure_version, a->floor);
    }
    if (o->promised && facts.secure_version != o->secure_version) {
        return ota_failed(why, OTA_REASON_IMAGE_INVALID, "image has secure version %" PRIu32 ", its manifest says %" PRIu32,
                          facts.secure_version, o->secure_version);
    }
    return true;
}

// Brings the offered image into the other slot and makes it the one that boots.
//
// The order is the safety. The record is written last, after every byte of the slot was read back from flash and matched; up
// to that one write the board boots what it boots now, whatever happens. After it, the bootloader boots the new image once,
// on trial.
static bool install(const ota_run_t *run, const ota_offer_t *o, ota_fault_t *why)
{
    ota_agent_t *a = run->a;
    ota_run_t timed = {a, ota_now_ms() + OTA_OVERALL_MS};
    ota_report_phase(a, OTA_PHASE_DOWNLOADING, OTA_REASON_NONE, "");
    int64_t size = 0;
    if (!ota_download(&timed, o, &size, why)) {
        return false;
    }
    ota_report_phase(a, OTA_PHASE_VERIFYING, OTA_REASON_NONE, "");
    if (!prove(a, o, size, why)) {
        // A whole image that is not the promised one must not stay bootable: without records the bootloader takes whatever
        // verifies.
        esp_err_t err = ota_slots_unboot(&a->slots, a->slots.target);
        return err == ESP_OK ? false : ota_flash_failed(why, "erase the head of a bad image", err);
    }
    ota_report_phase(a, OTA_PHASE_SWITCHING, OTA_REASON_NONE, "");
    esp_err_t err = ota_slots_switch(&a->slots, a->slots.target);
    if (err != ESP_OK) {
        return ota_flash_failed(why, "switch", err);
    }
    ota_report_phase(a, OTA_PHASE_REBOOTING, OTA_REASON_NONE, "");
    return true;
}

// A TLS session needs one block for its record buffer. Where there is none the handshake fails and is tried again later; the
// log says why.
static void look_at_heap(void)
{
    size_t largest = heap_caps_get_largest_free_block(MALLOC_CAP_8BIT);
    if (largest < CONFIG_OTA_MANAGER_TLS_BLOCK) {
        ESP_LOGW(TAG, "the largest free block has %zu bytes, a TLS session needs %d", largest, CONFIG_OTA_MANAGER_TLS_BLOCK);
    }
}

static bool take(const ota_run_t *run, const ota_offer_t *o, ota_fault_t *why)
{
    const ota_manager_config_t *app = &run->a->app;
    look_at_heap();
    if (app->before_update != NULL) {
        app->before_update(app->ctx);
    }
    bool installed = install(run, o, why);
    if (app->after_update != NULL) {
        app->after_update(installed, app->ctx);
    }
    return installed;
}

bool ota_pursue(const ota_run_t *run, const ota_wish_t *w, bool *restart, ota_fault_t *why)
{
    ota_agent_t *a = run->a;
    *restart = false;
    for (;;) {   // it begins in the phase checking, in which the order was taken up
        ota_offer_t o;
        if (!ota_check_offer(run, w, &o, why)) {
            return false;
        }
        ota_report_facts(a, NULL, o.version, NULL);
        bool ok = true;
        bool waited = false;
        if (o.fits && o.stale) {
            char text[OTA_MAX_MESSAGE];
            snprintf(text, sizeof text, "%s from the mirror, where there may be something newer", o.version);
            ota_report_phase(a, OTA_PHASE_CHECKING, OTA_REASON_NONE, text);
        }
        if (!o.fits) {
            ok = ota_refused_by(why, &o.refusal);
            if (o.refusal.reason == OTA_REASON_UP_TO_DATE) {
                why->phase = OTA_PHASE_IDLE;
            }
        } else if (w->cmd.action == OTA_ACTION_CHECK && !o.force) {
            ota_report_phase(a, OTA_PHASE_IDLE, OTA_REASON_UPDATE_AVAILABLE, "");
            ota_offer_free(&o);
            return true;
        } else if (a->slots.target == NULL) {
            ok = ota_failed(why, OTA_REASON_FLASH_ERROR, "%s", a->slots.no_target);
        } else {
            ok = gate(run, w, &waited, why);
            if (ok && !waited) {
                ok = *restart = take(run, &o, why);
            }
        }
        ota_offer_free(&o);
        if (!ok || !waited) {
            return ok;
        }
        // The offer is as old as the wait was long: ask again.
        ota_report_phase(a, OTA_PHASE_CHECKING, OTA_REASON_NONE, "");
    }
}

void ota_carry_out(ota_agent_t *a)
{
    ota_run_t run = {a, INT64_MAX};   // each part sets itself a deadline; a closed gate has none
    ota_fault_t why = {0};
    if (ota_pursue(&run, &a->wish, &a->restart, &why)) {
        return;
    }
    ota_cause_t cause = ota_run_cause(&run);
    if (cause == OTA_STOPPED || (cause == OTA_REPLACED && ota_report_current(a) == OTA_PHASE_WAITING)) {
        return;   // the order that took its place goes on from here
    }
    ESP_LOGI(TAG, "ended: %s", why.text);
    if (why.phase == OTA_PHASE_REFUSED && a->wish.cmd.action == OTA_ACTION_CHECK) {
        why.phase = OTA_PHASE_IDLE;   // a check refuses nothing, it answers
    }
    ota_report_phase(a, why.phase, why.reason, why.text);
}
