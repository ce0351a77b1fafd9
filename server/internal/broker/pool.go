package broker

import "sync"

// pool is the goroutines that handle what comes in. A stack that has decoded a packet and handled it is 16 to 32 KiB; a
// worker keeps it from one connection to the next, and the connections have none. There is no bound: a turn may wait for the
// disk or for its peer, so a connection whose turn it is never waits for a worker.
type pool struct {
	turn func(*conn)

	mu    sync.Mutex
	idle  []chan *conn // who worked last comes last, and is first to work again
	least int          // of idle, since rest was called
	ended bool
}

// give gives c its turn, on a goroutine of its own.
func (w *pool) give(c *conn) {
	w.mu.Lock()
	last := len(w.idle) - 1
	if last < 0 {
		w.mu.Unlock()
		go w.work(c)
		return
	}
	next := w.idle[last]
	w.idle = w.idle[:last]
	w.least = min(w.least, last)
	w.mu.Unlock()
	next <- c
}

func (w *pool) work(c *conn) {
	next := make(chan *conn, 1)
	for c != nil {
		w.turn(c)
		w.mu.Lock()
		if w.ended {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, next)
		w.mu.Unlock()
		c = <-next
	}
}

// rest ends the workers that nothing was given to since it was called before.
func (w *pool) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, next := range w.idle[:w.least] {
		close(next)
		w.idle[i] = nil
	}
	w.idle = append([]chan *conn(nil), w.idle[w.least:]...)
	w.least = len(w.idle)
}

// end ends the idle workers, and those that work when they have done so.
func (w *pool) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, next := range w.idle {
		close(next)
	}
	w.idle = nil
}
