package secureboot

import (
	"bytes"
	"crypto/elliptic"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// FuzzParse: a sound block whose key can verify is made of nothing but its
// fields, so encoding them gives its bytes, up to what is reserved.
func FuzzParse(f *testing.F) {
	for _, v := range signedVectors {
		file := vector(f, "signed", v.file)
		f.Add(file[len(file)-SectorSize:][:BlockSize])
	}
	f.Add(bytes.Repeat([]byte{0xFF}, BlockSize))
	p384 := mustSign(f, []byte{1}, ecKey(f, elliptic.P384()))
	f.Add(p384[4096:][:BlockSize])
	f.Fuzz(func(t *testing.T, block []byte) {
		sector := bytes.Repeat([]byte{0xFF}, SectorSize)
		for i := range MaxBlocks {
			copy(sector[i*BlockSize:(i+1)*BlockSize], block)
		}
		// One block with a right CRC, whatever the input was.
		binary.LittleEndian.PutUint32(sector[BlockSize+crcOffset:], crc32.ChecksumIEEE(sector[BlockSize:BlockSize+crcOffset]))
		blocks, err := Parse(sector)
		if err != nil || len(blocks) > MaxBlocks {
			t.Fatalf("%d blocks, %v", len(blocks), err)
		}
		for _, b := range blocks {
			if b.PublicKey == nil {
				continue
			}
			if d, err := KeyDigest(b.PublicKey); err != nil {
				t.Fatal(err)
			} else if d != b.KeyDigest {
				t.Fatalf("key digest %x, block says %x", d, b.KeyDigest)
			}
			raw, err := encodeBlock(b.PublicKey, b.Digest, b.Signature)
			if err != nil {
				t.Fatal(err)
			}
			again, ok := parseBlock(raw[:], b.Index)
			if !ok || again.Scheme != b.Scheme || !bytes.Equal(again.Digest, b.Digest) || !bytes.Equal(again.Signature, b.Signature) {
				t.Fatalf("%+v becomes %+v", b, again)
			}
			flash := append(make([]byte, SectorSize), sector...)
			if err := VerifyOnDevice(bytes.NewReader(flash), 1, 2*SectorSize, [][32]byte{b.KeyDigest}, MaxBlocks); err == nil {
				t.Fatalf("signature for other content accepted: %x", flash)
			}
		}
	})
}
