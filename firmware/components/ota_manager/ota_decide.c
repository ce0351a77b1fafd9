// What both halves must decide alike (Go: protocol/decide.go, protocol/versions.go).
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "ota_gate.h"
#include "ota_protocol.h"
#include "ota_version.h"

#define LOWEST_TEMP_C (-100.0)
#define HIGHEST_TEMP_C 200.0
#define MAX_GATE_CURRENT_A 10000

static bool known_and_other(const char *a, const char *b) { return *a && *b && strcmp(a, b) != 0; }

bool ota_may_install(const ota_subject_t *d, const ota_release_t *r, bool force, ota_refusal_t *why)
{
    if (*r->sha256 && strcmp(r->sha256, d->image_sha256) == 0) {
        return ota_refuse(why, OTA_REASON_UP_TO_DATE, "%s", r->version);
    }
    if (known_and_other(r->chip, d->chip)) {
        return ota_refuse(why, OTA_REASON_WRONG_CHIP, "release is for %s, this device is an %s", r->chip, d->chip);
    }
    if (known_and_other(r->project, d->project)) {
        return ota_refuse(why, OTA_REASON_WRONG_PROJECT, "release is of \"%s\", this device runs \"%s\"", r->project, d->project);
    }
    if (d->slot_size > 0 && r->size > d->slot_size) {
        return ota_refuse(why, OTA_REASON_TOO_BIG, "%" PRId64 " bytes, the slot has %" PRId64 " (%" PRId64 " too many)",
                          r->size, d->slot_size, r->size - d->slot_size);
    }
    if (r->secure_version < d->secure_version) {
        return ota_refuse(why, OTA_REASON_SECURITY_FLOOR, "secure version %" PRIu32 ", the floor is %" PRIu32,
                          r->secure_version, d->secure_version);
    }
    if (d->quarantined && *r->sha256 && d->quarantined(r->sha256, d->ctx)) {
        return ota_refuse(why, OTA_REASON_QUARANTINED, "%s", r->version);
    }
    if (*r->min_version && ota_version_older(d->version, r->min_version)) {
        return ota_refuse(why, OTA_REASON_NEEDS_INTERMEDIATE, "%s needs at least %s, %s runs", r->version, r->min_version,
                          d->version);
    }
    if (force || ota_version_newer(r->version, d->version)) {
        return true;
    }
    if (strcmp(r->version, d->version) == 0) {
        return ota_refuse(why, *r->sha256 ? OTA_REASON_SAME_VERSION : OTA_REASON_UP_TO_DATE, "%s", r->version);
    }
    return ota_refuse(why, OTA_REASON_DOWNGRADE, "%s is not newer than %s", r->version, d->version);
}

bool ota_on_the_way(const char *wanted, const char *offered, const char *running)
{
    return ota_version_newer(offered, running) && ota_version_newer(wanted, offered);
}

// Reads one or two digits of an hour, a colon and two of a minute. Gives back what follows, NULL where it is none.
static const char *time_of_day(const char *s, int *minute)
{
    int hour = 0, digits = 0;
    while (digits < 2 && *s >= '0' && *s <= '9') {
        hour = hour * 10 + (*s++ - '0');
        digits++;
    }
    if (digits == 0 || hour > 23 || *s++ != ':' || s[0] < '0' || s[0] > '5' || s[1] < '0' || s[1] > '9') {
        return NULL;
    }
    *minute = hour * 60 + (s[0] - '0') * 10 + (s[1] - '0');
    return s + 2;
}

static bool parse_window(const char *s, int *from, int *to)
{
    s = time_of_day(s, from);
    s = s && *s == '-' ? time_of_day(s + 1, to) : NULL;
    return s && *s == 0 && *from != *to;
}

bool ota_temp_ok(double c) { return c >= LOWEST_TEMP_C && c <= HIGHEST_TEMP_C; }   // so that NaN is none

bool ota_gate_ok(const ota_gate_t *g)
{
    int from, to;
    double low = g->has_min_temp ? g->min_temp_c : LOWEST_TEMP_C, high = g->has_max_temp ? g->max_temp_c : HIGHEST_TEMP_C;
    return g->min_soc_pct >= 0 && g->min_soc_pct <= 100 && g->max_current_a >= 0 && g->max_current_a <= MAX_GATE_CURRENT_A &&
           ota_temp_ok(low) && ota_temp_ok(high) && low <= high && (*g->window == 0 || parse_window(g->window, &from, &to));
}

static bool has_what_it_needs(const ota_gate_t *g, const ota_battery_reading_t *b)
{
    bool reading = b && b->valid, temp = reading && b->has_temp;
    bool needs = g->min_soc_pct > 0 || g->not_while_charging || g->max_current_a > 0;
    return (!needs || reading) && (!g->has_min_temp || (temp && ota_temp_ok(b->temp_min_c))) &&
           (!g->has_max_temp || (temp && ota_temp_ok(b->temp_max_c)));
}

ota_reason_t ota_gate_blocked(const ota_gate_t *g, const ota_battery_reading_t *battery, int minute_of_day)
{
    if (!has_what_it_needs(g, battery)) {
        return OTA_REASON_NO_READING;
    }
    if (g->not_while_charging && battery->charging) {
        return OTA_REASON_CHARGING;
    }
    if (g->min_soc_pct > 0 && !(battery->soc_pct >= g->min_soc_pct)) {   // so that a reading of NaN blocks
        return OTA_REASON_LOW_SOC;
    }
    if (g->max_current_a > 0 && !(fabs(battery->pack_current_a) <= g->max_current_a)) {
        return OTA_REASON_HIGH_CURRENT;
    }
    if (g->has_min_temp && battery->temp_min_c < g->min_temp_c) {
        return OTA_REASON_TOO_COLD;
    }
    if (g->has_max_temp && battery->temp_max_c > g->max_temp_c) {
        return OTA_REASON_TOO_HOT;
    }
    if (*g->window == 0) {
        return OTA_REASON_NONE;
    }
    int from, to;
    if (!parse_window(g->window, &from, &to)) {
        return OTA_REASON_OUTSIDE_WINDOW;
    }
    bool after = minute_of_day >= from, before = minute_of_day < to;
    bool inside = from > to ? after || before : after && before;
    return inside ? OTA_REASON_NONE : OTA_REASON_OUTSIDE_WINDOW;
}
