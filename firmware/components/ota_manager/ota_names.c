// Names and digests: what may stand in a topic, a file name and a status.
#include <stdio.h>
#include <string.h>

#include "ota_protocol.h"

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool ota_device_id_ok(const char *id)
{
    size_t len = strlen(id);
    if (len == 0 || len > OTA_MAX_DEVICE_ID) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (!is_alnum(id[i]) && (i == 0 || !strchr("._:-", id[i]))) {
            return false;
        }
    }
    return true;
}

bool ota_topic_prefix_ok(const char *prefix)
{
    size_t len = strlen(prefix);
    if (len == 0 || len > 128 || prefix[0] == '/' || prefix[len - 1] == '/' || strstr(prefix, "//")) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (prefix[i] <= ' ' || prefix[i] > '~' || strchr("+#$", prefix[i])) {
            return false;
        }
    }
    return true;
}

void ota_device_id_from_mac(const uint8_t mac[6], char out[OTA_MAX_DEVICE_ID + 1])
{
    snprintf(out, OTA_MAX_DEVICE_ID + 1, "bms-%02x%02x%02x", mac[3], mac[4], mac[5]);
}

bool ota_digest_ok(const char *hex)
{
    return strlen(hex) == OTA_DIGEST_TEXT && strspn(hex, "0123456789abcdef") == OTA_DIGEST_TEXT;
}
