package appimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Sizes and limits of the format.
const (
	HeaderSize        = 24  // bytes, esp_image_header_t
	SegmentHeaderSize = 8   // bytes, esp_image_segment_header_t
	DescSize          = 256 // bytes, esp_app_desc_t
	HashSize          = 32  // bytes, the appended SHA-256
	MaxSegments       = 16  // ESP_IMAGE_MAX_SEGMENTS

	// DescOffset is where every reader expects the description: the start of
	// the first segment's data.
	DescOffset = HeaderSize + SegmentHeaderSize

	// MaxPartitionSize is the largest partition the loader accepts, in bytes,
	// when flash addresses have 24 bits (the default on every chip).
	MaxPartitionSize = 16 << 20

	maxSegmentLength = 16 << 20 // exclusive
	headerMagic      = 0xE9
	descMagic        = 0xABCD5432
)

// FormatError says what is wrong with bytes that should have been an image.
type FormatError struct {
	Offset int64  // in bytes from the start of the image
	Field  string // what stands there
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s at 0x%x: %s", e.Field, e.Offset, e.Reason)
}

// Header is the image header (esp_image_header_t in ESP-IDF's
// esp_app_format.h; little-endian, packed):
//
//	 0 magic 0xE9           1 segment_count   2 spi_mode   3 spi_speed:4 spi_size:4
//	 4 entry_addr           8 wp_pin          9 spi_pin_drv[3]
//	12 chip_id             14 min_chip_rev   15 min_chip_rev_full  17 max_chip_rev_full
//	19 reserved[4]         23 hash_appended
type Header struct {
	Magic        byte // 0xE9
	SegmentCount byte
	SPIMode      byte // 0 QIO, 1 QOUT, 2 DIO, 3 DOUT, 4 fast read, 5 slow read
	SPISpeed     byte // low nibble of byte 3; 0xF is the fastest, 0 to 2 differ by chip
	SPISize      byte // high nibble of byte 3: flash of 1<<SPISize MiB
	EntryAddr    uint32
	WPPin        byte // 0xEE: not used
	SPIPinDrive  [3]byte
	Chip         ChipID
	MinRevLegacy byte   // ignored by the loader
	MinRevision  uint16 // major*100 + minor
	MaxRevision  uint16 // major*100 + minor; 0 and 65535 mean "not set"
	Reserved     [4]byte
	HashAppended byte // any value but 0 means that a SHA-256 follows the checksum
}

// ParseHeader decodes the first 24 bytes of b. It insists on the length and on
// the magic only: a device looks at a header long before the rest has arrived.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, &FormatError{Offset: 0, Field: "header", Reason: fmt.Sprintf("%d bytes, needs %d", len(b), HeaderSize)}
	}
	h := decodeHeader(b)
	if h.Magic != headerMagic {
		return Header{}, &FormatError{Offset: 0, Field: "magic", Reason: fmt.Sprintf("0x%02x, an image starts with 0x%02x", h.Magic, headerMagic)}
	}
	return h, nil
}

// decodeHeader needs HeaderSize bytes.
func decodeHeader(b []byte) Header {
	return Header{
		Magic:        b[0],
		SegmentCount: b[1],
		SPIMode:      b[2],
		SPISpeed:     b[3] & 0x0F,
		SPISize:      b[3] >> 4,
		EntryAddr:    binary.LittleEndian.Uint32(b[4:]),
		WPPin:        b[8],
		SPIPinDrive:  [3]byte(b[9:12]),
		Chip:         ChipID(binary.LittleEndian.Uint16(b[12:])),
		MinRevLegacy: b[14],
		MinRevision:  binary.LittleEndian.Uint16(b[15:]),
		MaxRevision:  binary.LittleEndian.Uint16(b[17:]),
		Reserved:     [4]byte(b[19:23]),
		HashAppended: b[23],
	}
}

// AppendHeader appends the 24 bytes of h to dst.
func AppendHeader(dst []byte, h Header) []byte {
	dst = append(dst, h.Magic, h.SegmentCount, h.SPIMode, h.SPISpeed&0x0F|h.SPISize<<4)
	dst = binary.LittleEndian.AppendUint32(dst, h.EntryAddr)
	dst = append(dst, h.WPPin)
	dst = append(dst, h.SPIPinDrive[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(h.Chip))
	dst = append(dst, h.MinRevLegacy)
	dst = binary.LittleEndian.AppendUint16(dst, h.MinRevision)
	dst = binary.LittleEndian.AppendUint16(dst, h.MaxRevision)
	dst = append(dst, h.Reserved[:]...)
	return append(dst, h.HashAppended)
}

// Desc is the application's own description (esp_app_desc_t in ESP-IDF's
// esp_app_desc.h), the first 256 bytes of the first segment's data:
//
//	  0 magic 0xABCD5432   4 secure_version   8 reserved[8]   16 version[32]
//	 48 project_name[32]  80 time[16]        96 date[16]     112 idf_ver[32]
//	144 app_elf_sha256[32]  176 min_efuse_blk_rev_full  178 max_efuse_blk_rev_full
//	180 mmu_page_size     181 reserved[75]
//
// The texts are the bytes before the first NUL, or the whole field when there
// is none; they come from the image's author and may hold any byte.
type Desc struct {
	SecureVersion uint32
	Version       string // at most 32 bytes, as are Project and IDFVersion
	Project       string
	Time          string // "HH:MM:SS" or empty; at most 16 bytes, as is Date
	Date          string // C's __DATE__, "Jan  2 2026", or empty
	IDFVersion    string
	ELFSHA256     [32]byte

	MinBlockRevision uint16 // eFuse block revision, major*100 + minor
	MaxBlockRevision uint16 // 0 and 65535 mean "not set"
	MMUPageLog2      byte   // 16 for 64 KiB; 0 in images built before ESP-IDF v5.4
}

// ParseDesc decodes the 256-byte description at the start of b. It insists on
// the length and on the magic.
func ParseDesc(b []byte) (*Desc, error) {
	if len(b) < DescSize {
		return nil, &FormatError{Offset: DescOffset, Field: "description", Reason: fmt.Sprintf("%d bytes, needs %d", len(b), DescSize)}
	}
	if m := binary.LittleEndian.Uint32(b); m != descMagic {
		return nil, &FormatError{Offset: DescOffset, Field: "description magic", Reason: fmt.Sprintf("0x%08x, should be 0x%08x", m, uint32(descMagic))}
	}
	return &Desc{
		SecureVersion:    binary.LittleEndian.Uint32(b[4:]),
		Version:          text(b[16:48]),
		Project:          text(b[48:80]),
		Time:             text(b[80:96]),
		Date:             text(b[96:112]),
		IDFVersion:       text(b[112:144]),
		ELFSHA256:        [32]byte(b[144:176]),
		MinBlockRevision: binary.LittleEndian.Uint16(b[176:]),
		MaxBlockRevision: binary.LittleEndian.Uint16(b[178:]),
		MMUPageLog2:      b[180],
	}, nil
}

// AppendDesc appends the 256 bytes of d to dst, reserved bytes zero. A text
// that does not fit its field is an error, never cut.
func AppendDesc(dst []byte, d *Desc) ([]byte, error) {
	var b [DescSize]byte
	binary.LittleEndian.PutUint32(b[0:], descMagic)
	binary.LittleEndian.PutUint32(b[4:], d.SecureVersion)
	for _, f := range []struct {
		name   string
		offset int
		size   int
		value  string
	}{
		{"version", 16, 32, d.Version},
		{"project name", 48, 32, d.Project},
		{"time", 80, 16, d.Time},
		{"date", 96, 16, d.Date},
		{"idf version", 112, 32, d.IDFVersion},
	} {
		if len(f.value) > f.size || bytes.IndexByte([]byte(f.value), 0) >= 0 {
			return nil, &FormatError{Offset: DescOffset + int64(f.offset), Field: f.name, Reason: fmt.Sprintf("%q does not fit a field of %d bytes without NUL", f.value, f.size)}
		}
		copy(b[f.offset:], f.value)
	}
	copy(b[144:], d.ELFSHA256[:])
	binary.LittleEndian.PutUint16(b[176:], d.MinBlockRevision)
	binary.LittleEndian.PutUint16(b[178:], d.MaxBlockRevision)
	b[180] = d.MMUPageLog2
	return append(dst, b[:]...), nil
}

func text(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	return string(field)
}
