package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/parttable"
	"bmsota/esp/spiffs"
	"bmsota/protocol"
)

// FlashSize is the size of a board's flash unless a Layout says otherwise, in bytes.
const FlashSize = 4 << 20

// Layout is what a new board's flash holds.
type Layout struct {
	Image      []byte          // the application, for the first slot (or factory, where the table has one)
	Table      parttable.Table // nil: parttable.Default
	OTAConfig  []byte          // ota_config.txt as it stands; nil leaves the file out
	MQTTConfig []byte          // mqtt_config.txt likewise
	MAC        [6]byte
	Size       int64 // of the flash, in bytes; 0 is FlashSize
}

// Flash is the content of a board's flash in memory, for Config.Flash. It is never written: every board that starts
// from it has a copy of its own, of which only what differs takes memory. It may be used from any goroutine.
type Flash struct{ base *lockedFlash }

// Build makes the flash of a new board: partition table, application, blank boot records, storage partition with the
// two configuration files, and the eFuse block. The application is verified as the bootloader will.
func Build(l Layout) (*Flash, error) {
	f, err := l.build()
	if err != nil {
		return nil, fmt.Errorf("create board: %w", err)
	}
	return &Flash{base: &lockedFlash{flash: f}}, nil
}

// Create writes the flash of a new board to a file, which must not exist.
func Create(path string, l Layout) (err error) {
	built, err := l.build()
	if err != nil {
		return fmt.Errorf("create board: %w", err)
	}
	f, err := norflash.Create(path, built.Size())
	if err != nil {
		return fmt.Errorf("create board: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return copySectors(f, built)
}

// copySectors makes dst hold what src holds, and touches only what differs.
func copySectors(dst, src *norflash.Flash) error {
	var a, b [norflash.SectorSize]byte
	for off := int64(0); off < src.Size(); off += norflash.SectorSize {
		if _, err := src.ReadAt(a[:], off); err != nil {
			return err
		}
		if _, err := dst.ReadAt(b[:], off); err != nil {
			return err
		}
		if err := writeSector(dst, off, a[:], b[:]); err != nil {
			return err
		}
	}
	return nil
}

func writeSector(f *norflash.Flash, off int64, want, have []byte) error {
	if bytes.Equal(want, have) {
		return nil
	}
	if err := f.Erase(off, norflash.SectorSize); err != nil {
		return err
	}
	return f.Program(off, want)
}

func (l Layout) build() (*norflash.Flash, error) {
	if l.Size == 0 {
		l.Size = FlashSize
	}
	if err := norflash.CheckChipSize(l.Size); err != nil {
		return nil, err
	}
	if l.Table == nil {
		l.Table = parttable.Default()
	}
	f := norflash.New(l.Size)
	table, err := l.Table.AppendBinary(nil, true)
	if err != nil {
		return nil, err
	}
	if err := f.Program(parttable.Offset, table); err != nil {
		return nil, err
	}
	for _, p := range l.Table {
		if p.End() > uint64(l.Size) {
			return nil, fmt.Errorf("partition %s ends at 0x%x, the flash at 0x%x", p.Name, p.End(), l.Size)
		}
	}
	chip, err := l.putImage(f)
	if err != nil {
		return nil, err
	}
	if err := l.putFiles(f); err != nil {
		return nil, err
	}
	return f, putFuses(f, fuses{mac: l.MAC, chip: chip})
}

// putImage writes the application where a blank board boots from.
func (l Layout) putImage(f *norflash.Flash) (appimage.ChipID, error) {
	p, ok := l.Table.Blank()
	if !ok {
		return 0, errors.New("the partition table has no place for an application")
	}
	h, err := appimage.ParseHeader(l.Image)
	if err != nil {
		return 0, fmt.Errorf("image: %w", err)
	}
	if int64(len(l.Image)) > int64(p.Size) {
		return 0, fmt.Errorf("image has %d bytes, partition %s has %d (%d too many)", len(l.Image), p.Name, p.Size, int64(len(l.Image))-int64(p.Size))
	}
	_, err = appimage.Verify(bytes.NewReader(l.Image), appimage.Target{Chip: h.Chip, Revision: h.MinRevision, PartitionSize: int64(p.Size), FlashOffset: int64(p.Offset)})
	if err != nil {
		return 0, fmt.Errorf("image: %w", err)
	}
	return h.Chip, f.Program(int64(p.Offset), l.Image)
}

// putFiles builds the storage partition and writes what differs of it.
func (l Layout) putFiles(f *norflash.Flash) error {
	var files []spiffs.File
	for _, file := range []spiffs.File{{Name: protocol.MQTTConfigFile, Data: l.MQTTConfig}, {Name: protocol.OTAConfigFile, Data: l.OTAConfig}} {
		if file.Data != nil {
			files = append(files, file)
		}
	}
	for _, p := range l.Table {
		if p.Type != parttable.TypeData || p.Subtype != parttable.SubtypeSPIFFS {
			continue
		}
		image, err := spiffs.Build(int64(p.Size), files)
		if err != nil {
			return fmt.Errorf("storage partition %s: %w", p.Name, err)
		}
		var have [norflash.SectorSize]byte
		for at := 0; at < len(image); at += norflash.SectorSize {
			if _, err := f.ReadAt(have[:], int64(p.Offset)+int64(at)); err != nil {
				return err
			}
			if err := writeSector(f, int64(p.Offset)+int64(at), image[at:at+norflash.SectorSize], have[:]); err != nil {
				return err
			}
		}
		return nil
	}
	if len(files) > 0 {
		return errors.New("the partition table has no storage (data, spiffs) partition for the configuration files")
	}
	return nil
}

// fuses is what a chip has burnt in and a flash file has no place for: MAC, chip, secure version.
//
// A virtual board keeps it at 0x7000, in the last sector before the partition table: that is bootloader area, a
// virtual board has no bootloader's bytes, every table leaves it alone, and esptool would write it to a real board
// without harm. NVS would not do: firmware that finds a foreign page there erases it. The secure version is kept with
// its bits inverted, so that it can be raised by programming and, like the real one, never lowered.
//
//	 0  magic[8]  "bmsefuse"
//	 8  mac[6]
//	14  chip      LE16, chip_id of the image header
//	16  revision  LE16, major*100 + minor
//	18  reserved[2]
//	20  crc       LE32, CRC-32 (IEEE) of the 20 bytes before
//	24  secure    LE32, a cleared bit is a burnt one
type fuses struct {
	mac      [6]byte
	chip     appimage.ChipID
	revision uint16
	secure   uint32
}

const (
	fuseOffset = 0x7000
	fuseMagic  = "bmsefuse"
	fuseCRC    = 20
	fuseSecure = 24
	fuseSize   = 28
)

func (fu fuses) append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, fuseMagic...)
	dst = append(dst, fu.mac[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(fu.chip))
	dst = binary.LittleEndian.AppendUint16(dst, fu.revision)
	dst = append(dst, 0xFF, 0xFF)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
	return binary.LittleEndian.AppendUint32(dst, ^(uint32(1)<<fu.secure - 1))
}

func putFuses(f *norflash.Flash, fu fuses) error { return f.Program(fuseOffset, fu.append(nil)) }

// readFuses reads the block; ok is false where there is none, as in a flash read from a real board.
func readFuses(f *norflash.Flash) (fu fuses, ok bool, err error) {
	var b [fuseSize]byte
	if _, err := f.ReadAt(b[:], fuseOffset); err != nil {
		return fu, false, fmt.Errorf("read efuses: %w", err)
	}
	if string(b[:8]) != fuseMagic || binary.LittleEndian.Uint32(b[fuseCRC:]) != crc32.ChecksumIEEE(b[:fuseCRC]) {
		return fu, false, nil
	}
	return fuses{
		mac:      [6]byte(b[8:14]),
		chip:     appimage.ChipID(binary.LittleEndian.Uint16(b[14:])),
		revision: binary.LittleEndian.Uint16(b[16:]),
		// ESP-IDF counts bits, too (esp_efuse_read_secure_version).
		secure: uint32(bits.OnesCount32(^binary.LittleEndian.Uint32(b[fuseSecure:]))),
	}, true, nil
}

// burn raises the secure version in the block.
func burn(f *norflash.Flash, version uint32) error {
	return f.Program(fuseOffset+fuseSecure, binary.LittleEndian.AppendUint32(nil, ^(uint32(1)<<version-1)))
}
