// Package norflash is the flash chip of a board: NOR memory by its real rules,
// in memory or in a plain file of the chip's size.
//
// It promises what the chip does and nothing kinder. Erase turns whole 4 KiB
// sectors to ones. Program only clears bits: what is stored is the AND of old
// and new. Both are made of operations that a power cut can fall into: one per
// erased sector, one per programmed piece of at most 64 bytes that does not
// cross a 64-byte boundary, which is the grain of real ESP-IDF firmware (see
// testdata/real-update-trace.txt). CutAt lets the power fail before, in or
// after the n-th operation; from then on everything fails with ErrPowerCut
// until PowerOn, reads too, as for a program that is no longer running.
//
// It refuses accesses outside the chip, erases that are not sector aligned,
// and files that no ESP32 flash chip has the size of. It does not model read
// disturb, wear-out or bits that read differently twice.
//
// The rules are those of any SPI NOR data sheet (W25Q32: page program 02h,
// sector erase 20h) and of ESP-IDF's spi_flash driver.
package norflash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

const (
	// SectorSize is the unit of erasing, in bytes.
	SectorSize = 4096
	// PieceSize is the most that one program operation writes, in bytes.
	PieceSize = 64
	// MaxSize is the largest chip, in bytes.
	MaxSize = 32 << 20
)

// ErrPowerCut is returned by the operation the power failed in and by every
// later one, reads included, until PowerOn.
var ErrPowerCut = errors.New("norflash: power cut")

// Kind is what an operation does.
type Kind uint8

// The two kinds of operation.
const (
	OpProgram Kind = iota + 1
	OpErase
)

// String is "program" or "erase".
func (k Kind) String() string {
	switch k {
	case OpProgram:
		return "program"
	case OpErase:
		return "erase"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Op is one operation: the smallest thing that a power cut can separate.
type Op struct {
	Kind Kind
	Off  int64 // in bytes from the start of the chip
	Len  int64 // SectorSize for an erase, at most PieceSize for a program
}

// page is one sector's content. A nil page is erased. A page that two flashes
// share, or that is in a Pool, is never written; see Flash.owned.
type page struct {
	bytes [SectorSize]byte
	sum   atomic.Pointer[digest] // of bytes, once somebody asked; shared like them
}

var erasedPage = func() *page {
	p := new(page)
	for i := range p.bytes {
		p.bytes[i] = 0xFF
	}
	return p
}()

// Flash is one chip. It is for use by one goroutine at a time, Clone included;
// clones are independent of it and of each other.
type Flash struct {
	pages []*page
	owned []uint64 // bit i: pages[i] is this flash's alone and may be written
	pool  *Pool    // takes sectors that are complete; nil for none
	file  *os.File // nil in memory
	fault error    // a failed write to the file: memory and file may differ
	ops   int
	onOp  func(Op)
	pacer *pacer // nil takes no time

	weak  map[int]*weakness // by sector
	cutIn int               // operations until the cut; 0 is none
	cut   Cut
	dead  bool
}

// New returns a chip in memory with size bytes, erased. A size that is not a
// positive multiple of SectorSize up to MaxSize panics: it is a constant of the
// program. What comes from outside is a file, and Open looks at its size.
func New(size int64) *Flash {
	if size <= 0 || size > MaxSize || size%SectorSize != 0 {
		panic(fmt.Sprintf("norflash: a chip of %d bytes", size))
	}
	n := int(size / SectorSize)
	return &Flash{pages: make([]*page, n), owned: make([]uint64, (n+63)/64)}
}

// FromBytes returns a chip in memory that holds a copy of b. It panics like New
// where the length of b is no size of a flash.
func FromBytes(b []byte) *Flash {
	f := New(int64(len(b)))
	for i := range f.pages {
		f.fill(i, (*[SectorSize]byte)(b[i*SectorSize:]))
	}
	return f
}

// fill gives a sector of a new chip its content.
func (f *Flash) fill(sector int, content *[SectorSize]byte) {
	if *content != erasedPage.bytes {
		f.pages[sector] = &page{bytes: *content}
		f.own(sector)
	}
}

// Clone returns a chip in memory with the same content, power on, no cut
// armed, no log, no pace and no operations counted. It is a cheap fork: pages are
// shared until one side writes them. The clone of a file is not a file.
func (f *Flash) Clone() *Flash {
	c := &Flash{pages: make([]*page, len(f.pages)), owned: make([]uint64, len(f.owned)), pool: f.pool}
	copy(c.pages, f.pages)
	clear(f.owned)
	for sector, w := range f.weak {
		c.Weaken(sector, w.bits, w.noise.Uint64())
	}
	return c
}

// Size is the size of the chip in bytes.
func (f *Flash) Size() int64 { return int64(len(f.pages)) * SectorSize }

// Ops is the number of operations since the chip was made or opened, those
// that the power failed in included.
func (f *Flash) Ops() int { return f.ops }

// OnOp makes fn see every operation before it takes effect. Nil stops it.
func (f *Flash) OnOp(fn func(Op)) { f.onOp = fn }

// ReadAt reads like io.ReaderAt.
func (f *Flash) ReadAt(p []byte, off int64) (int, error) {
	if f.dead {
		return 0, ErrPowerCut
	}
	if off < 0 {
		return 0, fmt.Errorf("norflash: read at negative offset %d", off)
	}
	n := 0
	for n < len(p) {
		if off >= f.Size() {
			return n, io.EOF
		}
		src := f.view(int(off / SectorSize))
		k := copy(p[n:], src.bytes[off%SectorSize:])
		if w := f.weak[int(off/SectorSize)]; w != nil {
			w.disturb(p[n:][:k], off%SectorSize)
		}
		n += k
		off += int64(k)
	}
	return n, nil
}

// Program clears, from off on, every bit that is 0 in p. It is cut into pieces
// of at most PieceSize bytes at 64-byte boundaries, each one operation. Bits
// that are already 0 stay so without an error, as on the chip.
func (f *Flash) Program(off int64, p []byte) error {
	if err := f.ready("program", off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(len(p), PieceSize-int(off%PieceSize))
		if err := f.programPiece(off, p[:n]); err != nil {
			return err
		}
		off += int64(n)
		p = p[n:]
	}
	return nil
}

// Erase turns the sectors from off on to ones, each one operation. Offset and
// length are multiples of SectorSize.
func (f *Flash) Erase(off, length int64) error {
	if err := f.ready("erase", off, length); err != nil {
		return err
	}
	if off%SectorSize != 0 || length%SectorSize != 0 {
		return fmt.Errorf("norflash: erase of 0x%x bytes at 0x%x is not sector aligned", length, off)
	}
	for ; length > 0; off, length = off+SectorSize, length-SectorSize {
		if err := f.eraseSector(off); err != nil {
			return err
		}
	}
	return nil
}

func (f *Flash) ready(what string, off, length int64) error {
	switch {
	case f.dead:
		return ErrPowerCut
	case f.fault != nil:
		return f.fault
	case off < 0 || length < 0 || off > f.Size() || length > f.Size()-off:
		return fmt.Errorf("norflash: %s of 0x%x bytes at 0x%x is outside the chip's 0x%x", what, length, off, f.Size())
	}
	return nil
}

func (f *Flash) programPiece(off int64, p []byte) error {
	cut, failing := f.begin(Op{OpProgram, off, int64(len(p))})
	if failing {
		f.dead = true
		switch cut.kind {
		case cutBefore:
			return ErrPowerCut
		case cutAfter:
		default:
			var torn [PieceSize]byte
			p = cut.program(torn[:len(p)], p)
		}
	}
	sector := int(off / SectorSize)
	dst := f.writable(sector).bytes[off%SectorSize:][:len(p)]
	and(dst, p)
	if w := f.weak[sector]; w != nil {
		and(w.bits[off%SectorSize:], p) // what is programmed is firm
	}
	if err := f.store(off, dst); err != nil {
		return err
	}
	if failing {
		return ErrPowerCut
	}
	if f.pool != nil && (off+int64(len(p)))%SectorSize == 0 {
		f.handIn(sector)
	}
	return nil
}

// and clears in dst every bit that is 0 in src, eight bytes at a time.
func and(dst, src []byte) {
	i := 0
	for ; i+8 <= len(src); i += 8 {
		binary.LittleEndian.PutUint64(dst[i:], binary.LittleEndian.Uint64(dst[i:])&binary.LittleEndian.Uint64(src[i:]))
	}
	for ; i < len(src); i++ {
		dst[i] &= src[i]
	}
}

func (f *Flash) eraseSector(off int64) error {
	sector := int(off / SectorSize)
	cut, failing := f.begin(Op{OpErase, off, SectorSize})
	if failing {
		f.dead = true
		switch cut.kind {
		case cutBefore:
			return ErrPowerCut
		case cutAfter:
		default:
			p := f.writable(sector)
			cut.erase(&p.bytes)
			if err := f.store(off, p.bytes[:]); err != nil {
				return err
			}
			return ErrPowerCut
		}
	}
	delete(f.weak, sector)
	f.pages[sector] = nil
	f.owned[sector/64] &^= 1 << (sector % 64)
	if err := f.store(off, erasedPage.bytes[:]); err != nil {
		return err
	}
	if failing {
		return ErrPowerCut
	}
	return nil
}

// begin counts an operation and says whether the power fails in it, and how.
func (f *Flash) begin(op Op) (Cut, bool) {
	f.ops++
	if f.onOp != nil {
		f.onOp(op)
	}
	f.pacer.take(op)
	if f.cutIn == 0 {
		return Cut{}, false
	}
	f.cutIn--
	return f.cut, f.cutIn == 0
}

func (f *Flash) view(sector int) *page {
	if p := f.pages[sector]; p != nil {
		return p
	}
	return erasedPage
}

// writable makes the sector's page this flash's own.
func (f *Flash) writable(sector int) *page {
	if f.owns(sector) {
		f.pages[sector].sum.Store(nil)
		return f.pages[sector]
	}
	p := &page{bytes: f.view(sector).bytes}
	f.pages[sector] = p
	f.own(sector)
	return p
}

func (f *Flash) owns(sector int) bool { return f.owned[sector/64]&(1<<(sector%64)) != 0 }

func (f *Flash) own(sector int) { f.owned[sector/64] |= 1 << (sector % 64) }
