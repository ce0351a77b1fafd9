package device

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
)

// in makes a sweep of another table: same files, same images.
func in(t *testing.T, table string, next []byte, final func(old, next []byte) []byte) (*sweep, *trace) {
	t.Helper()
	key, old := newKey(t), image(t, "1.0.0")
	f := release(t, next, key)
	l := layout(old, trusting(t, key))
	l.Table = tableOf(t, table)
	sw := &sweep{order: update, layout: l, old: old, next: next, final: final(old, next), metadataOnly: true, tears: 10,
		server: func() *server { return serve(t, f, next) }, trouble: func(s string) { t.Error(s) }}
	return sw, sw.record(t, nil)
}

func TestPowerCutSweepOfOtherLayouts(t *testing.T) {
	for name, table := range map[string]string{"factory": factoryTable, "three slots": threeSlots, "encrypted": encrypted} {
		t.Run(name, func(t *testing.T) {
			sw, tr := in(t, table, image(t, "1.1.0"), toNew)
			sw.report(t, tr)
			updated := tr.forks[len(tr.forks)-1]
			t.Run("undone", func(t *testing.T) {
				sw, tr := in(t, table, image(t, "1.1.0", trial(appimage.BehaviourUnhealthy)), toOld)
				sw.report(t, tr)
			})
			if name == "factory" {
				// The slot that the records ask for is damaged, the board falls back to its factory application and the
				// order brings the image back.
				t.Run("fallen back", func(t *testing.T) {
					damaged := updated.Clone()
					put(t, damaged, 0x110000+30<<10, []byte{1, 2, 3})
					sw := *sw
					sw.trouble = func(s string) { t.Error(s) }
					sw.report(t, sw.record(t, damaged))
				})
				return
			}
			t.Run("rolled back by order", func(t *testing.T) {
				sw := *sw
				sw.order, sw.final = `{"action":"rollback","version":"1.0.0"}`, sw.old
				sw.trouble = func(s string) { t.Error(s) }
				sw.report(t, sw.record(t, updated))
			})
		})
	}
}

// TestPowerCutSweepOfARollbackPastAnOlderImage: three slots, a release in each, and back by one in the same boot.
func TestPowerCutSweepOfARollbackPastAnOlderImage(t *testing.T) {
	sw, _ := in(t, threeSlots, image(t, "1.2.0"), toNew)
	before, tr := image(t, "1.1.0"), &trace{}
	sw.layout.OTAConfig = fmt.Appendf(nil, otaConfig, "")
	sw.old, sw.final = before, before
	sw.order = `{"action":"rollback","version":"1.1.0"}`
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, sw.layout, &server{files: map[string][]byte{}})
		b.on()
		b.settle(5 * time.Second)
		b.offer(before, update)
		b.offer(sw.next, update)
		b.wantRunning(sw.next)
		tr.of(b.flash())
		b.hub.order(sw.order)
		b.settle(5 * time.Minute)
		b.off()
		b.wantRunning(before)
		tr.forks = append(tr.forks, b.flash().Clone())
	})
	sw.report(t, tr)
}

// TestPowerCutSweepOfTheSecurityFloor: VALID first, then the eFuse. A cut between the two must not leave a board whose
// only proven image is below its floor, nor one whose floor stays down.
func TestPowerCutSweepOfTheSecurityFloor(t *testing.T) {
	secure := func(o *appimage.BuildOptions) { o.SecureVersion = 2 }
	sw, _ := sweepOf(t, image(t, "1.1.0", secure), toNew, agent.MutantNone)
	sw.metadataOnly = true
	sw.config = func(c *Config) { c.AntiRollback = true }
	tr := sw.record(t, nil)
	if fu, ok, err := readFuses(tr.forks[len(tr.forks)-1]); err != nil || !ok || fu.secure != 2 {
		t.Fatalf("the update leaves %+v, %v, %v", fu, ok, err)
	}
	sw.report(t, tr)
}

// TestPowerCutSweepWithoutRollback: a board as the first firmware was built. There is no trial to end, but an update that
// is cut still leaves the old image or the new one.
func TestPowerCutSweepWithoutRollback(t *testing.T) {
	sw, _ := sweepOf(t, image(t, "1.1.0"), toNew, agent.MutantNone)
	sw.metadataOnly = true
	sw.config = func(c *Config) { c.NoRollback = true }
	sw.report(t, sw.record(t, nil))
}

// TestPowerCutSweepInPairs cuts the power twice in one update of an image of 16 KiB: once, and again in what the board
// then does about it. All pairs of operations on metadata, and of the rest a sample of pairs; with BMSOTA_POWERCUT=long
// all pairs of all operations.
func TestPowerCutSweepInPairs(t *testing.T) {
	const seed, sample = 20, 1200
	small := func(o *appimage.BuildOptions) { o.Size = 16 << 10 }
	for _, c := range []struct {
		name  string
		next  []byte
		final func(old, next []byte) []byte
	}{
		{"good", image(t, "1.1.0", small), toNew},
		{"undone", image(t, "1.1.0", small, trial(appimage.BehaviourUnhealthy)), toOld},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			sw, tr := sweepOf(t, c.next, c.final, agent.MutantNone)
			random := rand.New(rand.NewPCG(seed, 0))
			crew, first := sw.crew(t), map[[32]byte]bool{}
			firsts, sampled := 0, 0
			for i, op := range tr.ops {
				tears := 1
				if !sw.metadata(op) && !long(t) && random.IntN(len(tr.ops)) > 12 {
					continue
				}
				tr.cuts(i, tears, func(what string, f *norflash.Flash) {
					if sum := sw.content(f); first[sum] {
						return
					} else {
						first[sum] = true
					}
					firsts++
					again := sw.record(t, f)
					for k, op := range again.ops {
						if !sw.metadata(op) && !long(t) {
							if sampled >= sample || random.IntN(len(again.ops)) > 4 {
								continue
							}
							sampled++
						}
						again.cuts(k, tears, func(then string, f *norflash.Flash) { crew.try(what+", then "+then, f) })
					}
				})
			}
			crew.finish()
			t.Logf("power cuts: %s: %d first cuts, %d pairs (%d distinct; %d second cuts in data, seed %d), %d bad, %v",
				t.Name(), firsts, crew.states, crew.distinct, sampled, seed, crew.bad, time.Since(began).Round(time.Millisecond))
			if crew.states < 2000 {
				t.Errorf("only %d pairs", crew.states)
			}
		})
	}
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
