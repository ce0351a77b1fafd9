package protocol

import (
	"encoding/json"
	"fmt"
	"time"

	"bmsota/strictjson"
)

// MaxCommand is the largest command in bytes. esp-mqtt's buffer is 1024 bytes and holds the topic as well.
const MaxCommand = 512

// Action is what a command asks for.
type Action string

// The four actions of the original tool.
const (
	ActionCheck    Action = "check"    // look whether there is a release, and say so
	ActionUpdate   Action = "update"   // install the release offered
	ActionRollback Action = "rollback" // go back to the other slot
	ActionStatus   Action = "status"   // say the status now
)

// Command is one order from server or operator to devices. It is a wish, not an event: delivered twice, late or
// retained it must end in the same state, so a device compares it with what it runs.
type Command struct {
	Action Action
	// Force skips the version comparison of an update, and nothing else.
	Force bool
	// ID names the command in the statuses that answer it; at most 64 bytes, may be empty.
	ID string
	// Version is the release wanted; empty means whatever the server offers. For a rollback it is the version to go
	// back to, which makes a retained rollback harmless once it is done.
	Version string
	// ExpiresAt is the moment after which a device refuses the command; zero means never.
	ExpiresAt time.Time
}

// ParseCommand reads a command. The error is a *Refusal with the reason a device answers.
func ParseCommand(b []byte) (Command, error) {
	if len(b) > MaxCommand {
		return Command{}, refuse(ReasonOversize, "%d bytes", len(b))
	}
	r, err := strictjson.Parse(b)
	if err != nil {
		return Command{}, refuse(ReasonBadCommand, "%v", err)
	}
	var c Command
	var expires string
	r.Text("action", 32, (*string)(&c.Action))
	r.Take("force", &c.Force)
	r.Text("id", 64, &c.ID)
	r.Text("version", 64, &c.Version)
	r.Text("expires_at", 40, &expires)
	if r.Err() != nil {
		return Command{}, refuse(ReasonBadCommand, "%v", r.Err())
	}
	if expires != "" {
		var ok bool
		if c.ExpiresAt, ok = parseTime(expires); !ok {
			return Command{}, refuse(ReasonBadCommand, "expires_at is not an RFC 3339 time")
		}
	}
	switch c.Action {
	case ActionCheck, ActionUpdate, ActionRollback, ActionStatus:
		return c, nil
	case "":
		return Command{}, refuse(ReasonBadCommand, "no action")
	}
	return Command{}, refuse(ReasonUnknownAction, "%q", string(c.Action))
}

// parseTime takes RFC 3339 times and no others. time.Parse is more generous: an hour of one digit, a comma before the
// fraction, an offset of 24 hours or 60 minutes. The letters T and Z are upper case.
func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || s[13] != ':' || s[19] == ',' {
		return time.Time{}, false
	}
	if zone := s[len(s)-5:]; s[len(s)-1] != 'Z' && (zone > "24" || zone[3] > '5') {
		return time.Time{}, false
	}
	return t, true
}

// Append writes the command as the original tool spells it: action and force first, the rest only when set. It fails
// when the result would be larger than MaxCommand.
func (c Command) Append(dst []byte) ([]byte, error) {
	wire := struct {
		Action    Action `json:"action"`
		Force     bool   `json:"force"`
		ID        string `json:"id,omitempty"`
		Version   string `json:"version,omitempty"`
		ExpiresAt string `json:"expires_at,omitempty"`
	}{Action: c.Action, Force: c.Force, ID: c.ID, Version: c.Version}
	if !c.ExpiresAt.IsZero() {
		wire.ExpiresAt = c.ExpiresAt.UTC().Format(time.RFC3339)
	}
	b, err := json.Marshal(wire)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if len(b) > MaxCommand {
		return nil, refuse(ReasonOversize, "%d bytes", len(b))
	}
	return append(dst, b...), nil
}

// Expired says whether the command's time has passed at now.
func (c Command) Expired(now time.Time) bool { return !c.ExpiresAt.IsZero() && now.After(c.ExpiresAt) }

// ClockSet says whether a device's clock can be right. A chip that was not told the time counts from 1970.
func ClockSet(now time.Time) bool { return now.Year() >= 2000 }

// Same says whether other asks for what c asks for: one order, come twice.
func (c Command) Same(other Command) bool {
	return c.Action == other.Action &&
		(other.ID != "" && other.ID == c.ID || other.Version == c.Version && other.Force == c.Force)
}
