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
		return polled(unix.Poll(poll, 0))
	})
}

// polled says whether there is room by what poll has said: n is below 0 where it failed. A signal that came in between says nothing. What is wrong
// with a connection the write that follows will say.
func polled(n int, err error) bool { return n > 0 || err != nil && !errors.Is(err, unix.EINTR) }
