// Package durable replaces files so that a power cut leaves the old content or the new one, never a part.
//
// The order is the safety: bytes into a temporary file beside the target, fsync, then the name, then fsync of the folder
// that holds the name. When WriteFile has returned nil the new content survives the loss of power; when it returns an
// error the old content stands and the temporary file is gone. It follows no symbolic link and keeps no old permissions:
// a caller that needs either does it before.
package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes path hold data, with permissions perm. The folder must exist. Errors wrap those of package os.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	s, err := Stage(path, bytes.NewReader(data), perm)
	if err != nil {
		return err
	}
	return s.Commit()
}

// Staged is new content of a file that is whole and on disk, and has no name yet. Exactly one of Commit and Discard ends
// it.
type Staged struct{ temp, path string }

// Stage takes the first half of WriteFile: it puts what r gives into a temporary file beside path. With several files
// staged before the first is committed, the moment in which some are new and some are old has no copying in it. An error
// of r is wrapped, and leaves nothing behind.
func Stage(path string, r io.Reader, perm fs.FileMode) (s *Staged, err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), ".bmsota-*") // made with mode 0600
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			// Closing twice is an error that says nothing new.
			_ = temp.Close()
			_ = os.Remove(temp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := io.Copy(temp, r); err != nil {
		return nil, err
	}
	if err := errors.Join(temp.Chmod(perm), temp.Sync(), temp.Close()); err != nil {
		return nil, err
	}
	return &Staged{temp.Name(), path}, nil
}

// Commit gives the content its name. When it returns an error the old content stands and the temporary file is gone.
func (s *Staged) Commit() error {
	if err := os.Rename(s.temp, s.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", s.path, err), s.Discard())
	}
	if err := SyncFolder(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// Discard removes the content.
func (s *Staged) Discard() error { return os.Remove(s.temp) }
