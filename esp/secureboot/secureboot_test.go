package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func vector(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signedVector is a file that espsecure signed, and the key it used.
type signedVector struct {
	name        string
	file        string
	key         string
	scheme      Scheme
	imageLength int64
}

var signedVectors = []signedVector{
	{"rsa", "app-esp32-1.0.0.rsa.bin", "rsa3072-test", RSA3072, 73808},
	{"p256", "app-esp32c3-2.0.0.p256.bin", "p256-test", ECDSAP256, 73808},
}

func (v signedVector) private(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ParsePrivateKeyPEM(vector(t, "keys", v.key+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (v signedVector) public(t testing.TB) crypto.PublicKey {
	t.Helper()
	key, err := ParsePublicKeyPEM(vector(t, "keys", v.key+".pub.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustSign(t testing.TB, file []byte, key crypto.Signer, opts ...Option) []byte {
	t.Helper()
	out, err := Sign(file, key, nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func digestOf(t testing.TB, pub crypto.PublicKey) [32]byte {
	t.Helper()
	d, err := KeyDigest(pub)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFilesSignedByEspsecureVerify(t *testing.T) {
	for _, v := range signedVectors {
		t.Run(v.name, func(t *testing.T) {
			file, pub := vector(t, "signed", v.file), v.public(t)
			if err := Verify(file, pub); err != nil {
				t.Error(err)
			}
			want := [32]byte(vector(t, "keys", v.key+".digest.bin"))
			if got := digestOf(t, pub); got != want {
				t.Errorf("key digest %x, espsecure says %x", got, want)
			}
			blocks, err := Blocks(bytes.NewReader(file), int64(len(file)))
			if err != nil || len(blocks) != 1 {
				t.Fatalf("%d blocks, %v", len(blocks), err)
			}
			b := blocks[0]
			content := sha256.Sum256(file[:len(file)-SectorSize])
			if b.Index != 0 || b.Scheme != v.scheme || b.KeyDigest != want || !bytes.Equal(b.Digest, content[:]) {
				t.Errorf("block %d %s, key %x, content %x", b.Index, b.Scheme, b.KeyDigest, b.Digest)
			}
			type equaler interface{ Equal(crypto.PublicKey) bool }
			if k, ok := b.PublicKey.(equaler); !ok || !k.Equal(pub) {
				t.Errorf("the block's key is %v", b.PublicKey)
			}
			for n := 1; n <= MaxBlocks; n++ {
				if err := VerifyOnDevice(bytes.NewReader(file), v.imageLength, int64(len(file)), [][32]byte{want}, n); err != nil {
					t.Errorf("on a device with %d blocks: %v", n, err)
				}
			}
			other := signedVectors[0].public(t)
			if v.scheme == RSA3072 {
				other = signedVectors[1].public(t)
			}
			if err := Verify(file, other); !errors.Is(err, ErrSignature) {
				t.Errorf("with another key: %v", err)
			}
		})
	}
}

// TestOurBlockIsEspsecuresBlock: everything but the random signature is the
// same byte for byte, the RSA key's Montgomery constants included.
func TestOurBlockIsEspsecuresBlock(t *testing.T) {
	for _, v := range signedVectors {
		t.Run(v.name, func(t *testing.T) {
			file := vector(t, "signed", v.file)
			got := mustSign(t, file[:v.imageLength], v.private(t))
			if len(got) != len(file) {
				t.Fatalf("%d bytes, espsecure made %d", len(got), len(file))
			}
			from, to := rsaSignature, rsaSignature+rsaBytes
			if v.scheme != RSA3072 {
				from, to = 101, 165
			}
			sector := len(file) - SectorSize
			for _, b := range [][]byte{got, file} {
				clear(b[sector+from : sector+to])
				clear(b[sector+crcOffset : sector+crcOffset+4])
			}
			if !bytes.Equal(got, file) {
				t.Error("content, padding or block differ beyond signature and CRC")
			}
			// And with the signature given, signature field and CRC as well.
			blocks, err := Parse(vector(t, "signed", v.file)[sector:])
			if err != nil {
				t.Fatal(err)
			}
			raw, err := encodeBlock(v.public(t), blocks[0].Digest, blocks[0].Signature)
			if err != nil || raw != blocks[0].raw {
				t.Errorf("encoded block differs from espsecure's, %v", err)
			}
		})
	}
}

func TestSignVerifyRoundTrip(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"rsa3072":    signedVectors[0].private(t),
		"ecdsa-p256": ecKey(t, elliptic.P256()),
		"ecdsa-p384": ecKey(t, elliptic.P384()),
	} {
		for _, size := range []int{1, 4095, 4096, 4097, 12288} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				file := bytes.Repeat([]byte{0x5A}, size)
				out := mustSign(t, file, key)
				padded := (size + 4095) / 4096 * 4096
				if len(out) != padded+SectorSize || !bytes.Equal(out[:size], file) || !erased(out[size:padded]) || !erased(out[padded+BlockSize:]) {
					t.Fatalf("%d bytes, or content, padding or the rest of the sector are wrong", len(out))
				}
				blocks, err := Blocks(bytes.NewReader(out), int64(len(out)))
				if err != nil || len(blocks) != 1 || string(blocks[0].Scheme) != name || blocks[0].KeyDigest != digestOf(t, key.Public()) {
					t.Fatalf("blocks %+v, %v", blocks, err)
				}
				if err := VerifyOnDevice(bytes.NewReader(out), int64(size), int64(len(out)), [][32]byte{blocks[0].KeyDigest}, 1); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestAppendKeepsUpToThreeSignatures(t *testing.T) {
	keys := []crypto.Signer{signedVectors[0].private(t), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())}
	file := bytes.Repeat([]byte{1, 2, 3}, 3000)
	signed := file
	for n, key := range keys {
		signed = mustSign(t, signed, key, Append())
		if len(signed) != 12288+SectorSize {
			t.Fatalf("%d bytes after %d signatures", len(signed), n+1)
		}
		for i, k := range keys {
			err := Verify(signed, k.Public())
			if i <= n && err != nil || i > n && !errors.Is(err, ErrSignature) {
				t.Errorf("%d signatures, key %d: %v", n+1, i, err)
			}
		}
	}
	if _, err := Sign(signed, keys[1], nil, Append()); !errors.Is(err, ErrFull) {
		t.Errorf("a fourth signature: %v", err)
	}
	// Without Append the sector becomes content.
	again := mustSign(t, signed, keys[1])
	if len(again) != len(signed)+SectorSize || Verify(again, keys[0].Public()) == nil || Verify(again, keys[1].Public()) != nil {
		t.Error("signing a signed file without Append does not sign the whole of it")
	}
	// A broken block makes room, a block for other content does not pass.
	broken := bytes.Clone(signed)
	broken[12288+BlockSize+700] ^= 1
	if out := mustSign(t, broken, keys[1], Append()); Verify(out, keys[1].Public()) != nil || Verify(out, keys[2].Public()) != nil {
		t.Error("a broken block was not replaced")
	}
	foreign := bytes.Clone(signed)
	foreign[0] ^= 1
	if _, err := Sign(foreign[:12288+SectorSize], keys[1], nil, Append()); !errors.Is(err, ErrFull) {
		t.Errorf("full file with other content: %v", err)
	}
	two := mustSign(t, file, keys[0])
	two[0] ^= 1
	// The key must not even be asked: errFlash is what it would answer.
	if _, err := Sign(two, fakeSigner{pub: keys[1].Public(), err: errFlash}, nil, Append()); !errors.Is(err, ErrSignature) {
		t.Errorf("appending to a signature for other content: %v", err)
	}
}

// TestEveryFlippedByteIsRefused covers content and block. The rest of the
// sector, erased and covered by nothing, is left as it is.
func TestEveryFlippedByteIsRefused(t *testing.T) {
	content := bytes.Repeat([]byte{0x42}, 4096)
	for name, key := range map[string]crypto.Signer{"rsa": signedVectors[0].private(t), "p256": ecKey(t, elliptic.P256()), "p384": ecKey(t, elliptic.P384())} {
		signed := mustSign(t, content, key)
		for i := range len(content) + BlockSize {
			signed[i] ^= 0x04
			if err := Verify(signed, key.Public()); !errors.Is(err, ErrSignature) && !errors.Is(err, ErrUnsigned) {
				t.Fatalf("%s: flip in byte %d: %v", name, i, err)
			}
			signed[i] ^= 0x04
		}
	}
}

// reseal repairs the CRC of block i of a signed file, as an attacker would.
func reseal(file []byte, i int) {
	raw := file[len(file)-SectorSize+i*BlockSize:]
	binary.LittleEndian.PutUint32(raw[crcOffset:], crc32.ChecksumIEEE(raw[:crcOffset]))
}

// TestEveryFlippedByteIsRefusedOnTheDeviceEvenWithItsCRCRepaired leaves the
// signature as the only protection. The stated digest and the two bytes after
// the version are not part of it on the device.
func TestEveryFlippedByteIsRefusedOnTheDeviceEvenWithItsCRCRepaired(t *testing.T) {
	content := bytes.Repeat([]byte{0x42}, 4096)
	type span struct{ from, to int }
	for _, c := range []struct {
		name string
		key  crypto.Signer
		open []span // bytes of the block that the device does not look at
	}{
		{"rsa", signedVectors[0].private(t), []span{{2, 36}}},
		{"p256", ecKey(t, elliptic.P256()), []span{{3, 36}, {165, crcOffset}}},
	} {
		trusted := [][32]byte{digestOf(t, c.key.Public())}
		signed := mustSign(t, content, c.key)
		for i := range crcOffset {
			file := bytes.Clone(signed)
			file[len(content)+i] ^= 0x04
			reseal(file, 0)
			err := VerifyOnDevice(bytes.NewReader(file), int64(len(content)), int64(len(file)), trusted, 1)
			open := slices.ContainsFunc(c.open, func(s span) bool { return i >= s.from && i < s.to })
			if open != (err == nil) {
				t.Fatalf("%s: byte %d: %v", c.name, i, err)
			}
			// Against a file, espsecure's rule compares the stated digest too.
			if err := Verify(file, c.key.Public()); i >= 4 && i < 36 && !errors.Is(err, ErrSignature) {
				t.Fatalf("%s: stated digest, byte %d: %v", c.name, i, err)
			}
		}
	}
}

// TestTheDeviceTrustsOnlyTheBlocksItLooksAt is the table of reference cases for
// key rotation: which blocks count on which chip, and in the mode without
// hardware Secure Boot.
func TestTheDeviceTrustsOnlyTheBlocksItLooksAt(t *testing.T) {
	a, b := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	content := bytes.Repeat([]byte{7}, 5000)
	onlyA := mustSign(t, content, a)
	ab := mustSign(t, onlyA, b, Append())
	keyA, keyB := digestOf(t, a.Public()), digestOf(t, b.Public())
	brokenFirst := bytes.Clone(ab)
	brokenFirst[8192+200] ^= 1
	erasedFirst := bytes.Clone(ab)
	copy(erasedFirst[8192:], bytes.Repeat([]byte{0xFF}, BlockSize))
	// A's key with B's signature under it.
	forged := bytes.Clone(onlyA)
	copy(forged[8192+101:8192+165], ab[8192+BlockSize+101:])
	reseal(forged, 0)
	for _, c := range []struct {
		name    string
		file    []byte
		trusted [][32]byte
		blocks  int
		want    error
	}{
		{"first key", ab, [][32]byte{keyA}, 1, nil},
		{"second key, three blocks", ab, [][32]byte{keyB}, 3, nil},
		{"second key, one block", ab, [][32]byte{keyB}, 1, ErrSignature},
		{"either key, one block", ab, [][32]byte{keyB, keyA}, 1, nil},
		{"first block broken", brokenFirst, [][32]byte{keyA, keyB}, 1, ErrUnsigned},
		{"first block broken, three blocks", brokenFirst, [][32]byte{keyA, keyB}, 3, nil},
		{"first block erased, three blocks", erasedFirst, [][32]byte{keyB}, 3, nil},
		{"no key trusted", ab, nil, 3, ErrSignature},
		{"stranger trusted", ab, [][32]byte{{1}}, 3, ErrSignature},
		{"forged", forged, [][32]byte{keyA, keyB}, 3, ErrSignature},
		{"unsigned", append(bytes.Clone(onlyA[:8192]), bytes.Repeat([]byte{0xFF}, SectorSize)...), [][32]byte{keyA}, 3, ErrUnsigned},
	} {
		err := VerifyOnDevice(bytes.NewReader(c.file), int64(len(content)), int64(len(c.file)), c.trusted, c.blocks)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

type brokenReader struct {
	io.ReaderAt
	from int64
}

var errFlash = errors.New("flash does not answer")

func (b brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.from && b.from < off+int64(len(p)) {
		return 0, errFlash
	}
	return b.ReaderAt.ReadAt(p, off)
}

func TestVerifyOnDeviceRefusesImpossibleSizesAndReadErrors(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	file := mustSign(t, make([]byte, 5000), key)
	trusted := [][32]byte{digestOf(t, key.Public())}
	for _, c := range []struct {
		length, size int64
		blocks       int
	}{
		{0, 12288, 1}, {-1, 12288, 1}, {5000, 12287, 1}, {5000, 0, 1}, {5000, -1, 1},
		{1<<63 - 1, 1<<63 - 1, 1}, {1<<63 - 4097, 1<<63 - 1, 1}, {5000, -1 << 63, 1}, {5000, 12288, 0}, {5000, 12288, 4},
	} {
		if err := VerifyOnDevice(bytes.NewReader(file), c.length, c.size, trusted, c.blocks); err == nil {
			t.Errorf("length %d in %d with %d blocks accepted", c.length, c.size, c.blocks)
		}
	}
	for _, at := range []int64{0, 8000, 8192} {
		if err := VerifyOnDevice(brokenReader{bytes.NewReader(file), at}, 5000, 12288, trusted, 1); !errors.Is(err, errFlash) {
			t.Errorf("read error at %d: %v", at, err)
		}
	}
	if err := VerifyOnDevice(bytes.NewReader(file[:9000]), 5000, 12288, trusted, 1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reader ends in the sector: %v", err)
	}
	if _, err := Blocks(brokenReader{bytes.NewReader(file), 8192}, 12288); !errors.Is(err, errFlash) {
		t.Errorf("Blocks: %v", err)
	}
}

func TestUnsignedFilesAreNotAnError(t *testing.T) {
	for _, size := range []int64{0, 1, 4095, 4096, 8192, 10000, -4096} {
		file := make([]byte, max(size, 0))
		if b, err := Blocks(bytes.NewReader(file), size); b != nil || err != nil {
			t.Errorf("%d bytes: %v, %v", size, b, err)
		}
		if err := Verify(file, ecKey(t, elliptic.P256()).Public()); !errors.Is(err, ErrUnsigned) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if _, err := Parse(make([]byte, SectorSize-1)); err == nil {
		t.Error("a short sector is accepted")
	} else if _, ok := errors.AsType[*FormatError](err); !ok {
		t.Errorf("error of type %T", err)
	}
}

// TestBlocksThatCannotVerifyAreDescribed: P-192, a point that is not on its
// curve and RSA constants that do not belong to the modulus have no key.
func TestBlocksThatCannotVerifyAreDescribed(t *testing.T) {
	signed := mustSign(t, make([]byte, 100), ecKey(t, elliptic.P256()))
	rsaSigned := mustSign(t, make([]byte, 100), signedVectors[0].private(t))
	for _, c := range []struct {
		name   string
		file   []byte
		change func(raw []byte)
		scheme Scheme // "": the block is left out
	}{
		{"p192", signed, func(raw []byte) { raw[36] = 1 }, ECDSAP192},
		{"off the curve", signed, func(raw []byte) { raw[37] ^= 1 }, ECDSAP256},
		{"unknown curve", signed, func(raw []byte) { raw[36] = 4 }, ""},
		{"p384 with sha-256", signed, func(raw []byte) { raw[36] = 3 }, ""},
		{"version 4", signed, func(raw []byte) { raw[1] = 4 }, ""},
		{"even modulus", rsaSigned, func(raw []byte) { raw[rsaKey] ^= 1 }, RSA3072},
		{"short modulus", rsaSigned, func(raw []byte) { raw[rsaKey+383] = 0 }, RSA3072},
		{"exponent", rsaSigned, func(raw []byte) { raw[rsaExponent+3] = 0x80 }, RSA3072},
		{"R squared", rsaSigned, func(raw []byte) { raw[rsaRInv] ^= 1 }, RSA3072},
		{"m'", rsaSigned, func(raw []byte) { raw[rsaMPrime] ^= 1 }, RSA3072},
	} {
		file := bytes.Clone(c.file)
		c.change(file[4096:])
		reseal(file, 0)
		blocks, err := Parse(file[4096:])
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.scheme == "" && len(blocks) > 0:
			t.Errorf("%s: %+v", c.name, blocks)
		case c.scheme != "" && (len(blocks) != 1 || blocks[0].Scheme != c.scheme || blocks[0].PublicKey != nil):
			t.Errorf("%s: %+v", c.name, blocks)
		}
		for _, b := range blocks {
			if err := VerifyOnDevice(bytes.NewReader(file), 100, 8192, [][32]byte{b.KeyDigest}, 3); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	// P-192 coordinates are contiguous in fields made for 32 bytes each.
	p192 := bytes.Clone(signed)
	p192[4096+36] = 1
	reseal(p192, 0)
	blocks, err := Parse(p192[4096:])
	if err != nil || len(blocks) != 1 || len(blocks[0].Signature) != 48 || blocks[0].Signature[23] != p192[4096+101] || blocks[0].Signature[24] != p192[4096+101+47] {
		t.Errorf("p192: %+v, %v", blocks, err)
	}
}

// fakeSigner is a key in some other hands that answers with rubbish.
type fakeSigner struct {
	pub crypto.PublicKey
	sig []byte
	err error
}

func (f fakeSigner) Public() crypto.PublicKey { return f.pub }
func (f fakeSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return f.sig, f.err
}

func TestSignRefusesUnfitKeysAndTheirRubbish(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, rsaPub := ecKey(t, elliptic.P256()).Public(), signedVectors[0].public(t)
	for name, key := range map[string]crypto.Signer{
		"rsa 2048":           small,
		"p224":               ecKey(t, elliptic.P224()),
		"p521":               ecKey(t, elliptic.P521()),
		"ed25519":            edKey,
		"no key":             nil,
		"rsa even modulus":   fakeSigner{pub: &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 3071), E: 65537}},
		"rsa no modulus":     fakeSigner{pub: &rsa.PublicKey{E: 3}},
		"rsa exponent 1":     fakeSigner{pub: &rsa.PublicKey{N: rsaPub.(*rsa.PublicKey).N, E: 1}},
		"no curve":           fakeSigner{pub: &ecdsa.PublicKey{}},
		"rsa error":          fakeSigner{pub: rsaPub, err: errFlash},
		"rsa short":          fakeSigner{pub: rsaPub, sig: make([]byte, 383)},
		"rsa wrong":          fakeSigner{pub: rsaPub, sig: make([]byte, 384)},
		"ecdsa error":        fakeSigner{pub: p256, err: errFlash},
		"ecdsa not asn1":     fakeSigner{pub: p256, sig: make([]byte, 64)},
		"ecdsa out of range": fakeSigner{pub: p256, sig: []byte{0x30, 6, 2, 1, 0, 2, 1, 1}},
		"ecdsa wrong":        fakeSigner{pub: p256, sig: []byte{0x30, 6, 2, 1, 1, 2, 1, 1}},
	} {
		if out, err := Sign([]byte("content"), key, nil); err == nil {
			t.Errorf("%s: signed, %d bytes", name, len(out))
		}
	}
	if _, err := Sign(nil, ecKey(t, elliptic.P256()), nil); err == nil {
		t.Error("an empty file was signed")
	}
	if err := Verify(make([]byte, 8192), small.Public()); err == nil || errors.Is(err, ErrUnsigned) {
		t.Errorf("Verify with a key of no use: %v", err)
	}
}
