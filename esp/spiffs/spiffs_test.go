package spiffs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testSize = 64 << 10

func readImage(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fromFolder takes files of a testdata folder in the order given, as the walk that made the vector met them.
func fromFolder(t testing.TB, folder string, names ...string) []File {
	t.Helper()
	var files []File
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join("testdata", folder, filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{"/" + name, b})
	}
	return files
}

func mustBuild(t testing.TB, size int64, files ...File) []byte {
	t.Helper()
	image, err := Build(size, files)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func mustRead(t testing.TB, image []byte) *FS {
	t.Helper()
	f, err := Read(image)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// wantFiles checks names, order, sizes and content.
func wantFiles(t testing.TB, f *FS, want []File) {
	t.Helper()
	infos := f.Files()
	if len(infos) != len(want) {
		t.Fatalf("got %d files %v, want %d", len(infos), infos, len(want))
	}
	for i, w := range want {
		if infos[i].Name != w.Name || infos[i].Size != int64(len(w.Data)) || infos[i].Err != nil {
			t.Errorf("file %d: got %+v, want %q of %d bytes", i, infos[i], w.Name, len(w.Data))
		}
		if got, err := f.ReadFile(w.Name); err != nil || !bytes.Equal(got, w.Data) {
			t.Errorf("%q: got %d bytes, %v; want %d bytes", w.Name, len(got), err, len(w.Data))
		}
	}
}

func wantAnomaly(t testing.TB, f *FS, part string) {
	t.Helper()
	if all := strings.Join(f.Anomalies(), "\n"); !strings.Contains(all, part) {
		t.Errorf("no anomaly says %q; there are:\n%s", part, all)
	}
}

func TestBuildGivesTheBytesOfSpiffsgen(t *testing.T) {
	for _, c := range []struct {
		vector string
		files  []File
	}{
		{"storage.bin", fromFolder(t, "src", "mqtt_config.txt", "ota_config.txt")},
		{"multi.bin", fromFolder(t, "src2", "exact251.bin", "empty.txt", "big.bin", "sub/nested.txt")},
	} {
		t.Run(c.vector, func(t *testing.T) {
			want := readImage(t, c.vector)
			got := mustBuild(t, int64(len(want)), c.files...)
			if !bytes.Equal(got, want) {
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("first difference at 0x%x: got %02x, want %02x", i, got[i], want[i])
					}
				}
			}
			f := mustRead(t, want)
			wantFiles(t, f, c.files)
			if a := f.Anomalies(); len(a) > 0 {
				t.Errorf("anomalies in a sound image: %q", a)
			}
		})
	}
}

func TestFormattedByFirmwareDiffersInEraseCountsOnly(t *testing.T) {
	want := readImage(t, "formatted-64k.bin")
	got := mustBuild(t, int64(len(want)))
	for b := 0; b < len(got); b += 4096 {
		if count := got[b+254 : b+256]; count[0] != 0xFF || count[1] != 0xFF {
			t.Fatalf("block at 0x%x: built erase count %x, want unset", b, count)
		}
		copy(got[b+254:], []byte{0, 0})
	}
	if !bytes.Equal(got, want) {
		t.Error("images differ beyond the erase counts")
	}
	f := mustRead(t, want)
	if len(f.Files()) != 0 || len(f.Anomalies()) != 0 {
		t.Errorf("got %v, %q", f.Files(), f.Anomalies())
	}
}

// The firmware opened ota_config.txt for truncation, wrote it anew and closed it: two deleted headers, one live.
func TestImageRewrittenByFirmwareListsAndExtracts(t *testing.T) {
	f := mustRead(t, readImage(t, "runtime-1-rewrite.bin"))
	mqtt := fromFolder(t, "src", "mqtt_config.txt")[0]
	ota := File{"/ota_config.txt", []byte("url=https://ota.example.test/fw\nversion=1.1.0\nchannel=beta\ninterval=600\n")}
	wantFiles(t, f, []File{mqtt, ota})
	if a := f.Anomalies(); len(a) > 0 {
		t.Errorf("anomalies: %q", a)
	}
	infos := f.Files()
	if infos[0].ModTime != 0 || infos[1].ModTime != 0x6910c780 || infos[1].ID != 2 {
		t.Errorf("got %+v", infos)
	}
	if _, err := f.ReadFile("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestBuildRefusesWhatFirmwareCouldNotUse(t *testing.T) {
	long := "/" + strings.Repeat("n", 30)
	full := 16*15*251 - 2*251 - 251 // 240 pages: one header, one more index page, one page for data past its 103
	for _, c := range []struct {
		name  string
		size  int64
		files []File
		want  string // part of the error; empty for none
	}{
		{"name of 31 bytes", testSize, []File{{Name: long}}, ""},
		{"name of 32 bytes", testSize, []File{{Name: long + "n"}}, "has 32 bytes, firmware can open at most 31"},
		{"a name twice", testSize, []File{{Name: "/a"}, {Name: "/b"}, {Name: "/a"}}, `"/a" is there twice`},
		{"no slash", testSize, []File{{Name: "a"}}, "does not start with a slash"},
		{"empty name", testSize, []File{{Name: ""}}, "does not start with a slash"},
		{"only a slash", testSize, []File{{Name: "/"}}, "not safe"},
		{"NUL", testSize, []File{{Name: "/a\x00b"}}, "not safe"},
		{"parent", testSize, []File{{Name: "/../a"}}, "not safe"},
		{"size 0", 0, nil, "not a multiple"},
		{"negative size", -4096, nil, "not a multiple"},
		{"size between blocks", testSize + 256, nil, "image size 65792 is not a multiple of the block size 4096"},
		{"past 16-bit page numbers", 16<<20 + 4096, nil, "16-bit page numbers"},
		{"exactly full", testSize, []File{{"/a", make([]byte, full)}}, ""},
		{"one byte too many", testSize, []File{{"/a", make([]byte, full+1)}}, "need 241 pages of 256 bytes, an image of 65536 bytes has 240"},
		// 60000 data pages and 485 of index; the last page of 16 MiB would have the number that means "no page".
		{"all of 16 MiB but its last page", 16 << 20, append(manyFiles(954), File{"/big", make([]byte, 60000*251)}), ""},
		{"the last page of 16 MiB", 16 << 20, append(manyFiles(955), File{"/big", make([]byte, 60000*251)}), "need 61440 pages of 256 bytes, an image of 16777216 bytes has 61439"},
		{"one file too many", 4096, manyFiles(16), "need 16 pages of 256 bytes, an image of 4096 bytes has 15"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, err := Build(c.size, c.files)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantFiles(t, mustRead(t, image), c.files)
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if full := strings.Contains(c.want, "need"); errors.Is(err, ErrFull) != full {
				t.Errorf("errors.Is(%v, ErrFull) = %t", err, !full)
			}
		})
	}
}

func manyFiles(n int) []File {
	files := make([]File, n)
	for i := range files {
		files[i].Name = fmt.Sprintf("/f%d", i)
	}
	return files
}

func randomFiles(r *rand.Rand, n, room int) []File {
	files := manyFiles(n)
	for i := range files {
		size := r.IntN(room/n + 1)
		if r.IntN(3) == 0 {
			size = min(251*r.IntN(4), room/n) // whole pages
		}
		files[i].Data = make([]byte, size)
		for j := range files[i].Data {
			files[i].Data[j] = byte(r.Uint32())
		}
	}
	r.Shuffle(n, func(i, j int) { files[i], files[j] = files[j], files[i] })
	return files
}

func TestWhatWasBuiltReadsBack(t *testing.T) {
	layouts := []Config{
		DefaultConfig(0),
		{PageSize: 512, BlockSize: 8192, NameSize: 64, MetaSize: 0, Magic: true},
		{PageSize: 256, BlockSize: 65536, NameSize: 16, MetaSize: 8, Magic: true, MagicLength: true}, // two lookup pages
		{PageSize: 1024, BlockSize: 4096, NameSize: 33, MetaSize: 4},
	}
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := layouts[seed%uint64(len(layouts))]
		c.Size = int64(c.BlockSize * (1 + r.IntN(20)))
		files := randomFiles(r, 1+r.IntN(int(c.Size)/c.BlockSize), int(c.Size)*2/5)
		image, err := c.Build(files)
		if errors.Is(err, ErrFull) {
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		f, err := c.Read(image)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		wantFiles(t, f, files)
		if a := f.Anomalies(); len(a) > 0 || t.Failed() {
			t.Fatalf("seed %d: anomalies %q", seed, a)
		}
	}
}

func TestConfigRefusesImpossibleLayouts(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.PageSize = 0 },
		func(c *Config) { c.PageSize = 300 },
		func(c *Config) { c.BlockSize = 0 },
		func(c *Config) { c.BlockSize = 256 },
		func(c *Config) { c.NameSize = 0 },
		func(c *Config) { c.NameSize = 240 },
		func(c *Config) { c.MetaSize = -1 },
		func(c *Config) { c.BlockSize = 32768 }, // 127 entries and the magic do not share a page of 128
	} {
		c := DefaultConfig(testSize)
		change(&c)
		if _, err := c.Build(nil); err == nil {
			t.Errorf("%+v builds", c)
		}
		if _, err := c.Read(make([]byte, testSize)); err == nil {
			t.Errorf("%+v reads", c)
		}
	}
}

func TestSafeNameStaysInItsFolder(t *testing.T) {
	for name, want := range map[string]string{
		"/ota_config.txt": "ota_config.txt", "/sub/a b..c": "sub/a b..c", "plain": "plain", "/...": "...", "/ü": "ü",
		"": "", "/": "", "//etc/passwd": "", "/../x": "", "/a/../../x": "", "/a/./b": "", "/a//b": "", "/a/": "", "..": "", ".": "",
		`/..\x`: "", `\\host\share`: "", "/C:/x": "", "c:x": "", "/a\x00b": "", "/a\nb": "", "/a\x1b[2J": "", "/\xff": "",
	} {
		got, err := SafeName(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("SafeName(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

func Example() {
	image, err := Build(0xC0000, []File{{"/mqtt_config.txt", []byte(`{"broker_host":"10.0.0.2"}`)}})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := Read(image)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, info := range f.Files() {
		data, err := f.ReadFile(info.Name)
		fmt.Println(info.Name, info.Size, string(data), err)
	}
	// Output: /mqtt_config.txt 26 {"broker_host":"10.0.0.2"} <nil>
}

func BenchmarkBuild(b *testing.B) {
	files := []File{{"/a", make([]byte, 500<<10)}}
	b.SetBytes(0xC0000)
	for b.Loop() {
		if _, err := Build(0xC0000, files); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	image := mustBuild(b, 0xC0000, File{"/a", make([]byte, 500<<10)})
	b.SetBytes(0xC0000)
	for b.Loop() {
		if _, err := Read(image); err != nil {
			b.Fatal(err)
		}
	}
}

func put16(b []byte, v uint16) { binary.LittleEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }
