package device

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/device/internal/norflash"
	"bmsota/device/internal/otaops"
	"bmsota/esp/appimage"
	"bmsota/protocol"
)

// broken is a flash with one sector that does not do what it is told, until it is mended.
type broken struct {
	otaops.Flash
	sector int64
	fault  sectorFault
	well   *bool
}

type sectorFault string

const (
	eraseFails    sectorFault = "erase fails"
	eraseIdle     sectorFault = "erase does nothing"
	programFails  sectorFault = "program fails"
	programIdle   sectorFault = "program does nothing"
	programLosses sectorFault = "program loses bits"
)

var errSector = errors.New("the chip does not answer")

func (b broken) hit(off, length int64) bool {
	return !*b.well && off < b.sector+norflash.SectorSize && off+length > b.sector
}

func (b broken) Erase(off, length int64) error {
	switch {
	case b.hit(off, length) && b.fault == eraseFails:
		return errSector
	case b.hit(off, length) && b.fault == eraseIdle:
		return nil
	}
	return b.Flash.Erase(off, length)
}

func (b broken) Program(off int64, p []byte) error {
	switch {
	case !b.hit(off, int64(len(p))):
	case b.fault == programFails:
		return errSector
	case b.fault == programIdle:
		return nil
	case b.fault == programLosses:
		// The first byte keeps what it was to lose.
		return b.Flash.Program(off, append([]byte{p[0] | 0x0F}, p[1:]...))
	}
	return b.Flash.Program(off, p)
}

// TestSectorThatDoesNotDoWhatItIsTold: an update over any sector that fails, with or without a word, fails whole and says
// so, and the board goes on running what it ran. With the sector well again the order goes through.
func TestSectorThatDoesNotDoWhatItIsTold(t *testing.T) {
	small := func(o *appimage.BuildOptions) { o.Size = 16 << 10 }
	old, next := image(t, "1.0.0", small), image(t, "1.1.0", small)
	data, slot := int64(0x10000), int64(0x30000)
	failed := 0
	for _, sector := range []int64{data, data + 4096, slot, slot + 4096, slot + 2*4096, slot + 3*4096} {
		for _, fault := range []sectorFault{eraseFails, eraseIdle, programFails, programIdle, programLosses} {
			what := fmt.Sprintf("%s at 0x%x", fault, sector)
			synctest.Test(t, func(t *testing.T) {
				l := layout(old, "")
				l.Table, l.Size = componentTable(), 1<<20
				well := false
				b := newBench(t, l, serve(t, release(t, next, nil), next), func(c *Config) {
					c.wrap = func(f otaops.Flash) otaops.Flash { return broken{f, sector, fault, &well} }
				})
				if fault == eraseIdle {
					// There is something to erase.
					if err := b.flash().Program(sector+128, make([]byte, 64)); err != nil {
						t.Fatal(err)
					}
				}
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(update)
				b.settle(20 * time.Minute)
				last := b.hub.last()
				switch {
				case last.CurrentVersion == "1.1.0" && !last.RollbackPending && last.Phase == protocol.PhaseIdle:
				case last.CurrentVersion == "1.0.0" && !last.RollbackPending && (last.Phase == protocol.PhaseFailed || strings.Contains(b.hub.phases(), string(protocol.ReasonFlash))):
					failed++
				default:
					t.Errorf("%s: runs %s, %s:%s: %s %v", what, last.CurrentVersion, last.Phase, last.Reason, b.hub.phases(), b.boots)
				}
				b.off()
				well = true
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(`{"action":"update","force":true}`)
				b.settle(20 * time.Minute)
				if last := b.hub.last(); last.CurrentVersion != "1.1.0" || last.RollbackPending {
					t.Errorf("%s, mended: runs %s: %s %v", what, last.CurrentVersion, b.hub.phases(), b.boots)
				}
				b.off()
			})
		}
	}
	if failed < 15 {
		t.Errorf("only %d of the faults made an update fail: they do not bite", failed)
	}
}

// TestDamagedBlockInTheSlotIsFetchedAnew: what an earlier life left is believed by its digest only. The mutant that does
// not ask for it installs nothing.
func TestDamagedBlockInTheSlotIsFetchedAnew(t *testing.T) {
	old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
	for mutant, want := range map[agent.Mutant]string{agent.MutantNone: "1.1.0", agent.MutantBlindBlocks: "1.0.0"} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			b := newBench(t, layout(old, trusting(t, key)), serve(t, release(t, next, key), next), func(c *Config) { c.mutant = mutant })
			damaged := append([]byte(nil), next[:128<<10]...)
			damaged[70<<10] ^= 1
			put(t, b.flash(), 0x1A0000, damaged)
			updated(b, 10*time.Minute)
			if got := b.hub.last().CurrentVersion; got != want {
				t.Errorf("mutant %q: runs %s, want %s: %s", mutant, got, want, b.hub.phases())
			}
		})
	}
}

// TestWrongBytesAreAskedForThreeTimes, and then they are what the server has. The mutant that does not count asks on.
func TestWrongBytesAreAskedForThreeTimes(t *testing.T) {
	old, next := image(t, "1.0.0"), image(t, "1.1.0")
	for mutant, most := range map[agent.Mutant]bool{agent.MutantNone: true, agent.MutantCountNothing: false} {
		synctest.Test(t, func(t *testing.T) {
			key := newKey(t)
			s := serve(t, release(t, next, key), next)
			wrong := append([]byte(nil), next...)
			wrong[40<<10] ^= 1
			s.files[sha(next)+".bin"] = wrong
			b := newBench(t, layout(old, trusting(t, key)), s, func(c *Config) { c.mutant = mutant })
			updated(b, 10*time.Minute)
			if asked := s.log(".bin"); (asked <= 3) != most {
				t.Errorf("mutant %q: asked %d times: %s", mutant, asked, b.hub.phases())
			}
		})
	}
}
