// The virtual board that the host port is on: what docs/virtual-boards.md gives a program, and its flash by the rules of
// Go's package norflash.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HOST_SECTOR 4096u
#define HOST_PIECE 64u        // the most that one program operation writes, bytes

typedef enum { HOST_CUT_BEFORE, HOST_CUT_TORN, HOST_CUT_AFTER } host_cut_t;

typedef struct {
    uint8_t running;          // subtype of the application partition that the bootloader started
    const char *reset;        // in the words of a status
    uint8_t mac[6];
    uint16_t chip;            // as image headers name it
    uint16_t revision;        // major*100 + minor
    const char *storage;      // folder of the storage partition's files
    bool rollback, anti_rollback;
    bool encrypted;           // flash encryption, as a stand-in: host_flash_key over applications and records
    uint32_t efuse;           // secure version; raised by esp_efuse_update_secure_version
    uint64_t seed;
    uint32_t frame_ms;        // between two readings of the battery
    double soc_pct, pack_current_a, temp_min_c, temp_max_c;
    bool charging, has_temp, silent;
    const char *report;       // where the end of this life is told; NULL: nowhere

    uint64_t cut_at;          // operation that the power fails in, the first being 1; 0: none
    host_cut_t cut;
    uint64_t cut_seed;
    uint32_t weak_at;         // of a byte with bits that read as 1 every second time, as a cut erase can leave them; 0: none
    uint8_t weak_bits;        // of it; firm again once programmed or erased
    void (*power_cut)(void);  // does not return; NULL: host_end(HOST_EXIT_POWER_CUT)
} host_board_t;

extern host_board_t host_board;

// Exit statuses of a life.
enum { HOST_EXIT_STOPPED = 0, HOST_EXIT_RESTART = 10, HOST_EXIT_POWER_CUT = 12 };

// Writes the report and ends the process at once, whatever other threads do.
void host_end(int status) __attribute__((noreturn));

const char *host_chip_name(uint16_t chip);              // "esp32"; NULL for one that ESP-IDF does not name
bool host_chip_from(const char *name, uint16_t *chip);
uint32_t host_chip_secure_bits(uint16_t chip);          // width of the secure version's eFuse field

// Takes the flash file, with its exclusive lock. False with a sentence on standard error.
bool host_flash_open(const char *path);
void host_flash_stop(void);                             // no operation begins or goes on after it
uint8_t *host_flash_bytes(void);                        // the chip's content, for reading
void host_flash_read(uint32_t at, void *out, size_t len);   // … with the bits that are weak
uint32_t host_flash_size(void);
// What a byte of an encrypted partition is mixed with. It is no cipher; what counts is that erased flash reads as anything,
// and that a block of 16 bytes takes one write.
uint8_t host_flash_key(uint32_t at);
uint64_t host_flash_operations(void);
// Makes another life of this flash: no operation counted, and the partition table read anew.
void host_flash_new_life(void);
void host_partitions_forget(void);
// Both cut at pieces and sectors, each one operation. The range was checked by the caller.
void host_flash_program(uint32_t at, const void *bytes, size_t len);
void host_flash_erase(uint32_t at, size_t len);

#ifdef __cplusplus
}
#endif
