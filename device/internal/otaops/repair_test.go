package otaops_test

import (
	"errors"
	"fmt"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// What the slot that does not run holds. A crashing image verifies and boots,
// and never gets as far as any of this package's calls.
const (
	damaged  = "damaged"
	crashing = "crashing"
)

// world is a board with two slots, one of them running.
type world struct {
	t       testing.TB
	table   parttable.Table
	running int // number of the running slot
	other   string
}

func (w world) slot(i int) parttable.Partition { return w.table[1+i] }

// flash is the world's board with these records.
func (w world) flash(recs [2]otadata.Record) *norflash.Flash {
	f := norflash.New(1 << 20)
	raw, err := w.table.AppendBinary(nil, true)
	must(w.t, err)
	must(w.t, f.Program(bootloader.DefaultPartitionTableOffset, raw))
	must(w.t, f.Program(int64(data.Offset), otadata.Append(nil, recs)))
	must(w.t, f.Program(int64(w.slot(w.running).Offset), goodImage))
	content := badImage
	if w.other == damaged {
		content = badImage[:len(badImage)/2]
	}
	must(w.t, f.Program(int64(w.slot(1-w.running).Offset), content))
	return f
}

var goodImage, badImage []byte

// imageSize makes two sectors, so that a download erases on its way, and few
// operations, each of which is cut in every flow.
const imageSize = 4112

func TestMain(m *testing.M) {
	var t testing.T
	goodImage, badImage = image(&t, "1.0.0", imageSize), image(&t, "2.0.0", imageSize)
	m.Run()
}

func (w world) ops(f otaops.Flash) *otaops.Ops {
	o, err := otaops.New(f, w.table, w.slot(w.running), otaops.Config{Rollback: true})
	must(w.t, err)
	return o
}

// recovers reports whether at most eight resets end in the running slot, when
// everything in the other one crashes at once.
func (w world) recovers(f *norflash.Flash) bool {
	for range 8 {
		res, err := bootloader.Boot(f, bootloader.Config{Rollback: true})
		must(w.t, err)
		if res.Booted == w.slot(w.running).Name {
			return true
		}
	}
	return false
}

// sweep runs do on a fork of base for every operation in it and every way to
// cut that, and calls after with what the cut left, power on. It returns the
// number of cuts.
func (w world) sweep(base *norflash.Flash, torn int, do func(*otaops.Ops) error, after func(f *norflash.Flash, cut string)) int {
	whole := base.Clone()
	must(w.t, do(w.ops(whole)))
	hows := []norflash.Cut{norflash.Before, norflash.After}
	for i := range torn {
		hows = append(hows, norflash.Torn(uint64(i)))
	}
	cuts := 0
	for n := 1; n <= whole.Ops(); n++ {
		for i, how := range hows {
			f := base.Clone()
			f.CutAt(n, how)
			if err := do(w.ops(f)); !errors.Is(err, norflash.ErrPowerCut) {
				w.t.Fatalf("cut %d.%d: %v", n, i, err)
			}
			f.PowerOn()
			after(f, fmt.Sprintf("cut at operation %d of %d, way %d", n, whole.Ops(), i))
			cuts++
		}
	}
	return cuts
}

func worlds(t testing.TB) []world {
	var ws []world
	for running := range 2 {
		for _, other := range []string{damaged, crashing} {
			ws = append(ws, world{t, layouts["two"], running, other})
		}
	}
	return ws
}

// everyRecord is a small range of all the things a record can be.
func everyRecord() []otadata.Record {
	bad := rec(2, otadata.Valid)
	bad.CRC ^= 1 << 7
	all := []otadata.Record{blank, {}, bad, rec(0, otadata.Undefined), rec(0xFFFFFFFD, otadata.Valid), rec(0xFFFFFFFE, otadata.PendingVerify)}
	for seq := uint32(1); seq <= 3; seq++ {
		for _, st := range []otadata.State{otadata.New, otadata.PendingVerify, otadata.Valid, otadata.Invalid, otadata.Aborted, otadata.Undefined, 9} {
			all = append(all, rec(seq, st))
		}
	}
	return all
}

func records(t testing.TB, f *norflash.Flash) [2]otadata.Record {
	t.Helper()
	b := make([]byte, otadata.PartitionSize)
	_, err := f.ReadAt(b, int64(data.Offset))
	must(t, err)
	recs, err := otadata.Parse(b)
	must(t, err)
	return recs
}

func repairOnly(o *otaops.Ops) error { _, err := o.RepairRecords(); return err }

func TestRepairGivesTheRunningSlotItsRecordAndNoCutMakesItWorse(t *testing.T) {
	states, repaired, cuts := 0, 0, 0
	for _, w := range worlds(t) {
		for _, r0 := range everyRecord() {
			for _, r1 := range everyRecord() {
				states++
				before := [2]otadata.Record{r0, r1}
				base := w.flash(before)
				where := fmt.Sprintf("running ota_%d, other %s, records %+v", w.running, w.other, before)
				active := otadata.Select(before)
				wanted := active >= 0 && otadata.SlotIndex(before[active].Seq, 2) == w.running

				f := base.Clone()
				changed, err := w.ops(f).RepairRecords()
				must(t, err)
				after := records(t, f)
				now := otadata.Select(after)
				if now < 0 || otadata.SlotIndex(after[now].Seq, 2) != w.running {
					t.Fatalf("%s: afterwards %+v", where, after)
				}
				if changed == wanted || !changed && f.Ops() != 0 || changed && after[now].State != otadata.Valid {
					t.Fatalf("%s: changed %v with %d operations to %+v", where, changed, f.Ops(), after)
				}
				if again, err := w.ops(f).RepairRecords(); again || err != nil {
					t.Fatalf("%s: a second repair changed %v, %v", where, again, err)
				}
				if !changed {
					continue
				}
				repaired++
				if !w.recovers(f.Clone()) {
					t.Fatalf("%s: repaired, does not boot the running slot", where)
				}
				safe := w.recovers(base.Clone())
				cuts += w.sweep(base, 6, repairOnly, func(f *norflash.Flash, cut string) {
					if recs := records(t, f); active >= 0 && otadata.Select(recs) < 0 {
						t.Fatalf("%s: %s: no record is left, %+v", where, cut, recs)
					}
					if safe && !w.recovers(f.Clone()) {
						t.Fatalf("%s: %s: does not come back, records %+v", where, cut, records(t, f))
					}
					must(t, repairOnly(w.ops(f)))
					if recs := records(t, f); otadata.Select(recs) < 0 || otadata.SlotIndex(recs[otadata.Select(recs)].Seq, 2) != w.running {
						t.Fatalf("%s: %s: repaired again to %+v", where, cut, recs)
					}
				})
			}
		}
	}
	t.Logf("%d states, %d repaired, %d cuts", states, repaired, cuts)
	if states != 4*27*27 || repaired < 1000 || cuts < 10000 {
		t.Errorf("%d states, %d repaired, %d cuts: the sweep did not happen", states, repaired, cuts)
	}
}

// The dangerous tears are rare, so the states they matter in get many.
func TestRepairSurvivesRareTears(t *testing.T) {
	cuts := 0
	for _, w := range worlds(t) {
		mine, theirs := uint32(1+w.running), uint32(4-w.running) // slot of the running one, and the other's, higher
		states := [][2]otadata.Record{
			{rec(mine, otadata.Valid), rec(theirs, otadata.PendingVerify)},
			{rec(theirs, otadata.PendingVerify), rec(mine, otadata.Valid)},
			{rec(mine, otadata.Undefined), rec(theirs, otadata.New)},
		}
		if w.running == 0 {
			// The one sequence number whose CRC is 0, so that it has no bit to clear.
			// It means ota_1.
			states = append(states, [2]otadata.Record{rec(mine, otadata.Valid), rec(0x9226f562, otadata.PendingVerify)})
		}
		for _, recs := range states {
			base := w.flash(recs)
			whole := base.Clone()
			if changed, err := w.ops(whole).RepairRecords(); !changed || err != nil || !w.recovers(base.Clone()) {
				t.Fatalf("running ota_%d, %+v: changed %v, %v", w.running, recs, changed, err)
			}
			if after := records(t, whole); otadata.Select(after) < 0 || !after[otadata.Select(after)].Names(w.running, 2) {
				t.Fatalf("running ota_%d, %+v: repaired to %+v", w.running, recs, after)
			}
			cuts += w.sweep(base, 400, repairOnly, func(f *norflash.Flash, cut string) {
				if !w.recovers(f.Clone()) {
					t.Fatalf("running ota_%d, other %s, %+v: %s: records %+v", w.running, w.other, recs, cut, records(t, f))
				}
			})
		}
	}
	if cuts < 10_000 {
		t.Errorf("%d cuts: the sweep did not happen", cuts)
	}
}

// Two cuts, with a boot between them. Records that put the running slot itself
// on trial are left out: a second reset ends a trial, as it should.
func TestTwoPowerCutsInARepairDoNotMakeItWorse(t *testing.T) {
	bad := rec(2, otadata.Valid)
	bad.CRC ^= 1
	some := []otadata.Record{blank, bad, rec(0xFFFFFFFE, otadata.Valid), rec(1, otadata.Valid), rec(1, otadata.Aborted), rec(1, otadata.Undefined),
		rec(2, otadata.Valid), rec(2, otadata.Invalid), rec(2, otadata.Undefined), rec(3, otadata.Aborted), rec(3, otadata.Valid), rec(4, otadata.Valid)}
	pairs := 0
	for _, w := range worlds(t) {
		for _, r0 := range some {
			for _, r1 := range some {
				base := w.flash([2]otadata.Record{r0, r1})
				if changed, err := w.ops(base.Clone()).RepairRecords(); !changed || err != nil || !w.recovers(base.Clone()) {
					continue
				}
				w.sweep(base, 2, repairOnly, func(once *norflash.Flash, first string) {
					if !w.recovers(once) {
						t.Fatalf("running ota_%d, other %s, %+v %+v: %s: does not come back", w.running, w.other, r0, r1, first)
					}
					pairs += w.sweep(once, 2, repairOnly, func(twice *norflash.Flash, second string) {
						if !w.recovers(twice) {
							t.Fatalf("running ota_%d, other %s, %+v %+v: %s, then %s: does not come back, records %+v", w.running, w.other, r0, r1, first, second, records(t, twice))
						}
					})
				})
			}
		}
	}
	t.Logf("%d pairs of cuts", pairs)
	if pairs < 20_000 {
		t.Errorf("%d pairs of cuts: the sweep did not happen", pairs)
	}
}

// The whole way from a repair to the next trial, with everything in the other
// slot crashing: there is always a way back to the running slot.
func TestNoPowerCutBetweenRepairAndSwitchLosesTheRunningSlot(t *testing.T) {
	flows, cuts := 0, 0
	for _, w := range worlds(t) {
		seen := map[[2]otadata.Record]bool{}
		for _, r0 := range everyRecord() {
			for _, r1 := range everyRecord() {
				base := w.flash([2]otadata.Record{r0, r1})
				must(t, repairOnly(w.ops(base)))
				recs := records(t, base)
				if seen[recs] || !updatable(t, w, base) {
					continue
				}
				seen[recs] = true
				flows++
				target := w.slot(1 - w.running)
				size := []uint32{otaops.SequentialWrites, imageSize}[flows%2]
				cuts += w.sweep(base, 4, func(o *otaops.Ops) error { return update(o, target, size, (*otaops.Ops).Switch) }, func(f *norflash.Flash, cut string) {
					if !w.recovers(f) {
						t.Fatalf("running ota_%d, other %s, records %+v, size %#x: %s: does not come back, records %+v", w.running, w.other, recs, size, cut, records(t, f))
					}
				})
			}
		}
	}
	t.Logf("%d flows, %d cuts", flows, cuts)
	if flows < 100 || cuts < 100_000 {
		t.Errorf("%d flows, %d cuts: the sweep did not happen", flows, cuts)
	}
}

// updatable leaves out what no update starts from: a trial that is not
// confirmed (also in a record that does not count, which no board has after a
// boot), and numbers that are used up.
func updatable(t testing.TB, w world, f *norflash.Flash) bool {
	recs := records(t, f)
	st, err := w.ops(f).StatePartition(w.slot(w.running))
	must(t, err)
	active := recs[otadata.Select(recs)]
	return st != otadata.PendingVerify && active.State != otadata.PendingVerify && active.State != otadata.New && active.Seq < 0xFFFFFFF0
}

// update is the order of an agent: the failed slot is made unbootable first.
func update(o *otaops.Ops, target parttable.Partition, size uint32, switchTo func(*otaops.Ops, parttable.Partition) error) error {
	if err := o.WriteTombstone(target, [32]byte{7}, "crash"); err != nil {
		return err
	}
	return download(o, target, size, switchTo)
}

func download(o *otaops.Ops, target parttable.Partition, size uint32, switchTo func(*otaops.Ops, parttable.Partition) error) error {
	u, err := o.Begin(target, size)
	if err != nil {
		return err
	}
	for rest := badImage; len(rest) > 0; {
		n := min(len(rest), 1024)
		if _, err := u.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	if err := u.End(); err != nil {
		return err
	}
	return switchTo(o, target)
}

// Each of the three protections is needed: without it the same sweep finds a
// board that does not come back.
func TestWithoutTheProtectionsTheSweepFindsBricks(t *testing.T) {
	for _, c := range []struct {
		name  string
		other string
		recs  [2]otadata.Record
		do    func(o *otaops.Ops, target parttable.Partition) error
	}{
		{"SetBoot instead of Switch", damaged, [2]otadata.Record{rec(1, otadata.Valid), blank},
			func(o *otaops.Ops, target parttable.Partition) error {
				return update(o, target, otaops.SequentialWrites, (*otaops.Ops).SetBoot)
			}},
		{"no tombstone", crashing, [2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Aborted)},
			func(o *otaops.Ops, target parttable.Partition) error {
				return download(o, target, otaops.SequentialWrites, (*otaops.Ops).Switch)
			}},
		{"MarkInvalid instead of GiveUp", crashing, [2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.PendingVerify)},
			func(o *otaops.Ops, _ parttable.Partition) error { return o.MarkInvalid() }},
	} {
		w := world{t, layouts["two"], 0, c.other}
		bricks := 0
		cuts := w.sweep(w.flash(c.recs), 400, func(o *otaops.Ops) error { return c.do(o, w.slot(1)) }, func(f *norflash.Flash, _ string) {
			if !w.recovers(f) {
				bricks++
			}
		})
		t.Logf("%s: %d of %d cuts do not come back", c.name, bricks, cuts)
		if bricks == 0 {
			t.Errorf("%s: %d cuts and all come back: the protection is not needed or not tested", c.name, cuts)
		}
	}
}

func TestGiveUpCanBeCutAnywhere(t *testing.T) {
	w := world{t, layouts["two"], 0, crashing}
	base := w.flash([2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.PendingVerify)})
	cuts := w.sweep(base, 400, (*otaops.Ops).GiveUp, func(f *norflash.Flash, cut string) {
		if !w.recovers(f) {
			t.Fatalf("%s: records %+v", cut, records(t, f))
		}
	})
	if cuts != 4*402 {
		t.Errorf("%d cuts, want %d", cuts, 4*402)
	}
	f := base.Clone()
	must(t, w.ops(f).GiveUp())
	if recs := records(t, f); recs[0] != rec(1, otadata.Valid) || recs[1] != rec(2, otadata.Invalid) {
		t.Errorf("records %+v", recs)
	}
}

// The field bug: the selected slot is damaged, the bootloader falls back, and
// an update from there makes both records mean one slot.
func TestUpdateAfterAFallBackKeepsTheRunningSlotsRecord(t *testing.T) {
	for _, repair := range []bool{false, true} {
		w := world{t, layouts["two"], 0, damaged}
		f := w.flash([2]otadata.Record{rec(1, otadata.Valid), rec(2, otadata.Valid)})
		res, err := bootloader.Boot(f, bootloader.Config{Rollback: true})
		if err != nil || res.Selected != "ota_1" || res.Booted != "ota_0" {
			t.Fatalf("%+v, %v", res, err)
		}
		o := w.ops(f)
		if repair {
			if changed, err := o.RepairRecords(); !changed || err != nil {
				t.Fatalf("repair: %v, %v", changed, err)
			}
		}
		must(t, download(o, w.slot(1), otaops.SequentialWrites, (*otaops.Ops).SetBoot))
		mine := 0
		for _, r := range records(t, f) {
			if r.Names(0, 2) {
				mine++
			}
		}
		if want := map[bool]int{false: 0, true: 1}[repair]; mine != want {
			t.Errorf("repaired %v: %d records of the running slot, want %d", repair, mine, want)
		}
		if got := w.recovers(f); got != repair {
			t.Errorf("repaired %v: a crashing update comes back: %v", repair, got)
		}
	}
}

func TestRepairWhereThereIsNothingToRepair(t *testing.T) {
	f := norflash.New(1 << 20)
	o, err := otaops.New(f, layouts["fact"], find(t, layouts["fact"], "factory"), otaops.Config{Rollback: true})
	must(t, err)
	if changed, err := o.RepairRecords(); changed || err != nil || f.Ops() != 0 {
		t.Errorf("factory: %v, %v", changed, err)
	}
	gap := parttable.Table{data, app("ota_0", 0x10, 0x10000, 0x10000), app("ota_2", 0x12, 0x20000, 0x10000)}
	o, err = otaops.New(f, gap, gap[2], otaops.Config{})
	must(t, err)
	if changed, err := o.RepairRecords(); changed || !errors.Is(err, otaops.NotSupported) {
		t.Errorf("slot behind a gap: %v, %v", changed, err)
	}
}

// TestSwitchMeansItsSlotWhateverTheOtherRecordHolds for any sequence number and number of slots.
func TestSwitchMeansItsSlotWhateverTheOtherRecordHolds(t *testing.T) {
	for n := 2; n <= 5; n++ {
		table := parttable.Table{data}
		for i := range n {
			table = append(table, parttable.Partition{Name: fmt.Sprintf("ota_%d", i), Type: parttable.TypeApp, Subtype: parttable.SubtypeOTA0 + uint8(i),
				Offset: 0x20000 + uint32(i)<<16, Size: 1 << 16})
		}
		for seq := range uint32(12) {
			w := world{t: t, table: table, running: otadata.SlotIndex(seq, n)}
			for to := range n {
				if to == w.running {
					continue
				}
				f := norflash.New(1 << 20)
				must(t, f.Program(int64(data.Offset), otadata.Append(nil, [2]otadata.Record{rec(seq, otadata.Valid), otadata.ErasedRecord()})))
				must(t, f.Program(int64(w.slot(to).Offset), goodImage))
				must(t, w.ops(f).Switch(w.slot(to)))
				if asked, ok, err := w.ops(f).BootPartition(); err != nil || !ok || asked != w.slot(to) {
					t.Errorf("%d slots, over seq %d: a switch to ota_%d asks for %s, %v", n, seq, to, asked.Name, err)
				}
			}
		}
	}
}
