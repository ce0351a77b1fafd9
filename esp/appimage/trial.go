package appimage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// Behaviour is what a virtual board does when it runs a built image.
type Behaviour string

// The behaviours. The empty string counts as [BehaviourOK].
const (
	BehaviourOK        Behaviour = "ok"        // runs and passes its self-test
	BehaviourCrash     Behaviour = "crash"     // resets before it can confirm itself
	BehaviourHang      Behaviour = "hang"      // stops until the watchdog resets it
	BehaviourUnhealthy Behaviour = "unhealthy" // runs, but its self-test fails
)

var behaviours = []Behaviour{BehaviourOK, BehaviourCrash, BehaviourHang, BehaviourUnhealthy}

// ParseBehaviour reads a behaviour's name; the error lists the names.
func ParseBehaviour(s string) (Behaviour, error) {
	names := make([]string, len(behaviours))
	for i, b := range behaviours {
		if string(b) == s {
			return b, nil
		}
		names[i] = string(b)
	}
	return "", fmt.Errorf("unknown trial behaviour %q, known are %s", s, strings.Join(names, ", "))
}

// The marker: eight bytes of magic and the behaviour's name padded with NUL,
// right after the description. Readable with strings(1), and no compiler
// would put these bytes there by chance.
const (
	trialMagic    = "\xB3trial\r\n"
	trialOffset   = DescOffset + DescSize
	trialWordSize = 16
	trialSize     = len(trialMagic) + trialWordSize
)

func appendTrial(dst []byte, b Behaviour) []byte {
	var m [trialSize]byte
	copy(m[:], trialMagic)
	copy(m[len(trialMagic):], b)
	return append(dst, m[:]...)
}

// TrialBehaviour reads the marker that [Build] put into img, which stands at
// the start of r. Real firmware has none, and then, as with a marker that
// cannot be read or names nothing known, the answer is [BehaviourOK].
func TrialBehaviour(r io.ReaderAt, img *Image) Behaviour {
	if img == nil || len(img.Segments) == 0 || img.Segments[0].Length < int64(DescSize+trialSize) {
		return BehaviourOK
	}
	var m [trialSize]byte
	if n, _ := r.ReadAt(m[:], trialOffset); n < trialSize || string(m[:len(trialMagic)]) != trialMagic {
		return BehaviourOK
	}
	b, err := ParseBehaviour(text(m[len(trialMagic):]))
	if err != nil {
		return BehaviourOK
	}
	return b
}

const (
	sectorSize         = 4096 // bytes: flash sector, and the signature's alignment and size
	signatureBlockSize = 1216
)

func alignSector(n int64) int64 { return (n + sectorSize - 1) &^ (sectorSize - 1) }

// FileLength returns the length in bytes of the file that img was published
// as, from flash alone: img.Length, or the end of the signature sector when a
// structurally sound Secure Boot v2 block (magic 0xE7, right CRC-32) stands
// behind the image at the next sector boundary and its sector ends within size
// bytes of r. Padding that has no signature after it cannot be told from what
// was in flash before and is not counted.
func FileLength(r io.ReaderAt, size int64, img *Image) int64 {
	sector := alignSector(img.Length)
	if sector+sectorSize > size {
		return img.Length
	}
	var block [signatureBlockSize]byte
	if n, _ := r.ReadAt(block[:], sector); n < signatureBlockSize {
		return img.Length
	}
	const crcOffset = 1196
	if block[0] != 0xE7 || crc32.ChecksumIEEE(block[:crcOffset]) != binary.LittleEndian.Uint32(block[crcOffset:]) {
		return img.Length
	}
	return sector + sectorSize
}
