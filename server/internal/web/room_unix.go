//go:build darwin || freebsd || linux

package web

import (
	"errors"

	"golang.org/x/sys/unix"
)

// room goes by poll(2), which says on Linux that a third of the send buffer is free: more than a chunk of ours.
func (s socket) room() error {
	return s.Write(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR) // what is wrong with the connection the write that follows will say
	})
}
