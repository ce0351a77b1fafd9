package norflash_test

import (
	"errors"
	"os"
	"testing"

	"bmsota/device/internal/norflash"
)

func TestLentFlashCountsAndCutsWithItsBorrower(t *testing.T) {
	path := t.TempDir() + "/flash.bin"
	f, err := norflash.Create(path, mib)
	must(t, err)
	f.CutAt(5, norflash.Before)
	must(t, f.Program(0, []byte{0}))
	work := func(cutIn int) (int, error) {
		if cutIn != 4 && cutIn != 2 {
			t.Errorf("borrower is told a cut in %d operations", cutIn)
		}
		b, err := norflash.Open(path)
		must(t, err)
		defer b.Close()
		must(t, b.Program(int64(b.Ops())+int64(cutIn), []byte{0x10}))
		return b.Ops() + 1, nil
	}
	must(t, f.Lend(work))
	if f.Ops() != 3 || f.Dead() {
		t.Errorf("%d operations, power off: %v", f.Ops(), f.Dead())
	}
	if got := content(t, f); got[0] != 0 || got[4] != 0x10 {
		t.Error("what either side wrote is lost")
	}
	must(t, f.Lend(work))
	if err := f.Program(0, []byte{0}); !f.Dead() || !errors.Is(err, norflash.ErrPowerCut) {
		t.Errorf("the borrower's fifth operation did not end it: %v", err)
	}
	if err := f.Lend(work); !errors.Is(err, norflash.ErrPowerCut) {
		t.Errorf("lent without power: %v", err)
	}
	f.PowerOn()
	must(t, f.Program(0, []byte{0}))
	must(t, f.Close())
}

func TestLentFlashThatIsNotComingBackFails(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"gone":         os.Remove,
		"another size": func(path string) error { return os.Truncate(path, 2*mib) },
		"taken": func(path string) error {
			other, err := norflash.Open(path)
			if err == nil {
				t.Cleanup(func() { other.Close() })
			}
			return err
		},
	} {
		path := t.TempDir() + "/flash.bin"
		f, err := norflash.Create(path, mib)
		must(t, err)
		if err := f.Lend(func(int) (int, error) { return 0, harm(path) }); err == nil {
			t.Errorf("%s: taken back", name)
		}
		if err := f.Program(0, []byte{0}); err == nil {
			t.Errorf("%s: writes", name)
		}
	}
	if err := norflash.New(mib).Lend(nil); err == nil {
		t.Error("a chip in memory is lent")
	}
}
