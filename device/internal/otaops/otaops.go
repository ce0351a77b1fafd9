// Package otaops is the application's side of an ESP32 update: what running
// firmware does to the boot records and to the slots.
//
// Two halves share one type. The methods named after esp_ota_ops.c (SetBoot,
// MarkValid, Begin, ...) promise ESP-IDF's results and flash operations, also
// where those are dangerous: they act on the active record even when it is not
// the running slot's, and a power cut inside SetBoot can leave a record whose
// state was never written. The methods that ESP-IDF does not have promise more:
// RepairRecords gives the running slot back its record, Switch commits the
// CRC last, and a Tombstone makes a failed slot unbootable before it is
// reported. Each of them can be cut at every operation and repeated.
//
// It refuses what ESP-IDF refuses, with its codes (Code); it never writes to
// the running slot. Other errors are of the flash and are passed on.
//
// Specified by ESP-IDF v5.5: components/app_update/esp_ota_ops.c, and
// components/efuse/src/esp_efuse_fields.c for the secure version.
package otaops

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// Flash is the chip that the application runs from.
type Flash interface {
	io.ReaderAt
	Program(off int64, p []byte) error
	Erase(off, length int64) error
}

// Config is what the application was built with, and the board it is on.
type Config struct {
	Rollback     bool // CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE
	AntiRollback bool // CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK; takes Rollback with it
	// Efuse is the secure version burnt into the board. MarkValid raises it with
	// AntiRollback; it must not be nil then.
	Efuse *uint32
	// EfuseBits is the width of that field; 0 is 32, the width of the ESP32.
	EfuseBits int

	Chip         appimage.ChipID
	ChipRevision uint16 // major*100 + minor
	// Verify replaces the verification of the image in a partition; nil is
	// appimage.Verify on the flash.
	Verify func(p parttable.Partition) error
}

// Ops is the update interface of one running application. It keeps nothing
// about records or slots: each call reads the flash. It is for use by one
// goroutine at a time.
type Ops struct {
	flash   Flash
	cfg     Config
	table   parttable.Table
	slots   []parttable.Partition // consecutive ota_0, ota_1, ...
	running parttable.Partition
}

// New returns the interface of an application that runs from a partition of
// the table.
func New(f Flash, table parttable.Table, running parttable.Partition, cfg Config) (*Ops, error) {
	o := &Ops{flash: f, cfg: cfg, table: table, slots: table.Slots(), running: running}
	if running.Type != parttable.TypeApp || !o.inTable(running) {
		return nil, fmt.Errorf("otaops: %q is no application partition of the table", running.Name)
	}
	if cfg.AntiRollback {
		if cfg.Efuse == nil {
			return nil, errors.New("otaops: anti-rollback needs the board's eFuse value")
		}
		o.cfg.Rollback = true
	}
	return o, nil
}

// Running is the partition that the application runs from.
func (o *Ops) Running() parttable.Partition { return o.running }

// Records are the two boot records as they are in flash. Without an otadata
// partition the code is NotFound.
func (o *Ops) Records() ([2]otadata.Record, error) {
	_, recs, err := o.readRecords("records")
	return recs, err
}

func (o *Ops) readRecords(op string) (parttable.Partition, [2]otadata.Record, error) {
	var recs [2]otadata.Record
	p, ok := o.table.OTAData()
	if !ok || p.Size < otadata.PartitionSize {
		return p, recs, fail(op, NotFound, "no otadata partition")
	}
	for i := range recs {
		rec, err := o.readRecord(p, i)
		if err != nil {
			return p, recs, fmt.Errorf("%s: %w", op, err)
		}
		recs[i] = rec
	}
	return p, recs, nil
}

func recordOffset(p parttable.Partition, i int) int64 {
	return int64(p.Offset) + int64(i)*otadata.SectorSize
}

func (o *Ops) readRecord(p parttable.Partition, i int) (otadata.Record, error) {
	var raw [otadata.RecordSize]byte
	if _, err := o.flash.ReadAt(raw[:], recordOffset(p, i)); err != nil {
		return otadata.Record{}, fmt.Errorf("read record %d: %w", i, err)
	}
	return otadata.ParseRecord(raw[:])
}

// recordWriter puts rec where record i of the otadata partition p was old.
type recordWriter func(p parttable.Partition, i int, old, rec otadata.Record) error

// writeOver is rewrite_ota_seq: erase, program in one go. What it wrote is
// read back, because a record that did not take decides the next boot.
func (o *Ops) writeOver(p parttable.Partition, i int, _, rec otadata.Record) error {
	raw := otadata.AppendRecord(nil, rec)
	if err := o.flash.Erase(recordOffset(p, i), otadata.SectorSize); err != nil {
		return fmt.Errorf("erase record %d: %w", i, err)
	}
	if err := o.flash.Program(recordOffset(p, i), raw); err != nil {
		return fmt.Errorf("write record %d: %w", i, err)
	}
	return o.readBack(fmt.Sprintf("record %d", i), recordOffset(p, i), raw)
}

func (o *Ops) readBack(what string, off int64, want []byte) error {
	got := make([]byte, len(want))
	if _, err := o.flash.ReadAt(got, off); err != nil {
		return fmt.Errorf("read back %s: %w", what, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s at 0x%x reads back differently: the flash did not take it", what, off)
	}
	return nil
}

func (o *Ops) inTable(p parttable.Partition) bool {
	for _, q := range o.table {
		if q == p {
			return true
		}
	}
	return false
}

// slotOf is the partition that a record's sequence number means, by the
// application's count of slots.
func (o *Ops) slotOf(r otadata.Record) (parttable.Partition, bool) {
	i := otadata.SlotIndex(r.Seq, len(o.slots))
	if i < 0 {
		return parttable.Partition{}, false
	}
	return o.slots[i], true
}

// verify reports whether the partition holds an image that would boot. An
// error is of the flash, never of the image.
func (o *Ops) verify(p parttable.Partition) (ok bool, reason string, err error) {
	if o.cfg.Verify != nil {
		err = o.cfg.Verify(p)
	} else {
		_, err = appimage.Verify(io.NewSectionReader(o.flash, int64(p.Offset), int64(p.Size)), appimage.Target{
			Chip:          o.cfg.Chip,
			Revision:      o.cfg.ChipRevision,
			PartitionSize: int64(p.Size),
			FlashOffset:   int64(p.Offset),
		})
	}
	if err == nil {
		return true, "", nil
	}
	if ve, isVerify := errors.AsType[*appimage.VerifyError](err); isVerify && ve.Err != nil {
		return false, "", fmt.Errorf("verify %s: %w", p.Name, err)
	}
	return false, err.Error(), nil
}

// secureVersion is esp_ota_get_partition_description: ok is false where there
// is no description.
func (o *Ops) secureVersion(p parttable.Partition) (version uint32, ok bool, err error) {
	if p.Size < appimage.DescOffset+appimage.DescSize {
		return 0, false, nil
	}
	raw := make([]byte, appimage.DescSize)
	if _, err := o.flash.ReadAt(raw, int64(p.Offset)+appimage.DescOffset); err != nil {
		return 0, false, fmt.Errorf("read description of %s: %w", p.Name, err)
	}
	desc, err := appimage.ParseDesc(raw)
	if err != nil {
		return 0, false, nil
	}
	return desc.SecureVersion, true, nil
}
