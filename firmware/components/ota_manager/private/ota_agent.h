// What the parts of the component share: the one instance, how a step ends that did not end well, and who may touch what.
//
// Two tasks. The loop owns the story of the board: session, commands, trial, boot records. The worker owns what waits for a
// server: a check, an update, the probe of a trial. The flash belongs to the worker while an update runs and else to the
// loop; the loop starts no update before the trial is over. Everything both may call says so.
#pragma once

#include <stdarg.h>
#include <stdatomic.h>

#include "esp_http_client.h"
#include "freertos/FreeRTOS.h"
#include "freertos/queue.h"
#include "freertos/semphr.h"
#include "freertos/task.h"
#include "mqtt_client.h"
#include "ota_manager.h"
#include "ota_manifest.h"
#include "ota_protocol.h"
#include "ota_slots.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_IO_SIZE 4096u              // read from the network and written at once: one flash sector
#define OTA_MAX_MESSAGE 200            // bytes of a sentence for people, with its NUL
#define OTA_MAX_ADDRESS 640            // bytes of a URL that is asked for, with its NUL: folder and a reference of 400 each fit
#define OTA_MAX_TOPIC 224              // prefix of 128, "/command/", id of 64
#define OTA_COMMAND_KEPT (OTA_MAX_COMMAND + 1u)   // one byte more than is allowed, so that the parser can tell
#define OTA_COMMANDS_QUEUED 4u
#define OTA_STATUSES_QUEUED 8u         // an update says eight phases; progress takes the place of earlier progress

#define OTA_OVERALL_MS (30 * 60 * 1000)   // an update from the first question to the last byte
#define OTA_CHECK_MS (90 * 1000)          // a check; also an update's patience with a certificate that is not trusted
#define OTA_HANG_MS (5 * 60 * 1000)       // a job without a sign of life for this long hangs in a library
#define OTA_GRACE_MS (2 * 60 * 1000)      // so late the loop may judge a trial: esp_mqtt_client_stop waits for a connect to end

// How a step of an update ended when it did not end well.
typedef struct {
    ota_phase_t phase;         // refused or failed; idle where nothing is wrong and nothing is to do
    ota_reason_t reason;
    bool retry;                // another try may go better
    uint32_t after_ms;         // the server asked for this pause
    char text[OTA_MAX_MESSAGE];
} ota_fault_t;

// Each fills in *f and returns false, so that a step can end with it.
bool ota_failed(ota_fault_t *f, ota_reason_t reason, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool ota_again(ota_fault_t *f, ota_reason_t reason, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool ota_refused(ota_fault_t *f, ota_reason_t reason, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool ota_flash_failed(ota_fault_t *f, const char *doing, esp_err_t err);
bool ota_refused_by(ota_fault_t *f, const ota_refusal_t *why);

// --- Configuration (ota_settings.c) ---

// What the two files say. What cannot be read is left out and problem tells; the rest counts, so that a board with a broken
// file can still say so.
typedef struct {
    ota_config_t ota;
    ota_mqtt_config_t mqtt;
    ota_trust_t trust;         // no keys in it: the board holds none
    ota_trust_t server;        // who answers for the server; no keys: answers are taken as they come
    bool have_ota, have_mqtt;
    bool identity;             // mqtt.client_cert_pem and its key can be used
    bool web;                  // the server may be asked: its certificate can be checked as configured
    char *ota_text, *mqtt_text;   // what the texts point into
    char problem[OTA_MAX_MESSAGE];
} ota_settings_t;

// Puts the set of trusted keys that the running image carries, if it does, in the place of the one in the settings.
void ota_settings_believe_image(ota_settings_t *s, const esp_partition_t *running);

// Reads folder/ota_config.txt and folder/mqtt_config.txt, 16 KiB of each at most.
void ota_settings_read(const char *folder, ota_settings_t *out);
void ota_settings_free(ota_settings_t *s);

// --- Statuses (ota_mqtt_publisher.c) ---

// What would be said now, without the times.
typedef struct {
    ota_phase_t phase;
    ota_reason_t reason;
    int progress_pct, retries;
    int64_t done, total;
    bool trial;
    uint32_t floor;
    char message[OTA_MAX_MESSAGE], available[OTA_MAX_TEXT + 1], command_id[OTA_MAX_TEXT + 1], failed[OTA_DIGEST_TEXT + 1];
} ota_current_t;

// One status as it was said.
typedef struct {
    ota_current_t s;
    uint64_t seq;
    int64_t timestamp_us, uptime_s, free_heap, min_free_heap, largest_block;
    ota_battery_reading_t battery;
    bool shown;                // on_status has seen it
    bool answer;               // to a command
} ota_said_t;

typedef struct {
    SemaphoreHandle_t lock;    // guards what follows up to the line
    ota_current_t cur;
    ota_said_t queue[OTA_STATUSES_QUEUED];
    unsigned queued;
    uint64_t seq;
    bool up;
    int64_t said_ms, asked_ms, answered_ms;   // INT64_MIN: never
    int said_pct, unsaid;      // refusals that were only counted
    // ----- the loop's own
    ota_said_t sent;           // on its way, or the last that was
    int sent_id;               // 0: none is on its way
    int64_t ack_by_ms;         // until when its PUBACK may come
    int lost;                  // statuses one after the other
    int64_t repeat_ms;         // when to say again what was lost; INT64_MAX: nothing was
    uint64_t repeat_seq;
    char text[OTA_MAX_STATUS + 1];
} ota_reporter_t;

typedef struct ota_agent ota_agent_t;

esp_err_t ota_report_init(ota_agent_t *a, ota_phase_t first);
// From both tasks. A step that the table does not allow is logged.
void ota_report_phase(ota_agent_t *a, ota_phase_t p, ota_reason_t reason, const char *message);
// The same for the first step that an order makes: its id, and that step, in one. A status between the two, as the opening of a
// session says one, would put the name of the order to how the one before it ended.
void ota_report_order(ota_agent_t *a, const char *id, ota_phase_t p, ota_reason_t reason, const char *message);
void ota_report_progress(ota_agent_t *a, int64_t done, int64_t total, int retries);
void ota_report_answer(ota_agent_t *a, const char *id, ota_reason_t reason, const char *message);
void ota_report_say(ota_agent_t *a, const char *id);
ota_phase_t ota_report_current(ota_agent_t *a);
// Facts that go along with every later status. NULL leaves one as it is.
void ota_report_facts(ota_agent_t *a, const char *command_id, const char *available, const char *failed);
void ota_report_proven(ota_agent_t *a);    // the trial is over: rollback_pending and the security floor
void ota_report_get(ota_agent_t *a, ota_status_t *out);
// From the loop.
void ota_report_connected(ota_agent_t *a);
void ota_report_disconnected(ota_agent_t *a);
void ota_report_pump(ota_agent_t *a);          // shows and publishes what waits, says progress that is overdue
bool ota_report_acked(ota_agent_t *a, int id, ota_phase_t *phase);   // PUBACK: of the status on its way, in this phase
bool ota_report_idle(ota_agent_t *a);          // everything said has reached the broker
int64_t ota_report_due_ms(ota_agent_t *a);     // when pump has something to do again
size_t ota_report_will(ota_agent_t *a, char *out, size_t size);

// --- Session (ota_mqtt_commands.c) ---

typedef struct {
    uint16_t len;
    bool retained;
    uint8_t bytes[OTA_COMMAND_KEPT];
} ota_message_t;

typedef struct {
    uint32_t first_ms, limit_ms, n;
} ota_pause_t;

typedef struct {
    esp_mqtt_client_handle_t client;   // NULL: no broker is configured, or no memory was to be had
    char commands[OTA_MAX_TOPIC], command[OTA_MAX_TOPIC], status[OTA_MAX_TOPIC], statuses[OTA_MAX_TOPIC];
    bool repeat;               // statuses on the shared topic as well, for the original tool
    int qos;
    // ----- the loop's own
    bool running, up;
    int64_t began_ms, next_ms;
    ota_pause_t pause;
    // ----- the MQTT task's own
    int subscribing[2];
    ota_message_t incoming;
    bool ours;                 // the message that comes in pieces is on one of our topics
    // ----- between the two
    atomic_int acked_id;
    QueueHandle_t messages;
} ota_link_t;

// Makes the client and begins the first session; what there is no memory for is tried again in ota_link_tick. Without a broker in
// the configuration it does nothing.
esp_err_t ota_link_open(ota_agent_t *a);
void ota_link_close(ota_agent_t *a);
void ota_link_tick(ota_agent_t *a);            // begins the next session when it is time, ends one that does not come up
bool ota_link_is_up(ota_agent_t *a);           // false: it is over already
void ota_link_is_down(ota_agent_t *a);         // after the session was lost, or did not come about
int64_t ota_link_due_ms(const ota_agent_t *a);
// Publishes on the board's own topic, retained. 0 where nothing will be acknowledged, -1 where nothing was sent, else the id.
int ota_link_publish(ota_agent_t *a, const char *text, size_t len, int qos);
void ota_link_repeat(ota_agent_t *a, const char *text, size_t len);   // on the shared topic, where that is wanted

// --- Work beside the loop (ota_worker.c) ---

typedef enum { OTA_JOB_NONE, OTA_JOB_PROBE, OTA_JOB_PURSUE } ota_job_t;
typedef enum { OTA_GOES_ON, OTA_REPLACED, OTA_STOPPED, OTA_DEADLINE } ota_cause_t;

// An order being carried out.
typedef struct {
    ota_command_t cmd;
    bool retained;             // it was on the broker before this session
} ota_wish_t;

// One piece of work with a deadline.
typedef struct {
    ota_agent_t *a;
    int64_t deadline_ms;
} ota_run_t;

esp_err_t ota_worker_init(ota_agent_t *a);
void ota_worker_start(ota_agent_t *a, ota_job_t job);      // the loop's; no other runs
void ota_worker_cancel(ota_agent_t *a, ota_cause_t why);   // the loop's
ota_cause_t ota_run_cause(const ota_run_t *run);           // why it is not to go on
bool ota_run_sleep(const ota_run_t *run, int64_t ms);      // false when it is not to go on
int64_t ota_now_ms(void);                                  // since boot
uint32_t ota_pause_next(ota_pause_t *p);                   // doubling up to the limit, at random between half and whole

// --- Web (ota_web.c) ---

typedef struct {
    esp_http_client_handle_t client;
    const ota_run_t *run;
    int status;
    int64_t length;            // of the body as announced; -1: not
    bool chunked;
    char etag[130], content_range[64], retry_after[12];
    int64_t stall_ms, began_ms, last_ms;       // the longest silence; when the request began; when the last byte came
    int64_t window_ms, window_bytes, left_ms;  // for the minimum rate; when ota_web_read came back
    bool slow;
    esp_err_t tls_err;
    int tls_code, tls_flags;
} ota_response_t;

// Asks for url, from the first byte or, with range_from > 0, from there on, when the file is still etag. On true r is open and
// has its header; the status is the caller's matter. Redirects are not followed.
bool ota_web_get(const ota_run_t *run, ota_response_t *r, const char *url, int64_t range_from, const char *etag, ota_fault_t *why);
// Reads until buf is full or the body ends. False when the line is dead or next to it.
bool ota_web_read(ota_response_t *r, void *buf, size_t size, size_t *got, bool *ended, ota_fault_t *why);
void ota_web_close(ota_response_t *r);
bool ota_web_status(const ota_response_t *r, ota_fault_t *why);   // judges an answer that is not the one wanted
bool ota_web_certs_ok(const char *pem);        // at least one certificate in it
bool ota_web_identity_ok(const char *cert_pem, const char *key_pem);   // the certificate and its private key

// --- An update, in its order ---

// What the server has for this board, as far as the board believes it, and what of it outlives version.json.
typedef struct {
    char version[OTA_MAX_TEXT + 1], sha256[OTA_DIGEST_TEXT + 1], url[OTA_MAX_ADDRESS];
    int64_t size;              // bytes; 0: not said
    uint32_t secure_version;
    bool force;                // start on a check, too
    bool promised;             // a trusted key signed the facts
    bool stale;                // from the mirror, and nothing shows that it is the server's answer of now
    uint8_t (*blocks)[32];     // digests of 64 KiB each; NULL: no promise about blocks
    size_t block_count;
    bool fits;                 // this board takes it, else:
    ota_refusal_t refusal;
} ota_offer_t;

bool ota_check_offer(const ota_run_t *run, const ota_wish_t *w, ota_offer_t *o, ota_fault_t *why);   // ota_check.c
void ota_offer_free(ota_offer_t *o);
bool ota_probe_server(const ota_run_t *run);                                      // ota_check.c: any answer below 500, or a signed one of the mirror
bool ota_download(const ota_run_t *run, const ota_offer_t *o, int64_t *size, ota_fault_t *why);       // ota_download.c
bool ota_pursue(const ota_run_t *run, const ota_wish_t *w, bool *restart, ota_fault_t *why);          // ota_install.c
void ota_carry_out(ota_agent_t *a);                                               // ota_install.c: a check or an update

// --- The trial (ota_trial.c); the loop's ---

typedef struct {
    bool runs;
    atomic_bool given_up;      // the deadline has passed, and the loop has judged
    int64_t deadline_ms, frame_ms, retry_ms;
    int frames;
} ota_trial_t;

void ota_trial_begin(ota_agent_t *a);
bool ota_trial_tick(ota_agent_t *a);           // true: restart
int64_t ota_trial_due_ms(const ota_agent_t *a);
esp_err_t ota_trial_confirm(ota_agent_t *a);

// --- Orders (ota_orders.c); the loop's ---

void ota_order(ota_agent_t *a, const ota_message_t *m);
void ota_order_next(ota_agent_t *a);           // takes up the one that had to wait
void ota_order_settle(ota_agent_t *a);         // the broker has the report of a rollback
bool ota_unsettled(const ota_agent_t *a);      // an earlier update has not been told to its end
bool ota_clock_set(int64_t now_us);            // a chip without the time counts from 1970
int64_t ota_clock_us(void);

// --- The one instance ---

struct ota_agent {
    ota_manager_config_t app;
    TaskHandle_t loop, worker;
    bool started;
    SemaphoreHandle_t booted;  // the loop has settled what the last boot left, or could not:
    esp_err_t boot_err;
    atomic_bool ready;         // it has

    // Facts of this boot; written before the tasks start, but for floor (the loop's, while no job runs).
    ota_slots_t slots;
    ota_boot_story_t story;    // told_pending and the told fields are the loop's
    uint8_t sum[32];           // of the image file that runs
    char digest[OTA_DIGEST_TEXT + 1], version[OTA_MAX_TEXT + 1], project[33], id[OTA_MAX_DEVICE_ID + 1], boot_id[40];
    const char *reset;
    uint32_t floor;            // no release below it
    atomic_bool trial;         // this boot is one, and not decided

    ota_settings_t cfg;        // the loop's to replace, while no job runs
    bool reload;
    ota_reporter_t rep;
    ota_link_t link;
    ota_trial_t test;
    SemaphoreHandle_t battery_lock;

    atomic_bool network, broker, server;   // what this boot has shown so far

    ota_job_t job;             // the loop's
    atomic_uint beat_ms;       // the job's last sign of life, the low 32 bits of ota_now_ms
    ota_wish_t wish;           // the job's, while it runs
    atomic_int cancel;         // an ota_cause_t
    SemaphoreHandle_t cancelled;
    bool restart;              // the job's outcome: its own while it runs
    bool story_acked;          // while a trial ran

    ota_message_t waiting;     // one order that came in a trial, before a rollback was told, or before the clock was set
    bool has_waiting, needs_clock;
    ota_message_t taken;       // the one being answered

    uint8_t io[OTA_IO_SIZE];   // the worker's
};

// What wakes the loop.
enum {
    OTA_WAKE_UP = 1u << 0, OTA_WAKE_DOWN = 1u << 1, OTA_WAKE_ACK = 1u << 2, OTA_WAKE_COMMAND = 1u << 3,
    OTA_WAKE_STATUS = 1u << 4, OTA_WAKE_DONE = 1u << 5, OTA_WAKE_RELOAD = 1u << 6, OTA_WAKE_CONFIRM = 1u << 7
};
void ota_wake(ota_agent_t *a, uint32_t why);   // from any task
bool ota_battery(ota_agent_t *a, ota_battery_reading_t *out);   // from both tasks

#ifdef __cplusplus
}
#endif
