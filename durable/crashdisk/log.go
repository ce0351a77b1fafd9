// Package crashdisk is for tests: it writes down what a program does to a disk, and gives back every disk that a loss of
// power could have left.
//
// A write is lost, kept, or kept in part until the file is synced; a name that was made, moved or removed is lost or kept
// until its folder is. What POSIX does not promise is not assumed: a synced file whose name was not synced is gone, and
// writes come to the disk in any order. What is assumed: sectors of Sector bytes are written whole or not at all, a rename
// is one act, and a sync that said yes has happened.
package crashdisk

import "sync"

// Sector is the unit that a disk writes whole, in bytes.
const Sector = 512

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Create     Kind = "create"      // of an empty file that was not there
	Write      Kind = "write"       // of Data at Offset
	Truncate   Kind = "truncate"    // to Offset bytes
	Sync       Kind = "fsync"       // of a file's bytes
	Rename     Kind = "rename"      // to To, over what is there
	Remove     Kind = "remove"      // of a file's name
	Mkdir      Kind = "mkdir"       //
	SyncFolder Kind = "fsync dir"   // of the names in a folder
	Close      Kind = "close"       // which makes nothing durable
	Chmod      Kind = "permissions" // which are not modelled
)

// Op is one operation. Names are slash-separated and relative to the disk's root, which is ".".
type Op struct {
	Kind     Kind
	Name, To string
	Offset   int64
	Data     []byte
}

// Log is the operations of one disk, in their order. It is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	ops    []Op                     // guarded by mu
	before func(n int, op Op) error // guarded by mu
	asked  int                      // guarded by mu
}

// SetBefore has fn asked before every operation from now on, of which it is the nth, from 0: an error is the operation's,
// which is then not done; it may also never return. With nil everything happens again.
func (l *Log) SetBefore(fn func(n int, op Op) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before, l.asked = fn, 0
}

// Do has do happen and writes op down when it has. A log that is nil writes nothing down.
func (l *Log) Do(op Op, do func() error) error {
	if l == nil {
		return do()
	}
	l.mu.Lock()
	defer l.mu.Unlock() // the order written down is the order in which it happened
	if l.before != nil {
		n := l.asked
		l.asked++
		if err := l.before(n, op); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	op.Data = append([]byte(nil), op.Data...) // the caller's buffer is the caller's
	l.ops = append(l.ops, op)
	return nil
}

// Len is how many operations have happened.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ops)
}

// Ops are the operations so far. They must not be changed.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ops[:len(l.ops):len(l.ops)]
}
