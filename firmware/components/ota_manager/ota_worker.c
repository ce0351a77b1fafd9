#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "esp_log.h"
#include "esp_random.h"
#include "esp_system.h"
#include "esp_timer.h"
#include "ota_agent.h"
#include "sdkconfig.h"

static const char *TAG = "ota_worker";

static bool fill(ota_fault_t *f, ota_phase_t phase, ota_reason_t reason, const char *format, va_list args)
{
    *f = (ota_fault_t){.phase = phase, .reason = reason};
    vsnprintf(f->text, sizeof f->text, format, args);
    return false;
}

bool ota_failed(ota_fault_t *f, ota_reason_t reason, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(f, OTA_PHASE_FAILED, reason, format, args);
    va_end(args);
    return false;
}

bool ota_again(ota_fault_t *f, ota_reason_t reason, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(f, OTA_PHASE_FAILED, reason, format, args);
    va_end(args);
    f->retry = true;
    return false;
}

bool ota_refused(ota_fault_t *f, ota_reason_t reason, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(f, OTA_PHASE_REFUSED, reason, format, args);
    va_end(args);
    return false;
}

bool ota_flash_failed(ota_fault_t *f, const char *doing, esp_err_t err)
{
    return ota_failed(f, OTA_REASON_FLASH_ERROR, "%s: %s", doing, esp_err_to_name(err));
}

bool ota_refused_by(ota_fault_t *f, const ota_refusal_t *why)
{
    const char *text = ota_reason_text(why->reason);
    return ota_refused(f, why->reason, why->detail[0] != '\0' ? "%s: %s" : "%s%s", text, why->detail);
}

int64_t ota_now_ms(void)
{
    return esp_timer_get_time() / 1000;
}

uint32_t ota_pause_next(ota_pause_t *p)
{
    // At random, so that a fleet that lost its server together does not come back together.
    uint64_t whole = (uint64_t)p->first_ms << (p->n < 20 ? p->n : 20);
    if (whole > p->limit_ms) {
        whole = p->limit_ms;
    }
    p->n++;
    uint32_t half = (uint32_t)whole / 2;
    return half + esp_random() % (half + 1);
}

ota_cause_t ota_run_cause(const ota_run_t *run)
{
    atomic_store(&run->a->beat_ms, (unsigned)ota_now_ms());
    int cause = atomic_load(&run->a->cancel);
    if (cause != OTA_GOES_ON) {
        return (ota_cause_t)cause;
    }
    return ota_now_ms() >= run->deadline_ms ? OTA_DEADLINE : OTA_GOES_ON;
}

bool ota_run_sleep(const ota_run_t *run, int64_t ms)
{
    int64_t until = ota_now_ms() + ms;
    bool late = until > run->deadline_ms;
    if (late) {
        until = run->deadline_ms;
    }
    while (ota_run_cause(run) == OTA_GOES_ON) {
        int64_t rest = until - ota_now_ms();
        if (rest <= 0) {
            return !late;
        }
        // A minute at most: ticks are 32 bits.
        xSemaphoreTake(run->a->cancelled, pdMS_TO_TICKS((uint32_t)(rest < 60000 ? rest : 60000)) + 1);
    }
    return false;
}

// Restarts out of a trial whose loop hangs past the deadline, in read_battery or on_status as a rule: a task that waits for ever
// bites no watchdog. The record is PENDING, so the bootloader goes back. Nothing of the reporter is asked, the loop may hold it.
static void end_hung_trial(const ota_agent_t *a)
{
    bool late = ota_now_ms() >= a->test.deadline_ms + OTA_GRACE_MS && !atomic_load(&a->test.given_up);
    if (late && (!a->cfg.have_ota || a->cfg.ota.auto_rollback_enabled)) {
        ESP_LOGE(TAG, "the trial is not judged in time: restarting out of it");
        esp_restart();
    }
}

// Asks for the version file until the server answers, then sees to it that the trial ends; until it does.
static void probe(ota_agent_t *a)
{
    ota_run_t run = {a, INT64_MAX};
    ota_pause_t pause = {.first_ms = 1000, .limit_ms = 30 * 1000};
    bool answered = false;
    do {
        end_hung_trial(a);
        if (!answered && a->cfg.web && ota_probe_server(&run)) {
            answered = true;
            atomic_store(&a->server, true);
        }
    } while (ota_run_sleep(&run, answered ? 10 * 1000 : ota_pause_next(&pause)));
}

static void work(void *arg)
{
    ota_agent_t *a = arg;
    for (;;) {
        ulTaskNotifyTake(pdTRUE, portMAX_DELAY);
        if (a->job == OTA_JOB_PROBE) {
            probe(a);
        } else {
            ota_carry_out(a);
        }
        ESP_LOGD(TAG, "stack left: %u", (unsigned)uxTaskGetStackHighWaterMark(NULL));
        ota_wake(a, OTA_WAKE_DONE);
    }
}

esp_err_t ota_worker_init(ota_agent_t *a)
{
    a->cancelled = xSemaphoreCreateBinary();
    if (a->cancelled == NULL) {
        return ESP_ERR_NO_MEM;
    }
    return xTaskCreate(work, "ota_worker", CONFIG_OTA_MANAGER_WORKER_STACK, a, a->app.task_priority, &a->worker) == pdPASS
               ? ESP_OK
               : ESP_ERR_NO_MEM;
}

void ota_worker_start(ota_agent_t *a, ota_job_t job)
{
    a->job = job;
    a->restart = false;
    atomic_store(&a->beat_ms, (unsigned)ota_now_ms());
    atomic_store(&a->cancel, OTA_GOES_ON);
    xSemaphoreTake(a->cancelled, 0);
    xTaskNotifyGive(a->worker);
}

void ota_worker_cancel(ota_agent_t *a, ota_cause_t why)
{
    atomic_store(&a->cancel, why);
    xSemaphoreGive(a->cancelled);
}
