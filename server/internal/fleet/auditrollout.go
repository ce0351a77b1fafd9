package fleet

import (
	"encoding/json"
	"fmt"
	"strings"

	"bmsota/audit"
)

// PutMember tells nothing by itself: what becomes of a member is its attempt, which is told, or its rollout's step. That step
// names whom an operator has left out.
func (t *audited) PutMember(m Member) error {
	t.tellMember(m)
	return t.Tx.PutMember(m)
}

func (t *audited) tellMember(m Member) {
	if m.State == MemberSkipped && t.by.Role != RoleServer && t.by.Role != RoleDevice {
		t.book.leftOut = m.DeviceID
	}
	inform(t, func(c *changed) { c.rollouts[m.RolloutID] = struct{}{} })
}

// PutRollout tells every step of a rollout: by the state and wave it comes to, and in the words that its events have.
func (t *audited) PutRollout(r Rollout) error {
	old, there, err := before(t.Rollout(r.ID))
	if err != nil {
		return err
	}
	tell := func(what audit.Action, pairs ...string) {
		t.add(audit.Entry{What: what, About: r.SHA256, Device: t.book.leftOut, Rollout: r.ID, Details: audit.Of(append(pairs, "what", eventsSince(old, r))...)})
	}
	switch {
	case !there:
		tell(audit.RolloutCreate, "version", r.Version, "members", fmt.Sprint(r.Members), "override_gates", yes(r.Policy.OverrideGates),
			"force", yes(r.Policy.Force), "allow_unprotected", yes(r.Policy.AllowUnprotected))
	case r.State != old.State:
		action := map[RolloutState]audit.Action{RolloutPaused: audit.RolloutPause, RolloutRunning: audit.RolloutResume, RolloutAborted: audit.RolloutAbort,
			RolloutHalted: audit.RolloutHalt, RolloutDone: audit.RolloutDone}[r.State]
		rule := ""
		if r.State == RolloutHalted && r.Halt != nil {
			rule = r.Halt.Rule
		}
		tell(action, "version", r.Version, "rule", rule)
	case r.Wave != old.Wave:
		tell(audit.RolloutAdvance, "version", r.Version, "wave", fmt.Sprintf("%d of %d", r.Wave+1, len(r.Limits)))
	case !sameRollout(old, r):
		tell(audit.RolloutChange, "version", r.Version)
	}
	inform(t, func(c *changed) { c.rollouts[r.ID] = struct{}{} })
	return t.Tx.PutRollout(r)
}

// eventsSince are the texts of the events that r has and old has not: those behind old's last one, because events are
// added at the end, and where there are too many others go.
func eventsSince(old, r Rollout) string {
	from := 0
	if n := len(old.Events); n > 0 {
		last := old.Events[n-1]
		for i, e := range r.Events {
			if e.By == last.By && e.Text == last.Text && e.At.Equal(last.At) {
				from = i + 1
			}
		}
	}
	var texts []string
	for _, e := range r.Events[from:] {
		texts = append(texts, e.Text)
	}
	return strings.Join(texts, "; ")
}

// sameRollout compares rollouts as their rows keep them.
func sameRollout(a, b Rollout) bool {
	var said [2]string
	for i, r := range []Rollout{a, b} {
		r.Revision = 0
		body, err := json.Marshal(r)
		if err != nil {
			return false // what cannot be compared is told
		}
		said[i] = string(body)
	}
	return said[0] == said[1]
}
