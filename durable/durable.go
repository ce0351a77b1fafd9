// Package durable replaces files so that a power cut leaves the old content or the new one, never a part.
//
// The order is the safety: bytes into a temporary file beside the target, fsync, then the name, then fsync of the folder
// that holds the name. When WriteFile has returned nil the new content survives the loss of power; when it returns an
// error the old content stands and the temporary file is gone, but for one case: where the last step of all, the fsync of
// the folder, fails, the new content stands, whole, and the power may bring the old one back. It follows no symbolic link
// and keeps no old permissions: a caller that needs either does it before.
package durable

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes path hold data, with permissions perm. The folder must exist. Errors wrap those of package os.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return writeFile(machine{}, path, data, perm)
}

func writeFile(files Files, path string, data []byte, perm fs.FileMode) error {
	s, err := stage(files, path, bytes.NewReader(data), perm)
	if err != nil {
		return err
	}
	return s.Commit()
}

// Staged is new content of a file that is whole and on disk, and has no name yet. Exactly one of Commit and Discard ends
// it.
type Staged struct {
	files      Files
	temp, path string
}

// Stage takes the first half of WriteFile: it puts what r gives into a temporary file beside path. With several files
// staged before the first is committed, the moment in which some are new and some are old has no copying in it. An error
// of r is wrapped, and leaves nothing behind.
func Stage(path string, r io.Reader, perm fs.FileMode) (*Staged, error) {
	return stage(machine{}, path, r, perm)
}

func stage(files Files, path string, r io.Reader, perm fs.FileMode) (s *Staged, err error) {
	var random [8]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	name := filepath.Join(filepath.Dir(path), ".bmsota-"+hex.EncodeToString(random[:]))
	temp, err := files.Create(name)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			// Closing twice is an error that says nothing new.
			_ = temp.Close()
			_ = files.Remove(name)
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := io.Copy(temp, r); err != nil {
		return nil, err
	}
	if err := errors.Join(temp.Chmod(perm), temp.Sync(), temp.Close()); err != nil {
		return nil, err
	}
	return &Staged{files, name, path}, nil
}

// Commit gives the content its name. When it returns an error the old content stands and the temporary file is gone, or
// the folder could not be synced.
func (s *Staged) Commit() error {
	if err := s.files.Rename(s.temp, s.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", s.path, err), s.Discard())
	}
	if err := s.files.SyncFolder(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// Discard removes the content.
func (s *Staged) Discard() error { return s.files.Remove(s.temp) }

// MkdirAll makes the folder and those above it that are missing, with permissions perm, and makes their names durable:
// without that a file that was synced inside of a new folder can go with the folder. A folder that is there is left as it
// is.
func MkdirAll(path string, perm fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	return mkdirAll(machine{}, filepath.Clean(path), perm)
}

func mkdirAll(files Files, path string, perm fs.FileMode) error {
	above := filepath.Dir(path)
	err := files.Mkdir(path, perm)
	if errors.Is(err, fs.ErrNotExist) && above != path {
		if err := mkdirAll(files, above, perm); err != nil {
			return err
		}
		err = files.Mkdir(path, perm)
	}
	if err != nil {
		return err
	}
	return files.SyncFolder(above)
}
