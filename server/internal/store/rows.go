package store

import (
	"encoding/json"
	"fmt"
	"time"

	"bmsota/server/internal/fleet"
)

// scanner is *sql.Row and *sql.Rows.
type scanner interface{ Scan(...any) error }

// millis is how a time stands in a row: milliseconds since 1970, 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// instant scans a column of milliseconds into a time.
type instant struct{ t *time.Time }

func (i instant) Scan(v any) error {
	ms, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a time is %T, not an integer", v)
	}
	*i.t = fromMillis(ms)
	return nil
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func scanRelease(s scanner) (r fleet.Release, err error) {
	err = s.Scan(&r.SHA256, &r.Project, &r.Chip, &r.Version, &r.MinVersion, &r.Description, &r.ForceUpdate, &r.Size,
		&r.SecureVersion, instant{&r.BuildDate}, &r.Manifest, &r.Cosignatures, instant{&r.PublishedAt}, &r.PublishedBy, &r.Withdrawn)
	return r, err
}

func releaseArgs(r fleet.Release) []any {
	return []any{r.SHA256, r.Project, r.Chip, r.Version, r.MinVersion, r.Description, r.ForceUpdate, r.Size,
		int64(r.SecureVersion), millis(r.BuildDate), r.Manifest, r.Cosignatures, millis(r.PublishedAt), r.PublishedBy, r.Withdrawn}
}

func scanChannel(s scanner) (c fleet.Channel, err error) {
	err = s.Scan(&c.Project, &c.Chip, &c.Name, &c.SHA256, instant{&c.SetAt}, &c.SetBy)
	return c, err
}

func channelArgs(c fleet.Channel) []any {
	return []any{c.Project, c.Chip, c.Name, c.SHA256, millis(c.SetAt), c.SetBy}
}

func scanDevice(s scanner) (fleet.Device, error) {
	var row deviceRow
	if err := s.Scan(row.fields()...); err != nil {
		return fleet.Device{}, err
	}
	return row.device()
}

// deviceRow is a device as its columns are.
type deviceRow struct {
	d                        fleet.Device
	phase                    string // a copy of what stands in status, for the database to look at
	seq                      int64
	oldBoots, status, labels []byte
	doubts                   []byte
}

func (r *deviceRow) fields() []any {
	d := &r.d
	return []any{&d.ID, &d.TokenSHA256, instant{&d.EnrolledAt}, &d.Revoked, &d.Channel, &d.Online, instant{&d.FirstSeen},
		instant{&d.LastSeen}, instant{&d.PhaseSince}, &r.phase, &d.Version, &d.SHA256, &d.PreviousVersion, &d.Boot, &r.seq,
		&r.oldBoots, &r.status, &r.labels, &r.doubts, &d.CertificateSHA256, instant{&d.CertificateEnds}}
}

func (r *deviceRow) device() (fleet.Device, error) {
	d := r.d
	d.Seq = uint64(r.seq) // the pattern of bits: a device may count beyond what an integer column holds
	for _, part := range []struct {
		what string
		json []byte
		to   any
	}{{"old boots", r.oldBoots, &d.OldBoots}, {"status", r.status, &d.Status}, {"labels", r.labels, &d.Labels}, {"doubts", r.doubts, &d.Doubts}} {
		if len(part.json) == 0 {
			continue
		}
		if err := json.Unmarshal(part.json, part.to); err != nil {
			return d, fmt.Errorf("%s of device %q: %w", part.what, d.ID, err)
		}
	}
	return d, nil
}

func deviceArgs(d fleet.Device) ([]any, error) {
	var oldBoots, status, labels, doubts []byte
	var err error
	if len(d.OldBoots) > 0 {
		if oldBoots, err = json.Marshal(d.OldBoots); err != nil {
			return nil, fmt.Errorf("device %q: encode boots: %w", d.ID, err)
		}
	}
	if status, err = statusOf(&d); err != nil {
		return nil, err
	}
	if len(d.Labels) > 0 {
		if labels, err = json.Marshal(d.Labels); err != nil {
			return nil, fmt.Errorf("device %q: encode labels: %w", d.ID, err)
		}
	}
	if !d.Doubts.Zero() {
		if doubts, err = json.Marshal(d.Doubts); err != nil {
			return nil, fmt.Errorf("device %q: encode doubts: %w", d.ID, err)
		}
	}
	s := d.Status
	return []any{d.ID, d.TokenSHA256, millis(d.EnrolledAt), d.Revoked, d.Channel, d.Online, millis(d.FirstSeen),
		millis(d.LastSeen), millis(d.PhaseSince), string(d.Status.Phase), d.Version, d.SHA256, d.PreviousVersion, d.Boot,
		int64(d.Seq), string(oldBoots), string(status), string(labels), string(doubts), d.CertificateSHA256, millis(d.CertificateEnds),
		s.Project, s.Chip, string(s.Reason), s.RollbackProtected && s.Signed, d.Suspect()}, nil
}

// statusOf is the status of a device as its row has it.
func statusOf(d *fleet.Device) ([]byte, error) {
	if d.Status.Phase == "" {
		return nil, nil
	}
	status, err := json.Marshal(&d.Status)
	if err != nil {
		return nil, fmt.Errorf("device %q: encode status: %w", d.ID, err)
	}
	return status, nil
}

func scanAttempt(s scanner) (a fleet.Attempt, err error) {
	err = s.Scan(&a.ID, &a.CommandID, &a.DeviceID, &a.Action, &a.Force, &a.Version, &a.SHA256, instant{&a.CreatedAt},
		&a.CreatedBy, instant{&a.ExpiresAt}, &a.State, &a.Phase, &a.Reason, &a.Message, instant{&a.UpdatedAt}, instant{&a.EndedAt},
		&a.RolloutID)
	return a, err
}

func attemptArgs(a fleet.Attempt) []any {
	return []any{a.ID, a.CommandID, a.DeviceID, string(a.Action), a.Force, a.Version, a.SHA256, millis(a.CreatedAt),
		a.CreatedBy, millis(a.ExpiresAt), string(a.State), string(a.Phase), string(a.Reason), a.Message, millis(a.UpdatedAt),
		millis(a.EndedAt), a.RolloutID}
}

func scanKey(s scanner) (k fleet.ProjectKey, err error) {
	err = s.Scan(&k.Project, &k.Kind, &k.Sequence, &k.Key, &k.FromVersion, &k.Threshold, &k.Retired, instant{&k.AddedAt}, &k.AddedBy)
	return k, err
}

func scanOperator(s scanner) (o fleet.Operator, err error) {
	err = s.Scan(&o.Name, &o.TokenSHA256, instant{&o.CreatedAt}, &o.Revoked, &o.Role, instant{&o.ExpiresAt})
	return o, err
}
