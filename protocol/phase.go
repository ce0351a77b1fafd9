package protocol

// Phase is where a device is in an update. The table below is the only place that says what may follow what: the
// device asserts with it, the server folds with it, docs/protocol.md is checked against it.
type Phase string

// The phases, in the order of a good update.
const (
	PhaseIdle        Phase = "idle"        // nothing to do; also the first status after a connect
	PhaseChecking    Phase = "checking"    // asking the server for version.json
	PhaseWaiting     Phase = "waiting"     // a gate holds the update back; reason says which
	PhaseDownloading Phase = "downloading" // bytes into the other slot
	PhaseVerifying   Phase = "verifying"   // reading back what is in flash
	PhaseSwitching   Phase = "switching"   // writing the boot record
	PhaseRebooting   Phase = "rebooting"   // about to restart into the other slot
	PhaseTrial       Phase = "trial"       // first boot of a new image, health not yet shown
	PhaseConfirmed   Phase = "confirmed"   // healthy; the new image stays
	PhaseFailed      Phase = "failed"      // given up; the old image runs on
	PhaseRefused     Phase = "refused"     // the release is not for this device; nothing was written
	PhaseRolledBack  Phase = "rolled_back" // the old image runs again after a trial that failed
	PhaseOffline     Phase = "offline"     // the broker's word: connection lost
)

// Code is the status number of the original tool.
type Code int

// The original tool's codes.
const (
	CodeIdle Code = iota
	CodeChecking
	CodeDownloading
	CodeInstalling
	CodeSuccess
	CodeFailed
	CodeRollback
)

// phaseRow is one line of the table.
type phaseRow struct {
	code Code
	text string  // for people
	next []Phase // what may follow within the same boot; the phase itself always may
}

// phases is the table. A waiting device goes back to checking before it downloads, because the release may have
// changed while it waited.
var phases = map[Phase]phaseRow{
	PhaseIdle:        {CodeIdle, "idle", []Phase{PhaseChecking, PhaseRebooting}},
	PhaseChecking:    {CodeChecking, "checking for a firmware update", []Phase{PhaseIdle, PhaseWaiting, PhaseDownloading, PhaseRefused, PhaseFailed}},
	PhaseWaiting:     {CodeChecking, "waiting", []Phase{PhaseChecking, PhaseIdle, PhaseFailed}},
	PhaseDownloading: {CodeDownloading, "downloading firmware update", []Phase{PhaseVerifying, PhaseFailed}},
	PhaseVerifying:   {CodeInstalling, "verifying what is in flash", []Phase{PhaseSwitching, PhaseFailed}},
	PhaseSwitching:   {CodeInstalling, "switching to the new image", []Phase{PhaseRebooting, PhaseFailed}},
	PhaseRebooting:   {CodeInstalling, "restarting into the new image", nil},
	PhaseTrial:       {CodeInstalling, "new image on trial", []Phase{PhaseConfirmed, PhaseRebooting}},
	PhaseConfirmed:   {CodeSuccess, "new image confirmed", []Phase{PhaseIdle, PhaseChecking, PhaseRebooting}},
	PhaseFailed:      {CodeFailed, "update failed", []Phase{PhaseIdle, PhaseChecking, PhaseRebooting}},
	PhaseRefused:     {CodeFailed, "update refused", []Phase{PhaseIdle, PhaseChecking, PhaseRebooting}},
	PhaseRolledBack:  {CodeRollback, "rolled back to the previous image", []Phase{PhaseIdle, PhaseChecking, PhaseRebooting}},
	PhaseOffline:     {CodeIdle, "connection lost", nil},
}

// bootPhases are the phases a device may be in when it first speaks after a restart, whatever it said before: power
// can go in any phase.
var bootPhases = []Phase{PhaseIdle, PhaseTrial, PhaseRolledBack}

// Code is the status number of a phase; ok is false for a word that is no phase.
func (p Phase) Code() (code Code, ok bool) {
	row, ok := phases[p]
	return row.code, ok
}

// Text is the sentence for people where a device has nothing better to say.
func (p Phase) Text() string { return phases[p].text }

// Ended says whether an update that reached p is over.
func (p Phase) Ended() bool {
	return p == PhaseConfirmed || p == PhaseFailed || p == PhaseRefused || p == PhaseRolledBack
}

// Updating says whether a device in p is between the order and the end of an update.
func (p Phase) Updating() bool {
	switch p {
	case PhaseChecking, PhaseWaiting, PhaseDownloading, PhaseVerifying, PhaseSwitching, PhaseRebooting, PhaseTrial:
		return true
	}
	return false
}

// May says whether to may follow from. sameBoot is whether both come from one boot of the device. The broker's
// "offline" may follow everything, and is followed by what the device itself says, so it is no step of its own.
func May(from, to Phase, sameBoot bool) bool {
	if to == PhaseOffline || from == to {
		return true
	}
	options := phases[from].next
	if !sameBoot {
		options = bootPhases
	}
	for _, p := range options {
		if p == to {
			return true
		}
	}
	return false
}

// Phases lists every phase, in the order of a good update.
func Phases() []Phase {
	return []Phase{PhaseIdle, PhaseChecking, PhaseWaiting, PhaseDownloading, PhaseVerifying, PhaseSwitching,
		PhaseRebooting, PhaseTrial, PhaseConfirmed, PhaseFailed, PhaseRefused, PhaseRolledBack, PhaseOffline}
}

// Next lists what may follow p within one boot.
func (p Phase) Next() []Phase { return phases[p].next }
