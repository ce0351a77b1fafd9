package norflash

import (
	"hash/maphash"
	"runtime"
	"sync"
	"weak"
)

// Pool holds sectors that several chips have in common, each content once however many of them have it: thousands of boards
// that were given one image take the memory of one. It forgets a sector that no chip holds any more. It may be used from any
// goroutine.
type Pool struct {
	seed maphash.Seed

	mu    sync.Mutex
	pages map[uint64]weak.Pointer[page] // by hash of the content; of two contents with one hash the later one
}

// NewPool returns an empty pool.
func NewPool() *Pool {
	return &Pool{seed: maphash.MakeSeed(), pages: make(map[uint64]weak.Pointer[page])}
}

// same is the page of the pool with p's content, which p becomes where there is none. From then on p is never written.
func (l *Pool) same(p *page) *page {
	hash := maphash.Bytes(l.seed, p.bytes[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	if there := l.pages[hash].Value(); there != nil && there.bytes == p.bytes {
		return there
	}
	l.pages[hash] = weak.Make(p)
	runtime.AddCleanup(p, l.forget, hash)
	return p
}

// forget removes what nobody holds. A page of another content may have taken the place.
func (l *Pool) forget(hash uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pages[hash].Value() == nil {
		delete(l.pages, hash)
	}
}

// Share makes f, and clones of it from then on, hold sectors in the pool: those that it has now, and each one when its last
// byte is programmed, which is when the sector of an image is complete. What f reads and how it fails stay as they are: a
// sector is copied before it is written again, as that of a clone is.
func (f *Flash) Share(l *Pool) {
	f.pool = l
	for sector := range f.pages {
		if f.owns(sector) {
			f.handIn(sector)
		}
	}
}

// handIn gives the sector, which is f's own, to the pool.
func (f *Flash) handIn(sector int) {
	f.pages[sector] = f.pool.same(f.pages[sector])
	f.owned[sector/64] &^= 1 << (sector % 64)
}
