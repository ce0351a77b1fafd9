package fleet

import (
	"slices"
	"strings"
	"time"

	"bmsota/protocol"
)

// maxOldBoots is how many earlier boots of a device are remembered, to tell a late status from a new boot.
const maxOldBoots = 8

// Effects says what Apply did.
type Effects struct {
	// Dropped is why the status did not become the device's: "duplicate", "late" or "offline" (the broker's word is
	// not the device's). Empty when it was taken.
	Dropped string
	// Device and Attempt say which of the two changed and must be put.
	Device, Attempt bool
	// Ended is set when the attempt reached a final state by this status.
	Ended bool
	// Unlawful names a step that protocol.May does not allow ("idle > confirmed"). The status was taken all the same:
	// what a device says it did is a fact, and the table may be older than the device.
	Unlawful string
}

// Apply folds one status into what is known of its device and of the device's open attempt (nil when there is none; the
// caller gives the one the status names, or else the newest). It changes nothing that it was given.
//
// (boot_id, seq) orders the statuses: a device row never goes back to an earlier one, and a boot that was seen before
// the present one is over for good. A late status still counts for the attempt it names by id, because there the furthest
// phase and the end are facts whatever their order; so a shuffled and repeated sequence ends where the sorted one does.
// Statuses without a boot id are taken as they come, but not twice in a row. "offline" is the broker's word and changes
// nothing but Online.
func Apply(d Device, a *Attempt, s protocol.Status, now time.Time) (Device, *Attempt, Effects) {
	if s.Phase == protocol.PhaseOffline {
		e := Effects{Dropped: "offline"}
		if d.Online && !slices.Contains(d.OldBoots, s.BootID) {
			d.Online, e.Device = false, true
		}
		return d, a, e
	}
	var e Effects
	sameBoot := s.BootID == d.Boot
	switch {
	case s.BootID == "" || sameBoot && s.Seq == 0:
		if sameStatus(s, d.Status) {
			e.Dropped = "duplicate"
			return d, a, e
		}
	case sameBoot && s.Seq == d.Seq:
		e.Dropped = "duplicate"
		return d, a, e
	case sameBoot && s.Seq < d.Seq, slices.Contains(d.OldBoots, s.BootID):
		e.Dropped = "late"
		if a != nil && s.CommandID == a.CommandID {
			a = advance(a, s, now, &e)
		}
		return d, a, e
	}
	if from := d.Status.Phase; from != "" && !protocol.May(from, s.Phase, s.BootID == "" || sameBoot) {
		e.Unlawful = string(from) + " > " + string(s.Phase)
	}
	e.Device = true
	d = take(d, s, now)
	return d, advance(a, s, now, &e), e
}

// take makes s the device's last status.
func take(d Device, s protocol.Status, now time.Time) Device {
	if s.BootID != "" {
		if s.BootID != d.Boot && d.Boot != "" {
			old := append(slices.Clone(d.OldBoots), d.Boot)
			d.OldBoots = old[max(0, len(old)-maxOldBoots):]
		}
		if s.BootID != d.Boot {
			d.Boot = strings.Clone(s.BootID) // outlives this status, of whose text it is a part
		}
		d.Seq = s.Seq
	}
	if s.Phase != d.Status.Phase {
		d.PhaseSince = now
	}
	if d.FirstSeen.IsZero() {
		d.FirstSeen = now
	}
	d.LastSeen, d.Online, d.Status = now, true, s

	switch {
	case onTrialStill(s):
		return d // not yet what the device runs
	case s.Phase == protocol.PhaseRolledBack:
		d.PreviousVersion = "" // the failed slot is erased, there is nothing to go back to
	case d.Version != "" && (s.CurrentVersion != d.Version || s.ImageSHA256 != "" && d.SHA256 != "" && s.ImageSHA256 != d.SHA256):
		d.PreviousVersion = strings.Clone(d.Version) // as the boot
	}
	d.Version, d.SHA256 = s.CurrentVersion, s.ImageSHA256
	return d
}

// onTrialStill says that what s reports is not, or not yet, what the device runs.
func onTrialStill(s protocol.Status) bool {
	return s.Phase == protocol.PhaseTrial || s.RollbackPending && s.Phase != protocol.PhaseConfirmed || s.CurrentVersion == ""
}

// advance folds a status into an open attempt. Every step is a maximum or an end, so that the order in which the
// statuses of one command arrive does not matter.
func advance(a *Attempt, s protocol.Status, now time.Time, e *Effects) *Attempt {
	if a == nil || a.State != AttemptOpen {
		return a
	}
	next := *a
	if state, ok := outcome(a, s); ok {
		next.State, next.EndedAt = state, now
		next.Reason, next.Message = why(s)
		if next.Message == "" {
			next.Message = s.Reason.Text()
		}
		next.Phase = endPhase(state, s.Phase)
		e.Ended = true
	} else if concerns(a, s) && s.Phase.Updating() {
		if rank(s.Phase) > rank(a.Phase) {
			next.Phase = s.Phase
		}
		if e.Dropped == "" && s.Reason != a.Reason {
			next.Reason, next.Message = why(s)
		}
	}
	if next == *a {
		return a
	}
	next.UpdatedAt = now
	e.Attempt = true
	return &next
}

// why is what a status says of the reason, apart from the rest of its text, as the boot.
func why(s protocol.Status) (protocol.Reason, string) {
	return protocol.Reason(strings.Clone(string(s.Reason))), strings.Clone(s.Message)
}

// concerns says whether a status is about the attempt. A status that names no command is, for firmware that never
// does; other firmware looks for releases by itself, and only from the download on that is the same thing.
func concerns(a *Attempt, s protocol.Status) bool {
	if s.CommandID != "" {
		return s.CommandID == a.CommandID
	}
	return s.BootID == "" || rank(s.Phase) >= rank(protocol.PhaseDownloading)
}

// outcome says how the attempt ended, if s ends it.
func outcome(a *Attempt, s protocol.Status) (state AttemptState, ok bool) {
	if reached(a, s) {
		return AttemptSucceeded, true
	}
	mine := s.CommandID != "" && s.CommandID == a.CommandID
	switch {
	case mine:
	case s.CommandID != "":
		return "", false
	// Firmware that knows command ids but lost this one (a restart) speaks of an attempt it has taken up, or of the image
	// that the attempt was for. Anything else is about what came before.
	case s.BootID != "" && a.Phase == "" && (s.FailedSHA256 == "" || s.FailedSHA256 != a.SHA256):
		return "", false
	}
	rollback := a.Action == protocol.ActionRollback
	switch s.Phase {
	case protocol.PhaseConfirmed:
		if rollback && a.Version != "" && !runs(s, a.Version) || !rollback && onTheWay(a, s) {
			return "", false
		}
		return AttemptSucceeded, true
	case protocol.PhaseRolledBack:
		switch {
		case rollback:
			return AttemptSucceeded, true
		case a.Phase == "" && s.FailedSHA256 != "" && a.SHA256 != "" && s.FailedSHA256 != a.SHA256:
			return "", false // the device tells of what came before, in the name of what has not begun
		}
		return AttemptRolledBack, true
	case protocol.PhaseFailed:
		return AttemptFailed, s.Reason != protocol.ReasonBusy
	case protocol.PhaseRefused:
		return answered(a, s.Reason, AttemptRefused)
	case protocol.PhaseIdle, protocol.PhaseChecking:
		if s.Reason == protocol.ReasonUpToDate && onTheWay(a, s) {
			return "", false // up to date with something else
		}
		if mine || s.BootID == "" {
			return answered(a, s.Reason, "")
		}
	}
	return "", false
}

// onTheWay says whether the device runs another image than the one asked for, which is then a step on the way to it and
// not the end. The digests decide; where one is not known, as with firmware that reports none, an older version does.
func onTheWay(a *Attempt, s protocol.Status) bool {
	if a.Version == "" {
		return false
	}
	if a.SHA256 != "" && s.ImageSHA256 != "" {
		return s.ImageSHA256 != a.SHA256
	}
	_, proper := protocol.ParseVersion(s.CurrentVersion)
	return proper && protocol.Newer(a.Version, s.CurrentVersion)
}

// runs says whether the device says that it runs version.
func runs(s protocol.Status, version string) bool {
	return canonical(s.CurrentVersion) == canonical(version)
}

// answered is the end that a device's answer to a command makes, or rest where the reason says nothing special.
func answered(a *Attempt, r protocol.Reason, rest AttemptState) (AttemptState, bool) {
	switch r {
	case protocol.ReasonUpToDate:
		if a.Action == protocol.ActionUpdate {
			return AttemptSucceeded, true
		}
		return AttemptRefused, true
	case protocol.ReasonExpired:
		return AttemptExpired, true
	case protocol.ReasonBusy:
		return "", false // it will be sent again
	case protocol.ReasonBadCommand, protocol.ReasonOversize, protocol.ReasonUnknownAction, protocol.ReasonStaleCommand,
		protocol.ReasonNoRollback, protocol.ReasonNotPublished, protocol.ReasonVersionMissing:
		return AttemptRefused, true
	}
	return rest, rest != ""
}

// reached says whether the device, by its own word and outside a trial, runs what the attempt wanted. It makes up for
// a lost "confirmed".
func reached(a *Attempt, s protocol.Status) bool {
	quiet := s.Phase == protocol.PhaseConfirmed || s.Phase == protocol.PhaseIdle && !s.RollbackPending
	if a.Action == protocol.ActionRollback {
		return (quiet || s.Phase == protocol.PhaseRolledBack) && a.Version != "" && runs(s, a.Version)
	}
	if a.SHA256 != "" && s.ImageSHA256 != "" {
		return quiet && s.ImageSHA256 == a.SHA256
	}
	return quiet && !a.Force && a.Version != "" && s.ImageSHA256 == "" && runs(s, a.Version)
}

// endPhase is the furthest phase of an attempt that ended as state while the device said phase.
func endPhase(state AttemptState, phase protocol.Phase) protocol.Phase {
	switch {
	case phase.Ended():
		return phase
	case state == AttemptSucceeded:
		return protocol.PhaseConfirmed
	}
	return protocol.PhaseRefused
}

// rank orders the phases as a good update passes them; a phase not yet reported is below all.
func rank(p protocol.Phase) int { return slices.Index(phaseOrder, p) }

var phaseOrder = protocol.Phases()

// sameStatus compares two statuses field by field.
func sameStatus(a, b protocol.Status) bool {
	if (a.Battery == nil) != (b.Battery == nil) || a.Battery != nil && !a.Battery.Equal(*b.Battery) {
		return false
	}
	a.Battery, b.Battery = nil, nil
	return a == b
}
