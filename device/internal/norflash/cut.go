package norflash

import (
	"fmt"
	"math/rand/v2"
)

type cutKind uint8

const (
	cutBefore cutKind = iota
	cutTorn
	cutPart
	cutBits
	cutZeros
	cutAfter
)

// Cut is how the power fails in an operation.
type Cut struct {
	kind cutKind
	seed uint64
}

var (
	// Before leaves the operation undone.
	Before = Cut{kind: cutBefore}
	// After lets it finish, but the program does not learn of it.
	After = Cut{kind: cutAfter}
)

// Torn stops the operation half way, in a way that the seed decides. A torn
// program has done a prefix of its bytes and a random subset of the bits that
// were still to be cleared. A torn erase has turned a prefix of the sector to
// ones and a random subset of the zeros behind it; every fourth seed stands
// for chips that clear a sector before they erase it, and leaves zeros too.
func Torn(seed uint64) Cut { return Cut{kind: cutTorn, seed: seed} }

// Part stops the operation cleanly after n bytes: the rest is as it was. With
// as many bytes as the operation has, or more, it is After.
func Part(n int) Cut { return Cut{kind: cutPart, seed: uint64(max(n, 0))} }

// Bits stops the operation everywhere at once: of the bits that it was to
// change a random subset has changed, as dense as the seed says.
func Bits(seed uint64) Cut { return Cut{kind: cutBits, seed: seed} }

// Zeros stops an erase on a chip that clears a sector before it erases it: a
// random subset of the ones is gone. A program it tears as Bits does.
func Zeros(seed uint64) Cut { return Cut{kind: cutZeros, seed: seed} }

// String says how the power fails.
func (c Cut) String() string {
	switch c.kind {
	case cutBefore:
		return "before"
	case cutAfter:
		return "after"
	case cutPart:
		return fmt.Sprintf("part:%d", c.seed)
	case cutBits:
		return fmt.Sprintf("bits:%d", c.seed)
	case cutZeros:
		return fmt.Sprintf("zeros:%d", c.seed)
	}
	return fmt.Sprintf("torn:%d", c.seed)
}

// CutAt lets the power fail in the n-th operation from now, the next one being
// the first. Zero or less takes an armed cut back.
func (f *Flash) CutAt(n int, how Cut) { f.cutIn, f.cut = max(n, 0), how }

// PowerOn ends a power cut and takes back one that has not come yet. The
// content is what the cut left.
func (f *Flash) PowerOn() { f.dead, f.cutIn = false, 0 }

// Dead reports whether the power has failed and is still off.
func (f *Flash) Dead() bool { return f.dead }

func (c Cut) rand() *rand.Rand { return rand.New(rand.NewPCG(c.seed, 0x6e6f72)) }

// program fills dst with what a torn program of src applies: ones where the
// chip did not get to.
func (c Cut) program(dst, src []byte) []byte {
	if c.kind == cutPart {
		return src[:min(c.seed, uint64(len(src)))]
	}
	r := c.rand()
	done := 0
	if c.kind == cutTorn {
		done = r.IntN(len(src) + 1)
	}
	copy(dst, src[:done])
	density := r.Float64()
	for i := done; i < len(src); i++ {
		dst[i] = src[i] | randomBits(r, density)
	}
	return dst
}

// erase does to a sector what a torn erase does.
func (c Cut) erase(p *[SectorSize]byte) {
	if c.kind == cutPart {
		copy(p[:min(c.seed, SectorSize)], erasedPage.bytes[:])
		return
	}
	r := c.rand()
	if c.kind == cutZeros || c.kind == cutTorn && r.IntN(4) == 0 {
		density := r.Float64()
		for i := range p {
			p[i] &= randomBits(r, density)
		}
	}
	if c.kind == cutZeros {
		return
	}
	done := 0
	if c.kind == cutTorn && r.IntN(2) == 0 {
		done = r.IntN(SectorSize)
	}
	// Squaring makes nearly untouched sectors likely: they are the dangerous
	// ones, with a checksum that still fits and a state that does not.
	density := r.Float64()
	density *= density
	for i := range p {
		if i < done {
			p[i] = 0xFF
		} else {
			p[i] |= randomBits(r, density)
		}
	}
}

// randomBits is a byte in which each bit is 1 with the given probability.
func randomBits(r *rand.Rand, density float64) (b byte) {
	threshold := uint64(density * 256)
	v := r.Uint64()
	for i := range 8 {
		if v>>(8*i)&0xFF < threshold {
			b |= 1 << i
		}
	}
	return b
}
