// A firmware for a virtual board: the component, and as little around it as a monitor can have. docs/virtual-boards.md says what
// it is given and how it ends. OTA_HOST_ORDERS=check,update,… are calls of the component's functions, made one every two seconds
// after power on, and both of rollback+update at once. With OTA_HOST_BATTERY_HANGS a reading of the battery never ends in a trial.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "esp_system.h"
#include "freertos/task.h"
#include "host_board.h"
#include "host_chip.h"
#include "ota_manager.h"
#include "ota_status_logger.h"

static bool read_battery(ota_battery_t *out, void *ctx)
{
    (void)ctx;
    while (getenv("OTA_HOST_BATTERY_HANGS") != NULL && ota_manager_is_rollback_pending()) {
        pause();
    }
    *out = (ota_battery_t){
        .soc_pct = host_board.soc_pct, .pack_current_a = host_board.pack_current_a, .charging = host_board.charging,
        .has_temp = host_board.has_temp, .temp_min_c = host_board.temp_min_c, .temp_max_c = host_board.temp_max_c,
    };
    return !host_board.silent;
}

static void before_update(void *ctx)
{
    (void)ctx;
    fprintf(stderr, "monitor: before the update\n");
}

static void after_update(bool installed, void *ctx)
{
    (void)ctx;
    fprintf(stderr, "monitor: after the update, %s\n", installed ? "installed" : "not installed");
}

static void on_status(const char *json, size_t len, void *ctx)
{
    ota_status_logger_on_status(json, len, ctx);
    fwrite(json, 1, len, stdout);
    fputc('\n', stdout);
    fflush(stdout);
}

static void usage(const char *what)
{
    fprintf(stderr, "monitor: %s\n", what);
    exit(2);
}

static uint64_t number(const char *text)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || end == text) {
        usage("a number is none");
    }
    return n;
}

static void partition(const char *name)
{
    if (strncmp(name, "ota_", 4) == 0) {
        host_board.running = (uint8_t)(0x10 + number(name + 4));
    } else {
        host_board.running = strcmp(name, "test") == 0 ? 0x20 : 0;
    }
}

static void mac(const char *text)
{
    for (int i = 0; i < 6; i++) {
        unsigned b;
        if (sscanf(text + 2 * i, "%2x", &b) != 1) {
            usage("--mac is none");
        }
        host_board.mac[i] = (uint8_t)b;
    }
}

static const char *flash;

static void take(const char *name, const char *value)
{
    if (strcmp(name, "--flash") == 0) {
        flash = value;
    } else if (strcmp(name, "--running") == 0) {
        partition(value);
    } else if (strcmp(name, "--reset") == 0) {
        host_board.reset = value;
    } else if (strcmp(name, "--mac") == 0) {
        mac(value);
    } else if (strcmp(name, "--chip") == 0) {
        if (!host_chip_from(value, &host_board.chip)) {
            usage("--chip is none");
        }
    } else if (strcmp(name, "--revision") == 0) {
        host_board.revision = (uint16_t)number(value);
    } else if (strcmp(name, "--storage") == 0) {
        host_board.storage = value;
    } else if (strcmp(name, "--rollback") == 0) {
        host_board.rollback = number(value) != 0;
    } else if (strcmp(name, "--anti-rollback") == 0) {
        host_board.anti_rollback = number(value) != 0;
    } else if (strcmp(name, "--efuse") == 0) {
        host_board.efuse = (uint32_t)number(value);
    } else if (strcmp(name, "--seed") == 0) {
        host_board.seed = number(value);
    } else if (strcmp(name, "--frame-ms") == 0) {
        host_board.frame_ms = (uint32_t)number(value);
    } else if (strcmp(name, "--soc") == 0) {
        host_board.soc_pct = strtod(value, NULL);
    } else if (strcmp(name, "--current") == 0) {
        host_board.pack_current_a = strtod(value, NULL);
    } else if (strcmp(name, "--charging") == 0) {
        host_board.charging = number(value) != 0;
    } else if (strcmp(name, "--temp-min") == 0) {
        host_board.temp_min_c = strtod(value, NULL);
        host_board.has_temp = true;
    } else if (strcmp(name, "--temp-max") == 0) {
        host_board.temp_max_c = strtod(value, NULL);
    } else if (strcmp(name, "--cut-at") == 0) {
        host_board.cut_at = number(value);
    } else if (strcmp(name, "--cut") == 0) {
        host_board.cut = strcmp(value, "torn") == 0 ? HOST_CUT_TORN : strcmp(value, "after") == 0 ? HOST_CUT_AFTER : HOST_CUT_BEFORE;
    } else if (strcmp(name, "--cut-seed") == 0) {
        host_board.cut_seed = number(value);
    } else if (strcmp(name, "--report") == 0) {
        host_board.report = value;
    } else {
        usage("an argument is unknown");
    }
}

static esp_err_t give(const char *order)
{
    static const struct {
        const char *name;
        esp_err_t (*call)(void);
    } calls[] = {
        {"check", ota_manager_check_update}, {"rollback", ota_manager_rollback}, {"valid", ota_manager_mark_valid},
        {"reload", ota_manager_load_config},
    };
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        if (strcmp(order, calls[i].name) == 0) {
            return calls[i].call();
        }
    }
    return ota_manager_start_update(strcmp(order, "force") == 0);
}

static void give_orders(void *orders)
{
    char *rest = NULL;
    for (char *order = strtok_r(orders, ",", &rest); order != NULL; order = strtok_r(NULL, ",", &rest)) {
        vTaskDelay(pdMS_TO_TICKS(2000));
        char *second = strchr(order, '+');
        if (second != NULL) {
            *second++ = '\0';
        }
        esp_err_t err = give(order);
        if (second != NULL) {
            give(second);
        }
        fprintf(stderr, "monitor: %s: %s, version %s, trial %d\n", order, esp_err_to_name(err), ota_manager_get_version(),
                ota_manager_is_rollback_pending());
    }
}

// The board's own process is gone when standard input ends.
static void *watch(void *arg)
{
    char b;
    (void)arg;
    while (read(STDIN_FILENO, &b, 1) > 0) {
    }
    host_end(HOST_EXIT_STOPPED);
}

int main(int argc, char **argv)
{
    host_board.reset = "poweron";
    host_board.frame_ms = 1000;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--unhealthy") == 0) {
            host_board.silent = true;
        } else if (i + 1 < argc) {
            take(argv[i], argv[i + 1]);
            i++;
        } else {
            usage("an argument has no value");
        }
    }
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (flash == NULL || !host_flash_open(flash)) {
        usage("no flash");
    }
    pthread_t watcher;
    pthread_create(&watcher, NULL, watch, NULL);
    ota_manager_config_t cfg = ota_manager_default_config();
    cfg.read_battery = read_battery;
    cfg.on_status = on_status;
    cfg.before_update = before_update;
    cfg.after_update = after_update;
    cfg.storage_path = host_board.storage;
    cfg.frame_ms = host_board.frame_ms;
    esp_err_t err = ota_manager_init(&cfg);
    if (err != ESP_OK) {
        fprintf(stderr, "monitor: ota_manager_init: %s\n", esp_err_to_name(err));
        return 1;
    }
    char *orders = getenv("OTA_HOST_ORDERS");
    if (orders != NULL && strcmp(host_board.reset, "poweron") == 0) {
        xTaskCreate(give_orders, "orders", 0, orders, 1, NULL);
    }
    int sig;
    sigwait(&stop, &sig);
    fprintf(stderr, "monitor: heap at most %zu bytes\n", host_heap_peak());
    host_end(HOST_EXIT_STOPPED);
}
