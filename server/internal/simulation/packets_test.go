package simulation

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/esp/appimage"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// order gives a board the command to take what is offered.
func (w *world) order(b *board) {
	w.lifeMu.Lock()
	l := w.life
	w.lifeMu.Unlock()
	if _, err := l.fleet.Command(context.Background(), l.broker, admin, b.id, protocol.Command{Action: protocol.ActionUpdate}); err != nil {
		w.t.Fatal(err)
	}
}

// story is two releases, each ordered once, of one board.
func story(t *testing.T, prepare func(*world) tap) (w *world) {
	t.Helper()
	w = newWorld(t, 1, nil)
	defer w.close()
	w.net.listen(prepare(w))
	b := w.boards[0]
	b.on()
	settle(10 * time.Second)
	for _, version := range []string{"1.1.0", "1.2.0"} {
		w.restarts.Wait()
		w.publish(version, appimage.BehaviourOK, 16<<10)
		w.order(b)
		settle(5 * time.Minute)
	}
	w.net.listen(nil)
	settle(5 * time.Minute) // what begins with the last packet has its time, too
	w.converged(b, "1.2.0", 2)
	return w
}

// converged insists on exactly one install for each wanted release, and on a server that knows it.
func (w *world) converged(b *board, version string, installs int) {
	w.t.Helper()
	d := w.device(b)
	if last := b.last(); last.Phase != protocol.PhaseIdle || last.CurrentVersion != version || d.Version != version || !d.Online {
		w.t.Errorf("the board says %s and %s, the server believes %s, online %v", last.Phase, last.CurrentVersion, d.Version, d.Online)
	}
	if got := b.installs(); got != installs {
		w.t.Errorf("%d installs, want %d: %v", got, installs, b.boots)
	}
	for _, a := range w.attempts(b) {
		if a.State != fleet.AttemptSucceeded {
			w.t.Errorf("attempt at %s is %s:%s %s", a.Version, a.State, a.Reason, a.Message)
		}
	}
	if w.t.Failed() {
		w.tell()
	}
}

// TestEveryPacketMayBeTheBrokersLast restarts the server at every MQTT packet of two updates, those of connecting and
// subscribing among them: it comes again after two seconds with nothing but its rows, and every session is lost. The
// packet is the last that arrives, or the first that does not.
func TestEveryPacketMayBeTheBrokersLast(t *testing.T) {
	run := func(at int, arrives bool) (packets int) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			n := 0
			story(t, func(w *world) tap {
				return func(_ int, _ direction, packet []byte) ([][]byte, bool) {
					mu.Lock()
					defer mu.Unlock()
					n++
					if n != at {
						return [][]byte{packet}, false
					}
					w.restart(2 * time.Second)
					if arrives {
						return [][]byte{packet}, true
					}
					return nil, true
				}
			})
			packets = n
		})
		if t.Failed() {
			t.Fatalf("packet %d, arrives %v", at, arrives)
		}
		return packets
	}
	all := run(0, true)
	if all < 30 {
		t.Fatalf("%d packets in all", all)
	}
	for at := 1; at <= all; at++ {
		run(at, true)
		run(at, false)
	}
	t.Logf("%d packets", all)
}

// isPublish says whether a packet is a PUBLISH, which to a board are commands alone.
func isPublish(packet []byte) bool { return packet[0]>>4 == 3 }

// duplicate is a packet as it is delivered again (MQTT 3.1.1 §3.3.1.1).
func duplicate(packet []byte) []byte {
	again := slices.Clone(packet)
	again[0] |= 0x08
	return again
}

// secondOf is a status as a client of another session would say it again: the same words under another packet identifier.
// A board's own are below 0x8000 as long as it says less than that in one session.
func secondOf(packet []byte) []byte {
	again := slices.Clone(packet)
	at := 1
	for again[at] >= 0x80 {
		at++
	}
	at += 1 + 2 + int(again[at+1])<<8 + int(again[at+2]) // behind the topic
	again[at] |= 0x80
	return again
}

// TestCommandsThatComeTwiceLateAndInAnyOrderInstallOnce plays what brokers do with QoS 1 and retained messages: each
// command twice; each status twice; every command there ever was again after every new one and at every new session, the oldest last;
// as retained and as live ones; and sessions that end at every order.
func TestCommandsThatComeTwiceLateAndInAnyOrderInstallOnce(t *testing.T) {
	for name, prepare := range map[string]func(*world) tap{
		"each command twice": func(*world) tap {
			return func(_ int, way direction, packet []byte) ([][]byte, bool) {
				if way == toBoard && isPublish(packet) {
					return [][]byte{packet, duplicate(packet)}, false
				}
				return [][]byte{packet}, false
			}
		},
		"each status twice": func(*world) tap {
			return func(_ int, way direction, packet []byte) ([][]byte, bool) {
				switch {
				case way == toServer && isPublish(packet):
					return [][]byte{packet, secondOf(packet)}, false
				case way == toBoard && packet[0]>>4 == 4 && packet[2] >= 0x80: // PUBACK of the second
					return nil, false
				}
				return [][]byte{packet}, false
			}
		},
		"stale ones after every new one": func(*world) tap { return replaying(false, nil) },
		"stale ones, retained":           func(*world) tap { return replaying(true, nil) },
		"and the session ends with each": func(w *world) tap {
			cuts := 0
			return replaying(true, func() bool { cuts++; return cuts%2 == 1 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { story(t, prepare) })
		})
	}
}

// replaying delivers behind each command all that came before it, newest first, and behind each answer to SUBSCRIBE, too.
func replaying(retained bool, dies func() bool) tap {
	var mu sync.Mutex
	var seen [][]byte
	return func(_ int, way direction, packet []byte) ([][]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		suback := packet[0]>>4 == 9
		if way == toServer || !isPublish(packet) && !suback {
			return [][]byte{packet}, false
		}
		out := [][]byte{packet}
		for _, old := range slices.Backward(seen) {
			again := duplicate(old)
			again[0] &^= 0x01
			if retained {
				again[0] |= 0x01
			}
			out = append(out, again)
		}
		if isPublish(packet) {
			seen = append(seen, packet)
		}
		return out, isPublish(packet) && dies != nil && dies()
	}
}
