//go:build darwin || freebsd || linux

package web

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitRoom waits until the kernel takes more for the peer of a connection, or the connection's write deadline has passed, which is
// an error. The kernel says that there is room when a third of the send buffer is free, which is more than a chunk of ours.
func awaitRoom(conn syscall.RawConn) error {
	var failed error
	err := conn.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, 0)
		if errors.Is(err, unix.EINTR) {
			n, err = 1, nil // the write waits, if it must
		}
		failed = err
		return n != 0 || err != nil // what is wrong with the connection the write that follows will say
	})
	return errors.Join(err, failed)
}
