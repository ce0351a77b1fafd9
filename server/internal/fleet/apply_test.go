package fleet_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"

	"pgregory.net/rapid"
)

var (
	t0     = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	oldSHA = strings.Repeat("aa", 32)
	newSHA = strings.Repeat("bb", 32)
)

// open is an attempt to bring 2.0.0 to d1.
func open() *fleet.Attempt {
	return &fleet.Attempt{ID: "c1/d1", CommandID: "c1", DeviceID: "d1", Action: protocol.ActionUpdate, SHA256: newSHA,
		CreatedAt: t0, UpdatedAt: t0, State: fleet.AttemptOpen}
}

// known is a device that runs 1.0.0, in its boot b1 at seq 5, idle.
func known() fleet.Device {
	s := say("b1", 5, protocol.PhaseIdle)
	return fleet.Device{ID: "d1", Online: true, FirstSeen: t0, LastSeen: t0, PhaseSince: t0, Status: s,
		Version: "1.0.0", SHA256: oldSHA, PreviousVersion: "0.9.0", Boot: "b1", Seq: 5, OldBoots: []string{"b0"}}
}

func say(boot string, seq uint64, phase protocol.Phase, change ...func(*protocol.Status)) protocol.Status {
	s := protocol.Status{BootID: boot, Seq: seq, Phase: phase, CurrentVersion: "1.0.0", ImageSHA256: oldSHA}
	s.Status, _ = phase.Code()
	for _, c := range change {
		c(&s)
	}
	return s
}

func mine(s *protocol.Status)    { s.CommandID = "c1" }
func another(s *protocol.Status) { s.CommandID = "c9" }
func runsNew(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "2.0.0", newSHA }
func onTrial(s *protocol.Status) { s.RollbackPending = true }
func because(r protocol.Reason) func(*protocol.Status) {
	return func(s *protocol.Status) { s.Reason = r }
}

func TestApply(t *testing.T) {
	taken := func(a *fleet.Attempt) { a.Phase = protocol.PhaseDownloading }
	rollback := func(a *fleet.Attempt) { a.Action, a.SHA256, a.Version = protocol.ActionRollback, "", "0.9.0" }
	named := func(a *fleet.Attempt) { a.Version = "2.0.0" }
	namedOnly := func(a *fleet.Attempt) { a.Version, a.SHA256 = "2.0.0", "" }
	seedOf := func(phase protocol.Phase, change ...func(*protocol.Status)) protocol.Status {
		s := say("", 0, phase, change...)
		s.ImageSHA256 = ""
		return s
	}
	for _, c := range []struct {
		name    string
		attempt func(*fleet.Attempt)
		status  protocol.Status
		dropped string
		state   fleet.AttemptState
		phase   protocol.Phase // of the attempt
		version string         // of the device
		lawless string
	}{
		// The order of statuses.
		{name: "next in the same boot", status: say("b1", 6, protocol.PhaseChecking, mine), state: "open", phase: "checking"},
		{name: "gap in seq", status: say("b1", 90, protocol.PhaseChecking, mine), state: "open", phase: "checking"},
		{name: "delivered twice", status: say("b1", 5, protocol.PhaseIdle), dropped: "duplicate", state: "open"},
		{name: "same seq with other words", status: say("b1", 5, protocol.PhaseFailed, mine), dropped: "duplicate", state: "open"},
		{name: "earlier seq", status: say("b1", 4, protocol.PhaseIdle), dropped: "late", state: "open"},
		{name: "earlier boot", status: say("b0", 99, protocol.PhaseIdle, runsNew), dropped: "late", state: "open"},
		{name: "new boot, seq from one", status: say("b2", 1, protocol.PhaseIdle), state: "open"},
		{name: "late end of the attempt it names", status: say("b1", 4, protocol.PhaseFailed, mine), dropped: "late", state: "failed", phase: "failed"},
		{name: "late end that names none", attempt: taken, status: say("b1", 4, protocol.PhaseFailed), dropped: "late", state: "open", phase: "downloading"},
		{name: "late phase of the attempt it names", status: say("b1", 4, protocol.PhaseDownloading, mine), dropped: "late", state: "open", phase: "downloading"},
		{name: "boot id without seq", status: say("b1", 0, protocol.PhaseChecking, mine), state: "open", phase: "checking"},
		{name: "last will", attempt: taken, status: say("b1", 0, protocol.PhaseOffline), dropped: "offline", state: "open", phase: "downloading"},
		{name: "last will with the attempt's id", attempt: taken, status: say("b1", 0, protocol.PhaseOffline, mine), dropped: "offline", state: "open", phase: "downloading"},

		// Ends.
		{name: "confirmed", attempt: taken, status: say("b2", 1, protocol.PhaseConfirmed, mine, runsNew), state: "succeeded", phase: "confirmed", version: "2.0.0", lawless: "idle > confirmed"},
		{name: "confirmed without an id", attempt: taken, status: say("b2", 3, protocol.PhaseConfirmed, runsNew), state: "succeeded", phase: "confirmed", version: "2.0.0", lawless: "idle > confirmed"},
		{name: "confirmed was lost, idle on the wanted digest", attempt: taken, status: say("b2", 9, protocol.PhaseIdle, runsNew), state: "succeeded", phase: "confirmed", version: "2.0.0"},
		{name: "idle on the wanted digest, naming another command", status: say("b2", 9, protocol.PhaseIdle, runsNew, another), state: "succeeded", phase: "confirmed", version: "2.0.0"},
		{name: "up to date with another image than the one that was named", attempt: named, status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonUpToDate)), state: "open"},
		{name: "up to date where none was named", status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonUpToDate)), state: "succeeded", phase: "confirmed"},
		{name: "another image's rollback in the name of an attempt that has not begun", status: say("b2", 1, protocol.PhaseRolledBack, mine, because(protocol.ReasonCrash), func(s *protocol.Status) { s.FailedSHA256 = strings.Repeat("cc", 32) }), state: "open"},
		{name: "rollback of a step on the way", attempt: taken, status: say("b2", 1, protocol.PhaseRolledBack, mine, because(protocol.ReasonCrash), func(s *protocol.Status) { s.FailedSHA256 = strings.Repeat("cc", 32) }), state: "rolled_back", phase: "rolled_back"},
		{name: "trial is no success", attempt: taken, status: say("b2", 1, protocol.PhaseTrial, mine, runsNew, onTrial), state: "open", phase: "trial"},
		{name: "trial without the flag is no success", attempt: taken, status: say("b2", 1, protocol.PhaseTrial, mine, runsNew), state: "open", phase: "trial"},
		{name: "idle within a trial is no success", attempt: taken, status: say("b2", 1, protocol.PhaseIdle, mine, runsNew, onTrial), state: "open", phase: "downloading"},
		{name: "giving up a trial is no success", attempt: taken, status: say("b1", 6, protocol.PhaseRebooting, mine, runsNew, onTrial), state: "open", phase: "rebooting"},
		{name: "confirmed an image on the way", attempt: named, status: say("b2", 1, protocol.PhaseConfirmed, mine, func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "1.5.0", strings.Repeat("cc", 32) }), state: "open", version: "1.5.0", lawless: "idle > confirmed"},
		{name: "confirmed an image on the way, the one wanted known by version only", attempt: namedOnly, status: say("b2", 1, protocol.PhaseConfirmed, mine, func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "1.5.0", strings.Repeat("cc", 32) }), state: "open", version: "1.5.0", lawless: "idle > confirmed"},
		{name: "confirmed the version wanted, spelled otherwise", attempt: namedOnly, status: say("b2", 1, protocol.PhaseConfirmed, mine, func(s *protocol.Status) { s.CurrentVersion = "v2.0.0" }), state: "succeeded", phase: "confirmed", version: "v2.0.0", lawless: "idle > confirmed"},
		{name: "confirmed an image whose own version says nothing", attempt: namedOnly, status: say("b2", 1, protocol.PhaseConfirmed, mine, func(s *protocol.Status) { s.CurrentVersion = "esp-idf: v4.4" }), state: "succeeded", phase: "confirmed", version: "esp-idf: v4.4", lawless: "idle > confirmed"},
		{name: "failed", status: say("b1", 6, protocol.PhaseFailed, mine, because(protocol.ReasonStalled)), state: "failed", phase: "failed", lawless: "idle > failed"},
		{name: "refused", status: say("b1", 6, protocol.PhaseRefused, mine, because(protocol.ReasonTooBig)), state: "refused", phase: "refused", lawless: "idle > refused"},
		{name: "refused without an id before it was taken up", status: say("b1", 6, protocol.PhaseRefused, because(protocol.ReasonTooBig)), state: "open", lawless: "idle > refused"},
		{name: "rolled back", attempt: taken, status: say("b3", 1, protocol.PhaseRolledBack, mine, because(protocol.ReasonCrash)), state: "rolled_back", phase: "rolled_back"},
		{name: "rolled back, id lost in the crash", attempt: taken, status: say("b3", 1, protocol.PhaseRolledBack), state: "rolled_back", phase: "rolled_back"},
		{name: "rolled back from what an older command brought", status: say("b3", 1, protocol.PhaseRolledBack), state: "open"},
		{name: "rolled back from this image, id and phases lost", status: say("b3", 1, protocol.PhaseRolledBack, func(s *protocol.Status) { s.FailedSHA256 = newSHA }), state: "rolled_back", phase: "rolled_back"},
		{name: "end of another command", attempt: taken, status: say("b1", 6, protocol.PhaseFailed, another), state: "open", phase: "downloading", lawless: "idle > failed"},

		// Answers.
		{name: "up to date", status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonUpToDate)), state: "succeeded", phase: "confirmed"},
		{name: "up to date as a refusal", status: say("b1", 6, protocol.PhaseRefused, mine, because(protocol.ReasonUpToDate)), state: "succeeded", phase: "refused", lawless: "idle > refused"},
		{name: "up to date said to another command", status: say("b1", 6, protocol.PhaseIdle, another, because(protocol.ReasonUpToDate)), state: "open"},
		{name: "expired on the way", status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonExpired)), state: "expired", phase: "refused"},
		{name: "another version offered", status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonVersionMissing)), state: "refused", phase: "refused"},
		{name: "busy with something else", status: say("b1", 6, protocol.PhaseIdle, mine, because(protocol.ReasonBusy)), state: "open"},
		{name: "a look for releases of its own accord", status: say("b1", 6, protocol.PhaseChecking), state: "open"},

		// Rollbacks.
		{name: "rollback done", attempt: rollback, status: say("b2", 1, protocol.PhaseRolledBack, mine, func(s *protocol.Status) { s.CurrentVersion = "0.9.0" }), state: "succeeded", phase: "rolled_back", version: "0.9.0"},
		{name: "rollback done, word of it lost", attempt: rollback, status: say("b2", 4, protocol.PhaseIdle, func(s *protocol.Status) { s.CurrentVersion = "0.9.0" }), state: "succeeded", phase: "confirmed", version: "0.9.0"},
		{name: "rollback done, version spelled otherwise", attempt: rollback, status: say("b2", 4, protocol.PhaseIdle, func(s *protocol.Status) { s.CurrentVersion = "v0.9.0" }), state: "succeeded", phase: "confirmed", version: "v0.9.0"},
		{name: "rollback confirmed, version spelled otherwise", attempt: rollback, status: say("b2", 4, protocol.PhaseConfirmed, mine, func(s *protocol.Status) { s.CurrentVersion = "v0.9.0" }), state: "succeeded", phase: "confirmed", version: "v0.9.0", lawless: "idle > confirmed"},
		{name: "nothing to roll back to", attempt: rollback, status: say("b1", 6, protocol.PhaseRefused, mine, because(protocol.ReasonNoRollback)), state: "refused", phase: "refused", lawless: "idle > refused"},

		// Firmware that has no ids.
		{name: "seed: checking", status: seedOf(protocol.PhaseChecking), state: "open", phase: "checking"},
		{name: "seed: success", status: seedOf(protocol.PhaseConfirmed, func(s *protocol.Status) { s.CurrentVersion = "2.0.0" }), state: "succeeded", phase: "confirmed", version: "2.0.0", lawless: "idle > confirmed"},
		{name: "seed: success with an image on the way", attempt: named, status: seedOf(protocol.PhaseConfirmed, func(s *protocol.Status) { s.CurrentVersion = "1.5.0" }), state: "open", version: "1.5.0", lawless: "idle > confirmed"},
		{name: "seed: idle on the wanted version", attempt: named, status: seedOf(protocol.PhaseIdle, func(s *protocol.Status) { s.CurrentVersion = "2.0.0" }), state: "succeeded", phase: "confirmed", version: "2.0.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, a := known(), open()
			if c.attempt != nil {
				c.attempt(a)
			}
			before, was := known(), *a
			now := t0.Add(time.Minute)
			got, next, e := fleet.Apply(d, a, c.status, now)
			if !reflect.DeepEqual(d, before) || *a != was {
				t.Error("Apply changed what it was given")
			}
			if e.Dropped != c.dropped || e.Unlawful != c.lawless {
				t.Errorf("dropped %q, unlawful %q, want %q and %q", e.Dropped, e.Unlawful, c.dropped, c.lawless)
			}
			if next.State != c.state || next.Phase != c.phase {
				t.Errorf("attempt is %s in phase %q, want %s in %q", next.State, next.Phase, c.state, c.phase)
			}
			if ended := next.State != fleet.AttemptOpen; e.Ended != ended || next.EndedAt.IsZero() == ended {
				t.Errorf("ended is %v at %v for state %s", e.Ended, next.EndedAt, next.State)
			}
			if e.Attempt != (*next != was) || e.Device != !reflect.DeepEqual(got, before) {
				t.Errorf("effects %+v do not say what changed", e)
			}
			if c.version == "" {
				c.version = "1.0.0"
			}
			if got.Version != c.version {
				t.Errorf("the device is said to run %q, want %q", got.Version, c.version)
			}
			switch c.dropped {
			case "":
				if !reflect.DeepEqual(got.Status, c.status) || !got.LastSeen.Equal(now) || !got.Online {
					t.Errorf("the status was not taken: %+v", got)
				}
			case "offline":
				before.Online = false
				fallthrough
			default:
				if !reflect.DeepEqual(got, before) {
					t.Errorf("device %+v, want %+v", got, before)
				}
			}
			if _, again, e := fleet.Apply(got, next, c.status, now); *again != *next || e.Device || e.Attempt {
				t.Errorf("the same status once more has effects: %+v", e)
			}
		})
	}
}

func TestEndedAttemptStaysEnded(t *testing.T) {
	a := open()
	a.State, a.Phase = fleet.AttemptFailed, protocol.PhaseFailed
	_, next, e := fleet.Apply(known(), a, say("b1", 6, protocol.PhaseConfirmed, mine, runsNew), t0)
	if next != a || e.Ended || e.Attempt {
		t.Errorf("attempt became %+v, effects %+v", next, e)
	}
	if _, next, e := fleet.Apply(known(), nil, say("b1", 6, protocol.PhaseConfirmed, mine, runsNew), t0); next != nil || e.Ended {
		t.Errorf("no attempt became %+v", next)
	}
}

func TestPreviousVersionIsWhatARollbackWouldBring(t *testing.T) {
	d := known()
	for _, c := range []struct {
		status protocol.Status
		want   string
	}{
		{say("b2", 1, protocol.PhaseTrial, runsNew, onTrial), "0.9.0"},
		{say("b2", 2, protocol.PhaseConfirmed, runsNew), "1.0.0"},
		{say("b2", 3, protocol.PhaseIdle, runsNew), "1.0.0"},
		{say("b3", 1, protocol.PhaseTrial, func(s *protocol.Status) { s.CurrentVersion = "3.0.0" }), "1.0.0"},
		{say("b4", 1, protocol.PhaseRolledBack, runsNew), ""}, // the failed slot is erased
	} {
		d, _, _ = fleet.Apply(d, nil, c.status, t0)
		if d.PreviousVersion != c.want {
			t.Errorf("after %s of %s: previous version %q, want %q", c.status.Phase, c.status.CurrentVersion, d.PreviousVersion, c.want)
		}
	}
}

// lives makes the statuses of a device through boots of an update: each boot a run through lawful phases, one of them
// perhaps ending the attempt.
func lives(t *rapid.T) [][]protocol.Status {
	boots := make([][]protocol.Status, rapid.IntRange(1, 4).Draw(t, "boots"))
	ended := false
	for b := range boots {
		phase := protocol.PhaseIdle
		if b > 0 && rapid.Bool().Draw(t, "rolledBack") && !ended {
			phase, ended = protocol.PhaseRolledBack, true
		}
		for seq := range rapid.IntRange(1, 8).Draw(t, "statuses") {
			s := say(fmt.Sprint("boot", b), uint64(seq+1), phase, func(s *protocol.Status) { s.Message = fmt.Sprint(b, seq) })
			if phase.Updating() || phase.Ended() {
				mine(&s)
			}
			boots[b] = append(boots[b], s)
			var next []protocol.Phase
			for _, p := range phase.Next() {
				if !p.Ended() || !ended { // a command ends once
					next = append(next, p)
				}
			}
			if len(next) == 0 {
				break
			}
			phase = rapid.SampledFrom(next).Draw(t, "phase")
			ended = ended || phase.Ended()
		}
	}
	return boots
}

// TestOrderOfArrivalDoesNotMatter: statuses shuffled and repeated leave what the sorted sequence leaves. Boot ids are
// not ordered, so a boot's first status comes before those of later boots, as a connection brings it.
func TestOrderOfArrivalDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		boots := lives(t)
		var ordered, shuffled []protocol.Status
		for _, b := range boots {
			ordered = append(ordered, b...)
		}
		late := []protocol.Status{}
		for _, b := range boots {
			pool := rapid.Permutation(append(slices.Clone(b), late...)).Draw(t, "order")
			first := rapid.SampledFrom(b).Draw(t, "first")
			cut := rapid.IntRange(0, len(pool)).Draw(t, "cut")
			shuffled = append(append(shuffled, first), pool[:cut]...)
			late = append(late[:0:0], pool[cut:]...)
		}
		shuffled = append(shuffled, late...)
		repeats := rapid.SliceOfN(rapid.SampledFrom(ordered), 0, 10).Draw(t, "repeats")
		shuffled = append(shuffled, repeats...)

		d1, a1 := fold(ordered)
		d2, a2 := fold(shuffled)
		// When a phase was entered is a matter of arrival; what is said is not.
		if d1.PreviousVersion != d2.PreviousVersion || !reflect.DeepEqual(d1.Status, d2.Status) || d1.Boot != d2.Boot || d1.Seq != d2.Seq || d1.Version != d2.Version {
			t.Fatalf("device\n%+v\nwant\n%+v", d2, d1)
		}
		if a1.State != a2.State || a1.Phase != a2.Phase || a1.State != fleet.AttemptOpen && a1.Reason != a2.Reason {
			t.Fatalf("attempt is %s in %q, want %s in %q", a2.State, a2.Phase, a1.State, a1.Phase)
		}
	})
}

func fold(statuses []protocol.Status) (fleet.Device, fleet.Attempt) {
	d, a := fleet.Device{ID: "d1"}, open()
	for _, s := range statuses {
		d, a, _ = fleet.Apply(d, a, s, t0)
	}
	return d, *a
}

func TestAnyStatusAtAnyTimeIsNoPanic(t *testing.T) {
	boot := rapid.SampledFrom([]string{"", "b0", "b1", "b2"})
	command := rapid.SampledFrom([]string{"", "c1", "c9"})
	phase := rapid.SampledFrom(append(protocol.Phases(), "", "nonsense"))
	reason := rapid.SampledFrom(append(protocol.Reasons(), ""))
	rapid.Check(t, func(t *rapid.T) {
		d, a := known(), open()
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			s := say(boot.Draw(t, "boot"), rapid.Uint64().Draw(t, "seq"), phase.Draw(t, "phase"))
			s.CommandID, s.Reason, s.RollbackPending = command.Draw(t, "command"), reason.Draw(t, "reason"), rapid.Bool().Draw(t, "pending")
			if rapid.Bool().Draw(t, "new") {
				runsNew(&s)
			}
			was := a.State
			next, na, e := fleet.Apply(d, a, s, t0)
			if was != fleet.AttemptOpen && na.State != was {
				t.Fatalf("an attempt that was %s became %s", was, na.State)
			}
			if next.Version == "2.0.0" && d.Version != "2.0.0" && (s.Phase == protocol.PhaseTrial || s.CurrentVersion != "2.0.0" || e.Dropped != "") {
				t.Fatalf("said to run 2.0.0 after %+v", s)
			}
			d, a = next, na
		}
		if len(d.OldBoots) > 8 {
			t.Fatalf("%d old boots are kept", len(d.OldBoots))
		}
	})
}

// What outlives a status holds no part of its text: rows are kept, and a boot id of some bytes would hold a payload of kilobytes each.
func TestWhatOutlivesAStatusIsNoPartOfIt(t *testing.T) {
	text := strings.Repeat("x", protocol.MaxStatus-2) + "b1"
	s := protocol.Status{BootID: text[len(text)-2:], Seq: 1, Phase: protocol.PhaseFailed, CommandID: "c", Message: text[len(text)-3:], CurrentVersion: text[len(text)-1:]}
	a := fleet.Attempt{State: fleet.AttemptOpen, CommandID: "c", Action: protocol.ActionUpdate}
	d, next, _ := fleet.Apply(fleet.Device{ID: "d"}, &a, s, time.Unix(1, 0))
	s2 := s
	s2.Seq, s2.CurrentVersion = 2, "2"
	d, _, _ = fleet.Apply(d, nil, s2, time.Unix(2, 0))
	for name, pair := range map[string][2]string{"boot": {d.Boot, s.BootID}, "message": {next.Message, s.Message}, "previous version": {d.PreviousVersion, s.CurrentVersion}} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", name, pair[0], pair[1])
		}
		if unsafe.StringData(pair[0]) == unsafe.StringData(pair[1]) {
			t.Errorf("%s holds the text of the status", name)
		}
	}
}
