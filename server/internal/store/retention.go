package store

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// neededAttempt is what fleet.EndedAttempt calls needed, of an attempt a.
const neededAttempt = `NOT EXISTS (SELECT 1 FROM attempts n WHERE n.device_id = a.device_id AND (n.created_at, n.id) > (a.created_at, a.id))
 OR EXISTS (SELECT 1 FROM rollouts r WHERE r.id = a.rollout_id AND r.state NOT IN ('done', 'aborted'))
 OR EXISTS (SELECT 1 FROM rollout_members m WHERE m.rollout_id = a.rollout_id AND m.device_id = a.device_id AND m.state = 'open')
 OR EXISTS (SELECT 1 FROM quarantine q WHERE q.sha256 = a.sha256 AND q.lifted_at = 0)`

func scanEnded(s scanner) (a fleet.EndedAttempt, err error) {
	err = s.Scan(&a.ID, instant{&a.EndedAt}, &a.Needed)
	return a, err
}

func (t *sqlTx) EndedAttempts(after fleet.EndedAttempt, before time.Time, limit int) ([]fleet.EndedAttempt, error) {
	return manyOf(t, scanEnded, `SELECT id, ended_at, CASE WHEN `+neededAttempt+` THEN 1 ELSE 0 END FROM attempts a
WHERE state NOT IN ('open', 'rolled_back') AND ended_at > 0 AND (ended_at, id) > ($1, $2) AND ended_at < $3 ORDER BY ended_at, id LIMIT $4`,
		millis(after.EndedAt), after.ID, millis(before), int64(limit))
}

func (t *sqlTx) DeleteAttempts(ids []string) error {
	for _, id := range ids {
		if err := t.exec(`DELETE FROM attempts WHERE id = $1`, id); err != nil {
			return err
		}
	}
	return nil
}

// PruneAudit leaves it to the trigger of the table to refuse what the log does not call pruned.
func (t *sqlTx) PruneAudit(through audit.Head) error {
	return t.exec(`DELETE FROM audit WHERE seq <= $1`, through.Seq)
}

func (t *memoryTx) EndedAttempts(after fleet.EndedAttempt, before time.Time, limit int) ([]fleet.EndedAttempt, error) {
	trim(&after.EndedAt, &before)
	byEnd := func(a, b fleet.EndedAttempt) int {
		return cmp.Or(a.EndedAt.Compare(b.EndedAt), cmp.Compare(a.ID, b.ID))
	}
	var list []fleet.EndedAttempt
	for _, a := range t.m.attempts {
		e := fleet.EndedAttempt{ID: a.ID, EndedAt: a.EndedAt}
		if a.State == fleet.AttemptOpen || a.State == fleet.AttemptRolledBack || a.EndedAt.IsZero() || !a.EndedAt.Before(before) || byEnd(e, after) <= 0 {
			continue
		}
		e.Needed = t.needed(a)
		list = append(list, e)
	}
	slices.SortFunc(list, byEnd)
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) needed(a fleet.Attempt) bool {
	newest := true
	for _, b := range t.m.attempts {
		newest = newest && (b.DeviceID != a.DeviceID || oldestFirst(b, a) <= 0)
	}
	r, isMember := t.m.rollouts[a.RolloutID]
	m, ok := t.m.members[a.RolloutID][a.DeviceID]
	q, held := t.m.quarantine[a.SHA256]
	return newest || isMember && !r.State.Ended() || ok && m.State == fleet.MemberOpen || held && q.Stands()
}

func (t *memoryTx) DeleteAttempts(ids []string) error {
	if err := t.may(); err != nil {
		return err
	}
	for _, id := range ids {
		if err := drop(t, t.m.attempts, id); err != nil {
			return err
		}
	}
	return nil
}

func (t *memoryTx) PruneAudit(through audit.Head) error {
	if err := t.may(); err != nil {
		return err
	}
	before, named, keep := t.m.audit, int64(0), 0
	for i, e := range before {
		if e.What == audit.LogPrune {
			number, _, _ := strings.Cut(e.About, ":")
			named, _ = strconv.ParseInt(number, 10, 64) // of the newest; what is no number names nothing
		}
		if e.Seq <= through.Seq {
			keep = i + 1
		}
	}
	if through.Seq > named {
		return t.conflict("the audit log is appended to only")
	}
	t.undo = append(t.undo, func() { t.m.audit = before })
	t.m.audit = before[keep:]
	return nil
}
