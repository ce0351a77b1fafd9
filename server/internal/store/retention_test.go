package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// Of attempts that ended long ago each that is needed is needed for one reason alone: without that rule it would go.
func attemptsAreForgotten(t *testing.T, s fleet.Store) {
	ended := func(id, device string, created, ended int64, change func(*fleet.Attempt)) fleet.Attempt {
		a := attempt(id, device, created, fleet.AttemptFailed)
		a.EndedAt, a.RolloutID, a.SHA256 = at(ended), "", "aa"
		if change != nil {
			change(&a)
		}
		return a
	}
	of := func(rollout string) func(*fleet.Attempt) { return func(a *fleet.Attempt) { a.RolloutID = rollout } }
	about := func(sha256 string) func(*fleet.Attempt) { return func(a *fleet.Attempt) { a.SHA256 = sha256 } }
	in := func(state fleet.AttemptState) func(*fleet.Attempt) { return func(a *fleet.Attempt) { a.State = state } }
	states := map[string]fleet.RolloutState{"running": fleet.RolloutRunning, "paused": fleet.RolloutPaused, "halted": fleet.RolloutHalted, "done": fleet.RolloutDone, "aborted": fleet.RolloutAborted}
	update(t, s, func(tx fleet.Tx) error {
		errs := []error{tx.PutDevice(device("d1")), tx.PutDevice(device("d2")), tx.PutDevice(device("d3"))}
		for id, state := range states {
			r := rollout(id, 1)
			r.Key, r.State = "", state
			errs = append(errs, tx.PutRollout(r), tx.PutAttempt(ended("of-"+id, "d1", 2, 20, of(id))))
		}
		open := member("aborted", "d2", 1, fleet.MemberOpen)
		errs = append(errs, tx.PutMember(open), tx.PutMember(member("done", "d1", 1, fleet.MemberSucceeded)),
			tx.PutQuarantine(fleet.Quarantine{SHA256: "bad", Since: at(1)}), tx.PutQuarantine(fleet.Quarantine{SHA256: "good", Since: at(1), LiftedAt: at(2)}))
		for _, a := range []fleet.Attempt{
			ended("a-plain", "d1", 2, 19, nil), ended("b-same-end", "d1", 2, 19, in(fleet.AttemptSucceeded)), ended("young", "d1", 2, 30, nil), ended("undone", "d1", 2, 18, in(fleet.AttemptRolledBack)),
			ended("held", "d1", 2, 21, about("bad")), ended("lifted", "d1", 2, 21, about("good")), ended("at-work", "d2", 2, 22, of("aborted")),
			ended("newest-1", "d1", 9, 23, nil), ended("newest-2", "d2", 9, 23, in(fleet.AttemptSuperseded)), ended("older-twin", "d3", 9, 24, nil), ended("twin", "d3", 9, 24, nil),
			ended("open", "d3", 1, 0, in(fleet.AttemptOpen)), ended("no-end", "d3", 1, 0, func(a *fleet.Attempt) { a.EndedAt = fleet.Attempt{}.EndedAt }),
		} {
			errs = append(errs, tx.PutAttempt(a))
		}
		return all(errs...)
	})
	needed := map[string]bool{"of-running": true, "of-paused": true, "of-halted": true, "held": true, "at-work": true, "newest-1": true, "newest-2": true, "twin": true}
	want := []string{"a-plain 19", "b-same-end 19", "of-aborted 20", "of-done 20", "of-halted 20", "of-paused 20", "of-running 20", "held 21", "lifted 21", "at-work 22", "newest-1 23", "newest-2 23", "older-twin 24", "twin 24"}
	var old []string
	for _, limit := range []int{100, 1, 2, 3} {
		var got []string
		old = nil
		view(t, s, func(tx fleet.Tx) error {
			for mark := (fleet.EndedAttempt{}); ; {
				page, err := tx.EndedAttempts(mark, at(30), limit)
				for _, a := range page {
					got = append(got, fmt.Sprintf("%s %d", a.ID, a.EndedAt.Sub(at(0)).Milliseconds()))
					if a.Needed != needed[a.ID] {
						t.Errorf("%s: needed %t", a.ID, a.Needed)
					}
					if mark = a; !a.Needed {
						old = append(old, a.ID)
					}
				}
				if err != nil || len(page) < limit {
					return err
				}
			}
		})
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%d at a time:\n%s\nwant\n%s", limit, got, want)
		}
	}
	if err := s.Update(t.Context(), func(tx fleet.Tx) error { return all(tx.DeleteAttempts(old), errGiveUp) }); !errors.Is(err, errGiveUp) {
		t.Fatal(err)
	}
	view(t, s, func(tx fleet.Tx) error {
		if err := tx.DeleteAttempts(old); err == nil {
			t.Error("a view has deleted")
		}
		list, err := tx.EndedAttempts(fleet.EndedAttempt{}, at(30), 100)
		same(t, len(want))(len(list), err)
		return nil
	})
	update(t, s, func(tx fleet.Tx) error { return tx.DeleteAttempts(old) })
	view(t, s, func(tx fleet.Tx) error {
		for _, id := range old {
			if _, err := tx.Attempt(id); !errors.Is(err, fleet.ErrNotFound) {
				t.Errorf("%s is still there: %v", id, err)
			}
		}
		list, err := tx.EndedAttempts(fleet.EndedAttempt{}, at(30), 100)
		same(t, len(needed))(len(list), err)
		same(t, []string{"d1"})(tx.RolledBack("aa"))
		return nil
	})
}

// The log goes from its beginning, as far as its newest row about that says, and in no other way.
func auditIsPruned(t *testing.T, s fleet.Store) {
	rows := auditRows(audit.Genesis, 6)
	update(t, s, func(tx fleet.Tx) error { return tx.AppendAudit(rows) })
	refused := func(name string, through audit.Head) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx fleet.Tx) error { _ = tx.PruneAudit(through); return nil }); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	says := func(through audit.Head) []audit.Entry {
		head := rows[len(rows)-1].Head()
		return []audit.Entry{audit.Entry{At: at(99), Who: "server", What: audit.LogPrune, About: through.String()}.Seal(head)}
	}
	refused("nothing says so", rows[1].Head())
	prune := says(rows[3].Head())
	err := s.Update(t.Context(), func(tx fleet.Tx) error {
		return all(tx.AppendAudit(prune), tx.PruneAudit(rows[3].Head()), errGiveUp)
	})
	if !errors.Is(err, errGiveUp) {
		t.Fatal(err)
	}
	if err := verifyAudit(t, s, rows[0].Head(), rows[5].Head()); err != nil {
		t.Errorf("after a transaction that failed: %v", err)
	}
	update(t, s, func(tx fleet.Tx) error { return all(tx.AppendAudit(prune), tx.PruneAudit(rows[3].Head())) })
	rows = append(rows, prune...)
	view(t, s, func(tx fleet.Tx) error {
		same(t, rows[4:])(tx.AuditPage(fleet.AuditQuery{Limit: 10}))
		if err := tx.PruneAudit(rows[3].Head()); err == nil {
			t.Error("a view has pruned")
		}
		return nil
	})
	refused("further than said", rows[4].Head())
	if err := verifyAudit(t, s, rows[3].Head(), rows[6].Head()); err != nil {
		t.Error(err)
	}
	// It goes on, and is pruned again, the row about the first time with it.
	more := auditRows(rows[6].Head(), 2)
	update(t, s, func(tx fleet.Tx) error { return tx.AppendAudit(more) })
	rows = append(rows, more...)
	prune = says(rows[7].Head())
	update(t, s, func(tx fleet.Tx) error { return all(tx.AppendAudit(prune), tx.PruneAudit(rows[7].Head())) })
	view(t, s, func(tx fleet.Tx) error {
		same(t, append(rows[8:9:9], prune...))(tx.AuditPage(fleet.AuditQuery{Limit: 10}))
		return nil
	})
	if err := verifyAudit(t, s, prune[0].Head()); err != nil {
		t.Error(err)
	}
}
