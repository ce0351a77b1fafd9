package norflash_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"bmsota/device/internal/norflash"
)

const mib = 1 << 20

func content(t testing.TB, f *norflash.Flash) []byte {
	t.Helper()
	b := make([]byte, f.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestProgramOnlyClearsBitsAndEraseSetsThem(t *testing.T) {
	f := norflash.New(mib)
	want := bytes.Repeat([]byte{0xFF}, mib)
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		if r.IntN(8) == 0 {
			s := r.IntN(mib / norflash.SectorSize)
			n := min(1+r.IntN(3), mib/norflash.SectorSize-s)
			must(t, f.Erase(int64(s)*norflash.SectorSize, int64(n)*norflash.SectorSize))
			for i := range n * norflash.SectorSize {
				want[s*norflash.SectorSize+i] = 0xFF
			}
			continue
		}
		p := make([]byte, r.IntN(9000))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		off := r.IntN(mib - len(p))
		must(t, f.Program(int64(off), p))
		for i, b := range p {
			want[off+i] &= b
		}
	}
	if !bytes.Equal(content(t, f), want) {
		t.Fatal("seed 1,2: the chip differs from an array that is ANDed and filled with ones")
	}
}

func TestOperationsHaveTheGrainOfARealUpdate(t *testing.T) {
	file, err := os.Open("testdata/real-update-trace.txt")
	must(t, err)
	defer file.Close()
	f := norflash.New(4 * mib)
	var got []norflash.Op
	f.OnOp(func(op norflash.Op) { got = append(got, op) })
	var want []norflash.Op
	for s := bufio.NewScanner(file); s.Scan(); {
		var kind rune
		var off, n int64
		if _, err := fmt.Sscanf(s.Text(), "%c %x %x", &kind, &off, &n); err != nil {
			t.Fatal(err)
		}
		if kind == 'E' {
			want = append(want, norflash.Op{Kind: norflash.OpErase, Off: off, Len: n})
			must(t, f.Erase(off, n))
		} else {
			want = append(want, norflash.Op{Kind: norflash.OpProgram, Off: off, Len: n})
			must(t, f.Program(off, make([]byte, n)))
		}
	}
	if len(want) != 9694 || f.Ops() != len(want) || len(got) != len(want) {
		t.Fatalf("%d lines made %d operations, %d logged; want 9694 of each", len(want), f.Ops(), len(got))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("operation %d: %v, want %v", i, got[i], want[i])
		}
	}
}

func TestLongAccessesAreCutIntoPieces(t *testing.T) {
	f := norflash.New(mib)
	var got []norflash.Op
	f.OnOp(func(op norflash.Op) { got = append(got, op) })
	must(t, f.Program(60, make([]byte, 130)))
	must(t, f.Erase(0, 8192))
	want := []norflash.Op{{1, 60, 4}, {1, 64, 64}, {1, 128, 62}, {2, 0, 4096}, {2, 4096, 4096}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	f.OnOp(nil)
	must(t, f.Program(0, nil))
	if f.Ops() != 5 {
		t.Errorf("an empty program is an operation: %d", f.Ops())
	}
}

func TestAccessesOutsideTheChipAreRefused(t *testing.T) {
	f := norflash.New(mib)
	const huge = 1<<63 - 1
	for name, err := range map[string]error{
		"program past the end":   f.Program(mib-1, []byte{0, 0}),
		"program at a negative":  f.Program(-1, []byte{0}),
		"program at the far end": f.Program(huge, []byte{0}),
		"erase past the end":     f.Erase(mib-4096, 8192),
		"erase of overflow":      f.Erase(4096, huge),
		"erase of negative":      f.Erase(4096, -4096),
		"erase at odd offset":    f.Erase(1, 4096),
		"erase of half a sector": f.Erase(0, 2048),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if f.Ops() != 0 {
		t.Errorf("refused accesses made %d operations", f.Ops())
	}
	b := make([]byte, 8)
	if n, err := f.ReadAt(b, mib-4); n != 4 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if _, err := f.ReadAt(b, -1); err == nil || err == io.EOF {
		t.Errorf("read at a negative offset: %v", err)
	}
	if _, err := f.ReadAt(b, huge); err != io.EOF {
		t.Errorf("read far behind the end: %v", err)
	}
}

func TestPowerCutStopsEverythingUntilPowerOn(t *testing.T) {
	data := bytes.Repeat([]byte{0x00}, 200) // operations of 64, 64, 64 and 8 bytes
	for _, c := range []struct {
		name string
		n    int
		how  norflash.Cut
		done int // bytes programmed
	}{
		{"before the first", 1, norflash.Before, 0},
		{"after the first", 1, norflash.After, 64},
		{"before the third", 3, norflash.Before, 128},
		{"after the last", 4, norflash.After, 200},
	} {
		f := norflash.New(mib)
		f.CutAt(c.n, c.how)
		if err := f.Program(0, data); !errors.Is(err, norflash.ErrPowerCut) {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, rerr := f.ReadAt(make([]byte, 1), 0)
		for what, err := range map[string]error{"read": rerr, "program": f.Program(4096, data), "erase": f.Erase(0, 4096)} {
			if !errors.Is(err, norflash.ErrPowerCut) {
				t.Errorf("%s: %s while off: %v", c.name, what, err)
			}
		}
		if !f.Dead() || f.Ops() != c.n {
			t.Errorf("%s: dead %v after %d operations", c.name, f.Dead(), f.Ops())
		}
		f.PowerOn()
		want := append(bytes.Repeat([]byte{0}, c.done), bytes.Repeat([]byte{0xFF}, 200-c.done)...)
		if got := content(t, f)[:200]; !bytes.Equal(got, want) {
			t.Errorf("%s: the chip holds %x", c.name, got)
		}
		must(t, f.Program(0, data))
	}
	f := norflash.New(mib)
	f.CutAt(1, norflash.Before)
	f.CutAt(0, norflash.Before)
	must(t, f.Program(0, data))
	f.CutAt(3, norflash.Before)
	f.PowerOn()
	must(t, f.Program(0, data))
}

func TestTornProgramIsBetweenOldAndNew(t *testing.T) {
	data := make([]byte, 64)
	kinds := map[string]int{}
	for seed := range uint64(500) {
		f := norflash.New(mib)
		must(t, f.Program(0, bytes.Repeat([]byte{0xF7}, 64)))
		before := content(t, f)[:64]
		f.CutAt(1, norflash.Torn(seed))
		if err := f.Program(0, data); !errors.Is(err, norflash.ErrPowerCut) {
			t.Fatal(err)
		}
		f.PowerOn()
		got := content(t, f)[:64]
		for i := range got {
			if got[i]&^before[i] != 0 {
				t.Fatalf("seed %d: byte %d went from %02x to %02x: a program set a bit", seed, i, before[i], got[i])
			}
		}
		switch {
		case bytes.Equal(got, before):
			kinds["untouched"]++
		case bytes.Equal(got, data):
			kinds["complete"]++
		default:
			kinds["between"]++
		}
		if kinds["between"] < 400 && seed == 499 {
			t.Errorf("torn programs end as %v", kinds)
		}
	}
}

func TestTornEraseLeavesOldOnesAndNothingElse(t *testing.T) {
	old := bytes.Repeat([]byte{0x5A}, norflash.SectorSize)
	var onesOnly, withZeros, nearlyUntouched int
	for seed := range uint64(400) {
		f := norflash.New(mib)
		must(t, f.Program(4096, old))
		f.CutAt(1, norflash.Torn(seed))
		if err := f.Erase(4096, 4096); !errors.Is(err, norflash.ErrPowerCut) {
			t.Fatal(err)
		}
		f.PowerOn()
		got := content(t, f)
		if !bytes.Equal(got[:4096], bytes.Repeat([]byte{0xFF}, 4096)) || got[8192] != 0xFF {
			t.Fatalf("seed %d: a torn erase touched another sector", seed)
		}
		lost, changed := false, 0
		for i, b := range got[4096:8192] {
			lost = lost || b&old[i] != old[i]
			if b != old[i] {
				changed++
			}
		}
		if lost {
			withZeros++
		} else {
			onesOnly++
		}
		if changed < norflash.SectorSize/4 {
			nearlyUntouched++
		}
		g := norflash.New(mib)
		must(t, g.Program(4096, old))
		g.CutAt(1, norflash.Torn(seed))
		_ = g.Erase(4096, 4096)
		g.PowerOn()
		if !bytes.Equal(content(t, g), got) {
			t.Fatalf("seed %d tears differently the second time", seed)
		}
	}
	if onesOnly < 200 || withZeros < 50 || nearlyUntouched < 20 {
		t.Errorf("torn erases: %d with ones only, %d with zeros, %d nearly untouched", onesOnly, withZeros, nearlyUntouched)
	}
}

func TestCloneSharesUntilWritten(t *testing.T) {
	a := norflash.FromBytes(bytes.Repeat([]byte{0xAA}, mib))
	a.CutAt(5, norflash.Before)
	b := a.Clone()
	if b.Size() != mib || b.Ops() != 0 || norflash.Held(b) != 0 || norflash.Held(a) != 0 {
		t.Fatalf("a clone holds %d bytes, the original %d", norflash.Held(b), norflash.Held(a))
	}
	must(t, b.Program(0, []byte{0x0F}))
	must(t, a.Program(4096, []byte{0xF0}))
	must(t, a.Erase(8192, 4096))
	c := b.Clone()
	must(t, b.Program(1, []byte{0}))
	ca, cb, cc := content(t, a), content(t, b), content(t, c)
	if ca[0] != 0xAA || ca[4096] != 0xA0 || ca[8192] != 0xFF || cb[0] != 0x0A || cb[1] != 0 || cb[4096] != 0xAA || cb[8192] != 0xAA || cc[0] != 0x0A || cc[1] != 0xAA {
		t.Error("a write to one chip shows in another")
	}
	if norflash.Held(b) != 4096 {
		t.Errorf("one write after a clone holds %d bytes", norflash.Held(b))
	}
	for range 10 { // the cut armed on a must not be on b
		must(t, b.Program(0, []byte{0}))
	}
}

func TestFileIsWhatTheChipHolds(t *testing.T) {
	path := t.TempDir() + "/flash.bin"
	f, err := norflash.Create(path, mib)
	must(t, err)
	must(t, f.Program(5000, []byte("hello")))
	must(t, f.Program(0, make([]byte, 100)))
	f.CutAt(1, norflash.Torn(3))
	if err := f.Erase(0, 4096); !errors.Is(err, norflash.ErrPowerCut) {
		t.Fatal(err)
	}
	f.PowerOn()
	want := content(t, f)
	clone := f.Clone()
	must(t, clone.Program(9000, []byte{0}))
	must(t, f.Sync())
	onDisk, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(onDisk, want) {
		t.Error("the file differs from the chip")
	}
	must(t, f.Close())
	if err := f.Program(0, []byte{0}); err == nil {
		t.Error("a closed chip can be programmed")
	}
	g, err := norflash.Open(path)
	must(t, err)
	defer g.Close()
	if !bytes.Equal(content(t, g), want) {
		t.Error("the chip reads differently after it was closed and opened")
	}
}

func TestOneFileRunsOneBoard(t *testing.T) {
	path := t.TempDir() + "/flash.bin"
	f, err := norflash.Create(path, mib)
	must(t, err)
	if _, err := norflash.Open(path); !errors.Is(err, norflash.ErrLocked) {
		t.Errorf("a second open: %v", err)
	}
	if _, err := norflash.Create(path, mib); !errors.Is(err, os.ErrExist) {
		t.Errorf("create over an existing file: %v", err)
	}
	must(t, f.Close())
	g, err := norflash.Open(path)
	must(t, err)
	must(t, g.Close())
}

func TestFilesOfOtherSizesAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{0, 4096, mib - 1, mib + 1, 3 * mib, 64 * mib} {
		path := fmt.Sprintf("%s/%d.bin", dir, size)
		if _, err := norflash.Create(path, size); err == nil {
			t.Errorf("create of %d bytes is accepted", size)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("a refused create of %d bytes leaves a file", size)
		}
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Truncate(path, size))
		if f, err := norflash.Open(path); err == nil {
			f.Close()
			t.Errorf("a file of %d bytes opens", size)
		}
		// A refusal must not keep the lock.
		must(t, os.Truncate(path, mib))
		f, err := norflash.Open(path)
		if err != nil {
			t.Errorf("after a refusal: %v", err)
			continue
		}
		f.Close()
	}
	if _, err := norflash.Open(dir); err == nil {
		t.Error("a folder opens as a flash")
	}
}

func BenchmarkProgramPiece(b *testing.B) { programAll(b, norflash.New(4*mib)) }

// programAll programs a chip of 4 MiB from its start to its end, again and again.
func programAll(b *testing.B, f *norflash.Flash) {
	data := make([]byte, norflash.PieceSize)
	off := int64(0)
	for b.Loop() {
		if err := f.Program(off, data); err != nil {
			b.Fatal(err)
		}
		off = (off + norflash.PieceSize) % (4 * mib)
	}
}

func BenchmarkEraseSector(b *testing.B) {
	f := norflash.New(4 * mib)
	for b.Loop() {
		if err := f.Erase(4096, 4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCloneAndWriteOnePage(b *testing.B) {
	f := norflash.FromBytes(make([]byte, 4*mib))
	for b.Loop() {
		if err := f.Clone().Program(0, []byte{0}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSumIsOfTheContentAlone: not of how it came about, of clones, or of sectors that were written to be erased again.
func TestSumIsOfTheContentAlone(t *testing.T) {
	f := norflash.New(64 << 10)
	blank := f.Sum()
	must(t, f.Program(5000, []byte{1, 2, 3}))
	written := f.Sum()
	c := f.Clone()
	must(t, c.Program(5003, []byte{4}))
	g := norflash.New(64 << 10)
	must(t, g.Program(5000, []byte{1, 2, 3, 4}))
	must(t, f.Program(0, bytes.Repeat([]byte{0xFF}, 100))) // a page of its own, erased
	if written == blank || f.Sum() != written || c.Sum() != g.Sum() || c.Sum() == written {
		t.Error("the digest is not the content's")
	}
	must(t, f.Erase(4096, 4096))
	if f.Sum() != blank {
		t.Error("an erased chip is not a new one")
	}
	// The same bytes elsewhere are other content.
	must(t, f.Program(4096+5000, []byte{1, 2, 3}))
	if f.Sum() == written {
		t.Error("sectors are not told apart")
	}
}

// TestCutsOfAKind: a part is clean, scattered bits are of those that were to change, and only an erase on a chip that
// clears first leaves zeros that nobody wrote.
func TestCutsOfAKind(t *testing.T) {
	old, src := bytes.Repeat([]byte{0xF0}, norflash.PieceSize), bytes.Repeat([]byte{0x5A}, norflash.PieceSize)
	after := func(erase bool, how norflash.Cut) []byte {
		f := norflash.New(norflash.SectorSize)
		must(t, f.Program(0, old))
		f.CutAt(1, how)
		if erase {
			f.Erase(0, norflash.SectorSize)
		} else {
			f.Program(0, src)
		}
		f.PowerOn()
		return content(t, f)
	}
	if got := after(false, norflash.Part(5)); !bytes.Equal(got[:6], []byte{0x50, 0x50, 0x50, 0x50, 0x50, 0xF0}) {
		t.Errorf("a part of a program is % x", got[:8])
	}
	if got := after(true, norflash.Part(5)); !bytes.Equal(got[:6], []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xF0}) {
		t.Errorf("a part of an erase is % x", got[:8])
	}
	cleared := false
	for seed := range uint64(50) {
		for i, b := range after(false, norflash.Bits(seed))[:norflash.PieceSize] {
			if b&0x50 != 0x50 || b&^0xF0 != 0 {
				t.Fatalf("seed %d: scattered program leaves %02x at %d", seed, b, i)
			}
		}
		for i, b := range after(true, norflash.Bits(seed))[:norflash.PieceSize] {
			if b&0xF0 != 0xF0 {
				t.Fatalf("seed %d: scattered erase leaves %02x at %d", seed, b, i)
			}
		}
		cleared = cleared || !bytes.Equal(after(true, norflash.Zeros(seed))[norflash.PieceSize:], bytes.Repeat([]byte{0xFF}, norflash.SectorSize-norflash.PieceSize))
	}
	if !cleared {
		t.Error("no erase clears first")
	}
}
