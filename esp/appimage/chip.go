package appimage

import (
	"fmt"
	"slices"
	"strings"
)

// ChipID is the chip_id field of the image header (esp_chip_id_t in ESP-IDF's
// esp_app_format.h).
type ChipID uint16

// The chips that ESP-IDF v5.5 names.
const (
	ESP32    ChipID = 0x0000
	ESP32S2  ChipID = 0x0002
	ESP32C3  ChipID = 0x0005
	ESP32S3  ChipID = 0x0009
	ESP32C2  ChipID = 0x000C
	ESP32C6  ChipID = 0x000D
	ESP32H2  ChipID = 0x0010
	ESP32P4  ChipID = 0x0012
	ESP32C61 ChipID = 0x0014
	ESP32C5  ChipID = 0x0017
	ESP32H21 ChipID = 0x0019
	ESP32H4  ChipID = 0x001C

	// ChipInvalid is ESP-IDF's ESP_CHIP_ID_INVALID; no image may carry it.
	ChipInvalid ChipID = 0xFFFF
)

// addrRange is a range of load addresses, low inclusive, high exclusive.
type addrRange struct{ low, high uint32 }

func (a addrRange) contains(addr uint32) bool { return addr >= a.low && addr < a.high }

// chipInfo holds what verification and building need to know about a chip.
type chipInfo struct {
	id   ChipID
	name string
	// drom and irom are the flash-mapped windows: SOC_DROM_LOW/HIGH and
	// SOC_IROM_LOW/HIGH of components/soc/<chip>/include/soc/soc.h.
	drom, irom addrRange
	// iram is where Build points the entry address.
	iram uint32
	// bootloader is the second-stage bootloader's flash offset, from
	// components/bootloader/Kconfig.projbuild.
	bootloader int64
	// pageConfigurable is SOC_MMU_PAGE_SIZE_CONFIGURABLE: the loader takes the
	// page size from the description and insists on its magic.
	pageConfigurable bool
	// romByPages marks the chips whose mapped window is 256 MMU pages
	// (SOC_MMU_PAGE_SIZE << 8) instead of a fixed range.
	romByPages bool
}

var chips = []chipInfo{
	{id: ESP32, name: "esp32", drom: addrRange{0x3F400000, 0x3F800000}, irom: addrRange{0x400D0000, 0x40400000}, iram: 0x40080000, bootloader: 0x1000},
	{id: ESP32S2, name: "esp32s2", drom: addrRange{0x3F000000, 0x3FF80000}, irom: addrRange{0x40080000, 0x40800000}, iram: 0x40024000, bootloader: 0x1000},
	{id: ESP32C3, name: "esp32c3", drom: addrRange{0x3C000000, 0x3C800000}, irom: addrRange{0x42000000, 0x42800000}, iram: 0x40380000},
	{id: ESP32S3, name: "esp32s3", drom: addrRange{0x3C000000, 0x3E000000}, irom: addrRange{0x42000000, 0x44000000}, iram: 0x40374000},
	{id: ESP32C2, name: "esp32c2", drom: addrRange{0x3C000000, 0x3C400000}, irom: addrRange{0x42000000, 0x42400000}, iram: 0x40380000, pageConfigurable: true},
	{id: ESP32C6, name: "esp32c6", drom: addrRange{0x42000000, 0x43000000}, irom: addrRange{0x42000000, 0x43000000}, iram: 0x40800000, pageConfigurable: true, romByPages: true},
	{id: ESP32H2, name: "esp32h2", drom: addrRange{0x42000000, 0x43000000}, irom: addrRange{0x42000000, 0x43000000}, iram: 0x40800000, pageConfigurable: true, romByPages: true},
	{id: ESP32P4, name: "esp32p4", drom: addrRange{0x40000000, 0x44000000}, irom: addrRange{0x40000000, 0x44000000}, iram: 0x4FF00000, bootloader: 0x2000},
	{id: ESP32C61, name: "esp32c61", drom: addrRange{0x42000000, 0x44000000}, irom: addrRange{0x42000000, 0x44000000}, iram: 0x40800000, pageConfigurable: true},
	{id: ESP32C5, name: "esp32c5", drom: addrRange{0x42000000, 0x44000000}, irom: addrRange{0x42000000, 0x44000000}, iram: 0x40800000, bootloader: 0x2000},
	{id: ESP32H21, name: "esp32h21", drom: addrRange{0x42000000, 0x43000000}, irom: addrRange{0x42000000, 0x43000000}, iram: 0x40800000},
	{id: ESP32H4, name: "esp32h4", drom: addrRange{0x42000000, 0x44000000}, irom: addrRange{0x42000000, 0x44000000}, iram: 0x40810000, bootloader: 0x2000},
}

func (c ChipID) info() (chipInfo, bool) {
	i := slices.IndexFunc(chips, func(ci chipInfo) bool { return ci.id == c })
	if i < 0 {
		return chipInfo{}, false
	}
	return chips[i], true
}

// mapped reports whether the loader maps addr through the flash cache instead
// of copying it (should_map in esp_image_format.c), with MMU pages of page bytes.
func (ci chipInfo) mapped(addr uint32, page int64) bool {
	if ci.romByPages {
		return int64(addr) >= int64(ci.irom.low) && int64(addr) < int64(ci.irom.low)+page<<8
	}
	return ci.drom.contains(addr) || ci.irom.contains(addr)
}

// Chips lists the known chips in the order of their ids.
func Chips() []ChipID {
	ids := make([]ChipID, len(chips))
	for i, ci := range chips {
		ids[i] = ci.id
	}
	return ids
}

// ParseChip reads a chip's name in the spellings that idf.py, esptool and
// people use: "esp32c3", "ESP32-C3", "esp32_c3". The error lists the known names.
func ParseChip(name string) (ChipID, error) {
	plain := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(strings.TrimSpace(name)))
	for _, ci := range chips {
		if ci.name == plain {
			return ci.id, nil
		}
	}
	known := make([]string, len(chips))
	for i, ci := range chips {
		known[i] = ci.name
	}
	return ChipInvalid, fmt.Errorf("unknown chip %q, known are %s", name, strings.Join(known, ", "))
}

// String returns the name that idf.py uses, such as "esp32c3", or "chip-0x1234"
// for an id that is not known.
func (c ChipID) String() string {
	if ci, ok := c.info(); ok {
		return ci.name
	}
	return fmt.Sprintf("chip-0x%04x", uint16(c))
}

// BootloaderOffset returns where the ROM of the chip expects the second-stage
// bootloader in flash, in bytes: 0x1000, 0x2000 or 0, the last also for a chip
// that is not known (ESP-IDF, components/bootloader/Kconfig.projbuild).
func (c ChipID) BootloaderOffset() int64 {
	ci, _ := c.info()
	return ci.bootloader
}
