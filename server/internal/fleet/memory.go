package fleet

import (
	"sync"
	"time"
)

// doubtFor is how long nothing is remembered after a change of which it is not known whether it was committed: longer than a
// database waits for the end of a connection that was lost over it.
const doubtFor = 2 * time.Minute

// memory remembers what rows of devices say, so that a device that comes again costs no transaction. It never gives what an
// acknowledged change has made untrue: the ledger strikes a device out when a row of it is put that may say something else, which
// is before the commit, and until that update has returned nothing about the device is kept. So what is kept was read after the
// last change of it. It is for the one process that owns a store: where another may write there it is not asked.
type memory[T any] struct {
	most int // devices

	mu      sync.Mutex
	known   map[string]T     // by device; guarded by mu, as is what follows
	looks   map[string]*look // under way
	changes map[string]int   // updates under way that have struck a device out
	quiet   time.Time        // until when nothing is kept
}

// look is the reading of one device's rows by one asker or several at once.
type look struct {
	device  string
	askers  int
	spoiled bool // the device was struck out since one of them began; guarded by the mu of memory
}

func newMemory[T any](most int) *memory[T] {
	return &memory[T]{most: most, known: make(map[string]T), looks: make(map[string]*look), changes: make(map[string]int)}
}

func (m *memory[T]) get(device string) (T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.known[device]
	return v, ok
}

// look is called before the rows are read, looked after it.
func (m *memory[T]) look(device string) *look {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.looks[device]
	if l == nil {
		l = &look{device: device}
		m.looks[device] = l
	}
	l.askers++
	l.spoiled = l.spoiled || m.changes[device] > 0
	return l
}

// looked keeps v when it may be kept.
func (m *memory[T]) looked(l *look, v T, keep bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.askers--; l.askers == 0 {
		delete(m.looks, l.device)
	}
	if !keep || l.spoiled || now.Before(m.quiet) {
		return
	}
	if _, ok := m.known[l.device]; !ok && len(m.known) >= m.most {
		for other := range m.known { // whichever: it costs its device one reading
			delete(m.known, other)
			break
		}
	}
	m.known[l.device] = v
}

// change is one update under way.
type change[T any] struct {
	of      *memory[T]
	devices map[string]struct{} // that were struck out, in whatever run of the transaction
}

// begin is for an update that begins; of no memory it is one that strikes out nothing.
func (m *memory[T]) begin() *change[T] {
	if m == nil {
		return nil
	}
	return &change[T]{of: m}
}

// strike notes that what is remembered of a device may not be true after the update.
func (c *change[T]) strike(device string) {
	if c == nil {
		return
	}
	if _, ok := c.devices[device]; ok {
		return
	}
	if c.devices == nil {
		c.devices = make(map[string]struct{})
	}
	c.devices[device] = struct{}{}
	m := c.of
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes[device]++
	delete(m.known, device)
	if l := m.looks[device]; l != nil {
		l.spoiled = true
	}
}

// end is called when the update has returned. doubt says that nobody knows whether it was committed.
func (c *change[T]) end(doubt bool, now time.Time) {
	if c == nil || len(c.devices) == 0 {
		return
	}
	m := c.of
	m.mu.Lock()
	defer m.mu.Unlock()
	for device := range c.devices {
		if m.changes[device]--; m.changes[device] == 0 {
			delete(m.changes, device)
		}
	}
	if doubt {
		clear(m.known)
		for _, l := range m.looks {
			l.spoiled = true
		}
		m.quiet = now.Add(doubtFor)
	}
}
