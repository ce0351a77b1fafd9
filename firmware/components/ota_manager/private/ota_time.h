// RFC 3339 times, as Go's protocol.parseTime takes them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OTA_TIME_YEAR_1 (-62135596800LL)   // 0001-01-01T00:00:00Z in seconds since 1970

// Seconds since 1970, rounded down, and the nanoseconds behind them. No leap seconds; T and Z in upper case.
bool ota_time_parse(const char *s, int64_t *seconds, int32_t *ns);

#ifdef __cplusplus
}
#endif
