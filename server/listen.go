package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"bmsota/server/internal/web"
)

// Errors of Windows, which have no names in package syscall on other systems.
const (
	errAddrInUseWindows = syscall.Errno(10048) // WSAEADDRINUSE
	errFilesWindows     = syscall.Errno(10024) // WSAEMFILE
	errBuffersWindows   = syscall.Errno(10055) // WSAENOBUFS
)

// listen opens a TCP listener, nil for "off". The error says which key of the configuration to change.
func listen(ctx context.Context, key, addr string, log *slog.Logger) (net.Listener, error) {
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
	return newPatientListener(l, log), nil
}

// patientListener waits where a connection cannot be taken for a reason that passes: no open files are left, no memory, or the peer
// has gone again. To whoever serves it that is no end.
type patientListener struct {
	net.Listener
	log   *slog.Logger
	ended chan struct{} // closed by Close
	once  *sync.Once
}

func newPatientListener(l net.Listener, log *slog.Logger) patientListener {
	return patientListener{l, log, make(chan struct{}), new(sync.Once)}
}

func (l patientListener) Accept() (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		conn, err := l.Listener.Accept()
		if err == nil || !passes(err) {
			return conn, err
		}
		l.log.Warn("a connection cannot be taken now", "address", l.Addr().String(), "again_in", delay, "err", err)
		pause := time.NewTimer(delay)
		select {
		case <-pause.C:
		case <-l.ended:
			pause.Stop()
			return nil, net.ErrClosed
		}
	}
}

func passes(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, errFilesWindows, errBuffersWindows},
		func(passing error) bool { return errors.Is(err, passing) })
}

func (l patientListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return l.Listener.Close()
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
