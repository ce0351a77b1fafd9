// Runs single operations of ota_slots on a flash file, many in one process: the tests in Go hold them to the Go agent's.
//
//   slots_tool FLASH
//
// Each line on standard input is one life: KEY=VALUE words for the board, then the operation.
//
//   running=ota_0 reset=panic chip=0 rollback=1 anti=0 efuse=0 weak=0:0 cut=0 how=before seed=1 OPERATION [ARGUMENTS]
//
// It is answered with one line on standard output: the error's name, the number of operations, the secure version, and what
// the operation found. "power-cut" in place of the error says that the power failed where cut asked for it.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host_board.h"
#include "ota_slots.h"

static jmp_buf lights_out;
static char found[4096];
static uint8_t pattern[8192];

static void power_cut(void)
{
    longjmp(lights_out, 1);
}

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void tell(const char *format, ...)
{
    size_t used = strlen(found);
    va_list args;
    va_start(args, format);
    vsnprintf(found + used, sizeof found - used, format, args);
    va_end(args);
}

static void tell_hex(const char *name, const uint8_t digest[32])
{
    tell(" %s=", name);
    for (int i = 0; i < 32; i++) {
        tell("%02x", digest[i]);
    }
}

static void tell_story(const ota_boot_story_t *b)
{
    tell(" trial=%d manual=%d restart=%d leaving=%d", b->trial, b->manual, b->restart, b->leaving);
    if (b->told_pending) {
        tell(" told=%s", ota_reason_name(b->cause));
        tell_hex("failed", b->failed);
        if (b->told_noted) {
            tell(" record=%d", b->told_record);
        } else {
            tell(" slot=%s", b->told_slot->label);
        }
    }
    for (int i = 0; i < b->buried_count; i++) {
        tell_hex("buried", b->buried[i]);
    }
    if (b->is_held) {
        tell_hex("held", b->held);
    }
}

static void running_digest(const ota_slots_t *s, uint8_t digest[32])
{
    ota_image_facts_t f;
    memset(digest, 0, 32);
    if (ota_slots_verify(s->running, &f) == ESP_OK) {
        ota_slots_digest(s->running, 0, f.file_len, digest);
    }
}

static esp_err_t go_back(const ota_slots_t *s, const char *version, uint32_t floor)
{
    uint8_t digest[32];
    const esp_partition_t *slot;
    ota_refusal_t why = { 0 };
    esp_err_t err = ota_slots_rollback_target(s, version, floor, &slot, &why);
    if (err != ESP_OK) {
        tell(" refused=%s", ota_reason_name(why.reason));
        return err;
    }
    tell(" slot=%s", slot->label);
    running_digest(s, digest);
    return ota_slots_go_back(s, slot, digest);
}

static const esp_partition_t *slot_arg(const char *word)
{
    return esp_partition_find_first(ESP_PARTITION_TYPE_APP, ESP_PARTITION_SUBTYPE_ANY, word);
}

static esp_err_t verify(const esp_partition_t *p)
{
    ota_image_facts_t f;
    uint8_t digest[32];
    esp_err_t err = ota_slots_verify(p, &f);
    if (err != ESP_OK) {
        return err;
    }
    tell(" image=%lu file=%lu chip=%u desc=%d secure=%lu version=%s project=%s", (unsigned long)f.image_len,
         (unsigned long)f.file_len, f.chip_id, f.has_desc, (unsigned long)f.secure_version, f.version, f.project);
    err = ota_slots_digest(p, 0, f.file_len, digest);
    tell_hex("sha256", digest);
    return err;
}

static esp_err_t operate(const ota_slots_t *s, const char *what, const char *arg, uint32_t number)
{
    ota_boot_story_t story;
    if (strcmp(what, "open") == 0) {
        tell(" target=%s slots=%d running=%d otadata=%d why=%s", s->target == NULL ? "" : s->target->label, s->slots,
             s->running_slot, s->otadata != NULL, s->no_target);
        return ESP_OK;
    }
    if (strcmp(what, "settle") == 0 || strcmp(what, "told") == 0) {
        esp_err_t err = ota_slots_settle(s, host_board.reset, &story);
        tell_story(&story);
        return err == ESP_OK && *what == 't' ? ota_slots_told(s, &story) : err;
    }
    if (strcmp(what, "switch") == 0) {
        return ota_slots_switch(s, slot_arg(arg));
    }
    if (strcmp(what, "confirm") == 0) {
        return ota_slots_confirm(s);
    }
    if (strcmp(what, "give_up") == 0) {
        uint8_t digest[32];
        running_digest(s, digest);
        return ota_slots_give_up(s, ota_reason_from(arg, strlen(arg)), digest);
    }
    if (strcmp(what, "begin") == 0) {
        return ota_slots_begin(s);
    }
    if (strcmp(what, "write") == 0) {
        memset(pattern, 0xE9, sizeof pattern);
        return ota_slots_write(s, (uint32_t)strtoul(arg, NULL, 10), pattern, number);
    }
    if (strcmp(what, "unboot") == 0) {
        return ota_slots_unboot(s, slot_arg(arg));
    }
    if (strcmp(what, "blank") == 0) {
        return ota_slots_blank(s, (uint32_t)strtoul(arg, NULL, 10));
    }
    if (strcmp(what, "go_back") == 0) {
        return go_back(s, strcmp(arg, "-") == 0 ? "" : arg, number);
    }
    if (strcmp(what, "verify") == 0) {
        return verify(slot_arg(arg));
    }
    fprintf(stderr, "unknown operation %s\n", what);
    exit(2);
}

static uint8_t subtype_of(const char *name)
{
    if (strncmp(name, "ota_", 4) == 0) {
        return (uint8_t)(ESP_PARTITION_SUBTYPE_APP_OTA_MIN + atoi(name + 4));
    }
    return strcmp(name, "test") == 0 ? ESP_PARTITION_SUBTYPE_APP_TEST : ESP_PARTITION_SUBTYPE_APP_FACTORY;
}

static void set(const char *key, char *value)
{
    if (strcmp(key, "running") == 0) {
        host_board.running = subtype_of(value);
    } else if (strcmp(key, "reset") == 0) {
        host_board.reset = value;
    } else if (strcmp(key, "chip") == 0) {
        host_board.chip = (uint16_t)atoi(value);
    } else if (strcmp(key, "rollback") == 0) {
        host_board.rollback = atoi(value) != 0;
    } else if (strcmp(key, "anti") == 0) {
        host_board.anti_rollback = atoi(value) != 0;
    } else if (strcmp(key, "efuse") == 0) {
        host_board.efuse = (uint32_t)strtoul(value, NULL, 10);
    } else if (strcmp(key, "encrypted") == 0) {
        host_board.encrypted = atoi(value) != 0;
    } else if (strcmp(key, "weak") == 0) {
        char *bits;
        host_board.weak_at = (uint32_t)strtoul(value, &bits, 10);
        host_board.weak_bits = *bits == ':' ? (uint8_t)atoi(bits + 1) : 0;
    } else if (strcmp(key, "cut") == 0) {
        host_board.cut_at = strtoull(value, NULL, 10);
    } else if (strcmp(key, "how") == 0) {
        host_board.cut = *value == 'b' ? HOST_CUT_BEFORE : *value == 't' ? HOST_CUT_TORN : HOST_CUT_AFTER;
    } else if (strcmp(key, "seed") == 0) {
        host_board.cut_seed = strtoull(value, NULL, 10);
    } else {
        fprintf(stderr, "unknown word %s\n", key);
        exit(2);
    }
}

static void live(char *line)
{
    static ota_slots_t slots;
    static const char *word[3];
    static esp_err_t err;
    int words = 0;
    for (char *w = strtok(line, " \n"); w != NULL; w = strtok(NULL, " \n")) {
        char *value = strchr(w, '=');
        if (value != NULL && words == 0) {
            *value = 0;
            set(w, value + 1);
        } else if (words < 3) {
            word[words++] = w;
        }
    }
    found[0] = 0;
    host_flash_new_life();
    err = ota_slots_open(&slots);
    const char *name = "power-cut";
    if (setjmp(lights_out) == 0) {
        if (err == ESP_OK) {
            err = operate(&slots, words > 0 ? word[0] : "", words > 1 ? word[1] : "-", words > 2 ? (uint32_t)strtoul(word[2], NULL, 10) : 0);
        }
        name = esp_err_to_name(err);
    }
    printf("%s %llu %lu%s\n", name, (unsigned long long)host_flash_operations(), (unsigned long)host_board.efuse, found);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char line[512];
    if (argc != 2 || !host_flash_open(argv[1])) {
        return 2;
    }
    host_board.power_cut = power_cut;
    while (fgets(line, sizeof line, stdin) != NULL) {
        live(line);
    }
    return 0;
}
