package appimage

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func mustBuild(t testing.TB, opt BuildOptions) []byte {
	t.Helper()
	b, err := Build(opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestParseAgreesWithEsptool holds Parse against what `esptool image_info`
// printed for the same files.
func TestParseAgreesWithEsptool(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "image", "*.info.txt"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d info files, %v", len(files), err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".info.txt")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			info := string(raw)
			img, err := Parse(vector(t, name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			d, h := img.Desc, img.Header
			freq := map[byte]string{0: "40m", 0xF: "80m"}[h.SPISpeed]
			want := []string{
				fmt.Sprintf("File size: %d (bytes)", img.Length),
				fmt.Sprintf("%s image header", strings.ToUpper(h.Chip.String())),
				fmt.Sprintf("Entry point: 0x%08x", h.EntryAddr),
				fmt.Sprintf("Segments: %d", len(img.Segments)),
				fmt.Sprintf("Flash size: %dMB", 1<<h.SPISize),
				"Flash freq: " + freq,
				fmt.Sprintf("WP pin: 0x%02x (disabled)", h.WPPin),
				fmt.Sprintf("Chip ID: %d (", h.Chip),
				fmt.Sprintf("Minimal chip revision: %s, (legacy min_rev = %d)", revision(h.MinRevision), h.MinRevLegacy),
				"Maximal chip revision: " + revision(h.MaxRevision),
				fmt.Sprintf("Checksum: 0x%02x (valid)", img.Checksum),
				"Project name: " + d.Project,
				"App version: " + d.Version,
				"Compile time: " + d.Date + " " + d.Time,
				"ELF file SHA256: " + hex.EncodeToString(d.ELFSHA256[:]),
				"ESP-IDF: " + d.IDFVersion,
				fmt.Sprintf("Minimal eFuse block revision: %d.%d", d.MinBlockRevision/100, d.MinBlockRevision%100),
				fmt.Sprintf("Maximal eFuse block revision: %d.%d", d.MaxBlockRevision/100, d.MaxBlockRevision%100),
				fmt.Sprintf("MMU page size: %d KB", 1<<d.MMUPageLog2>>10),
				fmt.Sprintf("Secure version: %d", d.SecureVersion),
			}
			if img.HashAppended {
				want = append(want, fmt.Sprintf("Validation hash: %x (valid)", img.Hash))
			}
			for i, s := range img.Segments {
				// esptool gives the offset of the segment's header.
				want = append(want, fmt.Sprintf("%7d  0x%05x  0x%08x  0x%08x", i, s.Length, s.LoadAddr, s.Offset-SegmentHeaderSize))
			}
			for _, line := range want {
				if !regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(strings.TrimLeft(line, " ")) + `(\s|,|$|\w)`).MatchString(info) {
					t.Errorf("esptool did not say %q", line)
				}
			}
			if img.HashAppended != strings.Contains(info, "Validation hash") {
				t.Errorf("hash appended is %t", img.HashAppended)
			}
		})
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	for _, noHash := range []bool{false, true} {
		b := mustBuild(t, BuildOptions{Chip: ESP32C3, Project: "bms", Version: "1.0.0", Size: 4096, NoHash: noHash})
		for n := range len(b) {
			if _, err := Parse(b[:n]); err == nil {
				t.Fatalf("Parse accepts %d of %d bytes", n, len(b))
			} else if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("Parse: error of type %T", err)
			}
			_, err := Verify(bytes.NewReader(b[:n]), Target{Chip: ESP32C3, PartitionSize: 1 << 20})
			ve, ok := errors.AsType[*VerifyError](err)
			// A cut inside a revision field of the description leaves half of
			// a number, which is judged like any other number, as on the chip.
			half := n == DescOffset+177 || n == DescOffset+179
			if !ok || ve.Code != CodeImageInvalid && !half {
				t.Fatalf("Verify of %d of %d bytes: %v", n, len(b), err)
			}
		}
	}
}

// TestOneFlippedBitSurvivesNowhereButInTheHashFlag: the only bit whose flip the
// loader does not notice in a hashed image is the one that says that there is a
// hash. The image then passes on its XOR checksum, as on the chip, and its
// length is that of an image without hash.
func TestOneFlippedBitSurvivesNowhereButInTheHashFlag(t *testing.T) {
	const size = 4096
	b := mustBuild(t, BuildOptions{Chip: ESP32C3, Project: "bms", Version: "1.0.0", Size: size})
	target := Target{Chip: ESP32C3, PartitionSize: 1 << 20}
	var survived []string
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			img, err := Verify(bytes.NewReader(b), target)
			if bit == i%8 || err == nil {
				if parsed, perr := Parse(b); (perr == nil) != (err == nil) || err == nil && !reflect.DeepEqual(parsed, img) {
					t.Errorf("bit %d of byte %d: Parse gives %+v, %v; Verify %+v, %v", bit, i, parsed, perr, img, err)
				}
			}
			if err == nil {
				survived = append(survived, fmt.Sprintf("%d.%d", i, bit))
				if img.HashAppended || img.Length != size-HashSize {
					t.Errorf("bit %d of byte %d: accepted with length %d", bit, i, img.Length)
				}
			}
			b[i] ^= 1 << bit
		}
	}
	if want := []string{"23.0"}; !reflect.DeepEqual(survived, want) {
		t.Errorf("flips accepted: %v, want %v", survived, want)
	}
}

func TestFlippedDataIsRefusedWithoutHash(t *testing.T) {
	b := mustBuild(t, BuildOptions{Chip: ESP32, Project: "bms", Version: "1.0.0", Size: 4096, NoHash: true})
	for i := DescOffset; i < len(b); i++ {
		if i >= len(b)-4 && i < len(b)-1 {
			continue // padding before the checksum: the loader does not look at it
		}
		b[i] ^= 0x10
		if _, err := Parse(b); err == nil {
			t.Fatalf("flip in byte %d accepted", i)
		}
		b[i] ^= 0x10
	}
}

// TestChecksComeInTheLoadersOrder makes images wrong in two ways and looks which is named.
func TestChecksComeInTheLoadersOrder(t *testing.T) {
	good := mustBuild(t, BuildOptions{Chip: ESP32C6, Project: "bms", Version: "1.0.0", MinRevision: 100, MaxRevision: 199})
	board := Target{Chip: ESP32C6, Revision: 150, PartitionSize: 1 << 20}
	edit := func(off int, v byte) func([]byte, *Target) { return func(b []byte, _ *Target) { b[off] = v } }
	for _, c := range []struct {
		name  string
		edits []func([]byte, *Target)
		field string
		code  uint32
	}{
		{"good", nil, "", 0},
		{"partition before magic", []func([]byte, *Target){func(_ []byte, t *Target) { t.PartitionSize = MaxPartitionSize + 1 }, edit(0, 0)}, "partition size", CodeInvalidArg},
		{"negative partition", []func([]byte, *Target){func(_ []byte, t *Target) { t.PartitionSize = -1 }}, "partition size", CodeInvalidArg},
		{"partition offset", []func([]byte, *Target){func(_ []byte, t *Target) { t.FlashOffset = 1 << 32 }}, "partition offset", CodeInvalidArg},
		{"magic before chip", []func([]byte, *Target){edit(0, 0xE8), edit(12, 5)}, "magic", CodeImageInvalid},
		{"chip before revision", []func([]byte, *Target){edit(12, 5), edit(15, 0xFF)}, "chip", CodeFail},
		{"min revision before segment count", []func([]byte, *Target){func(_ []byte, t *Target) { t.Revision = 99 }, edit(1, 17)}, "minimal chip revision", CodeFail},
		{"max revision", []func([]byte, *Target){func(_ []byte, t *Target) { t.Revision = 200 }}, "maximal chip revision", CodeFail},
		{"max revision switched off by efuse", []func([]byte, *Target){func(_ []byte, t *Target) { t.Revision, t.IgnoreMaxRevision = 200, true }}, "", 0},
		{"segment count before length", []func([]byte, *Target){edit(1, 17), edit(28, 3)}, "segment count", CodeImageInvalid},
		{"length before description", []func([]byte, *Target){edit(28, 3), edit(DescOffset, 0)}, "segment 0", CodeImageInvalid},
		{"length of 16 MiB", []func([]byte, *Target){edit(31, 1)}, "segment 0", CodeImageInvalid},
		{"description before alignment", []func([]byte, *Target){edit(DescOffset, 0), func(_ []byte, t *Target) { t.FlashOffset = 0x1000 }}, "description magic", CodeFail},
		{"alignment before block revision", []func([]byte, *Target){func(_ []byte, t *Target) { t.FlashOffset = 0x1000 }, edit(DescOffset+176, 9)}, "segment 0", CodeImageInvalid},
		{"aligned for 4 KiB pages", []func([]byte, *Target){func(_ []byte, t *Target) { t.FlashOffset = 0x1000 }, edit(DescOffset+180, 12)}, "checksum", CodeImageInvalid},
		{"page size 0 is the default", []func([]byte, *Target){func(_ []byte, t *Target) { t.FlashOffset = 0x10000 }, edit(DescOffset+180, 0)}, "checksum", CodeImageInvalid},
		{"page size beyond 32 bits", []func([]byte, *Target){edit(DescOffset+180, 200)}, "mmu page size", CodeImageInvalid},
		{"min block revision before data", []func([]byte, *Target){edit(DescOffset+176, 9)}, "minimal efuse block revision", CodeFail},
		{"max block revision before data", []func([]byte, *Target){edit(DescOffset+200, 9), func(_ []byte, t *Target) { t.EfuseBlockRevision = 100 }}, "maximal efuse block revision", CodeFail},
		{"max block revision switched off by efuse", []func([]byte, *Target){func(_ []byte, t *Target) { t.EfuseBlockRevision, t.IgnoreMaxBlockRevision = 100, true }}, "", 0},
		{"checksum before hash", []func([]byte, *Target){edit(DescOffset+200, 9)}, "checksum", CodeImageInvalid},
		{"fit before hash", []func([]byte, *Target){edit(len(good)-1, good[len(good)-1]^1), func(_ []byte, t *Target) { t.PartitionSize = int64(len(good)) - 1 }}, "image", CodeImageInvalid},
		{"hash", []func([]byte, *Target){edit(len(good)-1, good[len(good)-1]^1)}, "appended hash", CodeImageInvalid},
		{"no partition", []func([]byte, *Target){func(_ []byte, t *Target) { t.PartitionSize = 0 }}, "segment 0", CodeImageInvalid},
		{"room for the signature", []func([]byte, *Target){func(_ []byte, t *Target) { t.SignatureSpace, t.PartitionSize = true, 8192 }}, "", 0},
		{"no room for the signature", []func([]byte, *Target){func(_ []byte, t *Target) { t.SignatureSpace, t.PartitionSize = true, 8191 }}, "image", CodeImageInvalid},
		{"around the end of flash", []func([]byte, *Target){func(_ []byte, t *Target) { t.FlashOffset = 1<<32 - 1<<16 }}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, target := bytes.Clone(good), board
			for _, e := range c.edits {
				e(b, &target)
			}
			_, err := Verify(bytes.NewReader(b), target)
			if c.code == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			ve, ok := errors.AsType[*VerifyError](err)
			if !ok || ve.Code != c.code || ve.Field != c.field {
				t.Errorf("got %v, want %q with 0x%x", err, c.field, c.code)
			}
		})
	}
	big := mustBuild(t, BuildOptions{Chip: ESP32C6, Version: "1", Size: 1 << 17})
	if _, err := Verify(bytes.NewReader(big), Target{Chip: ESP32C6, PartitionSize: 1 << 20, FlashOffset: 1<<32 - 1<<16}); err == nil {
		t.Error("an image that wraps around the end of flash is accepted")
	}
	if _, err := Verify(nil, board); err == nil {
		t.Error("no reader is accepted")
	}
}

func TestSegmentsMustBeBelow16MiB(t *testing.T) {
	b := mustBuild(t, BuildOptions{Chip: ESP32, Version: "1"})
	for _, c := range []struct {
		length uint32
		offset int64 // of the complaint: the length, or the segment as too large for its partition
	}{{16<<20 - 4, 24}, {16 << 20, 28}, {1<<32 - 4, 28}} {
		binary.LittleEndian.PutUint32(b[28:], c.length)
		_, err := Verify(flashReader{b}, Target{Chip: ESP32, PartitionSize: 16 << 20})
		if ve, ok := errors.AsType[*VerifyError](err); !ok || ve.Offset != c.offset || ve.Code != CodeImageInvalid {
			t.Errorf("length 0x%x: %v", c.length, err)
		}
	}
}

// TestTheESP32DoesNotReadItsBlockRevision: alone among the chips.
func TestTheESP32DoesNotReadItsBlockRevision(t *testing.T) {
	for _, chip := range Chips() {
		b := mustBuild(t, BuildOptions{Chip: chip, Version: "1", NoHash: true})
		// 9 and 9 in the same column leave the checksum as it is.
		b[DescOffset+176] ^= 9
		b[DescOffset+184] ^= 9
		_, err := Verify(bytes.NewReader(b), Target{Chip: chip, PartitionSize: 1 << 20})
		if (err == nil) != (chip == ESP32) {
			t.Errorf("%s: %v", chip, err)
		}
	}
}

// meter counts what is read and fails when told to.
type meter struct {
	r       io.ReaderAt
	calls   int
	failAt  int // number of the call that fails; 0: none
	total   int64
	largest int
	highest int64
}

var errFlash = errors.New("flash does not answer")

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	m.calls++
	if m.calls == m.failAt {
		return 0, errFlash
	}
	m.total += int64(len(p))
	m.largest = max(m.largest, len(p))
	m.highest = max(m.highest, off+int64(len(p)))
	return m.r.ReadAt(p, off)
}

func TestVerifyReportsEveryReadError(t *testing.T) {
	b := mustBuild(t, BuildOptions{Chip: ESP32C3, Version: "1", Size: 256 << 10})
	target := Target{Chip: ESP32C3, PartitionSize: 1 << 20}
	whole := &meter{r: bytes.NewReader(b)}
	if _, err := Verify(whole, target); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= whole.calls; n++ {
		_, err := Verify(&meter{r: bytes.NewReader(b), failAt: n}, target)
		if ve, ok := errors.AsType[*VerifyError](err); !ok || !errors.Is(err, errFlash) || ve.Code != CodeFail {
			t.Errorf("read %d of %d failed: got %v", n, whole.calls, err)
		}
	}
}

// TestMemoryIsBoundedWhateverTheImageSays: neither a large image nor a header
// that promises one makes Verify hold or read more than it must.
func TestMemoryIsBoundedWhateverTheImageSays(t *testing.T) {
	b := mustBuild(t, BuildOptions{Chip: ESP32C3, Version: "1", Size: 4 << 20})
	lying := bytes.Clone(b)
	lying[1] = MaxSegments
	copy(lying[28:], "\xFC\xFF\xFF\x00")
	for name, c := range map[string]struct {
		file []byte
		good bool
	}{"large": {b, true}, "lying": {lying, false}} {
		m := &meter{r: flashReader{c.file}}
		target := Target{Chip: ESP32C3, PartitionSize: 4 << 20}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Verify(m, target)
		runtime.ReadMemStats(&after)
		if (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
		if m.largest > chunkSize || m.highest > target.PartitionSize || m.total > target.PartitionSize+DescSize {
			t.Errorf("%s: largest read %d, read up to 0x%x, %d bytes in all", name, m.largest, m.highest, m.total)
		}
	}
}

func TestFileLengthFindsTheSignatureSector(t *testing.T) {
	signed, err := os.ReadFile(filepath.Join("testdata", "signed", "app-esp32-1.0.0.rsa.bin"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	const sector = 77824
	block := func(magic byte) []byte {
		b := bytes.Clone(signed)
		b[sector] = magic
		binary.LittleEndian.PutUint32(b[sector+1196:], crc32.ChecksumIEEE(b[sector:sector+1196]))
		return b
	}
	badCRC := bytes.Clone(signed)
	badCRC[sector+100] ^= 1
	for _, c := range []struct {
		name  string
		flash []byte
		size  int64
		want  int64
	}{
		{"signed, in its slot", signed, 1536 << 10, int64(len(signed))},
		{"signed, sector ends with the slot", signed, int64(len(signed)), int64(len(signed))},
		{"sector does not fit", signed, int64(len(signed)) - 1, img.Length},
		{"slot erased behind the image", signed[:img.Length], 1536 << 10, img.Length},
		{"crc wrong", badCRC, 1536 << 10, img.Length},
		{"magic wrong, crc right", block(0xE6), 1536 << 10, img.Length},
		{"magic and crc right", block(0xE7), 1536 << 10, int64(len(signed))},
	} {
		if got := FileLength(flashReader{c.flash}, c.size, img); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
	if got := FileLength(bytes.NewReader(signed[:sector+100]), 1536<<10, img); got != img.Length {
		t.Errorf("reader ends in the block: got %d, want %d", got, img.Length)
	}
}

func TestTrialBehaviourOfRealFirmwareIsOK(t *testing.T) {
	b := vector(t, "app-esp32-1.0.0.bin")
	img, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := TrialBehaviour(bytes.NewReader(b), img); got != BehaviourOK {
		t.Errorf("real firmware: %q", got)
	}
	built := mustBuild(t, BuildOptions{Version: "1", Trial: BehaviourCrash})
	img, err = Parse(built)
	if err != nil {
		t.Fatal(err)
	}
	unknown := bytes.Clone(built)
	copy(unknown[trialOffset+len(trialMagic):], "melts")
	short := *img
	short.Segments = []Segment{{Length: DescSize}}
	for name, got := range map[string]Behaviour{
		"unknown word":   TrialBehaviour(bytes.NewReader(unknown), img),
		"short reader":   TrialBehaviour(bytes.NewReader(built[:trialOffset]), img),
		"failing reader": TrialBehaviour(&meter{r: bytes.NewReader(built), failAt: 1}, img),
		"short segment":  TrialBehaviour(bytes.NewReader(built), &short),
		"no image":       TrialBehaviour(bytes.NewReader(built), nil),
	} {
		if got != BehaviourOK {
			t.Errorf("%s: %q", name, got)
		}
	}
	if _, err := ParseBehaviour(""); err == nil {
		t.Error("ParseBehaviour accepts the empty word")
	}
}

func TestChipNames(t *testing.T) {
	for _, c := range Chips() {
		dashed := strings.ToUpper(strings.Replace(c.String(), "esp32", "esp32-", 1))
		for _, name := range []string{c.String(), strings.TrimSuffix(dashed, "-"), strings.ReplaceAll(dashed, "-", "_"), " " + c.String() + "\n"} {
			if got, err := ParseChip(name); err != nil || got != c {
				t.Errorf("ParseChip(%q) = %v, %v", name, got, err)
			}
		}
	}
	for _, name := range []string{"", "esp", "esp8266", "esp32x1", "c3", "chip-0x0005"} {
		if got, err := ParseChip(name); err == nil || !strings.Contains(err.Error(), "esp32, esp32s2, esp32c3") {
			t.Errorf("ParseChip(%q) = %v, %v", name, got, err)
		}
	}
	if got := ChipID(0x1234).String(); got != "chip-0x1234" {
		t.Errorf("unknown chip is called %q", got)
	}
	for c, want := range map[ChipID]int64{ESP32: 0x1000, ESP32S2: 0x1000, ESP32P4: 0x2000, ESP32C5: 0x2000, ESP32H4: 0x2000, ESP32C3: 0, ESP32S3: 0, 0x1234: 0} {
		if got := c.BootloaderOffset(); got != want {
			t.Errorf("bootloader of %s at 0x%x, want 0x%x", c, got, want)
		}
	}
}

func TestXorWordsIsTheXorOfAllBytes(t *testing.T) {
	b := mustBuild(t, BuildOptions{Version: "1", Size: 1 << 10})
	for n := range 200 {
		for start := range 9 {
			var want byte
			for _, c := range b[start : start+n] {
				want ^= c
			}
			if got := foldXOR(xorWords(b[start : start+n])); got != want {
				t.Fatalf("%d bytes from %d: got 0x%02x, want 0x%02x", n, start, got, want)
			}
		}
	}
}

func TestDescTextsMayFillTheirFields(t *testing.T) {
	d := &Desc{Version: strings.Repeat("v", 32), Project: strings.Repeat("p", 32), Time: strings.Repeat("t", 16), Date: strings.Repeat("d", 16), IDFVersion: strings.Repeat("i", 32)}
	b, err := AppendDesc(nil, d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseDesc(b)
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, bad := range map[string]*Desc{"version": {Version: strings.Repeat("v", 33)}, "date": {Date: strings.Repeat("d", 17)}, "nul": {Project: "a\x00b"}} {
		if _, err := AppendDesc(nil, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseDesc(b[:DescSize-1]); err == nil {
		t.Error("short description accepted")
	}
	if _, err := ParseHeader(make([]byte, HeaderSize)); err == nil {
		t.Error("header without magic accepted")
	}
	if _, err := ParseHeader([]byte{0xE9}); err == nil {
		t.Error("short header accepted")
	}
}
