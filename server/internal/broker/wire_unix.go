//go:build darwin || freebsd || linux

package broker

import (
	"errors"
	"io"
	"sync"
	"syscall"
)

// attempt is one try to read or to write. It is kept for the next, because the kernel is asked through a closure.
type attempt struct {
	p           []byte
	n           int
	err         error
	read, write func(fd uintptr) bool
}

var attempts = sync.Pool{New: func() any {
	a := new(attempt)
	with := func(call func(int, []byte) (int, error)) func(uintptr) bool {
		return func(fd uintptr) bool {
			for {
				if a.n, a.err = call(int(fd), a.p); !errors.Is(a.err, syscall.EINTR) {
					return true
				}
			}
		}
	}
	a.read, a.write = with(syscall.Read), with(syscall.Write)
	return a
}}

// result is what came of it, where ask says that it was made; a kernel that would wait is no error.
func (a *attempt) result(ask error) (int, error) {
	if ask == nil && !errors.Is(a.err, syscall.EAGAIN) {
		ask = a.err
	}
	return max(a.n, 0), ask
}

// writeNow writes as much of p as the kernel has room for.
func writeNow(conn syscall.RawConn, p []byte) (int, error) {
	a := attempts.Get().(*attempt)
	defer attempts.Put(a)
	defer func() { a.p = nil }()
	a.p, a.n, a.err = p, 0, nil
	return a.result(conn.Write(a.write))
}

// readNow reads what the kernel has; errIdle when that is nothing.
func readNow(conn syscall.RawConn, p []byte) (int, error) {
	a := attempts.Get().(*attempt)
	defer attempts.Put(a)
	defer func() { a.p = nil }()
	a.p, a.n, a.err = p, 0, nil
	switch n, err := a.result(conn.Read(a.read)); {
	case err != nil || n > 0:
		return n, err
	case a.err == nil:
		return 0, io.EOF
	}
	return 0, errIdle
}
