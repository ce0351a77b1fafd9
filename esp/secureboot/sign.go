package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// ErrFull means that a file carries three signatures already.
var ErrFull = errors.New("the signature sector is full")

// pssSaltLength is the length of the PSS salt in bytes; the ROM accepts no other.
const pssSaltLength = 32

type signOptions struct{ keep bool }

// Option changes what [Sign] does.
type Option func(*signOptions)

// Append keeps the signatures that a signed file has and adds one behind them.
// Without it a signed file is signed as a whole, sector and all, and cannot
// boot. A file without signatures is signed as usual.
func Append() Option { return func(o *signOptions) { o.keep = true } }

// Sign returns file padded with 0xFF to a multiple of 4096 bytes and a
// signature sector by key behind it, as espsecure's sign_data --version 2
// does. The key must be RSA-3072, ECDSA P-256 or P-384. random is the source of
// the salt or nonce, nil for the system's. What Sign returns has passed
// [Verify]; file is not changed.
func Sign(file []byte, key crypto.Signer, random io.Reader, opts ...Option) ([]byte, error) {
	var o signOptions
	for _, opt := range opts {
		opt(&o)
	}
	if random == nil {
		random = rand.Reader
	}
	if len(file) == 0 {
		return nil, errors.New("sign: the file is empty")
	}
	content := file
	var kept []Block
	if o.keep {
		blocks, err := Blocks(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		if len(blocks) == MaxBlocks {
			return nil, fmt.Errorf("sign: %w: %d signatures", ErrFull, MaxBlocks)
		}
		if len(blocks) > 0 {
			kept, content = blocks, file[:len(file)-SectorSize]
		}
	}
	padded := (len(content) + SectorSize - 1) / SectorSize * SectorSize
	out := append(make([]byte, 0, padded+SectorSize), content...)
	for len(out) < padded {
		out = append(out, 0xFF)
	}
	digests := digestCache{r: bytes.NewReader(out), length: int64(padded)}
	for i := range kept {
		digest, err := digests.of(kept[i].hash())
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		// A second signature must not lend credit to a file whose first one
		// is for something else.
		if !bytes.Equal(digest, kept[i].Digest) {
			return nil, fmt.Errorf("sign: signature %d in the file is for other content: %w", kept[i].Index, ErrSignature)
		}
	}
	block, err := signBlock(key, random, &digests)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	for i := range kept {
		out = append(out, kept[i].raw[:]...)
	}
	out = append(out, block[:]...)
	for len(out) < padded+SectorSize {
		out = append(out, 0xFF)
	}
	if err := Verify(out, key.Public()); err != nil {
		return nil, fmt.Errorf("sign: own output: %w", err)
	}
	return out, nil
}

func signBlock(key crypto.Signer, random io.Reader, digests *digestCache) ([BlockSize]byte, error) {
	var none [BlockSize]byte
	if key == nil {
		return none, errors.New("no key")
	}
	// Before the key is used: one that cannot be encoded must not sign.
	if _, err := KeyDigest(key.Public()); err != nil {
		return none, err
	}
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		digest, err := digests.of(crypto.SHA256)
		if err != nil {
			return none, err
		}
		signature, err := key.Sign(random, digest, &rsa.PSSOptions{SaltLength: pssSaltLength, Hash: crypto.SHA256})
		if err != nil {
			return none, fmt.Errorf("rsa: %w", err)
		}
		if len(signature) != rsaBytes {
			return none, fmt.Errorf("rsa: the key made a signature of %d bytes, must be %d", len(signature), rsaBytes)
		}
		return encodeBlock(pub, digest, signature)
	case *ecdsa.PublicKey:
		c, _, err := ecdsaKeyFields(pub)
		if err != nil {
			return none, err
		}
		digest, err := digests.of(c.hash)
		if err != nil {
			return none, err
		}
		der, err := key.Sign(random, digest, c.hash)
		if err != nil {
			return none, fmt.Errorf("ecdsa: %w", err)
		}
		signature, err := rawSignature(der, c.size)
		if err != nil {
			return none, fmt.Errorf("ecdsa: %w", err)
		}
		return encodeBlock(pub, digest, signature)
	}
	return none, fmt.Errorf("a key of type %T, must be RSA or ECDSA", key.Public())
}

// rawSignature turns an ASN.1 ECDSA signature into r and s of size bytes each.
func rawSignature(der []byte, size int) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 {
		return nil, errors.New("the key made a signature that is not ASN.1")
	}
	if sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > 8*size || sig.S.BitLen() > 8*size {
		return nil, errors.New("the key made a signature out of range")
	}
	return append(sig.R.FillBytes(make([]byte, size)), sig.S.FillBytes(make([]byte, size))...), nil
}
