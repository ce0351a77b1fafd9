package store

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"bmsota/server/internal/fleet"
)

// drop deletes a row that can come back.
func drop[K comparable, V any](t *memoryTx, rows map[K]V, key K) error {
	if err := t.may(); err != nil {
		return err
	}
	if old, had := rows[key]; had {
		t.undo = append(t.undo, func() { rows[key] = old })
		delete(rows, key)
	}
	return nil
}

func (t *memoryTx) Account(name string) (fleet.Account, error) { return get(t.m.accounts, name) }

func (t *memoryTx) Accounts() ([]fleet.Account, error) {
	return sorted(t.m.accounts, func(a, b fleet.Account) int { return cmp.Compare(a.Name, b.Name) }), nil
}

func (t *memoryTx) PutAccount(a fleet.Account) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&a.CreatedAt, &a.PasswordAt)
	set(t, t.m.accounts, a.Name, a)
	return nil
}

func (t *memoryTx) DeleteAccount(name string) error { return drop(t, t.m.accounts, name) }

func (t *memoryTx) Operators() ([]fleet.Operator, error) {
	return sorted(t.m.operators, func(a, b fleet.Operator) int { return cmp.Compare(a.Name, b.Name) }), nil
}

func (t *memoryTx) DeleteOperator(name string) error { return drop(t, t.m.operators, name) }

func (t *memoryTx) Session(sha256 string) (fleet.Session, error) { return get(t.m.sessions, sha256) }

func (t *memoryTx) PutSession(s fleet.Session) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&s.CreatedAt, &s.SeenAt, &s.ExpiresAt)
	set(t, t.m.sessions, s.SHA256, s)
	return nil
}

func (t *memoryTx) DeleteSession(sha256 string) error { return drop(t, t.m.sessions, sha256) }

func (t *memoryTx) DeleteSessionsOf(account string) error {
	return t.dropSessions(func(s fleet.Session) bool { return s.Account == account })
}

func (t *memoryTx) DeleteSessionsUntil(expired time.Time) error {
	trim(&expired)
	return t.dropSessions(func(s fleet.Session) bool { return !s.ExpiresAt.After(expired) })
}

func (t *memoryTx) dropSessions(gone func(fleet.Session) bool) error {
	if err := t.may(); err != nil {
		return err
	}
	for key, s := range t.m.sessions {
		if gone(s) {
			if err := drop(t, t.m.sessions, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// facts are what a query asks of the rows beside that of d.
func (t *memoryTx) facts(d fleet.Device, now time.Time) (f fleet.Facts) {
	since := now.Add(-fleet.FailedWithin)
	trim(&since)
	var good time.Time
	for _, a := range t.m.attempts {
		if a.DeviceID == d.ID && a.State == fleet.AttemptSucceeded && a.CreatedAt.After(good) {
			good = a.CreatedAt
		}
	}
	for _, a := range t.m.attempts {
		bad := a.State == fleet.AttemptFailed || a.State == fleet.AttemptRolledBack
		f.Failed = f.Failed || a.DeviceID == d.ID && bad && !a.EndedAt.Before(since) && !good.After(a.CreatedAt)
	}
	for _, r := range t.m.releases {
		f.Released = f.Released || d.SHA256 != "" && r.SHA256 == d.SHA256 ||
			d.SHA256 == "" && r.Project == d.Status.Project && r.Chip == d.Status.Chip && r.Version == d.Version
	}
	return f
}

func (t *memoryTx) matching(q fleet.DeviceQuery) []fleet.Device {
	trim(&q.Now)
	var list []fleet.Device
	for _, d := range t.m.devices {
		if q.Matches(d, t.facts(d, q.Now)) {
			list = append(list, cloneDevice(d))
		}
	}
	return list
}

func (t *memoryTx) DevicePage(q fleet.DeviceQuery) ([]fleet.Device, error) {
	order := func(a, b fleet.DeviceMark) int {
		n := cmp.Compare(a.ID, b.ID)
		switch q.Sort {
		case fleet.SortSeen:
			n = cmp.Or(cmp.Compare(millis(a.Seen), millis(b.Seen)), n)
		case fleet.SortVersion:
			n = cmp.Or(strings.Compare(a.Version, b.Version), n)
		}
		if q.Desc != q.Back {
			return -n
		}
		return n
	}
	list := t.matching(q)
	slices.SortFunc(list, func(a, b fleet.Device) int { return order(a.Mark(), b.Mark()) })
	if q.After != nil {
		list = slices.DeleteFunc(list, func(d fleet.Device) bool { return order(d.Mark(), *q.After) <= 0 })
	}
	list = list[:min(len(list), max(q.Limit, 0))]
	if q.Back {
		slices.Reverse(list)
	}
	return list, nil
}

func (t *memoryTx) DeviceCount(q fleet.DeviceQuery) (int, error) { return len(t.matching(q)), nil }

func (t *memoryTx) DeviceTallies(now time.Time) ([]fleet.DeviceTally, error) {
	trim(&now)
	counts := make(map[fleet.DeviceTally]*fleet.DeviceTally)
	for _, d := range t.m.devices {
		if d.Revoked {
			continue
		}
		s := d.Status
		key := fleet.DeviceTally{Project: s.Project, Chip: s.Chip, Version: d.Version, SHA256: d.SHA256, Phase: s.Phase, Reason: s.Reason}
		if counts[key] == nil {
			tally := key
			counts[key] = &tally
		}
		tally := counts[key]
		tally.Count++
		for state, n := range map[fleet.State]*int{fleet.StateOnline: &tally.Online, fleet.StateStuck: &tally.Stuck,
			fleet.StateUnprotected: &tally.Unprotected, fleet.StateAway: &tally.Away} {
			if (fleet.DeviceQuery{State: state, Now: now}).Matches(d, fleet.Facts{}) {
				*n++
			}
		}
	}
	list := make([]fleet.DeviceTally, 0, len(counts))
	for _, tally := range counts {
		list = append(list, *tally)
	}
	slices.SortFunc(list, func(a, b fleet.DeviceTally) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Chip, b.Chip), cmp.Compare(a.Version, b.Version),
			cmp.Compare(a.SHA256, b.SHA256), cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Reason, b.Reason))
	})
	releases, err := t.Releases()
	return markReleased(list, releases), err
}

func (t *memoryTx) OpenTallies() ([]fleet.AttemptTally, error) {
	open, err := t.OpenAttempts()
	counts := make(map[fleet.AttemptTally]int)
	for _, a := range open {
		counts[fleet.AttemptTally{Action: a.Action, Version: a.Version, Phase: a.Phase}]++
	}
	var list []fleet.AttemptTally
	for tally, n := range counts {
		tally.Count = n
		list = append(list, tally)
	}
	slices.SortFunc(list, func(a, b fleet.AttemptTally) int {
		return cmp.Or(cmp.Compare(a.Action, b.Action), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Phase, b.Phase))
	})
	return list, err
}

func (t *memoryTx) NewestOpen(limit int) ([]fleet.Attempt, error) {
	open, err := t.OpenAttempts()
	slices.Reverse(open)
	return open[:min(len(open), max(limit, 0))], err
}

func (t *memoryTx) NewestFailed(since time.Time, limit int) ([]fleet.Attempt, error) {
	trim(&since)
	var list []fleet.Attempt
	for _, a := range t.m.attempts {
		if (a.State == fleet.AttemptFailed || a.State == fleet.AttemptRolledBack) && !a.EndedAt.Before(since) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b fleet.Attempt) int { return cmp.Or(b.EndedAt.Compare(a.EndedAt), cmp.Compare(b.ID, a.ID)) })
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) FailureTallies(since time.Time) ([]fleet.FailureTally, error) {
	bad, err := t.NewestFailed(since, len(t.m.attempts))
	counts := make(map[fleet.FailureTally]int)
	for _, a := range bad {
		counts[fleet.FailureTally{Action: a.Action, Version: a.Version, SHA256: a.SHA256, State: a.State, Reason: a.Reason}]++
	}
	var list []fleet.FailureTally
	for f, n := range counts {
		f.Count = n
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b fleet.FailureTally) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Version, b.Version), cmp.Compare(a.SHA256, b.SHA256),
			cmp.Compare(a.State, b.State), cmp.Compare(a.Reason, b.Reason))
	})
	return list, err
}

func (t *memoryTx) ReleaseTally(sha256 string) (map[fleet.AttemptState]int, error) {
	tally := make(map[fleet.AttemptState]int)
	for _, a := range t.m.attempts {
		if a.SHA256 == sha256 {
			tally[a.State]++
		}
	}
	return tally, nil
}
