package fleet

import (
	"context"
	"time"

	"bmsota/protocol"
)

// PresenceWait is how long those who come and leave are gathered.
const PresenceWait = presenceWait

// InTurn runs work as a login's password is worked on.
func InTurn(ctx context.Context, f *Fleet, work func()) error { return f.guard.inTurn(ctx, work) }

// LookAt plans once for a rollout, as the loop does.
func LookAt(ctx context.Context, f *Fleet, rollout string) error {
	now := f.cfg.Now()
	since := now.Add(-f.cfg.Silence * 2)
	f.heardSince.Store(&since)
	return f.cfg.Store.View(ctx, func(tx Tx) error {
		in, failed, err := f.input(tx, rollout, now)
		if err != nil {
			return err
		}
		Plan(in, now)
		return *failed
	})
}

// Audited is a store whose updates write the audit log, as somebody.
func Audited(s Store, by Identity, now func() time.Time) Store {
	return &auditedStore{ledger{Store: s, now: now}, by}
}

type auditedStore struct {
	ledger
	by Identity
}

func (s *auditedStore) Update(ctx context.Context, fn func(Tx) error) error {
	return s.ledger.update(ctx, s.by, fn)
}

// Knocks is how many kinds of knocks are remembered.
func Knocks(f *Fleet) int {
	f.knocks.mu.Lock()
	defer f.knocks.mu.Unlock()
	return len(f.knocks.kinds)
}

// WriteKnocks writes who was turned away, as the loop does.
func WriteKnocks(ctx context.Context, f *Fleet) error { return f.writeKnocks(ctx) }

// ChangeRows changes rows by the way of every verb.
func ChangeRows(ctx context.Context, f *Fleet, fn func(Tx) error) error {
	return f.update(ctx, theServer, fn)
}

// Unstruck has f go on remembering what a device asked with, whatever changes: the mutant of askers.
func Unstruck(f *Fleet) { f.ledger.askers = nil }

// Remembered is how many devices are remembered, and how many there may be.
func Remembered(f *Fleet) (n, limit int) {
	f.askers.mu.Lock()
	defer f.askers.mu.Unlock()
	return len(f.askers.known), maxAskers
}

// Reported says that was becomes is by what Tx.PutReports writes.
func Reported(was, is Device) bool { return reported(&was, &is) }

// FoldNow commits one status, as the committer does.
func FoldNow(ctx context.Context, f *Fleet, device string, s protocol.Status) error {
	return f.commit(ctx, []*fold{{device: device, status: s}})[0].err
}

// Kept are the rows that f keeps of a device, and whether it does.
func Kept(f *Fleet, device string) (d Device, open []Attempt, ok bool) {
	r := f.kept.of[device]
	if r == nil {
		return Device{}, nil, false
	}
	return r.device, r.open, true
}

// KeptNow is how many devices f keeps the rows of, and how many there may be.
func KeptNow(f *Fleet) (n, limit int) {
	if f.kept == nil {
		return 0, maxKept
	}
	return len(f.kept.of), maxKept
}

// KeepWhateverChanges has f go on keeping the rows that it has put, whoever puts them after it: the mutant of keptRows.
func KeepWhateverChanges(f *Fleet) { f.ledger.kept = nil }

// UnstruckLogins is Unstruck for logins.
func UnstruckLogins(f *Fleet) { f.ledger.logins = nil }

// RememberedLogins is how many logins are remembered, and how many there may be.
func RememberedLogins(f *Fleet) (n, limit int) {
	f.logins.mu.Lock()
	defer f.logins.mu.Unlock()
	return len(f.logins.known), maxLogins
}

// Plans says whether f does what goes by the clock.
func Plans(f *Fleet) bool { return f.plans() }

// Unfence leaves out what keeps a planner that slept from writing.
func Unfence(f *Fleet) { f.share.unfenced = true }

// Mute has f keep from the planner what it has sent late.
func Mute(f *Fleet) { f.share.mute = true }

// Planned is a change that goes by the clock.
func Planned(ctx context.Context, f *Fleet, fn func(Tx) error) error { return f.planned(ctx, fn) }

// UpdateAs is a change by somebody, as a verb makes it.
func UpdateAs(ctx context.Context, f *Fleet, by Identity, fn func(Tx) error) error {
	return f.update(ctx, by, fn)
}

// Quarantined puts an image into quarantine, as a halt does.
func Quarantined(ctx context.Context, f *Fleet, sha256 string) error {
	err := f.update(ctx, theServer, func(tx Tx) error {
		return tx.PutQuarantine(Quarantine{SHA256: sha256, Why: "it is bad", Since: f.cfg.Now()})
	})
	f.catalog.forget()
	return err
}

// TokenDigest is what is kept of a secret.
func TokenDigest(secret string) string { return tokenDigest(secret) }
