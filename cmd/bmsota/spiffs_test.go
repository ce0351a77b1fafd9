package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/esp/spiffs"
)

func TestSPIFFSBuildGivesSpiffsgensBytes(t *testing.T) {
	want := readFile(t, vector(t, "spiffs/storage.bin"))
	dir := t.TempDir()
	order := writeFile(t, filepath.Join(dir, "order.txt"), []byte("ota_config.txt\r\n\n/mqtt_config.txt\n"))
	sorted, ordered := filepath.Join(dir, "s.bin"), filepath.Join(dir, "o.bin")
	mustRun(t, "spiffs", "build", "--size", "0xC0000", "testdata/spiffs/src", sorted)
	mustRun(t, "spiffs", "build", "--size", "768K", "--order", order, "testdata/spiffs/src", ordered)
	byPath, byList := readFile(t, sorted), readFile(t, ordered)
	if bytes.Equal(byPath, byList) {
		t.Error("the order has no effect")
	}
	if !bytes.Equal(byPath, want) && !bytes.Equal(byList, want) {
		t.Error("neither order gives the bytes of spiffsgen.py")
	}
	if out := mustRun(t, "spiffs", "build", "--size", "0xC0000", "testdata/spiffs/src", "-"); out != string(byPath) {
		t.Error("standard output differs from the file")
	}
	first := decodeJSON[[]spiffsRow](t, mustRun(t, "spiffs", "list", "--json", ordered))[0]
	if first.Name != "/ota_config.txt" {
		t.Errorf("the first file is %q, the order says /ota_config.txt", first.Name)
	}
}

func TestSPIFFSFolderToImageAndBack(t *testing.T) {
	src := t.TempDir()
	files := map[string]string{"b.txt": "two", "a-b": "dash", "empty": "", "a/nested.txt": "deep", "a/b/c": strings.Repeat("x", 5000)}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Join(src, filepath.Dir(name)), 0o777); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(src, filepath.FromSlash(name)), []byte(text))
	}
	if err := os.Symlink("b.txt", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	image, dst := filepath.Join(t.TempDir(), "s.bin"), filepath.Join(t.TempDir(), "new", "dst")
	if err := os.Mkdir(filepath.Join(src, "nothing-in-it"), 0o777); err != nil {
		t.Fatal(err)
	}
	w := decodeJSON[written](t, mustRun(t, "spiffs", "build", "--json", "--size", "64K", src, image))
	if w.Size != 64<<10 || len(w.SHA256) != 64 {
		t.Errorf("reported %+v", w)
	}
	rows := decodeJSON[[]spiffsRow](t, mustRun(t, "spiffs", "list", "--json", image))
	var names []string
	for _, r := range rows {
		names = append(names, r.Name)
		if r.Size != int64(len(files[strings.TrimPrefix(r.Name, "/")])) && r.Name != "/link" {
			t.Errorf("%+v has the wrong size", r)
		}
	}
	if want := []string{"/a-b", "/a/b/c", "/a/nested.txt", "/b.txt", "/empty", "/link"}; !slices.Equal(names, want) {
		t.Errorf("files %q, want %q", names, want)
	}
	for range 2 { // the second time over what the first one left
		mustRun(t, "spiffs", "extract", image, dst)
		for name, want := range files {
			if got := readFile(t, filepath.Join(dst, name)); string(got) != want {
				t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
			}
		}
	}
	if got := listing(t, dst); len(got) != 8 { // six files, two folders
		t.Errorf("extracted %q", got)
	}
}

func TestSPIFFSListPrintsDamageAsWarnings(t *testing.T) {
	image := vector(t, "spiffs/runtime-1-rewrite.bin")
	o := command(t, nil, "spiffs", "list", image)
	if o.code != exitDone || !strings.Contains(o.out, "ota_config.txt") {
		t.Errorf("exit %d, %q, %q", o.code, o.out, o.errout)
	}
	empty := filepath.Join(t.TempDir(), "e.bin")
	mustRun(t, "spiffs", "build", "--size", "64K", t.TempDir(), empty)
	if out := mustRun(t, "spiffs", "list", "--json", empty); strings.TrimSpace(out) != "[]" {
		t.Errorf("an empty image lists as %q, want []", out)
	}
}

func TestSPIFFSBuildRefusesWhatDoesNotBelong(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.bin")
	folder := func(files map[string]int) string {
		dir := t.TempDir()
		for name, size := range files {
			writeFile(t, filepath.Join(dir, name), make([]byte, size))
		}
		return dir
	}
	order := func(text string) string { return writeFile(t, filepath.Join(t.TempDir(), "order"), []byte(text)) }
	one := folder(map[string]int{"a": 1})
	dangling := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dangling, "link")); err != nil {
		t.Fatal(err)
	}
	linkedFolder := t.TempDir()
	if err := os.Symlink(one, filepath.Join(linkedFolder, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		code int
		says string
		args []string
	}{
		{"no size", exitUsage, "--size must be given", []string{one, out}},
		{"size 0", exitUsage, "--size", []string{"--size", "0", one, out}},
		{"odd size", exitUsage, "multiple", []string{"--size", "1000", one, out}},
		{"size beyond the format", exitUsage, "--size", []string{"--size", "32M", one, out}},
		{"missing folder", exitFailed, "there is no file", []string{"--size", "64K", filepath.Join(one, "x"), out}},
		{"file as folder", exitFailed, "is not a folder", []string{"--size", "64K", filepath.Join(one, "a"), out}},
		{"one file too large", exitRefused, "bytes", []string{"--size", "64K", folder(map[string]int{"a": 100 << 10}), out}},
		{"just too large", exitRefused, "do not fit", []string{"--size", "64K", folder(map[string]int{"a": 63 << 10}), out}},
		{"together too large", exitRefused, "what is left of the image", []string{"--size", "64K", folder(map[string]int{"a": 40 << 10, "b": 40 << 10}), out}},
		{"long name", exitRefused, "firmware can open at most", []string{"--size", "64K", folder(map[string]int{strings.Repeat("n", 31): 1}), out}},
		{"control character", exitRefused, `\x1b`, []string{"--size", "64K", folder(map[string]int{"a\x1b[2J": 1}), out}},
		{"backslash", exitRefused, "", []string{"--size", "64K", folder(map[string]int{`a\b`: 1}), out}},
		{"dangling link", exitFailed, "there is no file", []string{"--size", "64K", dangling, out}},
		{"link to a folder", exitRefused, "neither a file nor a folder", []string{"--size", "64K", linkedFolder, out}},
		{"unknown in order", exitRefused, `line 2: "b" is no file`, []string{"--size", "64K", "--order", order("a\nb\n"), one, out}},
		{"twice in order", exitRefused, `line 2: "a" is no file of the folder, or is there twice`, []string{"--size", "64K", "--order", order("a\n./a\n"), one, out}},
		{"outside in order", exitRefused, "is no file", []string{"--size", "64K", "--order", order("../a\n"), one, out}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustFail(t, c.code, c.says, append([]string{"spiffs", "build"}, c.args...)...)
			if _, err := os.Lstat(out); err == nil {
				t.Error("an image was written")
			}
		})
	}
}

// imageNamed gives an image with a name that Build refuses, by changing one in a good image.
func imageNamed(t *testing.T, from, to string, more ...spiffs.File) string {
	t.Helper()
	if len(from) != len(to) {
		t.Fatal("names must have the same length")
	}
	image, err := spiffs.Build(64<<10, append([]spiffs.File{{Name: "/first", Data: []byte("1")}, {Name: from, Data: []byte("evil")}}, more...))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(image, []byte(from)) != 1 {
		t.Fatalf("%q is not in the image exactly once", from)
	}
	return writeFile(t, filepath.Join(t.TempDir(), "evil.bin"), bytes.Replace(image, []byte(from), []byte(to), 1))
}

func TestSPIFFSExtractNeverLeavesItsFolder(t *testing.T) {
	for _, name := range []string{"/../evil.t", "//evil.txt", "/a/../../b", "/.........", "/a\x00......", "/a\\..\\..b", "/C:\\evil.t", "/\x1b[2Jevil", "/a/./b.txt"} {
		from := "/" + strings.Repeat("q", len(name)-1)
		image := imageNamed(t, from, name)
		parent := t.TempDir()
		o := command(t, nil, "spiffs", "extract", image, filepath.Join(parent, "d"))
		if _, err := spiffs.SafeName(strings.SplitN(name, "\x00", 2)[0]); err == nil {
			if o.code != exitDone {
				t.Errorf("%q is safe, but exit %d: %s", name, o.code, o.errout)
			}
			continue
		}
		checkFault(t, o, exitRefused, "", []string{name})
		if left := listing(t, parent); len(left) > 0 {
			t.Errorf("%q: wrote %q", name, left)
		}
		// Looking is allowed, and cannot hurt the terminal.
		if o := command(t, nil, "spiffs", "list", image); o.code != exitDone || strings.ContainsAny(o.out+o.errout, "\x1b\x00") {
			t.Errorf("%q: list ends with %d and %q", name, o.code, o.out)
		}
	}
}

func TestSPIFFSExtractFollowsNoLinkOutOfItsFolder(t *testing.T) {
	image, err := spiffs.Build(64<<10, []spiffs.File{{Name: "/ok", Data: []byte("1")}, {Name: "/sub/evil", Data: []byte("2")}})
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "i.bin"), image)
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	mustFail(t, exitFailed, "write", "spiffs", "extract", file, dir)
	if left := listing(t, outside); len(left) > 0 {
		t.Errorf("wrote %q outside", left)
	}
	if left := listing(t, dir); !slices.Equal(left, []string{"sub"}) {
		t.Errorf("left behind %q", left)
	}
}

func TestSPIFFSExtractIsAllOrNothing(t *testing.T) {
	image, err := spiffs.Build(64<<10, []spiffs.File{{Name: "/a", Data: []byte("new")}, {Name: "/z", Data: []byte("new")}})
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "i.bin"), image)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), []byte("old"))
	if err := os.Mkdir(filepath.Join(dir, "z"), 0o777); err != nil {
		t.Fatal(err)
	}
	mustFail(t, exitFailed, "is a folder", "spiffs", "extract", file, dir)
	if got := readFile(t, filepath.Join(dir, "a")); string(got) != "old" {
		t.Errorf("a is %q although the command failed", got)
	}
	if left := listing(t, dir); !slices.Equal(left, []string{"a", "z"}) {
		t.Errorf("left behind %q", left)
	}
	both, err := spiffs.Build(64<<10, []spiffs.File{{Name: "/a", Data: []byte("1")}, {Name: "/a/b", Data: []byte("2")}})
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, exitRefused, "is a file and the folder of", "spiffs", "extract", writeFile(t, filepath.Join(t.TempDir(), "i.bin"), both), t.TempDir())
	mustFail(t, exitFailed, "", "spiffs", "extract", file, file)
}

func TestSPIFFSExtractLeavesOutDamagedFilesOnlyWhenTold(t *testing.T) {
	image, err := spiffs.Build(64<<10, []spiffs.File{{Name: "/good", Data: []byte("good")}, {Name: "/torn", Data: bytes.Repeat([]byte("x"), 1000)}})
	if err != nil {
		t.Fatal(err)
	}
	// The size in the index header says more than there are pages for.
	at := bytes.Index(image, []byte("/torn")) - 5
	copy(image[at:], []byte{0x00, 0xF0, 0x00, 0x00})
	file := writeFile(t, filepath.Join(t.TempDir(), "i.bin"), image)
	dir := filepath.Join(t.TempDir(), "d")
	mustFail(t, exitRefused, "/torn is damaged", "spiffs", "extract", file, dir)
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was made although nothing was extracted")
	}
	o := command(t, nil, "spiffs", "extract", "--skip-damaged", file, dir)
	if o.code != exitDone || !strings.Contains(o.errout, "torn is left out") {
		t.Fatalf("exit %d, stderr %q", o.code, o.errout)
	}
	if left := listing(t, dir); !slices.Equal(left, []string{"good"}) {
		t.Errorf("extracted %q", left)
	}
	rows := decodeJSON[[]spiffsRow](t, command(t, nil, "spiffs", "list", "--json", file).out)
	if len(rows) != 2 || rows[0].Error != "" || rows[1].Error == "" {
		t.Errorf("rows %+v", rows)
	}
}

func TestSPIFFSExtractedFilesAreOrdinary(t *testing.T) {
	image := vector(t, "spiffs/storage.bin")
	dir := filepath.Join(t.TempDir(), "d")
	mustRun(t, "spiffs", "extract", image, dir)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			info, err := d.Info()
			if err != nil || info.Mode()&0o111 != 0 || !bytes.Equal(readFile(t, p), readFile(t, filepath.Join("testdata/spiffs/src", d.Name()))) {
				t.Errorf("%s: %v, %v", p, info.Mode(), err)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
