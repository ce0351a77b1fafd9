package web

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// leadConn is a connection whose other end asks through a pipe, and takes answers as a peer does.
type leadConn struct {
	net.Conn
	*peer
	gone error // how it ends; nil = io.EOF
}

func (c *leadConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF && c.gone != nil {
		c.peer.mu.Lock()
		defer c.peer.mu.Unlock()
		c.peer.reset = true
		err = c.gone
	}
	return n, err
}

func (c *leadConn) Write(b []byte) (int, error)        { return c.peer.Write(b) }
func (c *leadConn) SetWriteDeadline(t time.Time) error { return c.peer.SetWriteDeadline(t) }
func (c *leadConn) Close() error                       { return c.Conn.Close() }
func (c *leadConn) SetDeadline(t time.Time) error      { return c.Conn.SetDeadline(t) }
func (c *leadConn) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(t) }
func (c *leadConn) LocalAddr() net.Addr                { return c.Conn.LocalAddr() }
func (c *leadConn) RemoteAddr() net.Addr               { return c.Conn.RemoteAddr() }

// What has become of an image that the kernel took long before its peer is known when the peer asks for more, goes, or has said nothing
// for a while, and until it is known the lane looks after it.
func TestALaneLooksAfterWhatIsAheadOfItsPeer(t *testing.T) {
	const soon = 100 * time.Millisecond
	const size = 700_000                    // all of which fits into the buffer
	const slow = size / 5_000 * time.Second // at 5 KB/s, less what others may have in their buffer
	say := func(t *testing.T, client net.Conn, request string) {
		t.Helper()
		_ = client.SetWriteDeadline(time.Now().Add(time.Hour))
		if _, err := io.WriteString(client, request); err != nil {
			t.Errorf("%.20q is not read: %v", request, err)
		}
	}
	next := func(t *testing.T, _ *Server, client net.Conn, _ *peer) { say(t, client, simpleRequest) }
	other := func(t *testing.T, _ *Server, client net.Conn, _ *peer) {
		say(t, client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	leaves := func(_ *testing.T, _ *Server, client net.Conn, _ *peer) { client.Close() }
	goes := func(_ *testing.T, _ *Server, _ net.Conn, p *peer) { // while it is waited for
		time.Sleep(5*time.Second - soon)
		p.mu.Lock()
		defer p.mu.Unlock()
		taken := p.sent - p.left()
		p.pace, p.reset = func(time.Duration) int { return taken }, true
	}
	down := func(t *testing.T, s *Server, _ net.Conn, _ *peer) {
		began := time.Now()
		if err := s.Shutdown(context.Background()); err != nil || time.Since(began) < slow/2 {
			t.Errorf("down after %v: %v", time.Since(began), err)
		}
	}
	for what, c := range map[string]struct {
		size     int // of the image; 0 = size
		pace     func(time.Duration) int
		close    bool                                       // it asks for the last answer
		then     func(*testing.T, *Server, net.Conn, *peer) // soon after the request; nil = nothing
		gone     error                                      // how reading ends; nil = io.EOF
		from, to time.Duration                              // when it is known
		bytes    int64                                      // that it was sent, a header more or less
		cut      bool
		goesOn   bool // another request is answered in the end
	}{
		"it asks again":              {pace: at(fastRate, all), then: next, from: soon, to: soon, bytes: size, goesOn: true},
		"it asks what others answer": {pace: at(fastRate, all), then: other, from: soon, to: soon, bytes: size, goesOn: true},
		"it is silent":               {pace: at(fastRate, all), from: settleAfter, to: settleAfter, bytes: size, goesOn: true},
		"it goes":                    {pace: at(fastRate, all), then: leaves, from: soon, to: soon, bytes: size},
		"it goes too early":          {pace: at(1_000_000, all), then: leaves, gone: syscall.ECONNRESET, from: soon, to: soon, bytes: 100_000, cut: true},
		"it goes a little too early": {pace: at(6_500_000, all), then: leaves, gone: syscall.ECONNRESET, from: soon, to: soon, bytes: 650_000, cut: true},
		"it stalls":                  {pace: at(fastRate, 100_000), from: stallTimeout, to: 2*stallTimeout + 2*time.Second, bytes: 100_000, cut: true},
		"it stalls near the end":     {pace: at(fastRate, size-200_000), from: stallTimeout, to: 2*stallTimeout + 2*time.Second, bytes: size - 200_000, cut: true},
		"it stalls, and has not all of it in its buffer": {size: 4_000_000, pace: at(fastRate, 1_500_000), from: stallTimeout, to: 2*stallTimeout + 2*time.Second, bytes: 1_500_000, cut: true},
		"it is slow, and goes":                           {pace: at(5_000, all), then: goes, from: 5 * time.Second, to: 5 * time.Second, bytes: 25_000, cut: true},
		"it is slow":                                     {pace: at(5_000, all), from: slow / 2, to: slow, bytes: size, goesOn: true},
		"it is slow, and asks again":                     {pace: at(5_000, all), then: next, from: slow / 2, to: slow, bytes: size, goesOn: true},
		"it is slow, and asks what others answer":        {pace: at(5_000, all), then: other, from: slow / 2, to: slow, bytes: size, goesOn: true},
		"it is slow, and says no more":                   {pace: at(5_000, all), then: leaves, from: slow / 2, to: slow, bytes: size},
		"it is slow, and wants no more":                  {pace: at(5_000, all), close: true, from: slow / 2, to: slow, bytes: size},
		"it is slow, and the server goes down":           {pace: at(5_000, all), then: down, from: slow / 2, to: slow, bytes: size},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			digest := f.add("bms", "1.0.0", testImage(1, cmp.Or(c.size, size)))
			began := time.Now()
			images := make(chan Served, 8)
			s := NewServer(New(Config{Fleet: f, Log: quiet(), Observe: func(got Served) {
				if got.Image {
					images <- got
				}
			}}), quiet())
			var idle atomic.Int32 // until then nobody else may have its place
			s.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateIdle {
					idle.Add(1)
				}
			}
			connect, end := onPipes(s, nil)
			client, server := net.Pipe()
			p := newPeer(c.pace)
			connect(&leadConn{server, p, c.gone})
			head := ""
			if c.close {
				head = "Connection: close\r\n"
			}
			say(t, client, fmt.Sprintf("GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\n%s\r\n", digest, head))
			time.Sleep(soon)
			if _, largest, _ := p.seen(); largest <= 2*SendBuffer || len(images) > 0 || idle.Load() > 0 {
				t.Errorf("%s: a buffer of %d bytes, %d times it is known what has become of it, %d times its place is given away", what, largest, len(images), idle.Load())
			}
			if c.then != nil {
				c.then(t, s, client, p)
			}
			select {
			case got := <-images:
				const header = 1_000
				if got.Cut != c.cut || got.Bytes > c.bytes || got.Bytes < c.bytes-header {
					t.Errorf("%s: %+v, want %d bytes, cut %t", what, got, c.bytes, c.cut)
				}
				if after := time.Since(began); after < c.from || after > c.to+10*time.Millisecond || got.Took != after {
					t.Errorf("%s: known after %v, want %v to %v; it took %v", what, after, c.from, c.to, got.Took)
				}
			case <-time.After(time.Hour):
				t.Errorf("%s: nobody says what has become of it", what)
			}
			if _, _, dropped := p.seen(); dropped != c.cut {
				t.Errorf("%s: what was left is dropped: %t", what, dropped)
			}
			if c.goesOn {
				if synctest.Wait(); c.then == nil && idle.Load() == 0 {
					t.Errorf("%s: it keeps its place", what)
				}
				say(t, client, simpleRequest)
				synctest.Wait()
				if bound, _, _ := p.seen(); bound != 2*SendBuffer {
					t.Errorf("%s: another request is answered with a buffer of %d bytes", what, bound)
				}
			} else {
				synctest.Wait()
				_ = client.SetDeadline(time.Now().Add(time.Second))
				if _, err := client.Write([]byte("x")); err == nil || isTimeout(err) {
					t.Errorf("%s: the connection goes on: %v", what, err)
				}
			}
			client.Close()
			_ = end()
			if len(images) > 0 {
				t.Errorf("%s: it is known twice: %+v", what, <-images)
			}
		})
	}
}

// What is handed on has nobody who would look after a lead.
func TestWhatIsHandedOnHasNoLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		digest := f.add("bms", "1.0.0", testImage(1, 700_000))
		connect, end := onPipes(NewServer(New(Config{Fleet: f, Log: quiet()}), quiet()), nil)
		client, server := net.Pipe()
		p := newPeer(at(fastRate, all))
		connect(&leadConn{Conn: server, peer: p})
		if _, err := fmt.Fprintf(client, "GET /firmware/%s.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", digest); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, largest, _ := p.seen(); largest != 2*SendBuffer || p.queued() > 0 {
			t.Errorf("a buffer of %d bytes, with %d in it", largest, p.queued())
		}
		client.Close()
		_ = end()
	})
}

// A handler that panics with an image half written leaves no lead behind.
func TestALeadIsTakenBackFromWhoPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(handler)
		connect, end := onPipes(NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "700000")
			_, _ = h.download(w, r).Write(make([]byte, 300_000))
			panic(http.ErrAbortHandler)
		}), quiet()), nil)
		client, server := net.Pipe()
		p := newPeer(at(fastRate, 0))
		connect(&leadConn{Conn: server, peer: p})
		if _, err := io.WriteString(client, simpleRequest); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, largest, dropped := p.seen(); largest != 2*largeBuffer || h.leads.Load() != 0 || !dropped {
			t.Errorf("a buffer of %d bytes, dropped: %t; %d leads are given", largest, dropped, h.leads.Load())
		}
		client.Close()
		_ = end()
	})
}
