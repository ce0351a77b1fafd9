package fleet_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// ranked are the members of a rollout, by rank.
func (y *yard) ranked(id string) []fleet.MemberView {
	y.t.Helper()
	list, err := y.RolloutMembers(y.t.Context(), id, "", -1, 1000)
	if err != nil {
		y.t.Fatal(err)
	}
	return list
}

// firstOf is who would be in the first wave.
func (y *yard) firstOf(p fleet.Policy) string {
	y.t.Helper()
	p.Selector.All = true
	d, err := y.PlanRollout(y.t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: p})
	if err != nil {
		y.t.Fatal(err)
	}
	return d.Selection.Members[0].DeviceID
}

// TestAWaveTakesAnotherInPlaceOfOneThatIsAway: three monitors, and the one of the first wave is off. The
// other two get the release in the waves of the policy; the third gets it when it is back.
func TestAWaveTakesAnotherInPlaceOfOneThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		away := y.firstOf(fleet.Policy{})
		y.disconnect(away)
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		r := y.create(fleet.Policy{})
		if !slices.Equal(r.Limits, []int{1, 3}) {
			t.Fatalf("waves %v", r.Limits)
		}
		now := y.pass(r.ID, time.Minute)
		if now.Figures.Succeeded != 1 || now.Wave != 0 || now.SoakSince.IsZero() {
			t.Errorf("after a minute: %+v in wave %d, soaks since %v", now.Figures, now.Wave, now.SoakSince)
		}
		if m := y.members(r.ID)[away]; m.Rank == 0 || !strings.Contains(m.Message, "took its place") {
			t.Errorf("%s is %+v", away, m)
		}
		now = y.pass(r.ID, time.Hour)
		if now.Figures != (fleet.Figures{Succeeded: 2, Pending: 1}) || now.State != fleet.RolloutRunning || now.Wave != 1 {
			t.Errorf("after an hour: %s, %+v in wave %d", now.State, now.Figures, now.Wave)
		}
		y.connect(away)
		y.pass(r.ID, time.Minute, fleet.RolloutDone)
		for i, m := range y.ranked(r.ID) {
			if m.Rank != i || m.State != fleet.MemberSucceeded {
				t.Errorf("rank %d is %+v", i, m)
			}
		}
	})
}

// TestAWaveWaitsForOneThatLeftSinceItBegan: it was there, so it counts. It is said who is waited for, and an operator can
// leave it out.
func TestAWaveWaitsForOneThatLeftSinceItBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 4, everyone(fleet.FateGood))
		defer y.stop()
		p := fleet.Policy{Waves: []fleet.Wave{{Count: 2}, {Percent: 100}}, Gate: fleet.Gate{NotWhileCharging: true}}
		left := y.firstOf(p)
		charging := func(s *protocol.Status) { s.Battery = &protocol.Battery{SOCPct: 80, Charging: true} }
		y.say(left, protocol.PhaseIdle, "", charging)
		r := y.create(p)
		now := y.pass(r.ID, time.Minute)
		if len(now.Waits) != 1 || now.Waits[0] != (fleet.Wait{DeviceID: left, Hold: "charging"}) {
			t.Errorf("it waits for %+v", now.Waits)
		}
		since := time.Now()
		y.say(left, protocol.PhaseIdle, "", charging) // it charges to the last: the planner may look before it is gone
		y.disconnect(left)
		now = y.pass(r.ID, 2*time.Hour)
		if now.Figures.Succeeded != 1 || now.Wave != 0 || len(now.Waits) != 1 || now.Waits[0].Hold != fleet.HoldOffline || !now.Waits[0].Since.Equal(since) {
			t.Errorf("after two hours: %+v in wave %d; it waits for %+v", now.Figures, now.Wave, now.Waits)
		}
		if w := now.Waves[0]; w.Figures != (fleet.Figures{Succeeded: 1, Pending: 1}) || w.Held[fleet.HoldOffline] != 1 || now.Waves[1].Held[fleet.HoldWave] != 2 {
			t.Errorf("waves %+v", now.Waves)
		}
		if _, err := y.SkipMember(t.Context(), anna, r.ID, left); err != nil {
			t.Fatal(err)
		}
		for id := range y.fates {
			if id != left {
				y.say(id, protocol.PhaseIdle, "", y.updatedWhere(r.ID, id))
			}
		}
		end := y.pass(r.ID, time.Minute, fleet.RolloutDone)
		if end.Figures != (fleet.Figures{Succeeded: 3, Skipped: 1}) || !slices.Equal(end.Limits, []int{3, 4}) ||
			!strings.Contains(end.Events[2].Text, "wave 1 of 2 stands: 2 succeeded") {
			t.Errorf("figures %+v, limits %v, %+v", end.Figures, end.Limits, end.Events)
		}
	})
}

// updatedWhere has a board say the version that it runs.
func (y *yard) updatedWhere(rollout, id string) func(*protocol.Status) {
	if y.members(rollout)[id].State == fleet.MemberSucceeded {
		return y.updated
	}
	return func(*protocol.Status) {}
}

// TestDevicesThatFailAndLeaveDoNotLetAWavePass: one of ten fails its try and goes, nine are enough by the policy. The wave
// does not stand until the tenth is silent, and then it is a failure as any other.
func TestDevicesThatFailAndLeaveDoNotLetAWavePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 20, everyone(fleet.FateGood))
		defer y.stop()
		p := fleet.Policy{Waves: []fleet.Wave{{Count: 10}, {Percent: 100}}, Stop: fleet.Stop{Failed: limit(0)}, Retries: 2, RetryAfter: time.Minute, Silence: 10 * time.Minute}
		bad := y.firstOf(p)
		y.fates[bad] = fleet.FateFail
		r := y.create(p)
		y.pass(r.ID, 3*time.Second)
		y.disconnect(bad)
		now := y.pass(r.ID, 8*time.Minute)
		if now.Wave != 0 || !now.SoakSince.IsZero() || now.Figures.Succeeded != 9 {
			t.Errorf("it is in wave %d with %+v", now.Wave, now.Figures)
		}
		end := y.pass(r.ID, 10*time.Minute, fleet.RolloutHalted)
		if end.Halt.Rule != "failed" || len(y.starts) != 10 {
			t.Errorf("halt %+v after %d starts", end.Halt, len(y.starts))
		}
	})
}

// TestAnOutageIsNoReasonToTakeOthers: who has been heard of lately, and who left in the middle of an update, keeps the place.
func TestAnOutageIsNoReasonToTakeOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 6, everyone(fleet.FateGood))
		defer y.stop()
		p := fleet.Policy{Waves: []fleet.Wave{{Count: 1}, {Percent: 100}}}
		first := y.firstOf(p)
		y.disconnect(first)
		r := y.create(p)
		y.pass(r.ID, 20*time.Minute) // shorter than the silence
		if len(y.starts) != 0 {
			t.Errorf("%v were started in place of one that left a moment ago", y.starts)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		p := fleet.Policy{Waves: []fleet.Wave{{Count: 1}, {Percent: 100}}}
		first := y.firstOf(p)
		y.say(first, protocol.PhaseDownloading, "x")
		y.disconnect(first)
		time.Sleep(48 * time.Hour)
		r := y.create(p)
		if y.pass(r.ID, time.Hour); len(y.starts) != 0 {
			t.Errorf("%v were started in place of one that left in an update", y.starts)
		}
	})
}

// TestLeavingOutMovesNoLimit: whoever is left out, of this wave or a later one, a wave touches as many devices as the policy
// says, and its rules are measured by them.
func TestLeavingOutMovesNoLimit(t *testing.T) {
	for out := range 4 {
		synctest.Test(t, func(t *testing.T) {
			y := newYard(t, 6, everyone(fleet.FateGood))
			defer y.stop()
			p := fleet.Policy{Waves: []fleet.Wave{{Count: 1, Soak: time.Hour}, {Count: 3, Soak: time.Hour}, {Percent: 100}}, Window: "01:00-05:00"}
			r := y.create(p)
			skipped := y.ranked(r.ID)[out].DeviceID
			if _, err := y.SkipMember(t.Context(), anna, r.ID, skipped); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour - time.Since(r.CreatedAt)%time.Hour)
			for i, want := range []int{1, 3 - map[bool]int{true: 1}[out == 1 || out == 2], 5} {
				y.pass(r.ID, time.Minute)
				if len(y.starts) != want {
					t.Errorf("without rank %d: %d were started in wave %d, want %d", out, len(y.starts), i+1, want)
				}
				y.pass(r.ID, time.Hour)
			}
			if v := y.pass(r.ID, time.Minute, fleet.RolloutDone); v.Figures != (fleet.Figures{Succeeded: 5, Skipped: 1}) || y.starts[skipped] != 0 {
				t.Errorf("without rank %d: %+v", out, v.Figures)
			}
		})
	}
}

// TestAMemberCanBeLeftOut holds the verb to its limits.
func TestAMemberCanBeLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateMute))
		defer y.stop()
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Count: 1, Soak: time.Hour}, {Percent: 100}}})
		y.pass(r.ID, 3*time.Second)
		list := y.ranked(r.ID)
		for _, c := range []struct {
			by     fleet.Identity
			device string
			want   error
		}{{anna, list[0].DeviceID, fleet.ErrConflict}, {anna, "nobody", fleet.ErrNotFound}, {fleet.Identity{Name: "eve", Role: fleet.RoleViewer}, list[1].DeviceID, fleet.ErrDenied}, {anna, list[1].DeviceID, nil}, {anna, list[1].DeviceID, fleet.ErrConflict}} {
			if _, err := y.SkipMember(t.Context(), c.by, r.ID, c.device); !errors.Is(err, c.want) {
				t.Errorf("skip of %s by %s: %v, want %v", c.device, c.by.Name, err, c.want)
			}
		}
		v, err := y.Abort(t.Context(), anna, r.ID)
		if err != nil || v.Figures.Skipped != 1 || !strings.Contains(v.Events[len(v.Events)-2].Text, list[1].DeviceID) {
			t.Errorf("%+v %+v (%v)", v.Figures, v.Events, err)
		}
		if e := last(t, y.store, audit.RolloutChange); e.Device != list[1].DeviceID || e.Who != anna.Name || e.Rollout != r.ID {
			t.Errorf("the log says %+v of who was left out", e)
		}
		if _, err := y.SkipMember(t.Context(), anna, r.ID, list[2].DeviceID); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("skip in a rollout that was aborted: %v", err)
		}
	})
}

// TestALongStoryKeepsItsBeginningAndItsEnd: however often operators have turned a rollout on and off, what comes next is in
// its events and in the audit log, and is what a webhook is told.
func TestALongStoryKeepsItsBeginningAndItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		if _, err := y.AddWebhook(t.Context(), boss, "https://example.org/", nil); err != nil {
			t.Fatal(err)
		}
		r := y.create(fleet.Policy{Window: "01:00-01:01"})
		for range 120 {
			for _, verb := range []func(context.Context, fleet.Identity, string) (fleet.RolloutView, error){y.Pause, y.Resume} {
				time.Sleep(time.Millisecond)
				if _, err := verb(t.Context(), anna, r.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		v, err := y.Abort(t.Context(), anna, r.ID)
		if err != nil || len(v.Events) != 200 || !strings.Contains(v.Events[0].Text, "created") || v.Events[199].Text != "aborted in wave 1 of 2" {
			t.Errorf("%d events, the first %+v, the last %+v (%v)", len(v.Events), v.Events[0], v.Events[len(v.Events)-1], err)
		}
		rows, err := y.Audit(t.Context(), boss, fleet.AuditQuery{Rollout: r.ID, Limit: 1000})
		for _, e := range rows {
			if what := e.Details.Get("what"); what == "" || strings.Count(what, ";") > 1 {
				t.Errorf("row %+v", e)
			}
		}
		if err != nil || len(rows) != 242 {
			t.Errorf("%d rows (%v)", len(rows), err)
		}
		due, err := y.Deliverable(t.Context())
		if err != nil || len(due) != 1 || !strings.Contains(due[0].Delivery.Body, `"text":"aborted in wave 1 of 2"`) {
			t.Errorf("%+v (%v)", due, err)
		}
	})
}
