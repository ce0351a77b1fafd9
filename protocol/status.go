package protocol

import (
	"encoding/json"
	"errors"
	"fmt"

	"bmsota/strictjson"
)

// MaxStatus is the largest status in bytes that a server reads.
const MaxStatus = 4096

// Status is what a device says of itself. The first nine fields are the original tool's, always present and in its
// order; the rest is left out when it is empty.
type Status struct {
	TimestampUS      int64  `json:"timestamp_us"` // the device's clock, microseconds since 1970
	UptimeSec        int64  `json:"uptime_sec"`
	Status           Code   `json:"status"`
	ProgressPct      int    `json:"progress_pct"` // 0 to 100
	Message          string `json:"message"`      // for people
	CurrentVersion   string `json:"current_version"`
	AvailableVersion string `json:"available_version"`
	RollbackPending  bool   `json:"rollback_pending"` // this boot is a trial
	FreeHeap         int64  `json:"free_heap"`        // bytes

	DeviceID  string `json:"device_id,omitempty"`
	Protocol  int    `json:"protocol,omitempty"`
	BootID    string `json:"boot_id,omitempty"` // new at every boot
	Seq       uint64 `json:"seq,omitempty"`     // counts up within a boot, from 1
	Phase     Phase  `json:"phase,omitempty"`
	Reason    Reason `json:"reason,omitempty"` // for programs
	CommandID string `json:"command_id,omitempty"`

	Slot              string `json:"slot,omitempty"`      // the partition that runs, "ota_0"
	SlotSize          int64  `json:"slot_size,omitempty"` // bytes of the slot an update would go to
	Chip              string `json:"chip,omitempty"`
	Project           string `json:"project,omitempty"`
	SecureVersion     uint32 `json:"secure_version,omitempty"` // security floor
	ImageSHA256       string `json:"image_sha256,omitempty"`   // digest of the image file that runs
	FailedSHA256      string `json:"failed_sha256,omitempty"`  // with rolled_back: digest of the image that failed
	RollbackProtected bool   `json:"rollback_protected"`       // bootloader and app undo a bad image
	Signed            bool   `json:"signed_only"`              // holds a key and takes signed releases only
	ResetReason       string `json:"reset_reason,omitempty"`

	BytesDone        int64 `json:"bytes_done,omitempty"`
	BytesTotal       int64 `json:"bytes_total,omitempty"`
	Retries          int   `json:"retries,omitempty"`
	MinFreeHeap      int64 `json:"min_free_heap,omitempty"`
	LargestFreeBlock int64 `json:"largest_free_block,omitempty"`

	Battery *Battery `json:"battery,omitempty"`
}

// Battery is what the monitor reads from the pack. Compare two with Equal: == would compare pointers.
type Battery struct {
	SOCPct       float64 `json:"soc_pct"`        // state of charge, 0 to 100
	PackCurrentA float64 `json:"pack_current_a"` // positive while charging
	Charging     bool    `json:"charging"`
	// Of the coldest and the warmest cell, or of whatever the monitor measures nearest to them; alike where it has one
	// sensor, nil where it has none. What counts is within LowestTempC and HighestTempC.
	TempMinC *float64 `json:"temp_min_c,omitempty"`
	TempMaxC *float64 `json:"temp_max_c,omitempty"`
}

// What is below or above is no temperature of a cell in a device that still talks: a sensor is broken, or not there.
const (
	LowestTempC  = -100.0
	HighestTempC = 200.0
)

// Equal says whether two readings are the same.
func (b Battery) Equal(o Battery) bool {
	alike := func(x, y *float64) bool { return x == y || x != nil && y != nil && *x == *y }
	return b.SOCPct == o.SOCPct && b.PackCurrentA == o.PackCurrentA && b.Charging == o.Charging &&
		alike(b.TempMinC, o.TempMinC) && alike(b.TempMaxC, o.TempMaxC)
}

// Clone is a copy that shares no memory with b.
func (b Battery) Clone() Battery {
	for _, t := range []**float64{&b.TempMinC, &b.TempMaxC} {
		if *t != nil {
			*t = new(**t)
		}
	}
	return b
}

// Temperatures are those of the cells for people, "18.5 to 21.0 °C"; empty where none is measured.
func (b Battery) Temperatures() string {
	degrees := func(c *float64) string {
		if c == nil {
			return "?"
		}
		return fmt.Sprintf("%.1f", *c)
	}
	if b.TempMinC == nil && b.TempMaxC == nil {
		return ""
	}
	return degrees(b.TempMinC) + " to " + degrees(b.TempMaxC) + " °C"
}

// isTemperature says whether c is one; NaN is none.
func isTemperature(c float64) bool { return c >= LowestTempC && c <= HighestTempC }

// Append writes the status as one JSON object.
func (s Status) Append(dst []byte) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	if len(b) > MaxStatus {
		return nil, fmt.Errorf("encode status: %d bytes, the limit is %d", len(b), MaxStatus)
	}
	return append(dst, b...), nil
}

// ParseStatus reads a status from the network. A status of the original tool has no phase: it gets the one its code
// stands for. An unknown phase is an error, an unknown reason becomes ReasonOther.
func ParseStatus(b []byte) (Status, error) {
	if len(b) > MaxStatus {
		return Status{}, fmt.Errorf("status is %d bytes, the limit is %d", len(b), MaxStatus)
	}
	r, err := strictjson.Parse(b)
	if err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	var s Status
	r.Take("timestamp_us", &s.TimestampUS)
	r.Take("uptime_sec", &s.UptimeSec)
	r.Take("status", (*int)(&s.Status))
	r.Take("progress_pct", &s.ProgressPct)
	r.Text("message", 512, &s.Message)
	r.Text("current_version", 64, &s.CurrentVersion)
	r.Text("available_version", 64, &s.AvailableVersion)
	r.Take("rollback_pending", &s.RollbackPending)
	r.Take("free_heap", &s.FreeHeap)
	r.Text("device_id", MaxDeviceID, &s.DeviceID)
	r.Take("protocol", &s.Protocol)
	r.Text("boot_id", 64, &s.BootID)
	r.Take("seq", &s.Seq)
	r.Text("phase", 32, (*string)(&s.Phase))
	r.Text("reason", 64, (*string)(&s.Reason))
	r.Text("command_id", 64, &s.CommandID)
	r.Text("slot", 16, &s.Slot)
	r.Take("slot_size", &s.SlotSize)
	r.Text("chip", 32, &s.Chip)
	r.Text("project", 32, &s.Project)
	r.Take("secure_version", &s.SecureVersion)
	r.Text("image_sha256", 64, &s.ImageSHA256)
	r.Text("failed_sha256", 64, &s.FailedSHA256)
	r.Take("rollback_protected", &s.RollbackProtected)
	r.Take("signed_only", &s.Signed)
	r.Text("reset_reason", 32, &s.ResetReason)
	r.Take("bytes_done", &s.BytesDone)
	r.Take("bytes_total", &s.BytesTotal)
	r.Take("retries", &s.Retries)
	r.Take("min_free_heap", &s.MinFreeHeap)
	r.Take("largest_free_block", &s.LargestFreeBlock)
	r.Sub("battery", func(sub *strictjson.Object) {
		s.Battery = &Battery{}
		sub.Take("soc_pct", &s.Battery.SOCPct)
		sub.Take("pack_current_a", &s.Battery.PackCurrentA)
		sub.Take("charging", &s.Battery.Charging)
		sub.Take("temp_min_c", &s.Battery.TempMinC)
		sub.Take("temp_max_c", &s.Battery.TempMaxC)
	})
	if r.Err() != nil {
		return Status{}, fmt.Errorf("status: %w", r.Err())
	}
	return s, s.check()
}

// check holds the ranges that a fold relies on, and gives a status of the original tool its phase.
func (s *Status) check() error {
	if _, ok := fields9[s.Status]; !ok {
		return fmt.Errorf("status: code %d is none of 0 to 6", s.Status)
	}
	if s.Phase == "" {
		s.Phase = fields9[s.Status]
	}
	if _, ok := phases[s.Phase]; !ok {
		return fmt.Errorf("status: unknown phase %q", s.Phase)
	}
	if s.ProgressPct < 0 || s.ProgressPct > 100 {
		return fmt.Errorf("status: progress of %d %%", s.ProgressPct)
	}
	if s.BytesDone < 0 || s.BytesTotal < 0 || s.SlotSize < 0 || s.Retries < 0 || s.UptimeSec < 0 {
		return errors.New("status: a negative count")
	}
	if s.ImageSHA256 != "" && !isDigest(s.ImageSHA256) || s.FailedSHA256 != "" && !isDigest(s.FailedSHA256) {
		return errors.New("status: a digest is not 64 lower-case hex digits")
	}
	if b := s.Battery; b != nil {
		for _, c := range []*float64{b.TempMinC, b.TempMaxC} {
			if c != nil && !isTemperature(*c) {
				return fmt.Errorf("status: %v °C is no temperature of a battery", *c)
			}
		}
	}
	if s.DeviceID != "" {
		if err := CheckDeviceID(s.DeviceID); err != nil {
			return fmt.Errorf("status: %w", err)
		}
	}
	s.Reason = s.Reason.Known()
	return nil
}

// fields9 gives the phase that a status with only the original nine fields stands for.
var fields9 = map[Code]Phase{
	CodeIdle: PhaseIdle, CodeChecking: PhaseChecking, CodeDownloading: PhaseDownloading, CodeInstalling: PhaseVerifying,
	CodeSuccess: PhaseConfirmed, CodeFailed: PhaseFailed, CodeRollback: PhaseRolledBack,
}

func isDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
