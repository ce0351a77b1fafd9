package device

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/protocol"
)

// pendingErased watches the application erase the record of a trial while it still counts.
type pendingErased struct {
	otaops.Flash
	seen func(rec otadata.Record)
}

func (p pendingErased) Erase(off, length int64) error {
	if off >= 0x10000 && off < 0x12000 {
		var raw [otadata.RecordSize]byte
		if _, err := p.ReadAt(raw[:], off); err != nil {
			return err
		}
		rec, err := otadata.ParseRecord(raw[:])
		if err != nil {
			return err
		}
		p.seen(rec)
	}
	return p.Flash.Erase(off, length)
}

// TestGivenUpTrialIsNeverErasedWhileItCounts: an erase that the power cuts short can turn PENDING into a state that
// boots without a trial.
func TestGivenUpTrialIsNeverErasedWhileItCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0", trial(appimage.BehaviourUnhealthy))
		erased, counted := 0, 0
		b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, release(t, next, nil), next), func(c *Config) {
			c.wrap = func(f otaops.Flash) otaops.Flash {
				return pendingErased{f, func(rec otadata.Record) {
					erased++
					if rec.Usable() && rec.State == otadata.PendingVerify {
						counted++
					}
				}}
			}
		})
		updated(b, 10*time.Minute)
		if erased == 0 || counted != 0 {
			t.Errorf("%d of %d erased records were those of a trial", counted, erased)
		}
		if !strings.Contains(b.hub.phases(), "rolled_back:bms_silent") {
			t.Error(b.hub.phases())
		}
	})
}

// stuckRecords is flash whose record sectors do not erase.
type stuckRecords struct {
	otaops.Flash
	stuck func() bool
}

func (s stuckRecords) Erase(off, length int64) error {
	if off >= 0x10000 && off < 0x12000 && s.stuck() {
		return fmt.Errorf("flash: erase of 0x%x failed", off)
	}
	return s.Flash.Erase(off, length)
}

// TestWhatComesRightBeforeTheDeadlineCounts: the last thing to show comes after the last look at the battery, in time.
func TestWhatComesRightBeforeTheDeadlineCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := image(t, "1.1.0")
		b := newBench(t, layout(image(t, "1.0.0"), `,"health":{"deadline_s":20,"bms_frames":1}`), serve(t, release(t, next, nil), next),
			func(cfg *Config) { cfg.Timing.Frame = 15 * time.Second })
		b.on()
		b.settle(5 * time.Second)
		trial := make(chan struct{}, 1)
		b.board.cfg.OnBoot = func(string, ResetReason) {
			b.hub.drop()
			trial <- struct{}{}
		}
		b.hub.order(update)
		<-trial
		b.settle(18 * time.Second)
		b.hub.up()
		b.settle(time.Minute)
		b.wantRunning(next)
		if last := b.hub.last(); last.RollbackPending || last.CurrentVersion != "1.1.0" {
			t.Errorf("in the end %s of %s, on trial: %v", last.Phase, last.CurrentVersion, last.RollbackPending)
		}
		b.off()
	})
}

// TestConfirmedIsNotSaidBeforeItIsInFlash: words last.
func TestConfirmedIsNotSaidBeforeItIsInFlash(t *testing.T) {
	for _, heals := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			next := image(t, "1.1.0")
			var stuck atomic.Bool // the board's goroutine reads it
			b := newBench(t, layout(image(t, "1.0.0"), ""), serve(t, release(t, next, nil), next), func(c *Config) {
				c.wrap = func(f otaops.Flash) otaops.Flash { return stuckRecords{f, stuck.Load} }
				c.OnBoot = func(p string, _ ResetReason) { stuck.Store(p == "ota_1") }
			})
			b.on()
			b.settle(5 * time.Second)
			b.hub.order(update)
			b.settle(time.Minute)
			if last := b.hub.last(); last.Phase != protocol.PhaseTrial || !last.RollbackPending {
				t.Errorf("an image that cannot be confirmed is %s, pending %v: %s", last.Phase, last.RollbackPending, b.hub.phases())
			}
			if heals {
				stuck.Store(false)
			}
			b.settle(10 * time.Minute)
			last := b.hub.last()
			if heals && (last.Phase != protocol.PhaseIdle || last.RollbackPending || records(t, b.flash())[1].State != otadata.Valid) {
				t.Errorf("when the flash is well again: %s", b.hub.phases())
			}
			if !heals && (last.CurrentVersion != "1.0.0" || strings.Contains(b.hub.phases(), "confirmed")) {
				t.Errorf("runs %s: %s", last.CurrentVersion, b.hub.phases())
			}
			b.off()
		})
	}
}

// Both records name the slot that runs, as nothing but a stray bit leaves them. ESP-IDF would mark the image as failed and boot it
// by the other record, not on trial any more: a board that is not healthy would keep it for good, and say that it had gone back.
func TestAnImageIsNotGivenUpForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running := image(t, "1.0.0", trial(appimage.BehaviourUnhealthy))
		b := newBench(t, layout(running, ""), serve(t, release(t, running, nil), running))
		put(t, b.flash(), 0x10000, otadata.Append(nil, [2]otadata.Record{otadata.NewRecord(1, otadata.Valid), otadata.NewRecord(3, otadata.New)}))
		b.on()
		b.settle(time.Hour)
		b.off()
		if len(b.boots) != 1 {
			t.Errorf("boots %v: %s", b.boots, b.hub.phases())
		}
		last := b.hub.last()
		if !last.RollbackPending || !slices.ContainsFunc(b.hub.all(), func(s protocol.Status) bool { return strings.Contains(s.Message, "no other image to go back to") }) {
			t.Errorf("phase %s, on trial %v: %s", last.Phase, last.RollbackPending, b.hub.phases())
		}
	})
}
