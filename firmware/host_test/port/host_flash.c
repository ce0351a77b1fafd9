// NOR flash in a plain file, as Go's package norflash has it: an erase turns 4 KiB to ones, a program clears bits, and the
// power can fail before, in and after each operation.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host_board.h"
#include "host_chip.h"

#define MIB (1u << 20)

static uint8_t *chip;
static uint32_t size;
static uint64_t operations;
// Held through an operation, so that a process that is stopped ends between two. Recursive: a power cut ends it inside one.
static pthread_mutex_t busy = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static bool refuse(const char *path, const char *why)
{
    fprintf(stderr, "flash %s: %s\n", path, why);
    return false;
}

bool host_flash_open(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return refuse(path, strerror(errno));
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        return refuse(path, errno == EWOULDBLOCK ? "in use by another board" : strerror(errno));
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return refuse(path, "not a plain file");
    }
    if (st.st_size < (off_t)MIB || st.st_size > (off_t)(32 * MIB) || (st.st_size & (st.st_size - 1)) != 0) {
        return refuse(path, "its size is that of no flash chip");
    }
    // The descriptor stays open: the lock goes with it.
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return refuse(path, strerror(errno));
    }
    chip = map;
    size = (uint32_t)st.st_size;
    return true;
}

void host_flash_stop(void)
{
    pthread_mutex_lock(&busy);
}

uint8_t *host_flash_bytes(void) { return chip; }
uint8_t host_flash_key(uint32_t at) { return (uint8_t)((at + 1) * UINT32_C(0x9E3779B1) >> 13); }
uint32_t host_flash_size(void) { return size; }
uint64_t host_flash_operations(void) { return operations; }

void host_flash_new_life(void)
{
    operations = 0;
    host_partitions_forget();
}

void host_flash_read(uint32_t at, void *out, size_t len)
{
    static unsigned reads;
    memcpy(out, chip + at, len);
    if (host_board.weak_bits != 0 && host_board.weak_at - at < len && reads++ % 2 == 1) {
        ((uint8_t *)out)[host_board.weak_at - at] |= host_board.weak_bits;
    }
}

// splitmix64: what a torn operation leaves is decided by the seed alone.
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

// Reads a number and the comma behind it; 0 where there is none.
static uint64_t number(char **text)
{
    uint64_t n = strtoull(*text, text, 10);
    *text += **text == ',';
    return n;
}

// OTA_HOST_SLOW_FLASH=ERASE_MS,PIECE_US,SEED is a flash that takes its time: half to one and a half of what is said, as the
// seed decides, and one erase in eight four times as long. The chip stands still meanwhile, so nobody waits: its clock moves.
static void take_time(bool erase)
{
    static bool known;
    static uint64_t erase_us, piece_us, state;
    if (!known) {
        char *text = getenv("OTA_HOST_SLOW_FLASH");
        known = true;
        if (text != NULL) {
            erase_us = number(&text) * 1000;
            piece_us = number(&text);
            state = number(&text);
        }
    }
    uint64_t us = erase ? erase_us : piece_us;
    if (us > 0) {
        us = us / 2 + next_random(&state) % (us + 1);
        host_stand_still((int64_t)(erase && next_random(&state) % 8 == 0 ? 4 * us : us));
    }
}

// A byte in which each bit is 1 with the probability density/256.
static uint8_t random_bits(uint64_t *state, uint32_t density)
{
    uint64_t v = next_random(state);
    uint8_t b = 0;
    for (unsigned i = 0; i < 8; i++) {
        b = (uint8_t)(b | ((v >> (8 * i) & 0xFF) < density) << i);
    }
    return b;
}

static void power_cut(void)
{
    if (host_board.power_cut != NULL) {
        host_board.power_cut();
    }
    host_end(HOST_EXIT_POWER_CUT);
}

// Counts an operation, lets it take its time, and says whether the power fails in it. Before it, it fails here.
static bool failing(bool erase)
{
    operations++;
    take_time(erase);
    if (host_board.cut_at == 0 || operations != host_board.cut_at) {
        return false;
    }
    if (host_board.cut == HOST_CUT_BEFORE) {
        power_cut();
    }
    return true;
}

// Stopped half way, it has done a prefix and a random subset of the bits that were still to be cleared.
static void tear_program(uint8_t *to, const uint8_t *from, size_t len)
{
    uint64_t state = host_board.cut_seed;
    size_t done = (size_t)(next_random(&state) % (len + 1));
    uint32_t density = (uint32_t)(next_random(&state) % 257);
    for (size_t i = 0; i < len; i++) {
        to[i] &= i < done ? from[i] : (uint8_t)(from[i] | random_bits(&state, density));
    }
}

// Stopped half way, it has turned a prefix to ones and a random subset of the zeros behind it. Every fourth seed stands for
// chips that clear a sector before they erase it.
static void tear_erase(uint8_t *sector)
{
    uint64_t state = host_board.cut_seed;
    bool clears = next_random(&state) % 4 == 0;
    uint32_t density = (uint32_t)(next_random(&state) % 257);
    for (size_t i = 0; clears && i < HOST_SECTOR; i++) {
        sector[i] &= random_bits(&state, density);
    }
    size_t done = next_random(&state) % 2 == 0 ? (size_t)(next_random(&state) % HOST_SECTOR) : 0;
    // Squared: nearly untouched sectors are the dangerous ones, so they come more often.
    density = (uint32_t)(next_random(&state) % 257);
    density = density * density / 256;
    for (size_t i = 0; i < HOST_SECTOR; i++) {
        sector[i] |= i < done ? 0xFF : random_bits(&state, density);
    }
}

static void program_piece(uint8_t *to, const uint8_t *from, size_t len)
{
    bool cut = failing(false);
    if (cut && host_board.cut == HOST_CUT_TORN) {
        tear_program(to, from, len);
        power_cut();
    }
    for (size_t i = 0; i < len; i++) {
        to[i] &= from[i];
    }
    if (cut) {
        power_cut();
    }
}

void host_flash_program(uint32_t at, const void *bytes, size_t len)
{
    const uint8_t *from = bytes;
    while (len > 0) {
        size_t n = HOST_PIECE - at % HOST_PIECE;
        n = n < len ? n : len;
        pthread_mutex_lock(&busy);
        program_piece(chip + at, from, n);
        if (host_board.weak_at - at < n) {
            host_board.weak_bits &= from[host_board.weak_at - at];
        }
        pthread_mutex_unlock(&busy);
        at += (uint32_t)n;
        from += n;
        len -= n;
    }
}

static void erase_sector(uint8_t *sector)
{
    bool cut = failing(true);
    if (cut && host_board.cut == HOST_CUT_TORN) {
        tear_erase(sector);
        power_cut();
    }
    memset(sector, 0xFF, HOST_SECTOR);
    if (cut) {
        power_cut();
    }
}

void host_flash_erase(uint32_t at, size_t len)
{
    for (; len > 0; at += HOST_SECTOR, len -= HOST_SECTOR) {
        pthread_mutex_lock(&busy);
        erase_sector(chip + at);
        if (host_board.weak_at - at < HOST_SECTOR) {
            host_board.weak_bits = 0;
        }
        pthread_mutex_unlock(&busy);
    }
}
