package appimage

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// flashReader is a flash partition: file bytes, then 0xFF as far as asked.
type flashReader struct{ file []byte }

func (f flashReader) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(f.file)) {
		n = copy(p, f.file[off:])
	}
	for i := n; i < len(p); i++ {
		p[i] = 0xFF
	}
	return len(p), nil
}

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "image", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mutations implements the "how" text of every case whose bytes are not inline.
var mutations = map[string]struct {
	base   string
	change func(b []byte) []byte
}{
	"good":                     {base: "app-esp32-1.0.0.bin"},
	"good_nohash":              {base: "app-esp32-1.0.0-nohash.bin"},
	"good_c3":                  {base: "app-esp32c3-2.0.0.bin"},
	"wrong_chip_c3":            {base: "app-esp32c3-2.0.0.bin"},
	"exact_fit":                {base: "app-esp32-1.0.0.bin"},
	"one_short":                {base: "app-esp32-1.0.0.bin"},
	"flash_offset_misaligned":  {base: "app-esp32-1.0.0.bin"},
	"trailing_ff":              {"app-esp32-1.0.0.bin", func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xFF}, 1000)...) }},
	"trailing_junk":            {"app-esp32-1.0.0.bin", func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0x12}, 1000)...) }},
	"bad_magic":                {"app-esp32-1.0.0.bin", func(b []byte) []byte { b[0] = 0xE8; return b }},
	"flip_two_same_col":        {"app-esp32-1.0.0-nohash.bin", func(b []byte) []byte { b[0x700] ^= 1; b[0x701] ^= 1; return b }},
	"flip_two_hash":            {"app-esp32-1.0.0.bin", func(b []byte) []byte { b[0x700] ^= 1; b[0x701] ^= 1; return b }},
	"flip_checksum":            {"app-esp32-1.0.0.bin", func(b []byte) []byte { b[len(b)-33] ^= 1; return b }},
	"flip_pad_before_checksum": {"app-esp32-1.0.0-nohash.bin", func(b []byte) []byte { b[len(b)-2] = 0x55; return b }},
	"flip_pad_hashed":          {"app-esp32-1.0.0.bin", func(b []byte) []byte { b[len(b)-34] = 0x55; return b }},
}

// verifyCase is one case of image-verify.json: what esp_image_verify returned.
type verifyCase struct {
	Name, Chip, How, Ret string
	Args                 struct {
		Rev, PSize, Off *int64
	}
	ImageLen int64   `json:"image_len"`
	ImageHex *string `json:"image_hex"`
}

func verifyCases(t testing.TB) []verifyCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "image-verify.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Cases []verifyCase }
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Cases
}

func TestVerifyGivesTheVerdictsOfESPIDF(t *testing.T) {
	ran := 0
	for _, c := range verifyCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			var file []byte
			if c.ImageHex != nil {
				b, err := hex.DecodeString(*c.ImageHex)
				if err != nil {
					t.Fatal(err)
				}
				file = b
			} else {
				m, ok := mutations[c.Name]
				if !ok {
					t.Fatalf("no mutation for %q", c.How)
				}
				if file = vector(t, m.base); m.change != nil {
					file = m.change(file)
				}
			}
			target := Target{Chip: ESP32, Revision: 300, PartitionSize: 1536 << 10, FlashOffset: 0x20000}
			if c.Chip == "c3" {
				target.Chip = ESP32C3
			}
			if c.Args.Rev != nil {
				target.Revision = uint16(*c.Args.Rev)
			}
			if c.Args.PSize != nil {
				target.PartitionSize = *c.Args.PSize
			}
			if c.Args.Off != nil {
				target.FlashOffset = *c.Args.Off
			}
			want, err := strconv.ParseInt(c.Ret, 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			// As a file that ends and as a partition that goes on, the verdict is the same.
			for _, r := range []io.ReaderAt{bytes.NewReader(file), flashReader{file}} {
				img, err := Verify(r, target)
				code, length := uint32(0), int64(0)
				if err != nil {
					ve, ok := errors.AsType[*VerifyError](err)
					if !ok {
						t.Fatalf("error of type %T", err)
					}
					code = ve.Code
				} else {
					length = img.Length
				}
				if code != uint32(want) || length != c.ImageLen {
					t.Errorf("%T: got 0x%x, length %d (%v), want %s, length %d", r, code, length, err, c.Ret, c.ImageLen)
				}
			}
			ran++
		})
	}
	if ran != 27 {
		t.Errorf("%d cases ran, want all 27 of the file", ran)
	}
}
