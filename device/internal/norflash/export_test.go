package norflash

import "math/bits"

// Held is the number of bytes of memory that f does not share with a clone or a pool.
func Held(f *Flash) int64 {
	n := 0
	for _, w := range f.owned {
		n += bits.OnesCount64(w)
	}
	return int64(n) * SectorSize
}

// Contents is the number of sectors that the pool knows of.
func Contents(l *Pool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pages)
}
