package appimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

// seeds are the small vectors and a built image of every chip. Large files only
// slow the mutations down.
func seeds(f *testing.F) {
	small := 0
	for _, c := range verifyCases(f) {
		if c.ImageHex != nil {
			b, err := hex.DecodeString(*c.ImageHex)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
			small++
		}
	}
	if small != 12 {
		f.Fatalf("%d vectors", small)
	}
	for _, chip := range Chips() {
		f.Add(mustBuild(f, BuildOptions{Chip: chip, Project: "bms", Version: "1.0.0"}))
		f.Add(mustBuild(f, BuildOptions{Chip: chip, Version: "1.0.0", NoHash: true}))
	}
}

// reseal gives b the checksum and hash that its segments ask for, where they
// make sense, so that mutations reach what lies behind those checks. It is
// written from the format's description and shares nothing with the loader.
func reseal(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) < 24 {
		return b
	}
	sum, pos := byte(0xEF), 24
	for range b[1] {
		if pos+8 > len(b) {
			return b
		}
		n := int(binary.LittleEndian.Uint32(b[pos+4:]))
		pos += 8
		if n > len(b)-pos {
			return b
		}
		for _, c := range b[pos : pos+n] {
			sum ^= c
		}
		pos += n
	}
	end := pos/16*16 + 16
	if end+32 > len(b) {
		return b
	}
	b[end-1] = sum
	hash := sha256.Sum256(b[:end])
	copy(b[end:], hash[:])
	return b
}

// checkImage holds what must be true of any image accepted from b.
func checkImage(t *testing.T, b []byte, img *Image) {
	if img.Length < HeaderSize || img.Length > int64(len(b)) || img.Length%16 != 0 {
		t.Fatalf("length %d of %d bytes", img.Length, len(b))
	}
	if len(img.Segments) != int(img.Header.SegmentCount) || len(img.Segments) > MaxSegments {
		t.Fatalf("%d segments, header says %d", len(img.Segments), img.Header.SegmentCount)
	}
	var xor byte = 0xEF
	end := int64(HeaderSize)
	for _, s := range img.Segments {
		if s.Offset != end+SegmentHeaderSize || s.Length < 0 || s.Offset+s.Length >= img.Length {
			t.Fatalf("segment %+v after 0x%x in %d bytes", s, end, img.Length)
		}
		end = s.Offset + s.Length
		for _, c := range b[s.Offset:end] {
			xor ^= c
		}
	}
	if xor != img.Checksum {
		t.Fatalf("checksum 0x%02x, data sums to 0x%02x", img.Checksum, xor)
	}
	if got := AppendHeader(nil, img.Header); !bytes.Equal(got, b[:HeaderSize]) {
		t.Fatalf("header %x becomes %x", b[:HeaderSize], got)
	}
	if img.Desc != nil {
		raw, err := AppendDesc(nil, img.Desc)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseDesc(raw); err != nil || !reflect.DeepEqual(again, img.Desc) {
			t.Fatalf("description %+v becomes %+v, %v", img.Desc, again, err)
		}
	}
	if n := FileLength(bytes.NewReader(b), int64(len(b)), img); n < img.Length || n > int64(len(b)) {
		t.Fatalf("file length %d of %d", n, len(b))
	}
	TrialBehaviour(bytes.NewReader(b), img)
}

func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = reseal(b)
		img, err := Parse(b)
		if err != nil {
			if fe, ok := errors.AsType[*FormatError](err); !ok || fe.Field == "" || fe.Reason == "" || fe.Offset < 0 {
				t.Fatalf("error %#v", err)
			}
			return
		}
		checkImage(t, b, img)
	})
}

// FuzzVerify also holds Verify against Parse: what suits a board is an image.
func FuzzVerify(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = reseal(b)
		var chip ChipID
		if len(b) >= HeaderSize {
			chip = decodeHeader(b).Chip
		}
		img, err := Verify(bytes.NewReader(b), Target{Chip: chip, Revision: 300, PartitionSize: 1 << 20, FlashOffset: 0x20000})
		if err != nil {
			if ve, ok := errors.AsType[*VerifyError](err); !ok || ve.Code == 0 || ve.Field == "" || ve.Err != nil {
				t.Fatalf("error %#v", err)
			}
			return
		}
		checkImage(t, b, img)
		parsed, err := Parse(b)
		if _, known := chip.info(); known && (err != nil || !reflect.DeepEqual(parsed, img)) {
			t.Fatalf("Verify gives %+v, Parse %+v, %v", img, parsed, err)
		}
	})
}
