//go:build darwin || freebsd || linux

package web

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A signal in the middle of poll is no room: settle would take the peer of a full buffer for gone, and reset it.
func TestASignalIsNoRoom(t *testing.T) {
	for _, c := range []struct {
		n    int
		err  error
		room bool
	}{
		{1, nil, true}, {0, nil, false}, {-1, unix.EINTR, false}, {-1, unix.EBADF, true},
	} {
		if got := polled(c.n, c.err); got != c.room {
			t.Errorf("%d, %v: room %t", c.n, c.err, got)
		}
	}
}
