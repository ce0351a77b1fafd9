package agent

import (
	"fmt"
	"net/http"
	"time"

	"bmsota/device/internal/otaops"
	"bmsota/esp/parttable"
)

// Mutant switches one protection off, for the tests of package device that have to notice it. No user can set one:
// device.Config has no exported field for it, and TestNothingButTestsSetsAMutant watches over the rest of device.
// Whatever a mutant does differently stands behind a.without.
type Mutant string

// The mutants.
const (
	MutantNone            Mutant = ""
	MutantSkipReadBack    Mutant = "skip read-back"   // trust what was received
	MutantSwitchFirst     Mutant = "switch first"     // pointer before bytes
	MutantKeepFailedSlot  Mutant = "keep failed slot" // report, and leave the failed image bootable
	MutantUnsteadyRecords Mutant = "unsteady records" // decide on what a record happened to read as
	MutantConfirmFirst    Mutant = "confirm untested" // valid at once, as the first firmware did
	MutantBlindBlocks     Mutant = "blind blocks"     // take what is in the slot for the promised blocks
	MutantWholeBlocks     Mutant = "whole blocks"     // begin a block that was cut off again
	MutantCountNothing    Mutant = "count nothing"    // ask for wrong bytes again and again
	MutantOlderKeys       Mutant = "older keys"       // an image may carry keys that were given up
	MutantSettingsKeys    Mutant = "settings' keys"   // those that the running image carries do not count
	MutantAnySigner       Mutant = "any signer"       // a key is held, and nobody has to have signed
	MutantOneSigner       Mutant = "one signer"       // whatever the threshold
	MutantBesideManifest  Mutant = "beside manifest"  // decide by what stands beside the signed facts
	MutantAnyAge          Mutant = "any age"          // of the server's answers, whoever gave them to whom
	MutantAnyNonce        Mutant = "any nonce"        // the server's answer to whatever question
	MutantAnyPath         Mutant = "any path"         // the server's answer to whatever place was asked about
	MutantAnyVersion      Mutant = "any version"      // older ones too, and without the one in between
	MutantAnyProduct      Mutant = "any product"      // for any chip, of any project, or no image at all
	MutantNoFloor         Mutant = "no floor"         // below the security floor
	MutantAnyBytes        Mutant = "any bytes"        // whatever comes, as much as comes
	MutantAnyPace         Mutant = "any pace"         // wait for a server as long as it likes
	MutantAskOnce         Mutant = "ask once"         // a server that is away ends the order
	MutantFollow          Mutant = "follow"           // redirects
	MutantOpenGate        Mutant = "open gate"        // install while a gate is closed
	MutantAnyCertificate  Mutant = "any certificate"  // of whoever answers for the server
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

// mutantWeb is MutantAnyPace, MutantFollow and MutantAnyCertificate.
func (a *agent) mutantWeb() {
	if a.web == nil {
		return
	}
	if a.without(MutantAnyPace) {
		a.web.stall, a.web.least = 24*time.Hour, 0
	}
	if a.without(MutantFollow) {
		a.web.client.CheckRedirect = nil
	}
	if t, ok := a.web.client.Transport.(*http.Transport); ok && a.without(MutantAnyCertificate) {
		t.TLSClientConfig.InsecureSkipVerify = true
	}
}
