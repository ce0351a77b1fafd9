// The one instance, its boot and its loop.
#include "ota_manager.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "esp_efuse.h"
#include "esp_idf_version.h"
#include "esp_log.h"
#include "esp_mac.h"
#include "esp_random.h"
#include "esp_system.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "ota_version.h"
#include "sdkconfig.h"

// With it printf knows neither 64-bit numbers nor %zu (Kconfig of newlib in ESP-IDF 5, of esp_libc in 6): a status would hold no
// JSON, a Range header no number, and the text behind such a number would be read from a wrong address.
#if defined(CONFIG_NEWLIB_NANO_FORMAT) || defined(CONFIG_LIBC_NEWLIB_NANO_FORMAT)
#error "ota_manager writes 64-bit numbers with printf: switch off the nano formatting of newlib in menuconfig"
#endif

static const char *TAG = "ota_manager";

#define BATTERY_MS 2000   // a reading takes a second
#define FLUSH_MS 2000
#define LONGEST_NAP_MS 60000

static ota_agent_t agent;

void ota_wake(ota_agent_t *a, uint32_t why)
{
    if (a->loop != NULL) {
        xTaskNotify(a->loop, why, eSetBits);
    }
}

bool ota_battery(ota_agent_t *a, ota_battery_reading_t *out)
{
    ota_battery_t b = {0};
    *out = (ota_battery_reading_t){0};
    // A reading that hangs in one task must not hold the other: that one ends the trial, or the job that hangs.
    if (xSemaphoreTake(a->battery_lock, pdMS_TO_TICKS(BATTERY_MS)) != pdTRUE) {
        return false;
    }
    bool valid = a->app.read_battery(&b, a->app.ctx);
    xSemaphoreGive(a->battery_lock);
    *out = (ota_battery_reading_t){
        .valid = valid, .soc_pct = b.soc_pct, .pack_current_a = b.pack_current_a, .charging = b.charging,
        .has_temp = b.has_temp, .temp_min_c = b.temp_min_c, .temp_max_c = b.temp_max_c,
    };
    return valid;
}

// Words last: what happened is in flash already, so a lost status loses nothing.
static void restart(ota_agent_t *a)
{
    int64_t until = ota_now_ms() + FLUSH_MS;
    for (;;) {
        ota_phase_t phase;
        ota_report_acked(a, atomic_load(&a->link.acked_id), &phase);
        ota_report_pump(a);
        if (ota_report_idle(a) || ota_now_ms() >= until) {
            break;
        }
        uint32_t bits;
        xTaskNotifyWait(0, UINT32_MAX, &bits, pdMS_TO_TICKS(20));
        if (bits & OTA_WAKE_DOWN) {
            break;
        }
    }
    // With a word of leave: the broker would publish the will of a session that just ends.
    ota_link_close(a);
    esp_restart();
}

// Says the first phase of this boot and starts the trial, if it is one.
static void begin(ota_agent_t *a)
{
    if (a->story.told_pending) {
        char failed[OTA_DIGEST_TEXT + 1] = "";
        static const uint8_t unknown[32];
        if (memcmp(a->story.failed, unknown, sizeof unknown) != 0) {
            ota_hex(a->story.failed, 32, failed);
        }
        ota_report_facts(a, NULL, NULL, failed);
        ota_report_phase(a, OTA_PHASE_ROLLED_BACK, a->story.cause, "");
    } else if (atomic_load(&a->trial)) {
        ota_report_phase(a, OTA_PHASE_TRIAL, OTA_REASON_NONE, "");
    } else if (a->cfg.problem[0] != '\0') {
        ota_report_phase(a, OTA_PHASE_IDLE, OTA_REASON_BAD_CONFIG, a->cfg.problem);
    } else {
        ota_report_phase(a, OTA_PHASE_IDLE, OTA_REASON_NONE, "");
    }
    if (atomic_load(&a->trial)) {
        ota_trial_begin(a);
    }
    if (ota_link_open(a) != ESP_OK) {
        ESP_LOGE(TAG, "no memory for the session with the broker");
    }
}

static void acked(ota_agent_t *a)
{
    ota_phase_t phase;
    if (!ota_report_acked(a, atomic_load(&a->link.acked_id), &phase)) {
        return;
    }
    atomic_store(&a->broker, true);
    if (a->story.told_pending && phase == OTA_PHASE_ROLLED_BACK) {
        if (a->test.runs || a->job != OTA_JOB_NONE) {
            a->story_acked = true;   // told at the end of the trial
        } else {
            ota_order_settle(a);
        }
    }
    ota_order_next(a);
}

static void quiet(ota_agent_t *a)
{
    if (a->job != OTA_JOB_NONE || a->test.runs) {
        return;
    }
    if (a->story.told_pending && a->story_acked) {
        a->story_acked = false;
        ota_order_settle(a);
    }
    if (a->reload) {
        a->reload = false;
        // The client keeps pointers into the old texts, so the session goes with them.
        ota_report_disconnected(a);
        ota_link_close(a);
        ota_settings_free(&a->cfg);
        ota_settings_read(a->app.storage_path, &a->cfg);
        ota_settings_believe_image(&a->cfg, a->slots.running);
        ota_link_open(a);
    }
    ota_order_next(a);
}

static void listen(ota_agent_t *a, uint32_t bits)
{
    // A session is begun by the loop only, after it has seen the end of the one before: of both, up came first.
    if (bits & OTA_WAKE_UP && ota_link_is_up(a)) {
        ota_report_connected(a);
    }
    if (bits & OTA_WAKE_ACK) {
        acked(a);
    }
    if (bits & OTA_WAKE_DOWN) {
        ota_report_disconnected(a);
        ota_link_is_down(a);
    }
    if (bits & OTA_WAKE_CONFIRM && atomic_load(&a->trial)) {
        esp_err_t err = ota_trial_confirm(a);
        if (err != ESP_OK) {
            ESP_LOGE(TAG, "not confirmed: %s", esp_err_to_name(err));
        }
    }
    if (bits & OTA_WAKE_RELOAD) {
        a->reload = true;
    }
    if (bits & OTA_WAKE_DONE) {
        a->job = OTA_JOB_NONE;
    }
    while (xQueueReceive(a->link.messages, &a->taken, 0) == pdTRUE) {
        ota_order(a, &a->taken);
    }
}

static int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static TickType_t nap(ota_agent_t *a)
{
    int64_t due = sooner(ota_report_due_ms(a), sooner(ota_link_due_ms(a), ota_trial_due_ms(a)));
    int64_t ms = sooner(due - ota_now_ms(), LONGEST_NAP_MS);
    if (a->has_waiting) {
        ms = sooner(ms, 1000);   // the clock may be set meanwhile
    }
    return ms <= 0 ? 0 : pdMS_TO_TICKS((uint32_t)ms) + 1;
}

// Everything that waits does so for half a second at a time, but for what a library keeps to itself: esp_http_client reads a
// header to its end however slowly it trickles. The flash is the only memory, so a restart costs nothing but the order.
static bool hangs(ota_agent_t *a)
{
    bool hang = a->job != OTA_JOB_NONE && !a->test.runs && (unsigned)ota_now_ms() - atomic_load(&a->beat_ms) >= OTA_HANG_MS;
    if (hang && ota_phase_may(ota_report_current(a), OTA_PHASE_FAILED)) {
        ota_report_phase(a, OTA_PHASE_FAILED, OTA_REASON_STALLED, "the server holds the line and says nothing: restarting");
    }
    return hang;
}

static const char *reset_word(esp_reset_reason_t r)
{
    switch (r) {
    case ESP_RST_SW:
    case ESP_RST_DEEPSLEEP:
        return "software";
    case ESP_RST_PANIC:
        return "panic";
    case ESP_RST_INT_WDT:
    case ESP_RST_TASK_WDT:
    case ESP_RST_WDT:
        return "watchdog";
    case ESP_RST_BROWNOUT:
        return "brownout";
#if ESP_IDF_VERSION >= ESP_IDF_VERSION_VAL(5, 3, 0)
    case ESP_RST_CPU_LOCKUP:
        return "panic";
    case ESP_RST_PWR_GLITCH:
        return "brownout";
#endif
    default:
        return "poweron";
    }
}

// Fills in what the running image and the configuration say.
static esp_err_t know(ota_agent_t *a)
{
    esp_err_t err = ota_slots_open(&a->slots);
    ota_image_facts_t facts;
    if (err == ESP_OK) {
        err = ota_slots_verify(a->slots.running, &facts);
    }
    if (err == ESP_OK) {
        err = ota_slots_digest(a->slots.running, 0, facts.file_len, a->sum);
    }
    if (err != ESP_OK) {
        return err;
    }
    ota_hex(a->sum, sizeof a->sum, a->digest);
    ota_settings_believe_image(&a->cfg, a->slots.running);
    const char *configured = a->cfg.have_ota ? a->cfg.ota.current_version : "";
    bool own = facts.has_desc && (!ota_version_generic(facts.version) || configured[0] == '\0');
    snprintf(a->version, sizeof a->version, "%s", own ? facts.version : configured);
    if (facts.has_desc) {
        snprintf(a->project, sizeof a->project, "%s", facts.project);
        a->floor = facts.secure_version;
    }
    if (a->slots.anti_rollback) {
        a->floor = esp_efuse_read_secure_version();
    }
    uint8_t mac[8] = {0};
    if (a->cfg.have_ota && a->cfg.ota.device_id[0] != '\0') {
        snprintf(a->id, sizeof a->id, "%s", a->cfg.ota.device_id);
    } else {
        err = esp_read_mac(mac, ESP_MAC_BASE);
        ota_device_id_from_mac(mac, a->id);
    }
    // The time as well: random numbers are seeded on a test bench, and without radio on a chip.
    snprintf(a->boot_id, sizeof a->boot_id, "%" PRIx64 "-%08" PRIx32, (uint64_t)ota_clock_us(), esp_random());
    a->reset = reset_word(esp_reset_reason());
    return err;
}

// Settles what the last boot left. In the loop, because it takes more stack than the main task of an application has.
static esp_err_t boot(ota_agent_t *a)
{
    ota_settings_read(a->app.storage_path, &a->cfg);
    esp_err_t err = know(a);
    if (err == ESP_OK) {
        err = ota_slots_settle(&a->slots, a->reset, &a->story);
    }
    if (err != ESP_OK) {
        return err;
    }
    if (a->story.restart) {
        esp_restart();
    }
    atomic_store(&a->trial, a->story.trial);
    ota_phase_t first = a->story.told_pending ? OTA_PHASE_ROLLED_BACK : a->story.trial ? OTA_PHASE_TRIAL : OTA_PHASE_IDLE;
    err = ota_report_init(a, first);
    return err == ESP_OK ? ota_worker_init(a) : err;
}

static void loop(void *arg)
{
    ota_agent_t *a = arg;
    a->boot_err = boot(a);
    atomic_store(&a->ready, a->boot_err == ESP_OK);
    bool ready = atomic_load(&a->ready);
    xSemaphoreGive(a->booted);
    if (!ready) {
        vTaskDelete(NULL);
    }
    begin(a);
    for (;;) {
        uint32_t bits = 0;
        xTaskNotifyWait(0, UINT32_MAX, &bits, nap(a));
        listen(a, bits);
        bool over = ota_trial_tick(a);
        quiet(a);
        ota_link_tick(a);
        ota_report_pump(a);
        if (over || (a->job == OTA_JOB_NONE && a->restart) || hangs(a)) {
            restart(a);
        }
    }
}

ota_manager_config_t ota_manager_default_config(void)
{
    return (ota_manager_config_t){
        .storage_path = "/spiffs",
        .task_stack = CONFIG_OTA_MANAGER_TASK_STACK,
        .task_priority = CONFIG_OTA_MANAGER_TASK_PRIORITY,
        .frame_ms = 1000,
    };
}

static void fill_in(ota_manager_config_t *c)
{
    ota_manager_config_t d = ota_manager_default_config();
    c->storage_path = c->storage_path != NULL ? c->storage_path : d.storage_path;
    c->task_stack = c->task_stack > 0 ? c->task_stack : d.task_stack;
    c->task_priority = c->task_priority > 0 ? c->task_priority : d.task_priority;
    c->frame_ms = c->frame_ms > 0 ? c->frame_ms : d.frame_ms;
}

esp_err_t ota_manager_init(const ota_manager_config_t *cfg)
{
    ota_agent_t *a = &agent;
    if (cfg == NULL || cfg->read_battery == NULL) {
        return ESP_ERR_INVALID_ARG;
    }
    if (a->started) {
        return ESP_ERR_INVALID_STATE;
    }
    a->started = true;
    a->app = *cfg;
    fill_in(&a->app);
    a->battery_lock = xSemaphoreCreateMutex();
    a->booted = xSemaphoreCreateBinary();
    a->link.messages = xQueueCreate(OTA_COMMANDS_QUEUED, sizeof(ota_message_t));
    if (a->battery_lock == NULL || a->booted == NULL || a->link.messages == NULL ||
        xTaskCreate(loop, "ota_manager", a->app.task_stack, a, a->app.task_priority, &a->loop) != pdPASS) {
        return ESP_ERR_NO_MEM;
    }
    xSemaphoreTake(a->booted, portMAX_DELAY);
    return a->boot_err;
}

static esp_err_t wake(uint32_t why)
{
    if (!atomic_load(&agent.ready)) {
        return ESP_ERR_INVALID_STATE;
    }
    ota_wake(&agent, why);
    return ESP_OK;
}

// Gives an order as if it had come over the command topic just now.
static esp_err_t give(const char *text)
{
    static const ota_message_t empty;
    if (!atomic_load(&agent.ready)) {
        return ESP_ERR_INVALID_STATE;
    }
    ota_message_t m = empty;
    m.len = (uint16_t)strlen(text);
    memcpy(m.bytes, text, m.len);
    if (xQueueSend(agent.link.messages, &m, 0) != pdTRUE) {
        return ESP_ERR_NO_MEM;
    }
    return wake(OTA_WAKE_COMMAND);
}

esp_err_t ota_manager_load_config(void)
{
    return wake(OTA_WAKE_RELOAD);
}

esp_err_t ota_manager_check_update(void)
{
    return give("{\"action\":\"check\"}");
}

esp_err_t ota_manager_start_update(bool force)
{
    return give(force ? "{\"action\":\"update\",\"force\":true}" : "{\"action\":\"update\"}");
}

esp_err_t ota_manager_rollback(void)
{
    return give("{\"action\":\"rollback\"}");
}

esp_err_t ota_manager_mark_valid(void)
{
    return wake(OTA_WAKE_CONFIRM);
}

esp_err_t ota_manager_get_status(ota_status_t *out)
{
    if (out == NULL) {
        return ESP_ERR_INVALID_ARG;
    }
    if (!atomic_load(&agent.ready)) {
        return ESP_ERR_INVALID_STATE;
    }
    ota_report_get(&agent, out);
    return ESP_OK;
}

const char *ota_manager_get_version(void)
{
    return agent.version;
}

bool ota_manager_is_rollback_pending(void)
{
    return atomic_load(&agent.trial);
}
