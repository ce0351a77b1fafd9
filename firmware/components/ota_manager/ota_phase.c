#include "ota_protocol.h"

#define NEXT(p) (1u << OTA_PHASE_##p)

// The table of docs/protocol.md section 4: number of the original tool, words, and what may follow within one boot.
static const struct {
    const char *name, *text;
    uint8_t code;
    uint16_t next;
} phases[OTA_PHASE_COUNT] = {
    [OTA_PHASE_IDLE] = {"idle", "idle", 0, NEXT(CHECKING) | NEXT(REBOOTING)},
    [OTA_PHASE_CHECKING] = {"checking", "checking for a firmware update", 1,
        NEXT(IDLE) | NEXT(WAITING) | NEXT(DOWNLOADING) | NEXT(REFUSED) | NEXT(FAILED)},
    [OTA_PHASE_WAITING] = {"waiting", "waiting", 1, NEXT(CHECKING) | NEXT(IDLE) | NEXT(FAILED)},
    [OTA_PHASE_DOWNLOADING] = {"downloading", "downloading firmware update", 2, NEXT(VERIFYING) | NEXT(FAILED)},
    [OTA_PHASE_VERIFYING] = {"verifying", "verifying what is in flash", 3, NEXT(SWITCHING) | NEXT(FAILED)},
    [OTA_PHASE_SWITCHING] = {"switching", "switching to the new image", 3, NEXT(REBOOTING) | NEXT(FAILED)},
    [OTA_PHASE_REBOOTING] = {"rebooting", "restarting into the new image", 3, 0},
    [OTA_PHASE_TRIAL] = {"trial", "new image on trial", 3, NEXT(CONFIRMED) | NEXT(REBOOTING)},
    [OTA_PHASE_CONFIRMED] = {"confirmed", "new image confirmed", 4, NEXT(IDLE) | NEXT(CHECKING) | NEXT(REBOOTING)},
    [OTA_PHASE_FAILED] = {"failed", "update failed", 5, NEXT(IDLE) | NEXT(CHECKING) | NEXT(REBOOTING)},
    [OTA_PHASE_REFUSED] = {"refused", "update refused", 5, NEXT(IDLE) | NEXT(CHECKING) | NEXT(REBOOTING)},
    [OTA_PHASE_ROLLED_BACK] = {"rolled_back", "rolled back to the previous image", 6,
        NEXT(IDLE) | NEXT(CHECKING) | NEXT(REBOOTING)},
    [OTA_PHASE_OFFLINE] = {"offline", "connection lost", 0, 0},
};

const char *ota_phase_name(ota_phase_t p) { return phases[p].name; }

const char *ota_phase_text(ota_phase_t p) { return phases[p].text; }

int ota_phase_code(ota_phase_t p) { return phases[p].code; }

bool ota_phase_may(ota_phase_t from, ota_phase_t to)
{
    return to == OTA_PHASE_OFFLINE || from == to || (phases[from].next & 1u << to) != 0;
}
