package device

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/norflash"
	"bmsota/protocol"
)

// still is a chip that stands still while its flash works, as ESP-IDF has it: the cache is off, so nothing in flash runs, and
// the radio's side of a connection waits.
type still struct {
	busy chan struct{} // of one: held while the flash works. A mutex would hold virtual time up.
	next func(context.Context, string, string) (net.Conn, error)
}

func (s *still) work(d time.Duration) {
	s.busy <- struct{}{}
	time.Sleep(d)
	<-s.busy
}

func (s *still) pass() {
	s.busy <- struct{}{}
	<-s.busy
}

func (s *still) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := s.next(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	near, hop := net.Pipe()
	go relay(hop, stillConn{c, s})
	go relay(stillConn{c, s}, hop)
	return near, nil
}

// stillConn is the line between the radio and the network. What the board writes meanwhile is kept, by relay: TLS holds a mutex while
// it writes.
type stillConn struct {
	net.Conn
	chip *still
}

func (c stillConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.chip.pass()
	return n, err
}

func (c stillConn) Write(p []byte) (int, error) {
	c.chip.pass()
	return c.Conn.Write(p)
}

// slowSession is an update over a real session with a broker, orders in the middle of it, by a board that stands still while
// its flash works. It says how many sessions there were until the new image's.
func slowSession(t *testing.T, pace Pace, seed uint64) (sessions int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0")
		s := serve(t, release(t, next, key), next)
		st := newSite(t, s)
		defer st.close()
		const id = "bms-abcdef"
		ota, mq := st.configs(id, trusting(t, key))
		send := func(topic, payload string, retain bool) {
			if err := st.broker.Publish(topic, []byte(payload), retain, 1); err != nil {
				t.Error(err)
			}
		}
		send("bms/ota/command", `{"action":"update","id":"all"}`, true)
		chip := &still{busy: make(chan struct{}, 1), next: st.net.dial}
		b := newBench(t, Layout{Image: old, OTAConfig: ota, MQTTConfig: mq, MAC: [6]byte{2, 0, 0, 0xab, 0xcd, 0xef}}, s,
			func(c *Config) { c.Transport, c.newLink, c.Dial, c.Seed = nil, nil, chip.dial, seed })
		b.flash().Slow(pace, seed, chip.work)
		table, err := readTable(b.flash())
		if err != nil {
			t.Fatal(err)
		}
		head := int64(table.Slots()[1].Offset)
		begun := 0
		b.flash().OnOp(func(op norflash.Op) {
			if op.Kind == norflash.OpErase && op.Off == head {
				begun++
			}
		})
		b.on()
		for i := range 60 {
			b.settle(30 * time.Second)
			// Two orders that change nothing, one of them an older one again.
			send("bms/ota/command/"+id, fmt.Sprintf(`{"action":"check","id":"check-%d"}`, i), false)
			send("bms/ota/command/"+id, `{"action":"update","id":"all"}`, false)
		}
		b.settle(10 * time.Minute)
		b.off()
		st.tap.mu.Lock()
		defer st.tap.mu.Unlock()
		all := st.tap.statuses["bms/ota/status/"+id]
		var last protocol.Status
		if len(all) > 0 {
			last = all[len(all)-1]
		}
		if last.ImageSHA256 != sha(next) || last.RollbackPending || last.Phase != protocol.PhaseIdle {
			t.Errorf("seed %d: ends as %s with %s: %s", seed, last.Phase, last.CurrentVersion, last.Message)
		}
		if begun != 1 || len(b.boots) != 2 {
			t.Errorf("seed %d: the slot was begun %d times, boots %v", seed, begun, b.boots)
		}
		sessions = st.tap.clients[id]
	})
	return sessions
}

// While a sector takes less than the keep-alive, no session is lost: one for each image that ran, whatever orders came.
func TestSlowFlashLosesNoSessionWithinTheKeepAlive(t *testing.T) {
	for _, pace := range []Pace{
		{Erase: span(time.Second, 10*time.Second), Program: span(0, 10*time.Millisecond), Wear: 0.5, Stuck: 5, Worst: 50 * time.Second},
		{Erase: span(45*time.Second, 55*time.Second)},
	} {
		for _, seed := range seeds(1) {
			if n := slowSession(t, pace, seed); n != 2 {
				t.Errorf("flash %v, seed %d: %d sessions of two images", pace, seed, n)
			}
		}
	}
}

// Beyond it sessions are lost and taken up again, and the update is still one.
func TestSlowFlashThatLosesTheSessionInstallsOnce(t *testing.T) {
	lost := 0
	for _, pace := range []Pace{{Erase: span(62*time.Second, 80*time.Second)}, {Erase: span(time.Second, 2*time.Second), Stuck: 6, Worst: 150 * time.Second}} {
		for _, seed := range seeds(1) {
			lost += slowSession(t, pace, seed) - 2
		}
	}
	if lost == 0 {
		t.Error("no session was lost: the chip does not stand still")
	}
}
