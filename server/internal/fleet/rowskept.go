package fleet

import (
	"slices"
	"sync"
)

// maxKept is how many devices' rows are kept: some 6 MB, and 22 MB where each of them says as much as it may.
const maxKept = 4096

// keptRows remembers the rows that statuses were folded into, so that a device that reports again costs no reading. What is kept
// of a device is what its rows in the store are. The ledger strikes a device out when a row of it is put, in the transaction; the
// committer keeps what it has put itself when that has been committed. Updates are serialised: one by anybody else has struck out
// before a group is read, or strikes out after the group was put, and then struck has it. What was put and not committed, or of which
// nobody knows, is not kept.
//
// It is for rows that nobody else writes: SQLite, which is one process's. Where another server may write, nothing is kept.
type keptRows struct {
	mu      sync.Mutex
	of      map[string]*row // guarded by mu, as is what follows
	commits []*committing   // under way
}

// committing is a transaction of the committer, or of what takes its place before it runs.
type committing struct {
	struck map[string]struct{} // since it has put its rows; nil before; guarded by the mu of keptRows
}

func newKeptRows() *keptRows { return &keptRows{of: make(map[string]*row)} }

// take gives the rows of a device away; nil where they have to be read. Until they are kept again nothing is kept of the device.
func (k *keptRows) take(device string) *row {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.of[device]
	delete(k.of, device)
	return r
}

// strike is called when a row of a device is put.
func (k *keptRows) strike(device string) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.of, device)
	for _, c := range k.commits {
		if c.struck != nil {
			c.struck[device] = struct{}{}
		}
	}
}

// begin is called before a transaction, put in it, when it has put its rows, and end after it.
func (k *keptRows) begin() *committing {
	if k == nil {
		return nil
	}
	c := &committing{}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.commits = append(k.commits, c)
	return c
}

func (k *keptRows) put(c *committing) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.struck = make(map[string]struct{})
}

// end takes over the rows that the transaction has put, where it was committed: those of devices that have said something, for the
// others may not do so for long.
func (k *keptRows) end(c *committing, put rowsOf) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.commits = slices.DeleteFunc(k.commits, func(other *committing) bool { return other == c })
	for _, id := range put.ids {
		r := put.of[id]
		if _, again := c.struck[id]; again || !r.spoke || !r.deviceChanged {
			continue
		}
		if len(k.of) >= maxKept {
			for other := range k.of { // whichever: it costs its device one reading
				delete(k.of, other)
				break
			}
		}
		open := slices.DeleteFunc(r.open, func(a Attempt) bool { return a.State != AttemptOpen })
		*r = row{device: r.device, open: open}
		k.of[id] = r
	}
}
