package appimage

import (
	"bytes"
	"testing"
)

// The lengths around each multiple of 64 KiB, where the room for header, checksum and digest decides.
func TestSecurePaddingEndsOnAPageAndBoots(t *testing.T) {
	for _, size := range []int64{0, 1 << 10, 64<<10 - 128, 64<<10 - 64, 64<<10 - 48, 64<<10 - 32, 64<<10 - 16, 64 << 10, 64<<10 + 16, 64<<10 + 48, 64<<10 + 64, 200 << 10, 1 << 20} {
		b, err := Build(BuildOptions{Chip: ESP32C3, Project: "p", Version: "1.0.0", Size: size})
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(b)
		padded, err := SecurePad(b)
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
			continue
		}
		img, err := Verify(bytes.NewReader(padded), Target{Chip: ESP32C3, PartitionSize: int64(len(padded))})
		if err != nil || img.Length != int64(len(padded)) || img.Length%(64<<10) != 0 || img.Length-int64(len(b)) > 64<<10+64 {
			t.Errorf("%d bytes became %d: %v", len(b), len(padded), err)
		}
		if img.Desc == nil || img.Desc.Version != "1.0.0" || !bytes.Equal(b, before) {
			t.Errorf("%d bytes: description lost, or the image that was given changed", size)
		}
		if again, err := SecurePad(padded); err != nil || !bytes.Equal(again, padded) {
			t.Errorf("%d bytes: padded twice: %v", size, err)
		}
	}
}

func TestSecurePaddingRefusesWhatItWouldBreak(t *testing.T) {
	b, err := Build(BuildOptions{Project: "p", Version: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	bare, err := Build(BuildOptions{Project: "p", Version: "1.0.0", NoHash: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{"no image": b[:50], "something behind it": append(bytes.Clone(b), 0xFF), "no digest": bare, "nothing": nil} {
		if _, err := SecurePad(image); err == nil {
			t.Errorf("%s: padded", name)
		}
	}
}
