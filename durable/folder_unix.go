//go:build !windows

package durable

import (
	"errors"
	"os"
)

func syncFolder(open func(string) (*os.File, error), dir string) error {
	d, err := open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
