package agent

import (
	"fmt"

	"bmsota/device/internal/otaops"
	"bmsota/esp/parttable"
)

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
