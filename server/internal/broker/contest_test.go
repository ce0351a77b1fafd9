package broker

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// from is a connection that says it comes from an address.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(f.addr), Port: 40000}
}

// dialFrom is dial, from an address; ok is false when the broker closed the connection at once.
func (l *pipeListener) dialFrom(t testing.TB, addr string) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	select {
	case l.ch <- from{far, addr}:
	case <-l.done:
		t.Fatal("dial: broker is closed")
	}
	return near
}

// TestALoginInTwoPlacesIsReported: two boards with one login that take the session from each other, the same behind one
// router, and a thief who comes beside the board under a client identifier of his own. A board that moves, restarts or has
// three clients is not reported.
func TestALoginInTwoPlacesIsReported(t *testing.T) {
	const a, b = "192.0.2.1", "192.0.2.2"
	rows := []struct {
		name  string
		steps string // address and client identifier of each login in turn, one every every
		every time.Duration
		want  string // the first report; empty = none
	}{
		{"two boards", strings.Repeat(a+" x "+b+" x ", 2), 10 * time.Second, "contested d1 [192.0.2.1 192.0.2.2] 3"},
		{"behind one router", strings.Repeat(a+" x ", contestSame+1), 10 * time.Second, "contested d1 [192.0.2.1] 10"},
		{"beside it", a + " x " + strings.Repeat(b+" y ", 4), time.Second, "contested d1 [192.0.2.1 192.0.2.2] 3"},
		{"a board that moved there and back", a + " x " + b + " x " + a + " x ", time.Second, ""},
		{"three clients that restarted three times", strings.Repeat(a+" x "+a+" y "+a+" z ", 4), time.Second, ""},
		{"rarely", strings.Repeat(a+" x "+b+" x ", 12), contestWindow, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet("d1", "d2")
				r := start(t, f, nil)
				r.device("d2").sync()
				steps := strings.Fields(row.steps)
				for i := 0; i < len(steps); i += 2 {
					c := connectOver(t, r.ln.dialFrom(t, steps[i]), login{name: "d1", secret: "d1-secret", id: steps[i+1], keepalive: 600})
					if c.acked.ReasonCode != 0 {
						t.Fatalf("CONNACK %d", c.acked.ReasonCode)
					}
					time.Sleep(row.every)
				}
				got := ""
				for _, e := range f.seen() {
					if strings.HasPrefix(e, "contested") && got == "" {
						got = e
					}
				}
				if got != row.want || (r.Stats().Contested > 0) != (row.want != "") {
					t.Errorf("told %q, want %q; %+v", got, row.want, r.Stats())
				}
			})
		})
	}
}

// TestAFloodWithoutLoginsIsKeptOut: the address is banned for a minute, longer each time; nobody else is, a session that
// stands is not touched, and loopback never is.
func TestAFloodWithoutLoginsIsKeptOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1", "d2"), nil)
		board := connectOver(t, r.ln.dialFrom(t, "192.0.2.1"), login{name: "d1", secret: "d1-secret", id: "x", keepalive: 600})
		flood := func(addr string) {
			for range strikeBurst + 1 {
				nc := r.ln.dialFrom(t, addr)
				_ = nc.Close()
				synctest.Wait()
			}
		}
		flood("192.0.2.1")
		if got := r.Stats(); got.Banned != 1 {
			t.Fatalf("%+v", got)
		}
		out := func(addr string) bool {
			nc := r.ln.dialFrom(t, addr)
			defer nc.Close()
			_ = nc.SetReadDeadline(time.Now().Add(time.Second))
			_, err := nc.Read(make([]byte, 1))
			return err != nil && !strings.Contains(err.Error(), "timeout")
		}
		if !out("192.0.2.1") || out("192.0.2.2") {
			t.Error("who floods is not kept out, or somebody else is")
		}
		board.sync()
		time.Sleep(minBan)
		if out("192.0.2.1") {
			t.Error("still kept out after its time")
		}
		flood("127.0.0.1")
		if got := r.Stats(); got.Banned != 0 {
			t.Errorf("loopback is banned: %+v", got)
		}
	})
	now := time.Now()
	var b bans
	for i, want := range []time.Duration{1, 2, 4, 8, 15, 15} {
		ban := time.Duration(0)
		for n := 0; ban == 0 && n <= strikeBurst+1; n++ {
			ban = b.strike("192.0.2.1", now)
		}
		if ban != want*time.Minute {
			t.Errorf("ban %d: %v", i, ban)
		}
		if b.strike("192.0.2.1", now.Add(ban-1)) != 0 || !b.out("192.0.2.1", now.Add(ban-1)) || b.out("192.0.2.1", now.Add(ban)) {
			t.Errorf("ban %d does not last its time", i)
		}
		now = now.Add(ban)
	}
	for i := range 2 * maxStruck {
		b.strike(fmt.Sprintf("10.0.%d.%d", i/256, i%256), now)
	}
	if len(b.each) > maxStruck {
		t.Errorf("%d sources remembered", len(b.each))
	}
	if b.forget(now.Add(time.Hour)); len(b.each) != 0 {
		t.Errorf("%d sources are never forgotten", len(b.each))
	}
}
