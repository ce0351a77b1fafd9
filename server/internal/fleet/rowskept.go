package fleet

import (
	"slices"
	"sync"
)

// maxKept is how many devices' rows are kept: some 6 MB, and 20 MB where each of them has said as much as it may.
const maxKept = 4096

// keptRows remembers the rows that statuses were folded into, so that a device that reports again costs no reading. What is kept
// of a device is what its rows in the store are. The ledger strikes a device out when a row of it is put, in the transaction; the
// committer keeps what it has put itself when that has been committed. Updates are serialised: one by anybody else has struck out
// before a group is read, or strikes out after the group was put, and then struck has it. What was put and not committed, or of which
// nobody knows, is not kept.
//
// It is for rows that nobody else writes: SQLite, which is one process's. Where another server may write, nothing is kept.
type keptRows struct {
	mu     sync.Mutex
	of     map[string]*row     // guarded by mu, as is struck
	struck map[string]struct{} // since the committer has put its rows, until it keeps them; else nil
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
	if k.struck != nil {
		k.struck[device] = struct{}{}
	}
}

// watch is called by the committer in its transaction, when it has put what it puts: whoever is struck out from then on is not
// kept by keep.
func (k *keptRows) watch() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.struck = make(map[string]struct{})
}

// keep is called when the transaction is over, and takes over the rows that it has put, where it was committed: those of devices that
// have said something, for the others may not do so for long.
func (k *keptRows) keep(put rowsOf) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range put.ids {
		r := put.of[id]
		if _, again := k.struck[id]; again || !r.spoke || !r.deviceChanged {
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
	k.struck = nil
}
