package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"slices"
)

// Sizes of the format, in bytes.
const (
	SectorSize = 4096 // the signature sector and what it is aligned to
	BlockSize  = 1216 // ets_secure_boot_sig_block_t
	MaxBlocks  = 3    // in one sector
)

// Scheme is how a block is signed.
type Scheme string

// The schemes.
const (
	RSA3072   Scheme = "rsa3072"
	ECDSAP256 Scheme = "ecdsa-p256"
	ECDSAP192 Scheme = "ecdsa-p192" // recognised only
	ECDSAP384 Scheme = "ecdsa-p384"
)

const (
	blockMagic   = 0xE7
	versionRSA   = 2
	versionECDSA = 3
	crcOffset    = 1196 // CRC-32 of all bytes before it, then 16 zeros
)

// Offsets of an RSA block: n and R² mod n and the signature are little-endian
// numbers of 384 bytes.
//
//	0 magic  1 version 2  2 zero[2]  4 sha256[32]  36 n  420 e  424 rinv  808 m'  812 signature
const (
	rsaBytes     = 384
	rsaKey       = 36
	rsaExponent  = 420
	rsaRInv      = 424
	rsaMPrime    = 808
	rsaSignature = 812
)

// curveInfo places the fields of an ECDSA block: coordinates and r, s are
// little-endian numbers of size bytes, each pair contiguous.
//
//	0 magic  1 version 3  2 sha type  3 zero  4 digest  key: curve id, point  signature: r, s
type curveInfo struct {
	scheme    Scheme
	id        byte
	shaType   byte // 0 SHA-256, 1 SHA-384
	hash      crypto.Hash
	size      int // of a coordinate, in bytes
	key       int // offset of the curve id; the digest of the key starts here
	keyLen    int // and is this long
	signature int
	curve     elliptic.Curve // nil: not in the standard library
}

var curves = []curveInfo{
	{ECDSAP192, 1, 0, crypto.SHA256, 24, 36, 65, 101, nil},
	{ECDSAP256, 2, 0, crypto.SHA256, 32, 36, 65, 101, elliptic.P256()},
	{ECDSAP384, 3, 1, crypto.SHA384, 48, 52, 97, 149, elliptic.P384()},
}

// Block is one structurally sound signature block: magic, version, curve and
// CRC are right. Whether the signature is, is another question.
type Block struct {
	Index  int // position in the sector, 0 to 2
	Scheme Scheme
	// Digest is the digest of the content as the block states it: SHA-256, or
	// SHA-384 for P-384.
	Digest []byte
	// KeyDigest is the SHA-256 over the block's key fields, which eFuse holds
	// and [KeyDigest] computes. The ESP32-C2 compares its first 16 bytes only.
	KeyDigest [32]byte
	// PublicKey is an *rsa.PublicKey or *ecdsa.PublicKey, or nil when the block
	// holds no key that can verify: P-192, a point off its curve, an RSA modulus
	// that is not 3072 bits, or Montgomery constants that do not belong to it
	// (the accelerator computes with them, so such a block fails on a chip too).
	PublicKey crypto.PublicKey
	// Signature is big-endian: PSS output, or r and s of equal length.
	Signature []byte

	raw [BlockSize]byte
}

// FormatError says what is wrong with bytes that should have been a signature sector.
type FormatError struct {
	Offset int64 // in bytes from the start of what was parsed
	Field  string
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s at 0x%x: %s", e.Field, e.Offset, e.Reason)
}

// Parse returns the structurally sound blocks of a 4096-byte signature sector.
// An erased block (0xFF) ends the list, a broken one is left out. No block at
// all is not an error: the bytes are then something else.
func Parse(sector []byte) ([]Block, error) {
	if len(sector) != SectorSize {
		return nil, &FormatError{Field: "signature sector", Reason: fmt.Sprintf("%d bytes, must have %d", len(sector), SectorSize)}
	}
	var blocks []Block
	for i := range MaxBlocks {
		raw := sector[i*BlockSize : (i+1)*BlockSize]
		if erased(raw) {
			break
		}
		if b, ok := parseBlock(raw, i); ok {
			blocks = append(blocks, b)
		}
	}
	return blocks, nil
}

// Blocks returns the signature blocks of a file of fileSize bytes, from its
// last 4096 bytes. A file that is not signed has none, and that is not an error.
func Blocks(r io.ReaderAt, fileSize int64) ([]Block, error) {
	if fileSize < SectorSize || fileSize%SectorSize != 0 {
		return nil, nil
	}
	var sector [SectorSize]byte
	if err := readFull(r, sector[:], fileSize-SectorSize); err != nil {
		return nil, fmt.Errorf("read signature sector: %w", err)
	}
	return Parse(sector[:])
}

func erased(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0xFF })
}

// readFull reads len(p) bytes from off; less than that is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%d of %d bytes at 0x%x: %w", n, len(p), off, io.ErrUnexpectedEOF)
	}
	return err
}

// parseBlock decodes the BlockSize bytes of raw.
func parseBlock(raw []byte, index int) (Block, bool) {
	if raw[0] != blockMagic || crc32.ChecksumIEEE(raw[:crcOffset]) != binary.LittleEndian.Uint32(raw[crcOffset:]) {
		return Block{}, false
	}
	b := Block{Index: index, raw: [BlockSize]byte(raw)}
	switch raw[1] {
	case versionRSA:
		b.Scheme = RSA3072
		b.Digest = bytes.Clone(raw[4:36])
		b.KeyDigest = sha256.Sum256(raw[rsaKey:rsaSignature])
		b.Signature = reversed(raw[rsaSignature : rsaSignature+rsaBytes])
		if pub := blockRSAKey(raw); pub != nil {
			b.PublicKey = pub
		}
		return b, true
	case versionECDSA:
		for _, c := range curves {
			if raw[2] != c.shaType || raw[c.key] != c.id {
				continue
			}
			b.Scheme = c.scheme
			b.Digest = bytes.Clone(raw[4 : 4+c.hash.Size()])
			b.KeyDigest = sha256.Sum256(raw[c.key : c.key+c.keyLen])
			b.Signature = reversedPair(raw[c.signature:], c.size)
			if c.curve != nil {
				point := append([]byte{4}, reversedPair(raw[c.key+1:], c.size)...)
				if pub, err := ecdsa.ParseUncompressedPublicKey(c.curve, point); err == nil {
					b.PublicKey = pub
				}
			}
			return b, true
		}
	}
	return Block{}, false
}

// blockRSAKey returns the key of an RSA block, nil when it cannot verify.
func blockRSAKey(raw []byte) *rsa.PublicKey {
	e := binary.LittleEndian.Uint32(raw[rsaExponent:])
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(reversed(raw[rsaKey : rsaKey+rsaBytes])), E: int(e & (1<<31 - 1))}
	want, err := rsaKeyFields(pub)
	if err != nil || !bytes.Equal(want, raw[rsaKey:rsaSignature]) {
		return nil
	}
	return pub
}

// rsaKeyFields encodes n, e, R² mod n and m' (776 bytes) with R = 2^3072 and
// m' = -1/n mod 2^32, what the RSA accelerator of the chips computes with.
func rsaKeyFields(pub *rsa.PublicKey) ([]byte, error) {
	if pub.N == nil || pub.N.BitLen() != 8*rsaBytes {
		bits := 0
		if pub.N != nil {
			bits = pub.N.BitLen()
		}
		return nil, fmt.Errorf("an RSA key of %d bits, must have %d", bits, 8*rsaBytes)
	}
	if pub.N.Bit(0) == 0 || pub.E < 3 || pub.E > 1<<31-1 || pub.E%2 == 0 {
		return nil, errors.New("an RSA key whose modulus or exponent is even or out of range")
	}
	word := new(big.Int).Lsh(big.NewInt(1), 32)
	mPrime := new(big.Int).ModInverse(pub.N, word)
	mPrime.Sub(word, mPrime)
	r2 := new(big.Int).Lsh(big.NewInt(1), 2*8*rsaBytes)
	r2.Mod(r2, pub.N)

	fields := appendLE(nil, pub.N.FillBytes(make([]byte, rsaBytes)))
	fields = binary.LittleEndian.AppendUint32(fields, uint32(pub.E))
	fields = appendLE(fields, r2.FillBytes(make([]byte, rsaBytes)))
	return binary.LittleEndian.AppendUint32(fields, uint32(mPrime.Uint64())), nil
}

// ecdsaKeyFields encodes curve id and point, zero-padded to the field's length.
func ecdsaKeyFields(pub *ecdsa.PublicKey) (curveInfo, []byte, error) {
	i := slices.IndexFunc(curves, func(c curveInfo) bool { return c.curve != nil && c.curve == pub.Curve })
	if i < 0 {
		name := "unknown"
		if pub.Curve != nil {
			name = pub.Curve.Params().Name
		}
		return curveInfo{}, nil, fmt.Errorf("an ECDSA key on curve %s, must be P-256 or P-384", name)
	}
	c := curves[i]
	point, err := pub.Bytes()
	if err != nil {
		return curveInfo{}, nil, fmt.Errorf("an ECDSA key: %w", err)
	}
	fields := append([]byte{c.id}, reversedPair(point[1:], c.size)...)
	return c, append(fields, make([]byte, c.keyLen-len(fields))...), nil
}

// KeyDigest returns the SHA-256 of pub as a signature block holds it, the value
// that espsecure's digest_sbv2_public_key prints and eFuse stores. Only RSA-3072,
// P-256 and P-384 keys have one.
func KeyDigest(pub crypto.PublicKey) ([32]byte, error) {
	var fields []byte
	var err error
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		fields, err = rsaKeyFields(pub)
	case *ecdsa.PublicKey:
		_, fields, err = ecdsaKeyFields(pub)
	default:
		err = fmt.Errorf("a key of type %T, must be RSA or ECDSA", pub)
	}
	if err != nil {
		return [32]byte{}, fmt.Errorf("key digest: %w", err)
	}
	return sha256.Sum256(fields), nil
}

// encodeBlock makes the block of a signature over digest; signature is
// big-endian as in [Block].
func encodeBlock(pub crypto.PublicKey, digest, signature []byte) ([BlockSize]byte, error) {
	var raw [BlockSize]byte
	raw[0] = blockMagic
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		fields, err := rsaKeyFields(pub)
		if err != nil {
			return raw, err
		}
		raw[1] = versionRSA
		copy(raw[4:36], digest)
		copy(raw[rsaKey:], fields)
		copy(raw[rsaSignature:], reversed(signature))
	case *ecdsa.PublicKey:
		c, fields, err := ecdsaKeyFields(pub)
		if err != nil {
			return raw, err
		}
		raw[1], raw[2] = versionECDSA, c.shaType
		copy(raw[4:4+c.hash.Size()], digest)
		copy(raw[c.key:], fields)
		copy(raw[c.signature:], reversedPair(signature, c.size))
	default:
		return raw, fmt.Errorf("a key of type %T, must be RSA or ECDSA", pub)
	}
	binary.LittleEndian.PutUint32(raw[crcOffset:], crc32.ChecksumIEEE(raw[:crcOffset]))
	return raw, nil
}

// reversed turns a number from one byte order into the other.
func reversed(b []byte) []byte {
	out := bytes.Clone(b)
	slices.Reverse(out)
	return out
}

// reversedPair does so with two adjacent numbers of size bytes at the start of b.
func reversedPair(b []byte, size int) []byte {
	return appendLE(reversed(b[:size]), b[size:2*size])
}

func appendLE(dst, bigEndian []byte) []byte {
	return append(dst, reversed(bigEndian)...)
}
