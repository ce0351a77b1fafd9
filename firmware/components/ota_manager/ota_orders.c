// What an operator asks for, on the command topics or through ota_manager.h.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

#include "esp_log.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "ota_version.h"

static const char *TAG = "ota_orders";

#define CLOCK_WAIT_MS (10 * 60 * 1000)

int64_t ota_clock_us(void)
{
    struct timeval t;
    gettimeofday(&t, NULL);
    return (int64_t)t.tv_sec * 1000000 + t.tv_usec;
}

bool ota_clock_set(int64_t now_us)
{
    return now_us >= INT64_C(946684800) * 1000000;   // 2000-01-01
}

bool ota_unsettled(const ota_agent_t *a)
{
    return a->test.runs || a->job == OTA_JOB_PROBE || a->story.told_pending;
}

// An order that comes between a switch and its restart must not begin a job: the restart would be forgotten, and a second switch
// would take the record of the running image.
static bool works(const ota_agent_t *a)
{
    return a->job != OTA_JOB_NONE || a->restart;
}

static bool busy(const ota_agent_t *a)
{
    return a->test.runs || works(a);
}

// Keeps an order until it can be carried out; the latest counts.
static void defer(ota_agent_t *a, const ota_message_t *m)
{
    a->waiting = *m;
    a->has_waiting = true;
    a->needs_clock = false;
}

// Whether an order with a time limit cannot be judged yet, and still may be.
static bool clock_may_come(void)
{
    return !ota_clock_set(ota_clock_us()) && ota_now_ms() < CLOCK_WAIT_MS;
}

static void rollback(ota_agent_t *a, const ota_command_t *c)
{
    const esp_partition_t *slot = NULL;
    ota_refusal_t why = {0};
    esp_err_t err = ota_slots_rollback_target(&a->slots, c->version, a->floor, &slot, &why);
    if (err == ESP_OK) {
        err = ota_slots_go_back(&a->slots, slot, a->sum);
        if (err != ESP_OK) {
            why.reason = OTA_REASON_FLASH_ERROR;
            snprintf(why.detail, sizeof why.detail, "%s", esp_err_to_name(err));
        }
    } else if (why.reason == OTA_REASON_NONE) {
        why.reason = OTA_REASON_NO_ROLLBACK;
        snprintf(why.detail, sizeof why.detail, "%s", esp_err_to_name(err));
    }
    if (err != ESP_OK) {
        ESP_LOGI(TAG, "rollback refused: %s", why.detail);
        ota_report_answer(a, c->id, why.reason, why.detail);
        return;
    }
    char text[OTA_MAX_MESSAGE];
    snprintf(text, sizeof text, "going back to %s", slot->label);
    ota_report_order(a, c->id, OTA_PHASE_REBOOTING, OTA_REASON_OPERATOR, text);
    a->restart = true;
}

// Goes back to the other slot on an operator's word.
//
// The image that is left has shown nothing wrong, so it is neither buried nor quarantined, and its slot stays bootable: the one
// that comes up is put on trial, and where that fails the board is back here. But an order to update that the broker still
// retains would reinstall it at the next connect and undo what the operator did. So the note that tells of the rollback also
// holds the image: an order that was there before the board connected does not bring it back, one that is given while the board
// listens does. Any other release is not held.
static void order_rollback(ota_agent_t *a, const ota_message_t *m, const ota_command_t *c)
{
    if (c->version[0] != '\0' && ota_version_same(c->version, a->version)) {
        ota_report_answer(a, c->id, OTA_REASON_UP_TO_DATE, "");
    } else if (m->retained && c->version[0] == '\0') {
        // Done at every connect it would go back and forth for ever.
        ota_report_answer(a, c->id, OTA_REASON_STALE_COMMAND, "");
    } else if (busy(a)) {
        ota_report_answer(a, c->id, OTA_REASON_BUSY, "");
    } else if (ota_unsettled(a)) {
        defer(a, m);
    } else {
        rollback(a, c);
    }
}

void ota_order(ota_agent_t *a, const ota_message_t *m)
{
    ota_command_t c;
    ota_refusal_t why;
    if (!ota_command_parse(m->bytes, m->len, &c, &why)) {
        char text[OTA_MAX_MESSAGE];
        snprintf(text, sizeof text, why.detail[0] != '\0' ? "%s: %.150s" : "%s%s", ota_reason_text(why.reason), why.detail);
        ota_report_answer(a, "", why.reason, text);
        return;
    }
    int64_t now = ota_clock_us();
    if (c.expires && !ota_clock_set(now)) {
        // Whether it is too late cannot be said before the time is known. It is kept for a while, and then refused: an order
        // that is too old must not be carried out, and one that counts is given again or still retained.
        if (clock_may_come()) {
            defer(a, m);
            a->needs_clock = true;
            ota_report_say(a, "");
        } else {
            ota_report_answer(a, c.id, OTA_REASON_EXPIRED_COMMAND, "the command has a time limit and this device does not know the time");
        }
        return;
    }
    if (ota_command_expired(&c, now)) {
        ota_report_answer(a, c.id, OTA_REASON_EXPIRED_COMMAND, "");
    } else if (c.action == OTA_ACTION_STATUS) {
        ota_report_say(a, c.id);
    } else if (c.action == OTA_ACTION_ROLLBACK) {
        order_rollback(a, m, &c);
    } else if (ota_unsettled(a)) {
        // A retained order is what brought the board here as a rule, and the broker sends it once per session. So it is kept
        // until the story before it has been told. The board says how it is, and not in the name of this order: what it says is
        // what another one led to.
        defer(a, m);
        ota_report_say(a, "");
    } else if (a->job == OTA_JOB_PURSUE && ota_command_same(&c, &a->wish.cmd)) {
        if (c.id[0] != '\0') {
            ota_report_facts(a, c.id, NULL, NULL);
        }
        ota_report_say(a, c.id);
    } else if (a->job == OTA_JOB_PURSUE && c.action == OTA_ACTION_UPDATE && ota_report_current(a) == OTA_PHASE_WAITING) {
        // Nothing is written while a gate is closed, which can be for days: the newer order takes the place.
        defer(a, m);
        ota_worker_cancel(a, OTA_REPLACED);
    } else if (works(a)) {
        ota_report_answer(a, c.id, OTA_REASON_BUSY, "");
    } else if (!a->cfg.web) {
        ota_report_answer(a, c.id, OTA_REASON_BAD_CONFIG, a->cfg.problem);
    } else {
        ota_report_order(a, c.id, OTA_PHASE_CHECKING, OTA_REASON_NONE, "");
        a->wish = (ota_wish_t){.cmd = c, .retained = m->retained};
        ota_worker_start(a, OTA_JOB_PURSUE);
    }
}

void ota_order_next(ota_agent_t *a)
{
    if (!a->has_waiting || works(a) || ota_unsettled(a) || (a->needs_clock && clock_may_come())) {
        return;
    }
    a->taken = a->waiting;
    a->has_waiting = false;
    ota_order(a, &a->taken);
}

void ota_order_settle(ota_agent_t *a)
{
    // It is remembered, in flash, so that it is not told again.
    esp_err_t err = ota_slots_told(&a->slots, &a->story);
    if (err != ESP_OK) {
        ESP_LOGW(TAG, "told rollback not marked, it will be told again: %s", esp_err_to_name(err));
    }
    a->story.told_pending = false;
    ota_report_facts(a, NULL, NULL, "");
    ota_report_phase(a, OTA_PHASE_IDLE, OTA_REASON_NONE, "");
}
