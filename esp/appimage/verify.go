package appimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// The codes a [VerifyError] carries: esp_err_t values as ESP-IDF prints them.
const (
	CodeFail         uint32 = 0xFFFFFFFF // ESP_FAIL: wrong chip, revision, or no description
	CodeInvalidArg   uint32 = 0x102      // ESP_ERR_INVALID_ARG
	CodeImageInvalid uint32 = 0x2002     // ESP_ERR_IMAGE_INVALID
)

// chunkSize is how much of an image is in memory at a time, in bytes. It fits
// the first-level cache twice, so that hash and checksum read flash once.
const chunkSize = 16 << 10

// defaultPage is the MMU page size of every chip unless its build says otherwise.
const defaultPage = 64 << 10

// VerifyError is a refusal with ESP-IDF's verdict.
type VerifyError struct {
	Code   uint32 // esp_err_t: [CodeFail], [CodeInvalidArg] or [CodeImageInvalid]
	Offset int64  // bytes from the start of the image to what was refused
	Field  string // what was refused
	Reason string
	Err    error // the read error behind it, or nil
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("%s at 0x%x: %s (esp_err 0x%x)", e.Field, e.Offset, e.Reason, e.Code)
}

// Unwrap returns the read error behind the refusal, or nil.
func (e *VerifyError) Unwrap() error { return e.Err }

// Segment is one piece of an image.
type Segment struct {
	LoadAddr uint32
	Offset   int64 // of the data, in bytes from the start of the image
	Length   int64 // of the data, in bytes
}

// Image is a verified image.
type Image struct {
	Header       Header
	Segments     []Segment
	Desc         *Desc // nil when its magic is not at [DescOffset]
	Checksum     byte  // XOR of all segment data, seeded with 0xEF
	HashAppended bool
	// Hash is the SHA-256 of the image up to and including the checksum byte.
	// When HashAppended it is also what the file carries. In both cases it is
	// what esp_partition_get_sha256 returns for the partition.
	Hash [HashSize]byte
	// Length is image_len of esp_image_get_metadata in bytes: everything up to
	// the appended hash, no padding and no signature after it.
	Length int64
}

// Target is the board an image has to suit.
type Target struct {
	Chip               ChipID
	Revision           uint16 // of the chip, from eFuse: major*100 + minor
	IgnoreMaxRevision  bool   // eFuse DISABLE_WAFER_VERSION_MAJOR
	EfuseBlockRevision uint16 // major*100 + minor
	// IgnoreMaxBlockRevision is eFuse DISABLE_BLK_VERSION_MAJOR.
	IgnoreMaxBlockRevision bool
	PartitionSize          int64 // bytes; more than [MaxPartitionSize] is refused, and 0 holds nothing
	FlashOffset            int64 // of the partition, in bytes
	// SignatureSpace is set for firmware that verifies signed updates: padding
	// and signature sector must fit the partition too. The signature itself is
	// not looked at here.
	SignatureSpace bool
}

// Parse checks the structure, checksum and appended hash of the image at the
// start of b, by the rules of the chip that its header names, for a partition
// aligned to 64 KiB. What depends on one board (revisions, partition size) is
// left to [Verify]. Bytes after the image are allowed. Errors are *FormatError.
func Parse(b []byte) (*Image, error) {
	img, err := load(&source{memory: b}, nil)
	if ve, ok := errors.AsType[*VerifyError](err); ok {
		return nil, &FormatError{Offset: ve.Offset, Field: ve.Field, Reason: ve.Reason}
	}
	return img, err
}

// Verify checks the image at the start of r, which begins with the partition,
// as esp_image_verify does in an application without signature support
// (image_load in ESP-IDF's esp_image_format.c). It keeps 16 KiB of the image in
// memory at a time. Errors are *VerifyError. An r that ends early holds an
// invalid image; any other read error is wrapped.
func Verify(r io.ReaderAt, t Target) (*Image, error) {
	if r == nil {
		return nil, &VerifyError{Code: CodeInvalidArg, Field: "partition", Reason: "none given"}
	}
	return load(&source{r: r, buf: make([]byte, chunkSize)}, &t)
}

// source hands out pieces of an image, from memory or through one fixed buffer.
type source struct {
	memory []byte
	r      io.ReaderAt
	buf    []byte
}

// at returns n bytes from off, valid until the next call; n is at most
// chunkSize. The piece is short when the image ends there, never with an error.
func (s *source) at(off int64, n int) ([]byte, error) {
	if s.r == nil {
		if off >= int64(len(s.memory)) {
			return nil, nil
		}
		b := s.memory[off:]
		return b[:min(n, len(b))], nil
	}
	got, err := s.r.ReadAt(s.buf[:n], off)
	if got == n || errors.Is(err, io.EOF) {
		err = nil
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return s.buf[:got], err
}

// loader is one verification in progress.
type loader struct {
	src    *source
	target *Target // nil: no particular board
	chip   chipInfo
	known  bool  // chip is filled in
	page   int64 // MMU page size in bytes
	sum    hash.Hash
	xor    uint64
	img    *Image
}

// need returns exactly n bytes from off or a refusal that names field.
func (l *loader) need(off int64, n int, field string) ([]byte, error) {
	b, err := l.src.at(off, n)
	if err != nil {
		return nil, &VerifyError{Code: CodeFail, Offset: off, Field: field, Reason: "read: " + err.Error(), Err: err}
	}
	if len(b) < n {
		return nil, invalid(off+int64(len(b)), field, "the image ends here")
	}
	return b, nil
}

func invalid(off int64, field, format string, args ...any) *VerifyError {
	return &VerifyError{Code: CodeImageInvalid, Offset: off, Field: field, Reason: fmt.Sprintf(format, args...)}
}

func unfit(off int64, field, format string, args ...any) *VerifyError {
	return &VerifyError{Code: CodeFail, Offset: off, Field: field, Reason: fmt.Sprintf(format, args...)}
}

// load follows image_load of esp_image_format.c. The order of the checks
// decides which code a doubly wrong image gets, so it is part of the contract.
func load(src *source, t *Target) (*Image, error) {
	l := &loader{src: src, target: t, page: defaultPage, sum: sha256.New(), img: &Image{}}
	if t != nil {
		switch {
		case t.PartitionSize < 0 || t.PartitionSize > MaxPartitionSize:
			return nil, &VerifyError{Code: CodeInvalidArg, Field: "partition size", Reason: fmt.Sprintf("%d bytes, at most %d", t.PartitionSize, MaxPartitionSize)}
		case t.FlashOffset < 0 || t.FlashOffset >= 1<<32:
			return nil, &VerifyError{Code: CodeInvalidArg, Field: "partition offset", Reason: fmt.Sprintf("0x%x is not a flash address", t.FlashOffset)}
		}
	}
	if err := l.header(); err != nil {
		return nil, err
	}
	end, err := l.segments()
	if err != nil {
		return nil, err
	}
	if err := l.trailer(end); err != nil {
		return nil, err
	}
	return l.img, nil
}

func (l *loader) header() error {
	b, err := l.need(0, HeaderSize, "header")
	if err != nil {
		return err
	}
	l.sum.Write(b)
	h := decodeHeader(b)
	l.img.Header, l.img.HashAppended = h, h.HashAppended != 0
	if h.Magic != headerMagic {
		return invalid(0, "magic", "0x%02x, an image starts with 0x%02x", h.Magic, headerMagic)
	}
	l.chip, l.known = h.Chip.info()
	if t := l.target; t != nil {
		if h.Chip != t.Chip {
			return unfit(12, "chip", "the image is for %s, the board is %s", h.Chip, t.Chip)
		}
		if t.Revision < h.MinRevision {
			return unfit(15, "minimal chip revision", "the image needs %s, the board has %s", revision(h.MinRevision), revision(t.Revision))
		}
		if limitSet(h.MaxRevision) && t.Revision > h.MaxRevision && !t.IgnoreMaxRevision {
			return unfit(17, "maximal chip revision", "the image allows %s, the board has %s", revision(h.MaxRevision), revision(t.Revision))
		}
	}
	if h.SegmentCount > MaxSegments {
		return invalid(1, "segment count", "%d, at most %d", h.SegmentCount, MaxSegments)
	}
	return nil
}

// segments checks, hashes and sums every segment; it returns where the last ends.
func (l *loader) segments() (int64, error) {
	pos := int64(HeaderSize)
	count := int(l.img.Header.SegmentCount)
	l.img.Segments = make([]Segment, 0, count)
	for i := range count {
		b, err := l.need(pos, SegmentHeaderSize, fmt.Sprintf("header of segment %d", i))
		if err != nil {
			return 0, err
		}
		l.sum.Write(b)
		seg := Segment{
			LoadAddr: binary.LittleEndian.Uint32(b),
			Length:   int64(binary.LittleEndian.Uint32(b[4:])),
			Offset:   pos + SegmentHeaderSize,
		}
		if err := l.segmentHeader(i, seg); err != nil {
			return 0, err
		}
		// ESP-IDF finds out that an image is larger than its partition after
		// reading all of it; every check in between has the same verdict, so
		// there is no need to read the neighbour.
		if t := l.target; t != nil && seg.Offset+seg.Length > t.PartitionSize {
			return 0, invalid(pos, fmt.Sprintf("segment %d", i), "ends at 0x%x, beyond the partition of 0x%x bytes", seg.Offset+seg.Length, t.PartitionSize)
		}
		if err := l.segmentData(i, seg); err != nil {
			return 0, err
		}
		l.img.Segments = append(l.img.Segments, seg)
		pos = seg.Offset + seg.Length
	}
	if l.flashAddress(pos) >= 1<<32 {
		return 0, invalid(pos, "image", "wraps around the end of the flash addresses")
	}
	return pos, nil
}

// flashAddress is the absolute flash address of off.
func (l *loader) flashAddress(off int64) int64 {
	if l.target == nil {
		return off
	}
	return l.target.FlashOffset + off
}

func (l *loader) segmentHeader(i int, seg Segment) error {
	at, name := seg.Offset-SegmentHeaderSize, fmt.Sprintf("segment %d", i)
	if seg.Length%4 != 0 {
		return invalid(at+4, name, "length 0x%x is not a multiple of 4", seg.Length)
	}
	if seg.Length >= maxSegmentLength {
		return invalid(at+4, name, "length 0x%x, must be below 0x%x", seg.Length, maxSegmentLength)
	}
	// The loader reads the description where the first segment's data starts,
	// however short that segment is; flash after a short file is erased.
	var desc [DescSize]byte
	if i == 0 {
		b, err := l.src.at(seg.Offset, DescSize)
		if err != nil {
			return &VerifyError{Code: CodeFail, Offset: seg.Offset, Field: "description", Reason: "read: " + err.Error(), Err: err}
		}
		for j := copy(desc[:], b); j < DescSize; j++ {
			desc[j] = 0xFF
		}
		if d, err := ParseDesc(b); err == nil {
			l.img.Desc = d
		}
		if l.known && l.chip.pageConfigurable {
			if binary.LittleEndian.Uint32(desc[:]) != descMagic {
				return unfit(seg.Offset, "description magic", "0x%x, %s needs an application description", desc[:4], l.chip.name)
			}
			if log2 := desc[180]; log2 > 31 {
				return invalid(seg.Offset+180, "mmu page size", "2^%d bytes", log2)
			} else if log2 > 0 {
				l.page = 1 << log2
			}
		}
	}
	if l.known && l.chip.mapped(seg.LoadAddr, l.page) && l.flashAddress(seg.Offset)%l.page != int64(seg.LoadAddr)%l.page {
		return invalid(at, name, "load address 0x%08x does not match flash address 0x%x modulo 0x%x", seg.LoadAddr, l.flashAddress(seg.Offset), l.page)
	}
	if i == 0 && l.target != nil {
		return l.blockRevision(seg.Offset, desc[:])
	}
	return nil
}

// blockRevision compares the eFuse block revision limits. ESP-IDF reads them
// without looking at the description's magic first, except on the ESP32, where
// it does not read them at all.
func (l *loader) blockRevision(off int64, desc []byte) error {
	t := l.target
	if t.Chip == ESP32 {
		return nil
	}
	lowest, highest := binary.LittleEndian.Uint16(desc[176:]), binary.LittleEndian.Uint16(desc[178:])
	if limitSet(lowest) && t.EfuseBlockRevision < lowest {
		return unfit(off+176, "minimal efuse block revision", "the image needs %s, the board has %s", revision(lowest), revision(t.EfuseBlockRevision))
	}
	if limitSet(highest) && t.EfuseBlockRevision > highest && !t.IgnoreMaxBlockRevision {
		return unfit(off+178, "maximal efuse block revision", "the image allows %s, the board has %s", revision(highest), revision(t.EfuseBlockRevision))
	}
	return nil
}

func (l *loader) segmentData(i int, seg Segment) error {
	for done := int64(0); done < seg.Length; {
		n := min(seg.Length-done, chunkSize)
		b, err := l.src.at(seg.Offset+done, int(n))
		if err == nil && int64(len(b)) < n {
			return invalid(seg.Offset+done+int64(len(b)), fmt.Sprintf("segment %d", i), "the image ends here, %d bytes of data are missing", seg.Length-done-int64(len(b)))
		}
		if err != nil {
			return &VerifyError{Code: CodeFail, Offset: seg.Offset + done, Field: fmt.Sprintf("segment %d", i), Reason: "read: " + err.Error(), Err: err}
		}
		l.xor ^= xorWords(b)
		l.sum.Write(b)
		done += n
	}
	return nil
}

// trailer checks what follows the segments: padding, checksum byte, hash, fit.
func (l *loader) trailer(end int64) error {
	// One byte for the checksum, then up to the next multiple of 16; the
	// checksum is the last byte of that block.
	hashed := (end + 1 + 15) &^ 15
	b, err := l.need(end, int(hashed-end), "checksum")
	if err != nil {
		return err
	}
	l.img.Checksum = 0xEF ^ foldXOR(l.xor)
	if got := b[len(b)-1]; got != l.img.Checksum {
		return invalid(hashed-1, "checksum", "0x%02x, the data sums to 0x%02x", got, l.img.Checksum)
	}
	l.sum.Write(b)
	l.sum.Sum(l.img.Hash[:0])
	l.img.Length = hashed
	var stored []byte
	if l.img.HashAppended {
		if stored, err = l.need(hashed, HashSize, "appended hash"); err != nil {
			return err
		}
		l.img.Length += HashSize
	}
	if t := l.target; t != nil {
		space, with := l.img.Length, ""
		if t.SignatureSpace {
			space, with = alignSector(space)+sectorSize, " with its signature sector"
		}
		if space > t.PartitionSize {
			return invalid(0, "image", "%d bytes%s, the partition has %d", space, with, t.PartitionSize)
		}
	}
	if l.img.HashAppended && !bytes.Equal(stored, l.img.Hash[:]) {
		return invalid(hashed, "appended hash", "%x, the image hashes to %x", stored, l.img.Hash)
	}
	return nil
}

// limitSet reports whether a revision limit of a header or description counts
// (IS_FIELD_SET in ESP-IDF's bootloader_common_loader.c and hal/efuse_hal.h).
func limitSet(rev uint16) bool { return rev != 0 && rev != 65535 }

func revision(rev uint16) string { return fmt.Sprintf("v%d.%d", rev/100, rev%100) }

// xorWords XORs the bytes of b, eight at a time, into one word whose bytes have
// yet to be folded. Byte by byte the checksum would cost a multiple of the
// SHA-256 of the same data.
func xorWords(b []byte) uint64 {
	var w0, w1, w2, w3 uint64
	for len(b) >= 32 {
		c := b[:32:32]
		w0 ^= binary.LittleEndian.Uint64(c[0:8])
		w1 ^= binary.LittleEndian.Uint64(c[8:16])
		w2 ^= binary.LittleEndian.Uint64(c[16:24])
		w3 ^= binary.LittleEndian.Uint64(c[24:32])
		b = b[32:]
	}
	w0 ^= w1 ^ w2 ^ w3
	for _, c := range b {
		w0 ^= uint64(c)
	}
	return w0
}

func foldXOR(w uint64) byte {
	w ^= w >> 32
	w ^= w >> 16
	w ^= w >> 8
	return byte(w)
}
