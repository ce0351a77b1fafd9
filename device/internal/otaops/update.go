package otaops

import (
	"fmt"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

const (
	// SizeUnknown makes Begin erase the whole slot; a size of 0 does too.
	SizeUnknown uint32 = 0xFFFFFFFF // OTA_SIZE_UNKNOWN
	// SequentialWrites makes Write erase each sector as it gets there.
	SequentialWrites uint32 = 0xFFFFFFFE // OTA_WITH_SEQUENTIAL_WRITES
)

const sectorSize = 4096

// imageMagic is the first byte of every application image.
const imageMagic = 0xE9

// Update is one image on its way into a slot (an esp_ota_handle_t).
type Update struct {
	ops     *Ops
	slot    parttable.Partition
	written int64
	lazy    bool
	closed  bool
}

// Begin is esp_ota_begin: it opens a slot for writing and erases as much of it
// as size asks for, now or lazily. With Rollback it then erases the record that
// is not active, if that means another slot than the running one; an error in
// that is ignored, as ESP-IDF does, unless the flash itself failed.
func (o *Ops) Begin(p parttable.Partition, size uint32) (*Update, error) {
	const op = "begin update"
	if err := o.checkTarget(op, p); err != nil {
		return nil, err
	}
	if o.cfg.Rollback {
		if st, err := o.StatePartition(o.running); err == nil && st == otadata.PendingVerify {
			return nil, fail(op, RollbackInvalidState, "the running image is on trial")
		}
	}
	length := int64(p.Size)
	if size != 0 && size != SizeUnknown {
		length = (int64(size) + sectorSize - 1) &^ (sectorSize - 1)
	}
	if size != SequentialWrites {
		if length > int64(p.Size) {
			return nil, fail(op, InvalidSize, "%d bytes do not fit %s with %d", size, p.Name, p.Size)
		}
		if err := o.flash.Erase(int64(p.Offset), length); err != nil {
			return nil, fmt.Errorf("%s: erase %s: %w", op, p.Name, err)
		}
	}
	if o.cfg.Rollback && p.IsOTA() {
		if data, recs, err := o.readRecords(op); err == nil {
			if sector, _, ok := o.lastBoot(recs); ok {
				if err := o.flash.Erase(recordOffset(data, sector), otadata.SectorSize); err != nil {
					return nil, fmt.Errorf("%s: erase record %d: %w", op, sector, err)
				}
			}
		}
	}
	return &Update{ops: o, slot: p, lazy: size == SequentialWrites}, nil
}

// Resume is esp_ota_resume: it goes on at offset (in bytes) in a slot that
// holds that much of the image already. It erases nothing now; lazy says
// whether Write does, with the same rule as after Begin: a sector that offset
// lies inside of is taken as erased.
func (o *Ops) Resume(p parttable.Partition, lazy bool, offset int64) (*Update, error) {
	const op = "resume update"
	if offset < 0 || offset > int64(p.Size) {
		return nil, fail(op, InvalidArg, "offset %d in %s with %d bytes", offset, p.Name, p.Size)
	}
	if err := o.checkTarget(op, p); err != nil {
		return nil, err
	}
	return &Update{ops: o, slot: p, written: offset, lazy: lazy}, nil
}

func (o *Ops) checkTarget(op string, p parttable.Partition) error {
	switch {
	case !o.inTable(p):
		return fail(op, NotFound, "%q is not in the table", p.Name)
	case p.Type == parttable.TypeApp && !p.IsOTA():
		return fail(op, InvalidArg, "%q is no numbered slot", p.Name)
	case p == o.running:
		return fail(op, PartitionConflict, "%s is running", p.Name)
	}
	return nil
}

// Written is how many bytes of the slot are written, those before Resume
// included.
func (u *Update) Written() int64 { return u.written }

// Write is esp_ota_write: the next bytes of the image. The first byte of an
// application must be 0xE9; that is looked at after the lazy erase, so a
// refused image has cost the slot its first sector.
func (u *Update) Write(b []byte) (int, error) {
	const op = "write update"
	if u.closed {
		return 0, fail(op, InvalidArg, "the update is closed")
	}
	if len(b) == 0 {
		return 0, nil
	}
	f, base := u.ops.flash, int64(u.slot.Offset)
	if u.lazy {
		first, last := u.written/sectorSize, (u.written+int64(len(b))-1)/sectorSize
		if u.written%sectorSize != 0 {
			first++
		}
		if (last+1)*sectorSize > int64(u.slot.Size) {
			return 0, fail(op, InvalidSize, "%d bytes at %d do not fit %s", len(b), u.written, u.slot.Name)
		}
		if first <= last {
			if err := f.Erase(base+first*sectorSize, (last-first+1)*sectorSize); err != nil {
				return 0, fmt.Errorf("%s: erase: %w", op, err)
			}
		}
	}
	if u.written == 0 && u.slot.Type == parttable.TypeApp && b[0] != imageMagic {
		return 0, fail(op, ValidateFailed, "the image starts with 0x%02x, not 0x%02x", b[0], imageMagic)
	}
	if u.written+int64(len(b)) > int64(u.slot.Size) {
		return 0, fail(op, InvalidSize, "%d bytes at %d do not fit %s", len(b), u.written, u.slot.Name)
	}
	if err := f.Program(base+u.written, b); err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	u.written += int64(len(b))
	return len(b), nil
}

// End is esp_ota_end: it closes the update and verifies the image in the slot.
// The records are left alone.
func (u *Update) End() error {
	const op = "end update"
	if u.closed {
		return fail(op, NotFound, "the update is closed")
	}
	u.closed = true
	if u.written == 0 {
		return fail(op, InvalidArg, "nothing was written")
	}
	if u.slot.Type != parttable.TypeApp {
		return nil
	}
	ok, reason, err := u.ops.verify(u.slot)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if !ok {
		return fail(op, ValidateFailed, "%s: %s", u.slot.Name, reason)
	}
	return nil
}

// Abort is esp_ota_abort: it closes the update and leaves the flash as it is.
func (u *Update) Abort() error {
	if u.closed {
		return fail("abort update", NotFound, "the update is closed")
	}
	u.closed = true
	return nil
}
