package crashdisk

import (
	"errors"

	"bmsota/durable"
)

// Forgets is a step that files leave out, to show that somebody notices.
type Forgets int

// What can be left out.
const (
	FolderSync       Forgets = iota + 1 // no folder is synced
	FileSync                            // no file is synced
	SyncBeforeRename                    // a file is synced once it has its name, and not before
)

// Forgetful are files that leave a step out. One file is open at a time.
func Forgetful(files durable.Files, what Forgets) durable.Files {
	return &forgetful{Files: files, what: what}
}

type forgetful struct {
	durable.Files
	what  Forgets
	owing durable.File // what SyncBeforeRename has still to sync
}

func (f *forgetful) SyncFolder(name string) error {
	if f.what == FolderSync {
		return nil
	}
	return f.Files.SyncFolder(name)
}

func (f *forgetful) Create(name string) (durable.File, error) {
	file, err := f.Files.Create(name)
	if err != nil || f.what == FolderSync {
		return file, err
	}
	f.owing = file
	return unsynced{file, f.what == SyncBeforeRename}, nil
}

func (f *forgetful) Rename(from, to string) error {
	err := f.Files.Rename(from, to)
	if err == nil && f.what == SyncBeforeRename {
		err = errors.Join(f.owing.Sync(), f.owing.Close())
	}
	return err
}

type unsynced struct {
	durable.File
	staysOpen bool
}

func (unsynced) Sync() error { return nil }

func (u unsynced) Close() error {
	if u.staysOpen {
		return nil
	}
	return u.File.Close()
}
