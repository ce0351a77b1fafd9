package norflash

import "math/bits"

// Held is the number of bytes of memory that f does not share with a clone.
func Held(f *Flash) int64 {
	n := 0
	for _, w := range f.owned {
		n += bits.OnesCount64(w)
	}
	return int64(n) * SectorSize
}
