// The set of trusted keys that an image carries: the room for it in the images that are built with this component, and how it
// is read from a partition. `bmsota keys rotate` fills the room in; docs/adr/0022 says why the keys stand there.
#include <string.h>

#include "esp_app_format.h"
#include "esp_image_format.h"
#include "sdkconfig.h"
#include "ota_manifest.h"
#include "ota_slots.h"

// What ESP-IDF puts right behind esp_app_desc_t. The first bytes are left to test images.
typedef struct {
    uint8_t reserved[24];
    char magic[8];
    uint8_t format;
    uint8_t rest[OTA_BUILTIN_LEN - 9];
} room_t;

#define DATA_AT (sizeof(esp_image_header_t) + sizeof(esp_image_segment_header_t))

_Static_assert(DATA_AT + 256 + offsetof(room_t, magic) == OTA_BUILTIN_AT, "the room is where it is looked for");

#ifdef CONFIG_OTA_MANAGER_KEY_ROOM
const __attribute__((used, section(".rodata_custom_desc"))) room_t ota_builtin_room = {
    .magic = {'b', 'm', 's', 't', 'r', 'u', 's', 't'}, .format = 1,
};
#endif

esp_err_t ota_slots_builtin(const esp_partition_t *p, ota_trust_t *out)
{
    struct {
        esp_image_header_t image;
        esp_image_segment_header_t first;
    } head;
    uint8_t block[OTA_BUILTIN_LEN];
    memset(out, 0, sizeof *out);
    esp_err_t err = esp_partition_read(p, 0, &head, DATA_AT);
    if (err != ESP_OK) {
        return err;
    }
    if (head.image.segment_count == 0 || (uint64_t)DATA_AT + head.first.data_len < OTA_BUILTIN_AT + OTA_BUILTIN_LEN) {
        return ESP_OK;
    }
    err = esp_partition_read(p, OTA_BUILTIN_AT, block, sizeof block);
    if (err != ESP_OK) {
        return err;
    }
    switch (ota_manifest_builtin(block, out, NULL, 0)) {
    case OTA_MANIFEST_OK:
        return ESP_OK;
    case OTA_MANIFEST_NO_MEMORY:
        return ESP_ERR_NO_MEM;
    default:
        return ESP_ERR_IMAGE_INVALID;
    }
}
