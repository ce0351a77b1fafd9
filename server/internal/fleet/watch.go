package fleet

import (
	"sync"
)

// watchBuffer is how many changes wait for one watcher; who is further behind is dropped, never waited for.
const watchBuffer = 256

// watchers tells who watches about what has changed. The zero value is ready.
type watchers struct {
	mu   sync.Mutex
	open map[chan string]struct{} // guarded by mu
}

// Watch hands out the ids of devices whose row or attempts have changed, of rollouts that have, and the digests of
// releases whose quarantine was lifted, after the change is committed. The channel is closed when the reader falls behind,
// when somebody's right to sign in has ended, and by stop, which may be called more than once.
func (f *Fleet) Watch() (changes <-chan string, stop func()) {
	w := &f.watchers
	c := make(chan string, watchBuffer)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open == nil {
		w.open = make(map[chan string]struct{})
	}
	w.open[c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drop(c)
	}
}

// end drops every watcher.
func (w *watchers) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.open {
		w.drop(c)
	}
}

// drop closes a watcher's channel, once. The lock is held.
func (w *watchers) drop(c chan string) {
	if _, there := w.open[c]; there {
		delete(w.open, c)
		close(c)
	}
}

func (w *watchers) tell(ids ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.open {
		for _, id := range ids {
			select {
			case c <- id:
				continue
			default:
				w.drop(c)
			}
			break
		}
	}
}
