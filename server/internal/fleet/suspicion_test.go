package fleet_test

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// told folds statuses written as "boot/number", a minute apart; "=" behind one makes its content another.
func told(t *testing.T, script string) fleet.Device {
	t.Helper()
	d, now := fleet.Device{ID: "d1"}, t0
	for word := range strings.FieldsSeq(script) {
		word, other := strings.CutSuffix(word, "=")
		boot, number, _ := strings.Cut(word, "/")
		if boot == "later" {
			now = now.Add(25 * time.Hour)
			continue
		}
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s := say(boot, seq, protocol.PhaseIdle)
		if boot == "-" {
			s.BootID = ""
		}
		if other {
			s.Message = "another"
		}
		now = now.Add(time.Minute)
		before := d
		before.Doubts = d.Doubts.Clone()
		next, _ := fleet.Examine(d, s, now)
		if !reflect.DeepEqual(before.Doubts, d.Doubts.Clone()) {
			t.Errorf("Examine changed what it was given at %s", word)
		}
		d, _, _ = fleet.Apply(next, nil, s, now)
	}
	return d
}

// TestWhatDoesNotGoTogetherIsSuspected within two reports, and what the network delivers late is not.
func TestWhatDoesNotGoTogetherIsSuspected(t *testing.T) {
	for _, c := range []struct{ name, said, want string }{
		{"one board", "a/1 a/2 a/3", ""},
		{"restarts", "a/1 a/2 b/1 b/2 c/1 d/1 e/1 f/1 g/1 h/1 i/1 j/1 k/1", ""},
		{"two boards in turn", "a/1 b/1 a/2 b/2 a/3", "alternating_boots"},
		{"two boards, one report of each after the first meeting", "a/1 b/1 a/2 a/3", ""},
		{"the second report of a board that had lost its place", "a/1 a/2 b/1 a/3 b/2 a/4", "alternating_boots"},
		{"a clone that restarts between", "a/1 b/1 a/2 c/1 a/3", "alternating_boots"},
		{"late in one bunch", "a/1 b/1 a/2 a/3 a/4 a/5 b/2 b/3", ""},
		{"repeated after a restart", "a/1 a/2 a/3 b/1 a/3 b/2 a/2 b/3 a/3 b/4 a/1", ""},
		{"once a day", "a/1 b/1 a/2 b/2 later a/3 b/3", ""},
		{"overtaken", "a/1 a/5 a/3 a/4 a/2 a/6", ""},
		{"the same again", "a/1 a/1 a/2 a/2 a/2", ""},
		{"a number twice with other words", "a/1 a/2 a/2= a/2=", "sequence_back"},
		{"once with other words", "a/1 a/2 a/2=", ""},
		{"far back in number", "a/500 a/1 a/2", "sequence_back"},
		{"far back once", "a/500 a/1 a/501", ""},
		{"back as far as lateness goes", "a/65 a/1 a/2 a/3 a/66", ""},
		{"without boot ids", "-/1 -/1= -/9 -/2 -/1", ""},
		{"without numbers", "a/0 a/0= a/0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := told(t, c.said)
			var kinds []string
			for _, s := range d.Suspicions() {
				kinds = append(kinds, string(s.Kind))
				if s.Evidence == "" || s.Since.IsZero() || s.Last.Before(s.Since) || s.Kind.Text() == string(s.Kind) {
					t.Errorf("%+v", s)
				}
			}
			if got := strings.Join(kinds, " "); got != c.want || d.Suspect() != (c.want != "") {
				t.Errorf("suspected of %q, want %q: %+v", got, c.want, d.Doubts)
			}
			if len(d.Doubts.Seqs) > 9 {
				t.Errorf("%d boots are kept", len(d.Doubts.Seqs))
			}
		})
	}
}

// TestASuspectIsFlaggedInRowLogAndListing, and believed again when an operator clears it or gives it a new login.
func TestASuspectIsFlaggedInRowLogAndListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		twins := func() {
			for n := range uint64(3) {
				hear(t, y.Fleet, "d01", status("twin", uint64(y.seqs["d01"])*10+n+1, protocol.PhaseIdle))
				y.say("d01", protocol.PhaseIdle, "")
			}
		}
		suspects := func() string {
			list, total, err := y.DevicePage(t.Context(), fleet.DeviceQuery{State: fleet.StateSuspect, Limit: 10})
			census, err2 := y.Census(t.Context(), 0)
			if err != nil || err2 != nil || total != len(list) || census.Suspect != len(list) {
				t.Fatalf("%d of %d, census %+v, %v, %v", len(list), total, census, err, err2)
			}
			var ids []string
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			return strings.Join(ids, " ")
		}
		said := func(what audit.Action, who string) {
			t.Helper()
			if e := last(t, y.store, what); e.Device != "d01" || e.Who != who {
				t.Errorf("%s: %s", what, e.Line())
			}
		}
		if got := suspects(); got != "" {
			t.Fatalf("suspected at once: %s", got)
		}
		twins()
		if got := suspects(); got != "d01" {
			t.Errorf("suspected: %q", got)
		}
		said(audit.DeviceSuspect, "server")
		d, err := y.Clear(t.Context(), anna, "d01")
		if err != nil || d.Suspect() || suspects() != "" {
			t.Errorf("after it was cleared: %+v, %v", d.Doubts, err)
		}
		said(audit.DeviceClear, "anna")
		twins()
		if got := suspects(); got != "d01" {
			t.Errorf("twins that go on are suspected again: %q", got)
		}
		if _, err := y.Enroll(t.Context(), anna, "d01"); err != nil || suspects() != "" {
			t.Errorf("after a new login: %q, %v", suspects(), err)
		}

		// A contested login is suspected as long as it is shown, and no longer.
		y.Contested("d02", []string{"192.0.2.1", "192.0.2.2"}, 3)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := suspects(); got != "d02" {
			t.Errorf("contested: %q", got)
		}
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		if got := suspects(); got != "" {
			t.Errorf("an hour after the contest: %q", got)
		}
	})
}

// TestAnImageThatWasNeverOfferedIsSuspected when it comes in the middle of an order; by hand, between orders, it is not.
func TestAnImageThatWasNeverOfferedIsSuspected(t *testing.T) {
	foreign := strings.Repeat("5", 64)
	runs := func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "6.6.6", foreign }
	for _, c := range []struct {
		name    string
		ordered bool
		phase   protocol.Phase
		change  func(*protocol.Status)
		want    bool
	}{
		{"confirmed during an order", true, protocol.PhaseConfirmed, runs, true},
		{"idle during an order", true, protocol.PhaseIdle, runs, true},
		{"on trial during an order", true, protocol.PhaseTrial, func(s *protocol.Status) { runs(s); s.RollbackPending = true }, false},
		{"flashed by hand", false, protocol.PhaseIdle, runs, false},
		{"the one that it ran", true, protocol.PhaseIdle, func(*protocol.Status) {}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				y := newYard(t, 1, everyone(fleet.FateMute))
				defer y.stop()
				y.say("d00", protocol.PhaseIdle, "", func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "0.1.0", strings.Repeat("0", 64) })
				command := ""
				if c.ordered {
					r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}})
					y.pass(r.ID, 10*time.Second)
					cmd, _, _ := y.out.get("d00")
					command = cmd.ID
				}
				y.boots["d00"]++
				y.say("d00", c.phase, command, func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "0.1.0", strings.Repeat("0", 64) }, c.change)
				d, err := y.Device(t.Context(), "d00")
				got := slices.ContainsFunc(d.Suspicions(), func(s fleet.Suspicion) bool { return s.Kind == fleet.SuspectImage })
				if err != nil || got != c.want {
					t.Errorf("suspected: %t, want %t: %+v (%v)", got, c.want, d.Doubts, err)
				}
			})
		})
	}
}
