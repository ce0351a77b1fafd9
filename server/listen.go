package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"bmsota/server/internal/web"
)

// errAddrInUseWindows is WSAEADDRINUSE, which has no name in package syscall on other systems.
const errAddrInUseWindows = syscall.Errno(10048)

// listen opens a TCP listener, nil for "off". The error says which key of the configuration to change.
func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	if addr == off {
		return nil, nil
	}
	// No probes of TCP: whoever is silent on one of these is found by a deadline of HTTP or the keepalive of MQTT, which are shorter, and
	// to ask for probes is four system calls for each connection.
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, errAddrInUseWindows):
		return nil, fmt.Errorf("%s is taken by another program: stop it, or set %s to another port", addr, key)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("this account may not listen on %s: set %s to a port above 1023, or give the program the right to", addr, key)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s is no address of this machine: set %s to one, or to the port alone", addr, key)
	case err != nil:
		return nil, fmt.Errorf("listen on %s (%s): %w", addr, key, err)
	}
	return l, nil
}

// boundedListener bounds what connections cost: their number (places), and the send buffer of each. So a fleet that comes
// all at once is served in turn, and nobody can use up the open files that the broker and the database need.
type boundedListener struct {
	net.Listener
	places *places       // shared between listeners
	ended  chan struct{} // closed by Close, because Accept may be waiting for a place
	once   *sync.Once
}

func newBoundedListener(l net.Listener, p *places) boundedListener {
	return boundedListener{l, p, make(chan struct{}), new(sync.Once)}
}

func (l boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(web.SendBuffer) // a connection that refuses is already gone
		}
		if placed := l.places.take(conn, l.ended); placed != nil {
			return placed, nil
		}
		select {
		case <-l.ended:
			return nil, net.ErrClosed
		default:
		}
	}
}

func (l boundedListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.Listener.Close()
}

func portOf(l net.Listener) int {
	if l == nil {
		return 0
	}
	if addr, ok := l.Addr().(*net.TCPAddr); ok {
		return addr.Port
	}
	return 0
}

func addrOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// nearHost is the host by which this machine reaches l: localhost for a listener on every address, its own address for
// any other.
func nearHost(l net.Listener) string {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok || addr.IP.IsUnspecified() || addr.IP.IsLoopback() && addr.IP.To4() != nil {
		return "localhost"
	}
	return addr.IP.String()
}
