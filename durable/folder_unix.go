//go:build !windows

package durable

import (
	"errors"
	"os"
)

// SyncFolder makes the names in dir durable: what was created, renamed or removed there.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
