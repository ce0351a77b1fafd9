package durable

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Files is what the order of this package is made of. Names are as the implementation has them: those of the machine
// here, those below a root elsewhere. Errors wrap those of package os.
type Files interface {
	// Create makes a file that must not be there, for its owner only.
	Create(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	Mkdir(name string, perm fs.FileMode) error
	// SyncFolder makes the names in a folder durable: what was created, renamed or removed there.
	SyncFolder(name string) error
}

// File is a new file.
type File interface {
	io.WriteCloser
	Chmod(perm fs.FileMode) error
	// Sync makes the bytes durable.
	Sync() error
}

// machine is the files of this machine.
type machine struct{}

func (machine) Create(name string) (File, error)          { return create(os.OpenFile, name) }
func (machine) Rename(from, to string) error              { return os.Rename(from, to) }
func (machine) Remove(name string) error                  { return os.Remove(name) }
func (machine) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }
func (machine) SyncFolder(name string) error              { return syncFolder(os.Open, name) }

// Below is Files whose every name is resolved below a root, so that no link leads out of it. The root stays the
// caller's to close.
type Below struct{ *os.Root }

// Create implements Files.
func (b Below) Create(name string) (File, error) { return create(b.OpenFile, name) }

// SyncFolder implements Files.
func (b Below) SyncFolder(name string) error { return syncFolder(b.Open, name) }

func create(open func(string, int, fs.FileMode) (*os.File, error), name string) (File, error) {
	f, err := open(filepath.FromSlash(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err // not f: a File that holds a nil pointer is not nil
	}
	return f, nil
}

// SyncFolder makes the names in dir durable: what was created, renamed or removed there.
func SyncFolder(dir string) error { return machine{}.SyncFolder(dir) }
