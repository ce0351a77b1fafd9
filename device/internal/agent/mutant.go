package agent

import (
	"fmt"

	"bmsota/device/internal/otaops"
	"bmsota/esp/parttable"
)

// Mutant switches one protection off, for the tests of package device that have to notice it. No user can set one:
// device.Config has no exported field for it, and TestNothingButTestsSetsAMutant watches over the rest of device.
// Whatever a mutant does differently stands behind a.without.
type Mutant string

// The mutants.
const (
	MutantNone           Mutant = ""
	MutantSkipReadBack   Mutant = "skip read-back"   // trust what was received
	MutantSwitchFirst    Mutant = "switch first"     // pointer before bytes
	MutantKeepFailedSlot Mutant = "keep failed slot" // report, and leave the failed image bootable
	MutantConfirmFirst   Mutant = "confirm untested" // valid at once, as the first firmware did
	MutantBlindBlocks    Mutant = "blind blocks"     // take what is in the slot for the promised blocks
	MutantWholeBlocks    Mutant = "whole blocks"     // begin a block that was cut off again
	MutantCountNothing   Mutant = "count nothing"    // ask for wrong bytes again and again
	MutantOlderKeys      Mutant = "older keys"       // an image may carry keys that were given up
)

// without says whether the protection is off.
func (a *agent) without(m Mutant) bool { return a.env.Mutant == m }

// mutantSwitch is MutantSwitchFirst: the record before the bytes, with the check that ESP-IDF makes switched off.
func (a *agent) mutantSwitch() error {
	blind := a.env.Ops
	blind.Verify = func(parttable.Partition) error { return nil }
	ops, err := otaops.New(a.env.Flash, a.env.Table, a.env.Running, blind)
	if err != nil {
		return fmt.Errorf("mutant: %w", err)
	}
	return ops.Switch(a.self.target)
}
