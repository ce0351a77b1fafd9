package store

import (
	"encoding/json"
	"fmt"
	"time"

	"bmsota/server/internal/fleet"
)

// rolloutBody is a rollout as its row keeps it, times in milliseconds and UTC. The JSON names are those of the fields,
// so a field that is renamed needs a migration.
func rolloutBody(r fleet.Rollout) ([]byte, error) {
	trim(&r.WaveSince, &r.SoakSince, &r.CreatedAt, &r.ExpiresAt, &r.EndedAt)
	if r.Halt != nil {
		halt := *r.Halt
		trim(&halt.At)
		r.Halt = &halt
	}
	events := make([]fleet.Event, len(r.Events))
	for i, e := range r.Events {
		trim(&e.At)
		events[i] = e
	}
	if r.Events = events; len(events) == 0 {
		r.Events = nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode rollout %q: %w", r.ID, err)
	}
	return b, nil
}

func parseRollout(b []byte) (r fleet.Rollout, err error) {
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("rollout: %w", err)
	}
	return r, nil
}

func scanRollout(s scanner) (r fleet.Rollout, err error) {
	var id, state, key string
	var revision, priority int64
	var created time.Time
	var body []byte
	if err := s.Scan(&id, &revision, &state, &priority, instant{&created}, &key, &body); err != nil {
		return r, err
	}
	return parseRollout(body)
}

func scanMember(s scanner) (m fleet.Member, err error) {
	err = s.Scan(memberFields(&m)...)
	return m, err
}

func memberFields(m *fleet.Member) []any {
	return []any{&m.RolloutID, &m.DeviceID, &m.Rank, &m.State, &m.Attempts, &m.Tries, &m.AttemptID, instant{&m.NotBefore}, &m.Reason,
		&m.Message, instant{&m.UpdatedAt}}
}

func memberArgs(m fleet.Member) []any {
	return []any{m.RolloutID, m.DeviceID, int64(m.Rank), string(m.State), int64(m.Attempts), int64(m.Tries), m.AttemptID, millis(m.NotBefore),
		string(m.Reason), m.Message, millis(m.UpdatedAt)}
}

func scanCandidate(s scanner) (c fleet.Candidate, err error) {
	var row deviceRow
	fields := append(memberFields(&c.Member), row.fields()...)
	if err := s.Scan(append(fields, &c.Busy, &c.Reserved)...); err != nil {
		return c, err
	}
	d, err := row.device()
	c.Device = &d
	return c, err
}

func scanQuarantine(s scanner) (q fleet.Quarantine, err error) {
	err = s.Scan(&q.SHA256, &q.RolloutID, &q.Why, instant{&q.Since}, instant{&q.LiftedAt}, &q.LiftedBy)
	return q, err
}

func scanText(s scanner) (text string, err error) {
	err = s.Scan(&text)
	return text, err
}

func scanCount(s scanner) (n int, err error) {
	err = s.Scan(&n)
	return n, err
}

// stateCount is one line of MemberCounts.
type stateCount struct {
	state fleet.MemberState
	n     int
}

func (t *sqlTx) Rollout(id string) (fleet.Rollout, error) { return one(t, scanRollout, qRollout, id) }

func (t *sqlTx) RolloutByKey(key string) (fleet.Rollout, error) {
	return one(t, scanRollout, qRolloutByKey, key)
}

func (t *sqlTx) Rollouts() ([]fleet.Rollout, error) { return many(t, scanRollout, qRollouts) }

func (t *sqlTx) RolloutsToTend() ([]fleet.Rollout, error) {
	return many(t, scanRollout, qRolloutsToTend)
}

func (t *sqlTx) PutRollout(r fleet.Rollout) error {
	r.Revision++
	body, err := rolloutBody(r)
	if err != nil {
		return err
	}
	n, err := t.write(qPutRollout, r.ID, r.Revision, string(r.State), int64(r.Policy.Priority), millis(r.CreatedAt), r.Key, string(body), r.Revision)
	if err == nil && n == 0 {
		t.failed = fmt.Errorf("%w: rollout %q was changed by another", fleet.ErrConflict, r.ID)
		return t.failed
	}
	return err
}

func (t *sqlTx) Member(rollout, device string) (fleet.Member, error) {
	return one(t, scanMember, qMember, rollout, device)
}

func (t *sqlTx) MemberCounts(rollout string) (map[fleet.MemberState]int, error) {
	rows, err := many(t, func(s scanner) (c stateCount, err error) {
		err = s.Scan(&c.state, &c.n)
		return c, err
	}, qMemberCounts, rollout)
	counts := make(map[fleet.MemberState]int, len(rows))
	for _, c := range rows {
		counts[c.state] = c.n
	}
	return counts, err
}

func (t *sqlTx) Members(rollout string, state fleet.MemberState, after, limit int) ([]fleet.Member, error) {
	if state == "" {
		return many(t, scanMember, qMembers, rollout, int64(after), int64(limit))
	}
	return many(t, scanMember, qMembersIn, rollout, string(state), int64(after), int64(limit))
}

func (t *sqlTx) MemberCountsBetween(rollout string, from, below int) (map[fleet.MemberState]int, error) {
	counts := make(map[fleet.MemberState]int)
	for _, state := range fleet.MemberStates() { // each is a range of members_by_state
		n, err := one(t, scanCount, qMemberCountIn, rollout, string(state), int64(from), int64(below))
		if err != nil {
			return nil, err
		}
		if n > 0 {
			counts[state] = n
		}
	}
	return counts, nil
}

func (t *sqlTx) Candidates(rollout string, priority, after, below, limit int, away bool) ([]fleet.Candidate, error) {
	all := int64(0)
	if away {
		all = 1
	}
	return many(t, scanCandidate, qCandidates, rollout, int64(priority), int64(after), int64(below), int64(limit), all)
}

func (t *sqlTx) AwayMembers(rollout string, below int, before time.Time, limit int) ([]fleet.Member, error) {
	return many(t, scanMember, qAway, rollout, int64(below), millis(before), int64(limit))
}

func (t *sqlTx) TriedAndGone(rollout string) ([]fleet.Candidate, error) {
	return many(t, scanCandidate, qTried, rollout)
}

func (t *sqlTx) Doubted(rollout string) ([]fleet.Candidate, error) {
	return many(t, scanCandidate, qDoubted, rollout)
}

func (t *sqlTx) CountDark(rollout string, before time.Time) (int, error) {
	return one(t, scanCount, qCountDark, rollout, millis(before))
}

func (t *sqlTx) PutMember(m fleet.Member) error {
	t.members = true
	return t.put(qPutMember, memberArgs(m)...)
}

func (t *sqlTx) CountAttempts(rollout string, since time.Time) (int, error) {
	return one(t, scanCount, qCountAttempts, rollout, millis(since))
}

func (t *sqlTx) RolledBack(sha256 string) ([]string, error) {
	return many(t, scanText, qRolledBack, sha256)
}

func (t *sqlTx) Quarantine(sha256 string) (fleet.Quarantine, error) {
	return one(t, scanQuarantine, qQuarantine, sha256)
}

func (t *sqlTx) Quarantines() ([]fleet.Quarantine, error) {
	return many(t, scanQuarantine, qQuarantines)
}

func (t *sqlTx) PutQuarantine(q fleet.Quarantine) error {
	return t.put(qPutQuarantine, q.SHA256, q.RolloutID, q.Why, millis(q.Since), millis(q.LiftedAt), q.LiftedBy)
}
