package protocol

import (
	"fmt"
	"strings"
	"time"
)

// Device is what decides whether a release fits: what a device knows of itself, and what a server knows from the
// device's last status. Empty fields are unknown and hold nothing back.
type Device struct {
	Chip, Project string
	Version       string // of the image that runs
	ImageSHA256   string // of the image that runs
	SlotSize      int64  // bytes; 0 = unknown
	SecureVersion uint32 // security floor
	Quarantined   func(sha256 string) bool
}

// Release is what a release says of itself, from its manifest or, where there is none, from version.json.
type Release struct {
	Chip, Project string
	Version       string
	SHA256        string
	Size          int64
	SecureVersion uint32
	MinVersion    string
}

// Refuse decides whether d may install r: nil when it may. force skips the comparison of versions, and nothing else.
// The order is fixed, so that two implementations name the same reason: already running, chip, project, size,
// security floor, quarantine, intermediate version, version.
func Refuse(d Device, r Release, force bool) *Refusal {
	switch {
	case r.SHA256 != "" && r.SHA256 == d.ImageSHA256:
		return refuse(ReasonUpToDate, "%s", r.Version)
	case r.Chip != "" && d.Chip != "" && r.Chip != d.Chip:
		return refuse(ReasonWrongChip, "release is for %s, this device is an %s", r.Chip, d.Chip)
	case r.Project != "" && d.Project != "" && r.Project != d.Project:
		return refuse(ReasonWrongProject, "release is of %q, this device runs %q", r.Project, d.Project)
	case d.SlotSize > 0 && r.Size > d.SlotSize:
		return refuse(ReasonTooBig, "%d bytes, the slot has %d (%d too many)", r.Size, d.SlotSize, r.Size-d.SlotSize)
	case r.SecureVersion < d.SecureVersion:
		return refuse(ReasonSecurityFloor, "secure version %d, the floor is %d", r.SecureVersion, d.SecureVersion)
	case d.Quarantined != nil && r.SHA256 != "" && d.Quarantined(r.SHA256):
		return refuse(ReasonQuarantined, "%s", r.Version)
	case r.MinVersion != "" && Older(d.Version, r.MinVersion):
		return refuse(ReasonNeedsIntermediate, "%s needs at least %s, %s runs", r.Version, r.MinVersion, d.Version)
	case force || Newer(r.Version, d.Version):
		return nil
	case r.Version == d.Version && r.SHA256 == "":
		return refuse(ReasonUpToDate, "%s", r.Version)
	case r.Version == d.Version:
		return refuse(ReasonSameVersion, "%s", r.Version)
	}
	return refuse(ReasonDowngrade, "%s is not newer than %s", r.Version, d.Version)
}

// Gate holds the conditions under which a device may start an update. The zero value holds nothing back.
type Gate struct {
	MinSOCPct        float64 `json:"min_soc_pct,omitempty"`
	NotWhileCharging bool    `json:"not_while_charging,omitempty"`
	Window           string  `json:"window,omitempty"` // "HH:MM-HH:MM" in device-local time; may pass midnight
}

// Blocked says which condition holds the update back at now (device-local), ReasonNone when none does.
func (g Gate) Blocked(b *Battery, now time.Time) Reason {
	needs := g.MinSOCPct > 0 || g.NotWhileCharging
	switch {
	case needs && b == nil:
		return ReasonNoReading
	case g.NotWhileCharging && b.Charging:
		return ReasonCharging
	// Written so that a reading of NaN blocks.
	case g.MinSOCPct > 0 && !(b.SOCPct >= g.MinSOCPct):
		return ReasonLowSOC
	}
	if g.Window == "" {
		return ReasonNone
	}
	from, to, err := parseWindow(g.Window)
	if err != nil {
		return ReasonOutsideWindow
	}
	minute := now.Hour()*60 + now.Minute()
	inside := minute >= from && minute < to
	if from > to {
		inside = minute >= from || minute < to
	}
	if !inside {
		return ReasonOutsideWindow
	}
	return ReasonNone
}

// Check refuses a gate that could never open or that cannot be read.
func (g Gate) Check() error {
	if !(g.MinSOCPct >= 0 && g.MinSOCPct <= 100) {
		return fmt.Errorf("gate: min_soc_pct of %v is not within 0 to 100", g.MinSOCPct)
	}
	if g.Window != "" {
		if _, _, err := parseWindow(g.Window); err != nil {
			return err
		}
	}
	return nil
}

func parseWindow(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(s, "-")
	start, err1 := time.Parse("15:04", a)
	end, err2 := time.Parse("15:04", b)
	from, to = start.Hour()*60+start.Minute(), end.Hour()*60+end.Minute()
	if !ok || err1 != nil || err2 != nil || from == to {
		return 0, 0, fmt.Errorf("gate: window %q is not HH:MM-HH:MM", s)
	}
	return from, to, nil
}
