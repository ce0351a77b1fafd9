package spiffs

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// Pages of an image of one file in its first block: 1 index header, 2 and on data.
const (
	testHeader = 1
	testData   = 2
)

// damagedImage is an image with "/a" (700 bytes, pages 1 to 4) and "/b" (pages 5 and 6), after change.
func damagedImage(t testing.TB, change func(page func(n int) []byte, lookup func(n int) []byte)) *FS {
	t.Helper()
	image := mustBuild(t, testSize, File{"/a", bytes.Repeat([]byte("a"), 700)}, File{"/b", []byte("b")})
	change(
		func(n int) []byte { return image[n*256:][:256] },
		func(n int) []byte { return image[(n-1)*2:][:2] },
	)
	return mustRead(t, image)
}

func TestDamageStaysWithinTheFile(t *testing.T) {
	type pages = func(n int) []byte
	for _, c := range []struct {
		name   string
		change func(page, lookup pages)
		want   string // in the error of /a and among the anomalies
	}{
		{"size 4 GiB", func(page, _ pages) { put32(page(testHeader)[8:], 0xFFFFFFFE) }, "more than the image can hold"},
		{"size a little more than its pages", func(page, _ pages) { put32(page(testHeader)[8:], 3*251+1) }, "data span 3 has no page"},
		{"size that needs another index page", func(page, _ pages) { put32(page(testHeader)[8:], 60000) }, "data span 3 has no page"},
		{"page outside the image", func(page, _ pages) { put16(page(testHeader)[49:], 256) }, "points outside the image"},
		{"last page number", func(page, _ pages) { put16(page(testHeader)[49:], 0xFFFE) }, "points outside the image"},
		{"lookup page", func(page, _ pages) { put16(page(testHeader)[49:], 16) }, "points to a lookup page"},
		{"cycle to its own header", func(page, _ pages) { put16(page(testHeader)[51:], testHeader) }, "points to a page of object 8001"},
		{"the same page twice", func(page, _ pages) { put16(page(testHeader)[51:], testData) }, "span 0"},
		{"page of another file", func(page, _ pages) { put16(page(testHeader)[49:], 6) }, "points to a page of object 0002"},
		{"free page", func(page, _ pages) { put16(page(testHeader)[49:], 9) }, "points to a page of object ffff"},
		{"deleted data page", func(page, _ pages) { page(testData)[4] = 0x7C }, "is deleted or was not finished"},
		{"unfinished data page", func(page, _ pages) { page(testData)[4] = 0xFE }, "is deleted or was not finished"},
		{"data page marked as index", func(page, _ pages) { page(testData)[4] = 0xF8 }, "is deleted or was not finished"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := damagedImage(t, c.change)
			data, err := f.ReadFile("/a")
			var fault *FormatError
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), c.want) || data != nil {
				t.Errorf("got %d bytes, error %v; want %q", len(data), err, c.want)
			}
			wantAnomaly(t, f, c.want)
			if b, err := f.ReadFile("/b"); err != nil || string(b) != "b" {
				t.Errorf("the sound file: %q, %v", b, err)
			}
		})
	}
}

func TestHeadersThatAreNoFiles(t *testing.T) {
	type pages = func(n int) []byte
	for _, c := range []struct {
		name    string
		change  func(page, lookup pages)
		files   string
		anomaly string // empty for none at all
	}{
		{"deleted as firmware deletes", func(page, lookup pages) {
			for n := 1; n <= 4; n++ {
				put16(lookup(n), 0)
				page(n)[4] &^= 0x81
			}
		}, "/b", ""},
		{"cut before the flags were written", func(_, lookup pages) {
			for n := 1; n <= 4; n++ {
				put16(lookup(n), 0)
			}
		}, "/b", ""},
		{"half deleted", func(page, _ pages) { page(testHeader)[4] &^= flagIndexDeleted }, "/b", "half deleted"},
		{"not finished", func(page, _ pages) { page(testHeader)[4] |= flagFinal }, "/b", "3 data pages belong to 1 objects without an index header"},
		{"deleted but entered", func(page, _ pages) { page(testHeader)[4] &^= flagDeleted }, "/b", "deleted but still entered"},
		{"entered under another id", func(_, lookup pages) { put16(lookup(testHeader), 0x8009) }, "/b", "entered as 8009 but says it is 8001"},
		{"empty, made by firmware", func(page, _ pages) { put32(page(5)[8:], 0xFFFFFFFF) }, "/a /b", ""},
		{"name without an end", func(page, _ pages) { copy(page(5)[13:45], strings.Repeat("x", 32)) }, "/a " + strings.Repeat("x", 32), "name without an end"},
		{"two files of one name", func(page, _ pages) { page(5)[14] = 'a' }, "/a", `both have the name "/a"`},
		{"not a file", func(page, _ pages) { page(5)[12] = 2 }, "/a /b", "has type 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := damagedImage(t, c.change)
			var names []string
			for _, info := range f.Files() {
				names = append(names, info.Name)
			}
			if got := strings.Join(names, " "); got != c.files {
				t.Errorf("files %q, want %q", got, c.files)
			}
			if c.anomaly != "" {
				wantAnomaly(t, f, c.anomaly)
			} else if a := f.Anomalies(); len(a) > 0 {
				t.Errorf("anomalies %q", a)
			}
		})
	}
}

func TestFileMadeByFirmwareAndNeverWrittenIsEmpty(t *testing.T) {
	f := damagedImage(t, func(page, _ func(int) []byte) {
		put32(page(5)[8:], 0xFFFFFFFF)
		copy(page(5)[45:49], []byte{0xFF, 0xFF, 0xFF, 0xFF})
	})
	info := f.Files()[1]
	data, err := f.ReadFile("/b")
	if err != nil || len(data) != 0 || info.Size != 0 || info.ModTime != 0 {
		t.Errorf("got %q, %v, %+v", data, err, info)
	}
}

// A power cut between writing the new index header and deleting the old one leaves both.
func TestOfTwoLiveHeadersTheWholeOneIsTaken(t *testing.T) {
	second := func(page, lookup func(int) []byte) []byte {
		copy(page(7), page(testHeader))
		put16(lookup(7), 0x8001)
		return page(7)
	}
	for _, c := range []struct {
		name     string
		change   func(page, lookup func(int) []byte)
		size     int
		anomaly  string
		wantFile bool
	}{
		{"both whole: the first, as firmware", func(page, lookup func(int) []byte) {
			put32(second(page, lookup)[8:], 600)
		}, 700, "2 live index headers", true},
		{"first damaged", func(page, lookup func(int) []byte) {
			put32(second(page, lookup)[8:], 600)
			put16(page(testHeader)[49:], 9)
		}, 600, "2 live index headers", true},
		{"first not finished", func(page, lookup func(int) []byte) {
			put32(second(page, lookup)[8:], 600)
			page(testHeader)[4] |= flagFinal
		}, 600, "was not finished", true},
		{"first half deleted", func(page, lookup func(int) []byte) {
			put32(second(page, lookup)[8:], 600)
			page(testHeader)[4] &^= flagIndexDeleted
		}, 600, "half deleted", true},
		{"both damaged", func(page, lookup func(int) []byte) {
			put16(second(page, lookup)[49:], 9)
			put16(page(testHeader)[49:], 9)
		}, 0, "cannot be read", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := damagedImage(t, c.change)
			data, err := f.ReadFile("/a")
			if (err == nil) != c.wantFile || len(data) != c.size {
				t.Errorf("got %d bytes, %v; want %d", len(data), err, c.size)
			}
			wantAnomaly(t, f, c.anomaly)
		})
	}
}

func TestOfTwoIndexPagesTheWholeOneIsTaken(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 4000) // 160 spans: 103 and 57
	image := mustBuild(t, testSize, File{"/a", content})
	var old int
	for page := range testSize / 256 {
		if b := image[page*256:]; page%16 > 0 && bytes.Equal(b[:5], []byte{1, 0x80, 1, 0, 0xF8}) {
			old = page
		}
	}
	if old == 0 {
		t.Fatal("the image has no second index page")
	}
	spare := testSize/256 - 1
	copy(image[spare*256:][:256], image[old*256:][:256])
	put16(image[testSize-4096+14*2:], 0x8001)
	put16(image[old*256+8+56*2:], 3) // its last number is wrong now; the copy's is right

	f := mustRead(t, image)
	wantAnomaly(t, f, "two pages of index 1")
	if got, err := f.ReadFile("/a"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	image[spare*256+4] |= flagFinal
	f = mustRead(t, image)
	wantAnomaly(t, f, "data span 159 points to")
	image[old*256+4] |= flagFinal
	f = mustRead(t, image)
	wantAnomaly(t, f, "page 1 of the index is missing")
}

func TestOneHalfErasedBlockMountsTwoDoNot(t *testing.T) {
	image := mustBuild(t, testSize, File{"/a", []byte("first block")}, File{"/big", make([]byte, 14*251)}, File{"/c", []byte("second block")})
	second := mustRead(t, image)
	if len(second.Files()) != 3 {
		t.Fatal(second.Files())
	}
	put16(image[252:], 0)
	f := mustRead(t, image)
	wantAnomaly(t, f, "block 0 was left half erased")
	if _, err := f.ReadFile("/a"); err == nil {
		t.Error("a file of the erased block is still there")
	}
	if b, err := f.ReadFile("/c"); err != nil || string(b) != "second block" {
		t.Errorf("the other block: %q, %v", b, err)
	}
	put16(image[4096+252:], 0)
	var fault *FormatError
	if _, err := Read(image); !errors.As(err, &fault) || fault.Field != "magic" || fault.Offset != 4096+252 {
		t.Errorf("two blocks: %v", err)
	}
}

func TestReadRefusesWhatIsNoImage(t *testing.T) {
	for name, image := range map[string][]byte{
		"nothing":         nil,
		"half a block":    make([]byte, 2048),
		"a foreign block": make([]byte, 4096),
		"zeros":           make([]byte, testSize),
		"erased":          bytes.Repeat([]byte{0xFF}, testSize),
		"another size":    mustBuild(t, testSize)[:testSize-4096],
		"too large":       make([]byte, 16<<20+4096),
	} {
		if f, err := Read(image); err == nil {
			t.Errorf("%s: read as %v", name, f.Files())
		}
	}
}

// An image full of headers of one object, each with a size and an index that make it look at everything, must not make
// reading take the product of both.
func TestHostileImageIsReadInBoundedTime(t *testing.T) {
	const size = 16 << 20
	image := mustBuild(t, size, File{"/big", make([]byte, 6<<20)})
	header := slices.Clone(image[256:512])
	headers := 0
	for page := 30000; page < size/256; page++ {
		if page%16 == 0 {
			continue
		}
		copy(image[page*256:], header)
		put32(image[page*256+8:], 6<<20+251*2) // a little more than there is: the last page is looked for, in vain
		put16(image[page/16*4096+(page%16-1)*2:], 0x8001)
		headers++
	}
	put32(image[256+8:], 6<<20+251*2)
	start := time.Now()
	f := mustRead(t, image)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("%d headers took %v", headers, took)
	}
	if f.Files()[0].Err == nil {
		t.Error("a size beyond the data was believed")
	}
}

func TestAnomaliesAreBounded(t *testing.T) {
	image := mustBuild(t, 1<<20)
	for page := range len(image) / 256 {
		if page%16 > 0 {
			put16(image[page/16*4096+(page%16-1)*2:], uint16(0x8001+page))
		}
	}
	a := mustRead(t, image).Anomalies()
	if len(a) != maxAnomalies+1 || a[maxAnomalies] != "and 3640 more" {
		t.Errorf("%d anomalies, the last %q", len(a), a[len(a)-1])
	}
}

func FuzzRead(f *testing.F) {
	f.Add(mustBuild(f, 4096, File{"/a", bytes.Repeat([]byte("a"), 700)}, File{"/b", nil}))
	f.Add(mustBuild(f, 8192, File{"/a", make([]byte, 14*251)}, File{"/b", make([]byte, 2*251)}))
	f.Add(readImage(f, "runtime-1-rewrite.bin")[:4096]) // only without the magic, which belongs to the whole
	f.Fuzz(func(t *testing.T, image []byte) {
		for len(image)%4096 != 0 { // so that a change of length does not end the search
			image = append(image, 0xFF)
		}
		before := slices.Clone(image)
		for _, magic := range []bool{true, false} { // without the magic random bytes get further
			c := DefaultConfig(int64(len(image)))
			c.Magic = magic
			fsys, err := c.Read(image)
			if err != nil {
				continue
			}
			total := 0
			names := make(map[string]bool)
			for _, info := range fsys.Files() {
				if names[info.Name] {
					t.Fatalf("%q is listed twice", info.Name)
				}
				names[info.Name] = true
				data, err := fsys.ReadFile(info.Name)
				if (err == nil) != (info.Err == nil) || err == nil && int64(len(data)) != info.Size {
					t.Fatalf("%+v reads as %d bytes, %v", info, len(data), err)
				}
				total += len(data)
			}
			if total > len(image) {
				t.Fatalf("%d bytes out of an image of %d", total, len(image))
			}
			fsys.Anomalies()
		}
		if !bytes.Equal(image, before) {
			t.Fatal("the image was changed")
		}
	})
}
