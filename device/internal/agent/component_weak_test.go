package agent

import (
	"fmt"
	"testing"

	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
)

// A bit of a record that is neither 1 nor 0: the component settles it as the Go agent does, in as many operations and to the
// same bytes, and afterwards both records read the same each time.
func TestComponentMakesRecordsSteadyLikeTheGoAgent(t *testing.T) {
	c, m := startComponent(t, false), newStates(t, 7)
	settled := 0
	for n := 0; n < 3000; n++ {
		l := m.next(t)
		data, ok := l.table.OTAData()
		if !ok {
			continue
		}
		at := int64(data.Offset) + int64(m.IntN(2))*otadata.SectorSize + int64(pick(m, 0, 24, 25, 28, 30, 31))
		var have [1]byte
		l.flash.ReadAt(have[:], at)
		l.weak = weakByte{at, ^have[0] & (1 << m.IntN(8))}
		if l.weak.bits == 0 {
			continue
		}
		base := l.flash.Clone()
		var bits [norflash.SectorSize]byte
		bits[at%norflash.SectorSize] = l.weak.bits
		l.flash.Weaken(int(at/norflash.SectorSize), bits, uint64(n))
		want := goAgent(t, l, "settle")
		d, got := c.do(l.with(base), cut{}, "settle")
		after := l.with(want.forks[len(want.forks)-1])
		ops, err := otaops.New(after.flash, l.table, l.running, after.config(&l.efuse).Ops)
		if err != nil {
			t.Fatal(err)
		}
		if unsteady, err := ops.Unsteady(); err != nil {
			t.Fatal(err)
		} else if unsteady != [2]bool{} {
			t.Errorf("state %d: a record is left as it was, running %s\nrecords %s", n, l.running.Name, records(l.with(base)))
		}
		settled++
		what := fmt.Sprintf("state %d, running %s, bits %#x at %#x\nrecords %s", n, l.running.Name, l.weak.bits, at, records(l.with(base)))
		if diff := equalFlash(after.flash, got); diff != "" || d.ops != len(want.forks)-1 {
			t.Fatalf("%d operations, want %d; %s; %s", d.ops, len(want.forks)-1, diff, what)
		}
		for key, value := range want.found {
			if d.get(key) != value {
				t.Fatalf("found %s %q, want %q; %s", key, d.get(key), value, what)
			}
		}
	}
	t.Logf("%d states settled alike", settled)
	if settled < 1000 {
		t.Error("too few states")
	}
}
