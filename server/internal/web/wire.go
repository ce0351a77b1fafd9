package web

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// wire is the transport of a connection: TCP on the outside, and below TLS where that is spoken. Whoever writes an image through
// it has TLS write many records at once, and asks the kernel how far the peer has got.
type wire struct {
	net.Conn
	kernel kernel // nil where it is not known
	secure bool   // TLS is spoken above

	mu     sync.Mutex
	held   *[]byte // what TLS has written since hold; nil = each write goes out; guarded by mu
	buffer int     // bytes that the kernel has room for; guarded by mu
	queue  int     // bytes that it has now, at most; guarded by mu
}

func newWire(conn net.Conn, secure bool) *wire {
	w := &wire{Conn: conn, secure: secure, buffer: SendBuffer}
	switch c := conn.(type) {
	case kernel:
		w.kernel = c
	case syscall.Conn:
		if sys, err := c.SyscallConn(); err == nil {
			w.kernel = socket{sys}
		}
	}
	return w
}

// kernel is how a connection's send buffer is asked after.
type kernel interface {
	// room waits until there is some in the send buffer, a third of it, or until the write deadline has passed, which is an error.
	room() error
	// queued is how many bytes are in it, those included that are on their way; below 0 where that is not known.
	queued() int
	// resize bounds it, in bytes, and says what the bound is now.
	resize(bytes int) int
	// abandon has what is queued dropped when the connection is closed.
	abandon()
}

// socket is the kernel behind a connection of TCP.
type socket struct{ syscall.RawConn }

// pieces are what records are held in: a chunk, and 29 bytes for each record of it, of which the first of a connection are small.
var pieces = sync.Pool{New: func() any { b := make([]byte, 0, largeChunk+8<<10); return &b }}

// hold has what TLS writes from now on wait for flush. A record of 16 KiB by itself is a system call, a segment and a wake of the
// peer, which together cost more than its encryption.
func (w *wire) hold() {
	if !w.secure || !holds {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = pieces.Get().(*[]byte)
	}
}

// flush writes what was held.
func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return nil
	}
	err := w.out()
	pieces.Put(w.held)
	w.held = nil
	return err
}

// out writes what is held; mu is held.
func (w *wire) out() error {
	_, err := w.send(*w.held)
	*w.held = (*w.held)[:0]
	return err
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.send(p)
	}
	if len(*w.held)+len(p) > cap(*w.held) {
		if err := w.out(); err != nil {
			return 0, err
		}
	}
	*w.held = append(*w.held, p...)
	return len(p), nil
}

// send writes p; mu is held.
func (w *wire) send(p []byte) (int, error) {
	w.queue = min(w.queue+len(p), 1<<30) // where the kernel says nothing, it only grows
	return w.Conn.Write(p)
}

// resize is the kernel's.
func (w *wire) resize(bytes int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buffer = w.kernel.resize(bytes)
	return w.buffer
}

// fits says whether the kernel takes so many bytes more, without asking it. Linux has twice the bound for them, and counts each segment
// with what it takes besides its bytes, which for a small one is as much again and more. Half of the bound fits up to four times its bytes.
func (w *wire) fits(bytes int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue+bytes <= w.buffer/2
}

// queued is the kernel's.
func (w *wire) queued() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.kernel.queued()
	if n >= 0 {
		w.queue = n
	}
	return n
}

// CloseWrite lets net/http say on plain HTTP that it is done with a peer which is still sending.
func (w *wire) CloseWrite() error { return closeWrite(w.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// await waits until the kernel takes a chunk of so many bytes more for the peer. It fails when the peer has taken less than pacedChunk for
// stallTimeout: what has left the send buffer is asked for and not how much fits into it, because a large one that is full has
// room only when a third of it has gone, which is longer than a slow peer may take.
func (w *wire) await(bytes int) error {
	if w.kernel == nil || w.fits(bytes) { // what has to wait is the write
		return w.SetWriteDeadline(time.Now().Add(stallTimeout))
	}
	for {
		waits := w.queued()
		if err := w.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
			return err
		}
		err := w.kernel.room()
		if err == nil || waits < 0 || waits-w.queued() < pacedChunk {
			return err
		}
	}
}
