package otaops

import (
	"fmt"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

const crcOffset = 28 // of the CRC in a record, in bytes

// RepairRecords makes the running slot have an active record, and reports
// whether it had to write. Firmware that trusts itself calls it before it
// begins an update.
//
// The bootloader falls back from a damaged slot without touching otadata. The
// active record then means the damaged slot, SetBoot would overwrite the other
// one, and that is the running slot's: afterwards both mean the same slot. The
// same holds where bits of the running slot's record were lost.
//
// Where the active record means the running slot nothing is changed, whatever
// its state: a trial stays a trial. Otherwise the running slot ends up with an
// active VALID record. At every power cut on the way the next boot ends in the
// running slot if it would have without the repair. Factory and test
// applications need no record; for them it does nothing.
func (o *Ops) RepairRecords() (changed bool, err error) {
	const op = "repair records"
	if !o.running.IsOTA() {
		return false, nil
	}
	slot, n := int(o.running.Subtype-parttable.SubtypeOTA0), len(o.slots)
	if slot >= n {
		return false, fail(op, NotSupported, "%s lies behind a gap in the slots, no record can mean it", o.running.Name)
	}
	data, recs, err := o.readRecords(op)
	if err != nil {
		return false, err
	}
	active := otadata.Select(recs)
	if active >= 0 && recs[active].Names(slot, n) {
		return false, nil
	}
	r := repair{ops: o, data: data, recs: recs, slot: slot, n: n}
	switch {
	case active < 0:
		err = r.takeOver(r.leastUseful())
	case recs[1-active].Names(slot, n):
		// The good record is there and only loses the vote. Silencing the other
		// one is a single program operation, so there is no moment without a
		// record; erasing first could bring back a record that was given up.
		if err = o.silence(data, active, recs[active]); err == nil && recs[1-active].State != otadata.Valid {
			err = r.takeOver(active)
		}
	default:
		// The active record decides until the new one is complete, as it did
		// before.
		err = r.takeOver(1 - active)
	}
	if err != nil {
		return true, fmt.Errorf("%s: %w", op, err)
	}
	return true, nil
}

type repair struct {
	ops     *Ops
	data    parttable.Partition
	recs    [2]otadata.Record
	slot, n int // the running slot, and how many there are
}

// takeOver writes a VALID record of the running slot that beats the record in
// the other sector.
func (r repair) takeOver(sector int) error {
	other := r.recs[1-sector]
	seq, beaten := uint32(r.slot+1), true
	if other.CRCOK() && !other.Erased() {
		// Also above a record that does not count now: one flipped bit of its
		// state, which no CRC covers, could make it count again.
		higher, err := otadata.SeqFor(r.slot, r.n, other.Seq+1)
		if beaten = err == nil; beaten {
			seq = higher
		}
	}
	if err := r.ops.replaceRecord(r.data, sector, r.recs[sector], otadata.NewRecord(seq, otadata.Valid)); err != nil {
		return err
	}
	if beaten {
		return nil
	}
	// The numbers are used up: the other record goes now that there is one to
	// take its place.
	return r.ops.silence(r.data, 1-sector, other)
}

// leastUseful is the sector to write when no record counts: one that does not
// tell of a failed slot, else the older one.
func (r repair) leastUseful() int {
	foreign := func(rec otadata.Record) bool {
		return rec.CRCOK() && !rec.Erased() && otadata.SlotIndex(rec.Seq, r.n) != r.slot
	}
	switch f0, f1 := foreign(r.recs[0]), foreign(r.recs[1]); {
	case f0 && !f1:
		return 1
	case f0 && f1 && r.recs[1].Seq < r.recs[0].Seq:
		return 1
	}
	return 0
}

// Disown makes every record that means a slot other than the running one stop
// counting, whatever its state. Firmware calls it before it replaces what is in
// the slot: a record that was written for the old content must not boot the new
// one without a trial, nor be what is left when that trial fails. Each record
// takes one program operation; cut anywhere, it can be repeated.
func (o *Ops) Disown(slot parttable.Partition) error {
	const op = "disown slot"
	if err := o.checkTarget(op, slot); err != nil {
		return err
	}
	data, recs, err := o.readRecords(op)
	if err != nil {
		return err
	}
	for i, r := range recs {
		if p, ok := o.slotOf(r); !ok || p != slot || r.Erased() || !r.CRCOK() {
			continue
		}
		if err := o.silence(data, i, r); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

// replaceRecord writes rec over old so that no power cut can make anything else
// of the two: old no longer counts before its sector is erased, because an
// erase that stops early can turn a record that was given up into one that
// boots, and rec counts only once its CRC, written last, is complete.
func (o *Ops) replaceRecord(p parttable.Partition, i int, old, rec otadata.Record) error {
	if old.CRCOK() {
		if err := o.silence(p, i, old); err != nil {
			return err
		}
	}
	return o.putRecord(p, i, rec)
}

// putRecord writes rec where nothing counts. Its CRC comes last.
func (o *Ops) putRecord(p parttable.Partition, i int, rec otadata.Record) error {
	off := recordOffset(p, i)
	if err := o.flash.Erase(off, otadata.SectorSize); err != nil {
		return fmt.Errorf("erase record %d: %w", i, err)
	}
	raw := otadata.AppendRecord(nil, rec)
	for _, part := range [][2]int{{0, crcOffset}, {crcOffset, otadata.RecordSize}} {
		if err := o.flash.Program(off+int64(part[0]), raw[part[0]:part[1]]); err != nil {
			return fmt.Errorf("write record %d: %w", i, err)
		}
	}
	return o.readBack(fmt.Sprintf("record %d", i), off, raw)
}

// silence makes a record with a good CRC one without, in a single program
// operation and with no erase: clearing any bit of the CRC, or of a sequence
// number whose CRC is 0, breaks the match, so a torn operation did it or did
// nothing.
func (o *Ops) silence(p parttable.Partition, i int, rec otadata.Record) error {
	off := recordOffset(p, i)
	if rec.CRC != 0 {
		off += crcOffset
	}
	if err := o.flash.Program(off, make([]byte, 4)); err != nil {
		return fmt.Errorf("silence record %d: %w", i, err)
	}
	return o.readBack(fmt.Sprintf("silenced record %d", i), off, make([]byte, 4))
}
