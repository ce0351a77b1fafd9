package otaops

import (
	"fmt"
	"slices"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// looks is how often a record is read to find out whether it reads the same
// each time. One bit that is a coin toss passes one time in 32,768.
const looks = 16

// look is what the records read as, one time after the other.
type look struct {
	recs   [2]otadata.Record // the last time
	steady [2]bool           // and each time before
	proven [2]bool           // each time it said that the image needs no trial
}

func (o *Ops) lookAtRecords(op string) (data parttable.Partition, l look, err error) {
	l.steady, l.proven = [2]bool{true, true}, [2]bool{true, true}
	for k := range looks {
		last := l.recs
		if data, l.recs, err = o.readRecords(op); err != nil {
			return data, l, err
		}
		for i, r := range l.recs {
			l.steady[i] = l.steady[i] && (k == 0 || r == last[i])
			l.proven[i] = l.proven[i] && (r.State == otadata.Valid || r.State == otadata.Undefined)
		}
	}
	return data, l, nil
}

// Unsteady tells which records do not read the same each time: an erase that
// the power cut short can leave bits that are neither 1 nor 0. What such a
// record told the bootloader is not what it tells the application, and not
// what it will tell the next boot. Without an otadata partition the code is
// NotFound.
func (o *Ops) Unsteady() (unsteady [2]bool, err error) {
	_, l, err := o.lookAtRecords("look at records")
	if err != nil {
		return unsteady, err
	}
	return [2]bool{!l.steady[0], !l.steady[1]}, nil
}

// SteadyRecords makes both records read the same each time, so that whatever is
// decided afterwards the next boot decides likewise. Firmware calls it before
// it decides anything on them, and after it buried the failed image that a
// steady record tells of: there can be a moment without a record that counts.
//
// An unsteady record goes. Where it was all that the running slot had, the slot
// gets a record anew, on trial unless every reading said that it needs none: the
// bootloader may have been told so by chance. What an unsteady record said of
// another slot is lost, and its image with it, if nothing else vouches for it.
func (o *Ops) SteadyRecords() (changed bool, err error) {
	const op = "make records steady"
	for i := range 2 {
		// Anew for the second: the first may have been written.
		data, l, err := o.lookAtRecords(op)
		if err != nil {
			return changed, err
		}
		if l.steady[i] {
			continue
		}
		changed = true
		if err := o.steady(data, l, i); err != nil {
			return changed, fmt.Errorf("%s: %w", op, err)
		}
	}
	return changed, nil
}

// steady settles record i, which is not.
func (o *Ops) steady(data parttable.Partition, l look, i int) (err error) {
	n, slot := len(o.slots), slices.Index(o.slots, o.running)
	other, firm := l.recs[1-i], l.steady[1-i]
	if slot < 0 || firm && other.Names(slot, n) {
		return o.wipe(data, i)
	}
	state := otadata.PendingVerify
	if l.proven[i] || !o.cfg.Rollback {
		state = otadata.Valid
	}
	at, seq := i, uint32(slot+1)
	if !firm || !other.CRCOK() || other.Erased() {
		at = 1 - i // the sector that says nothing: there is no moment without any record
	} else if seq, err = otadata.SeqFor(slot, n, other.Seq+1); err != nil {
		// The other record means another slot, and decides until the new one is
		// complete; or it tells of a failed one, and what it tells is needed. Only
		// that the numbers are used up: RepairRecords knows what to do then.
		return o.wipe(data, i)
	}
	if err := o.quiet(data, at); err != nil {
		return err
	}
	if err := o.putRecord(data, at, otadata.NewRecord(seq, state)); err != nil {
		return err
	}
	if at != i {
		return o.wipe(data, i)
	}
	return nil
}

// wipe erases record i, whatever it reads as. It stops counting before: an
// erase that stops early could bring it back.
func (o *Ops) wipe(p parttable.Partition, i int) error {
	if err := o.quiet(p, i); err != nil {
		return err
	}
	if err := o.flash.Erase(recordOffset(p, i), otadata.SectorSize); err != nil {
		return fmt.Errorf("erase record %d: %w", i, err)
	}
	return nil
}

// quiet is silence for a record of which nobody can say what it is.
func (o *Ops) quiet(p parttable.Partition, i int) error {
	return o.silence(p, i, otadata.Record{CRC: otadata.CRC(0)})
}
