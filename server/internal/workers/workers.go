// Package workers keeps goroutines for what comes in, because a goroutine that has handled something has a stack that grew for it:
// 16 to 32 KiB for a handshake of TLS or a packet of MQTT, copied three or four times on the way.
package workers

import "sync"

// Pool is goroutines that handle one T after the other. There is no bound: a turn may wait for the disk or for its peer, so whoever
// is given one never waits for a worker. Its methods are safe for concurrent use; Turn is set before the first.
type Pool[T any] struct {
	Turn func(T)

	mu    sync.Mutex
	idle  []chan T // who worked last comes last, and is first to work again
	least int      // of idle, since Rest was called
	ended bool
}

// Give has a worker call Turn with t.
func (p *Pool[T]) Give(t T) {
	p.mu.Lock()
	last := len(p.idle) - 1
	if last < 0 {
		p.mu.Unlock()
		go p.work(t)
		return
	}
	next := p.idle[last]
	p.idle = p.idle[:last]
	p.least = min(p.least, last)
	p.mu.Unlock()
	next <- t
}

func (p *Pool[T]) work(t T) {
	next := make(chan T, 1)
	for ok := true; ok; t, ok = <-next {
		p.Turn(t)
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return
		}
		p.idle = append(p.idle, next)
		p.mu.Unlock()
	}
}

// Rest ends the workers that nothing was given to since it was called before.
func (p *Pool[T]) Rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, next := range p.idle[:p.least] {
		close(next)
		p.idle[i] = nil
	}
	p.idle = append([]chan T(nil), p.idle[p.least:]...)
	p.least = len(p.idle)
}

// End ends the idle workers, and those that work when they have done so.
func (p *Pool[T]) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, next := range p.idle {
		close(next)
	}
	p.idle = nil
}
