// Says how much stack and heap a part of the pure half of the component takes at its peak, and what it does when memory is
// not to be had. The stack is a painted one of its own; the heap is what the functions below have handed out.
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "ota_manifest.h"
#include "ota_protocol.h"

#define STACK (64u << 10)
#define PAINT 0xa5

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void __libc_free(void *p);

static size_t heap, heap_peak;
static long asked, fail_at;   // the request that gets nothing; 0: none

static bool refused(void) { return ++asked == fail_at; }

static void *counted(void *p)
{
    heap += p ? malloc_usable_size(p) : 0;
    heap_peak = heap > heap_peak ? heap : heap_peak;
    return p;
}

static void uncounted(void *p) { heap -= p ? malloc_usable_size(p) : 0; }

void *malloc(size_t n) { return refused() ? NULL : counted(__libc_malloc(n)); }

void *calloc(size_t n, size_t size) { return refused() ? NULL : counted(__libc_calloc(n, size)); }

void *realloc(void *p, size_t n)
{
    if (refused()) {
        return NULL;
    }
    uncounted(p);
    return counted(__libc_realloc(p, n));
}

void free(void *p)
{
    uncounted(p);
    __libc_free(p);
}

// What is measured: its input, which it may overwrite, and whether it said yes.
static char input[64u << 10];
static size_t input_len;
static const char *keys;
static bool accepted, starved;

static void run_command(void)
{
    ota_command_t c;
    ota_refusal_t why;
    accepted = ota_command_parse((const uint8_t *)input, input_len, &c, &why);
}

static void run_version_file(void)
{
    ota_version_file_t f;
    ota_refusal_t why;
    accepted = ota_version_file_parse(input, input_len, &f, &why);
}

static void run_ota_config(void)
{
    ota_config_t c;
    char why[160];
    accepted = ota_config_parse(input, input_len, &c, why, sizeof why);
}

static void run_mqtt_config(void)
{
    ota_mqtt_config_t c;
    char why[160];
    accepted = ota_mqtt_config_parse(input, input_len, &c, why, sizeof why);
}

static void run_keys(void)
{
    char why[160];
    ota_trust_t t;
    accepted = ota_manifest_keys(input, 0, &t, why, sizeof why) == OTA_MANIFEST_OK;
}

static void run_manifest(void)
{
    static ota_trust_t t;   // the instance's, on a chip
    ota_manifest_t m;
    char why[160];
    ota_manifest_result_t r = ota_manifest_keys(keys, 0, &t, why, sizeof why);
    if (r == OTA_MANIFEST_OK) {
        r = ota_manifest_read(input, input_len, "", &t, &m, why, sizeof why);
    }
    accepted = r == OTA_MANIFEST_OK;
    starved = r == OTA_MANIFEST_NO_MEMORY;
}

static void run_status(void)
{
    ota_status_doc_t s = {.message = input, .battery = {.valid = true, .soc_pct = 71.5, .has_temp = true, .temp_min_c = -12.345, .temp_max_c = -1.234}};
    char out[OTA_MAX_STATUS];
    accepted = ota_status_write(&s, out, sizeof out) > 0;
}

static const struct {
    const char *name;
    void (*run)(void);
} runs[] = {
    {"command", run_command}, {"version_file", run_version_file}, {"ota_config", run_ota_config},
    {"mqtt_config", run_mqtt_config}, {"keys", run_keys}, {"manifest", run_manifest}, {"status", run_status},
};

static void measure(const char *name, void (*run)(void))
{
    static unsigned char stack[STACK];
    static ucontext_t back, there;
    memset(stack, PAINT, sizeof stack);
    getcontext(&there);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof stack;
    there.uc_link = &back;
    makecontext(&there, run, 0);
    heap = heap_peak = 0;
    asked = 0;
    swapcontext(&back, &there);
    long requests = asked;
    fail_at = 0;
    size_t untouched = 0;
    while (untouched < sizeof stack && stack[untouched] == PAINT) {
        untouched++;
    }
    printf("%s accepted=%d starved=%d requests=%ld stack=%zu heap=%zu left=%zu\n", name, accepted, starved, requests,
           sizeof stack - untouched, heap_peak, heap);
}

static size_t read_file(const char *path, char *to, size_t size)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(2);
    }
    size_t n = fread(to, 1, size - 1, f);
    to[n] = 0;
    fclose(f);
    return n;
}

// memory NAME FAIL INPUT [KEYS]: what is measured, which request for memory gets nothing (0: none), and files with the
// input and the trusted keys.
int main(int argc, char **argv)
{
    static char keys_file[16u << 10];
    if (argc < 4) {
        fprintf(stderr, "memory: give NAME FAIL INPUT [KEYS]\n");
        return 2;
    }
    input_len = read_file(argv[3], input, sizeof input);
    if (argc > 4) {
        read_file(argv[4], keys_file, sizeof keys_file);
        keys = keys_file;
    }
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        if (strcmp(runs[i].name, argv[1]) == 0) {
            fail_at = strtol(argv[2], NULL, 10);
            measure(runs[i].name, runs[i].run);
            return 0;
        }
    }
    fprintf(stderr, "memory: nothing is called %s\n", argv[1]);
    return 2;
}
