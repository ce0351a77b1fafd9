#pragma once

#include <stdint.h>

int64_t esp_timer_get_time(void);   // microseconds since the start, as fast as OTA_HOST_SPEEDUP says
