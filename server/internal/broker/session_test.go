package broker

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/protocol"
)

// TestASilentSessionIsOneGoroutine whatever it did before, and none of a worker is left when nothing is to be done.
func TestASilentSessionIsOneGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("d1", "d2", "d3", "d4"), nil)
		for _, name := range []string{"d1", "d2", "d3", "d4"} {
			c := r.device(name)
			c.subscribed(1, 1, "bms/ota/command/"+name)
			c.send(publish("bms/ota/status/"+name, status(protocol.PhaseIdle), 1, true, 2))
			c.recv()
		}
		for range 2 {
			synctest.Wait()
			r.workers.Rest()
		}
		synctest.Wait()
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		wait, work := 0, 0
		for one := range bytes.SplitSeq(stacks, []byte("\n\n")) {
			if !bytes.Contains(one, []byte("synctest bubble")) { // of tests before this one, and about to end
				continue
			}
			switch {
			case bytes.Contains(one, []byte("(*Embedded).await(")):
				wait++
			case bytes.Contains(one, []byte("(*pool).work(")), bytes.Contains(one, []byte("(*wire).writeOut(")):
				work++
			}
		}
		if wait != 4 || work != 0 {
			t.Errorf("of 4 sessions %d goroutines wait on a small stack, and %d work", wait, work)
		}
	})
}

// TestPacketsComeInPieces of any length, over whatever carries them: each is handled once, in order.
func TestPacketsComeInPieces(t *testing.T) {
	cert, pool := selfSigned(t)
	plain, secure := loopback(t), loopback(t)
	f := newFleet("d1")
	r := start(t, f, func(c *Config) {
		c.Plain, c.Secure, c.TLS = plain, secure, &tls.Config{Certificates: []tls.Certificate{cert}}
		c.StatusRate, c.StatusBurst = 1<<29, 1<<30
	})
	r.Embedded.packetInterval = 0
	piped := start(t, f, func(c *Config) { c.StatusRate, c.StatusBurst = 1<<29, 1<<30 })
	piped.Embedded.packetInterval = 0
	rows := map[string]func() net.Conn{
		"pipe": func() net.Conn { return piped.ln.dial(t) },
		"TCP": func() net.Conn {
			nc, err := net.Dial("tcp", plain.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			return nc
		},
		"TLS": func() net.Conn {
			nc, err := tls.Dial("tcp", secure.Addr().String(), &tls.Config{RootCAs: pool})
			if err != nil {
				t.Fatal(err)
			}
			return nc
		},
	}
	var stream []byte
	const n = 40
	for i := range n { // lengths on both sides of what is read ahead, and of what mochi reads at once
		body := status(protocol.PhaseIdle)
		stream = append(stream, encode(t, publish(myStatus, body[:len(body)-1]+string(bytes.Repeat([]byte(" "), 7*i))+"}", 1, false, uint16(i+1)))...)
		stream = append(stream, encode(t, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})...)
	}
	for name, dial := range rows {
		for _, size := range []int{1, 2, readAhead - 1, readAhead, readAhead + 1, 3 * readAhead, 5000, len(stream)} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				c := connectOver(t, dial(), login{name: "d1", secret: "d1-secret", id: name})
				var sent sync.WaitGroup
				sent.Go(func() {
					for rest := stream; len(rest) > 0; {
						k := min(size, len(rest))
						if _, err := c.Write(rest[:k]); err != nil {
							t.Error(err)
							return
						}
						rest = rest[k:]
					}
				})
				for i := range n {
					if pk := c.recv(); pk.FixedHeader.Type != packets.Puback || int(pk.PacketID) != i+1 {
						t.Fatalf("packet of type %d and id %d for status %d", pk.FixedHeader.Type, pk.PacketID, i)
					}
					if pk := c.recv(); pk.FixedHeader.Type != packets.Pingresp {
						t.Fatalf("packet of type %d for ping %d", pk.FixedHeader.Type, i)
					}
				}
				sent.Wait()
				_ = c.Close()
			})
		}
	}
}

// TestDribblingIsNoSignOfLife: a keepalive and a half after the last whole packet a session ends, also where bytes keep coming,
// of a packet or of a TLS record.
func TestDribblingIsNoSignOfLife(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cert, pool := selfSigned(t)
				ln := newPipeListener()
				r := start(t, newFleet("d1"), func(c *Config) {
					if c.Plain = ln; secure {
						c.Plain, c.Secure, c.TLS = nil, ln, &tls.Config{Certificates: []tls.Certificate{cert}}
					}
				})
				raw := ln.dial(t)
				nc, bytes := raw, []byte{0x30, 0xff, 0x1f} // a publish of 4,095 bytes
				if secure {
					nc = tls.Client(raw, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"})
					bytes = []byte{0x17, 0x03, 0x03, 0x0f, 0xff} // a record of as many
				}
				c := connectOver(t, nc, login{name: "d1", secret: "d1-secret", id: "d1", keepalive: 10})
				began := time.Now()
				for i := 0; ; i++ {
					one := []byte{0}
					if i < len(bytes) {
						one = bytes[i : i+1]
					}
					_ = raw.SetWriteDeadline(time.Now().Add(time.Minute))
					if _, err := raw.Write(one); err != nil {
						if errors.Is(err, os.ErrDeadlineExceeded) {
							t.Fatal("nobody reads")
						}
						break
					}
					time.Sleep(time.Second)
				}
				if took := time.Since(began); took < 15*time.Second || took > 16*time.Second {
					t.Errorf("ended after %v", took)
				}
				_ = c.Close()
				synctest.Wait()
				if r.Stats().Sessions != 0 {
					t.Error("session is left")
				}
			})
		})
	}
}

// TestOrderIsKeptForAReaderThatStalls: what the kernel has room for is written at once, what it has not waits, and the two do
// not pass each other. Afterwards it is written at once again, and no deadline of the waiting is left.
func TestOrderIsKeptForAReaderThatStalls(t *testing.T) {
	plain := loopback(t)
	r := start(t, newFleet(), func(c *Config) { c.Plain = plain })
	nc, err := net.Dial("tcp", plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.(*net.TCPConn).SetReadBuffer(64 << 10)
	c := connectOver(t, nc, login{name: "olga", secret: "olga-secret", id: "cli"})
	c.send(subscribe(1, 0, "bms/ota/status/#"))
	c.recv()
	var w *wire
	r.mu.Lock()
	for c := range r.conns {
		w = &c.wire
	}
	r.mu.Unlock()
	_ = w.Conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	waited := false
	payload := make([]byte, 4<<10)
	next := 0
	for range 3 {
		first := next
		for size := 0; size < maxWaitingOperator*9/10; size += len(payload) {
			binary.BigEndian.PutUint32(payload, uint32(next))
			r.say(myStatus, bytes.Clone(payload), false, 0)
			next++
		}
		w.outMu.Lock()
		waited = waited || w.waiting > 0
		w.outMu.Unlock()
		for i := first; i < next; i++ {
			if got := binary.BigEndian.Uint32(c.recv().Payload); int(got) != i {
				t.Fatalf("message %d, want %d", got, i)
			}
		}
	}
	if !waited {
		t.Error("the kernel took all of it: nothing was tested")
	}
}

// timed notes the latest write deadline of a connection.
type timed struct {
	net.Conn
	mu   sync.Mutex
	last time.Time
}

func (c *timed) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = t
	return c.Conn.SetWriteDeadline(t)
}

func TestTheWritersDeadlineEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conn := &timed{Conn: near}
		var w wire
		w.connect(conn, time.Second)
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if conn.last.IsZero() {
			t.Error("the writer has no deadline")
		}
		if _, err := far.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !conn.last.IsZero() {
			t.Errorf("deadline %v is left", conn.last)
		}
		_, _ = near.Close(), far.Close()
	})
}
