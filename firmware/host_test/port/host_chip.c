#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/time.h>
#include <time.h>

#include "esp_heap_caps.h"
#include "esp_mac.h"
#include "esp_random.h"
#include "esp_system.h"
#include "esp_timer.h"
#include "host_board.h"
#include "host_chip.h"

#define HEAP_SIZE (300u << 10)   // an ESP32 after start-up, without Wi-Fi's share

int64_t host_speedup(void)
{
    static atomic_llong known;
    int64_t n = atomic_load(&known);
    if (n == 0) {
        const char *text = getenv("OTA_HOST_SPEEDUP");
        n = text != NULL ? strtoll(text, NULL, 10) : 1;
        n = n >= 1 && n <= 100000 ? n : 1;
        atomic_store(&known, n);
    }
    return n;
}

int64_t host_real_ms(int64_t ms)
{
    int64_t real = ms / host_speedup();
    return real > 0 || ms <= 0 ? real : 1;
}

int host_gettimeofday(struct timeval *t, void *zone);

// OTA_HOST_CLOCK=N is a chip that was not told the time: it counts from 1970, and is told after N seconds.
int host_gettimeofday(struct timeval *t, void *zone)
{
    (void)zone;
    const char *after = getenv("OTA_HOST_CLOCK");
    int64_t now = esp_timer_get_time();
    if (after == NULL || now >= strtoll(after, NULL, 10) * 1000000) {
        return gettimeofday(t, NULL);
    }
    t->tv_sec = (time_t)(now / 1000000);
    t->tv_usec = (suseconds_t)(now % 1000000);
    return 0;
}

static int64_t monotonic_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static atomic_llong stood_us;

void host_stand_still(int64_t us)
{
    atomic_fetch_add(&stood_us, us);
}

int64_t esp_timer_get_time(void)
{
    static atomic_llong start;
    long long none = 0;
    int64_t now = monotonic_us();
    atomic_compare_exchange_strong(&start, &none, now);
    return (now - atomic_load(&start)) * host_speedup() + atomic_load(&stood_us);
}

esp_err_t esp_read_mac(uint8_t *mac, esp_mac_type_t type)
{
    (void)type;
    memcpy(mac, host_board.mac, sizeof host_board.mac);
    return ESP_OK;
}

esp_reset_reason_t esp_reset_reason(void)
{
    static const struct {
        const char *word;
        esp_reset_reason_t reason;
    } words[] = {
        {"poweron", ESP_RST_POWERON}, {"software", ESP_RST_SW}, {"panic", ESP_RST_PANIC},
        {"watchdog", ESP_RST_TASK_WDT}, {"brownout", ESP_RST_BROWNOUT},
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(words[i].word, host_board.reset) == 0) {
            return words[i].reason;
        }
    }
    return ESP_RST_UNKNOWN;
}

void esp_restart(void)
{
    host_end(HOST_EXIT_RESTART);
}

// What nobody may foresee is not the seed's: a board that is run again asks with other nonces.
void esp_fill_random(void *buf, size_t len)
{
    if (getrandom(buf, len, 0) != (ssize_t)len) {   // whole up to 256 bytes (getrandom(2))
        abort();
    }
}

uint32_t esp_random(void)
{
    // SplitMix64 over the seed: the same board waits the same pauses again.
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static uint64_t steps;
    pthread_mutex_lock(&lock);
    uint64_t x = host_board.seed + ++steps * UINT64_C(0x9E3779B97F4A7C15);
    pthread_mutex_unlock(&lock);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (uint32_t)(x >> 32);
}

static atomic_size_t taken, peak;

void host_heap_take(size_t bytes)
{
    size_t now = atomic_fetch_add(&taken, bytes) + bytes;
    size_t most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
}

void host_heap_give(size_t bytes)
{
    atomic_fetch_sub(&taken, bytes);
}

size_t host_heap_peak(void)
{
    return atomic_load(&peak);
}

static size_t left(size_t used)
{
    return used < HEAP_SIZE ? HEAP_SIZE - used : 0;
}

uint32_t esp_get_free_heap_size(void)
{
    return (uint32_t)left(atomic_load(&taken));
}

uint32_t esp_get_minimum_free_heap_size(void)
{
    return (uint32_t)left(atomic_load(&peak));
}

size_t heap_caps_get_largest_free_block(uint32_t caps)
{
    (void)caps;
    return left(atomic_load(&taken)) * 5 / 8;
}
