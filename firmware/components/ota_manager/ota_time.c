#include "ota_time.h"

#include <string.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Days since 1970-01-01 in the Gregorian calendar. Years begin in March here, so that the leap day is their last.
static int64_t days_since_1970(int year, int month, int day)
{
    int y = month <= 2 ? year - 1 : year, m = month <= 2 ? month + 9 : month - 3;
    int era = (y >= 0 ? y : y - 399) / 400, of_era = y - era * 400;
    int of_year = (153 * m + 2) / 5 + day - 1;
    return (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int days_in(int year, int month)
{
    static const int8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return days[month - 1] + (month == 2 && leap);
}

// Matches s against a pattern in which each run of 0 is a number, and gives the numbers.
static bool match(const char *s, const char *pattern, int *numbers)
{
    for (bool inside = false; *pattern; s++, pattern++) {
        if (*pattern != '0') {
            if (*s != *pattern) {
                return false;
            }
            numbers += inside;
            inside = false;
            continue;
        }
        if (!is_digit(*s)) {
            return false;
        }
        *numbers = (inside ? *numbers * 10 : 0) + (*s - '0');
        inside = true;
    }
    return true;
}

// Reads what stands behind the seconds: a fraction perhaps, of which nine digits count.
static const char *fraction(const char *s, int32_t *ns)
{
    *ns = 0;
    if (s[0] != '.' || !is_digit(s[1])) {
        return s;
    }
    int32_t unit = 100000000;
    for (s++; is_digit(*s); s++) {
        *ns += (*s - '0') * unit;
        unit /= 10;
    }
    return s;
}

bool ota_time_parse(const char *s, int64_t *seconds, int32_t *ns)
{
    int t[6], zone[2] = {0, 0};
    if (!match(s, "0000-00-00T00:00:00", t)) {
        return false;
    }
    if (t[1] < 1 || t[1] > 12 || t[2] < 1 || t[2] > days_in(t[0], t[1]) || t[3] > 23 || t[4] > 59 || t[5] > 59) {
        return false;
    }
    s = fraction(s + 19, ns);
    int sign = *s == '-' ? -1 : 1;
    if (strcmp(s, "Z") != 0 &&
        ((*s != '+' && *s != '-') || strlen(s) != 6 || !match(s + 1, "00:00", zone) || zone[0] > 23 || zone[1] > 59)) {
        return false;
    }
    *seconds = days_since_1970(t[0], t[1], t[2]) * 86400 + t[3] * 3600 + t[4] * 60 + t[5] -
               sign * (zone[0] * 3600 + zone[1] * 60);
    return true;
}
