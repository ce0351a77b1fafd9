// The reporter: turns what the board does into statuses. It holds the phase, and holds every change of it against the table of
// docs/protocol.md section 4.
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "esp_heap_caps.h"
#include "esp_log.h"
#include "esp_system.h"
#include "ota_agent.h"
#include "ota_crypto.h"
#include "sdkconfig.h"

static const char *TAG = "ota_status";

#define ANSWER_EVERY_MS 1000     // at most one refusal of a command per this time
#define PROGRESS_EVERY_MS 500    // at most one status about progress per this time
#define PROGRESS_TIME_MS 2000    // at least one per this time
#define PROGRESS_STEP 5          // percent: or after this much
#define REPEAT_FIRST_MS 5000     // until a status is said again that the broker did not take,
#define REPEAT_LIMIT_MS 120000   // and at most, when it is lost again and again
#define ACK_MS 20000

static void lock(ota_reporter_t *r)
{
    xSemaphoreTake(r->lock, portMAX_DELAY);
}

static void unlock(ota_reporter_t *r)
{
    xSemaphoreGive(r->lock);
}

static void keep(char *to, size_t size, const char *text)
{
    if (text != NULL) {
        snprintf(to, size, "%s", text);
    }
}

static const char *sentence(const char *message, ota_reason_t reason, ota_phase_t p)
{
    if (message != NULL && message[0] != '\0') {
        return message;
    }
    return reason != OTA_REASON_NONE ? ota_reason_text(reason) : ota_phase_text(p);
}

static bool within(int64_t since, int64_t now, int64_t span)
{
    return since != INT64_MIN && now - since < span;
}

// Fills in what changes from one status to the next, and queues it. The caller holds the lock.
static void say(ota_agent_t *a, const ota_current_t *what)
{
    ota_reporter_t *r = &a->rep;
    // Progress that has not gone out yet says less than this one. A changed phase is always said.
    ota_said_t *last = r->queued > 0 ? &r->queue[r->queued - 1] : NULL;
    bool newer = last != NULL && what->phase == OTA_PHASE_DOWNLOADING && last->s.phase == OTA_PHASE_DOWNLOADING && last->s.done > 0;
    if (!newer && r->queued == OTA_STATUSES_QUEUED) {
        memmove(r->queue, r->queue + 1, (OTA_STATUSES_QUEUED - 1) * sizeof r->queue[0]);
        r->queued--;
    }
    if (!newer) {
        r->queued++;
    }
    ota_said_t *s = &r->queue[r->queued - 1];
    s->s = *what;
    s->seq = ++r->seq;
    s->timestamp_us = ota_clock_us();
    s->uptime_s = ota_now_ms() / 1000;
    s->free_heap = (int64_t)esp_get_free_heap_size();
    s->min_free_heap = (int64_t)esp_get_minimum_free_heap_size();
    s->largest_block = (int64_t)heap_caps_get_largest_free_block(MALLOC_CAP_8BIT);
    s->battery = (ota_battery_reading_t){0};   // read when it is shown
    s->shown = s->answer = false;
    r->said_ms = ota_now_ms();
    r->said_pct = what->progress_pct;
    ota_wake(a, OTA_WAKE_STATUS);
}

esp_err_t ota_report_init(ota_agent_t *a, ota_phase_t first)
{
    ota_reporter_t *r = &a->rep;
    r->lock = xSemaphoreCreateMutex();
    r->cur.phase = first;
    r->cur.trial = atomic_load(&a->trial);
    r->cur.floor = a->floor;
    r->said_ms = r->asked_ms = r->answered_ms = INT64_MIN;
    r->said_pct = -1;
    r->repeat_ms = INT64_MAX;
    return r->lock != NULL ? ESP_OK : ESP_ERR_NO_MEM;
}

// Changes the phase and says so. The caller holds the lock.
static void step(ota_agent_t *a, ota_phase_t p, ota_reason_t reason, const char *message)
{
    ota_current_t *c = &a->rep.cur;
    if (!ota_phase_may(c->phase, p)) {
        ESP_LOGE(TAG, "phase %s out of order after %s", ota_phase_name(p), ota_phase_name(c->phase));
    }
    c->phase = p;
    c->reason = reason;
    keep(c->message, sizeof c->message, sentence(message, reason, p));
    switch (p) {
    case OTA_PHASE_DOWNLOADING:
    case OTA_PHASE_VERIFYING:
    case OTA_PHASE_SWITCHING:
    case OTA_PHASE_REBOOTING:
        break;
    case OTA_PHASE_CONFIRMED:
        c->progress_pct = 100;
        c->trial = false;
        break;
    default:
        c->progress_pct = 0;
        c->done = c->total = 0;
        c->retries = 0;
    }
    // The limit on statuses is one on progress and answers. Changes of phase are always said: the table allows an update
    // about eight of them, and a server that misses one would take a working board for a silent one.
    say(a, c);
}

void ota_report_phase(ota_agent_t *a, ota_phase_t p, ota_reason_t reason, const char *message)
{
    lock(&a->rep);
    step(a, p, reason, message);
    unlock(&a->rep);
}

void ota_report_order(ota_agent_t *a, const char *id, ota_phase_t p, ota_reason_t reason, const char *message)
{
    ota_current_t *c = &a->rep.cur;
    lock(&a->rep);
    keep(c->command_id, sizeof c->command_id, id);
    c->available[0] = c->failed[0] = '\0';
    step(a, p, reason, message);
    unlock(&a->rep);
}

void ota_report_progress(ota_agent_t *a, int64_t done, int64_t total, int retries)
{
    ota_reporter_t *r = &a->rep;
    lock(r);
    r->cur.done = done;
    r->cur.total = total > 0 ? total : 0;
    r->cur.retries = retries;
    if (total > 0) {
        int64_t pct = done * 100 / total;
        r->cur.progress_pct = pct > 100 ? 100 : (int)pct;
    }
    int64_t now = ota_now_ms();
    int step = r->cur.progress_pct - r->said_pct;
    if (!within(r->said_ms, now, PROGRESS_EVERY_MS) &&
        (!within(r->said_ms, now, PROGRESS_TIME_MS) || step >= PROGRESS_STEP || step <= -PROGRESS_STEP)) {
        say(a, &r->cur);
    }
    unlock(r);
}

// Says what as the answer to the command of that id.
static void reply(ota_agent_t *a, ota_current_t *what, const char *id)
{
    if (id[0] != '\0') {
        keep(what->command_id, sizeof what->command_id, id);
    }
    say(a, what);
    a->rep.queue[a->rep.queued - 1].answer = true;
}

void ota_report_answer(ota_agent_t *a, const char *id, ota_reason_t reason, const char *message)
{
    ota_reporter_t *r = &a->rep;
    lock(r);
    int64_t now = ota_now_ms();
    if (within(r->answered_ms, now, ANSWER_EVERY_MS)) {
        r->unsaid++;   // only counted; the count goes with the next
        unlock(r);
        return;
    }
    r->answered_ms = now;
    ota_current_t c = r->cur;
    c.reason = reason;
    if (r->unsaid > 0) {
        snprintf(c.message, sizeof c.message, "%.*s (%d more commands refused)", (int)sizeof c.message - 48,
                 sentence(message, reason, c.phase), r->unsaid);
        r->unsaid = 0;
    } else {
        keep(c.message, sizeof c.message, sentence(message, reason, c.phase));
    }
    reply(a, &c, id);
    unlock(r);
}

void ota_report_say(ota_agent_t *a, const char *id)
{
    ota_reporter_t *r = &a->rep;
    lock(r);
    int64_t now = ota_now_ms();
    if (!within(r->asked_ms, now, PROGRESS_EVERY_MS)) {
        r->asked_ms = now;
        ota_current_t c = r->cur;
        reply(a, &c, id);
    }
    unlock(r);
}

ota_phase_t ota_report_current(ota_agent_t *a)
{
    lock(&a->rep);
    ota_phase_t p = a->rep.cur.phase;
    unlock(&a->rep);
    return p;
}

void ota_report_facts(ota_agent_t *a, const char *command_id, const char *available, const char *failed)
{
    ota_current_t *c = &a->rep.cur;
    lock(&a->rep);
    keep(c->command_id, sizeof c->command_id, command_id);
    keep(c->available, sizeof c->available, available);
    keep(c->failed, sizeof c->failed, failed);
    unlock(&a->rep);
}

void ota_report_proven(ota_agent_t *a)
{
    lock(&a->rep);
    a->rep.cur.trial = false;
    a->rep.cur.floor = a->floor;
    unlock(&a->rep);
}

void ota_report_get(ota_agent_t *a, ota_status_t *out)
{
    memset(out, 0, sizeof *out);
    lock(&a->rep);
    const ota_current_t *c = &a->rep.cur;
    out->status = (ota_status_code_t)ota_phase_code(c->phase);
    out->progress_pct = c->progress_pct;
    out->rollback_pending = c->trial;
    snprintf(out->phase, sizeof out->phase, "%s", ota_phase_name(c->phase));
    snprintf(out->reason, sizeof out->reason, "%s", ota_reason_name(c->reason));
    snprintf(out->message, sizeof out->message, "%.*s", (int)sizeof out->message - 1, c->message);
    snprintf(out->available_version, sizeof out->available_version, "%s", c->available);
    unlock(&a->rep);
    snprintf(out->current_version, sizeof out->current_version, "%s", a->version);
}

static size_t render(const ota_agent_t *a, const ota_said_t *s, char *out, size_t size)
{
    ota_status_doc_t d = {
        .timestamp_us = s->timestamp_us, .uptime_sec = s->uptime_s,
        .phase = s->s.phase, .progress_pct = s->s.progress_pct, .message = s->s.message,
        .current_version = a->version, .available_version = s->s.available,
        .rollback_pending = s->s.trial, .free_heap = s->free_heap,
        .device_id = a->id, .boot_id = a->boot_id, .seq = s->seq, .reason = s->s.reason, .command_id = s->s.command_id,
        .slot = a->slots.running->label, .slot_size = a->slots.target != NULL ? (int64_t)a->slots.target->size : 0,
        .chip = CONFIG_IDF_TARGET, .project = a->project, .secure_version = s->s.floor,
        .image_sha256 = a->digest, .failed_sha256 = s->s.failed,
        .rollback_protected = a->slots.rollback, .signed_only = a->cfg.trust.count > 0,
        .reset_reason = a->reset, .bytes_done = s->s.done, .bytes_total = s->s.total, .retries = s->s.retries,
        .min_free_heap = s->min_free_heap, .largest_free_block = s->largest_block, .battery = s->battery,
    };
    return ota_status_write(&d, out, size);
}

size_t ota_report_will(ota_agent_t *a, char *out, size_t size)
{
    // The broker keeps the will of this session to its end, when a trial is long over as a rule.
    ota_said_t *s = &a->rep.sent;
    memset(s, 0, sizeof *s);
    lock(&a->rep);
    s->s = a->rep.cur;
    unlock(&a->rep);
    s->s.phase = OTA_PHASE_OFFLINE;
    s->s.reason = OTA_REASON_NONE;
    s->s.progress_pct = 0;
    s->s.trial = false;
    keep(s->s.message, sizeof s->s.message, "connection lost");
    return render(a, s, out, size);
}

// Reads the pack for *s, and writes it down where *s waits. Without the lock: the application is asked, which may take a second
// or hang, and may ask for the status itself.
static void read_pack(ota_agent_t *a, ota_said_t *s)
{
    ota_reporter_t *r = &a->rep;
    ota_battery(a, &s->battery);
    lock(r);
    for (unsigned i = 0; i < r->queued; i++) {
        if (r->queue[i].seq == s->seq) {
            r->queue[i].battery = s->battery;
        }
    }
    unlock(r);
}

// Shows the application what was said, once each, whether there is a session or not.
static void show(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    for (;;) {
        lock(r);
        unsigned i = 0;
        while (i < r->queued && r->queue[i].shown) {
            i++;
        }
        if (i == r->queued) {
            unlock(r);
            return;
        }
        r->queue[i].shown = true;
        ota_said_t s = r->queue[i];
        unlock(r);
        read_pack(a, &s);
        ESP_LOGD(TAG, "%s %s %d %%", ota_phase_name(s.s.phase), ota_reason_name(s.s.reason), s.s.progress_pct);
        size_t n = render(a, &s, r->text, sizeof r->text);
        if (n > 0 && a->app.on_status != NULL) {
            a->app.on_status(r->text, n, a->app.ctx);
        }
    }
}

static void forget(ota_reporter_t *r)
{
    lock(r);
    r->queued = 0;
    unlock(r);
}

void ota_report_connected(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    show(a);
    // What was to be said before the session is old; what holds now is said, and after it the answer to a retained command that
    // was there before the subscription to it was known to stand.
    lock(r);
    unsigned last = r->queued;
    while (last > 0 && !r->queue[last - 1].answer) {
        last--;
    }
    ota_current_t early;
    if (last > 0) {
        early = r->queue[last - 1].s;
    }
    r->up = true;
    r->queued = 0;
    r->sent_id = 0;
    r->repeat_ms = INT64_MAX;
    say(a, &r->cur);
    if (last > 0) {
        say(a, &early);
    }
    unlock(r);
}

void ota_report_disconnected(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    show(a);
    lock(r);
    r->up = false;
    r->queued = 0;
    unlock(r);
    r->sent_id = 0;
    r->repeat_ms = INT64_MAX;
}

static void lost(ota_reporter_t *r, const char *why)
{
    ESP_LOGW(TAG, "status %s not published: %s", ota_phase_name(r->sent.s.phase), why);
    int64_t wait = REPEAT_FIRST_MS;
    for (int i = 0; i < r->lost && wait < REPEAT_LIMIT_MS; i++) {
        wait *= 2;
    }
    r->lost++;
    r->sent_id = 0;
    r->repeat_ms = ota_now_ms() + (wait < REPEAT_LIMIT_MS ? wait : REPEAT_LIMIT_MS);
    r->repeat_seq = r->sent.seq;
}

// Publishes what is queued, in order, one at a time: the broker keeps the last it gets.
static void publish(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    while (r->sent_id == 0) {
        lock(r);
        if (!r->up || r->queued == 0 || !r->queue[0].shown) {
            unlock(r);   // what came after the last look is shown first, with its own wake
            return;
        }
        r->sent = r->queue[0];
        r->queued--;
        memmove(r->queue, r->queue + 1, r->queued * sizeof r->queue[0]);
        unlock(r);
        size_t n = render(a, &r->sent, r->text, sizeof r->text);
        if (n == 0) {
            ESP_LOGE(TAG, "status does not fit");
            continue;
        }
        // What a server acts on must arrive; progress is only for show.
        int qos = a->link.qos > 0 || r->sent.s.phase == OTA_PHASE_DOWNLOADING ? a->link.qos : 1;
        int id = ota_link_publish(a, r->text, n, qos);
        if (id > 0) {
            r->sent_id = id;
            r->ack_by_ms = ota_now_ms() + ACK_MS;
        } else if (id < 0) {
            lost(r, "no session with the broker");
        } else {
            r->lost = 0;
            ota_link_repeat(a, r->text, n);
        }
    }
}

// Says again what the broker did not take, where nothing was said since and the session still stands: what waits for the
// broker's word, a rollback's report or a trial, must not wait for the next session.
static void repeat(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    r->repeat_ms = INT64_MAX;
    lock(r);
    if (r->up && r->seq == r->repeat_seq) {
        say(a, &r->cur);
    }
    unlock(r);
}

void ota_report_pump(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    int64_t now = ota_now_ms();
    // Progress is said in time also where no bytes come: on a slow line, and while the server is away.
    lock(r);
    if (r->cur.phase == OTA_PHASE_DOWNLOADING && !within(r->said_ms, now, PROGRESS_TIME_MS)) {
        say(a, &r->cur);
    }
    bool up = r->up;
    unlock(r);
    show(a);
    if (!up) {
        forget(r);
        return;
    }
    if (r->sent_id != 0 && now >= r->ack_by_ms) {
        lost(r, "no answer from the broker");
    }
    if (now >= r->repeat_ms) {
        repeat(a);
        show(a);
    }
    publish(a);
}

bool ota_report_acked(ota_agent_t *a, int id, ota_phase_t *phase)
{
    ota_reporter_t *r = &a->rep;
    if (id == 0 || id != r->sent_id) {
        return false;
    }
    r->sent_id = 0;
    r->lost = 0;
    *phase = r->sent.s.phase;
    size_t n = render(a, &r->sent, r->text, sizeof r->text);
    ota_link_repeat(a, r->text, n);
    return true;
}

bool ota_report_idle(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    lock(r);
    bool idle = !r->up || (r->queued == 0 && r->sent_id == 0);
    unlock(r);
    return idle;
}

int64_t ota_report_due_ms(ota_agent_t *a)
{
    ota_reporter_t *r = &a->rep;
    int64_t due = r->repeat_ms;
    if (r->sent_id != 0 && r->ack_by_ms < due) {
        due = r->ack_by_ms;
    }
    lock(r);
    if (r->cur.phase == OTA_PHASE_DOWNLOADING && r->said_ms + PROGRESS_TIME_MS < due) {
        due = r->said_ms + PROGRESS_TIME_MS;
    }
    unlock(r);
    return due;
}
