package broker

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// wire is the transport of a connection, TCP on the outside; under TLS it carries the records. It makes reading and writing
// cheap for a peer that is silent, of which a broker has thousands: see Embedded.await for the one, Write for the other.
type wire struct {
	net.Conn                 // deadlines and the end of the connection go to it, so that they never wait for TLS
	sys      syscall.RawConn // of Conn; nil where it has none
	longest  time.Duration   // of a single write

	// Owned by whoever has the connection's turn.
	ahead   [readAhead]byte
	in      []byte // of ahead: was read while nobody had the turn
	inErr   error  // what that read ended with
	more    bool   // a read got all that it asked for, so there may be more
	patient bool   // a read may wait; otherwise it says errIdle

	outMu   sync.Mutex
	limit   int           // bytes that may wait
	out     []byte        // not handed to a write yet
	waiting int           // bytes of out, and of the write under way
	idle    chan struct{} // closed when the writer ends; nil when there is none
	outErr  error         // no more is taken
}

// Bytes that may wait for one reader, and of one write.
const (
	maxWaitingDevice   = 64 << 10
	maxWaitingOperator = 1 << 20
	maxPiece           = 16 << 10
)

var errSlow = errors.New("peer does not read")

// errIdle is what a read says that would have to wait. crypto/tls goes on after an error that is temporary.
var errIdle net.Error = idleError{}

type idleError struct{}

func (idleError) Error() string   { return "nothing to read yet" }
func (idleError) Timeout() bool   { return true }
func (idleError) Temporary() bool { return true }

// connect begins on conn.
func (w *wire) connect(conn net.Conn, longest time.Duration) {
	w.Conn, w.longest, w.limit, w.patient = conn, longest, maxWaitingDevice, true
	if s, ok := conn.(syscall.Conn); ok {
		if sys, err := s.SyscallConn(); err == nil {
			w.sys = sys
		}
	}
}

// await reads what comes next into ahead.
func (w *wire) await() {
	n, err := w.Conn.Read(w.ahead[:])
	w.in, w.inErr, w.more = w.ahead[:n], err, n == len(w.ahead)
}

// Read gives what was read ahead, and after that reads.
func (w *wire) Read(p []byte) (int, error) {
	switch {
	case len(w.in) > 0:
		n := copy(p, w.in)
		w.in = w.in[n:]
		return n, nil
	case w.inErr != nil:
		return 0, w.inErr
	case w.patient:
		return w.Conn.Read(p)
	case !w.more || w.sys == nil:
		return 0, errIdle
	}
	n, err := readNow(w.sys, p)
	w.more = n == len(p)
	return n, err
}

// Write never blocks: whoever publishes writes to all readers in turn, under locks of mochi's and of TLS. What the kernel has
// room for is written at once. The rest is kept for a goroutine that lives while there is any, with a deadline for each piece;
// a peer with too much waiting is ended.
func (w *wire) Write(p []byte) (int, error) {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	if w.outErr == nil && w.waiting+len(p) > w.limit {
		w.end(errSlow)
	}
	rest := p
	if w.outErr == nil && w.idle == nil && w.sys != nil {
		n, err := writeNow(w.sys, p)
		if err != nil {
			w.end(err)
		}
		rest = p[n:]
	}
	if w.outErr != nil {
		return 0, w.outErr
	}
	if len(rest) == 0 {
		return len(p), nil
	}
	w.out = append(w.out, rest...)
	w.waiting += len(rest)
	if w.idle == nil {
		w.idle = make(chan struct{})
		go w.writeOut(w.idle)
	}
	return len(p), nil
}

// end lets nothing more be written. outMu is held.
func (w *wire) end(err error) {
	w.outErr = err
	_ = w.Conn.Close()
}

// writeOut writes until nothing waits. It is ended by closing Conn at the latest, and join waits for it.
func (w *wire) writeOut(idle chan struct{}) {
	defer close(idle)
	var piece []byte
	for {
		w.outMu.Lock()
		w.waiting -= len(piece)
		if len(w.out) == 0 || w.outErr != nil {
			_ = w.Conn.SetWriteDeadline(time.Time{}) // for Write
			w.out, w.idle = nil, nil
			w.outMu.Unlock()
			return
		}
		piece = w.out[:min(len(w.out), maxPiece)]
		w.out = w.out[len(piece):]
		w.outMu.Unlock()
		err := w.Conn.SetWriteDeadline(time.Now().Add(w.longest))
		if err == nil {
			_, err = w.Conn.Write(piece)
		}
		if err != nil {
			w.outMu.Lock()
			w.end(err)
			w.outMu.Unlock()
		}
	}
}

// written waits until at most rest bytes wait, for no longer than patience. It says false when the peer takes no more.
func (w *wire) written(rest int, patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		w.outMu.Lock()
		idle, err, enough := w.idle, w.outErr, w.waiting <= rest
		w.outMu.Unlock()
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

// join waits for the writer; the connection is closed.
func (w *wire) join() {
	w.outMu.Lock()
	idle := w.idle
	w.outMu.Unlock()
	if idle != nil {
		<-idle
	}
}

// SetDeadline and SetWriteDeadline: writing has deadlines of its own, whatever TLS would set.
func (w *wire) SetDeadline(t time.Time) error { return w.SetReadDeadline(t) }

func (w *wire) SetWriteDeadline(time.Time) error { return nil }
