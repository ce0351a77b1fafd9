package fleet

import (
	"context"
	"sync"
	"time"

	"bmsota/protocol"
)

// asker is what an offer takes from the rows of the device that asks. The zero value is a device that has none.
type asker struct {
	revoked                         bool
	channel, project, chip, version string
	sha256                          string // of the image it runs
	slotSize                        int64
	secureVersion                   uint32
	assigned                        string // version that its newest open attempt is an update to; empty = none
}

// askerOf is d with its open attempts, oldest first.
func askerOf(d Device, open []Attempt) asker {
	a := asker{
		revoked: d.Revoked, channel: d.Channel, project: d.Status.Project, chip: d.Status.Chip, version: d.Status.CurrentVersion,
		sha256: d.Status.ImageSHA256, slotSize: d.Status.SlotSize, secureVersion: d.Status.SecureVersion,
	}
	if n := len(open); n > 0 && open[n-1].Action == protocol.ActionUpdate {
		a.assigned = open[n-1].Version
	}
	return a
}

// asker reads the rows of a device that asks, or remembers what they say. Where other servers change them they are read each
// time, and what was committed before, by whomever, holds when it returns. So they are where this server was silent for so long
// that another may have taken its place.
func (f *Fleet) asker(ctx context.Context, device string) (asker, error) {
	if f.shared() || !f.plans() {
		a, _, last, err := f.readAsker(ctx, device)
		if err == nil {
			err = f.fresh(ctx, last)
		}
		return a, err
	}
	if a, ok := f.askers.get(device); ok {
		return a, nil
	}
	look := f.askers.look(device)
	a, there, _, err := f.readAsker(ctx, device)
	f.askers.looked(look, a, err == nil && there, f.cfg.Now())
	return a, err
}

// readAsker reads the rows of a device, and with several servers the number of the last change. The zero asker is one that has not
// said anything yet: what it asks is all that is known.
func (f *Fleet) readAsker(ctx context.Context, device string) (a asker, there bool, last int64, err error) {
	err = f.cfg.Store.View(ctx, func(tx Tx) error {
		var d Device
		var err error
		if d, there, err = before(tx.Device(device)); err != nil {
			return err
		}
		if there {
			open, err := tx.OpenAttemptsOf(device)
			if err != nil {
				return err
			}
			a = askerOf(d, open)
		}
		if f.shared() {
			last, err = tx.LastChange()
		}
		return err
	})
	if err != nil {
		return asker{}, false, 0, err
	}
	return a, there, last, nil
}

// maxAskers is how many devices are remembered: some 6 MB. Names that nobody has enrolled take no room.
const maxAskers = 16384

// doubtFor is how long nothing is remembered after a change of which it is not known whether it was committed: longer than a
// database waits for the end of a connection that was lost over it.
const doubtFor = 2 * time.Minute

// askers remembers what devices asked with, so that a device that asks again costs no transaction. It never gives what an
// acknowledged change has made untrue: the ledger strikes a device out when a row of it is put, which is before the commit,
// and until that update has returned nothing about the device is kept. So what is kept was read after the last change of it.
// It is for the one process that owns a store: where another may write there it is not asked.
type askers struct {
	mu      sync.Mutex
	known   map[string]asker // guarded by mu, as is what follows
	looks   map[string]*look // under way
	changes map[string]int   // updates under way that have put a row of a device
	quiet   time.Time        // until when nothing is kept
}

// look is the reading of one device's rows by one asker or several at once.
type look struct {
	device  string
	askers  int
	spoiled bool // a row was put since one of them began; guarded by the mu of askers
}

func newAskers() *askers {
	return &askers{known: make(map[string]asker), looks: make(map[string]*look), changes: make(map[string]int)}
}

func (k *askers) get(device string) (asker, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, ok := k.known[device]
	return a, ok
}

// look is called before the rows are read, looked after it.
func (k *askers) look(device string) *look {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.looks[device]
	if l == nil {
		l = &look{device: device}
		k.looks[device] = l
	}
	l.askers++
	l.spoiled = l.spoiled || k.changes[device] > 0
	return l
}

// looked keeps a when it may be kept.
func (k *askers) looked(l *look, a asker, keep bool, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.askers--; l.askers == 0 {
		delete(k.looks, l.device)
	}
	if !keep || l.spoiled || now.Before(k.quiet) {
		return
	}
	if _, ok := k.known[l.device]; !ok && len(k.known) >= maxAskers {
		for other := range k.known { // whichever: it costs its device one reading
			delete(k.known, other)
			break
		}
	}
	k.known[l.device] = a
}

// change is one update under way.
type change struct {
	of      *askers
	devices map[string]struct{} // that were struck out, in whatever run of the transaction
}

// begin is for an update that begins; nil for no askers is one that strikes out nothing.
func (k *askers) begin() *change {
	if k == nil {
		return nil
	}
	return &change{of: k}
}

// strike notes that a row of a device is put.
func (c *change) strike(device string) {
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
	k := c.of
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes[device]++
	delete(k.known, device)
	if l := k.looks[device]; l != nil {
		l.spoiled = true
	}
}

// end is called when the update has returned. doubt says that nobody knows whether it was committed.
func (c *change) end(doubt bool, now time.Time) {
	if c == nil || len(c.devices) == 0 {
		return
	}
	k := c.of
	k.mu.Lock()
	defer k.mu.Unlock()
	for device := range c.devices {
		if k.changes[device]--; k.changes[device] == 0 {
			delete(k.changes, device)
		}
	}
	if doubt {
		clear(k.known)
		for _, l := range k.looks {
			l.spoiled = true
		}
		k.quiet = now.Add(doubtFor)
	}
}
