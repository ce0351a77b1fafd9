package norflash

import "math/rand/v2"

// weakness are the bits of a sector that are neither 0 nor 1.
type weakness struct {
	bits  [SectorSize]byte
	noise *rand.Rand
}

// Weaken makes the bits of a sector that are set in bits read now so and now so, as the seed decides: what an erase that
// was cut short can leave. A bit is firm again once it is programmed, or its sector is erased to the end. Sum and a file
// know nothing of it.
func (f *Flash) Weaken(sector int, bits [SectorSize]byte, seed uint64) {
	if f.weak == nil {
		f.weak = map[int]*weakness{}
	}
	f.weak[sector] = &weakness{bits, rand.New(rand.NewPCG(seed, uint64(sector)))}
}

// disturb changes what was read at off of the sector.
func (w *weakness) disturb(p []byte, off int64) {
	for i := range p {
		if bits := w.bits[off+int64(i)]; bits != 0 {
			p[i] ^= bits & byte(w.noise.Uint32())
		}
	}
}
