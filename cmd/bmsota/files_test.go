package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// outcome is what one command line did.
type outcome struct {
	code        int
	out, errout string
}

// command runs a command line in-process, as main does.
func command(t *testing.T, stdin []byte, args ...string) outcome {
	t.Helper()
	var out, errout bytes.Buffer
	code := run(t.Context(), streams{bytes.NewReader(stdin), &out, &errout}, args)
	return outcome{code, out.String(), errout.String()}
}

// mustRun runs a command line that has to succeed without a word on standard error.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	o := command(t, nil, args...)
	if o.code != exitDone || o.errout != "" {
		t.Fatalf("%q: exit %d, stderr %q", args, o.code, o.errout)
	}
	return o.out
}

// mustFail runs a command line that has to end with code and a fault a person can act on: one sentence that contains
// says, perhaps a hint, and nothing that only a Go programmer reads.
func mustFail(t *testing.T, code int, says string, args ...string) outcome {
	t.Helper()
	o := command(t, nil, args...)
	checkFault(t, o, code, says, args)
	return o
}

func checkFault(t *testing.T, o outcome, code int, says string, args []string) {
	t.Helper()
	if o.code != code {
		t.Errorf("%q: exit %d, want %d; stderr %q", args, o.code, code, o.errout)
	}
	var lines []string
	for line := range strings.Lines(o.errout) {
		if !strings.Contains(line, ": warning: ") {
			lines = append(lines, line)
		}
	}
	if len(lines) < 1 || len(lines) > 2 {
		t.Errorf("%q: a fault is one or two lines, got %d: %q", args, len(lines), o.errout)
		return
	}
	if len(lines) == 2 && !strings.Contains(lines[1], ": hint: ") {
		t.Errorf("%q: second line %q is no hint", args, lines[1])
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "bmsota ") {
			t.Errorf("%q: line %q does not start with the command", args, line)
		}
	}
	if !strings.Contains(lines[0], says) {
		t.Errorf("%q: fault %q, want it to say %q", args, lines[0], says)
	}
	for _, noise := range []string{"goroutine", "panic", "%!", "&{", "0xc0", "<nil>", "open /", "\x1b"} {
		if strings.Contains(o.errout, noise) {
			t.Errorf("%q: stderr %q contains %q", args, o.errout, noise)
		}
	}
}

func decodeJSON[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// vector unpacks testdata/name.gz into a file of its own.
func vector(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", filepath.FromSlash(name)+".gz"))
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
	return writeFile(t, filepath.Join(t.TempDir(), filepath.Base(name)), b)
}

// listing is every name below dir, so that a test sees what a failed command left behind.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if p != dir {
			names = append(names, strings.TrimPrefix(p, dir+string(filepath.Separator)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// readers are the commands that read one file; every one of them must answer every bad file.
func readers(dir string) map[string][]string {
	return map[string][]string{
		"image info":        {"image", "info", "FILE"},
		"image info json":   {"image", "info", "--json", "FILE"},
		"image verify":      {"image", "verify", "FILE"},
		"image sign":        {"image", "sign", "--key", "testdata/keys/p256-test.pem", "-o", filepath.Join(dir, "out"), "FILE"},
		"image sign key":    {"image", "sign", "--key", "FILE", "-o", filepath.Join(dir, "out"), "testdata/otadata/erased.bin"},
		"image verify key":  {"image", "verify", "--key", "FILE", "testdata/otadata/erased.bin"},
		"keys show":         {"keys", "show", "FILE"},
		"partition show":    {"partition", "show", "FILE"},
		"partition convert": {"partition", "convert", "FILE", filepath.Join(dir, "out")},
		"otadata show":      {"otadata", "show", "--json", "FILE"},
		"otadata set":       {"otadata", "set", "--slot", "1", "FILE"},
		"spiffs list":       {"spiffs", "list", "--json", "FILE"},
		"spiffs extract":    {"spiffs", "extract", "FILE", filepath.Join(dir, "out")},
		"spiffs order":      {"spiffs", "build", "--size", "64K", "--order", "FILE", "testdata/spiffs/src", filepath.Join(dir, "out")},
	}
}

func TestEveryReaderAnswersBadFilesAndWritesNothing(t *testing.T) {
	in := t.TempDir()
	garbage := bytes.Repeat([]byte{0x13, 0x00, 0xE7, 0x1B}, 1500)
	huge, err := os.Create(filepath.Join(in, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(huge.Truncate(64<<20), huge.Close()); err != nil {
		t.Fatal(err)
	}
	files := []struct {
		name, path string
		code       int
	}{
		{"missing", filepath.Join(in, "none"), exitFailed},
		{"folder", in, exitFailed},
		{"not a folder", filepath.Join("testdata", "keys", "p256-test.pem", "x"), exitFailed},
		{"empty", writeFile(t, filepath.Join(in, "empty"), nil), exitRefused},
		{"garbage", writeFile(t, filepath.Join(in, "garbage"), garbage), exitRefused},
		{"short", writeFile(t, filepath.Join(in, "short"), []byte{0xE9}), exitRefused},
		{"huge", huge.Name(), exitRefused},
		{"endless", "/dev/zero", exitRefused},
	}
	for _, f := range files {
		out := t.TempDir()
		for name, args := range readers(out) {
			if name == "spiffs order" && f.name == "empty" {
				continue // an empty list orders nothing and is right
			}
			t.Run(f.name+"/"+name, func(t *testing.T) {
				args = slices.Clone(args)
				args[slices.Index(args, "FILE")] = f.path
				mustFail(t, f.code, "", args...)
				if left := listing(t, out); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
	if got := readFile(t, filepath.Join(in, "garbage")); !bytes.Equal(got, garbage) {
		t.Error("a refused input was changed")
	}
}

func TestEveryReaderWantsExactlyItsArguments(t *testing.T) {
	dir := t.TempDir()
	for name, args := range readers(dir) {
		t.Run(name, func(t *testing.T) {
			mustFail(t, exitUsage, "arg", append(slices.Clone(args), "one", "two")...)
			mustFail(t, exitUsage, "unknown flag", append(slices.Clone(args), "--no-such-flag")...)
		})
	}
	for _, args := range [][]string{
		{"image", "nonsense"}, {"keys", "nonsense"}, {"partition", "nonsense"}, {"otadata", "nonsense"}, {"spiffs", "nonsense"},
	} {
		mustFail(t, exitUsage, "unknown command", args...)
	}
}

// brokenStream fails every read and write, as a closed pipe does.
type brokenStream struct{}

func (brokenStream) Read([]byte) (int, error)  { return 0, errors.New("the line is dead") }
func (brokenStream) Write([]byte) (int, error) { return 0, errors.New("the line is dead") }

func TestBrokenStandardStreamsAreFailures(t *testing.T) {
	for _, args := range [][]string{
		{"image", "info", "-"}, {"partition", "show", "-"}, {"otadata", "show", "-"}, {"spiffs", "list", "-"}, {"keys", "show", "-"},
		{"partition", "convert", "testdata/partition/partitions.csv", "-"},
		{"partition", "show", "testdata/partition/partitions.csv"},
		{"otadata", "show", "--json", "testdata/otadata/erased.bin"},
		{"image", "new", "--chip", "esp32", "--project", "p", "--version", "1.0.0", "-o", "-"},
	} {
		var errout bytes.Buffer
		code := run(t.Context(), streams{brokenStream{}, brokenStream{}, &errout}, args)
		if code == exitRefused {
			t.Errorf("%q: a dead line is exit %d, want %d", args, code, exitFailed)
		}
		checkFault(t, outcome{code, "", errout.String()}, exitFailed, "the line is dead", args)
	}
}

func TestOutputIsReplacedAsAWholeAndKeepsItsModeAndLinks(t *testing.T) {
	dir := t.TempDir()
	target := writeFile(t, filepath.Join(dir, "real.bin"), []byte("old"))
	if err := os.Chmod(target, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.bin")
	if err := os.Symlink("real.bin", link); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "partition", "convert", "testdata/partition/partitions.csv", link)
	if got, want := readFile(t, target), readFile(t, "testdata/partition/partitions.bin"); !bytes.Equal(got, want) {
		t.Error("the file behind the link is not the new table")
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want 0640", info.Mode(), err)
	}
	if got, want := listing(t, dir), []string{"link.bin", "real.bin"}; !slices.Equal(got, want) {
		t.Errorf("folder holds %q, want %q", got, want)
	}
}

func TestOutputThatCannotBeWrittenLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name, path, says string
	}{
		{"folder", dir, "is a folder"},
		{"no folder", filepath.Join(dir, "none", "out.bin"), "there is no folder"},
		{"file as folder", filepath.Join("testdata", "keys", "p256-test.pem", "out.bin"), "write"},
		{"name too long", filepath.Join(dir, strings.Repeat("x", 300)), "write"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustFail(t, exitFailed, c.says, "partition", "convert", "testdata/partition/partitions.csv", c.path)
			mustFail(t, exitFailed, c.says, "image", "new", "--chip", "esp32", "--project", "p", "--version", "1.0.0", "-o", c.path)
			mustFail(t, exitFailed, c.says, "spiffs", "build", "--size", "64K", "testdata/spiffs/src", c.path)
			if left := listing(t, dir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestSizeFlagReadsWhatPartitionTablesWrite(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "65536": 65536, "64K": 65536, "64k": 65536, "64KB": 65536, "0x10000": 65536, "0X10000": 65536,
		"1M": 1 << 20, "4MB": 4 << 20, "0x1M": 1 << 20, "0xC0000": 0xC0000, "010": 10, "4294967296": 1 << 32, "4096M": 1 << 32,
	} {
		var s sizeFlag
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "K", "MB", "0x", "-1", "+1", "1.5M", "1G", "64 K", "1_000", "0b1", "4294967297", "4097M",
		"99999999999999999999", "9999999999M", "١"} {
		var s sizeFlag
		if err := s.Set(text); err == nil {
			t.Errorf("%q was read as %d", text, s)
		}
	}
	mustFail(t, exitUsage, "not a size", "spiffs", "build", "--size", "lots", "testdata/spiffs/src", "-")
}

func TestTextFromFilesCannotDriveTheTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain 1.0": "plain 1.0", "Ärger": "Ärger", `a"b`: `a"b`,
		"a\x1b[2Jb": `a\x1b[2Jb`, "a\nb": `a\nb`, "\xff": `\xff`, "a\u202eb": `a\u202eb`,
	} {
		if got := plain(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	o := command(t, []byte("a\x1b[31m,data,nvs,0x9000,0x6000\nb,data,\x1b[31m,,0x1000\n"), "partition", "show", "-")
	checkFault(t, o, exitRefused, `\x1b[31`, []string{"partition", "show"})
}
