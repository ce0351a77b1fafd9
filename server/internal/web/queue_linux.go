package web

import "golang.org/x/sys/unix"

// queued goes by SIOCOUTQ (tcp(7)).
func (s socket) queued() int {
	n, err := -1, error(nil)
	if s.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil || err != nil {
		return -1
	}
	return n
}

// resize goes by SO_SNDBUF. Where net.core.wmem_max is less, that is the bound.
func (s socket) resize(bytes int) {
	_ = s.Control(func(fd uintptr) { // a connection that refuses is already gone
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, bytes)
	})
}
