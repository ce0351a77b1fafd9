//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package server

import (
	"errors"
	"os"
)

func lockFile(*os.File) error {
	return errors.New("this system has no file locks, which keep two servers from sharing one data folder")
}
