package norflash

import (
	"crypto/sha256"
	"encoding/binary"
)

type digest [sha256.Size]byte

var erasedSum = digest(sha256.Sum256(erasedPage.bytes[:]))

// Sum is a digest of the content, the same for two chips of one size exactly when they hold the same bytes. A sector that
// clones share is hashed once for all of them, so asking again after a few writes costs a few sectors.
func (f *Flash) Sum() [sha256.Size]byte {
	all := sha256.New()
	var head [4]byte
	for i, p := range f.pages {
		if p == nil {
			continue
		}
		s := p.digest()
		if s == erasedSum {
			continue // as good as none
		}
		binary.LittleEndian.PutUint32(head[:], uint32(i))
		all.Write(head[:])
		all.Write(s[:])
	}
	return [sha256.Size]byte(all.Sum(nil))
}

func (p *page) digest() digest {
	if s := p.sum.Load(); s != nil {
		return *s
	}
	s := digest(sha256.Sum256(p.bytes[:]))
	p.sum.Store(&s)
	return s
}
