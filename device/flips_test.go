package device

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"bmsota/device/internal/bootloader"
	"bmsota/device/internal/norflash"
	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
)

// recordBytes is a flash whose two boot records are elsewhere, so that any bit of them can be set.
type recordBytes struct {
	*norflash.Flash
	at   int64
	recs [2][otadata.RecordSize]byte
}

// in gives the part of a record that an access is about.
func (r *recordBytes) in(off int64) ([]byte, bool) {
	i, from := (off-r.at)/otadata.SectorSize, (off-r.at)%otadata.SectorSize
	if off < r.at || i > 1 || from >= otadata.RecordSize {
		return nil, false
	}
	return r.recs[i][from:], true
}

func (r *recordBytes) ReadAt(p []byte, off int64) (int, error) {
	if rec, ok := r.in(off); ok {
		return copy(p, rec), nil
	}
	return r.Flash.ReadAt(p, off)
}

func (r *recordBytes) Program(off int64, p []byte) error {
	rec, ok := r.in(off)
	if !ok {
		return errors.New("the bootloader writes records only")
	}
	for i := range p {
		rec[i] &= p[i]
	}
	return nil
}

func (r *recordBytes) Erase(off, _ int64) error {
	rec, ok := r.in(off)
	if !ok {
		return errors.New("the bootloader erases records only")
	}
	for i := range rec {
		rec[i] = 0xFF
	}
	return nil
}

// resting is a board at rest, as far as its bootloader can see.
type resting struct {
	flash   *norflash.Flash
	at      int64
	recs    [2][otadata.RecordSize]byte
	crashes map[uint32]bool // partitions with an image that crashes, by offset
	verify  func(p parttable.Partition) error
}

func (sw *sweep) resting(t *testing.T) *resting {
	t.Helper()
	f := sw.end(t)
	data, _ := sw.table.OTAData()
	r := &resting{flash: f, at: int64(data.Offset), crashes: map[uint32]bool{}}
	for i := range r.recs {
		f.ReadAt(r.recs[i][:], r.at+int64(i)*otadata.SectorSize)
	}
	verdicts := map[uint32]error{}
	for _, p := range sw.table.Slots() {
		img, err := sw.verify(f, p)
		verdicts[p.Offset] = err
		r.crashes[p.Offset] = err == nil && appimage.TrialBehaviour(section(f, p), img) == appimage.BehaviourCrash
	}
	r.verify = func(p parttable.Partition) error { return verdicts[p.Offset] }
	return r
}

// stuck says whether a board with these records never comes to an image that lives.
func (r *resting) stuck(t *testing.T, recs [2][otadata.RecordSize]byte) bool {
	f := &recordBytes{r.flash, r.at, recs}
	for range maxUnheard {
		res, err := bootloader.Boot(f, bootloader.Config{Rollback: true, Verify: r.verify})
		if err != nil {
			t.Fatal(err)
		}
		if res.Booted == "none" {
			return true
		}
		if !r.crashes[res.Partition.Offset] {
			return false
		}
	}
	return true
}

func flipped(recs [2][otadata.RecordSize]byte, bits ...int) [2][otadata.RecordSize]byte {
	for _, b := range bits {
		recs[b/256][b%256/8] ^= 1 << (b % 8)
	}
	return recs
}

// TestNoFlipOfTheRecordsSticks: in every scenario, once the board is at rest, no flipped bit of the boot records, no two
// (one pair in eight, all of them in the long run), and no garbage in their place keep it from an image that lives. With
// the failed image left in its slot some do.
func TestNoFlipOfTheRecordsSticks(t *testing.T) {
	const bits, seed = 512, 11
	garbage, pairs := 10_000, 8 // contents in each scenario; of the pairs one in so many
	if long(t) {
		garbage, pairs = 400_000, 1
	}
	all := scenarios()
	tried := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := all[name](t).resting(t)
		random := rand.New(rand.NewPCG(seed, 0))
		bad := func(what string, recs [2][otadata.RecordSize]byte) {
			if tried++; r.stuck(t, recs) {
				t.Errorf("%s, seed %d: %s: %x is for ever", name, seed, what, recs)
			}
		}
		for i := range bits {
			bad("one bit", flipped(r.recs, i))
			for j := i % pairs; j < i; j += pairs {
				bad("two bits", flipped(r.recs, i, j))
			}
		}
		for range garbage {
			recs := r.recs
			for i := range recs {
				switch random.IntN(3) {
				case 0: // a record like the agent's, torn
					otadata.AppendRecord(recs[i][:0], otadata.NewRecord(uint32(random.IntN(6)), otadata.State(random.Uint32N(6))))
				case 1:
					for k := range recs[i] {
						recs[i][k] = byte(random.Uint32())
					}
				}
				recs[i][random.IntN(len(recs[i]))] &= byte(random.Uint32())
			}
			bad("garbage", recs)
		}
	}
	t.Logf("%d contents of the records, 0 stuck", tried)
	zombie := tiny(t, appimage.BehaviourCrash, toOld)
	f := zombie.end(t).Clone()
	put(t, f, 0x30000, zombie.next) // as if its slot had not been erased
	r := zombie.resting(t)
	kept := 0
	r.flash, r.crashes[0x30000] = f, true
	good := r.verify
	r.verify = func(p parttable.Partition) error {
		if p.Offset == 0x30000 {
			return nil
		}
		return good(p)
	}
	for i := range bits {
		if r.stuck(t, flipped(r.recs, i)) {
			kept++
		}
	}
	if kept == 0 {
		t.Error("a failed image that is left in its slot harms nothing: the test proves nothing")
	}
	t.Logf("with the failed image left in place %d of %d single flips are for ever", kept, bits)
}
