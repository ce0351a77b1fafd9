package web

import "golang.org/x/sys/unix"

// holds: whoever waits for room in a socket is sure that a chunk fits, so that a stalled one has no records held in memory.
const holds = true

// queued goes by SIOCOUTQ (tcp(7)).
func (s socket) queued() int {
	n, err := -1, error(nil)
	if s.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil || err != nil {
		return -1
	}
	return n
}

// resize goes by SO_SNDBUF. Where net.core.wmem_max is less, that is the bound. The kernel says twice what it was told (socket(7)).
func (s socket) resize(bytes int) int {
	twice := 0
	_ = s.Control(func(fd uintptr) { // a connection that refuses is already gone
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, bytes) == nil {
			twice, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		}
	})
	return twice / 2
}

// abandon goes by SO_LINGER (socket(7)).
func (s socket) abandon() {
	_ = s.Control(func(fd uintptr) { // a connection that refuses is already gone
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}
