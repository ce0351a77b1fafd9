#include <string.h>

#include "ota_json.h"
#include "ota_protocol.h"
#include "ota_time.h"

static const char *const actions[] = {
    [OTA_ACTION_CHECK] = "check",
    [OTA_ACTION_UPDATE] = "update",
    [OTA_ACTION_ROLLBACK] = "rollback",
    [OTA_ACTION_STATUS] = "status",
};

static bool parse_action(const char *word, ota_command_t *out, ota_refusal_t *why)
{
    if (*word == 0) {
        return ota_refuse(why, OTA_REASON_BAD_COMMAND, "no action");
    }
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++) {
        if (strcmp(word, actions[i]) == 0) {
            out->action = (ota_action_t)i;
            return true;
        }
    }
    return ota_refuse(why, OTA_REASON_UNKNOWN_ACTION, "\"%s\"", word);
}

bool ota_command_parse(const uint8_t *b, size_t len, ota_command_t *out, ota_refusal_t *why)
{
    if (len > OTA_MAX_COMMAND) {
        return ota_refuse(why, OTA_REASON_OVERSIZE, "%lu bytes", (unsigned long)len);
    }
    memset(out, 0, sizeof *out);
    ota_refuse(why, OTA_REASON_BAD_COMMAND, "%s", "");   // what is left when only the detail is filled in
    char copy[OTA_MAX_COMMAND];
    memcpy(copy, b, len);
    ota_object_t o;
    if (!ota_object_parse(&o, copy, len, why->detail, sizeof why->detail)) {
        return false;
    }
    const char *action = "", *id = "", *version = "", *expires = "";
    ota_object_text(&o, "action", 32, &action);
    ota_object_bool(&o, "force", &out->force);
    ota_object_text(&o, "id", OTA_MAX_TEXT, &id);
    ota_object_text(&o, "version", OTA_MAX_TEXT, &version);
    ota_object_text(&o, "expires_at", 40, &expires);
    if (o.bad) {
        return false;
    }
    strcpy(out->id, id);
    strcpy(out->version, version);
    if (*expires && !ota_time_parse(expires, &out->expires_at, &out->expires_ns)) {
        return ota_refuse(why, OTA_REASON_BAD_COMMAND, "expires_at is not an RFC 3339 time");
    }
    // The first moment of the year 1 is Go's word for no time at all.
    out->expires = *expires && !(out->expires_at == OTA_TIME_YEAR_1 && out->expires_ns == 0);
    return parse_action(action, out, why);
}

bool ota_command_expired(const ota_command_t *c, int64_t now_us)
{
    if (!c->expires) {
        return false;
    }
    int64_t now = now_us / 1000000;
    int64_t rest = now_us % 1000000;
    if (rest < 0) {
        rest += 1000000;
        now--;
    }
    return now > c->expires_at || (now == c->expires_at && rest * 1000 > c->expires_ns);
}

bool ota_command_same(const ota_command_t *c, const ota_command_t *running)
{
    if (c->action != running->action) {
        return false;
    }
    return (*c->id && strcmp(c->id, running->id) == 0) ||
           (strcmp(c->version, running->version) == 0 && c->force == running->force);
}
