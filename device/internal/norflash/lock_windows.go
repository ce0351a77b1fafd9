package norflash

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

var procLockFileEx = syscall.NewLazyDLL("kernel32.dll").NewProc("LockFileEx")

// lock takes an exclusive lock without waiting, on one byte far behind the end,
// because Windows keeps others from reading what is locked.
func lock(file *os.File) error {
	const (
		failImmediately  = 1
		exclusive        = 2
		errLockViolation = syscall.Errno(33)
	)
	at := syscall.Overlapped{OffsetHigh: 1 << 20}
	ok, _, err := procLockFileEx.Call(file.Fd(), failImmediately|exclusive, 0, 1, 0, uintptr(unsafe.Pointer(&at)))
	if ok != 0 {
		return nil
	}
	if errors.Is(err, errLockViolation) {
		return ErrLocked
	}
	return fmt.Errorf("lock: %w", err)
}

func unlock(*os.File) error { return nil } // closing does it
