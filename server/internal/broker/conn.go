package broker

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/server/internal/fleet"
)

// conn is one accepted connection and, after its login, the session on it. mochi sees it as its net.Conn; the hooks
// find the session through it.
//
// mochi holds a client's lock while it writes to it, and needs that lock to number a message for it: a reader that does
// not read would hold whoever publishes. So Write here only keeps the bytes; a goroutine that lives while there are any
// writes them, with a deadline for each piece. mochi's own deadline, one keepalive for both directions, is for reading.
type conn struct {
	net.Conn               // what is read and written: TCP, or TLS over it
	raw      net.Conn      // the TCP connection; deadlines and cut go to it, so that they never wait for TLS
	source   string        // what the cap for one peer counts: see SourceOf
	write    time.Duration // longest single write
	cert     *certificate  // that the peer has shown, verified; nil for none
	gone     chan struct{} // closed by cut
	done     chan struct{} // closed when nothing of the connection or its session is left
	cutOnce  sync.Once
	release  func() // gives the place of an unauthenticated peer back; idempotent

	mu       sync.Mutex
	draining bool

	outMu   sync.Mutex
	out     []byte        // not handed to a write yet
	waiting int           // bytes of out, and of the write under way
	idle    chan struct{} // closed when the writer ends; nil when there is none
	outErr  error         // no more is taken

	// Written in the login, before the session is in Embedded.live, and only read after that.
	id      fleet.Identity
	session string // namespaced session id
	peer    *peer
	will    *packets.Packet // taken out of mochi's hands
	since   time.Time

	// Owned by the goroutine that reads the connection.
	established bool
	packetRate  bucket
	held        *packets.Packet        // see hook.OnPacketRead
	wanted      []packets.Subscription // as asked for, see hook.OnSubscribe
	known       []bool
	snapshot    []packets.Subscription // granted to an operator, retained messages not sent yet

	// For an operator: messages in mochi's queue, and whether a question for rights may be one of a subscription. See room.
	queued      atomic.Int64
	subscribing atomic.Bool

	client atomic.Pointer[mqtt.Client] // set by the login
	noWill atomic.Bool                 // taken over, or the server is closing
	denied atomic.Bool                 // a refusal has been logged
}

// peer is what all sessions of one identity share.
type peer struct {
	sessions map[*conn]struct{} // under Embedded.mu
	statuses bucket
	contest  contest // under Embedded.mu

	mu     sync.Mutex // held around Connected and Disconnected, so that they keep their order
	online int
}

// Bytes that may wait for one reader, and of one write.
const (
	maxWaitingDevice   = 64 << 10
	maxWaitingOperator = 1 << 20
	maxPiece           = 16 << 10
)

var errSlow = errors.New("peer does not read")

// Write keeps p for the writer. It never blocks; a peer with too much waiting is ended.
func (c *conn) Write(p []byte) (int, error) {
	limit := maxWaitingDevice
	if c.id.Role == fleet.RoleOperator {
		limit = maxWaitingOperator
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if c.outErr == nil && c.waiting+len(p) > limit {
		c.outErr = errSlow
		_ = c.raw.Close() // not cut, which waits for the writer
	}
	if c.outErr != nil {
		return 0, c.outErr
	}
	c.out = append(c.out, p...)
	c.waiting += len(p)
	if c.idle == nil {
		c.idle = make(chan struct{})
		go c.writeOut(c.idle)
	}
	return len(p), nil
}

// writeOut writes until nothing waits. It is ended by closing raw at the latest, and finish waits for it.
func (c *conn) writeOut(idle chan struct{}) {
	defer close(idle)
	var piece []byte
	for {
		c.outMu.Lock()
		c.waiting -= len(piece)
		if len(c.out) == 0 || c.outErr != nil {
			c.out, c.idle = nil, nil
			c.outMu.Unlock()
			return
		}
		piece = c.out[:min(len(c.out), maxPiece)]
		c.out = c.out[len(piece):]
		c.outMu.Unlock()
		err := c.raw.SetWriteDeadline(time.Now().Add(c.write))
		if err == nil {
			_, err = c.Conn.Write(piece)
		}
		if err != nil {
			_ = c.raw.Close()
			c.outMu.Lock()
			c.outErr = err
			c.outMu.Unlock()
		}
	}
}

// written waits until at most rest bytes wait, for no longer than patience. It says false when the peer takes no more.
func (c *conn) written(rest int, patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		c.outMu.Lock()
		idle, err, enough := c.idle, c.outErr, c.waiting <= rest
		c.outMu.Unlock()
		switch {
		case err != nil:
			return false
		case enough || idle == nil:
			return true
		}
		select {
		case <-idle:
		case <-timer.C:
			return false
		}
	}
}

// Close is mochi's end of a connection: what waits is written first.
func (c *conn) Close() error {
	if !c.isCut() {
		c.written(0, c.write)
	}
	return c.Conn.Close()
}

// join waits for the writer; the connection is closed.
func (c *conn) join() {
	c.outMu.Lock()
	idle := c.idle
	c.outMu.Unlock()
	if idle != nil {
		<-idle
	}
}

// SetDeadline is mochi's keepalive: for reading only.
func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		t = time.Unix(1, 0)
	}
	return c.raw.SetReadDeadline(t)
}

// drain lets the packet that is being handled finish and be answered, and reads no other.
func (c *conn) drain() {
	c.mu.Lock()
	c.draining = true
	c.mu.Unlock()
	_ = c.SetDeadline(time.Time{})
}

// cut ends the connection now; packets that were read already are not handled any more. It says whether it was the
// first to do so.
func (c *conn) cut(reason error) (first bool) {
	c.cutOnce.Do(func() {
		first = true
		close(c.gone)
		_ = c.raw.Close()
		if cl := c.client.Load(); cl != nil {
			cl.Stop(reason)
		}
	})
	return first
}

// isCut says whether cut was called.
func (c *conn) isCut() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// maxYields bounds how long one message waits for room.
const maxYields = 10_000

// room counts a message that is about to be put into mochi's queue for an operator, and lets the goroutine that empties it
// catch up first. The queue is short, because every session has one; who looks at a whole fleet gets bursts that are longer.
// Emptying it waits for nobody (see Write), so this does not either: it gives the processor away, a bounded number of times.
func (c *conn) room() {
	c.queued.Add(1)
	for range maxYields {
		if c.queued.Load() <= maxQueue/2 || c.isCut() {
			return
		}
		runtime.Gosched()
	}
}

// left counts a message that was taken out of the queue. What was put in while the operator subscribed was not counted, so
// this stops at none, and the count is right again when the queue is empty.
func (c *conn) left() {
	for {
		n := c.queued.Load()
		if n <= 0 || c.queued.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// SourceOf names the peer that a cap counts: an IPv4 address, or the /64 of an IPv6 address, which is what one
// customer gets.
func SourceOf(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

// gate counts peers that have not logged in yet. When it is full, a peer of an address with fewer of them takes the place of
// the oldest of the address with most: who fills it with silence keeps nobody else out. Among equals the new one is turned
// away, because in a fleet that comes all at once the older ones are nearer to their login.
type gate struct {
	max, maxEach int

	mu    sync.Mutex
	total int
	each  map[string]*list.List // of func() that cut a peer, oldest first, by source
}

// enter takes a place, or says that there is none. cut ends the peer's connection; it may be called until leave was. leave
// is idempotent.
func (g *gate) enter(source string, cut func()) (leave func(), ok bool) {
	g.mu.Lock()
	mine := 0
	if l := g.each[source]; l != nil {
		mine = l.Len()
	}
	var out func()
	if mine < g.maxEach && g.total >= g.max {
		most := mine + 1
		var loudest string
		for s, l := range g.each {
			if l.Len() > most {
				loudest, most = s, l.Len()
			}
		}
		if l := g.each[loudest]; l != nil {
			out = l.Front().Value.(func())
			g.remove(loudest, l.Front())
		}
	}
	if mine >= g.maxEach || g.total >= g.max {
		g.mu.Unlock()
		return nil, false
	}
	g.total++
	l := g.each[source]
	if l == nil {
		l = list.New()
		g.each[source] = l
	}
	e := l.PushBack(cut)
	g.mu.Unlock()
	if out != nil {
		out()
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(source, e)
	}, true
}

// remove gives the place of an element back, if it still has it. The lock is held.
func (g *gate) remove(source string, e *list.Element) {
	l := g.each[source]
	if l == nil {
		return
	}
	before := l.Len()
	l.Remove(e) // of another list, or twice: nothing
	g.total -= before - l.Len()
	if l.Len() == 0 {
		delete(g.each, source)
	}
}

// waiting is how many peers are inside.
func (g *gate) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}
