package otaops_test

import (
	"errors"
	"fmt"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
)

// What the bits of a record that read differently make of it.
const (
	unsureCRC   = 28 // whether it counts
	unsureState = 24 // whether its image needs a trial
)

// unsteady is the world's flash with one bit of record i neither 1 nor 0.
func (w world) unsteady(recs [2]otadata.Record, i, at int, seed uint64) *norflash.Flash {
	f := w.flash(recs)
	var bits [norflash.SectorSize]byte
	raw := otadata.AppendRecord(nil, recs[i])
	bits[at] = ^raw[at] & (raw[at] + 1) // the lowest zero: an erase lifts bits
	f.Weaken(int(int64(data.Offset)/norflash.SectorSize)+i, bits, seed)
	return f
}

// TestSteadyRecords: from then on every boot reads the same, in the running slot as far as there was anything that said so.
// An image is taken for proven only if the record said that each time.
func TestSteadyRecords(t *testing.T) {
	rec := func(slot int, seq uint32, st otadata.State) otadata.Record {
		seq, err := otadata.SeqFor(slot, 2, seq)
		must(t, err)
		return otadata.NewRecord(seq, st)
	}
	blank := otadata.ErasedRecord()
	for _, c := range []struct {
		name   string
		at     int
		own    otadata.State // of the record that is not steady, which means the running slot
		beside func(w world) otadata.Record
		want   otadata.State // of the running slot afterwards
	}{
		{"alone, proven", unsureCRC, otadata.Valid, func(world) otadata.Record { return blank }, otadata.Valid},
		{"alone, perhaps proven", unsureState, otadata.Valid, func(world) otadata.Record { return blank }, otadata.PendingVerify},
		{"alone, on trial", unsureCRC, otadata.PendingVerify, func(world) otadata.Record { return blank }, otadata.PendingVerify},
		{"beside the old one", unsureCRC, otadata.PendingVerify, func(w world) otadata.Record { return rec(1-w.running, 1, otadata.Valid) }, otadata.PendingVerify},
		{"beside the failed one", unsureCRC, otadata.Valid, func(w world) otadata.Record { return rec(1-w.running, 7, otadata.Aborted) }, otadata.Valid},
		{"beside its own", unsureCRC, otadata.Valid, func(w world) otadata.Record { return rec(w.running, 7, otadata.Valid) }, otadata.Valid},
		{"beside its own, on trial", unsureCRC, otadata.Valid, func(w world) otadata.Record { return rec(w.running, 7, otadata.PendingVerify) }, otadata.PendingVerify},
		{"the numbers are used up", unsureCRC, otadata.Valid, func(w world) otadata.Record { return rec(1-w.running, otadata.SeqErased-2, otadata.Valid) }, otadata.Valid},
	} {
		for _, w := range worlds(t) {
			for i := range 2 {
				var recs [2]otadata.Record
				recs[i], recs[1-i] = rec(w.running, 3, c.own), c.beside(w)
				f := w.unsteady(recs, i, c.at, 1)
				what := fmt.Sprintf("%s, record %d, %s running beside %s", c.name, i, w.slot(w.running).Name, w.other)
				changed, err := w.ops(f).SteadyRecords()
				if err != nil || !changed {
					t.Errorf("%s: changed %v: %v", what, changed, err)
				}
				if unsteady, err := w.ops(f).Unsteady(); err != nil || unsteady != [2]bool{} {
					t.Errorf("%s: still not steady: %v, %v", what, unsteady, err)
				}
				st, err := w.ops(f).StatePartition(w.slot(w.running))
				_, usedUp := otadata.SeqFor(w.running, 2, recs[1-i].Seq+1)
				switch {
				case usedUp != nil && !recs[1-i].Erased():
					if !errors.Is(err, otaops.NotFound) {
						t.Errorf("%s: the running slot is %s (%v), which no number can say", what, st, err)
					}
				case err != nil || st != c.want:
					t.Errorf("%s: the running slot is %s (%v), want %s", what, st, err, c.want)
				}
				if again, err := w.ops(f).SteadyRecords(); err != nil || again {
					t.Errorf("%s: changed again: %v", what, err)
				}
			}
		}
	}
}

// TestSteadyRecordsIsCutAnywhere: what was proven boots in the end, however often it is begun.
func TestSteadyRecordsIsCutAnywhere(t *testing.T) {
	cuts := 0
	for _, w := range worlds(t) {
		for i := range 2 {
			for _, beside := range []otadata.Record{otadata.ErasedRecord(), otadata.NewRecord(uint32(w.running+1), otadata.Valid)} {
				recs := [2]otadata.Record{beside, beside}
				recs[i] = otadata.NewRecord(uint32(w.running+3), otadata.Valid)
				base := w.unsteady(recs, i, unsureCRC, uint64(i))
				steady := func(o *otaops.Ops) error { _, err := o.SteadyRecords(); return err }
				cuts += w.sweep(base, 8, steady, func(f *norflash.Flash, cut string) {
					must(t, steady(w.ops(f)))
					if unsteady, err := w.ops(f).Unsteady(); err != nil || unsteady != [2]bool{} {
						t.Errorf("%s: %v %v", cut, unsteady, err)
					}
					// Where nothing else counted, the lowest slot is what there is without a record.
					if w.other == damaged && !w.recovers(f) {
						t.Errorf("%s: %s does not run again", cut, w.slot(w.running).Name)
					}
				})
			}
		}
	}
	t.Logf("%d cuts", cuts)
}
