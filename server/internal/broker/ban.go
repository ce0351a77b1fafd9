package broker

import (
	"net/netip"
	"sync"
	"time"
)

// A source whose connections keep ending before a login is kept out for a while. The numbers are those of a flood: a site
// with a hundred boards whose token is wrong, each of which tries every few seconds, stays far below them. Loopback is never
// kept out, because it is a proxy with everybody behind it.
const (
	strikeInterval = 10 * time.Millisecond // 100 connections a second sustained
	strikeBurst    = 2000                  // and so many at once
	minBan         = time.Minute           // doubles with each ban up to
	maxBan         = 15 * time.Minute
	maxStruck      = 10_000 // sources remembered
)

// bans remembers sources. The zero value is ready; it is safe for concurrent use.
type bans struct {
	mu   sync.Mutex
	each map[string]*struck
}

type struck struct {
	rate  bucket
	until time.Time
	times int
}

// strike counts a connection that ended without a login. It says for how long the source is banned from now on, 0 when it
// is not or was before.
func (b *bans) strike(source string, now time.Time) time.Duration {
	if addr, err := netip.ParseAddr(source); err == nil && addr.IsLoopback() {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.each[source]
	if s == nil {
		if len(b.each) >= maxStruck {
			return 0 // so many at once are held by the caps on all connections
		}
		if b.each == nil {
			b.each = make(map[string]*struck)
		}
		s = new(struck)
		b.each[source] = s
	}
	if s.rate.take(now, strikeInterval, strikeBurst, false) == 0 || now.Before(s.until) {
		return 0
	}
	ban := min(minBan<<min(s.times, 10), maxBan)
	s.until, s.times = now.Add(ban), s.times+1
	return ban
}

// out says whether a source is banned.
func (b *bans) out(source string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.each[source]
	return s != nil && now.Before(s.until)
}

// count is how many sources are banned.
func (b *bans) count(now time.Time) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.each {
		if now.Before(s.until) {
			n++
		}
	}
	return n
}

// forget drops sources that have kept quiet for as long as the longest ban.
func (b *bans) forget(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for source, s := range b.each {
		if now.Sub(s.until) > maxBan && s.rate.rested(now) {
			delete(b.each, source)
		}
	}
}
