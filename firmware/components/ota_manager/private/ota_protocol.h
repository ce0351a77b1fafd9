// What a device and a server say to each other, as docs/protocol.md has it: commands, version.json, configuration files,
// statuses, phases, reasons, and the decisions that both halves make alike. The same verdicts as Go's package protocol,
// held to it by shared vectors.
//
// Everything here is a pure function over memory the caller owns. Nothing allocates, nothing keeps a pointer unless its
// comment says so, nothing depends on ESP-IDF. Input is hostile: any bytes of any length give a verdict.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_PROTOCOL_VERSION 1
#define OTA_MAX_COMMAND 512u            // bytes; esp-mqtt's buffer of 1024 holds the topic as well
#define OTA_MAX_VERSION_FILE (24u << 10)
#define OTA_MAX_CONFIG (16u << 10)
#define OTA_MAX_STATUS 1536u            // bytes of a status that a device writes; a server reads up to 4096
#define OTA_MAX_TEXT 64                 // of a version, a command id, ...: bytes without the NUL
#define OTA_MAX_DEVICE_ID 64
#define OTA_MAX_URL 400
#define OTA_DIGEST_TEXT 64              // lower-case hex digits of a SHA-256

// Phases, in the order of a good update. The table behind them is in ota_phase.c and equals docs/protocol.md section 4.
typedef enum {
    OTA_PHASE_IDLE, OTA_PHASE_CHECKING, OTA_PHASE_WAITING, OTA_PHASE_DOWNLOADING, OTA_PHASE_VERIFYING, OTA_PHASE_SWITCHING,
    OTA_PHASE_REBOOTING, OTA_PHASE_TRIAL, OTA_PHASE_CONFIRMED, OTA_PHASE_FAILED, OTA_PHASE_REFUSED, OTA_PHASE_ROLLED_BACK,
    OTA_PHASE_OFFLINE,
    OTA_PHASE_COUNT
} ota_phase_t;

const char *ota_phase_name(ota_phase_t p);   // "idle", ...
const char *ota_phase_text(ota_phase_t p);   // the sentence for people
int ota_phase_code(ota_phase_t p);           // the original tool's number, 0 to 6
bool ota_phase_may(ota_phase_t from, ota_phase_t to);  // within one boot; a phase may follow itself

// Reasons: the closed set of docs/protocol.md section 5. OTA_REASON_NONE is the empty word.
typedef enum {
    OTA_REASON_NONE,
    // answers to a command
    OTA_REASON_BAD_COMMAND, OTA_REASON_OVERSIZE, OTA_REASON_UNKNOWN_ACTION, OTA_REASON_EXPIRED_COMMAND,
    OTA_REASON_STALE_COMMAND, OTA_REASON_BUSY, OTA_REASON_NO_ROLLBACK, OTA_REASON_VERSION_MISMATCH,
    OTA_REASON_NOT_PUBLISHED, OTA_REASON_BAD_CONFIG,
    // idle
    OTA_REASON_UP_TO_DATE, OTA_REASON_UPDATE_AVAILABLE,
    // refused
    OTA_REASON_WRONG_CHIP, OTA_REASON_WRONG_PROJECT, OTA_REASON_TOO_BIG, OTA_REASON_DOWNGRADE, OTA_REASON_SAME_VERSION,
    OTA_REASON_SECURITY_FLOOR, OTA_REASON_NEEDS_INTERMEDIATE, OTA_REASON_UNSIGNED, OTA_REASON_BAD_SIGNATURE,
    OTA_REASON_QUARANTINED, OTA_REASON_BAD_VERSION_FILE, OTA_REASON_STALE_OFFER,
    // waiting
    OTA_REASON_CHARGING, OTA_REASON_LOW_SOC, OTA_REASON_HIGH_CURRENT, OTA_REASON_TOO_COLD, OTA_REASON_TOO_HOT,
    OTA_REASON_OUTSIDE_WINDOW, OTA_REASON_NO_READING,
    // failed
    OTA_REASON_SERVER_UNREACHABLE, OTA_REASON_TLS_FAILED, OTA_REASON_HTTP_STATUS, OTA_REASON_STALLED, OTA_REASON_DEADLINE,
    OTA_REASON_SIZE_MISMATCH, OTA_REASON_DIGEST_MISMATCH, OTA_REASON_IMAGE_INVALID, OTA_REASON_FLASH_ERROR,
    // rolled_back
    OTA_REASON_CRASH, OTA_REASON_WATCHDOG, OTA_REASON_BROWNOUT, OTA_REASON_POWER_LOSS, OTA_REASON_NO_NETWORK,
    OTA_REASON_NO_BROKER, OTA_REASON_NO_SERVER, OTA_REASON_BMS_SILENT, OTA_REASON_LOW_HEAP, OTA_REASON_OPERATOR,
    OTA_REASON_IMAGE_CORRUPT,
    // the server's own, and anything newer than this text
    OTA_REASON_SILENT, OTA_REASON_OTHER,
    OTA_REASON_COUNT
} ota_reason_t;

const char *ota_reason_name(ota_reason_t r);            // "" for NONE
const char *ota_reason_text(ota_reason_t r);            // the sentence for people
ota_reason_t ota_reason_from(const char *name, size_t len);  // an unknown word is OTHER, an empty one NONE

// Why something was refused: a reason for programs, a detail for people (may be empty, NUL-terminated, cut to fit).
typedef struct {
    ota_reason_t reason;
    char detail[160];
} ota_refusal_t;

// Fills why and returns false, for the return of a function that refuses.
__attribute__((format(printf, 3, 4)))
bool ota_refuse(ota_refusal_t *why, ota_reason_t reason, const char *format, ...);

typedef enum { OTA_ACTION_CHECK, OTA_ACTION_UPDATE, OTA_ACTION_ROLLBACK, OTA_ACTION_STATUS } ota_action_t;

typedef struct {
    ota_action_t action;
    bool force;                        // skips the version comparison of an update, nothing else
    char id[OTA_MAX_TEXT + 1];
    char version[OTA_MAX_TEXT + 1];    // the release wanted; empty: whatever the server offers
    bool expires;
    int64_t expires_at;                // seconds since 1970, rounded down (UTC)
    int32_t expires_ns;
} ota_command_t;

// Reads a command. False with the reason a device answers, and then *out is not to be used.
bool ota_command_parse(const uint8_t *b, size_t len, ota_command_t *out, ota_refusal_t *why);
bool ota_command_expired(const ota_command_t *c, int64_t now_us);   // now_us: microseconds since 1970
// Whether c asks for what running is doing already: same action, and the same id or the same version and force.
bool ota_command_same(const ota_command_t *c, const ota_command_t *running);

// version.json. Texts are NUL-terminated and point into the buffer that was parsed, which is overwritten by the
// decoding and must outlive the struct. Absent texts are "".
typedef struct {
    const char *version, *build_date, *description, *min_version, *project, *chip, *sha256, *url, *manifest, *cosignatures, *offer;
    bool force_update;
    int64_t size;              // bytes; 0: not said
    uint32_t secure_version;
} ota_version_file_t;
bool ota_version_file_parse(char *b, size_t len, ota_version_file_t *out, ota_refusal_t *why);

typedef struct {
    double min_soc_pct;        // 0: no condition
    bool not_while_charging;
    double max_current_a;      // in either direction; 0: no condition
    bool has_min_temp, has_max_temp;
    double min_temp_c, max_temp_c;   // of the coldest, of the warmest cell
    char window[12];           // "HH:MM-HH:MM", device-local; empty: any time
} ota_gate_t;

typedef struct {
    const char *server_url, *cert_pem, *current_version, *device_id, *trusted_key_pem, *server_key_pem, *mirror_url, *topic_prefix;
    bool skip_cert_verification, auto_rollback_enabled, own_topic_only;
    int trusted_threshold;     // how many of the trusted keys have to sign; 0: one
    int64_t timeout_ms;        // 0: the default of 60,000
    int64_t deadline_s;        // health; 0: the defaults of 300 s, 3 frames, 16 KiB
    int bms_frames;
    int64_t min_heap;
    ota_gate_t gate;
} ota_config_t;

typedef struct {
    const char *broker_host, *username, *password, *ca_pem;
    const char *client_cert_pem, *client_key_pem;   // the board's own; both or none
    int broker_port;           // never 0: 1883, or 8883 with TLS, fills in
    int qos;
    bool tls;
} ota_mqtt_config_t;

// Read the two files of the storage partition, ota_config.txt in JSON, mqtt_config.txt in JSON or the older key=value form
// (both forms for both files, as in Go). As with version.json the texts point into b, which must have room for one byte more
// than len (for a NUL). The key=value form may expand nothing: decoding never grows. False with a sentence in why.
bool ota_config_parse(char *b, size_t len, ota_config_t *out, char *why, size_t why_size);
bool ota_mqtt_config_parse(char *b, size_t len, ota_mqtt_config_t *out, char *why, size_t why_size);

bool ota_device_id_ok(const char *id);        // 1 to 64 of A-Z a-z 0-9 . _ : -, starting with a letter or digit
bool ota_topic_prefix_ok(const char *prefix);
bool ota_digest_ok(const char *hex);          // 64 lower-case hex digits
void ota_device_id_from_mac(const uint8_t mac[6], char out[OTA_MAX_DEVICE_ID + 1]);   // "bms-a1b2c3"

typedef struct {
    bool valid;                // false: the BMS does not answer
    double soc_pct;
    double pack_current_a;     // positive while charging
    bool charging;
    bool has_temp;             // false: the monitor measures none
    double temp_min_c, temp_max_c;   // of the coldest, of the warmest cell
} ota_battery_reading_t;

bool ota_temp_ok(double c);    // -100 to 200: what is outside is no temperature of a cell
// Which condition holds an update back; minute_of_day is device-local, 0 to 1439. One on what was not read does.
ota_reason_t ota_gate_blocked(const ota_gate_t *g, const ota_battery_reading_t *battery, int minute_of_day);

// What decides whether a release fits a device. Empty texts and zero sizes are unknown and hold nothing back.
typedef struct {
    const char *chip, *project, *version, *image_sha256;
    int64_t slot_size;
    uint32_t secure_version;
    bool (*quarantined)(const char *sha256, void *ctx);   // may be NULL
    void *ctx;
} ota_subject_t;

typedef struct {
    const char *chip, *project, *version, *sha256, *min_version;
    int64_t size;
    uint32_t secure_version;
} ota_release_t;

// True when the device may install; else *why. The order of the tests is protocol.Refuse's.
bool ota_may_install(const ota_subject_t *d, const ota_release_t *r, bool force, ota_refusal_t *why);
// protocol.OnTheWay: an offer between what runs and what is wanted is a step on the way.
bool ota_on_the_way(const char *wanted, const char *offered, const char *running);

// One status. Texts are NUL-terminated; NULL or "" leaves an optional field out.
typedef struct {
    int64_t timestamp_us, uptime_sec;
    ota_phase_t phase;
    int progress_pct;
    const char *message, *current_version, *available_version;
    bool rollback_pending;
    int64_t free_heap;
    const char *device_id, *boot_id;
    uint64_t seq;
    ota_reason_t reason;
    const char *command_id, *slot;
    int64_t slot_size;
    const char *chip, *project;
    uint32_t secure_version;
    const char *image_sha256, *failed_sha256;
    bool rollback_protected, signed_only;
    const char *reset_reason;
    int64_t bytes_done, bytes_total;
    int retries;
    int64_t min_free_heap, largest_free_block;
    ota_battery_reading_t battery;
} ota_status_doc_t;

// Writes the status as one JSON object in the field order of Go's protocol.Status, NUL-terminated. Returns its length, or
// 0 when it does not fit in size. Text that is not valid UTF-8 or holds control characters is made printable, not refused.
size_t ota_status_write(const ota_status_doc_t *s, char *out, size_t size);

#ifdef __cplusplus
}
#endif
