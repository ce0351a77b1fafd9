package norflash

import (
	"errors"
	"fmt"
	"os"
)

// Lend gives the chip's file to another program for as long as use runs: its lock is given up before, and its content
// read anew after. use gets the number of operations until the armed cut, as CutAt has it (0 for none), and returns how
// many the other program did; they count as operations of this chip. Where they reach the cut the power has failed.
//
// In between the file is anybody's. One that is taken by a third, gone, or of another size afterwards leaves a Flash
// that fails. A chip in memory cannot be lent.
func (f *Flash) Lend(use func(cutIn int) (ops int, err error)) error {
	if err := f.ready("lend", 0, 0); err != nil {
		return err
	}
	if f.file == nil {
		return errors.New("norflash: a chip in memory has no file to lend")
	}
	path := f.file.Name()
	if err := f.release(); err != nil {
		return err
	}
	ops, useErr := use(f.cutIn)
	if err := f.retake(path); err != nil {
		f.fault = fmt.Errorf("take back flash %s: %w", path, err)
		return errors.Join(useErr, f.fault)
	}
	f.count(ops)
	return useErr
}

// release makes what was written durable and lets go of the file.
func (f *Flash) release() error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.letGo(); err != nil {
		f.fault = err
		return err
	}
	return nil
}

func (f *Flash) retake(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	now, err := load(file)
	if err == nil && now.Size() != f.Size() {
		err = fmt.Errorf("it has %d bytes, it had %d", now.Size(), f.Size())
	}
	if err != nil {
		file.Close()
		return err
	}
	f.file, f.pages, f.owned = file, now.pages, now.owned
	return nil
}

// count adds operations that were done elsewhere.
func (f *Flash) count(ops int) {
	f.ops += ops
	switch {
	case f.cutIn == 0:
	case ops >= f.cutIn:
		f.cutIn, f.dead = 0, true
	default:
		f.cutIn -= ops
	}
}
