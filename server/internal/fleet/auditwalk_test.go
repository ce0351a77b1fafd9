package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// retold is what the log tells, row by row: everything that it promises to tell of, without a look at the rows of the
// store.
func retold(rows []audit.Entry) map[string]string {
	told := make(map[string]string)
	for _, e := range rows {
		device, rollout := "device "+e.Device, "rollout "+e.Rollout
		switch e.What {
		case audit.ReleasePublish:
			told["release "+e.About] = e.Details.Get("version")
		case audit.ReleaseWithdraw:
			told["release "+e.About] = "withdrawn"
		case audit.ChannelSet:
			told["channel "+e.Details.Get("project")+"/"+e.Details.Get("chip")+"/"+e.Details.Get("channel")] = e.About
		case audit.KeyAdd:
			told["key of "+e.Details.Get("project")] = "yes"
		case audit.DeviceSeen:
			told[device] = "in"
		case audit.DeviceEnroll:
			told[device] = "in"
			told[device+" logins"] += "*"
		case audit.DeviceRevoke:
			told[device] = "revoked"
		case audit.DeviceLabel:
			for _, d := range e.Details {
				told[device+" label "+d.Key] = strings.TrimPrefix(d.Value, "(removed)")
			}
		case audit.AttemptBegin:
			told["attempt "+e.About] = "open"
		case audit.AttemptEnd:
			told["attempt "+e.About] = e.Details.Get("state")
		case audit.RolloutCreate:
			told[rollout] = "running"
			told[rollout+" wave"] = "1"
		case audit.RolloutPause, audit.RolloutResume, audit.RolloutAbort, audit.RolloutHalt, audit.RolloutDone:
			told[rollout] = map[audit.Action]string{audit.RolloutPause: "paused", audit.RolloutResume: "running", audit.RolloutAbort: "aborted",
				audit.RolloutHalt: "halted", audit.RolloutDone: "done"}[e.What]
		case audit.RolloutAdvance:
			told[rollout+" wave"], _, _ = strings.Cut(e.Details.Get("wave"), " ")
		case audit.QuarantineSet:
			told["quarantine "+e.About] = "stands"
		case audit.QuarantineLift:
			told["quarantine "+e.About] = ""
		case audit.AccountAdd:
			told["account "+e.About] = e.Details.Get("role")
			told["account "+e.About+" passwords"] = "*"
		case audit.AccountPassword:
			told["account "+e.About+" passwords"] += "*"
		case audit.AccountRemove:
			told["account "+e.About], told["account "+e.About+" passwords"] = "", ""
		case audit.TokenAdd, audit.TokenChange:
			told["token "+e.About] = e.Details.Get("role")
		case audit.TokenRemove:
			told["token "+e.About] = ""
		}
	}
	maps.DeleteFunc(told, func(_, v string) bool { return v == "" })
	return told
}

// stands is the same of the rows of the store. What only counts (logins of a device, passwords) is kept by the walk.
func stands(tx fleet.Tx, secrets *secrets) (map[string]string, error) {
	now := make(map[string]string)
	releases, e1 := tx.Releases()
	for _, r := range releases {
		now["release "+r.SHA256] = r.Version
		if r.Withdrawn {
			now["release "+r.SHA256] = "withdrawn"
		}
		if q, err := tx.Quarantine(r.SHA256); err == nil && q.Stands() {
			now["quarantine "+r.SHA256] = "stands"
		}
	}
	channels, e2 := tx.Channels()
	for _, c := range channels {
		now["channel "+c.Project+"/"+c.Chip+"/"+c.Name] = c.SHA256
	}
	if keys, _ := tx.Keys("bms"); len(keys) > 0 {
		now["key of bms"] = "yes"
	}
	devices, e3 := tx.Devices()
	for _, d := range devices {
		now["device "+d.ID] = "in"
		if d.Revoked {
			now["device "+d.ID] = "revoked"
		}
		if n := secrets.count("device "+d.ID, d.TokenSHA256); n != "" {
			now["device "+d.ID+" logins"] = n
		}
		for key, value := range d.Labels {
			now["device "+d.ID+" label "+key] = value
		}
		attempts, err := tx.AttemptsOf(d.ID, 1<<20)
		e3 = errors.Join(e3, err)
		for _, a := range attempts {
			now["attempt "+a.ID] = string(a.State)
		}
	}
	rollouts, e4 := tx.Rollouts()
	for _, r := range rollouts {
		now["rollout "+r.ID] = string(r.State)
		now["rollout "+r.ID+" wave"] = fmt.Sprint(r.Wave + 1)
	}
	accounts, e5 := tx.Accounts()
	for holder := range secrets.n { // who comes again begins anew
		name, ok := strings.CutPrefix(holder, "account ")
		if ok && !slices.ContainsFunc(accounts, func(a fleet.Account) bool { return a.Name == name }) {
			delete(secrets.n, holder)
		}
	}
	for _, a := range accounts {
		now["account "+a.Name] = string(a.Role)
		now["account "+a.Name+" passwords"] = secrets.count("account "+a.Name, a.Password)
	}
	tokens, e6 := tx.Operators()
	for _, o := range tokens {
		now["token "+o.Name] = string(o.Role)
	}
	return now, errors.Join(e1, e2, e3, e4, e5, e6)
}

// secrets counts the different ones that were seen of each holder, as stars.
type secrets struct {
	last map[string]string
	n    map[string]int
}

func (s *secrets) count(holder, secret string) string {
	if secret != "" && s.last[holder] != secret {
		s.last[holder] = secret
		s.n[holder]++
	}
	return strings.Repeat("*", s.n[holder])
}

// compare says where log and rows differ.
func compare(t *testing.T, s fleet.Store, seen *secrets) (differences []string) {
	t.Helper()
	told := retold(readLog(t, s))
	err := s.View(t.Context(), func(tx fleet.Tx) error {
		now, err := stands(tx, seen)
		for what, value := range now {
			if told[what] != value {
				differences = append(differences, fmt.Sprintf("%s is %q, the log tells %q", what, value, told[what]))
			}
		}
		for what, value := range told {
			if _, ok := now[what]; !ok {
				differences = append(differences, fmt.Sprintf("%s is not there, the log tells %q", what, value))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return differences
}

// Whatever is done, in whatever order: what the log tells, from its rows alone, is what stands in the store.
func TestTheLogTellsWhatStandsInTheStore(t *testing.T) {
	for n := range 2 {
		seed := uint64(time.Now().UnixNano()) + uint64(n)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { auditWalk(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

func auditWalk(t *testing.T, r *rand.Rand) {
	ctx := t.Context()
	fates := fleet.Fates()
	y := newYardFor(t, fleet.Config{Silence: 2 * time.Minute, Expiry: time.Hour}, 8, func(int) fleet.Fate { return fates[r.IntN(len(fates))] })
	defer y.stop()
	seen := &secrets{last: map[string]string{}, n: map[string]int{}}
	var cookies []string
	done := make(map[string]int)
	minor := 2
	device := func() string { return fmt.Sprintf("d%02d", r.IntN(8)) }
	name := func() string { return []string{"carl", "dora"}[r.IntN(2)] }
	some := func() fleet.Release {
		list, err := y.Releases(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list[r.IntN(len(list))]
	}
	rollout := func() string {
		list, err := y.Rollouts(ctx)
		if err != nil || len(list) == 0 {
			return "r-none"
		}
		return list[r.IntN(len(list))].ID
	}
	order := func(device, text string) error { _, err := y.Order(ctx, anna, device, false, []byte(text)); return err }
	verbs := []struct {
		name string
		do   func() error
	}{
		{"publish", func() error {
			b := build(t, version(fmt.Sprintf("1.%d.0", minor)))
			minor++
			y.publish(t, b)
			return nil
		}},
		{"withdraw", func() error {
			if minor < 5 || r.IntN(3) > 0 {
				return nil
			}
			return y.Withdraw(ctx, anna, some().SHA256)
		}},
		{"set channel", func() error {
			_, err := y.SetChannel(ctx, anna, "bms", "", []string{"stable", "next"}[r.IntN(2)], some().Version)
			return err
		}},
		{"enroll", func() error { _, err := y.Enroll(ctx, anna, device()); return err }},
		{"revoke", func() error { return y.Revoke(ctx, anna, device()) }},
		{"label", func() error {
			_, err := y.SetLabels(ctx, anna, device(), fleet.Labels{"site": fmt.Sprint(r.IntN(3))}, []string{"bank"}[:r.IntN(2)])
			return err
		}},
		{"order update", func() error { return order(device(), `{"action":"update","version":"`+some().Version+`"}`) }},
		{"order all", func() error { return order("", `{"action":"update"}`) }},
		{"order rollback", func() error { return order(device(), `{"action":"rollback"}`) }},
		{"order status", func() error { return order(device(), `{"action":"status"}`) }},
		{"command", func() error {
			_, err := y.Command(ctx, teller{y.out}, anna, device(), protocol.Command{Action: protocol.ActionUpdate})
			return err
		}},
		{"take back", func() error { _, err := y.Order(ctx, anna, device(), true, nil); return err }},
		{"work", func() error { y.work(); return nil }},
		{"connect", func() error { return y.Connected(ctx, device()) }},
		{"disconnect", func() error { return y.Disconnected(ctx, device()) }},
		{"a new device", func() error {
			hear(t, y.Fleet, fmt.Sprint("n", r.IntN(20)), status("b", uint64(1+r.IntN(1000)), protocol.PhaseIdle))
			return nil
		}},
		{"create rollout", func() error {
			_, err := y.CreateRollout(ctx, anna, fleet.RolloutRequest{Version: some().Version, Policy: fleet.Policy{Selector: fleet.Selector{All: true},
				Waves: []fleet.Wave{{Count: 2, Soak: time.Minute}, {Percent: 100}}, Silence: time.Minute, Deadline: 10 * time.Minute, OverrideGates: r.IntN(2) == 0}})
			return err
		}},
		{"pause", func() error { _, err := y.Pause(ctx, anna, rollout()); return err }},
		{"resume", func() error { _, err := y.Resume(ctx, anna, rollout()); return err }},
		{"abort", func() error { _, err := y.Abort(ctx, anna, rollout()); return err }},
		{"lift", func() error { return y.LiftQuarantine(ctx, anna, some().SHA256) }},
		{"add account", func() error { return y.AddAccount(ctx, boss, name(), fleet.RoleOperator, goodPassword) }},
		{"remove account", func() error { return y.RemoveAccount(ctx, boss, name()) }},
		{"set password", func() error { return y.SetPassword(ctx, boss, name(), otherPassword) }},
		{"new token", func() error {
			_, err := y.NewToken(ctx, boss, "tool-"+name(), fleet.RoleViewer, time.Time{})
			return err
		}},
		{"new operator", func() error { _, err := y.NewOperator(ctx, "tool-"+name()); return err }},
		{"remove token", func() error { return y.RemoveToken(ctx, boss, "tool-"+name()) }},
		{"login", func() error {
			cookie, _, err := y.Login(ctx, name(), []string{goodPassword, otherPassword}[r.IntN(2)], home)
			if err == nil {
				cookies = append(cookies, cookie)
			}
			return err
		}},
		{"logout", func() error {
			if len(cookies) == 0 {
				return errGone
			}
			return y.Logout(ctx, cookies[r.IntN(len(cookies))])
		}},
		{"denied", func() error { return y.Revoke(ctx, fleet.Identity{Name: "vera", Role: fleet.RoleViewer}, device()) }},
		{"time", func() error {
			time.Sleep(time.Duration(r.IntN(180)) * time.Second)
			return nil
		}},
	}
	for step := range 150 {
		v := verbs[r.IntN(len(verbs))]
		before := len(readLog(t, y.store.Store))
		if err := v.do(); err == nil {
			done[v.name]++
		} else if !errors.Is(err, fleet.ErrConflict) && !errors.Is(err, fleet.ErrNotFound) && !errors.Is(err, fleet.ErrRefused) && !errors.Is(err, fleet.ErrDenied) &&
			!errors.Is(err, fleet.ErrInvalid) && !errors.Is(err, errGone) && !isTooSoon(err) {
			t.Fatalf("step %d, %s: %v", step, v.name, err)
		}
		synctest.Wait()
		for _, d := range compare(t, y.store.Store, seen) {
			t.Fatalf("step %d, %s: %s", step, v.name, d)
		}
		for _, e := range readLog(t, y.store.Store)[before:] {
			if e.What == audit.CommandSend && e.Who != anna.Name || e.What == audit.AccountAdd && e.Who != boss.Name || e.What == audit.RolloutHalt && e.Who != "server" {
				t.Errorf("by the wrong one: %s", e.Line())
			}
		}
	}
	t.Logf("done: %v", done)
	auditLog(t, y.store.Store)

	// And the comparison can fail: a change past the log is noticed.
	err := y.store.Store.Update(ctx, func(tx fleet.Tx) error {
		d, err := tx.Device("d00")
		d.Revoked = !d.Revoked
		return errors.Join(err, tx.PutDevice(d))
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(compare(t, y.store.Store, seen)) == 0 {
		t.Error("a change that has no row is not noticed")
	}
}

// teller is an outbox that can also say something once.
type teller struct{ *outbox }

func (teller) Tell(context.Context, string, protocol.Command) error { return nil }

func isTooSoon(err error) bool {
	var soon *fleet.TooSoon
	return errors.As(err, &soon)
}

// What the log says of the things that leave no row of their own, and by whom.
func TestTheLogNamesWhoDidWhat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		y := newYard(t, 2, func(int) fleet.Fate { return fleet.FateCrash })
		defer y.stop()
		want := func(what audit.Action, who, role string, pairs ...string) audit.Entry {
			t.Helper()
			e := last(t, y.store.Store, what)
			if e.Who != who || e.Role != role {
				t.Errorf("%s is by %s (%s), want %s (%s)", what, e.Who, e.Role, who, role)
			}
			for i := 0; i < len(pairs); i += 2 {
				if got := e.Details.Get(pairs[i]); got != pairs[i+1] {
					t.Errorf("%s says %s %q, want %q", what, pairs[i], got, pairs[i+1])
				}
			}
			return e
		}
		want(audit.ChannelSet, "anna", "operator", "channel", "stable", "version", "1.1.0", "was", "1.0.0")
		if _, err := y.Order(ctx, anna, "d00", false, []byte(`{"action":"status"}`)); err != nil {
			t.Fatal(err)
		}
		if e := want(audit.CommandSend, "anna", "operator", "action", "status"); e.Device != "d00" {
			t.Errorf("%s", e.Line())
		}
		r, err := y.CreateRollout(ctx, anna, fleet.RolloutRequest{Version: "1.1.0", Policy: fleet.Policy{Selector: fleet.Selector{All: true}, OverrideGates: true,
			Waves: []fleet.Wave{{Count: 1}, {Percent: 100}}, Stop: fleet.Stop{Failed: new(int)}}})
		if err != nil {
			t.Fatal(err)
		}
		if e := want(audit.RolloutCreate, "anna", "operator", "override_gates", "yes", "members", "2", "version", "1.1.0"); e.Rollout != r.ID {
			t.Errorf("%s", e.Line())
		}
		y.pass(r.ID, time.Hour, fleet.RolloutHalted)
		if e := want(audit.AttemptBegin, "server", "server", "version", "1.1.0", "sha256", r.SHA256); e.Rollout != r.ID {
			t.Errorf("%s", e.Line())
		}
		if e := last(t, y.store.Store, audit.AttemptEnd); e.Who != e.Device || e.Role != "device" || e.Rollout != r.ID || e.Details.Get("state") != "rolled_back" || e.Details.Get("reason") != "crash" {
			t.Errorf("%s", e.Line())
		}
		want(audit.RolloutHalt, "server", "server", "rule", "failed")
		want(audit.QuarantineSet, "server", "server")
		if err := y.LiftQuarantine(ctx, anna, r.SHA256); err != nil {
			t.Fatal(err)
		}
		want(audit.QuarantineLift, "anna", "operator")
		if err := y.AddAccount(ctx, boss, "carl", fleet.RoleViewer, goodPassword); err != nil {
			t.Fatal(err)
		}
		cookie, _, err := y.Login(ctx, "carl", goodPassword, home)
		if err != nil {
			t.Fatal(err)
		}
		want(audit.LoginOK, "carl", "viewer", "via", "web", "address", home)
		if err := y.Logout(ctx, cookie); err != nil {
			t.Fatal(err)
		}
		want(audit.LoginOut, "carl", "viewer")
		for _, e := range auditLog(t, y.store.Store) {
			for _, secret := range []string{goodPassword, cookie, "argon2"} {
				if strings.Contains(string(e.Line()), secret) {
					t.Errorf("a secret stands in %s", e.Line())
				}
			}
		}
	})
}
