package device

import (
	"cmp"
	"crypto/ecdsa"
	"fmt"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/protocol"
)

// long widens the sweeps: BMSOTA_POWERCUT=long, as make powercut sets it, tears every operation of every scenario in
// longTears ways, cuts every operation of the small image twice in all pairs, and takes an hour where the short ones take
// half a minute. Anything else in the variable fails the tests instead of being taken for short.
func long(t testing.TB) bool {
	t.Helper()
	switch v := os.Getenv("BMSOTA_POWERCUT"); v {
	case "":
		return false
	case "long":
		return true
	default:
		t.Fatalf("BMSOTA_POWERCUT=%s is not known: long, or nothing", v)
		return false
	}
}

// Seeds tried of an operation: of one on records, tombstones and the head of a slot, and of any other. With each come two
// or three random tears, see tears.
const (
	metadataSeeds, dataSeeds         = 10, 1
	longMetadataSeeds, longDataSeeds = 100, 4
)

// sweep is a story about a board that is made for it.
type sweep struct {
	*story
	layout    Layout
	old, next []byte
	seeds     int // for an operation on metadata; 0: metadataSeeds
}

// record follows the story without a power cut.
func (sw *sweep) record(t *testing.T) path {
	x := sw.explorer(t, 0)
	x.clear()
	var p path
	x.bubble(func() { p = x.follow(sw.start, 0, true) })
	return p
}

// end is the flash that the story leaves.
func (sw *sweep) end(t *testing.T) *norflash.Flash {
	t.Helper()
	p := sw.record(t)
	if p.problem != "" {
		t.Fatalf("without a power cut: %s", p.problem)
	}
	return p.last
}

// explorer cuts the story, in virtual time and on all processors.
func (sw *sweep) explorer(t *testing.T, cuts int) *explorer {
	bad := 0
	if s, ok := sw.server.(*server); ok {
		s.set(func(s *server) { s.forgets = true })
	}
	return &explorer{story: sw.story, cuts: cuts, limit: 2 * time.Hour, workers: runtime.GOMAXPROCS(0),
		bubble: func(life func()) { synctest.Test(t, func(*testing.T) { life() }) },
		passes: []func(int, norflash.Op) bool{func(_ int, op norflash.Op) bool { return !sw.metadataOnly || sw.metadata(op) }},
		ways: func(op norflash.Op, _ int) []norflash.Cut {
			switch {
			case sw.metadata(op) && long(t):
				return tears(op, 0, longMetadataSeeds)
			case sw.metadata(op):
				return tears(op, 0, cmp.Or(sw.seeds, metadataSeeds))
			case long(t):
				return tears(op, 0, longDataSeeds)
			}
			return tears(op, 0, dataSeeds)
		},
		found: func(f finding) {
			if bad++; bad <= 5 {
				t.Errorf("%s: %s", f.what, f.problem)
			}
		}}
}

// report explores the story and says in one line what was done.
func (sw *sweep) report(t *testing.T) figures {
	t.Helper()
	return reportOf(t, sw.explorer(t, 1))
}

func reportOf(t *testing.T, x *explorer) figures {
	t.Helper()
	began := time.Now()
	if err := x.run(t.Context()); err != nil {
		t.Fatalf("without a power cut: %v", err)
	}
	f := x.figures
	t.Logf("power cuts: %s: %d operations, %d states, %d distinct, %d bad, %d escape ESP-IDF's bootloader, %d boots to rest at most, %v",
		t.Name(), f.operations, f.states, f.distinct, f.bad, f.escaped, f.boots, time.Since(began).Round(time.Millisecond))
	if f.escaped > f.states/20 {
		t.Errorf("%d states escape the bootloader, that is more than ever", f.escaped)
	}
	return f
}

// newBeforeBytes finds the first moment in which a record asks for a slot that does not hold the release.
func newBeforeBytes(sw *sweep, p path) string {
	slots := sw.table.Slots()
	f := p.begin.Clone()
	for i, w := range p.writes {
		if err := w.apply(f); err != nil {
			return err.Error()
		}
		if !sw.metadata(w.op) {
			continue
		}
		for _, r := range sw.records(f) {
			if r.Usable() && r.State == otadata.New && !slotHolds(f, slots[otadata.SlotIndex(r.Seq, len(slots))], sw.next) {
				return fmt.Sprintf("after operation %d a record asks for bytes that are not there", i+1)
			}
		}
	}
	return ""
}

func sweepOf(t *testing.T, next []byte, final func(old, next []byte) []byte, mutant agent.Mutant) *sweep {
	t.Helper()
	return sweepBy(t, newKey(t), next, final, mutant)
}

func sweepBy(t *testing.T, key *ecdsa.PrivateKey, next []byte, final func(old, next []byte) []byte, mutant agent.Mutant) *sweep {
	t.Helper()
	table := parttable.Default()
	table[5].Size = 64 << 10 // every boot reads the storage partition; the sweep boots ten thousand times
	sw := sweepIn(t, table, 0, key, image(t, "1.0.0"), next, final)
	sw.config = func(c *Config) { c.mutant = mutant }
	return sw
}

// sweepIn is an update in a table of its own, and on a chip of that size.
func sweepIn(t *testing.T, table parttable.Table, size int64, key *ecdsa.PrivateKey, old, next []byte, final func(old, next []byte) []byte) *sweep {
	t.Helper()
	extra := ""
	if key != nil {
		extra = trusting(t, key)
	}
	l := layout(old, extra)
	l.Table, l.Size = table, size
	start, err := l.build()
	if err != nil {
		t.Fatal(err)
	}
	return &sweep{layout: l, old: old, next: next, story: &story{start: start, table: table, order: update, server: serve(t, release(t, next, key), next),
		images: [][]byte{old, next}, final: final(old, next)}}
}

func toNew(_, next []byte) []byte { return next }
func toOld(old, _ []byte) []byte  { return old }

// TestPowerCutSweep cuts the power before, in and after every flash operation of a whole update. Each time a verified
// image boots, and the retained order brings the board where the undisturbed one is.
func TestPowerCutSweep(t *testing.T) {
	sw := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	if s := newBeforeBytes(sw, sw.record(t)); s != "" {
		t.Error(s)
	}
	if f := sw.report(t); f.operations < 1000 {
		t.Errorf("only %d operations were recorded", f.operations)
	}
}

// TestPowerCutSweepOfAFullSlot: an image of 1.5 MiB, of whose operations one in a thousand is cut, and in the long run each.
func TestPowerCutSweepOfAFullSlot(t *testing.T) {
	sw := sweepOf(t, image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = 1536 << 10 }), toNew, agent.MutantNone)
	x := sw.explorer(t, 1)
	x.passes = []func(int, norflash.Op) bool{func(i int, op norflash.Op) bool { return long(t) || i%1000 == 0 && !sw.metadata(op) }}
	x.ways = func(norflash.Op, int) []norflash.Cut { return []norflash.Cut{norflash.After, norflash.Torn(0)} }
	if f := reportOf(t, x); f.operations < 24_000 {
		t.Errorf("only %d operations", f.operations)
	}
}

// TestPowerCutSweepOfAFailedTrial does the same to updates that are undone: the board ends on the old image, the
// failed one is quarantined and no longer bootable.
//
// What stays open is ESP-IDF's: where the bootloader itself rewrites the record of a trial (NEW to PENDING, PENDING to
// ABORTED), an erase or a program that is cut short can leave a right CRC and a state that is no trial. An image that
// runs is then put on trial by the agent; one that crashes at once is undone by nobody. Such states are counted apart.
func TestPowerCutSweepOfAFailedTrial(t *testing.T) {
	for _, b := range []appimage.Behaviour{appimage.BehaviourUnhealthy, appimage.BehaviourCrash} {
		t.Run(string(b), func(t *testing.T) {
			sw := sweepOf(t, image(t, "1.1.0", trial(b)), toOld, agent.MutantNone)
			sw.metadataOnly = true // the bytes of the image are TestPowerCutSweep's
			sw.holes = b == appimage.BehaviourCrash
			sw.report(t)
		})
	}
}

// TestPowerCutSweepOfARollback cuts the power all through an operator's rollback, given as a retained order by version.
func TestPowerCutSweepOfARollback(t *testing.T) {
	sw := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	sw.start = sw.end(t)
	sw.order, sw.final = `{"action":"rollback","version":"1.0.0"}`, sw.old
	if f := sw.report(t); f.operations < 8 {
		t.Errorf("only %d operations were recorded", f.operations)
	}
}

// TestPowerCutSweepOfTheUpdateAfterARollback: the slot holds a tombstone, its record is aborted, and another release
// comes.
func TestPowerCutSweepOfTheUpdateAfterARollback(t *testing.T) {
	key := newKey(t)
	undone := sweepBy(t, key, image(t, "1.0.9", trial(appimage.BehaviourCrash)), toOld, agent.MutantNone)
	sw := sweepBy(t, key, image(t, "1.1.0"), toNew, agent.MutantNone)
	sw.start = undone.end(t)
	sw.metadataOnly = true
	if f := sw.report(t); f.operations < 1000 {
		t.Errorf("only %d operations were recorded", f.operations)
	}
}

// TestPowerCutSweepOfMendingRecords: the slot that the records ask for is damaged, and the board that fell back mends
// them. The damaged image is neither the old nor the new one, and never boots.
func TestPowerCutSweepOfMendingRecords(t *testing.T) {
	sw := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	damaged := sw.end(t).Clone()
	put(t, damaged, 0x1A0000+30<<10, []byte{1, 2, 3})
	sw.start, sw.metadataOnly = damaged, true
	sw.report(t)
}

// TestResetsAtEveryStepOfAnUpdate resets the board, in every way there is, at its n-th status.
func TestResetsAtEveryStepOfAnUpdate(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	f := release(t, next, key)
	for _, why := range []ResetReason{PowerOn, Software, Panic, Watchdog, Brownout} {
		for n := 1; n <= 16; n++ {
			synctest.Test(t, func(t *testing.T) {
				var b *bench
				seen := 0
				b = newBench(t, layout(old, trusting(t, key)), serve(t, f, next), func(c *Config) {
					c.OnStatus = func(protocol.Status) {
						if seen++; seen == n {
							b.board.Reset(why)
						}
					}
				})
				b.hub.retain(`{"action":"update"}`)
				b.on()
				b.settle(20 * time.Minute)
				b.off()
				last := b.hub.last()
				blamed := false // a crash in the trial is the image's fault, and that is for good
				for _, s := range b.hub.all() {
					blamed = blamed || s.Phase == protocol.PhaseRolledBack && s.Reason != protocol.ReasonPowerLoss
				}
				want := "1.1.0"
				if blamed {
					want = "1.0.0"
				}
				if last.CurrentVersion != want || last.RollbackPending {
					t.Errorf("%s at status %d: runs %s, want %s: %s", why, n, last.CurrentVersion, want, b.hub.phases())
				}
			})
		}
	}
}
