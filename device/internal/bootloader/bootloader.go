// Package bootloader is the second stage bootloader of an ESP32 as far as it
// decides what boots: records in, slot out, states rewritten, and nothing more.
//
// It promises the decision, the flash operations and their order of ESP-IDF,
// traps included: a record that is PENDING becomes ABORTED whether or not its
// CRC fits, NEW becomes PENDING before the image is verified, a damaged slot
// falls back to its neighbours without a word in otadata, and a blank board
// without a factory application is given its first record here. It adds no
// safety of its own; that is the application's part, and both meet in the bytes
// of the flash only. In particular its own rewrite of a trial's record, torn by
// a power cut, can leave a state that boots without a trial.
//
// It refuses a partition table that ESP-IDF's bootloader refuses. A board on
// which nothing verifies is no error but a Result that booted "none"; real
// hardware would reset for ever. Secure boot, flash encryption, deep sleep and
// the factory-reset and test-app pins are not modelled.
//
// Specified by ESP-IDF v5.5: bootloader_utility.c
// (bootloader_utility_load_partition_table, _get_selected_boot_partition,
// _load_boot_image), bootloader_common_loader.c and bootloader_start.c.
package bootloader

import (
	"errors"
	"fmt"
	"io"

	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// DefaultPartitionTableOffset is CONFIG_PARTITION_TABLE_OFFSET unless a project
// says otherwise, in bytes.
const DefaultPartitionTableOffset = 0x8000

// Indexes that are no slot, as bootloader_config.h has them.
const (
	factoryIndex = -1
	invalidIndex = -99
)

// Flash is the chip that a board boots from.
type Flash interface {
	io.ReaderAt
	Program(off int64, p []byte) error
	Erase(off, length int64) error
	Size() int64
}

// Config is what a bootloader was built with, and the board it is on.
type Config struct {
	Rollback     bool // CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE
	AntiRollback bool // CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK; takes Rollback with it
	// Efuse is the secure version burnt into the board: the number of bits set.
	// Boot raises it with AntiRollback, at once and for good, also when the
	// power fails after that. It must not be nil then.
	Efuse *uint32
	// EfuseBits is the width of the field; 0 is SecureVersionBits of the chip.
	EfuseBits int

	Chip         appimage.ChipID
	ChipRevision uint16 // major*100 + minor
	// PartitionTableOffset is in bytes; 0 is DefaultPartitionTableOffset.
	PartitionTableOffset int64
	// Verify replaces the verification of the image in a partition; nil is
	// appimage.Verify on the flash.
	Verify func(p parttable.Partition) error
}

// Result is one boot decision and what it did to the flash.
type Result struct {
	// Selected is the partition that the records ask for and Booted the one
	// that started: "ota_0" to "ota_15", "factory", "test" or "none". Selected
	// is "factory" also on a board that has none; then every slot is tried.
	Selected, Booted string
	// Partition is the one that started; zero for "none".
	Partition parttable.Partition
	// Image is the one that started; nil for "none" and with Config.Verify.
	Image *appimage.Image
	// Operations are the flash operations in order, as "erase:d000:1000" and
	// "write:d000:20" (offset and length in hex).
	Operations []string
	Efuse      uint32            // the secure version after the decision
	Records    [2]otadata.Record // after the decision; erased without an otadata partition
}

// SecureVersionBits is the width of the eFuse field SECURE_VERSION, in bits
// (esp_efuse_table.csv of each chip).
func SecureVersionBits(chip appimage.ChipID) int {
	switch chip.String() {
	case "esp32":
		return 32
	case "esp32c2":
		return 4
	case "esp32c5":
		return 9
	}
	return 16
}

// Boot makes one boot decision and applies it to the flash. An error means that
// no decision was reached: the power failed, the flash could not be read or
// written, or the partition table is refused. The Result then says what was
// done up to there.
func Boot(f Flash, cfg Config) (Result, error) {
	b := boot{flash: f, cfg: cfg, res: Result{Selected: "none", Booted: "none",
		Records: [2]otadata.Record{otadata.ErasedRecord(), otadata.ErasedRecord()}}}
	if cfg.AntiRollback && cfg.Efuse == nil {
		return b.res, errors.New("boot: anti-rollback needs the board's eFuse value")
	}
	err := b.run()
	if cfg.Efuse != nil {
		b.res.Efuse = *cfg.Efuse
	}
	if err != nil {
		return b.res, fmt.Errorf("boot: %w", err)
	}
	return b.res, nil
}

// boot is one decision in progress.
type boot struct {
	flash Flash
	cfg   Config
	res   Result

	otadata       parttable.Partition // size 0: none
	factory, test parttable.Partition // size 0: none
	slots         int                 // bs->app_count
	slot          func(int) (parttable.Partition, bool)
	initial       bool // ota_has_initial_contents
}

func (b *boot) run() error {
	if err := b.loadTable(); err != nil {
		return err
	}
	start, err := b.selected()
	if err != nil {
		return err
	}
	b.res.Selected = indexName(start)
	if start == invalidIndex {
		return nil
	}
	return b.load(start)
}

func (b *boot) loadTable() error {
	off := b.cfg.PartitionTableOffset
	if off == 0 {
		off = DefaultPartitionTableOffset
	}
	sector := make([]byte, parttable.BinarySize)
	if _, err := b.flash.ReadAt(sector, off); err != nil {
		return fmt.Errorf("read partition table at 0x%x: %w", off, err)
	}
	table, err := parttable.ParseFlash(sector, b.flash.Size())
	if err != nil {
		return fmt.Errorf("partition table at 0x%x: %w", off, err)
	}
	b.otadata, _ = table.OTAData()
	b.factory, _ = table.Factory()
	b.test, _ = table.Test()
	b.slots, b.slot = table.BootSlots()
	return nil
}

// selected is bootloader_utility_get_selected_boot_partition.
func (b *boot) selected() (int, error) {
	if b.otadata.Offset == 0 {
		return factoryIndex, nil
	}
	if b.otadata.Size < otadata.PartitionSize {
		return invalidIndex, nil
	}
	recs := &b.res.Records
	for i := range recs {
		var raw [otadata.RecordSize]byte
		off := b.recordOffset(i)
		if _, err := b.flash.ReadAt(raw[:], off); err != nil {
			return 0, fmt.Errorf("read record %d at 0x%x: %w", i, off, err)
		}
		rec, err := otadata.ParseRecord(raw[:])
		if err != nil {
			return 0, fmt.Errorf("record %d: %w", i, err)
		}
		recs[i] = rec
	}
	if b.rollback() {
		// The trial that this boot ends was not confirmed. The CRC is not looked
		// at, nor whether the record is the active one.
		for i := range recs {
			if recs[i].State == otadata.PendingVerify {
				if err := b.setState(i, otadata.Aborted); err != nil {
					return 0, err
				}
			}
		}
	}
	unset := func(r otadata.Record) bool { return r.Erased() || !r.CRCOK() }
	bothUnset := unset(recs[0]) && unset(recs[1])
	var active int
	switch {
	case b.cfg.AntiRollback && bothUnset:
		b.initial = true
		return factoryIndex, nil
	case b.cfg.AntiRollback:
		var err error
		if active, err = b.selectSecure(); err != nil {
			return 0, err
		}
	case recs[0].Invalid() && recs[1].Invalid() || b.slots == 0:
		if b.factory.Offset != 0 {
			return factoryIndex, nil
		}
		b.initial = bothUnset
		return 0, nil
	default:
		active = otadata.Select(*recs)
	}
	if active < 0 {
		return factoryIndex, nil
	}
	index := otadata.SlotIndex(recs[active].Seq, b.slots)
	if b.rollback() && recs[active].State == otadata.New {
		// Before the image is verified, so that one reset is all a bad image gets.
		if err := b.setState(active, otadata.PendingVerify); err != nil {
			return 0, err
		}
	}
	if b.cfg.AntiRollback && recs[active].State == otadata.Valid {
		if err := b.raiseEfuse(index); err != nil {
			return 0, err
		}
	}
	return index, nil
}

func (b *boot) rollback() bool { return b.cfg.Rollback || b.cfg.AntiRollback }

// selectSecure is get_active_otadata_with_check_anti_rollback: a record whose
// slot holds too old an image is not selected.
func (b *boot) selectSecure() (int, error) {
	var usable [2]bool
	for i, r := range b.res.Records {
		if !r.Usable() {
			continue
		}
		p, _ := b.slot(otadata.SlotIndex(r.Seq, b.slots))
		ok, err := b.secureEnough(p)
		if err != nil {
			return 0, err
		}
		usable[i] = ok
	}
	return otadata.SelectAmong(b.res.Records, usable, true), nil
}

// load is bootloader_utility_load_boot_image: from start down to the factory
// application, then from start up, then the test application.
func (b *boot) load(start int) error {
	for i := start; i >= factoryIndex; i-- {
		if done, err := b.try(i); done || err != nil {
			return err
		}
	}
	for i := start + 1; i < b.slots; i++ {
		if done, err := b.try(i); done || err != nil {
			return err
		}
	}
	_, err := b.start("test", b.test)
	return err
}

func (b *boot) try(index int) (bool, error) {
	p := b.factory
	if index > factoryIndex {
		p, _ = b.slot(index)
	}
	done, err := b.start(indexName(index), p)
	if !done || err != nil || index == factoryIndex || !b.initial {
		return done, err
	}
	// set_actual_ota_seq: the first record of a blank board.
	if err := b.writeRecord(0, otadata.NewRecord(uint32(index)+1, otadata.Valid)); err != nil {
		return true, err
	}
	if b.cfg.AntiRollback {
		return true, b.raiseEfuse(index)
	}
	return true, nil
}

// start is try_load_partition with the version check before it. It reports
// whether the partition's image runs from here on.
func (b *boot) start(name string, p parttable.Partition) (bool, error) {
	if p.Size == 0 {
		return false, nil
	}
	if b.cfg.AntiRollback {
		if ok, err := b.secureEnough(p); !ok || err != nil {
			return false, err
		}
	}
	img, err := b.verify(p)
	if err != nil {
		if ve, ok := errors.AsType[*appimage.VerifyError](err); ok && ve.Err != nil {
			return false, fmt.Errorf("verify %s: %w", name, err)
		}
		return false, nil
	}
	b.res.Booted, b.res.Partition, b.res.Image = name, p, img
	return true, nil
}

func (b *boot) verify(p parttable.Partition) (*appimage.Image, error) {
	if b.cfg.Verify != nil {
		return nil, b.cfg.Verify(p)
	}
	return appimage.Verify(io.NewSectionReader(b.flash, int64(p.Offset), int64(p.Size)), appimage.Target{
		Chip:          b.cfg.Chip,
		Revision:      b.cfg.ChipRevision,
		PartitionSize: int64(p.Size),
		FlashOffset:   int64(p.Offset),
	})
}

// secureVersion is bootloader_common_get_partition_description: the descriptor
// at its fixed place, judged by its magic only.
func (b *boot) secureVersion(p parttable.Partition) (version uint32, ok bool, err error) {
	if p.Offset == 0 || p.Size < appimage.DescOffset+appimage.DescSize {
		return 0, false, nil
	}
	raw := make([]byte, appimage.DescSize)
	if _, err := b.flash.ReadAt(raw, int64(p.Offset)+appimage.DescOffset); err != nil {
		return 0, false, fmt.Errorf("read description of %s: %w", p.Name, err)
	}
	desc, err := appimage.ParseDesc(raw)
	if err != nil {
		return 0, false, nil
	}
	return desc.SecureVersion, true, nil
}

func (b *boot) secureEnough(p parttable.Partition) (bool, error) {
	version, ok, err := b.secureVersion(p)
	return ok && version >= *b.cfg.Efuse, err
}

// raiseEfuse is update_anti_rollback. A version that the field cannot hold
// changes nothing, as esp_efuse_update_secure_version refuses it.
func (b *boot) raiseEfuse(index int) error {
	p, _ := b.slot(index)
	version, ok, err := b.secureVersion(p)
	if err != nil {
		return err
	}
	width := b.cfg.EfuseBits
	if width == 0 {
		width = SecureVersionBits(b.cfg.Chip)
	}
	if ok && version > *b.cfg.Efuse && uint64(version) <= uint64(width) {
		*b.cfg.Efuse = version
	}
	return nil
}

func (b *boot) recordOffset(i int) int64 {
	return int64(b.otadata.Offset) + int64(i)*otadata.SectorSize
}

func (b *boot) setState(i int, st otadata.State) error {
	rec := b.res.Records[i]
	rec.State = st
	return b.writeRecord(i, rec)
}

// writeRecord is write_otadata: between its two operations the record does not
// exist, and the other one decides.
func (b *boot) writeRecord(i int, rec otadata.Record) error {
	off := b.recordOffset(i)
	b.res.Operations = append(b.res.Operations, fmt.Sprintf("erase:%x:%x", off, otadata.SectorSize))
	if err := b.flash.Erase(off, otadata.SectorSize); err != nil {
		return fmt.Errorf("erase record %d at 0x%x: %w", i, off, err)
	}
	b.res.Operations = append(b.res.Operations, fmt.Sprintf("write:%x:%x", off, otadata.RecordSize))
	if err := b.flash.Program(off, otadata.AppendRecord(nil, rec)); err != nil {
		return fmt.Errorf("write record %d at 0x%x: %w", i, off, err)
	}
	b.res.Records[i] = rec
	return nil
}

func indexName(index int) string {
	switch index {
	case factoryIndex:
		return "factory"
	case invalidIndex:
		return "none"
	}
	return fmt.Sprintf("ota_%d", index)
}
