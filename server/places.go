package server

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"

	"bmsota/server/internal/broker"
)

// places are the connections that may be open at once. A connection that serves no request (it has not sent a whole header
// yet, or is idle between two) may lose its place: to one of an address with fewer, where another has more that serve none;
// and when it is idle, to anybody. So ten thousand that say nothing keep no device of another address waiting. Else a new one
// is closed where its address has others that serve none, because it would hold up whoever is behind it; the older ones are
// nearer to their answer. Where it has not, it waits. One address gets half of the places at most. 127.0.0.1 and ::1 are a
// proxy with everybody behind it, or programs of this machine: they may have all, and wait.
type places struct {
	max int

	mu      sync.Mutex
	open    int
	each    map[string]int        // by source
	quiet   map[string]*list.List // of *placedConn that serve no request, oldest first, by source
	idle    *list.List            // those of quiet that have served one, oldest first
	changed chan struct{}         // closed when a waiting connection may look again; nil = none waits
}

func newPlaces(max int64) *places {
	return &places{max: int(max), each: make(map[string]int), quiet: make(map[string]*list.List), idle: list.New()}
}

// placedConn gives its place back when it is closed. What follows source is guarded by places.mu.
type placedConn struct {
	net.Conn
	at     *places
	source string
	placed bool
	quiet  *list.Element // in at.quiet; nil while it serves a request
	idle   *list.Element // in at.idle
}

func (c *placedConn) Close() error {
	err := c.Conn.Close()
	c.at.leave(c)
	return err
}

// SyscallConn lets the web side ask the kernel whether there is room for more.
func (c *placedConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite lets the web side say that it is done with a peer which is still sending.
func (c *placedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// take finds a place for a connection, and waits for one where it must; nil when the connection was closed instead,
// because its source has too many, or because ended was.
func (p *places) take(conn net.Conn, ended <-chan struct{}) *placedConn {
	c := &placedConn{Conn: conn, at: p, source: broker.SourceOf(conn.RemoteAddr())}
	bounded := c.source != "127.0.0.1" && c.source != netip.IPv6Loopback().String()
	for {
		p.mu.Lock()
		var out *placedConn
		switch {
		case bounded && p.each[c.source] >= max(p.max/2, 1):
			if out = p.oldest(c.source); out == nil {
				p.mu.Unlock()
				_ = conn.Close()
				return nil
			}
		case p.open >= p.max:
			out = p.givesWay(c.source)
		}
		if out != nil {
			p.give(out)
		}
		if p.open < p.max {
			p.open++
			p.each[c.source]++
			c.placed = true
			p.rest(c)
			p.mu.Unlock()
			if out != nil {
				_ = out.Conn.Close()
			}
			return c
		}
		if bounded && p.quiet[c.source] != nil {
			p.mu.Unlock()
			_ = conn.Close()
			return nil
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ended:
			_ = conn.Close()
			return nil
		}
	}
}

// oldest is the connection of a source that has served no request for longest; nil when it has none. givesWay is the one
// that loses its place to a new one of a source. For these and what follows until tell the lock is held.
func (p *places) oldest(source string) *placedConn {
	if l := p.quiet[source]; l != nil {
		return l.Front().Value.(*placedConn)
	}
	return nil
}

func (p *places) givesWay(to string) *placedConn {
	source, most := "", p.each[to]+1
	for s, l := range p.quiet {
		if l.Len() > most {
			source, most = s, l.Len()
		}
	}
	if source != "" {
		return p.oldest(source)
	}
	if e := p.idle.Front(); e != nil {
		return e.Value.(*placedConn)
	}
	return nil
}

// rest notes that a connection serves no request, wake that it does.
func (p *places) rest(c *placedConn) {
	if c.quiet != nil || !c.placed {
		return
	}
	l := p.quiet[c.source]
	if l == nil {
		l = list.New()
		p.quiet[c.source] = l
	}
	c.quiet = l.PushBack(c)
	p.tell()
}

func (p *places) wake(c *placedConn) {
	if c.quiet == nil {
		return
	}
	if l := p.quiet[c.source]; l.Len() == 1 {
		delete(p.quiet, c.source)
	} else {
		l.Remove(c.quiet)
	}
	c.quiet = nil
	if c.idle != nil {
		p.idle.Remove(c.idle)
		c.idle = nil
	}
}

// give takes a connection's place away, once.
func (p *places) give(c *placedConn) {
	if !c.placed {
		return
	}
	c.placed = false
	p.wake(c)
	p.open--
	if p.each[c.source]--; p.each[c.source] == 0 {
		delete(p.each, c.source)
	}
	p.tell()
}

func (p *places) tell() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

func (p *places) leave(c *placedConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.give(c)
}

// state is for ConnState of a server, which says "active" when a whole header has been read and "idle" after the answer.
func (p *places) state(conn net.Conn, s http.ConnState) {
	c, ok := conn.(*placedConn)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s {
	case http.StateActive:
		p.wake(c)
	case http.StateIdle:
		if p.rest(c); c.quiet != nil && c.idle == nil {
			c.idle = p.idle.PushBack(c)
		}
	}
}
