#include <string.h>

#include "ota_json.h"
#include "ota_manifest.h"
#include "ota_protocol.h"

bool ota_version_file_parse(char *b, size_t len, ota_version_file_t *out, ota_refusal_t *why)
{
    if (len > OTA_MAX_VERSION_FILE) {
        return ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "larger than %u bytes", OTA_MAX_VERSION_FILE);
    }
    *out = (ota_version_file_t){
        .version = "", .build_date = "", .description = "", .min_version = "", .project = "", .chip = "", .sha256 = "",
        .url = "", .manifest = "", .cosignatures = "", .offer = "",
    };
    ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "%s", "");   // what is left when only the detail is filled in
    ota_object_t o;
    if (!ota_object_parse(&o, b, len, why->detail, sizeof why->detail)) {
        return false;
    }
    ota_object_text(&o, "version", OTA_MAX_TEXT, &out->version);
    ota_object_text(&o, "build_date", OTA_MAX_TEXT, &out->build_date);
    ota_object_text(&o, "description", 2048, &out->description);
    ota_object_text(&o, "min_version", OTA_MAX_TEXT, &out->min_version);
    ota_object_bool(&o, "force_update", &out->force_update);
    ota_object_text(&o, "project", 32, &out->project);
    ota_object_text(&o, "chip", 32, &out->chip);
    ota_object_int(&o, "size", &out->size);
    ota_object_text(&o, "sha256", OTA_DIGEST_TEXT, &out->sha256);
    ota_object_text(&o, "url", OTA_MAX_URL, &out->url);
    ota_object_uint32(&o, "secure_version", &out->secure_version);
    ota_object_text(&o, "manifest", OTA_MAX_VERSION_FILE, &out->manifest);
    ota_object_text(&o, "cosignatures", OTA_MAX_COSIGNED, &out->cosignatures);
    ota_object_text(&o, "offer", OTA_MAX_OFFER, &out->offer);
    if (o.bad) {
        return false;
    }
    if (*out->version == 0) {
        return ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "no version");
    }
    if (out->size < 0) {
        return ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "negative size");
    }
    if (*out->sha256 && !ota_digest_ok(out->sha256)) {
        return ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "sha256 is not 64 lower-case hex digits");
    }
    if (strpbrk(out->url, " \n\t")) {
        return ota_refuse(why, OTA_REASON_BAD_VERSION_FILE, "url holds white space");
    }
    return true;
}
