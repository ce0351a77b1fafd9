//go:build unix

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// slowLink is a wire with little bandwidth between a board and its server, so that a download takes long enough for
// something to happen in the middle of it. It passes bytes on and understands none.
type slowLink struct {
	listener net.Listener
	target   string
	rate     int  // bytes a second
	up       bool // it is slow towards the server, not towards the board

	mu    sync.Mutex
	conns map[net.Conn]bool
	bytes int64 // passed in the slow direction
	wg    sync.WaitGroup
}

// cmdSlowLink starts one: slowlink [-up] NAME PORT TARGETPORT BYTES_PER_SECOND. With -up uploads are slow, not downloads.
func cmdSlowLink(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "slowlink")
	up := len(args) > 0 && args[0] == "-up"
	if up {
		args = args[1:]
	}
	if len(args) != 4 {
		ts.Fatalf("usage: slowlink [-up] NAME PORT TARGETPORT BYTES_PER_SECOND")
	}
	rate, err := strconv.Atoi(args[3])
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:"+args[1])
	ts.Check(err)
	s := &slowLink{listener: l, target: "127.0.0.1:" + args[2], rate: rate, up: up, conns: make(map[net.Conn]bool)}
	of(ts).links[args[0]] = s
	s.wg.Go(s.accept)
}

// cmdPassed holds what went over a slow link against limits: passed NAME MIN MAX, in bytes.
func cmdPassed(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "passed")
	if len(args) != 3 || of(ts).links[args[0]] == nil {
		ts.Fatalf("usage: passed NAME MIN MAX")
	}
	low, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	high, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	s := of(ts).links[args[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes < low || s.bytes > high {
		ts.Fatalf("%d bytes went over the link, want %d to %d", s.bytes, low, high)
	}
}

// cmdCutLink breaks every connection over a slow link, as a router does that restarts: cutlink NAME
func cmdCutLink(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "cutlink")
	if len(args) != 1 || of(ts).links[args[0]] == nil {
		ts.Fatalf("usage: cutlink NAME")
	}
	of(ts).links[args[0]].cut()
}

func (s *slowLink) accept() {
	for {
		near, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		far, err := net.Dial("tcp", s.target)
		if err != nil {
			near.Close() // the server is down, and that is how a board sees it
			continue
		}
		s.keep(near, far)
		s.wg.Go(func() { s.join(near, far) })
	}
}

func (s *slowLink) keep(conns ...net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range conns {
		s.conns[c] = true
	}
}

func (s *slowLink) join(near, far net.Conn) {
	slow, fast := near, far // where each direction ends
	if s.up {
		slow, fast = far, near
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(fast, slow) // whichever end goes, the other goes too
		near.Close()
		far.Close()
	})
	wg.Go(func() {
		s.pace(slow, fast)
		near.Close()
		far.Close()
	})
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, near)
	delete(s.conns, far)
}

func (s *slowLink) pace(to, from net.Conn) {
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			s.mu.Lock()
			s.bytes += int64(n)
			s.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (s *slowLink) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *slowLink) close() error {
	err := s.listener.Close()
	s.cut()
	s.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close link: %w", err)
	}
	return nil
}
