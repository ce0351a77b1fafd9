package web

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// queued is how many bytes the kernel holds for the peer of a connection, those on their way included (SIOCOUTQ, tcp(7)); below 0
// where it does not say.
func queued(conn syscall.RawConn) int {
	n, err := -1, error(nil)
	if conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil || err != nil {
		return -1
	}
	return n
}

// setSendBuffer bounds what the kernel takes for the peer, in bytes. Where net.core.wmem_max is less, that is the bound.
func setSendBuffer(conn syscall.RawConn, bytes int) {
	_ = conn.Control(func(fd uintptr) { // a connection that refuses is already gone
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, bytes)
	})
}
