package agent

import (
	"fmt"
	"os"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/esp/otadata"
)

// tears of every operation, by seed.
const tears = 4

// sweepStates is how many states are swept: a few, or with BMSOTA_POWERCUT=long as many as the comparison has.
func sweepStates(t testing.TB) int {
	t.Helper()
	switch v := os.Getenv("BMSOTA_POWERCUT"); v {
	case "":
		return 100
	case "long":
		return 2000
	default:
		t.Fatalf("BMSOTA_POWERCUT=%s is not known: long, or nothing", v)
		return 0
	}
}

// componentSweep cuts the power in the component's C code, and sees what boots.
type componentSweep struct {
	t      *testing.T
	c      *component
	images [][]byte
	seen   map[[32]byte]bool
	cuts   int
}

// The power fails before, in and after every operation that the component's C code does to records and slots. Before and
// after, the flash is what the Go agent leaves there, so the same bytes go to the same places in the same order. In all
// cases the bootloader then boots an image that verifies, the component settles what it finds as the Go agent does, and
// the board boots again; an image that was given up on trial does not come back, and none boots that no record vouches for.
func TestComponentPowerCutSweep(t *testing.T) {
	m := newStates(t, 3)
	sw := &componentSweep{t: t, c: startComponent(t, true), images: m.images, seen: map[[32]byte]bool{}}
	states := sweepStates(t)
	for swept := 0; swept < states && !t.Failed(); {
		l, ok := sw.boot(m.next(t))
		if !ok {
			continue
		}
		swept++
		sw.order(l, "settle")
		if _, same := compare(t, sw.c, l, "settle"); !same {
			return
		}
		_, settled := sw.c.do(l, cut{}, "settle")
		l = l.with(settled)
		if _, ok := sw.boot(l); !ok {
			t.Fatalf("settled, nothing boots: %s", records(l))
		}
		for _, op := range orders(l) {
			// A write of many pieces has nothing that one of three has not.
			if op != "settle" && op != "write 4096 4500" {
				sw.order(l, op)
			}
		}
	}
	t.Logf("%d states, %d cuts, %d different flashes after them", states, sw.cuts, len(sw.seen))
}

// boot is one boot decision on a copy of the flash. False where nothing starts.
func (sw *componentSweep) boot(l life) (life, bool) {
	l = l.with(l.flash.Clone())
	res, err := bootloader.Boot(l.flash, bootloader.Config{Rollback: l.rollback, AntiRollback: l.anti, Efuse: &l.efuse, Chip: l.chip})
	if err != nil {
		return l, false // a table that the bootloader refuses
	}
	l.running = res.Partition
	return l, res.Booted != "none"
}

// order cuts every operation of op.
func (sw *componentSweep) order(l life, op string) {
	want := goAgent(sw.t, l, op)
	for i := range len(want.forks) - 1 {
		for k := range tears + 2 {
			how := cut{at: i + 1, how: "torn", seed: uint64(i*tears + k)}
			var exact *norflash.Flash
			switch k {
			case tears:
				how.how, exact = "before", want.forks[i]
			case tears + 1:
				how.how, exact = "after", want.forks[i+1]
			}
			sw.cuts++
			d, got := sw.c.do(l, how, op)
			what := fmt.Sprintf("%s running %s, cut %s operation %d, seed %d", op, l.running.Name, how.how, how.at, how.seed)
			if d.err != "power-cut" || d.ops != how.at {
				sw.t.Fatalf("%s: %s after %d operations", what, d.err, d.ops)
			}
			if exact != nil {
				if diff := equalFlash(exact, got); diff != "" {
					sw.t.Fatalf("%s: %s", what, diff)
				}
			}
			sw.judge(l, got, op, what)
		}
	}
}

// judge follows a board whose power failed.
func (sw *componentSweep) judge(before life, f *norflash.Flash, op, what string) {
	content := make([]byte, used)
	f.ReadAt(content, 0)
	if sum := digestOf(content); sw.seen[sum] {
		return
	} else {
		sw.seen[sum] = true
	}
	l, ok := sw.boot(before.with(f))
	if !ok {
		sw.t.Errorf("%s: nothing boots\nrecords %s", what, records(before.with(f)))
		return
	}
	if op == "give_up bms_silent" && onTrial(before) && l.running == before.running {
		sw.t.Errorf("%s: the image that was given up boots again\nrecords %s", what, records(before.with(f)))
	}
	l.reset = PowerOn
	v, _ := compare(sw.t, sw.c, l, "settle")
	settled := l.with(v.forks[len(v.forks)-1])
	if _, ok := sw.boot(settled); !ok {
		sw.t.Errorf("%s: settled, nothing boots", what)
	}
	if v.found["trial"] == "0" && v.found["restart"] == "0" {
		sw.zombies(settled, what)
	}
}

// onTrial says whether the record that counts is the running slot's and pending.
func onTrial(l life) bool {
	recs, ok := readRecords(l)
	active := otadata.Select(recs)
	slots := l.table.Slots()
	return ok && l.rollback && active >= 0 && recs[active].State == otadata.PendingVerify && slots[otadata.SlotIndex(recs[active].Seq, len(slots))] == l.running
}

func readRecords(l life) (recs [2]otadata.Record, ok bool) {
	data, ok := l.table.OTAData()
	if !ok || len(l.table.Slots()) == 0 {
		return recs, false
	}
	raw := make([]byte, data.Size)
	l.flash.ReadAt(raw, int64(data.Offset))
	recs, err := otadata.Parse(raw)
	return recs, err == nil
}

// zombies finds slots that boot without a record that vouches for them.
func (sw *componentSweep) zombies(l life, what string) {
	recs, ok := readRecords(l)
	slots := l.table.Slots()
	for i, p := range slots {
		if !ok || !l.running.IsOTA() || p == l.running || recs[0].Names(i, len(slots)) || recs[1].Names(i, len(slots)) {
			continue
		}
		a := newAgent(l.config(&l.efuse))
		if _, err := a.verify(p); err == nil {
			sw.t.Errorf("%s: %s boots and no record vouches for it\nrecords %s", what, p.Name, records(l))
		}
	}
}
