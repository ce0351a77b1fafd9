package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	_ "crypto/sha256" // links the hashes that a block names
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
)

var (
	// ErrUnsigned means that no structurally sound signature block is there.
	ErrUnsigned = errors.New("not signed")
	// ErrSignature means that blocks are there and none of them may be trusted
	// for this content.
	ErrSignature = errors.New("signature does not verify")
)

// Verify checks that the signed file carries a signature by the holder of pub,
// as espsecure's verify_signature does: blocks in order, the stated digest must
// be that of the content, the first block that verifies decides. Unlike
// espsecure it leaves out blocks whose 16 bytes after the CRC are not zero.
// Errors wrap [ErrUnsigned] or [ErrSignature], unless pub is of no use here.
func Verify(file []byte, pub crypto.PublicKey) error {
	if _, err := KeyDigest(pub); err != nil {
		return err
	}
	if len(file) < SectorSize || len(file)%SectorSize != 0 {
		return fmt.Errorf("%w: %d bytes are not a multiple of %d", ErrUnsigned, len(file), SectorSize)
	}
	content, sector := file[:len(file)-SectorSize], file[len(file)-SectorSize:]
	blocks, err := Parse(sector)
	if err != nil {
		return err
	}
	blocks = slices.DeleteFunc(blocks, func(b Block) bool { return !b.canonical() })
	if len(blocks) == 0 {
		return fmt.Errorf("%w: the last %d bytes hold no signature block", ErrUnsigned, SectorSize)
	}
	digests := digestCache{r: bytes.NewReader(content), length: int64(len(content))}
	for i := range blocks {
		b := &blocks[i]
		digest, err := digests.of(b.hash())
		if err != nil {
			return err
		}
		if !bytes.Equal(digest, b.Digest) {
			return fmt.Errorf("%w: block %d is for content with digest %x, this has %x", ErrSignature, b.Index, b.Digest, digest)
		}
		if b.verify(pub, digest) {
			return nil
		}
	}
	return fmt.Errorf("%w: none of %d blocks is by this key", ErrSignature, len(blocks))
}

// VerifyOnDevice applies the firmware's rule to flash: r begins with the
// partition of size bytes, the image in it is imageLength bytes long (without
// padding and signature), trusted are the key digests, and blocks is how many
// blocks the chip looks at: 1 on ESP32 and ESP32-C2, 3 elsewhere
// (SECURE_BOOT_NUM_BLOCKS).
//
// Firmware with signed updates but without hardware Secure Boot looks at one
// block and trusts one digest, that of the first block of the running image;
// pass 1 and that digest.
//
// The key comes from the block, its digest must be trusted, and the signature
// is checked over the digest recomputed from flash; the digest that the block
// states plays no part, as in esp_secure_boot_verify_sbv2_signature_block.
// Errors wrap [ErrUnsigned] or [ErrSignature] unless reading failed.
func VerifyOnDevice(r io.ReaderAt, imageLength, size int64, trusted [][32]byte, blocks int) error {
	if blocks < 1 || blocks > MaxBlocks {
		return fmt.Errorf("verify on device: %d blocks, must be 1 to %d", blocks, MaxBlocks)
	}
	// Compared without adding to imageLength first: both may be anything.
	if imageLength <= 0 || size < SectorSize || imageLength > size-SectorSize {
		return fmt.Errorf("%w: no room for an image of %d bytes and its signature in %d", ErrUnsigned, imageLength, size)
	}
	end := (imageLength + SectorSize - 1) &^ (SectorSize - 1)
	if end > size-SectorSize {
		return fmt.Errorf("%w: no room for a signature sector at 0x%x in %d bytes", ErrUnsigned, end, size)
	}
	var sector [SectorSize]byte
	if err := readFull(r, sector[:], end); err != nil {
		return fmt.Errorf("read signature sector: %w", err)
	}
	digests := digestCache{r: r, length: end}
	sound := 0
	for i := range blocks {
		b, ok := parseBlock(sector[i*BlockSize:(i+1)*BlockSize], i)
		if !ok {
			continue
		}
		sound++
		if !slices.Contains(trusted, b.KeyDigest) {
			continue
		}
		digest, err := digests.of(b.hash())
		if err != nil {
			return err
		}
		if b.PublicKey != nil && b.verify(b.PublicKey, digest) {
			return nil
		}
	}
	if sound == 0 {
		return fmt.Errorf("%w: no signature block at 0x%x", ErrUnsigned, end)
	}
	return fmt.Errorf("%w: no trusted key among the %d blocks looked at signed this content", ErrSignature, sound)
}

// digestCache hashes length bytes of r, once for each hash asked for.
type digestCache struct {
	r      io.ReaderAt
	length int64
	known  map[crypto.Hash][]byte
}

func (c *digestCache) of(h crypto.Hash) ([]byte, error) {
	if d, ok := c.known[h]; ok {
		return d, nil
	}
	sum := h.New()
	n, err := io.Copy(sum, io.NewSectionReader(c.r, 0, c.length))
	if err == nil && n < c.length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("hash content: %w", err)
	}
	if c.known == nil {
		c.known = make(map[crypto.Hash][]byte)
	}
	c.known[h] = sum.Sum(nil)
	return c.known[h], nil
}

// hash is the one that the block's digest and signature are made with.
func (b *Block) hash() crypto.Hash {
	if b.Scheme == ECDSAP384 {
		return crypto.SHA384
	}
	return crypto.SHA256
}

// canonical reports whether what no CRC covers is as espsecure writes it.
func (b *Block) canonical() bool {
	return !slices.ContainsFunc(b.raw[crcOffset+4:], func(c byte) bool { return c != 0 })
}

// verify checks the block's signature over digest with pub.
func (b *Block) verify(pub crypto.PublicKey, digest []byte) bool {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return b.Scheme == RSA3072 && rsa.VerifyPSS(pub, crypto.SHA256, digest, b.Signature, &rsa.PSSOptions{SaltLength: pssSaltLength}) == nil
	case *ecdsa.PublicKey:
		c, _, err := ecdsaKeyFields(pub)
		if err != nil || c.scheme != b.Scheme {
			return false
		}
		half := len(b.Signature) / 2
		return ecdsa.Verify(pub, digest, new(big.Int).SetBytes(b.Signature[:half]), new(big.Int).SetBytes(b.Signature[half:]))
	}
	return false
}
