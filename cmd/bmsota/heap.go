package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// heapRoom is what a server may put on its heap between two collections, in bytes, however little is alive on it. Go collects when
// the heap has doubled: a server with little alive does so all the time, which was a sixth of the processor time of a short answer.
const heapRoom = 32 << 20

// heapAlive is what Go takes GOGC percent of: what the last collection found alive, and what it had to look through besides. Thousands of
// connections have more on their stacks than on the heap.
func heapAlive() (bytes uint64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(samples)
	for _, s := range samples {
		bytes += s.Value.Uint64()
	}
	return bytes
}

// heapPercent is GOGC for so many bytes alive: Go's own 100 from heapRoom on. It is one of few values, because a change stops the
// whole program for a moment.
func heapPercent(alive uint64) int {
	percent := 800
	for percent > 100 && alive*uint64(percent)/100 > heapRoom {
		percent /= 2
	}
	return percent
}

// giveHeapRoom adjusts GOGC after each collection until stop. It does nothing where GOGC or GOMEMLIMIT is set: whoever did knows
// better.
func giveHeapRoom() (stop func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	var stopped atomic.Bool
	percent := 100
	// A finalizer runs after a collection and before the next: one at a time.
	type sentinel struct{ _ *byte } // with a pointer: a small value without one may share its block
	var collected func(*sentinel)
	collected = func(s *sentinel) {
		if stopped.Load() {
			return
		}
		if now := heapPercent(heapAlive()); now != percent {
			percent = now
			debug.SetGCPercent(percent)
		}
		runtime.SetFinalizer(s, collected)
	}
	runtime.SetFinalizer(new(sentinel), collected)
	return func() { stopped.Store(true) }
}
