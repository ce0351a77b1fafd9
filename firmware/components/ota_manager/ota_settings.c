#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "esp_log.h"
#include "ota_agent.h"
#include "sdkconfig.h"

static const char *TAG = "ota_settings";

// Adds a sentence to what is wrong already.
static void complain(ota_settings_t *s, const char *file, const char *what)
{
    ESP_LOGW(TAG, "%s%s", file, what);
    size_t n = strlen(s->problem);
    snprintf(s->problem + n, sizeof s->problem - n, "%s%s%.120s", n > 0 ? "; " : "", file, what);
}

// Reads a whole file, with room for a NUL behind it. NULL with a sentence in why.
static char *read_file(const char *folder, const char *name, size_t *len, char *why, size_t why_size)
{
    char path[256];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) {
        snprintf(why, why_size, "the path is too long");
        return NULL;
    }
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        snprintf(why, why_size, "%s", errno == ENOENT ? "file does not exist" : strerror(errno));
        return NULL;
    }
    char *text = malloc(OTA_MAX_CONFIG + 2);
    if (text == NULL) {
        snprintf(why, why_size, "no memory to read it");
        fclose(f);
        return NULL;
    }
    // One byte more than is allowed tells a file that is too long.
    *len = fread(text, 1, OTA_MAX_CONFIG + 1, f);
    bool bad = ferror(f) != 0;
    fclose(f);
    if (bad || *len > OTA_MAX_CONFIG) {
        snprintf(why, why_size, bad ? "cannot be read" : "more than %u bytes", OTA_MAX_CONFIG);
        free(text);
        return NULL;
    }
    char *fitting = realloc(text, *len + 1);   // for as long as the board is on
    return fitting != NULL ? fitting : text;
}

static bool can_verify(const ota_config_t *c, char *why, size_t size)
{
    if (c->cert_pem[0] != '\0' && !ota_web_certs_ok(c->cert_pem)) {
        snprintf(why, size, "cert_pem: no certificate in it");
        return false;
    }
    if (strncasecmp(c->server_url, "https://", 8) != 0 || c->cert_pem[0] != '\0') {
        return true;
    }
#ifndef CONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY
    if (c->skip_cert_verification) {
        snprintf(why, size, "skip_cert_verification: this firmware always verifies (CONFIG_ESP_TLS_SKIP_SERVER_CERT_VERIFY is off); give cert_pem");
        return false;
    }
#endif
#ifndef CONFIG_MBEDTLS_CERTIFICATE_BUNDLE
    if (!c->skip_cert_verification) {
        snprintf(why, size, "no cert_pem, and this firmware has no certificate bundle (CONFIG_MBEDTLS_CERTIFICATE_BUNDLE)");
        return false;
    }
#endif
    return true;
}

static void read_ota(const char *folder, ota_settings_t *s)
{
    char why[OTA_MAX_MESSAGE];
    size_t len;
    s->ota_text = read_file(folder, "ota_config.txt", &len, why, sizeof why);
    if (s->ota_text == NULL) {
        complain(s, "ota_config.txt: ", why);
        return;
    }
    if (!ota_config_parse(s->ota_text, len, &s->ota, why, sizeof why)) {
        complain(s, "ota_config.txt: ", why);
        return;
    }
    // A board that was given a key and cannot read it must not go on as one that was given none: that one would install what
    // nobody signed.
    const char *pem = s->ota.trusted_key_pem;
    bool held = pem[0] != '\0' ? ota_manifest_keys(pem, s->ota.trusted_threshold, &s->trust, why, sizeof why) == OTA_MANIFEST_OK
                               : s->ota.trusted_threshold == 0;
    if (!held) {
        complain(s, "ota_config.txt: ", pem[0] != '\0' ? why : "trusted_threshold without trusted_key_pem");
        return;
    }
    pem = s->ota.server_key_pem;
    if (pem[0] != '\0' && ota_manifest_keys(pem, 0, &s->server, why, sizeof why) != OTA_MANIFEST_OK) {
        complain(s, "ota_config.txt: server_key_pem: ", why);
        return;
    }
    s->have_ota = true;
    s->web = can_verify(&s->ota, why, sizeof why);
    if (!s->web) {
        complain(s, "ota_config.txt: ", why);
    }
}

static void read_mqtt(const char *folder, ota_settings_t *s)
{
    char why[OTA_MAX_MESSAGE];
    size_t len;
    s->mqtt_text = read_file(folder, "mqtt_config.txt", &len, why, sizeof why);
    if (s->mqtt_text == NULL) {
        complain(s, "mqtt_config.txt: ", why);
        return;
    }
    if (!ota_mqtt_config_parse(s->mqtt_text, len, &s->mqtt, why, sizeof why)) {
        complain(s, "mqtt_config.txt: ", why);
        return;
    }
    if (s->mqtt.client_cert_pem[0] != '\0') {
        s->identity = ota_web_identity_ok(s->mqtt.client_cert_pem, s->mqtt.client_key_pem);
        if (!s->identity) {
            complain(s, "mqtt_config.txt: ", "client_cert_pem: no certificate with the key of client_key_pem");
            return;
        }
    }
    s->have_mqtt = true;
}

void ota_settings_read(const char *folder, ota_settings_t *out)
{
    memset(out, 0, sizeof *out);
    read_ota(folder, out);
    read_mqtt(folder, out);
}

void ota_settings_believe_image(ota_settings_t *s, const esp_partition_t *running)
{
    ota_trust_t carried;
    esp_err_t err = ota_slots_builtin(running, &carried);
    if (err != ESP_OK) {
        // As with a key in the settings that cannot be read.
        complain(s, "the running image's trusted keys: ", esp_err_to_name(err));
        s->have_ota = false;
    } else if (carried.sequence > 0) {
        s->trust = carried;
    }
}

void ota_settings_free(ota_settings_t *s)
{
    free(s->ota_text);
    free(s->mqtt_text);
    memset(s, 0, sizeof *s);
}
