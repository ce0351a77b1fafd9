package manifest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"bmsota/esp/appimage"
)

// A set of trusted keys can stand in an image: firmware that carries one trusts it instead of what its settings say. So
// a release that the old keys signed brings the new ones along, and whichever image boots, after whatever power cut, has
// the keys that belong to it. The place is ESP-IDF's for an application's own description, .rodata_custom_desc, right
// behind esp_app_desc_t; what a test image tells a virtual board stands in the first 24 bytes of it.
//
//	 0  magic[8]   "bmstrust"
//	 8  format     1
//	 9  count      of keys, 0 to 4; 0 is room for a set and no set
//	10  threshold  how many of them have to sign, 1 to count
//	11  zero
//	12  sequence   LE32, from 1; a later set has a higher one
//	16  keys[4]    64 bytes each: X, Y, big-endian; zeros where there is none
//
// It has no checksum of its own: it is part of what the image's digest covers.
const (
	// BuiltinOffset is where the block stands in an image, BuiltinSize how long it is, in bytes.
	BuiltinOffset = appimage.DescOffset + appimage.DescSize + 24
	BuiltinSize   = builtinKeys + MaxBuiltin*pointSize
	// MaxBuiltin is the most keys that a block has room for.
	MaxBuiltin = 4

	builtinMagic = "bmstrust"
	builtinKeys  = 16
	pointSize    = 64
)

// Builtin reads the set in the image img, which stands at the start of r. An image without a block and one whose block is
// empty carry no set: the zero Trust. A block that is not as it has to be is an error, because firmware that was given
// keys and cannot read them must not go on as one that was given none.
func Builtin(r io.ReaderAt, img *appimage.Image) (Trust, error) {
	var b [BuiltinSize]byte
	if len(img.Segments) == 0 || img.Segments[0].Offset+img.Segments[0].Length < BuiltinOffset+BuiltinSize {
		return Trust{}, nil
	}
	if n, err := r.ReadAt(b[:], BuiltinOffset); n < len(b) {
		return Trust{}, fmt.Errorf("read the image's keys: %w", err)
	}
	if string(b[:8]) != builtinMagic {
		return Trust{}, nil
	}
	return parseBuiltin(b)
}

func parseBuiltin(b [BuiltinSize]byte) (Trust, error) {
	t := Trust{Sequence: binary.LittleEndian.Uint32(b[12:]), Threshold: int(b[10])}
	count := int(b[9])
	switch {
	case b[8] != 1:
		return Trust{}, fmt.Errorf("the image's keys: format %d is not known", b[8])
	case count > MaxBuiltin || b[11] != 0:
		return Trust{}, errors.New("the image's keys: too many, or not as they have to be")
	case len(bytes.TrimRight(b[builtinKeys+count*pointSize:], "\x00")) > 0:
		return Trust{}, errors.New("the image's keys: there is something behind the last one")
	case count == 0 && t.Sequence == 0 && t.Threshold == 0:
		return Trust{}, nil
	case count == 0 || t.Sequence == 0 || t.Threshold == 0:
		return Trust{}, errors.New("the image's keys: an empty set, or one without sequence or threshold")
	}
	for i := range count {
		point := b[builtinKeys+i*pointSize:][:pointSize]
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, point...))
		if err != nil {
			return Trust{}, fmt.Errorf("the image's keys: key %d is not on P-256", i)
		}
		t.Keys = append(t.Keys, key)
	}
	if len(distinct(t.Keys)) != count {
		return Trust{}, errors.New("the image's keys: one stands twice")
	}
	return t, t.Check()
}

// WithBuiltin returns image with the set t in its block, and with checksum and digest made anew. The image must have
// the block, with an older set or an empty one, and must not be signed yet: a signature covers the block. image is not
// changed.
func WithBuiltin(image []byte, t Trust) ([]byte, error) {
	img, err := appimage.Parse(image)
	if err != nil {
		return nil, err
	}
	old, err := Builtin(bytes.NewReader(image), img)
	switch {
	case err != nil:
		return nil, err
	case img.Segments[0].Offset+img.Segments[0].Length < BuiltinOffset+BuiltinSize || string(image[BuiltinOffset:][:8]) != builtinMagic:
		return nil, errors.New("the image has no room for keys: the component ota_manager reserves it")
	case img.Length != int64(len(image)):
		return nil, errors.New("something follows the image: keys are put in before it is padded or signed")
	case t.Sequence <= old.Sequence:
		return nil, fmt.Errorf("the image carries set %d, a later one has a higher number than %d", old.Sequence, t.Sequence)
	}
	block, err := appendBuiltin(nil, t)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(image)
	end := len(out)
	if img.HashAppended {
		end -= appimage.HashSize
	}
	for i, c := range block {
		out[end-1] ^= out[BuiltinOffset+i] ^ c // the checksum is an XOR of all data
	}
	copy(out[BuiltinOffset:], block)
	if img.HashAppended {
		sum := sha256.Sum256(out[:end])
		copy(out[end:], sum[:])
	}
	if img, err = appimage.Parse(out); err != nil {
		return nil, fmt.Errorf("image with keys: %w", err)
	}
	if _, err := Builtin(bytes.NewReader(out), img); err != nil {
		return nil, err
	}
	return out, nil
}

func appendBuiltin(dst []byte, t Trust) ([]byte, error) {
	var b [BuiltinSize]byte
	if len(t.Keys) == 0 || len(t.Keys) > MaxBuiltin {
		return nil, fmt.Errorf("%d keys, an image carries 1 to %d", len(t.Keys), MaxBuiltin)
	}
	copy(b[:], builtinMagic)
	b[8], b[9], b[10] = 1, byte(len(t.Keys)), byte(max(t.Threshold, 1))
	binary.LittleEndian.PutUint32(b[12:], t.Sequence)
	for i, key := range t.Keys {
		point, err := key.Bytes() // 04, X, Y
		if err != nil || len(point) != 1+pointSize {
			return nil, errors.New("a trusted key is not ECDSA P-256")
		}
		copy(b[builtinKeys+i*pointSize:], point[1:])
	}
	if _, err := parseBuiltin(b); err != nil {
		return nil, err
	}
	return append(dst, b[:]...), nil
}

// AppendRoom appends an empty block, as the component reserves it.
func AppendRoom(dst []byte) []byte {
	var b [BuiltinSize]byte
	copy(b[:], builtinMagic)
	b[8] = 1
	return append(dst, b[:]...)
}

// Equal says whether two sets trust the same keys in the same way, whatever their order.
func (t Trust) Equal(o Trust) bool {
	if t.Sequence != o.Sequence || max(t.Threshold, 1) != max(o.Threshold, 1) || len(t.Keys) != len(o.Keys) {
		return false
	}
	return len(distinct(append(append([]*ecdsa.PublicKey(nil), t.Keys...), o.Keys...))) == len(t.Keys)
}
