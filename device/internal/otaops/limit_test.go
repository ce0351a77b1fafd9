package otaops_test

import (
	"errors"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/esp/otadata"
)

// What no application can mend: the bootloader rewrites the record of a trial
// itself, and no CRC covers the state. Torn, that write can leave a state
// without a name, which boots and is never on trial; an image that crashes
// before it can look at its record then stays. Cuts between operations are
// harmless. The test holds the size of the hole: if it closes, the promises of
// this package can be raised.
func TestTornWriteOfTheBootloaderIsTheRemainingHole(t *testing.T) {
	w := world{t, layouts["two"], 0, crashing}
	for _, st := range []otadata.State{otadata.New, otadata.PendingVerify} {
		base := w.flash([2]otadata.Record{rec(1, otadata.Valid), rec(2, st)})
		cut := func(op int, how norflash.Cut) bool {
			f := base.Clone()
			f.CutAt(op, how)
			if _, err := bootloader.Boot(f, bootloader.Config{Rollback: true}); !errors.Is(err, norflash.ErrPowerCut) {
				t.Fatal(err)
			}
			f.PowerOn()
			if w.recovers(f) {
				return true
			}
			if r := records(t, f)[1]; r.State.Named() && r.State != otadata.Undefined {
				t.Errorf("%s, operation %d: stuck with state %s", st, op, r.State)
			}
			return false
		}
		const seeds = 1000
		stuck := 0
		for op := 1; op <= 2; op++ {
			for _, how := range []norflash.Cut{norflash.Before, norflash.After} {
				if !cut(op, how) {
					t.Errorf("%s, operation %d: a clean cut sticks", st, op)
				}
			}
			for seed := range uint64(seeds) {
				if !cut(op, norflash.Torn(seed)) {
					stuck++
				}
			}
		}
		t.Logf("%s: %d of %d torn writes stick", st, stuck, 2*seeds)
		if stuck == 0 || stuck > 2*seeds/10 {
			t.Errorf("%s: %d of %d torn writes stick", st, stuck, 2*seeds)
		}
	}
}
