package broker

import (
	"container/list"
	"sync"
)

// gate counts peers that have not logged in yet. When it is full, a peer of an address with fewer of them takes the place of
// the oldest of the address with most: who fills it with silence keeps nobody else out. Among equals the new one is turned
// away, because in a fleet that comes all at once the older ones are nearer to their login.
type gate struct {
	max, maxEach int

	mu    sync.Mutex
	total int
	each  map[string]*list.List // of func() that cut a peer, oldest first, by source
}

// enter takes a place, or says that there is none. cut ends the peer's connection; it may be called until leave was. leave
// is idempotent.
func (g *gate) enter(source string, cut func()) (leave func(), ok bool) {
	g.mu.Lock()
	mine := 0
	if l := g.each[source]; l != nil {
		mine = l.Len()
	}
	var out func()
	if mine < g.maxEach && g.total >= g.max {
		most := mine + 1
		var loudest string
		for s, l := range g.each {
			if l.Len() > most {
				loudest, most = s, l.Len()
			}
		}
		if l := g.each[loudest]; l != nil {
			out = l.Front().Value.(func())
			g.remove(loudest, l.Front())
		}
	}
	if mine >= g.maxEach || g.total >= g.max {
		g.mu.Unlock()
		return nil, false
	}
	g.total++
	l := g.each[source]
	if l == nil {
		l = list.New()
		g.each[source] = l
	}
	e := l.PushBack(cut)
	g.mu.Unlock()
	if out != nil {
		out()
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(source, e)
	}, true
}

// remove gives the place of an element back, if it still has it. The lock is held.
func (g *gate) remove(source string, e *list.Element) {
	l := g.each[source]
	if l == nil {
		return
	}
	before := l.Len()
	l.Remove(e) // of another list, or twice: nothing
	g.total -= before - l.Len()
	if l.Len() == 0 {
		delete(g.each, source)
	}
}

// waiting is how many peers are inside.
func (g *gate) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}
