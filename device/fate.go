package device

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"bmsota/device/internal/bootloader"
	"bmsota/esp/otadata"
)

// Fate is what a board does with any new image, whatever image it is: one that has bad soldering and one that runs an
// image built to crash look alike from afar. It is about trials alone; what was confirmed before runs well.
type Fate string

// The fates.
const (
	FateGood     Fate = "good"
	FateCrash    Fate = "crash"    // panics
	FateHang     Fate = "hang"     // until the watchdog bites
	FateBrownout Fate = "brownout" // its supply drops
	FateSilent   Fate = "silent"   // is not heard of again, until somebody resets it
)

// Fates lists them all.
func Fates() []Fate { return []Fate{FateGood, FateCrash, FateHang, FateBrownout, FateSilent} }

// Mix is how often each fate comes in a fleet, as shares of their sum.
type Mix map[Fate]float64

// deal gives each of count boards its fate: as many of each as its share says, rounded, in an order that seed decides.
// What rounding leaves over is good.
func (m Mix) deal(count int, seed uint64) ([]Fate, error) {
	sum := 0.0
	for fate, share := range m {
		if !slices.Contains(Fates(), fate) {
			return nil, fmt.Errorf("fate %.32q is none of %v", string(fate), Fates())
		}
		if !(share >= 0 && share <= 1e6) {
			return nil, fmt.Errorf("a share of %v for %s", share, fate)
		}
		sum += share
	}
	fates := make([]Fate, 0, count)
	for _, fate := range Fates()[1:] {
		for n := int(m[fate]/max(sum, 1e-300)*float64(count) + 0.5); n > 0 && len(fates) < count; n-- {
			fates = append(fates, fate)
		}
	}
	for len(fates) < count {
		fates = append(fates, FateGood)
	}
	rand.New(rand.NewPCG(seed, 0xFA7E)).Shuffle(count, func(i, j int) { fates[i], fates[j] = fates[j], fates[i] })
	return fates, nil
}

// onTrial says whether the image that has just been started is on trial.
func onTrial(res bootloader.Result) bool {
	for _, r := range res.Records {
		if r.Usable() && r.State == otadata.PendingVerify {
			return true
		}
	}
	return false
}

// suffer lives a fate on trial; done is false for one that runs the image as it is.
func (b *Board) suffer(ctx context.Context) (reset ResetReason, done bool) {
	switch b.cfg.Fate {
	case FateCrash:
		sleep(ctx, b.cfg.Timing.Crash)
		return Panic, true
	case FateHang:
		sleep(ctx, b.cfg.Timing.Watchdog)
		return Watchdog, true
	case FateBrownout:
		sleep(ctx, b.cfg.Timing.Crash)
		return Brownout, true
	case FateSilent:
		<-ctx.Done()
		return PowerOn, true
	}
	return "", false
}
