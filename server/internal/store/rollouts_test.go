package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func rollout(id string, created int64) fleet.Rollout {
	pct, n := 2.5, 0
	return fleet.Rollout{
		ID: id, State: fleet.RolloutRunning, SHA256: release(1).SHA256, Project: "bms", Chip: "esp32c3", Version: "1.0.1",
		Policy: fleet.Policy{Description: "\"ß\"\n", Selector: fleet.Selector{IDs: []string{"d1"}, Labels: fleet.Labels{"site": "north"}},
			Waves: []fleet.Wave{{Count: 1, Soak: time.Minute}, {Percent: 33.3}}, Stop: fleet.Stop{FailedPct: &pct, Brownouts: &n}, Priority: 3},
		Limits: []int{1, 4}, Soaks: []time.Duration{time.Minute, 0}, Members: 4, Wave: 1, WaveSince: at(1), SoakSince: at(2), CreatedAt: at(created),
		CreatedBy: "anna", Key: "key-" + id, KeyBody: "ab", ExpiresAt: at(4), Halt: &fleet.Halt{Rule: "failed", Figure: 2, Limit: 1, Text: "t", At: at(5)},
		Forgiven: fleet.Figures{Failed: 1}, Events: []fleet.Event{{At: at(6), By: "anna", Text: "paused"}},
	}
}

func member(rollout, device string, rank int, state fleet.MemberState) fleet.Member {
	return fleet.Member{RolloutID: rollout, DeviceID: device, Rank: rank, State: state, Attempts: 2, Tries: 1, AttemptID: "a", NotBefore: at(1),
		Reason: "stalled", Message: "m", UpdatedAt: at(2)}
}

// stored is r as it comes back after its n-th put.
func stored(r fleet.Rollout, n int64) fleet.Rollout {
	r.Revision = n
	return r
}

func rolloutsComeBack(t *testing.T, s fleet.Store) {
	r, bare := rollout("r1", 10), fleet.Rollout{ID: "bare", State: fleet.RolloutDone}
	q := fleet.Quarantine{SHA256: "aa", RolloutID: "r1", Why: "3 rolled back", Since: at(1)}
	lifted := fleet.Quarantine{SHA256: "bb", Since: at(2), LiftedAt: at(3), LiftedBy: "anna"}
	m := member("r1", "d1", 0, fleet.MemberSilent)
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.PutDevice(device("d1")), tx.PutRollout(r), tx.PutRollout(bare), tx.PutMember(m), tx.PutQuarantine(q), tx.PutQuarantine(lifted))
	})
	view(t, s, func(tx fleet.Tx) error {
		same(t, stored(r, 1))(tx.Rollout("r1"))
		same(t, stored(bare, 1))(tx.Rollout("bare"))
		same(t, stored(r, 1))(tx.RolloutByKey("key-r1"))
		same(t, m)(tx.Member("r1", "d1"))
		same(t, q)(tx.Quarantine("aa"))
		same(t, []fleet.Quarantine{lifted, q})(tx.Quarantines())
		for i, err := range []error{second(tx.Rollout("x")), second(tx.RolloutByKey("x")), second(tx.RolloutByKey("")), second(tx.Member("r1", "x")), second(tx.Quarantine("x"))} {
			if !errors.Is(err, fleet.ErrNotFound) {
				t.Errorf("get %d: %v, want ErrNotFound", i+1, err)
			}
		}
		return nil
	})
	// Finer and local times come back as rows keep them.
	fine := time.Date(2026, 3, 4, 5, 6, 7, 8_999_999, time.FixedZone("", 3600))
	r.Revision, r.WaveSince, r.Events[0].At = 1, fine, fine
	update(t, s, func(tx fleet.Tx) error { return tx.PutRollout(r) })
	view(t, s, func(tx fleet.Tx) error {
		got, err := tx.Rollout("r1")
		if want := fine.UTC().Truncate(time.Millisecond); got.WaveSince != want || got.Events[0].At != want {
			t.Errorf("times are %v and %v, want %v", got.WaveSince, got.Events[0].At, want)
		}
		return err
	})
}

func second[V any](_ V, err error) error { return err }

func rolloutsAreSwapped(t *testing.T, s fleet.Store) {
	r := rollout("r1", 10)
	put := func(r fleet.Rollout) error {
		return s.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutRollout(r) })
	}
	for i, c := range []struct {
		revision int64
		ok       bool
	}{{1, false}, {0, true}, {0, false}, {2, false}, {1, true}, {1, false}, {2, true}} {
		next := r
		next.Revision, next.Wave = c.revision, i
		if err := put(next); (err == nil) != c.ok || err != nil && !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("put %d over revision %d: %v", i, c.revision, err)
		}
	}
	other := rollout("r2", 10)
	other.Key = r.Key
	if err := put(other); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("two rollouts of one request: %v", err)
	}
	view(t, s, func(tx fleet.Tx) error {
		got, err := tx.Rollout("r1")
		if got.Revision != 3 || got.Wave != 6 {
			t.Errorf("the row is revision %d of wave %d", got.Revision, got.Wave)
		}
		list, err2 := tx.Rollouts()
		if len(list) != 1 {
			t.Errorf("%d rollouts", len(list))
		}
		return all(err, err2)
	})
}

func membersAreFound(t *testing.T, s fleet.Store) {
	states := []fleet.MemberState{fleet.MemberSucceeded, fleet.MemberPending, fleet.MemberSucceeded, fleet.MemberOpen, fleet.MemberPending}
	update(t, s, func(tx fleet.Tx) error {
		paused, high, idle := rollout("r2", 5), rollout("r3", 20), rollout("r4", 1)
		paused.State, high.Policy.Priority, idle.State = fleet.RolloutPaused, 9, fleet.RolloutHalted
		errs := []error{tx.PutRollout(rollout("r1", 10)), tx.PutRollout(paused), tx.PutRollout(high), tx.PutRollout(idle)}
		for i, state := range states {
			id := fmt.Sprintf("d%d", 9-i) // ranks are not in the order of ids
			d := fleet.Device{ID: id, LastSeen: at(int64(100 * i)), Online: i == 0}
			m := member("r1", id, i, state)
			if i == 4 {
				m.Tries = 0 // never touched, so never dark
			}
			errs = append(errs, tx.PutDevice(d), tx.PutMember(m))
		}
		a := attempt("a1", "d9", 50, fleet.AttemptRolledBack)
		a.RolloutID = "r1"
		b := a
		b.ID, b.CreatedAt = "a2", at(60)
		return all(append(errs, tx.PutMember(member("r2", "d9", 0, fleet.MemberOpen)), tx.PutAttempt(a), tx.PutAttempt(b))...)
	})
	ids := func(list []fleet.Member, err error) string {
		return names(list, func(m fleet.Member) string { return m.DeviceID }) + errText(err)
	}
	view(t, s, func(tx fleet.Tx) error {
		counts, err := tx.MemberCounts("r1")
		if fleet.Count(counts) != (fleet.Figures{Pending: 2, Open: 1, Succeeded: 2}) {
			t.Errorf("counts %v", counts)
		}
		dark, err2 := tx.CountDark("r1", at(201))
		later, err7 := tx.CountDark("r1", at(1000))
		if later != 2 {
			t.Errorf("%d are dark later, want 2", later)
		}
		dark2, err3 := tx.CountDark("r1", at(200))
		if dark != 2 || dark2 != 1 {
			t.Errorf("%d and %d are dark, want 2 and 1", dark, dark2)
		}
		begun, err4 := tx.CountAttempts("r1", at(50))
		none, err5 := tx.CountAttempts("", at(0))
		if begun != 1 || none != 0 {
			t.Errorf("%d and %d attempts, want 1 and 0", begun, none)
		}
		same(t, []string{"d9"})(tx.RolledBack("aa"))
		tend, err6 := tx.RolloutsToTend()
		for _, c := range []struct{ got, want string }{
			{ids(tx.Members("r1", "", -1, 10)), "d9 d8 d7 d6 d5"},
			{ids(tx.Members("r1", "", 1, 2)), "d7 d6"},
			{ids(tx.Members("r1", fleet.MemberPending, -1, 10)), "d8 d5"},
			{ids(tx.Members("r1", fleet.MemberPending, 1, 10)), "d5"},
			{ids(tx.Members("r1", fleet.MemberSucceeded, -1, 1)), "d9"},
			{ids(tx.Members("x", "", -1, 10)), ""},
			{names(tend, func(r fleet.Rollout) string { return r.ID }), "r3 r2 r1"},
		} {
			if c.got != c.want {
				t.Errorf("got %q, want %q", c.got, c.want)
			}
		}
		return all(err, err2, err3, err4, err5, err6, err7)
	})
}

func membersThatAreAwayAreFound(t *testing.T, s fleet.Store) {
	update(t, s, func(tx fleet.Tx) error {
		errs := []error{tx.PutRollout(rollout("r1", 10))}
		for i, c := range []struct {
			device          fleet.Device
			state           fleet.MemberState
			attempts, tries int
		}{
			{fleet.Device{ID: "away"}, fleet.MemberPending, 0, 0},
			{fleet.Device{ID: "online", Online: true}, fleet.MemberPending, 1, 1},
			{fleet.Device{ID: "heard", LastSeen: at(100)}, fleet.MemberPending, 0, 0},
			{fleet.Device{ID: "revoked", Revoked: true}, fleet.MemberPending, 0, 0},
			{fleet.Device{ID: "updating", Status: protocol.Status{Phase: protocol.PhaseDownloading}}, fleet.MemberPending, 0, 0},
			{fleet.Device{ID: "takenback"}, fleet.MemberPending, 1, 0},
			{fleet.Device{ID: "tried", LastSeen: at(200)}, fleet.MemberPending, 1, 1},
			{fleet.Device{ID: "silent"}, fleet.MemberSilent, 1, 1},
			{fleet.Device{ID: "second"}, fleet.MemberPending, 0, 0},
			{fleet.Device{ID: "third"}, fleet.MemberPending, 0, 0},
		} {
			m := member("r1", c.device.ID, i, c.state)
			m.Attempts, m.Tries = c.attempts, c.tries
			errs = append(errs, tx.PutDevice(c.device), tx.PutMember(m))
		}
		return all(errs...)
	})
	view(t, s, func(tx fleet.Tx) error {
		list := func(below int, before int64, limit int) string {
			away, err := tx.AwayMembers("r1", below, at(before), limit)
			return names(away, func(m fleet.Member) string { return m.DeviceID }) + errText(err)
		}
		gone, err := tx.TriedAndGone("r1")
		for _, c := range []struct{ got, want string }{
			{list(10, 100, 10), "away second third"}, {list(10, 101, 10), "away heard second third"}, {list(9, 100, 10), "away second"},
			{list(10, 100, 2), "away second"}, {list(0, 100, 2), ""},
			{names(gone, func(c fleet.Candidate) string { return c.Member.DeviceID + "=" + c.Device.ID }), "tried=tried"},
		} {
			if c.got != c.want {
				t.Errorf("got %q, want %q", c.got, c.want)
			}
		}
		return err
	})
}

// membersOfDoubtedDevicesAreFound: those that do not stand as their devices do, and no others.
func membersOfDoubtedDevicesAreFound(t *testing.T, s fleet.Store) {
	suspect := fleet.Doubts{List: []fleet.Suspicion{{Kind: fleet.SuspectLogin, Times: 1}}}
	once := fleet.Doubts{List: []fleet.Suspicion{{Kind: fleet.SuspectBoots, Times: 1}}}
	update(t, s, func(tx fleet.Tx) error {
		errs := []error{tx.PutRollout(rollout("r1", 10)), tx.PutRollout(rollout("r2", 11))}
		rank := 0
		for _, state := range fleet.MemberStates() {
			for name, doubts := range map[string]fleet.Doubts{"suspect": suspect, "once": once, "believed": {}} {
				d := fleet.Device{ID: string(state) + "-" + name, Doubts: doubts}
				errs = append(errs, tx.PutDevice(d), tx.PutMember(member("r1", d.ID, rank, state)))
				rank++
			}
		}
		return all(errs...)
	})
	view(t, s, func(tx fleet.Tx) error {
		list, err := tx.Doubted("r1")
		got := strings.Fields(names(list, func(c fleet.Candidate) string { return c.Device.ID }))
		if !slices.IsSortedFunc(list, func(a, b fleet.Candidate) int { return a.Member.Rank - b.Member.Rank }) {
			t.Errorf("not by rank: %v", got)
		}
		slices.Sort(got)
		want := []string{"brownout-suspect", "failed-suspect", "pending-suspect", "rolled_back-suspect", "silent-suspect", "succeeded-suspect", "suspect-believed", "suspect-once"}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		other, err2 := tx.Doubted("r2")
		if len(other) != 0 {
			t.Errorf("of another rollout: %v", other)
		}
		return all(err, err2)
	})
}

// countsFollowTheMembers: what is kept beside the rows is what the rows say, whatever becomes of them.
func countsFollowTheMembers(t *testing.T, s fleet.Store) {
	random := rand.New(rand.NewPCG(13, 13))
	update(t, s, func(tx fleet.Tx) error {
		errs := []error{tx.PutRollout(rollout("r1", 10)), tx.PutRollout(rollout("r2", 11))}
		for i := range 20 {
			id := fmt.Sprint("d", i)
			errs = append(errs, tx.PutDevice(device(id)), tx.PutMember(member("r1", id, i, fleet.MemberPending)), tx.PutMember(member("r2", id, i, fleet.MemberPending)))
		}
		return all(errs...)
	})
	states := fleet.MemberStates()
	for range 50 {
		put := func(tx fleet.Tx) error {
			i := random.IntN(20)
			m := member("r1", fmt.Sprint("d", i), i, states[random.IntN(len(states))])
			return tx.PutMember(m)
		}
		if random.IntN(3) == 0 {
			if err := s.Update(t.Context(), func(tx fleet.Tx) error { return all(put(tx), errGiveUp) }); !errors.Is(err, errGiveUp) {
				t.Fatal(err)
			}
			continue
		}
		update(t, s, func(tx fleet.Tx) error {
			if err := all(put(tx), put(tx)); err != nil {
				return err
			}
			return countsAre(t, tx) // those that put can see it too
		})
		view(t, s, func(tx fleet.Tx) error { return countsAre(t, tx) })
	}
	view(t, s, func(tx fleet.Tx) error {
		counts, err := tx.MemberCounts("r2")
		same(t, map[fleet.MemberState]int{fleet.MemberPending: 20})(counts, err)
		return nil
	})
}

func countsAre(t *testing.T, tx fleet.Tx) error {
	t.Helper()
	members, err := tx.Members("r1", "", -1, 100)
	if err != nil {
		return err
	}
	every, first := make(map[fleet.MemberState]int), make(map[fleet.MemberState]int)
	for _, m := range members {
		every[m.State]++
		if m.Rank >= 3 && m.Rank < 9 {
			first[m.State]++
		}
	}
	same(t, every)(tx.MemberCounts("r1"))
	same(t, first)(tx.MemberCountsBetween("r1", 3, 9))
	return nil
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " " + err.Error()
}

func candidatesAreFound(t *testing.T, s fleet.Store) {
	update(t, s, func(tx fleet.Tx) error {
		higher, paused := rollout("higher", 1), rollout("paused", 1)
		higher.Policy.Priority, paused.Policy.Priority, paused.State = 5, 7, fleet.RolloutPaused
		errs := []error{tx.PutRollout(rollout("r1", 10)), tx.PutRollout(higher), tx.PutRollout(paused)}
		for i, d := range []fleet.Device{
			{ID: "plain", Online: true, Labels: fleet.Labels{"bank": "1"}}, {ID: "away"}, {ID: "revoked", Revoked: true}, {ID: "busy", Online: true},
			{ID: "wanted", Online: true}, {ID: "open", Online: true}, {ID: "late", Online: true},
		} {
			m := member("r1", d.ID, i, fleet.MemberPending)
			if d.ID == "open" {
				m.State = fleet.MemberOpen
			}
			errs = append(errs, tx.PutDevice(d), tx.PutMember(m))
		}
		return all(append(errs, tx.PutAttempt(attempt("a1", "busy", 1, fleet.AttemptOpen)), tx.PutAttempt(attempt("a2", "plain", 1, fleet.AttemptFailed)),
			tx.PutMember(member("higher", "wanted", 0, fleet.MemberPending)), tx.PutMember(member("higher", "plain", 1, fleet.MemberSucceeded)),
			tx.PutMember(member("paused", "plain", 0, fleet.MemberPending)))...)
	})
	view(t, s, func(tx fleet.Tx) error {
		list, err := tx.Candidates("r1", 3, -1, 6, 10, false)
		got := names(list, func(c fleet.Candidate) string {
			return fmt.Sprintf("%s/%v/%v/%s", c.Device.ID, c.Busy, c.Reserved, c.Device.Labels["bank"])
		})
		if want := "plain/false/false/1 revoked/false/false/ busy/true/false/ wanted/false/true/"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		few, err2 := tx.Candidates("r1", 5, 0, 100, 3, false)
		got = names(few, func(c fleet.Candidate) string { return fmt.Sprint(c.Member.DeviceID, c.Reserved) })
		if want := "revokedfalse busyfalse wantedfalse"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		too, err3 := tx.Candidates("r1", 5, 0, 3, 10, true)
		if got := names(too, func(c fleet.Candidate) string { return c.Member.DeviceID }); got != "away revoked" {
			t.Errorf("with those that are away: %q", got)
		}
		return all(err, err2, err3)
	})
}

func failedRolloutLeavesNothing(t *testing.T, s fleet.Store) {
	err := s.Update(t.Context(), func(tx fleet.Tx) error {
		return errors.Join(tx.PutDevice(device("d1")), tx.PutRollout(rollout("r1", 1)), tx.PutMember(member("r1", "d1", 0, fleet.MemberPending)),
			tx.PutQuarantine(fleet.Quarantine{SHA256: "aa"}), errGiveUp)
	})
	if !errors.Is(err, errGiveUp) {
		t.Fatal(err)
	}
	view(t, s, func(tx fleet.Tx) error {
		rollouts, e1 := tx.Rollouts()
		members, e2 := tx.Members("r1", "", -1, 10)
		quarantines, e3 := tx.Quarantines()
		if len(rollouts)+len(members)+len(quarantines) != 0 {
			t.Errorf("%v %v %v are left", rollouts, members, quarantines)
		}
		return all(e1, e2, e3)
	})
	for name, m := range map[string]fleet.Member{"device": member("r1", "x", 0, fleet.MemberPending), "rollout": member("x", "d1", 0, fleet.MemberPending)} {
		err := s.Update(t.Context(), func(tx fleet.Tx) error {
			return all(tx.PutDevice(device("d1")), tx.PutRollout(rollout("r1", 1)), tx.PutMember(m))
		})
		if !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("a member without its %s: %v", name, err)
		}
	}
}
