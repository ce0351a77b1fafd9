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
	Device  string // empty: all firmware of the original tool, which names itself nowhere
	From    string // version it ran when first heard of
	Status  protocol.Status
	Online  bool
	Started bool // it has taken the command up
	Verdict Verdict
	Reason  protocol.Reason

	answered bool // a status carried the command's id
	moved    bool // it has been seen in the middle of an update
	installs bool // a check has become an update
	loaded   bool // it has been seen with a download behind it or under way
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
	// What the broker kept of firmware that names itself nowhere may be years old.
	if r.Err != nil || r.Device == "" && (!t.all || r.Retained) {
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
	row.loaded = row.loaded || row.moved && s.Phase.Updating() && s.Phase != protocol.PhaseChecking
	if row.Device == "" {
		row.Verdict, row.Reason = t.judgeOriginal(row, s)
	} else {
		row.Verdict, row.Reason = t.judge(row, s, answers)
	}
	return row
}

// judgeOriginal decides for firmware of the original tool, whose statuses carry no id, no reason and no more than seven
// codes: what it says after it began to move is taken for the answer. After a restart it says idle.
func (t *Track) judgeOriginal(row *Row, s protocol.Status) (Verdict, protocol.Reason) {
	if t.Command.Action == protocol.ActionStatus {
		return Done, ""
	}
	switch s.Phase {
	case protocol.PhaseConfirmed:
		if row.moved {
			return Done, ""
		}
	case protocol.PhaseFailed, protocol.PhaseRolledBack:
		if t.Command.Action == protocol.ActionRollback && s.Phase == protocol.PhaseRolledBack {
			return Done, protocol.ReasonOperator
		}
		if row.moved {
			return Failed, protocol.ReasonOther
		}
	case protocol.PhaseIdle:
		switch {
		case t.Command.Action == protocol.ActionCheck && protocol.Newer(s.AvailableVersion, s.CurrentVersion):
			return Done, protocol.ReasonUpdateExists
		case t.Command.Action == protocol.ActionCheck, row.moved && !row.loaded:
			return Done, protocol.ReasonUpToDate
		case row.loaded && s.CurrentVersion != row.From:
			return Done, ""
		}
	}
	return Pending, ""
}

// Answered says whether somebody is there to wait for: a device that names itself, or other firmware that has taken the
// command up.
func (t *Track) Answered() bool {
	for id, r := range t.devices {
		if id != "" || r.Started {
			return true
		}
	}
	return false
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

// Ended says whether every device followed has a verdict. With everybody asked and nobody heard of it is false. Firmware
// that names itself nowhere and has not taken the command up is not waited for beside devices that do.
func (t *Track) Ended() bool {
	waited := 0
	for id, r := range t.devices {
		if id == "" && !r.Started && len(t.devices) > 1 {
			continue
		}
		if r.Verdict == Pending {
			return false
		}
		waited++
	}
	return waited > 0
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
