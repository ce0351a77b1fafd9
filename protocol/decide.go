package protocol

import (
	"fmt"
	"math"
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
	MaxCurrentA      float64 `json:"max_current_a,omitempty"` // through the pack in either direction; 0 = any
	// Of the coldest and of the warmest cell; nil = any, because 0 °C is a limit.
	MinTempC *float64 `json:"min_temp_c,omitempty"`
	MaxTempC *float64 `json:"max_temp_c,omitempty"`
	Window   string   `json:"window,omitempty"` // "HH:MM-HH:MM" in device-local time; may pass midnight
}

// MaxGateCurrentA is the largest limit of current in ampere that makes sense.
const MaxGateCurrentA = 10_000

// Blocked says which condition holds the update back at now (device-local), ReasonNone when none does. A condition on
// something that b does not say holds it back.
func (g Gate) Blocked(b *Battery, now time.Time) Reason {
	needs := g.MinSOCPct > 0 || g.NotWhileCharging || g.MaxCurrentA > 0 || g.MinTempC != nil || g.MaxTempC != nil
	measured := func(c *float64) bool { return c != nil && isTemperature(*c) }
	switch {
	case needs && b == nil, g.MinTempC != nil && !measured(b.TempMinC), g.MaxTempC != nil && !measured(b.TempMaxC):
		return ReasonNoReading
	case g.NotWhileCharging && b.Charging:
		return ReasonCharging
	// Written so that a reading of NaN blocks.
	case g.MinSOCPct > 0 && !(b.SOCPct >= g.MinSOCPct):
		return ReasonLowSOC
	case g.MaxCurrentA > 0 && !(math.Abs(b.PackCurrentA) <= g.MaxCurrentA):
		return ReasonHighCurrent
	case g.MinTempC != nil && *b.TempMinC < *g.MinTempC:
		return ReasonTooCold
	case g.MaxTempC != nil && *b.TempMaxC > *g.MaxTempC:
		return ReasonTooHot
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
	if !(g.MaxCurrentA >= 0 && g.MaxCurrentA <= MaxGateCurrentA) {
		return fmt.Errorf("gate: max_current_a of %v is not within 0 to %d", g.MaxCurrentA, MaxGateCurrentA)
	}
	low, high := LowestTempC, HighestTempC
	if g.MinTempC != nil {
		low = *g.MinTempC
	}
	if g.MaxTempC != nil {
		high = *g.MaxTempC
	}
	if !(isTemperature(low) && isTemperature(high) && low <= high) {
		return fmt.Errorf("gate: no battery is within %v to %v °C (min_temp_c, max_temp_c)", low, high)
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
