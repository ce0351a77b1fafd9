package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

var boss = fleet.Identity{Name: "boss", Role: fleet.RoleAdmin}

const (
	goodPassword  = "correct horse battery"
	otherPassword = "staple staple staple"
	home          = "192.0.2.1"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRightsAreOneTableAndNothingElseIsAllowed(t *testing.T) {
	want := map[fleet.Right]string{
		fleet.RightView: "viewer operator admin", fleet.RightPassword: "viewer operator admin",
		fleet.RightOperate: "operator admin", fleet.RightAudit: "operator admin", fleet.RightAdminister: "admin",
	}
	if len(want) != len(fleet.Rights()) {
		t.Errorf("%d rights, this test knows %d", len(fleet.Rights()), len(want))
	}
	for _, right := range append(fleet.Rights(), "", "anything") {
		for _, role := range append(fleet.Roles(), fleet.RoleDevice, "", "root", "Admin") {
			has := fleet.Identity{Name: "x", Role: role}.Has(right)
			if should := role != "" && strings.Contains(" "+want[right]+" ", " "+string(role)+" "); has != should {
				t.Errorf("role %q has the right %q: %v, want %v", role, right, has, should)
			}
			if (fleet.Identity{Role: role}).Has(right) {
				t.Errorf("nobody has the right %q as %q", right, role)
			}
		}
	}
}

// Every method that changes something, tried by every role.
func TestEveryChangeNeedsItsRight(t *testing.T) {
	ctx := t.Context()
	f := newFleet(t, fleet.Config{})
	calls := []struct {
		name  string
		right fleet.Right
		call  func(by fleet.Identity) error
	}{
		{"upload", fleet.RightOperate, func(by fleet.Identity) error { return f.Upload(ctx, by, "x", 1, strings.NewReader("x")) }},
		{"publish", fleet.RightOperate, func(by fleet.Identity) error { _, _, err := f.Publish(ctx, by, fleet.PublishRequest{}); return err }},
		{"withdraw", fleet.RightOperate, func(by fleet.Identity) error { return f.Withdraw(ctx, by, "x") }},
		{"channel", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.SetChannel(ctx, by, "", "", "", "1.0.0"); return err }},
		{"enroll", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.Enroll(ctx, by, "d1"); return err }},
		{"revoke", fleet.RightOperate, func(by fleet.Identity) error { return f.Revoke(ctx, by, "d9") }},
		{"order", fleet.RightOperate, func(by fleet.Identity) error {
			_, err := f.Order(ctx, by, "d9", false, []byte(`{"action":"check"}`))
			return err
		}},
		{"command", fleet.RightOperate, func(by fleet.Identity) error {
			_, err := f.Command(ctx, &mailbox{outbox: newOutbox()}, by, "d9", protocol.Command{Action: protocol.ActionCheck})
			return err
		}},
		{"plan rollout", fleet.RightOperate, func(by fleet.Identity) error {
			_, err := f.PlanRollout(ctx, by, fleet.RolloutRequest{})
			return err
		}},
		{"create rollout", fleet.RightOperate, func(by fleet.Identity) error {
			_, err := f.CreateRollout(ctx, by, fleet.RolloutRequest{})
			return err
		}},
		{"rehearse", fleet.RightOperate, func(by fleet.Identity) error {
			_, err := f.Rehearse(ctx, by, fleet.RehearsalRequest{Mix: fleet.Mix{fleet.FateGood: 1}, Update: time.Minute})
			return err
		}},
		{"pause", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.Pause(ctx, by, "x"); return err }},
		{"resume", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.Resume(ctx, by, "x"); return err }},
		{"abort", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.Abort(ctx, by, "x"); return err }},
		{"labels", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.SetLabels(ctx, by, "x", nil, nil); return err }},
		{"clear device", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.Clear(ctx, by, "x"); return err }},
		{"device channel", fleet.RightOperate, func(by fleet.Identity) error { _, err := f.SetDeviceChannel(ctx, by, "x", "beta"); return err }},
		{"lift", fleet.RightOperate, func(by fleet.Identity) error { return f.LiftQuarantine(ctx, by, "x") }},
		{"add account", fleet.RightAdminister, func(by fleet.Identity) error { return f.AddAccount(ctx, by, "", "", "") }},
		{"remove account", fleet.RightAdminister, func(by fleet.Identity) error { return f.RemoveAccount(ctx, by, "x") }},
		{"set password", fleet.RightAdminister, func(by fleet.Identity) error { return f.SetPassword(ctx, by, "x", "") }},
		{"accounts", fleet.RightAdminister, func(by fleet.Identity) error { _, err := f.Accounts(ctx, by); return err }},
		{"new token", fleet.RightAdminister, func(by fleet.Identity) error { _, err := f.NewToken(ctx, by, "", "", time.Time{}); return err }},
		{"remove token", fleet.RightAdminister, func(by fleet.Identity) error { return f.RemoveToken(ctx, by, "x") }},
		{"tokens", fleet.RightAdminister, func(by fleet.Identity) error { _, err := f.Tokens(ctx, by); return err }},
	}
	for _, c := range calls {
		for _, role := range append(fleet.Roles(), fleet.RoleDevice, "") {
			by := fleet.Identity{Name: "x", Role: role}
			err := c.call(by)
			if denied := errors.Is(err, fleet.ErrDenied); denied == by.Has(c.right) {
				t.Errorf("%s as %q: %v", c.name, role, err)
			}
		}
	}
}

func TestSessionsLiveAndEndAsTheyShould(t *testing.T) {
	ctx := t.Context()
	for name, end := range map[string]func(f *fleet.Fleet, c *clock, cookie string) error{
		"unused":       func(_ *fleet.Fleet, c *clock, _ string) error { c.add(fleet.SessionIdle + time.Minute); return nil },
		"logout":       func(f *fleet.Fleet, _ *clock, cookie string) error { return f.Logout(ctx, cookie) },
		"new password": func(f *fleet.Fleet, _ *clock, _ string) error { return f.SetPassword(ctx, boss, "anna", otherPassword) },
		"own new password": func(f *fleet.Fleet, _ *clock, _ string) error {
			return f.ChangePassword(ctx, fleet.Identity{Name: "anna", Role: fleet.RoleViewer}, home, goodPassword, otherPassword)
		},
		"account removed": func(f *fleet.Fleet, _ *clock, _ string) error { return f.RemoveAccount(ctx, boss, "anna") },
		"too old": func(f *fleet.Fleet, c *clock, cookie string) error {
			for range int(fleet.SessionLife/fleet.SessionIdle) * 2 {
				if _, err := f.BySession(ctx, cookie, true); err != nil {
					return fmt.Errorf("a session in use ended at %s: %w", c.Now(), err)
				}
				c.add(fleet.SessionIdle / 2)
			}
			return nil
		},
		"only looked at": func(f *fleet.Fleet, c *clock, cookie string) error {
			for range 4 {
				_, _ = f.BySession(ctx, cookie, false) // an open page that refreshes itself is nobody's use
				c.add(fleet.SessionIdle / 3)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			f := newFleet(t, fleet.Config{Now: c.Now})
			if err := f.AddAccount(ctx, boss, "anna", fleet.RoleViewer, goodPassword); err != nil {
				t.Fatal(err)
			}
			cookie, id, err := f.Login(ctx, "anna", goodPassword, home)
			if err != nil || id != (fleet.Identity{Name: "anna", Role: fleet.RoleViewer}) || len(cookie) != 43 {
				t.Fatalf("%q, %+v, %v", cookie, id, err)
			}
			other, _, err := f.Login(ctx, "anna", goodPassword, home)
			if err != nil || other == cookie {
				t.Fatalf("a second session: %v", err)
			}
			if got, err := f.BySession(ctx, cookie, true); err != nil || got != id {
				t.Fatalf("%+v, %v", got, err)
			}
			if err := end(f, c, cookie); err != nil {
				t.Fatal(err)
			}
			if _, err := f.BySession(ctx, cookie, true); !errors.Is(err, fleet.ErrDenied) {
				t.Errorf("the session lives on: %v", err)
			}
			if _, err := f.BySession(ctx, other, true); (err == nil) != (name == "logout") {
				t.Errorf("the other session: %v", err)
			}
		})
	}
}

func TestATokenSignsInAndItsSessionEndsWithIt(t *testing.T) {
	ctx := t.Context()
	c := newClock()
	f := newFleet(t, fleet.Config{Now: c.Now})
	first, err := f.NewOperator(ctx, "operator")
	if err != nil {
		t.Fatal(err)
	}
	cookie, id, err := f.Login(ctx, "operator", first, home)
	if err != nil || id.Role != fleet.RoleAdmin {
		t.Fatalf("%+v, %v", id, err)
	}
	if _, err := f.NewOperator(ctx, "operator"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.BySession(ctx, cookie, true); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("the session of a replaced token lives on: %v", err)
	}
	token, err := f.NewToken(ctx, boss, "ci", fleet.RoleOperator, c.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if cookie, _, err = f.Login(ctx, "ci", token, home); err != nil {
		t.Fatal(err)
	}
	if id, err := f.OperatorByToken(ctx, token); err != nil || id != (fleet.Identity{Name: "ci", Role: fleet.RoleOperator}) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := f.Authenticate(ctx, "ci", token); err != nil || id.Role != fleet.RoleOperator {
		t.Errorf("%+v, %v", id, err)
	}
	c.add(time.Hour)
	_, e1 := f.BySession(ctx, cookie, true)
	_, e2 := f.OperatorByToken(ctx, token)
	_, e3 := f.Authenticate(ctx, "ci", token)
	_, _, e4 := f.Login(ctx, "ci", token, home)
	for i, err := range []error{e1, e2, e3, e4} {
		if !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("%d: an expired token is taken: %v", i, err)
		}
	}
	viewing, err := f.NewToken(ctx, boss, "grafana", fleet.RoleViewer, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Authenticate(ctx, "grafana", viewing); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a viewer may command over MQTT: %v", err)
	}
	if err := f.RemoveToken(ctx, boss, "grafana"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.OperatorByToken(ctx, viewing); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a removed token is taken: %v", err)
	}
}

// TestASecretThatStopsWorkingCutsWhatIsOpenUnderIt: within a second the broker is told to end the MQTT sessions of the
// name, and every stream of changes ends, so that its reader has to say again who he is.
func TestASecretThatStopsWorkingCutsWhatIsOpenUnderIt(t *testing.T) {
	ctx := context.Background()
	for name, end := range map[string]func(f *fleet.Fleet) error{
		"token removed":      func(f *fleet.Fleet) error { return f.RemoveToken(ctx, boss, "ci") },
		"token replaced":     func(f *fleet.Fleet) error { _, err := f.NewOperator(ctx, "ci"); return err },
		"token has run out":  func(*fleet.Fleet) error { time.Sleep(time.Hour); return nil },
		"account removed":    func(f *fleet.Fleet) error { return f.RemoveAccount(ctx, boss, "anna") },
		"password replaced":  func(f *fleet.Fleet) error { return f.SetPassword(ctx, boss, "anna", otherPassword) },
		"nothing, by nobody": func(f *fleet.Fleet) error { return f.RemoveToken(ctx, anna, "ci") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, out := newFleet(t, fleet.Config{}), newOutbox()
				stop := start(t, f, out)
				defer stop()
				token, err := f.NewToken(ctx, boss, "ci", fleet.RoleOperator, time.Now().Add(time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				if err := f.AddAccount(ctx, boss, "anna", fleet.RoleOperator, goodPassword); err != nil {
					t.Fatal(err)
				}
				if _, err := f.Authenticate(ctx, "ci", token); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				out.mu.Lock()
				out.drops = nil
				out.mu.Unlock()
				changes, done := f.Watch()
				defer done()
				err = end(f)
				time.Sleep(time.Second)
				synctest.Wait()
				out.mu.Lock()
				got := strings.Join(out.drops, " ")
				out.mu.Unlock()
				open := true
				select {
				case _, open = <-changes:
				default:
				}
				want := map[bool]string{true: "anna", false: "ci"}[strings.Contains(name, "account") || strings.Contains(name, "password")]
				if name == "nothing, by nobody" {
					want = ""
					if !errors.Is(err, fleet.ErrDenied) || !open {
						t.Errorf("%v, stream open: %t", err, open)
					}
				} else if err != nil || open {
					t.Errorf("%v, stream open: %t", err, open)
				}
				if got != want {
					t.Errorf("cut off: %q, want %q", got, want)
				}
			})
		})
	}
}

func TestBadAccountsAreRefusedAndChangeNothing(t *testing.T) {
	ctx := t.Context()
	f := newFleet(t, fleet.Config{})
	if _, err := f.Enroll(ctx, anna, "d1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.NewOperator(ctx, "operator"); err != nil {
		t.Fatal(err)
	}
	if err := f.AddAccount(ctx, boss, "bob", fleet.RoleViewer, goodPassword); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, role, password string
		want                 error
	}{
		{"", "viewer", goodPassword, fleet.ErrInvalid}, {"a/b", "viewer", goodPassword, fleet.ErrInvalid}, {strings.Repeat("x", 65), "viewer", goodPassword, fleet.ErrInvalid},
		{"eve", "", goodPassword, fleet.ErrInvalid}, {"eve", "root", goodPassword, fleet.ErrInvalid}, {"eve", "device", goodPassword, fleet.ErrInvalid},
		{"eve", "viewer", "short", fleet.ErrInvalid}, {"eve", "viewer", strings.Repeat("x", 257), fleet.ErrInvalid}, {"eve", "viewer", "with\x00a zero byte", fleet.ErrInvalid},
		{"bob", "admin", goodPassword, fleet.ErrConflict}, {"operator", "admin", goodPassword, fleet.ErrConflict}, {"d1", "admin", goodPassword, fleet.ErrConflict},
	} {
		if err := f.AddAccount(ctx, boss, c.name, fleet.Role(c.role), c.password); !errors.Is(err, c.want) {
			t.Errorf("%.20q as %q: %v, want %v", c.name, c.role, err, c.want)
		}
	}
	if _, err := f.NewToken(ctx, boss, "bob", fleet.RoleViewer, time.Time{}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a token with an account's name: %v", err)
	}
	if _, err := f.NewToken(ctx, boss, "operator", fleet.RoleViewer, time.Time{}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a token is replaced: %v", err)
	}
	if _, err := f.NewToken(ctx, boss, "old", fleet.RoleViewer, time.Now().Add(-time.Hour)); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("a token that has ended: %v", err)
	}
	if _, err := f.Enroll(ctx, anna, "bob"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a device with an account's name: %v", err)
	}
	accounts, err := f.Accounts(ctx, boss)
	if err != nil || len(accounts) != 1 || !strings.HasPrefix(accounts[0].Password, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("%+v, %v", accounts, err)
	}
	for _, err := range []error{f.RemoveAccount(ctx, boss, "nobody"), f.RemoveToken(ctx, boss, "nobody"), f.SetPassword(ctx, boss, "nobody", goodPassword)} {
		if !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
	}
	if err := f.ChangePassword(ctx, fleet.Identity{Name: "bob", Role: fleet.RoleViewer}, home, "a wrong old one", otherPassword); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a password is changed without the old one: %v", err)
	}
	if _, _, err := f.Login(ctx, "bob", goodPassword, home); err != nil {
		t.Errorf("the old password: %v", err)
	}
}

func TestWrongLoginsSayTheSameWhateverIsWrong(t *testing.T) {
	ctx := t.Context()
	f := newFleet(t, fleet.Config{})
	if err := f.AddAccount(ctx, boss, "anna", fleet.RoleViewer, goodPassword); err != nil {
		t.Fatal(err)
	}
	token, err := f.NewOperator(ctx, "operator")
	if err != nil {
		t.Fatal(err)
	}
	said := make(map[string]bool)
	for i, c := range [][2]string{{"anna", "a wrong password"}, {"nobody", goodPassword}, {"operator", goodPassword}, {"anna", token}, {"", ""}, {"anna", ""},
		{strings.Repeat("x", 1000), goodPassword}, {"operator", "$argon2id$v=19$m=19456,t=2,p=1$bm8gYWNjb3VudCBoZXJl$AAAA"}} {
		_, _, err := f.Login(ctx, c[0], c[1], fmt.Sprint(i))
		if !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("%.20q: %v", c[0], err)
			continue
		}
		said[err.Error()] = true
	}
	if len(said) != 1 {
		t.Errorf("the answers differ: %v", said)
	}
}

func TestGuessingIsSlowedDownByNameAndByAddress(t *testing.T) {
	ctx := t.Context()
	c := newClock()
	f := newFleet(t, fleet.Config{Now: c.Now})
	for _, name := range []string{"anna", "bob"} {
		if err := f.AddAccount(ctx, boss, name, fleet.RoleViewer, goodPassword); err != nil {
			t.Fatal(err)
		}
	}
	var soon *fleet.TooSoon
	fails := func(name, address string) (n int) {
		for n = 0; n < 100; n++ {
			if _, _, err := f.Login(ctx, name, "a wrong password", address); errors.As(err, &soon) {
				return n
			} else if !errors.Is(err, fleet.ErrDenied) {
				t.Fatal(err)
			}
		}
		return n
	}
	for _, name := range []string{"anna", "nobody"} { // whether there is such an account must not show
		if n := fails(name, "192.0.2."+name); n != 5 {
			t.Errorf("%s: %d tries before a wait, want 5", name, n)
		}
	}
	if _, _, err := f.Login(ctx, "anna", goodPassword, home); !errors.As(err, &soon) || soon.Wait <= 0 || soon.Wait > time.Second {
		t.Errorf("the right password, too soon: %v", err)
	}
	if _, _, err := f.Login(ctx, "bob", goodPassword, home); err != nil {
		t.Errorf("another account from another address waits too: %v", err)
	}
	c.add(time.Second)
	if _, _, err := f.Login(ctx, "anna", "still a wrong one", home); !errors.Is(err, fleet.ErrDenied) {
		t.Error(err)
	}
	if _, _, err := f.Login(ctx, "anna", goodPassword, home); !errors.As(err, &soon) || soon.Wait <= time.Second {
		t.Errorf("the wait does not grow: %v", err)
	}
	c.add(time.Minute)
	if _, _, err := f.Login(ctx, "anna", goodPassword, home); err != nil {
		t.Errorf("after the longest wait: %v", err)
	}
	if n := fails("anna", "198.51.100.1"); n != 5 {
		t.Errorf("after a success %d tries, want 5 again", n)
	}
	// One address that tries many names.
	n := 0
	for ; n < 100; n++ {
		if _, _, err := f.Login(ctx, fmt.Sprintf("guess-%d", n), "a wrong password", "203.0.113.9"); errors.As(err, &soon) {
			break
		}
	}
	if n != 20 {
		t.Errorf("%d names from one address before a wait, want 20", n)
	}
}

// Each argon2id costs 19 MiB; a flood of logins must not multiply it.
func TestAtMostTwoPasswordsAreWorkedOnAtOnce(t *testing.T) {
	// Time stands still while anything works, so that only what waits can run out of it.
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Config{})
		if err := f.AddAccount(t.Context(), boss, "anna", fleet.RoleViewer, goodPassword); err != nil {
			t.Fatal(err)
		}
		// Two are at work: a third, a new password and a new account wait.
		var wg sync.WaitGroup
		started, release := make(chan struct{}), make(chan struct{})
		for range 2 {
			wg.Go(func() {
				if err := fleet.InTurn(t.Context(), f, func() { started <- struct{}{}; <-release }); err != nil {
					t.Error(err)
				}
			})
			<-started
		}
		for name, work := range map[string]func(context.Context) error{
			"login":           func(ctx context.Context) error { _, _, err := f.Login(ctx, "anna", goodPassword, home); return err },
			"login of nobody": func(ctx context.Context) error { _, _, err := f.Login(ctx, "nobody", goodPassword, home); return err },
			"login by token":  func(ctx context.Context) error { _, _, err := f.Login(ctx, "operator", goodPassword, home); return err },
			"new password":    func(ctx context.Context) error { return f.SetPassword(ctx, boss, "anna", goodPassword) },
			"new account":     func(ctx context.Context) error { return f.AddAccount(ctx, boss, "bob", fleet.RoleViewer, goodPassword) },
			"one's own changed": func(ctx context.Context) error {
				return f.ChangePassword(ctx, fleet.Identity{Name: "anna", Role: fleet.RoleViewer}, home, goodPassword, goodPassword)
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := work(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s did not wait for its turn: %v", name, err)
			}
			cancel()
		}
		close(release)
		wg.Wait()
		if _, _, err := f.Login(t.Context(), "anna", goodPassword, home); err != nil {
			t.Errorf("in its turn: %v", err)
		}
		// Who comes on top of a long queue, or has waited long, is asked to come again.
		hold := make(chan struct{})
		var soon atomic.Int32
		for range 74 {
			wg.Go(func() {
				var wait *fleet.TooSoon
				if err := fleet.InTurn(t.Context(), f, func() { <-hold }); errors.As(err, &wait) {
					soon.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := soon.Load(); n != 10 {
			t.Errorf("%d of 74 were turned away at once, want 10", n)
		}
		time.Sleep(time.Minute)
		if n := soon.Load(); n != 72 {
			t.Errorf("%d of 74 were turned away in the end, want 72", n)
		}
		close(hold)
		wg.Wait()
	})
}

// mailbox is an outbox that can say something once.
type mailbox struct {
	*outbox
	told []protocol.Command
}

func (m *mailbox) Tell(_ context.Context, _ string, cmd protocol.Command) error {
	m.told = append(m.told, cmd)
	return nil
}

func TestCommandsFromTheServerItselfAreRowsFirst(t *testing.T) {
	ctx := t.Context()
	f := newFleet(t, fleet.Config{})
	for _, id := range []string{"d1", "gone"} {
		if _, err := f.Enroll(ctx, anna, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Revoke(ctx, anna, "gone"); err != nil {
		t.Fatal(err)
	}
	out := &mailbox{outbox: newOutbox()}
	give := func(device string, cmd protocol.Command) error {
		_, err := f.Command(ctx, out, anna, device, cmd)
		return err
	}
	for _, c := range []struct {
		device string
		cmd    protocol.Command
		want   error
	}{
		{"nobody", protocol.Command{Action: protocol.ActionCheck}, fleet.ErrNotFound},
		{"gone", protocol.Command{Action: protocol.ActionUpdate}, fleet.ErrRefused},
		{"d1", protocol.Command{Action: protocol.ActionCheck}, fleet.ErrRefused}, // not connected
		{"d1", protocol.Command{Action: "explode"}, fleet.ErrInvalid},
	} {
		if err := give(c.device, c.cmd); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %v, want %v", c.device, c.cmd.Action, err, c.want)
		}
	}
	if err := give("d1", protocol.Command{Action: protocol.ActionUpdate, Version: "2.0.0"}); err != nil {
		t.Fatal(err)
	}
	a := newest(t, f, "d1")
	if cmd, ok, _ := out.get("d1"); !ok || cmd.ID != a.CommandID || cmd.ExpiresAt.IsZero() || a.CreatedBy != "anna" || a.Version != "2.0.0" {
		t.Errorf("command %+v, attempt %+v", cmd, a)
	}
	if err := f.Connected(ctx, "d1"); err != nil {
		t.Fatal(err)
	}
	if err := give("d1", protocol.Command{Action: protocol.ActionStatus}); err != nil || len(out.told) != 1 || out.told[0].ID == "" {
		t.Errorf("%v, told %+v", err, out.told)
	}
	out.setBroken(errors.New("broker is away"))
	if err := give("d1", protocol.Command{Action: protocol.ActionUpdate}); err != nil {
		t.Errorf("an update waits for the broker: %v", err)
	}
}

func TestWatchersAreToldAfterTheCommitAndTheSlowOnesDropped(t *testing.T) {
	ctx := t.Context()
	f := newFleet(t, fleet.Config{})
	changes, stop := f.Watch()
	slow, stopSlow := f.Watch()
	defer stopSlow()
	for i := range 300 {
		if err := f.Connected(ctx, fmt.Sprintf("d%d", i)); err != nil {
			t.Fatal(err)
		}
		if id := <-changes; id != fmt.Sprintf("d%d", i) {
			t.Fatalf("told of %q", id)
		}
		if i == 0 {
			if d, err := f.Device(ctx, "d0"); err != nil || !d.Online {
				t.Errorf("told before the commit: %+v, %v", d, err)
			}
		}
	}
	n := 0
	for range slow {
		n++
	}
	if n == 0 || n == 300 {
		t.Errorf("the slow watcher was told %d changes and not dropped", n)
	}
	stop()
	stop()
	if _, open := <-changes; open {
		t.Error("a stopped watch goes on")
	}
}
