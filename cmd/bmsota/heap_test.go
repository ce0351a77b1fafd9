package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestRoomOnTheHeapIsBounded: what is collected late is never more than heapRoom, or than what is alive, as Go has it.
func TestRoomOnTheHeapIsBounded(t *testing.T) {
	for alive := uint64(1 << 20); alive < 8<<30; alive += alive/7 + 1 {
		percent := heapPercent(alive)
		if room := alive * uint64(percent) / 100; percent < 100 || room > max(heapRoom, alive) {
			t.Errorf("%d alive: %d %%, room for %d", alive, percent, room)
		}
	}
	if heapPercent(4<<20) != 800 || heapPercent(64<<20) != 100 {
		t.Errorf("4 MiB alive: %d %%, 64 MiB: %d %%", heapPercent(4<<20), heapPercent(64<<20))
	}
}

// TestHeapRoomFollowsWhatIsAlive, in both directions, and leaves alone who has chosen.
func TestHeapRoomFollowsWhatIsAlive(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	becomes := func(want func(percent int) bool) bool {
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(time.Millisecond) {
			runtime.GC()
			percent := debug.SetGCPercent(100)
			debug.SetGCPercent(percent)
			if want(percent) {
				return true
			}
		}
		return false
	}
	stop := giveHeapRoom()
	defer stop()
	if !becomes(func(p int) bool { return p > 100 }) {
		t.Error("a small heap gets no room")
	}
	// Stacks count too: without them these would be given eight times their size.
	rest := make(chan struct{})
	for range 3000 {
		go deepStack(40, rest)
	}
	if !becomes(func(p int) bool { return p == 100 }) {
		t.Errorf("large stacks keep their room: %d bytes alive", heapAlive())
	}
	close(rest)
	if !becomes(func(p int) bool { return p > 100 }) {
		t.Error("the room does not come back")
	}
	held := make([]byte, 2*heapRoom)
	if !becomes(func(p int) bool { return p == 100 }) {
		t.Error("a large heap keeps its room")
	}
	runtime.KeepAlive(held)
	stop()
	t.Setenv("GOMEMLIMIT", "100MiB")
	debug.SetGCPercent(100)
	defer giveHeapRoom()()
	for range 20 {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if percent := debug.SetGCPercent(100); percent != 100 {
		t.Errorf("GOGC became %d although GOMEMLIMIT is set", percent)
	}
}

// deepStack keeps about so many half KiB of stack until rest is closed.
func deepStack(depth int, rest <-chan struct{}) byte {
	var frame [512]byte
	if depth == 0 {
		<-rest
		return frame[0]
	}
	frame[depth] = deepStack(depth-1, rest)
	return frame[depth]
}
