package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func shared(t *testing.T, m *mosquitto, f Handler, name string) *External {
	t.Helper()
	x, err := NewExternal(ExternalConfig{Handler: f, URL: "tcp://" + m.addr, Username: "server", Password: "server-secret", Timeout: 5 * time.Second,
		ClientID: name, Group: "bmsota", Sent: func(_ context.Context, _ string, cmd protocol.Command) (bool, error) { return cmd.ID == "ours", nil }})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestServersOfAGroupShareWhatArrives: each status and each command of others comes to one of them, and what a server has published
// is not taken for another's by the next. A status that nobody could store is had from where it is retained, once both have gone.
func TestServersOfAGroupShareWhatArrives(t *testing.T) {
	m := newMosquitto(t)
	var broken atomic.Bool
	var tried sync.Once
	trying := make(chan struct{})
	fleets := []*fakeFleet{newFleet(), newFleet()}
	var stops []func()
	var servers []*External
	for i, f := range fleets {
		f.onFold = func(string, []byte) error {
			if broken.Load() {
				tried.Do(func() { close(trying) })
				return fleet.ErrStorage
			}
			return nil
		}
		x := shared(t, m, f, []string{"one", "two"}[i])
		stops, servers = append(stops, run(t, x)), append(servers, x)
		until(t, "connected", x.Connected)
	}
	total := func(what string) int { return fleets[0].count(what) + fleets[1].count(what) }
	d := m.dial("d1", nil)
	for n := 1; n <= 41; n++ {
		done(t, d.Publish("bms/ota/status/d1", 1, false, status(protocol.PhaseIdle)))
		until(t, "a status is stored", func() bool { return total("fold") >= n })
	}
	if n := total("fold"); n != 41 || fleets[0].count("fold") == 0 || fleets[1].count("fold") == 0 {
		t.Errorf("41 statuses were stored %d times, by one %d, by two %d", n, fleets[0].count("fold"), fleets[1].count("fold"))
	}
	o := m.dial("olga", nil)
	for n := 1; n <= 4; n++ {
		for _, x := range servers {
			if err := x.Tell(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck, ID: "ours"}); err != nil {
				t.Fatal(err)
			}
		}
		done(t, o.Publish("bms/ota/command/d1", 1, false, `{"action":"check","id":"hers"}`))
		until(t, "an order of another", func() bool { return total("order") >= n })
	}
	if n := total("order"); n != 4 {
		t.Errorf("4 commands of another are %d orders: %q %q", n, fleets[0].seen(), fleets[1].seen())
	}

	broken.Store(true)
	done(t, d.Publish("bms/ota/status/d1", 1, true, status(protocol.PhaseTrial)))
	<-trying
	for _, stop := range stops {
		stop()
	}
	f := newFleet()
	x := shared(t, m, f, "three")
	run(t, x)
	f.until(t, "fold d1 false "+status(protocol.PhaseTrial))
}

// TestWhatAServerTookWithItIsLookedAt: the group's broker deals a status to a server that cannot store it and dies. Nobody is dealt it
// again; LookAgain brings it.
func TestWhatAServerTookWithItIsLookedAt(t *testing.T) {
	m := newMosquitto(t)
	dies, stays := newFleet(), newFleet()
	last := status(protocol.PhaseTrial)
	given := make(chan struct{})
	var once sync.Once
	dies.onFold = func(_ string, payload []byte) error {
		if string(payload) != last {
			return nil
		}
		once.Do(func() { close(given) })
		return fleet.ErrStorage
	}
	one, two := shared(t, m, dies, "one"), shared(t, m, stays, "two")
	stop := run(t, one)
	until(t, "connected", one.Connected)
	d := m.dial("d1", nil)
	done(t, d.Publish("bms/ota/status/d1", 1, true, last)) // one is alone, so it is dealt it
	<-given
	run(t, two)
	until(t, "connected", two.Connected)
	stays.until(t, "fold d1 false "+last) // its own first look, or the broker's
	n := stays.count("fold")
	stop()
	two.LookAgain()
	until(t, "what is retained is looked at", func() bool { return stays.count("fold") > n })
}

// TestAServerThatSleptStoresNothingOfBefore: it was given two statuses and stood still with both in its hands. Awake again it stores
// neither the one that waits nor any other of that session, and begins a new one. Where it does not look at its watch, that is the
// mutant, it stores it: of a boot that may be over since.
func TestAServerThatSleptStoresNothingOfBefore(t *testing.T) {
	for _, sleepless := range []bool{false, true} {
		t.Run(fmt.Sprintf("sleepless=%v", sleepless), func(t *testing.T) {
			m := newMosquitto(t)
			f := newFleet()
			var once sync.Once
			holds, goOn := make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(goOn) })
			defer release()
			first, second, third := status(protocol.PhaseChecking), status(protocol.PhaseTrial), status(protocol.PhaseIdle)
			f.onFold = func(_ string, payload []byte) error {
				if string(payload) == first {
					once.Do(func() { close(holds) })
					<-goOn
				}
				return nil
			}
			x := shared(t, m, f, "one")
			x.sleepless = sleepless
			run(t, x)
			until(t, "connected", x.Connected)
			d := m.dial("d1", nil)
			done(t, d.Publish("bms/ota/status/d1", 1, false, first))
			<-holds
			done(t, d.Publish("bms/ota/status/d1", 1, false, second))                                              // it waits behind the first
			done(t, m.dial("olga", nil).Publish("bms/ota/command/d2", 1, false, `{"action":"check","id":"hers"}`)) // behind both, and of another worker
			f.until(t, "order")
			long := time.Now().Add(-2 * sleptFor)
			x.awake.Store(&long)
			release()
			if sleepless {
				f.until(t, "fold d1 false "+second)
				return
			}
			until(t, "a new session", func() bool { at := x.awake.Load(); return time.Since(*at) < sleptFor && x.Connected() })
			done(t, d.Publish("bms/ota/status/d1", 1, false, third))
			f.until(t, "fold d1 false "+third)
			if slices.Contains(f.seen(), "fold d1 false "+second) {
				t.Errorf("it stored what it was given before: %q", f.seen())
			}
		})
	}
}
