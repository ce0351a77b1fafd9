package store

import (
	"cmp"
	"slices"
	"time"

	"bmsota/server/internal/fleet"
)

func (t *memoryTx) Rollout(id string) (fleet.Rollout, error) {
	r, err := get(t.m.rollouts, id)
	if err != nil {
		return r, err
	}
	return cloneRollout(r)
}

// cloneRollout is r as a row gives it back.
func cloneRollout(r fleet.Rollout) (fleet.Rollout, error) {
	b, err := rolloutBody(r)
	if err != nil {
		return r, err
	}
	return parseRollout(b)
}

func (t *memoryTx) rolloutsWhere(want func(fleet.Rollout) bool, order func(a, b fleet.Rollout) int) ([]fleet.Rollout, error) {
	var list []fleet.Rollout
	for _, r := range t.m.rollouts {
		if want(r) {
			clone, err := cloneRollout(r)
			if err != nil {
				return nil, err
			}
			list = append(list, clone)
		}
	}
	slices.SortFunc(list, order)
	return list, nil
}

func (t *memoryTx) RolloutByKey(key string) (fleet.Rollout, error) {
	for _, r := range t.m.rollouts {
		if r.Key == key && key != "" {
			return cloneRollout(r)
		}
	}
	return fleet.Rollout{}, fleet.ErrNotFound
}

func (t *memoryTx) Rollouts() ([]fleet.Rollout, error) {
	return t.rolloutsWhere(func(fleet.Rollout) bool { return true }, func(a, b fleet.Rollout) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

func (t *memoryTx) RolloutsToTend() ([]fleet.Rollout, error) {
	return t.rolloutsWhere(func(r fleet.Rollout) bool {
		if r.State == fleet.RolloutRunning {
			return true
		}
		for _, m := range t.m.members[r.ID] {
			if m.State == fleet.MemberOpen {
				return true
			}
		}
		return false
	}, func(a, b fleet.Rollout) int {
		return cmp.Or(cmp.Compare(b.Policy.Priority, a.Policy.Priority), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

func (t *memoryTx) PutRollout(r fleet.Rollout) error {
	if err := t.may(); err != nil {
		return err
	}
	if t.m.rollouts[r.ID].Revision != r.Revision {
		return t.conflict("rollout %q was changed by another", r.ID)
	}
	if other, err := t.RolloutByKey(r.Key); err == nil && other.ID != r.ID {
		return t.conflict("two rollouts of one request")
	}
	r.Revision++
	clone, err := cloneRollout(r)
	if err != nil {
		return err
	}
	set(t, t.m.rollouts, r.ID, clone)
	return nil
}

func (t *memoryTx) Member(rollout, device string) (fleet.Member, error) {
	return get(t.m.members[rollout], device)
}

func (t *memoryTx) MemberCounts(rollout string) (map[fleet.MemberState]int, error) {
	counts := make(map[fleet.MemberState]int)
	for _, m := range t.m.members[rollout] {
		counts[m.State]++
	}
	return counts, nil
}

func (t *memoryTx) Members(rollout string, state fleet.MemberState, after, limit int) ([]fleet.Member, error) {
	list := t.membersWhere(rollout, func(m fleet.Member) bool { return m.Rank > after && (state == "" || m.State == state) })
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) membersWhere(rollout string, want func(fleet.Member) bool) []fleet.Member {
	var list []fleet.Member
	for _, m := range t.m.members[rollout] {
		if want(m) {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b fleet.Member) int { return cmp.Compare(a.Rank, b.Rank) })
	return list
}

func (t *memoryTx) MemberCountsBetween(rollout string, from, below int) (map[fleet.MemberState]int, error) {
	counts := make(map[fleet.MemberState]int)
	for _, m := range t.m.members[rollout] {
		if m.Rank >= from && m.Rank < below {
			counts[m.State]++
		}
	}
	return counts, nil
}

func (t *memoryTx) AwayMembers(rollout string, below int, before time.Time, limit int) ([]fleet.Member, error) {
	list := t.membersWhere(rollout, func(m fleet.Member) bool {
		d := t.m.devices[m.DeviceID]
		return m.State == fleet.MemberPending && m.Rank < below && m.Attempts == 0 && !d.Online && !d.Revoked &&
			millis(d.LastSeen) < millis(before) && !d.Status.Phase.Updating()
	})
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) TriedAndGone(rollout string) ([]fleet.Candidate, error) {
	var list []fleet.Candidate
	for _, m := range t.membersWhere(rollout, func(m fleet.Member) bool { return m.State == fleet.MemberPending && m.Tries > 0 }) {
		if d := cloneDevice(t.m.devices[m.DeviceID]); !d.Online {
			list = append(list, fleet.Candidate{Member: m, Device: &d})
		}
	}
	return list, nil
}

func (t *memoryTx) Doubted(rollout string) ([]fleet.Candidate, error) {
	var list []fleet.Candidate
	for _, m := range t.membersWhere(rollout, func(m fleet.Member) bool { return m.State != fleet.MemberOpen && m.State != fleet.MemberSkipped }) {
		if d := cloneDevice(t.m.devices[m.DeviceID]); d.Suspect() != (m.State == fleet.MemberSuspect) {
			list = append(list, fleet.Candidate{Member: m, Device: &d})
		}
	}
	return list, nil
}

func (t *memoryTx) Candidates(rollout string, priority, after, below, limit int, away bool) ([]fleet.Candidate, error) {
	members := t.membersWhere(rollout, func(m fleet.Member) bool {
		d := t.m.devices[m.DeviceID]
		return m.State == fleet.MemberPending && m.Rank > after && m.Rank < below && (d.Online || d.Revoked || away)
	})
	var list []fleet.Candidate
	for _, m := range members[:min(len(members), max(limit, 0))] {
		d := cloneDevice(t.m.devices[m.DeviceID])
		c := fleet.Candidate{Member: m, Device: &d, Busy: len(t.m.open[m.DeviceID]) > 0}
		for id, other := range t.m.members {
			r, o := t.m.rollouts[id], other[m.DeviceID]
			c.Reserved = c.Reserved || r.State == fleet.RolloutRunning && r.Policy.Priority > priority &&
				(o.State == fleet.MemberPending || o.State == fleet.MemberOpen)
		}
		list = append(list, c)
	}
	return list, nil
}

func (t *memoryTx) CountDark(rollout string, before time.Time) (int, error) {
	return len(t.membersWhere(rollout, func(m fleet.Member) bool {
		d := t.m.devices[m.DeviceID]
		touched := m.State == fleet.MemberSucceeded || m.State == fleet.MemberPending && m.Tries > 0
		return touched && !d.Online && millis(d.LastSeen) < millis(before)
	})), nil
}

func (t *memoryTx) PutMember(m fleet.Member) error {
	if err := t.may(); err != nil {
		return err
	}
	if _, ok := t.m.devices[m.DeviceID]; !ok {
		return t.conflict("a member without its device")
	}
	if _, ok := t.m.rollouts[m.RolloutID]; !ok {
		return t.conflict("a member without its rollout")
	}
	members := t.m.members[m.RolloutID]
	if members == nil {
		members = make(map[string]fleet.Member)
		t.m.members[m.RolloutID] = members
	}
	trim(&m.NotBefore, &m.UpdatedAt)
	set(t, members, m.DeviceID, m)
	return nil
}

func (t *memoryTx) CountAttempts(rollout string, since time.Time) (n int, _ error) {
	for _, a := range t.m.attempts {
		if rollout != "" && a.RolloutID == rollout && millis(a.CreatedAt) > millis(since) {
			n++
		}
	}
	return n, nil
}

func (t *memoryTx) RolledBack(sha256 string) ([]string, error) {
	var list []string
	for _, a := range t.m.attempts {
		if a.SHA256 == sha256 && a.State == fleet.AttemptRolledBack {
			list = append(list, a.DeviceID)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func (t *memoryTx) Quarantine(sha256 string) (fleet.Quarantine, error) {
	return get(t.m.quarantine, sha256)
}

func (t *memoryTx) Quarantines() ([]fleet.Quarantine, error) {
	return sorted(t.m.quarantine, func(a, b fleet.Quarantine) int {
		return cmp.Or(b.Since.Compare(a.Since), cmp.Compare(a.SHA256, b.SHA256))
	}), nil
}

func (t *memoryTx) PutQuarantine(q fleet.Quarantine) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&q.Since, &q.LiftedAt)
	set(t, t.m.quarantine, q.SHA256, q)
	return nil
}
