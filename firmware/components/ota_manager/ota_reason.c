#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ota_protocol.h"

static const struct {
    const char *name, *text;
} reasons[OTA_REASON_COUNT] = {
    [OTA_REASON_NONE] = {"", ""},
    [OTA_REASON_BAD_COMMAND] = {"bad_command", "command is not readable"},
    [OTA_REASON_OVERSIZE] = {"oversize", "command is larger than 512 bytes"},
    [OTA_REASON_UNKNOWN_ACTION] = {"unknown_action", "command has an unknown action"},
    [OTA_REASON_EXPIRED_COMMAND] = {"expired_command", "command has expired"},
    [OTA_REASON_STALE_COMMAND] = {"stale_command", "retained rollback without a version ignored"},
    [OTA_REASON_BUSY] = {"busy", "another update is under way"},
    [OTA_REASON_NO_ROLLBACK] = {"no_rollback", "no earlier image to go back to"},
    [OTA_REASON_VERSION_MISMATCH] = {"version_mismatch", "server offers another version than the one asked for"},
    [OTA_REASON_NOT_PUBLISHED] = {"not_published", "server offers no release for this device"},
    [OTA_REASON_BAD_CONFIG] = {"bad_config", "configuration is not readable"},
    [OTA_REASON_UP_TO_DATE] = {"up_to_date", "already running this release"},
    [OTA_REASON_UPDATE_AVAILABLE] = {"update_available", "update available"},
    [OTA_REASON_WRONG_CHIP] = {"wrong_chip", "release is for another chip"},
    [OTA_REASON_WRONG_PROJECT] = {"wrong_project", "release is of another project"},
    [OTA_REASON_TOO_BIG] = {"too_big", "release is larger than the slot of this device"},
    [OTA_REASON_DOWNGRADE] = {"downgrade", "release is older than what runs"},
    [OTA_REASON_SAME_VERSION] = {"same_version", "same version with other bytes"},
    [OTA_REASON_SECURITY_FLOOR] = {"security_floor", "release is below the security floor"},
    [OTA_REASON_NEEDS_INTERMEDIATE] = {"needs_intermediate", "an intermediate version must be installed first"},
    [OTA_REASON_UNSIGNED] = {"unsigned", "release is not signed"},
    [OTA_REASON_BAD_SIGNATURE] = {"bad_signature", "signature does not match a trusted key"},
    [OTA_REASON_QUARANTINED] = {"quarantined", "this image was rolled back before"},
    [OTA_REASON_BAD_VERSION_FILE] = {"bad_version_file", "version.json is not readable"},
    [OTA_REASON_STALE_OFFER] = {"stale_offer", "answer does not prove that it is the server's of now"},
    [OTA_REASON_CHARGING] = {"charging", "blocked: charging"},
    [OTA_REASON_LOW_SOC] = {"low_soc", "blocked: state of charge too low"},
    [OTA_REASON_HIGH_CURRENT] = {"high_current", "blocked: too much current"},
    [OTA_REASON_TOO_COLD] = {"too_cold", "blocked: too cold"},
    [OTA_REASON_TOO_HOT] = {"too_hot", "blocked: too hot"},
    [OTA_REASON_OUTSIDE_WINDOW] = {"outside_window", "blocked: outside the update window"},
    [OTA_REASON_NO_READING] = {"no_reading", "blocked: no battery reading"},
    [OTA_REASON_SERVER_UNREACHABLE] = {"server_unreachable", "server cannot be reached"},
    [OTA_REASON_TLS_FAILED] = {"tls_failed", "server certificate is not trusted"},
    [OTA_REASON_HTTP_STATUS] = {"http_status", "server answered with an error"},
    [OTA_REASON_STALLED] = {"stalled", "download stalled"},
    [OTA_REASON_DEADLINE] = {"deadline", "update took longer than allowed"},
    [OTA_REASON_SIZE_MISMATCH] = {"size_mismatch", "download has another size than promised"},
    [OTA_REASON_DIGEST_MISMATCH] = {"digest_mismatch", "image digest does not match"},
    [OTA_REASON_IMAGE_INVALID] = {"image_invalid", "image in flash does not verify"},
    [OTA_REASON_FLASH_ERROR] = {"flash_error", "flash could not be written"},
    [OTA_REASON_CRASH] = {"crash", "new image crashed"},
    [OTA_REASON_WATCHDOG] = {"watchdog", "new image hung"},
    [OTA_REASON_BROWNOUT] = {"brownout", "supply voltage dropped during the trial"},
    [OTA_REASON_POWER_LOSS] = {"power_loss", "power was lost during the trial"},
    [OTA_REASON_NO_NETWORK] = {"no_network", "new image had no network"},
    [OTA_REASON_NO_BROKER] = {"no_broker", "new image did not reach the broker"},
    [OTA_REASON_NO_SERVER] = {"no_server", "new image did not reach the server"},
    [OTA_REASON_BMS_SILENT] = {"bms_silent", "new image could not read the BMS"},
    [OTA_REASON_LOW_HEAP] = {"low_heap", "new image ran low on memory"},
    [OTA_REASON_OPERATOR] = {"operator", "rolled back by command"},
    [OTA_REASON_IMAGE_CORRUPT] = {"image_corrupt", "image in the selected slot was damaged"},
    [OTA_REASON_SILENT] = {"silent", "not heard of in time"},
    [OTA_REASON_OTHER] = {"other", "reason not known to this version"},
};

const char *ota_reason_name(ota_reason_t r) { return reasons[r].name; }

const char *ota_reason_text(ota_reason_t r) { return reasons[r].text; }

ota_reason_t ota_reason_from(const char *name, size_t len)
{
    for (int r = 0; r < OTA_REASON_COUNT; r++) {
        if (strlen(reasons[r].name) == len && memcmp(reasons[r].name, name, len) == 0) {
            return (ota_reason_t)r;
        }
    }
    return OTA_REASON_OTHER;
}

bool ota_refuse(ota_refusal_t *why, ota_reason_t reason, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    why->reason = reason;
    vsnprintf(why->detail, sizeof why->detail, format, args);
    va_end(args);
    return false;
}
