package norflash_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"bmsota/device/internal/norflash"
)

// TestChipsOfAPoolHoldAnImageOnce: what two chips were programmed with alike takes memory once, and what one writes afterwards
// is its own.
func TestChipsOfAPoolHoldAnImageOnce(t *testing.T) {
	pool := norflash.NewPool()
	image := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{7}).Read(image)
	a := norflash.New(mib)
	must(t, a.Program(0, image[:4096])) // before it shares; the content comes again
	must(t, a.Program(5000, []byte{1}))
	a.Share(pool)
	b := a.Clone()
	for _, f := range []*norflash.Flash{a, b} {
		must(t, f.Program(8192, image))
		must(t, f.Program(8192+int64(len(image)), image[:100])) // a sector that is not complete
	}
	if held, want := norflash.Held(a)+norflash.Held(b), int64(2*4096); held != want {
		t.Errorf("two chips hold %d bytes of their own, want %d", held, want)
	}
	if got, want := norflash.Contents(pool), 1+len(image)/4096; got != want {
		t.Errorf("the pool has %d sectors, want %d", got, want)
	}
	before := content(t, b)
	must(t, a.Program(8192, []byte{0}))
	must(t, a.Erase(12288, 4096))
	if !bytes.Equal(content(t, b), before) || content(t, a)[8192] != 0 || content(t, a)[12288] != 0xFF {
		t.Error("a write to one chip shows in another")
	}
	runtime.KeepAlive(a)
}

// TestAPoolForgetsWhatNoChipHolds: a fleet that goes from release to release does not keep them all.
func TestAPoolForgetsWhatNoChipHolds(t *testing.T) {
	pool := norflash.NewPool()
	f := norflash.New(mib)
	f.Share(pool)
	for i := range 20 {
		must(t, f.Erase(0, 4096))
		must(t, f.Program(0, bytes.Repeat([]byte{byte(i)}, 4096)))
	}
	for until := time.Now().Add(10 * time.Second); norflash.Contents(pool) > 1; runtime.GC() { // cleanups have a goroutine of their own
		if time.Now().After(until) {
			t.Fatalf("the pool has %d sectors, the chip one", norflash.Contents(pool))
		}
	}
	if got := content(t, f)[0]; got != 19 {
		t.Errorf("the chip reads %d", got)
	}
}

// TestAPoolChangesNothing: chips of one pool, used at once, behave as chips without one do, operation for operation, whatever
// is written, torn or forked.
func TestAPoolChangesNothing(t *testing.T) {
	const sectors = 8
	pool := norflash.NewPool()
	run := func(seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		plain, shared := norflash.New(sectors*4096), norflash.New(sectors*4096)
		shared.Share(pool)
		for range 400 {
			off := int64(r.IntN(sectors)) * 4096
			p := bytes.Repeat([]byte{byte(r.IntN(3))}, 4096) // few contents, so that chips meet
			switch r.IntN(8) {
			case 0, 1:
				off, p = off+int64(r.IntN(4096)), p[:1] // one byte, now and then the last
				if r.IntN(2) == 0 {
					off |= 4095
				}
			case 2:
				p = nil // an erase
			case 3:
				cut, at := norflash.Torn(r.Uint64()), 1+r.IntN(64)
				plain.CutAt(at, cut)
				shared.CutAt(at, cut)
			case 4:
				plain, shared = plain.Clone(), shared.Clone()
			}
			do := func(f *norflash.Flash) error {
				if p == nil {
					return f.Erase(off, 4096)
				}
				return f.Program(off, p)
			}
			if a, b := do(plain), do(shared); !errors.Is(b, a) {
				t.Errorf("seed %d: %v without a pool, %v with it", seed, a, b)
			}
			plain.PowerOn()
			shared.PowerOn()
			if plain.Ops() != shared.Ops() || !bytes.Equal(content(t, plain), content(t, shared)) || plain.Sum() != shared.Sum() {
				t.Errorf("seed %d: a chip of a pool holds something else", seed)
				return
			}
		}
	}
	var chips sync.WaitGroup
	for seed := range uint64(8) {
		chips.Go(func() { run(seed) })
	}
	chips.Wait()
}

// BenchmarkProgramPieceShared is BenchmarkProgramPiece for a chip whose sectors another has already.
func BenchmarkProgramPieceShared(b *testing.B) {
	f := norflash.New(4 * mib)
	f.Share(norflash.NewPool())
	programAll(b, f)
}
