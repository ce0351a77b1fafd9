package appimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// BuildOptions says what [Build] shall make. The zero value of a field is its
// default; a zero Chip is an ESP32.
type BuildOptions struct {
	Chip          ChipID
	Project       string // at most 31 bytes
	Version       string // at most 31 bytes
	SecureVersion uint32
	// Size is the exact length of the file in bytes: a multiple of 16, at most
	// [MaxPartitionSize]. 0 stands for the smallest.
	Size   int64
	Trial  Behaviour // what a virtual board does with it; empty is [BehaviourOK]
	Extra  []byte    // stands behind the marker of Trial, in the first segment
	NoHash bool      // no SHA-256 after the checksum

	Time        string // "HH:MM:SS", default "00:00:00"
	Date        string // C's __DATE__, default "Jan  1 2026"
	IDFVersion  string // default "v5.5"
	MinRevision uint16 // chip revision, major*100 + minor
	MaxRevision uint16 // 0: not set
}

// maxExtra bounds what stands behind the marker, in bytes: it has to fit the first of two segments.
const maxExtra = 4 << 10

// minFirstSegment is the least data an image of ours has: description and marker.
const minFirstSegment = DescSize + trialSize

// Build makes an image that the loader of opt.Chip accepts in every partition
// aligned to 64 KiB. The same options give the same bytes; the data is
// incompressible and differs from one version to the next. Files of 128 KiB and
// more have two flash-mapped segments, smaller ones have one. What Build
// returns has passed [Verify].
func Build(opt BuildOptions) ([]byte, error) {
	chip, ok := opt.Chip.info()
	if !ok {
		return nil, fmt.Errorf("build image: %s is not a known chip", opt.Chip)
	}
	trial := opt.Trial
	if trial == "" {
		trial = BehaviourOK
	}
	if _, err := ParseBehaviour(string(trial)); err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	if len(opt.Project) > 31 || len(opt.Version) > 31 {
		return nil, fmt.Errorf("build image: project %q and version %q must have at most 31 bytes each", opt.Project, opt.Version)
	}
	hashed, err := hashedLength(opt)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	if len(opt.Extra) > maxExtra || len(opt.Extra)%4 != 0 {
		return nil, fmt.Errorf("build image: %d bytes beside the description, must be a multiple of 4 up to %d", len(opt.Extra), maxExtra)
	}
	seed := filler(opt, trial)
	desc, err := AppendDesc(nil, &Desc{
		SecureVersion:    opt.SecureVersion,
		Version:          opt.Version,
		Project:          opt.Project,
		Time:             orDefault(opt.Time, "00:00:00"),
		Date:             orDefault(opt.Date, "Jan  1 2026"),
		IDFVersion:       orDefault(opt.IDFVersion, "v5.5"),
		ELFSHA256:        sha256.Sum256(seed[:]),
		MaxBlockRevision: 99,
		MMUPageLog2:      16,
	})
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}

	segs := layout(chip, hashed, hashed+opt.tail())
	out := AppendHeader(make([]byte, 0, hashed+HashSize), buildHeader(opt, chip, len(segs)))
	rng := rand.NewChaCha8(seed)
	var xor uint64
	for i, s := range segs {
		out = binary.LittleEndian.AppendUint32(out, s.LoadAddr)
		out = binary.LittleEndian.AppendUint32(out, uint32(s.Length))
		start := len(out)
		if i == 0 {
			out = append(appendTrial(append(out, desc...), trial), opt.Extra...)
		}
		fill := out[len(out) : start+int(s.Length)]
		rng.Read(fill)
		out = out[:start+int(s.Length)]
		xor ^= xorWords(out[start:])
	}
	for int64(len(out)) < hashed-1 {
		out = append(out, 0)
	}
	out = append(out, 0xEF^foldXOR(xor))
	if !opt.NoHash {
		sum := sha256.Sum256(out)
		out = append(out, sum[:]...)
	}

	_, err = Verify(bytes.NewReader(out), Target{Chip: opt.Chip, Revision: opt.MinRevision, PartitionSize: int64(len(out))})
	if err != nil {
		return nil, fmt.Errorf("build image: own output: %w", err)
	}
	return out, nil
}

// tail is how many bytes follow the checksum.
func (opt BuildOptions) tail() int64 {
	if opt.NoHash {
		return 0
	}
	return HashSize
}

// hashedLength returns the length up to and including the checksum byte.
func hashedLength(opt BuildOptions) (int64, error) {
	tail := opt.tail()
	smallest := (int64(DescOffset)+int64(minFirstSegment)+int64(len(opt.Extra))+16)&^15 + tail
	switch {
	case opt.Size == 0:
		return smallest - tail, nil
	case opt.Size < smallest || opt.Size > MaxPartitionSize:
		return 0, fmt.Errorf("size %d is not between %d and %d", opt.Size, smallest, MaxPartitionSize)
	case opt.Size%16 != 0:
		return 0, fmt.Errorf("size %d is not a multiple of 16, the nearest below is %d", opt.Size, opt.Size&^15)
	}
	return opt.Size - tail, nil
}

// layout places the segments of a file of size bytes, of which the first hashed
// end with the checksum, so that every flash address is congruent to its load
// address modulo the MMU page.
func layout(chip chipInfo, hashed, size int64) []Segment {
	end := hashed - 4 // leaves room for the checksum and keeps lengths multiples of 4
	first := Segment{LoadAddr: chip.drom.low + DescOffset, Offset: DescOffset}
	if size < 2*defaultPage {
		first.Length = end - DescOffset
		return []Segment{first}
	}
	split := size / 2 / defaultPage * defaultPage
	first.Length = split + HeaderSize - DescOffset
	second := Segment{LoadAddr: chip.irom.low + uint32(split) + DescOffset, Offset: split + DescOffset}
	second.Length = end - second.Offset
	return []Segment{first, second}
}

func buildHeader(opt BuildOptions, chip chipInfo, segments int) Header {
	h := Header{
		Magic:        headerMagic,
		SegmentCount: byte(segments),
		SPIMode:      2,
		SPISpeed:     0xF,
		SPISize:      2,
		EntryAddr:    chip.iram,
		WPPin:        0xEE,
		Chip:         opt.Chip,
		MinRevision:  opt.MinRevision,
		MaxRevision:  opt.MaxRevision,
		HashAppended: 1,
	}
	if opt.MaxRevision == 0 {
		h.MaxRevision = 65535
	}
	if opt.NoHash {
		h.HashAppended = 0
	}
	return h
}

// filler derives the seed of the image's data from what tells images apart.
// Each text is preceded by its length, so no two sets of options share a seed.
func filler(opt BuildOptions, trial Behaviour) [32]byte {
	var b []byte
	for _, s := range []string{opt.Chip.String(), opt.Project, opt.Version, string(trial)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(binary.LittleEndian.AppendUint32(b, opt.SecureVersion))
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
