package broker

import (
	"bytes"
	"container/list"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
)

// TestClaimedLengthAllocatesNothing: a five-byte header that promises 256 MiB ends the connection. Without a largest
// packet, eight of them took the heap from 136 to 2,174 MiB.
func TestClaimedLengthAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 8 {
			nc := r.ln.dial(t)
			if _, err := nc.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if _, err := nc.Read(make([]byte, 1)); err == nil {
				t.Error("got an answer")
			}
		}
		synctest.Wait()
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / 8; each > 64<<10 {
			t.Errorf("%d bytes for each peer", each)
		}
		if s := r.Stats(); s.Waiting != 0 {
			t.Errorf("%d peers left", s.Waiting)
		}
	})
}

func TestPacketsOverTheLimitEndTheSession(t *testing.T) {
	for _, size := range []int{maxPacket - 64, maxPacket} {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, newFleet("d1"), nil)
			c := r.device("d1")
			err := c.trySend(publish(myStatus, string(bytes.Repeat([]byte("x"), size)), 0, false, 0))
			if size < maxPacket {
				if err != nil {
					t.Fatal(err)
				}
				c.sync()
				return
			}
			c.ended()
		})
	}
}

// TestUnauthenticatedPeersAreCutAtTheDeadline: silent, dribbling, half a CONNECT, and a length that never ends.
func TestUnauthenticatedPeersAreCutAtTheDeadline(t *testing.T) {
	connect := encode(t, login{name: "d1", secret: "d1-secret", id: "x", version: 4, keepalive: 60}.packet())
	rows := map[string]func(net.Conn){
		"silent":       func(net.Conn) {},
		"half CONNECT": func(c net.Conn) { _, _ = c.Write(connect[:9]) },
		"dribble": func(c net.Conn) {
			for _, b := range connect {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"endless length": func(c net.Conn) {
			_, err := c.Write([]byte{0x10})
			for err == nil {
				time.Sleep(10 * time.Millisecond)
				_, err = c.Write([]byte{0x80})
			}
		},
	}
	for name, act := range rows {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newFleet("d1"), nil)
				nc := r.ln.dial(t)
				began := time.Now()
				acted := make(chan struct{})
				go func() {
					defer close(acted)
					act(nc)
				}()
				_ = nc.SetReadDeadline(began.Add(time.Minute))
				if _, err := nc.Read(make([]byte, 1)); err == nil {
					t.Error("got an answer")
				}
				if got := time.Since(began); got != 5*time.Second {
					t.Errorf("cut after %v", got)
				}
				_ = nc.Close()
				<-acted
				synctest.Wait()
				if r.Stats().Waiting != 0 {
					t.Error("place is still taken")
				}
			})
		})
	}
}

// TestCapsBeforeTheLogin: over the cap of one source, or of all, a connection is closed at once; logged in or gone
// makes room.
func TestCapsBeforeTheLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), func(c *Config) { c.MaxFromOne = 3 })
		for range 3 {
			r.ln.dial(t)
		}
		over := r.ln.dial(t)
		began := time.Now()
		if _, err := over.Read(make([]byte, 1)); err == nil || time.Since(began) != 0 {
			t.Errorf("over the cap: %v after %v", err, time.Since(began))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for range 10 {
			r.device("d1").sync() // a login gives its place back
		}
		if s := r.Stats(); s.TurnedAway != 1 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
	g := gate{max: 4, maxEach: 3, each: map[string]*list.List{}}
	var leaves []func()
	var cut []string
	for i, row := range []struct {
		source string
		ok     bool
		out    string // who had to go, in all
	}{
		{"a", true, ""}, {"a", true, ""}, {"a", true, ""}, {"a", false, ""}, // its own cap
		{"b", true, ""},
		{"c", true, "a0"},     // full: the oldest of the loudest goes
		{"b", false, "a0"},    // no address has more than it would have
		{"d", true, "a0 a1"},  //
		{"e", false, "a0 a1"}, // all are equals now
	} {
		name := fmt.Sprintf("%s%d", row.source, i)
		leave, ok := g.enter(row.source, func() { cut = append(cut, name) })
		if got := strings.Join(cut, " "); ok != row.ok || got != row.out {
			t.Errorf("row %d: %t, gone are %q", i, ok, got)
		}
		if ok {
			leaves = append(leaves, leave)
		}
	}
	if g.waiting() != 4 {
		t.Errorf("%d inside", g.waiting())
	}
	for _, leave := range leaves {
		leave()
		leave()
	}
	if g.waiting() != 0 || len(g.each) != 0 {
		t.Errorf("left: %d, %v", g.waiting(), g.each)
	}
}

func TestSourceOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[2001:db8:1:2:9::1]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := SourceOf(a); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestMoreClientsThanAllowedAreToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1", "d2", "d3"), func(c *Config) { c.MaxClients = 2 })
		a := r.device("d1")
		r.device("d2").sync()
		if c := r.connect(login{name: "d3", secret: "d3-secret", id: "x"}); c.acked.ReasonCode != 3 {
			t.Errorf("CONNACK %d", c.acked.ReasonCode)
		}
		_ = a.Close()
		synctest.Wait()
		r.device("d3").sync()
	})
}

// TestStatusRate: 50 at once, then 10 a second. QoS 1 beyond that waits, QoS 0 is dropped, another device is not held.
func TestStatusRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1", "d2")
		r := start(t, f, nil)
		c := r.device("d1")
		began := time.Now()
		for i := range 70 {
			c.send(publish(myStatus, status(protocol.PhaseIdle), 1, false, uint16(i+1)))
			if pk := c.recv(); pk.FixedHeader.Type != packets.Puback {
				t.Fatalf("answer of type %d", pk.FixedHeader.Type)
			}
			if i == 49 && time.Since(began) != 0 {
				t.Errorf("the burst took %v", time.Since(began))
			}
		}
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("70 statuses took %v", got)
		}
		// A second session of the same device shares the rate.
		second := r.must(login{name: "d1", secret: "d1-secret", id: "two"})
		for range 10 {
			second.send(publish(myStatus, status(protocol.PhaseIdle), 0, false, 0))
		}
		second.sync()
		if f.count("fold") != 70 || r.Stats().StatusesDropped != 10 {
			t.Errorf("%d folds, %+v", f.count("fold"), r.Stats())
		}
		other := r.device("d2")
		other.send(publish("bms/ota/status/d2", status(protocol.PhaseIdle), 1, false, 1))
		other.recv()
		if got := time.Since(began); got != 2*time.Second {
			t.Errorf("another device was held until %v", got)
		}
	})
}

// TestPacketRate: pings are cheap but not free.
func TestPacketRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		c := r.device("d1")
		began := time.Now()
		for range 300 {
			c.sync()
		}
		if got := time.Since(began); got != time.Second {
			t.Errorf("300 pings took %v", got)
		}
	})
}

// TestDeviceThatAcknowledgesNothingIsCut: mochi would go on without telling it anything.
func TestDeviceThatAcknowledgesNothingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		c := r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		c.sync()
		for i := range maxInflight + 1 {
			if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck, ID: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			if i < maxInflight {
				c.recv()
			}
		}
		c.ended()
		c = r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		if cmd, err := protocol.ParseCommand(c.recv().Payload); err != nil || cmd.ID != fmt.Sprint(maxInflight) {
			t.Errorf("after coming back: %+v, %v", cmd, err)
		}
	})
}

// TestPacketIDsOfBothDirectionsAreApart: a message to the device with id 1 is open; its own packets with id 1 work,
// and the message is still open after them.
func TestPacketIDsOfBothDirectionsAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); err != nil {
			t.Fatal(err)
		}
		c := r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		out := c.recv()
		if out.PacketID != 1 {
			t.Fatalf("id %d: the test needs 1", out.PacketID)
		}
		if codes := c.subscribed(1, 1, "bms/ota/command"); codes[0] != 1 {
			t.Errorf("second SUBSCRIBE was granted %#x", codes)
		}
		c.send(publish(myStatus, status(protocol.PhaseIdle), 1, false, 1))
		if pk := c.recv(); pk.FixedHeader.Type != packets.Puback || pk.PacketID != 1 {
			t.Errorf("answer of type %d", pk.FixedHeader.Type)
		}
		c.sync()
		cl, ok := r.srv.Clients.Get("device/d1/d1")
		if !ok {
			t.Fatal("no session")
		}
		if _, open := cl.State.Inflight.Get(1); !open {
			t.Error("the message to the device is forgotten")
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: 1})
		c.sync()
		if cl.State.Inflight.Len() != 0 {
			t.Error("the message to the device is still open")
		}
	})
}

// TestWatcherGetsEveryRetainedStatus of a fleet larger than a queue, and QoS 0 whatever it asks for.
func TestWatcherGetsEveryRetainedStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet(), nil)
		const n = 200
		for i := range n {
			r.say(fmt.Sprintf("bms/ota/status/d%d", i), []byte("x"), true, 1)
		}
		o := r.operator()
		if codes := o.subscribed(1, 2, "bms/ota/status/#"); codes[0] != 0 {
			t.Errorf("granted %d", codes[0])
		}
		seen := map[string]bool{}
		for range n {
			pk := o.recv()
			if !pk.FixedHeader.Retain || pk.FixedHeader.Qos != 0 {
				t.Fatalf("retain %t, QoS %d", pk.FixedHeader.Retain, pk.FixedHeader.Qos)
			}
			seen[pk.TopicName] = true
		}
		o.sync()
		if len(seen) != n {
			t.Errorf("%d of %d", len(seen), n)
		}
	})
}

// TestWatcherKeepsUpWithABurst also where one processor does everything and who publishes lets nobody else have it.
func TestWatcherKeepsUpWithABurst(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet(), nil)
		o := r.operator()
		o.subscribed(1, 0, "bms/ota/status/#")
		const n = 2000
		for i := range n {
			r.say("bms/ota/status/d1", fmt.Append(nil, i), false, 1)
		}
		for i := range n {
			if got, want := string(o.recv().Payload), fmt.Sprint(i); got != want {
				t.Fatalf("message %s, want %s", got, want)
			}
		}
		o.sync()
	})
}

// TestReaderThatDoesNotReadIsCut: it costs the others nothing and its place is free after the write deadline.
func TestReaderThatDoesNotReadIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1")
		r := start(t, f, nil)
		o := r.operator()
		o.subscribed(1, 0, "bms/ota/status/#")
		o.sync()
		c := r.device("d1")
		began := time.Now()
		for i := range 50 {
			c.send(publish(myStatus, status(protocol.PhaseIdle), 1, true, uint16(i+1)))
			c.recv()
		}
		if got := time.Since(began); got != 0 {
			t.Errorf("the device was held for %v", got)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := r.Stats().Sessions; got != 1 {
			t.Errorf("%d sessions", got)
		}
		c.sync()
	})
}

// TestReaderWithTooMuchWaitingIsCut at once, rather than left with a gap or left to fill the memory; and the log says so once.
func TestReaderWithTooMuchWaitingIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := start(t, newFleet(), func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		o := r.operator()
		o.subscribed(1, 0, "bms/ota/status/#")
		o.sync()
		began := time.Now()
		payload := bytes.Repeat([]byte("x"), protocol.MaxStatus)
		sent := 0
		for ; sent < 2*maxWaitingOperator/len(payload) && r.Stats().Sessions == 1; sent++ {
			r.say(myStatus, payload, false, 0)
			synctest.Wait()
		}
		if most := maxWaitingOperator/len(payload) + 1; sent < most-2 || sent > most || time.Since(began) != 0 {
			t.Errorf("cut after %d messages and %v", sent, time.Since(began))
		}
		if n := strings.Count(log.String(), `msg="reader too slow" name=olga`); n != 1 {
			t.Errorf("said %d times: %s", n, log.String())
		}
	})
}

// TestPublisherIsNeverHeldByAReader: a device that reads nothing gets many commands; sending them takes no time.
func TestPublisherIsNeverHeldByAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		c := r.device("d1")
		c.subscribed(1, 1, "bms/ota/command/d1")
		c.sync()
		began := time.Now()
		for range maxInflight - 1 {
			if err := r.Send(t.Context(), "d1", protocol.Command{Action: protocol.ActionCheck}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
		for range maxInflight - 1 {
			c.recv()
		}
		c.sync()
	})
}

// TestShortPacketsThatPanicTheDecoderEndOnlyTheirSender.
func TestShortPacketsThatPanicTheDecoderEndOnlyTheirSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("d1", "d2")
		r := start(t, f, nil)
		bystander := r.device("d2")
		c := r.must(login{name: "d1", secret: "d1-secret", id: "x", version: 5})
		// SUBSCRIBE, 5.0: id 1, no properties, filter "a", and no options byte.
		if _, err := c.Write([]byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}); err != nil {
			t.Fatal(err)
		}
		c.ended()
		synctest.Wait()
		if s := r.Stats(); s.Panics != 1 || s.Sessions != 1 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
		if f.count("disconnected d1") != 1 || r.srv.Clients.Len() != 1 {
			t.Errorf("told %q, %d clients", f.seen(), r.srv.Clients.Len())
		}
		bystander.sync()
		r.device("d1").sync()
	})
}

// TestPeersAreForgotten: what is kept of a device that is gone goes with the next sweep, expired messages too.
func TestPeersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1"), nil)
		o := r.must(login{name: "olga", secret: "olga-secret", id: "x", version: 5})
		pk := publish("bms/ota/command/d1", `{"action":"check"}`, 1, true, 1)
		pk.Properties.MessageExpiryInterval = 30
		o.send(pk)
		o.recv()
		_ = o.Close()
		_ = r.device("d1").Close()
		synctest.Wait()
		kept := func() (peers, retained, conns, live int) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.peers), r.srv.Topics.Retained.Len(), len(r.conns), len(r.live)
		}
		if peers, retained, conns, live := kept(); peers != 2 || retained != 1 || conns != 0 || live != 0 {
			t.Fatalf("%d peers, %d retained, %d connections, %d sessions", peers, retained, conns, live)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if peers, retained, _, _ := kept(); peers != 0 || retained != 0 {
			t.Errorf("left: %d peers, %d retained", peers, retained)
		}
	})
}
