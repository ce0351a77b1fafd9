package broker

import (
	"sync"
	"time"
)

// bucket is a token bucket kept as one time: the moment at which it will be full again. The zero value is full.
type bucket struct {
	mu   sync.Mutex
	full time.Time
}

// take asks for one token at now, where tokens come back every interval and burst of them fit. It returns 0 when
// there was one. Otherwise it returns how long the caller must wait for its own, which is booked when book is set.
func (b *bucket) take(now time.Time, interval time.Duration, burst int, book bool) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := b.full
	if full.Before(now) {
		full = now
	}
	full = full.Add(interval)
	wait := full.Sub(now) - time.Duration(burst)*interval
	if wait <= 0 || book {
		b.full = full
	}
	return max(wait, 0)
}

// rested says whether every token is back, so that the bucket may be forgotten.
func (b *bucket) rested(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.full.After(now)
}
