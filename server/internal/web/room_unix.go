//go:build darwin || freebsd || linux

package web

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// awaitRoom waits until the kernel takes more for the peer of a connection, the connection's write deadline has passed, or it is
// closed. The kernel says that there is room when a third of the send buffer is free, which is more than a pacedChunk of ours.
func awaitRoom(conn syscall.RawConn) {
	_ = conn.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, 0)
		return n != 0 || err != nil // what is wrong with the connection the write that follows will say
	})
}
