package deploy

import (
	"slices"
	"strings"

	"bmsota/protocol"
)

// Verdict is how a command ended on one device.
type Verdict string

// The verdicts. Pending is none yet.
const (
	Pending Verdict = ""
	Done    Verdict = "done"    // confirmed, or there already
	Refused Verdict = "refused" // policy or verification on the device
	Failed  Verdict = "failed"  // failed or rolled back
	Silent  Verdict = "silent"  // nothing heard of it in time
	Waiting Verdict = "waiting" // held back by a gate, or offline: the command stays with the broker
)

// Track follows one command on the devices it was sent to. It is a plain reducer: feed it every report, ask it for
// the rows. Not safe for concurrent use.
type Track struct {
	Command protocol.Command
	devices map[string]*Row
	all     bool
}

// Row is one device under a command.
type Row struct {
	Device  string
	From    string // version it ran when first heard of
	Status  protocol.Status
	Online  bool
	Started bool // it has taken the command up
	Verdict Verdict
	Reason  protocol.Reason

	answered bool // a status carried the command's id
	moved    bool // it has been seen in the middle of an update
	installs bool // a check has become an update
}

// NewTrack follows cmd on the named devices; with none named, on every device that is online or takes it up.
func NewTrack(cmd protocol.Command, devices ...string) *Track {
	t := &Track{Command: cmd, devices: make(map[string]*Row), all: len(devices) == 0}
	for _, id := range devices {
		t.devices[id] = &Row{Device: id}
	}
	return t
}

// Apply takes in a report and returns the row it changed, nil when it concerns no device followed.
func (t *Track) Apply(r Report) *Row {
	if r.Err != nil || r.Device == "" {
		return nil
	}
	row := t.devices[r.Device]
	s := r.Status
	if row == nil {
		// A device that was offline all along is not waited for when everybody was asked.
		if !t.all || s.Phase == protocol.PhaseOffline {
			return nil
		}
		row = &Row{Device: r.Device}
		t.devices[r.Device] = row
	}
	if row.Verdict != Pending {
		return nil // the story is over; what the device says now belongs to another
	}
	row.Online = s.Phase != protocol.PhaseOffline
	if !row.Online {
		return row // it may be rebooting; what it was doing stays on the row
	}
	if row.From == "" {
		row.From = s.CurrentVersion
	}
	row.Status = s
	if r.Retained {
		return row
	}
	answers := s.CommandID == t.Command.ID
	row.answered = row.answered || answers && s.CommandID != ""
	// A trial, or a step that names another command, is the story before this one.
	row.moved = row.moved || s.Phase.Updating() && s.Phase != protocol.PhaseTrial && (answers || s.CommandID == "")
	row.Started = row.answered || row.moved
	row.Verdict, row.Reason = t.judge(row, s, answers)
	return row
}

// judge decides whether s ends the command. After a reboot a device no longer knows the command's id, so once it has
// started, any end counts.
func (t *Track) judge(row *Row, s protocol.Status, answers bool) (Verdict, protocol.Reason) {
	switch t.Command.Action {
	case protocol.ActionStatus:
		return Done, s.Reason
	case protocol.ActionCheck:
		// A check that finds a release with force_update installs it, and then ends as an update does.
		if row.answered && s.Phase.Updating() && s.Phase != protocol.PhaseChecking {
			row.installs = true
		}
		if row.installs {
			break
		}
		if row.Started && !s.Phase.Updating() && answers {
			if s.Phase == protocol.PhaseFailed {
				return Failed, s.Reason
			}
			return Done, s.Reason
		}
		return Pending, ""
	}
	if !row.Started {
		return Pending, ""
	}
	switch s.Phase {
	case protocol.PhaseConfirmed:
		if !row.moved {
			return Pending, "" // the end of an earlier order: a device takes up the next one after that
		}
		return Done, s.Reason
	case protocol.PhaseRolledBack:
		if t.Command.Action == protocol.ActionRollback && s.Reason == protocol.ReasonOperator {
			return Done, s.Reason
		}
		if !row.moved {
			return Pending, "" // likewise
		}
		return Failed, s.Reason
	case protocol.PhaseFailed:
		return Failed, s.Reason
	case protocol.PhaseRefused:
		return Refused, s.Reason
	}
	if answers && !s.Phase.Updating() {
		switch s.Reason {
		case protocol.ReasonUpToDate:
			return Done, s.Reason
		case protocol.ReasonBadCommand, protocol.ReasonOversize, protocol.ReasonUnknownAction, protocol.ReasonExpired,
			protocol.ReasonStaleCommand, protocol.ReasonBusy, protocol.ReasonNoRollback, protocol.ReasonNotPublished,
			protocol.ReasonVersionMissing:
			return Refused, s.Reason
		}
	}
	return Pending, ""
}

// Rows lists the devices by id.
func (t *Track) Rows() []Row {
	rows := make([]Row, 0, len(t.devices))
	for _, r := range t.devices {
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Device, b.Device) })
	return rows
}

// Ended says whether every device followed has a verdict. With everybody asked and nobody heard of it is false.
func (t *Track) Ended() bool {
	for _, r := range t.devices {
		if r.Verdict == Pending {
			return false
		}
	}
	return len(t.devices) > 0
}

// Expire gives the devices that have no verdict the one that time gives them: Waiting for those that hold the command
// back for a reason they named or are offline, Silent for the others.
func (t *Track) Expire() {
	for _, r := range t.devices {
		switch {
		case r.Verdict != Pending:
		case r.Status.Phase == protocol.PhaseWaiting, !r.Online && !r.Started:
			r.Verdict, r.Reason = Waiting, r.Status.Reason
		default:
			r.Verdict, r.Reason = Silent, protocol.ReasonSilent
		}
	}
}
