package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func TestLoginAnswers(t *testing.T) {
	will := func(topic string) *packets.Packet {
		p := publish(topic, status(protocol.PhaseOffline), 1, true, 0)
		return &p
	}
	long := strings.Repeat("x", maxName+1)
	rows := []struct {
		name   string
		login  login
		v4, v5 byte // CONNACK codes
	}{
		{"device", login{name: "d1", secret: "d1-secret", id: "x"}, 0, 0},
		{"operator", login{name: "olga", secret: "olga-secret", id: "x"}, 0, 0},
		{"no client identifier", login{name: "d1", secret: "d1-secret"}, 0, 0},
		{"wrong password", login{name: "d1", secret: "no", id: "x"}, 5, 0x86},
		{"another's password", login{name: "d1", secret: "d2-secret", id: "x"}, 5, 0x86},
		{"unknown name", login{name: "d9", secret: "d9-secret", id: "x"}, 5, 0x86},
		{"anonymous", login{id: "d1"}, 5, 0x86},
		{"no password", login{name: "d1", id: "d1"}, 5, 0x86},
		{"long client identifier", login{name: "d1", secret: "d1-secret", id: long}, 5, 0x86},
		{"long password", login{name: "d1", secret: strings.Repeat("x", maxSecret+1), id: "x"}, 5, 0x86},
		{"id that is none", login{name: "a/b", secret: "s", id: "x"}, 5, 0x86},
		{"no role", login{name: "ghost", secret: "s", id: "x"}, 5, 0x86},
		{"will on own status", login{name: "d1", secret: "d1-secret", id: "x", will: will("bms/ota/status/d1")}, 0, 0},
		{"will on another's status", login{name: "d1", secret: "d1-secret", id: "x", will: will("bms/ota/status/d2")}, 5, 0x86},
		{"will on a command", login{name: "d1", secret: "d1-secret", id: "x", will: will("bms/ota/command/d1")}, 5, 0x86},
		{"will on $SYS", login{name: "d1", secret: "d1-secret", id: "x", will: will("$SYS/x")}, 5, 0x86},
		{"will of an operator", login{name: "olga", secret: "olga-secret", id: "x", will: will("bms/ota/command")}, 5, 0x86},
		{"handler at fault", login{name: "fault", secret: "s", id: "x"}, 3, 0x88},
	}
	for _, row := range rows {
		for version, want := range map[byte]byte{4: row.v4, 5: row.v5} {
			t.Run(fmt.Sprintf("%s v%d", row.name, version), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet("d1", "d2")
					f.accounts["a/b"] = account{secret: "s", id: dev("a/b")}
					f.accounts["ghost"] = account{secret: "s", id: fleet.Identity{Name: "ghost"}}
					f.onAuth = func(name string) error {
						if name == "fault" {
							return fmt.Errorf("read account: %w", fleet.ErrStorage)
						}
						return nil
					}
					r := start(t, f, nil)
					row.login.version = version
					c := r.connect(row.login)
					if c.acked.ReasonCode != want || c.acked.SessionPresent {
						t.Fatalf("CONNACK %#x, session present %t; want %#x", c.acked.ReasonCode, c.acked.SessionPresent, want)
					}
					if want == 0 {
						c.sync()
						return
					}
					c.ended()
					synctest.Wait()
					if s := r.Stats(); s.Sessions != 0 || s.Waiting != 0 || len(f.seen()) != 0 {
						t.Errorf("left behind: %+v, %q", s, f.seen())
					}
				})
			})
		}
	}
}

func TestAuthenticationMethodIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		c := r.connect(login{name: "d1", secret: "d1-secret", id: "x", version: 5, props: packets.Properties{AuthenticationMethod: "SCRAM"}})
		if c.acked.ReasonCode != 0x86 {
			t.Errorf("CONNACK %#x", c.acked.ReasonCode)
		}
	})
}

// TestKeepaliveIsClamped is the regression for a deadline that overflowed 16 bits: 43,691 s came out as 0.
func TestKeepaliveIsClamped(t *testing.T) {
	for asked, want := range map[uint16]uint16{0: 600, 1: 5, 5: 5, 60: 60, 600: 600, 601: 600, 43691: 600, 50000: 600, 65535: 600} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet("d1")
			r := start(t, f, nil)
			c := r.must(login{name: "d1", secret: "d1-secret", id: "x", version: 5, keepalive: asked, noKeepalive: true})
			if told := c.acked.Properties.ServerKeepAlive; c.acked.Properties.ServerKeepAliveFlag != (asked != want) || told != 0 && told != want {
				t.Errorf("asked %d: told %d (%t)", asked, told, c.acked.Properties.ServerKeepAliveFlag)
			}
			began := time.Now()
			_, err := c.next(time.Hour)
			if got := time.Since(began); err == nil || got != time.Duration(want)*time.Second*3/2 && got != time.Duration(want+want/2)*time.Second {
				t.Errorf("asked %d: silent peer was cut after %v, want one and a half times %d s", asked, got, want)
			}
			synctest.Wait()
			if !slices.Equal(f.seen(), []string{"connected d1", "disconnected d1"}) {
				t.Errorf("told %q", f.seen())
			}
		})
	}
}

// TestClientIDOfAnotherIdentityTakesNothingOver: the same client identifier under another login is another session.
func TestClientIDOfAnotherIdentityTakesNothingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1", "d2")
		f.accounts["d1-op"] = account{secret: "s", id: op("d1")} // an operator named like a device
		r := start(t, f, nil)
		a := r.must(login{name: "d1", secret: "d1-secret", id: "d1", persistent: true})
		a.subscribed(1, 1, "bms/ota/command/d1")
		for _, l := range []login{
			{name: "d2", secret: "d2-secret", id: "d1"}, {name: "d2", secret: "d2-secret", id: "device/d1/d1"},
			{name: "olga", secret: "olga-secret", id: "d1"}, {name: "d1-op", secret: "s", id: "d1"},
		} {
			l.persistent = true
			b := r.must(l)
			if b.acked.SessionPresent {
				t.Errorf("%s inherited a session", l.name)
			}
			b.sync()
		}
		a.sync()
		if got := r.Stats().Takeovers; got != 0 {
			t.Errorf("%d takeovers", got)
		}
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); err != nil {
			t.Fatal(err)
		}
		if pk := a.recv(); pk.TopicName != "bms/ota/command/d1" {
			t.Errorf("d1 got %q", pk.TopicName)
		}
	})
}

// TestSameIdentityTakesItsSessionOver: the old connection ends first, wholly, without its will; the new one is live.
func TestSameIdentityTakesItsSessionOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		will := publish("bms/ota/status/d1", status(protocol.PhaseOffline), 1, true, 0)
		l := login{name: "d1", secret: "d1-secret", id: "esp", will: &will}
		old := r.must(l)
		old.subscribed(1, 1, "bms/ota/command/d1")
		fresh := r.must(l)
		old.ended()
		fresh.subscribed(1, 1, "bms/ota/command/d1")
		fresh.sync()
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); err != nil {
			t.Fatal(err)
		}
		if pk := fresh.recv(); pk.FixedHeader.Type != packets.Publish {
			t.Errorf("new session got type %d", pk.FixedHeader.Type)
		}
		want := []string{"connected d1", "disconnected d1", "connected d1"}
		if got := f.seen(); !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		if s := r.Stats(); s.Takeovers != 1 || s.Sessions != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTakeoverStorm: many connections of one identity at once leave exactly one, and it is reachable.
func TestTakeoverStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		for range 50 {
			nc := r.ln.dial(t)
			go func() {
				pk := login{name: "d1", secret: "d1-secret", id: "esp", version: 4, keepalive: 60}.packet()
				pk.ProtocolVersion = 4
				_, _ = nc.Write(encode(t, pk))
				for buf := make([]byte, 64); ; {
					if _, err := nc.Read(buf); err != nil {
						return
					}
				}
			}()
		}
		synctest.Wait()
		if s := r.Stats(); s.Sessions != 1 || s.Takeovers != 49 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
		if n := r.srv.Clients.Len(); n != 1 { // the survivor
			t.Errorf("%d clients", n)
		}
		if c, d := f.count("connected"), f.count("disconnected"); c != d+1 {
			t.Errorf("%d connects, %d disconnects", c, d)
		}
	})
}

// TestDeviceWithManySessionsLosesItsOldest: three clients of the original firmware fit, endless ones do not.
func TestDeviceWithManySessionsLosesItsOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		var all []*client
		for i := range maxSessions + 1 {
			time.Sleep(time.Second)
			all = append(all, r.must(login{name: "d1", secret: "d1-secret", id: fmt.Sprint(i)}))
		}
		all[0].ended()
		for _, c := range all[1:] {
			c.sync()
		}
		if got := r.Stats().Sessions; got != maxSessions {
			t.Errorf("%d sessions", got)
		}
		if f.count("connected") != 1 || f.count("disconnected") != 0 {
			t.Errorf("told %q while sessions stand", f.seen())
		}
		for _, c := range all {
			_ = c.Close()
		}
		synctest.Wait()
		if f.count("disconnected") != 1 {
			t.Errorf("told %q", f.seen())
		}
	})
}

func TestDropEndsEverySessionAndRevokedTokenDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1", "d2")
		r := start(t, f, nil)
		will := publish("bms/ota/status/d1", status(protocol.PhaseOffline), 1, true, 0)
		a := r.must(login{name: "d1", secret: "d1-secret", id: "a", will: &will})
		b := r.must(login{name: "d1", secret: "d1-secret", id: "b", version: 5})
		other := r.device("d2")
		f.revoke("d1")
		began := time.Now()
		if err := r.Drop(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		a.ended()
		b.ended()
		synctest.Wait()
		if took := time.Since(began); took >= time.Second {
			t.Errorf("took %v", took)
		}
		other.sync()
		if c := r.connect(login{name: "d1", secret: "d1-secret", id: "a"}); c.acked.ReasonCode != 5 {
			t.Errorf("CONNACK %d", c.acked.ReasonCode)
		}
		if f.count("fold") != 0 || r.Stats().Sessions != 1 {
			t.Errorf("left: %q, %+v", f.seen(), r.Stats())
		}
	})
}

// TestDropEndsTheSessionsOfAnOperator: a token that was removed is cut off at once, and no other operator is.
func TestDropEndsTheSessionsOfAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		f.accounts["ci"] = account{secret: "ci-secret", id: op("ci")}
		r := start(t, f, nil)
		other, board := r.operator(), r.device("d1")
		one := r.must(login{name: "ci", secret: "ci-secret", id: "a"})
		two := r.must(login{name: "ci", secret: "ci-secret", id: "b", version: 5})
		one.subscribed(1, 0, "bms/ota/status/#")
		f.revoke("ci")
		began := time.Now()
		if err := r.Drop(t.Context(), "ci"); err != nil {
			t.Fatal(err)
		}
		one.ended()
		two.ended()
		synctest.Wait()
		if took := time.Since(began); took >= time.Second || r.Stats().Sessions != 2 {
			t.Errorf("took %v, left: %+v", took, r.Stats())
		}
		other.sync()
		board.sync()
		if c := r.connect(login{name: "ci", secret: "ci-secret", id: "a"}); c.acked.ReasonCode != 5 {
			t.Errorf("CONNACK %d", c.acked.ReasonCode)
		}
	})
}

// TestDropMeetsALoginUnderWay: a device revoked between the check of its token and the start of its session gets none.
func TestDropMeetsALoginUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		checked := make(chan struct{})
		goOn := make(chan struct{})
		r := start(t, &slowAuth{fakeFleet: f, checked: checked, goOn: goOn}, nil)
		answer := make(chan byte)
		nc := r.ln.dial(t)
		go func() {
			c := connectOver(t, nc, login{name: "d1", secret: "d1-secret", id: "x"})
			answer <- c.acked.ReasonCode
		}()
		<-checked
		f.revoke("d1")
		if err := r.Drop(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		close(goOn)
		if code := <-answer; code == 0 {
			t.Error("a revoked device is in")
		}
		synctest.Wait()
		if r.Stats().Sessions != 0 {
			t.Error("session left")
		}
	})
}

// slowAuth stops once after the first check has said yes.
type slowAuth struct {
	*fakeFleet
	checked, goOn chan struct{}
	stopped       bool
}

func (s *slowAuth) Authenticate(ctx context.Context, name, secret string) (fleet.Identity, error) {
	id, err := s.fakeFleet.Authenticate(ctx, name, secret)
	if !s.stopped {
		s.stopped = true
		close(s.checked)
		<-s.goOn
	}
	return id, err
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	open := &netListener{addr: "192.0.2.1:1883"}
	rows := map[string]Config{
		"no handler":               {Plain: newPipeListener()},
		"no listener":              {Handler: newFleet()},
		"TLS without certificates": {Handler: newFleet(), Secure: newPipeListener()},
		"plain on the network":     {Handler: newFleet(), Plain: open},
		"wildcard prefix":          {Handler: newFleet(), Plain: newPipeListener(), Topics: protocol.Topics{Prefix: "bms/#"}},
		"negative limit":           {Handler: newFleet(), Plain: newPipeListener(), MaxClients: -1},
	}
	for name, cfg := range rows {
		if _, err := NewEmbedded(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewEmbedded(Config{Handler: newFleet(), Plain: open, PlainAnywhere: true}); err != nil {
		t.Errorf("plain on the network, allowed: %v", err)
	}
}

func TestListenerThatFailsEndsRun(t *testing.T) {
	e, err := NewEmbedded(Config{Handler: newFleet(), Plain: &netListener{addr: "127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, errListener) {
		t.Errorf("run: %v", err)
	}
	if err := e.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); !errors.Is(err, ErrClosed) {
		t.Errorf("send after the end: %v", err)
	}
}
