package norflash

import "testing"

// TestWeakBitsReadAsTheyLikeUntilTheyAreFirm: only those bits, clones too, until they are programmed or erased.
func TestWeakBitsReadAsTheyLikeUntilTheyAreFirm(t *testing.T) {
	f := New(1 << 20)
	var weak [SectorSize]byte
	weak[10], weak[11] = 0x0F, 0xFF
	f.Weaken(1, weak, 1)
	seen := func(f *Flash) (values map[[3]byte]bool) {
		values = map[[3]byte]bool{}
		for range 200 {
			var b [3]byte
			if _, err := f.ReadAt(b[:], SectorSize+9); err != nil {
				t.Fatal(err)
			}
			values[b] = true
			if b[0] != 0xFF || b[1]&0xF0 != 0xF0 {
				t.Fatalf("a firm bit reads %x", b)
			}
		}
		return values
	}
	if n := len(seen(f)); n < 50 {
		t.Errorf("%d different readings", n)
	}
	if n := len(seen(f.Clone())); n < 50 {
		t.Errorf("of a clone: %d different readings", n)
	}
	if err := f.Program(SectorSize+11, []byte{0}); err != nil {
		t.Fatal(err)
	}
	if n := len(seen(f)); n < 2 || n > 16 {
		t.Errorf("one byte programmed: %d different readings", n)
	}
	if err := f.Erase(SectorSize, SectorSize); err != nil {
		t.Fatal(err)
	}
	if n := len(seen(f)); n != 1 {
		t.Errorf("erased: %d different readings", n)
	}
}
