// Package durable replaces files so that a power cut leaves the old content or the new one, never a part.
//
// The order is the safety: bytes into a temporary file beside the target, fsync, then the name, then fsync of the folder
// that holds the name. When WriteFile has returned nil the new content survives the loss of power; when it returns an
// error the old content stands and the temporary file is gone. It follows no symbolic link and keeps no old permissions:
// a caller that needs either does it before.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes path hold data, with permissions perm. The folder must exist. Errors wrap those of package os.
func WriteFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, ".bmsota-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			// Closing twice and removing what has its name already are errors that say nothing new.
			_ = temp.Close()
			_ = os.Remove(temp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err := temp.Write(data); err != nil {
		return err
	}
	if err := errors.Join(temp.Chmod(perm), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return SyncFolder(dir)
}
