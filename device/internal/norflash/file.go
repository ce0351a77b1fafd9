package norflash

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrLocked is returned by Open and Create for a file that another process, or
// another Flash of this one, holds open.
var ErrLocked = errors.New("in use by another board")

// Open opens a flash file: the plain content of a chip of 1, 2, 4, 8, 16 or 32
// MiB, as esptool reads and writes it. The file is locked until Close, so that
// two processes cannot run one board. Writes go through to it; Sync makes them
// durable.
func Open(path string) (*Flash, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open flash: %w", err)
	}
	f, err := load(file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open flash %s: %w", path, err)
	}
	return f, nil
}

func load(file *os.File) (*Flash, error) {
	if err := lock(file); err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a plain file")
	}
	if err := CheckChipSize(info.Size()); err != nil {
		return nil, err
	}
	f := New(info.Size())
	var content [SectorSize]byte
	for i := range f.pages {
		if _, err := io.ReadFull(io.NewSectionReader(file, int64(i)*SectorSize, SectorSize), content[:]); err != nil {
			return nil, fmt.Errorf("read at 0x%x: %w", i*SectorSize, err)
		}
		f.fill(i, &content)
	}
	f.file = file
	return f, nil
}

// Create makes a flash file of an erased chip and opens it. It refuses a file
// that exists.
func Create(path string, size int64) (*Flash, error) {
	if err := CheckChipSize(size); err != nil {
		return nil, fmt.Errorf("create flash %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create flash: %w", err)
	}
	f, err := format(file, size)
	if err != nil {
		file.Close()
		os.Remove(path)
		return nil, fmt.Errorf("create flash %s: %w", path, err)
	}
	return f, nil
}

func format(file *os.File, size int64) (*Flash, error) {
	if err := lock(file); err != nil {
		return nil, err
	}
	for off := int64(0); off < size; off += SectorSize {
		if _, err := file.WriteAt(erasedPage.bytes[:], off); err != nil {
			return nil, err
		}
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	f := New(size)
	f.file = file
	return f, nil
}

// CheckChipSize refuses a size that no flash chip of an ESP32 has.
func CheckChipSize(size int64) error {
	for mib := int64(1); mib <= 32; mib *= 2 {
		if size == mib<<20 {
			return nil
		}
	}
	return fmt.Errorf("%d bytes is no size of a flash chip: 1, 2, 4, 8, 16 or 32 MiB is", size)
}

// store writes through to the file. After a failure memory and file may
// differ, so every later write fails with the same error.
func (f *Flash) store(off int64, p []byte) error {
	if f.file == nil {
		return nil
	}
	if _, err := f.file.WriteAt(p, off); err != nil {
		f.fault = fmt.Errorf("norflash: write to file at 0x%x: %w", off, err)
		return f.fault
	}
	return nil
}

// Sync makes everything written so far survive a crash of this machine. In
// memory it does nothing.
func (f *Flash) Sync() error {
	if f.fault != nil || f.file == nil {
		return f.fault
	}
	if err := f.file.Sync(); err != nil {
		f.fault = fmt.Errorf("norflash: sync: %w", err)
		return f.fault
	}
	return nil
}

// Close syncs and closes the file and gives up its lock. The chip can no longer
// be used after it. In memory it does nothing.
func (f *Flash) Close() error {
	if f.file == nil {
		return nil
	}
	err := f.Sync()
	if cerr := f.letGo(); err == nil {
		err = cerr
	}
	f.file, f.dead = nil, true
	return err
}

// letGo gives up the lock and closes the file.
func (f *Flash) letGo() error {
	if err := errors.Join(unlock(f.file), f.file.Close()); err != nil {
		return fmt.Errorf("norflash: close: %w", err)
	}
	return nil
}
