// Time and heap of the chip that the host port is.
#pragma once

#include <stddef.h>
#include <stdint.h>

int64_t host_speedup(void);                // OTA_HOST_SPEEDUP, 1 without it
int64_t host_real_ms(int64_t ms);          // how long a wait of ms takes here
void host_stand_still(int64_t us);         // the chip's clock goes on by so much at once, as when nothing on it runs meanwhile

// The heap of the chip: what the component's own code allocates is counted (host_heap.c), and what a library of ESP-IDF would
// take in its place is said by the port.
void host_heap_take(size_t bytes);
void host_heap_give(size_t bytes);
size_t host_heap_peak(void);               // the most that was taken at a time
