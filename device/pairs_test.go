package device

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
)

// in makes a sweep of another table: same files, same images.
func in(t *testing.T, table string, next []byte, final func(old, next []byte) []byte) *sweep {
	t.Helper()
	sw := sweepIn(t, tableOf(t, table), 0, newKey(t), image(t, "1.0.0"), next, final)
	sw.metadataOnly, sw.seeds = true, 4
	return sw
}

func TestPowerCutSweepOfOtherLayouts(t *testing.T) {
	for name, table := range map[string]string{"factory": factoryTable, "three slots": threeSlots, "encrypted": encrypted} {
		t.Run(name, func(t *testing.T) {
			sw := in(t, table, image(t, "1.1.0"), toNew)
			sw.report(t)
			updated := sw.end(t)
			t.Run("undone", func(t *testing.T) {
				in(t, table, image(t, "1.1.0", trial(appimage.BehaviourUnhealthy)), toOld).report(t)
			})
			if name == "factory" {
				// The slot that the records ask for is damaged, the board falls back to its factory application and the
				// order brings the image back.
				t.Run("fallen back", func(t *testing.T) {
					damaged := updated.Clone()
					put(t, damaged, 0x110000+30<<10, []byte{1, 2, 3})
					sw.start = damaged
					sw.report(t)
				})
				return
			}
			t.Run("rolled back by order", func(t *testing.T) {
				sw.start, sw.order, sw.final = updated, `{"action":"rollback","version":"1.0.0"}`, sw.old
				sw.report(t)
			})
		})
	}
}

// TestPowerCutSweepOfARollbackPastAnOlderImage: three slots, a release in each, and back by one in the same boot.
func TestPowerCutSweepOfARollbackPastAnOlderImage(t *testing.T) {
	first := sweepIn(t, tableOf(t, threeSlots), 0, nil, image(t, "1.0.0"), image(t, "1.1.0"), toNew)
	sw := sweepIn(t, first.table, 0, nil, first.next, image(t, "1.2.0"), toNew)
	sw.start = first.end(t)
	sw.start = sw.record(t).last // not at rest yet: the oldest image has no record, and goes at the next boot
	sw.order, sw.final = `{"action":"rollback","version":"1.1.0"}`, first.next
	sw.report(t)
}

// TestPowerCutSweepOfTheSecurityFloor: VALID first, then the eFuse. A cut between the two must not leave a board whose
// only proven image is below its floor, nor one whose floor stays down.
func TestPowerCutSweepOfTheSecurityFloor(t *testing.T) {
	secure := func(o *appimage.BuildOptions) { o.SecureVersion = 2 }
	sw := sweepOf(t, image(t, "1.1.0", secure), toNew, agent.MutantNone)
	sw.metadataOnly = true
	sw.config = func(c *Config) { c.AntiRollback = true }
	if fu, ok, err := readFuses(sw.end(t)); err != nil || !ok || fu.secure != 2 {
		t.Fatalf("the update leaves %+v, %v, %v", fu, ok, err)
	}
	sw.report(t)
}

// TestPowerCutSweepWithoutRollback: a board as the first firmware was built. There is no trial to end, but an update that
// is cut still leaves the old image or the new one.
func TestPowerCutSweepWithoutRollback(t *testing.T) {
	sw := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	sw.metadataOnly = true
	sw.config = func(c *Config) { c.NoRollback = true }
	sw.report(t)
}

// TestPowerCutAtRandomAgainAndAgain cuts one update up to eight times, live, until it is through.
func TestPowerCutAtRandomAgainAndAgain(t *testing.T) {
	runs := 60
	if long(t) {
		runs = 20_000
	}
	next := image(t, "1.1.0", func(o *appimage.BuildOptions) { o.Size = 16 << 10 })
	f := release(t, next, nil)
	cuts := 0
	for seed := range uint64(runs) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 8))
			b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, f, next))
			b.hub.retain(update)
			for range 1 + random.IntN(8) {
				b.flash().CutAt(1+random.IntN(400), norflash.Torn(random.Uint64()))
				b.on()
				b.settle(3 * time.Minute)
				if b.off() != nil {
					cuts++
				}
				b.flash().PowerOn()
			}
			b.on()
			b.settle(10 * time.Minute)
			b.off()
			if last := b.hub.last(); last.ImageSHA256 != sha(next) || last.RollbackPending {
				t.Errorf("seed %d: runs %s, pending %v: %s %v", seed, last.CurrentVersion, last.RollbackPending, b.hub.phases(), b.boots)
			}
		})
	}
	t.Logf("power cuts: %s: %d runs, %d cuts", t.Name(), runs, cuts)
}

// TestPowerCutTriples cuts the power three times in one update, also while the board makes good what the cuts before have left: in
// everything that touches metadata, and in a sample of the rest; the long run tears in more ways.
func TestPowerCutTriples(t *testing.T) {
	sum, names := figures{}, []string{"crash", "fresh board", "rolled back by order"}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			sw := scenarios()[name](t)
			x := sw.explorer(t, 3)
			x.ways = func(op norflash.Op, nth int) []norflash.Cut {
				switch {
				case sw.metadata(op) && long(t):
					return []norflash.Cut{norflash.Part(16), norflash.Torn(1), norflash.Bits(2), norflash.After}
				case sw.metadata(op) && nth < 3:
					return []norflash.Cut{norflash.Torn(1), norflash.After}
				case sw.metadata(op):
					return []norflash.Cut{norflash.Torn(uint64(nth))}
				case nth == 1 && (long(t) || op.Off/norflash.PieceSize%8 == 5):
					return []norflash.Cut{norflash.Torn(0)}
				case nth == 2 && op.Off/norflash.PieceSize%16 == 9:
					return []norflash.Cut{norflash.Torn(0)}
				}
				return nil
			}
			f := reportOf(t, x)
			sum.distinct += f.distinct
			sum.boots = max(sum.boots, f.boots)
		})
	}
	t.Logf("power cuts: three each in %d scenarios, %d distinct states, %d boots to rest at most", len(names), sum.distinct, sum.boots)
	if sum.distinct < 1_000 {
		t.Errorf("%d distinct states", sum.distinct)
	}
}
