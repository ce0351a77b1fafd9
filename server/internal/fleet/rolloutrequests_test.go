package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func TestDryRunSaysWhoCannotAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 9, everyone(fleet.FateGood))
		defer y.stop()
		y.good = y.publish(t, build(t, version("3.0.0")), func(m *manifest.Manifest) { m.MinVersion = "1.1.0" })
		for i, change := range []func(*protocol.Status){
			func(s *protocol.Status) { s.SlotSize = 100 },
			func(s *protocol.Status) { s.RollbackProtected = false },
			func(s *protocol.Status) { s.SecureVersion = 9 },
			func(s *protocol.Status) { s.CurrentVersion = "4.0.0" },
			func(s *protocol.Status) { s.Chip = "esp32s3" },
			func(s *protocol.Status) { s.CurrentVersion, s.ImageSHA256 = "3.0.0", y.good.SHA256 },
		} {
			y.say(fmt.Sprintf("d%02d", i), protocol.PhaseIdle, "", change)
		}
		if err := y.Revoke(t.Context(), anna, "d06"); err != nil {
			t.Fatal(err)
		}
		if _, err := y.Enroll(t.Context(), anna, "new"); err != nil {
			t.Fatal(err)
		}
		ids := []string{"new", "nobody"}
		for id := range y.fates {
			ids = append(ids, id)
		}
		d, err := y.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "3.0.0", Policy: fleet.Policy{Selector: fleet.Selector{IDs: ids}}})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range d.Cannot {
			got += c.DeviceID + "=" + c.Reason + " "
		}
		want := "d00=too_big d01=unprotected d02=security_floor d03=downgrade d04=wrong_chip d06=revoked new=never_seen nobody=unknown "
		if got != want {
			t.Errorf("cannot:\n got %s\nwant %s", got, want)
		}
		if !strings.Contains(d.Cannot[0].Detail, "too many") {
			t.Errorf("no figures in %q", d.Cannot[0].Detail)
		}
		for n, want := range map[int]error{2: fleet.ErrRefused, 3: nil} {
			if _, err := y.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "3.0.0", Policy: fleet.Policy{Selector: fleet.Selector{IDs: ids}}, Expect: &n}); !errors.Is(err, want) {
				t.Errorf("%d expected: %v, want %v", n, err, want)
			}
		}
		if len(d.Selection.Members) != 3 || d.UpToDate != 1 || d.Through != 2 || d.Rollout.Members != 3 {
			t.Errorf("%d members, %d up to date, %d through another version", len(d.Selection.Members), d.UpToDate, d.Through)
		}
		if list, err := y.Rollouts(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("a dry run left %d rollouts (%v)", len(list), err)
		}
	})
}

func TestWavesNestAndRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 40, everyone(fleet.FateGood))
		defer y.stop()
		plan := func(seed string, ids []string) []string {
			s := fleet.Selector{IDs: ids, All: ids == nil}
			d, err := y.PlanRollout(t.Context(), anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: s, Seed: seed}})
			if err != nil {
				t.Fatal(err)
			}
			var order []string
			for _, m := range d.Selection.Members {
				order = append(order, m.DeviceID)
			}
			return order
		}
		all := plan("x", nil)
		if !slices.Equal(all, plan("x", nil)) || slices.Equal(all, plan("y", nil)) || slices.IsSorted(all) {
			t.Errorf("the order is not that of the seed: %v", all)
		}
		half := plan("x", all[10:30])
		if !slices.Equal(half, all[10:30]) {
			t.Errorf("fewer devices change the order of the others: %v, %v", half, all[10:30])
		}
	})
}

func TestRolloutRequestsThatMakeNoSenseChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		all := fleet.Selector{All: true}
		for name, c := range map[string]struct {
			req  fleet.RolloutRequest
			want error
		}{
			"no selector":    {fleet.RolloutRequest{Version: "1.1.0"}, fleet.ErrInvalid},
			"all and some":   {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true, Chip: "esp32"}}}, fleet.ErrInvalid},
			"no version":     {fleet.RolloutRequest{Policy: fleet.Policy{Selector: all}}, fleet.ErrInvalid},
			"unknown":        {fleet.RolloutRequest{Version: "9.9.9", Policy: fleet.Policy{Selector: all}}, fleet.ErrNotFound},
			"bad id":         {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{IDs: []string{"a/b"}}}}, fleet.ErrInvalid},
			"bad range":      {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{Versions: ">>1"}}}, fleet.ErrInvalid},
			"bad window":     {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Window: "25:00-01:00"}}, fleet.ErrInvalid},
			"bad wave":       {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Waves: []fleet.Wave{{Percent: 101}}}}, fleet.ErrInvalid},
			"half a wave":    {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Waves: []fleet.Wave{{Percent: 50}}}}, fleet.ErrInvalid},
			"both in a wave": {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Waves: []fleet.Wave{{Percent: 100, Count: 3}}}}, fleet.ErrInvalid},
			"no limit":       {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Stop: fleet.Stop{RolledBack: limit(1)}}}, fleet.ErrInvalid},
			"below nothing":  {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Stop: fleet.Stop{Failed: limit(-1)}}}, fleet.ErrInvalid},
			"odd spread":     {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Spread: "a b"}}, fleet.ErrInvalid},
			"other count":    {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all}, Expect: limit(4)}, fleet.ErrRefused},
			"nobody":         {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{IDs: []string{"x"}}}}, fleet.ErrRefused},
			"much soak":      {fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all, Waves: []fleet.Wave{{Percent: 100, Soak: 1 << 62}}}}, fleet.ErrInvalid},
		} {
			if _, err := y.CreateRollout(t.Context(), anna, c.req); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		if _, err := y.CreateRollout(t.Context(), fleet.Identity{Name: "d00", Role: fleet.RoleDevice}, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: all}}); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("a device makes a rollout: %v", err)
		}
		for key, value := range map[string]string{"": "x", "Big": "x", "a b": "x", "ok": "", "ok2": "a b", "timezone": "Mars/Base", "tz ": "x", strings.Repeat("k", 33): "x", "long": strings.Repeat("v", 65)} {
			if _, err := y.SetLabels(t.Context(), anna, "d00", fleet.Labels{key: value}, nil); !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("label %q=%q: %v", key, value, err)
			}
		}
		if list, err := y.Rollouts(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%d rollouts are there (%v)", len(list), err)
		}
		if d, err := y.Device(t.Context(), "d00"); err != nil || len(d.Labels) != 0 {
			t.Errorf("labels %v (%v)", d.Labels, err)
		}
	})
}

func TestOneRequestMakesOneRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		req := fleet.RolloutRequest{Version: "1.1.0", Key: "k", Policy: fleet.Policy{Selector: fleet.Selector{All: true}}}
		first, err := y.CreateRollout(t.Context(), anna, req)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := y.CreateRollout(t.Context(), anna, req); err != nil || again.ID != first.ID {
			t.Errorf("again: %s, %v; want %s", again.ID, err, first.ID)
		}
		// What was made was made, whatever has become of the release since.
		if err := y.Withdraw(t.Context(), anna, y.good.SHA256); err != nil {
			t.Fatal(err)
		}
		if again, err := y.CreateRollout(t.Context(), anna, req); err != nil || again.ID != first.ID {
			t.Errorf("again, after the release was withdrawn: %s, %v; want %s", again.ID, err, first.ID)
		}
		req.Policy.Retries = 3
		if _, err := y.CreateRollout(t.Context(), anna, req); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("the key with another request: %v", err)
		}
	})
}

// TestHaltAndAttemptsSurviveARestart: a second process on the same rows starts nothing of a halted rollout, goes on with
// a running one, and doubles no attempt.
func TestHaltAndAttemptsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 6, everyone(fleet.FateMute))
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Count: 2}, {Percent: 100}}, Stop: fleet.Stop{Failed: limit(0)}})
		y.pass(r.ID, 5*time.Second)
		if len(y.starts) != 2 {
			t.Fatalf("%d boards were started, the wave is of 2", len(y.starts))
		}
		restart := func() {
			y.stop()
			time.Sleep(time.Hour)
			y.shop.Fleet = newFleet(t, fleet.Config{Store: y.store})
			y.out = newOutbox()
			y.stop = start(t, y.Fleet, y.out)
			synctest.Wait()
			for id := range y.fates {
				y.connect(id)
			}
		}
		restart()
		defer func() { y.stop() }()
		y.pass(r.ID, 10*time.Minute)
		for id := range y.starts {
			if cmd, retained, _ := y.out.get(id); !retained || cmd.ID != y.did[id] {
				t.Errorf("%s has %+v after the restart, it had %s", id, cmd, y.did[id])
			}
			if list, err := y.Attempts(t.Context(), id, 10); err != nil || len(list) != 1 || list[0].State != fleet.AttemptOpen {
				t.Errorf("attempts of %s after the restart: %+v %v", id, list, err)
			}
		}
		y.pass(r.ID, 2*time.Hour, fleet.RolloutHalted)
		for id := range y.fates {
			y.fates[id] = fleet.FateGood
		}
		restart()
		if end := y.pass(r.ID, 5*time.Hour); end.State != fleet.RolloutHalted || len(y.starts) != 2 {
			t.Errorf("after the restart it is %s, and %d boards were started", end.State, len(y.starts))
		}
	})
}

func TestRehearsalRunsThisPolicyOverThisFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 50, everyone(fleet.FateGood))
		defer y.stop()
		req := fleet.RehearsalRequest{Rollout: fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true},
			Waves: []fleet.Wave{{Count: 5, Soak: time.Hour}, {Percent: 100}}, Stop: fleet.Stop{Failed: limit(0)}}},
			Mix: fleet.Mix{fleet.FateCrash: 1}, Seed: "s"}
		out, err := y.Rehearse(t.Context(), anna, req)
		if err != nil {
			t.Fatal(err)
		}
		if out.Members != 50 || out.Bad.State != fleet.RolloutHalted || out.Bad.Touched > 5 || out.Bad.Harmed == 0 || out.Bad.Wave != 1 {
			t.Errorf("a bad build: %+v", out.Bad)
		}
		if out.Good.State != fleet.RolloutDone || out.Good.Touched != 50 || out.Good.Took < time.Hour || out.Good.Took > 2*time.Hour {
			t.Errorf("a good build: %+v", out.Good)
		}
		again, err := y.Rehearse(t.Context(), anna, req)
		if err != nil || again.Bad.Took != out.Bad.Took || again.Bad.Touched != out.Bad.Touched {
			t.Errorf("the same request gave %+v and %+v (%v)", out.Bad, again.Bad, err)
		}
		if list, err := y.Rollouts(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("a rehearsal left %d rollouts (%v)", len(list), err)
		}
		req.Mix = fleet.Mix{"odd": 1}
		if _, err := y.Rehearse(t.Context(), anna, req); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("an unknown fate: %v", err)
		}
		req.Mix = fleet.Mix{fleet.FateGood: 0.9, fleet.FateCrash: 0.2}
		if _, err := y.Rehearse(t.Context(), anna, req); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("shares of more than one: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		req.Mix = fleet.Mix{fleet.FateGood: 1}
		if _, err := y.Rehearse(ended, anna, req); !errors.Is(err, context.Canceled) {
			t.Errorf("an ended context: %v", err)
		}
	})
}
