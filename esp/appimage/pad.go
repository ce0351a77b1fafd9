package appimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// securePage is what a bootloader maps at once, in bytes.
const securePage = 64 << 10

// SecurePad returns image with one more segment, of zeros and for no address, that makes its length a multiple of 64 KiB,
// as elf2image's --secure-pad-v2 does: a bootloader that maps the image in pages then maps nothing behind it that its
// signature does not cover. An image of such a length is returned as it is. Nothing may follow the image, and a digest must
// be appended to it. image is not changed; what is returned has passed [Verify].
func SecurePad(image []byte) ([]byte, error) {
	img, err := Parse(image)
	switch {
	case err != nil:
		return nil, fmt.Errorf("secure padding: %w", err)
	case img.Length != int64(len(image)):
		return nil, errors.New("secure padding: something follows the image: it is padded before it is signed")
	case !img.HashAppended:
		return nil, errors.New("secure padding: the image carries no SHA-256 of its own")
	case img.Length%securePage == 0:
		return bytes.Clone(image), nil
	case len(img.Segments) == MaxSegments:
		return nil, fmt.Errorf("secure padding: the image has %d segments, and no more are allowed", MaxSegments)
	}
	last := img.Segments[len(img.Segments)-1]
	at := last.Offset + last.Length // of the new segment's header
	const tail = 16 + HashSize      // checksum in its line of 16, digest
	pad := (2*securePage - (at+SegmentHeaderSize)%securePage - tail) % securePage
	out := append(make([]byte, 0, at+SegmentHeaderSize+pad+tail), image[:at]...)
	out[1]++
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint32(out, uint32(pad))
	out = append(out, make([]byte, pad+15)...)
	out = append(out, img.Checksum) // zeros change nothing
	sum := sha256.Sum256(out)
	out = append(out, sum[:]...)
	if len(out) > MaxPartitionSize {
		return nil, fmt.Errorf("secure padding: the image would have %d bytes, no partition has more than %d", len(out), MaxPartitionSize)
	}
	_, err = Verify(bytes.NewReader(out), Target{Chip: img.Header.Chip, Revision: img.Header.MinRevision, PartitionSize: int64(len(out))})
	if err != nil || len(out)%securePage != 0 {
		return nil, fmt.Errorf("secure padding: own output of %d bytes: %w", len(out), err)
	}
	return out, nil
}
