package device

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
)

func TestFatesAreDealtBySharesAndSeed(t *testing.T) {
	mix := Mix{FateGood: 0.9, FateCrash: 0.05, FateSilent: 0.05}
	first, err := mix.deal(1000, 7)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := mix.deal(1000, 7)
	other, _ := mix.deal(1000, 8)
	counts := map[Fate]int{}
	same, moved := true, false
	for i, f := range first {
		counts[f]++
		same = same && f == again[i]
		moved = moved || f != other[i]
	}
	if counts[FateCrash] != 50 || counts[FateSilent] != 50 || counts[FateGood] != 900 || !same || !moved {
		t.Errorf("dealt %v; the same seed the same: %v; another seed another: %v", counts, same, moved)
	}
	for name, m := range map[string]Mix{"unknown": {"odd": 1}, "negative": {FateCrash: -1}} {
		if _, err := m.deal(10, 1); err == nil {
			t.Errorf("%s: dealt", name)
		}
	}
	if all, err := (Mix{}).deal(3, 1); err != nil || all[0] != FateGood {
		t.Errorf("no mix: %v %v", all, err)
	}
}

// TestFateMeetsNewImagesOnly: what a board was made with runs well; a new image meets the board's fate on its trial, and
// the old one runs again after it, by itself or after somebody has pulled the plug.
func TestFateMeetsNewImagesOnly(t *testing.T) {
	for fate, want := range map[Fate]string{FateCrash: "rolled_back:crash", FateHang: "rolled_back:watchdog", FateBrownout: "rolled_back:brownout", FateSilent: "rolled_back:power_loss"} {
		t.Run(string(fate), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, next := image(t, "1.0.0"), image(t, "1.1.0")
				b := newBench(t, layout(old, ""), serve(t, release(t, next, nil), next), func(c *Config) { c.Fate = fate })
				b.on()
				b.settle(time.Minute)
				b.wantRunning(old)
				b.hub.order(update)
				b.settle(time.Hour)
				if fate == FateSilent {
					if last := b.hub.last(); last.Phase != protocol.PhaseRebooting {
						t.Errorf("a silent board said %s", last.Phase)
					}
					b.board.Reset(PowerOn)
					b.settle(time.Minute)
				}
				if !strings.Contains(b.hub.phases(), want) {
					t.Errorf("the board said %s, want %s", b.hub.phases(), want)
				}
				b.wantRunning(old)
				if err := b.off(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
