// The first boot of a new image: it stays when it has shown everything a monitor is there for within the deadline, and is
// given up when not. A crash, a hang and a power cut need nothing of this: the record is PENDING, and the bootloader ends it. Of a
// loop that waits for ever, which no watchdog sees, the worker makes a restart.
#include <stdio.h>

#include "esp_efuse.h"
#include "esp_log.h"
#include "esp_system.h"
#include "ota_agent.h"
#include "sdkconfig.h"

static const char *TAG = "ota_trial";

#define CONFIRM_PAUSE_MS 30000   // between two tries to confirm where the flash does not take it: each is an erase
#define FRAMES 3
#define DEADLINE_S 300
#define MIN_HEAP (16 << 10)

// The first thing that the image has not shown.
static ota_reason_t missing(const ota_agent_t *a)
{
    const ota_config_t *cfg = &a->cfg.ota;
    bool broker = atomic_load(&a->broker);
    bool server = atomic_load(&a->server);
    if (!atomic_load(&a->network) && !server && !broker) {
        return OTA_REASON_NO_NETWORK;
    }
    if (!broker) {
        return OTA_REASON_NO_BROKER;
    }
    if (!server) {
        return OTA_REASON_NO_SERVER;
    }
    if (a->test.frames < (a->cfg.have_ota && cfg->bms_frames > 0 ? cfg->bms_frames : FRAMES)) {
        return OTA_REASON_BMS_SILENT;
    }
    int64_t floor = a->cfg.have_ota && cfg->min_heap > 0 ? cfg->min_heap : MIN_HEAP;
    return (int64_t)esp_get_free_heap_size() < floor ? OTA_REASON_LOW_HEAP : OTA_REASON_NONE;
}

void ota_trial_begin(ota_agent_t *a)
{
    int64_t now = ota_now_ms();
    int64_t deadline = a->cfg.have_ota && a->cfg.ota.deadline_s > 0 ? a->cfg.ota.deadline_s : DEADLINE_S;
    a->test = (ota_trial_t){.runs = true, .deadline_ms = now + deadline * 1000, .frame_ms = now + a->app.frame_ms};
    ota_worker_start(a, OTA_JOB_PROBE);
}

esp_err_t ota_trial_confirm(ota_agent_t *a)
{
    // VALID first; the security floor is raised only when that is in flash. The other order would leave a board, after a power
    // cut, whose one proven image is below its floor.
    esp_err_t err = ota_slots_confirm(&a->slots);
    if (err != ESP_OK) {
        return err;
    }
    if (a->slots.anti_rollback) {
        a->floor = esp_efuse_read_secure_version();
    }
    atomic_store(&a->trial, false);
    ota_report_proven(a);
    if (ota_report_current(a) == OTA_PHASE_TRIAL) {
        ota_report_phase(a, OTA_PHASE_CONFIRMED, OTA_REASON_NONE, "");
        ota_report_phase(a, OTA_PHASE_IDLE, OTA_REASON_NONE, "");
    }
    if (a->test.runs) {
        a->test.runs = false;
        ota_worker_cancel(a, OTA_STOPPED);
    }
    return ESP_OK;
}

// Marks the running image as failed. False with why where it stays.
static bool give_up(ota_agent_t *a, ota_reason_t cause, const char **why)
{
    if (a->cfg.have_ota && !a->cfg.ota.auto_rollback_enabled) {
        *why = "auto_rollback_enabled is false";
        return false;
    }
    bool possible = false;
    esp_err_t err = ota_slots_rollback_possible(&a->slots, &possible);
    if (err == ESP_OK && !possible) {
        *why = "there is no other image to go back to";
        return false;
    }
    if (err == ESP_OK) {
        err = ota_slots_give_up(&a->slots, cause, a->sum);
    }
    if (err != ESP_OK) {
        *why = esp_err_to_name(err);
        return false;
    }
    ota_report_phase(a, OTA_PHASE_REBOOTING, cause, "");
    return true;
}

// The deadline has passed. True: restart.
static bool late(ota_agent_t *a)
{
    ota_reason_t cause = missing(a);
    const char *why = "";
    if (give_up(a, cause, &why)) {
        return true;
    }
    // It goes on watching: what is not undone may still become healthy.
    ESP_LOGW(TAG, "not healthy (%s), and it stays: %s", ota_reason_name(cause), why);
    char text[OTA_MAX_MESSAGE];
    snprintf(text, sizeof text, "%s; it stays because %s", ota_reason_text(cause), why);
    ota_report_phase(a, ota_report_current(a), cause, text);
    return false;
}

// Confirms what is healthy. False when the flash did not take it.
static bool keep_image(ota_agent_t *a, int64_t now)
{
    esp_err_t err = ota_trial_confirm(a);
    if (err == ESP_OK) {
        return true;
    }
    // Healthy, but the next reset would undo it: that is no confirmation, and nobody is told that it is one.
    a->test.retry_ms = now + CONFIRM_PAUSE_MS;
    ESP_LOGE(TAG, "not confirmed: %s", esp_err_to_name(err));
    char text[OTA_MAX_MESSAGE];
    snprintf(text, sizeof text, "healthy, but not confirmed: %s", esp_err_to_name(err));
    ota_report_phase(a, ota_report_current(a), OTA_REASON_FLASH_ERROR, text);
    return false;
}

bool ota_trial_tick(ota_agent_t *a)
{
    ota_trial_t *t = &a->test;
    int64_t now = ota_now_ms();
    if (!t->runs) {
        return false;
    }
    if (!atomic_load(&t->given_up) && now >= t->deadline_ms) {
        atomic_store(&t->given_up, true);
        // The last of it may have come after the last look.
        if (missing(a) == OTA_REASON_NONE && t->retry_ms == 0 && keep_image(a, now)) {
            return false;
        }
        if (late(a)) {
            return true;
        }
    }
    if (now < t->frame_ms) {
        return false;
    }
    t->frame_ms += a->app.frame_ms;
    if (t->frame_ms <= now) {
        t->frame_ms = now + a->app.frame_ms;   // after a long pause of the loop no row of readings at once
    }
    ota_battery_reading_t battery;
    if (ota_battery(a, &battery)) {
        t->frames++;
    }
    if (missing(a) == OTA_REASON_NONE && now >= t->retry_ms) {
        keep_image(a, now);
    }
    return false;
}

int64_t ota_trial_due_ms(const ota_agent_t *a)
{
    const ota_trial_t *t = &a->test;
    if (!t->runs) {
        return INT64_MAX;
    }
    return !atomic_load(&t->given_up) && t->deadline_ms < t->frame_ms ? t->deadline_ms : t->frame_ms;
}
