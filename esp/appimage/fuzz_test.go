package appimage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func seeds(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "image", "*.bin"))
	if err != nil || len(files) == 0 {
		f.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, chip := range Chips() {
		f.Add(mustBuild(f, BuildOptions{Chip: chip, Project: "bms", Version: "1.0.0"}))
		f.Add(mustBuild(f, BuildOptions{Chip: chip, Version: "1.0.0", NoHash: true}))
	}
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
