//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package norflash

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lock takes the file's exclusive lock without waiting. It goes with the open
// file, so a killed process leaves nothing behind.
func lock(file *os.File) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// unlock gives the lock up at once. Closing does so only when no process has the file open any more, and one that is
// being started has for a moment what this one has.
func unlock(file *os.File) error {
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_UN); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}
