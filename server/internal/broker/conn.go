package broker

import (
	"bufio"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"bmsota/server/internal/fleet"
)

// conn is one accepted connection and, after its login, the session on it. mochi sees it as its net.Conn; the hooks
// find the session through it.
type conn struct {
	net.Conn               // what is read and written: the wire, or TLS over it
	wire     wire          // the transport
	conf     *tls.Config   // for the handshake; nil for none
	source   string        // what the cap for one peer counts: see SourceOf
	cert     *certificate  // that the peer has shown, verified; nil for none
	gone     chan struct{} // closed by cut
	cutOnce  sync.Once
	release  func() // gives the place of an unauthenticated peer back; idempotent; nil after the login

	mu       sync.Mutex
	draining bool

	done chan struct{} // made for who waits, closed when nothing of the connection or its session is left; under Embedded.mu

	// Written in the login, before the session is in Embedded.live, and only read after that.
	id      fleet.Identity
	session string // namespaced session id
	peer    *peer
	will    *packets.Packet // taken out of mochi's hands

	// Owned by whoever has the connection's turn.
	in          *bufio.Reader // nil between turns
	rest        int           // bytes of the packet that is read
	established bool
	packetRate  bucket
	held        *packets.Packet        // see hook.OnPacketRead
	wanted      []packets.Subscription // as asked for, see hook.OnSubscribe
	known       []bool
	snapshot    []packets.Subscription // granted, retained messages not sent yet
	passing     *packets.Packet        // taken by hook.OnPublish, to be passed on when it is acknowledged

	client atomic.Pointer[mqtt.Client] // set when the login begins
	noWill atomic.Bool                 // taken over, or the server is closing
	denied atomic.Bool                 // a refusal has been logged
}

// peer is what all sessions of one identity share.
type peer struct {
	sessions []*conn // oldest first; under Embedded.mu
	statuses bucket
	contest  contest // under Embedded.mu

	mu     sync.Mutex // held around Connected and Disconnected, so that they keep their order
	online int
}

// Close is mochi's end of a connection: what waits is written first.
func (c *conn) Close() error {
	if !c.isCut() {
		c.wire.written(0, c.wire.longest)
	}
	return c.Conn.Close()
}

// SetDeadline is for reading only: writing has its own, see wire.
func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		t = time.Unix(1, 0)
	}
	return c.wire.SetReadDeadline(t)
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
		_ = c.wire.Close()
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
