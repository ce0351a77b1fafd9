package lint

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// The files were written by git 2.39 (git add, git add -N for version 3, git update-index --index-version 4).
func TestIndexAsGitWritesIt(t *testing.T) {
	for _, name := range []string{"index-v2", "index-v3", "index-v4"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"a.txt", "ota_check.json", "ota_deploy_config.json", "sub/ota_deploy_config.json", "zzz"} {
			if !indexHas(b, path) {
				t.Errorf("%s has no %s", name, path)
			}
		}
		for _, path := range []string{"", "a", "a.txt2", "deploy_config.json", "docs/ota_deploy_config.json", "sub"} {
			if indexHas(b, path) {
				t.Errorf("%s has %q", name, path)
			}
		}
		for n := range b {
			indexHas(b[:n], "zzz") // a part of it must not panic
		}
	}
}

func TestIgnorePatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"x.json", "x.json", true}, {"x.json", "a/b/x.json", true}, {"/x.json", "x.json", true}, {"/x.json", "a/x.json", false},
		{"a/x.json", "a/x.json", true}, {"a/x.json", "b/a/x.json", false}, {"**/x.json", "a/b/x.json", true}, {"*.json", "x.json", true},
		{"a/", "a/x.json", true}, {"a/", "b/a/x.json", true}, {"x.json/", "x.json", false}, {"a", "a/x.json", true}, {"", "x.json", false},
		{"# x.json", "x.json", false}, {"[", "x.json", false}, {"?.json", "x.json", true}, {"/a/*.json", "a/x.json", true},
	} {
		if got := matches(c.pattern, c.name); got != c.want {
			t.Errorf("%q takes %q: %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
}

func FuzzIndex(f *testing.F) {
	for _, name := range []string{"index-v2", "index-v3", "index-v4"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "zzz")
	}
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if indexHas(b, name) && (len(b) < 12 || binary.BigEndian.Uint32(b[8:]) == 0) {
			t.Errorf("%q is in an index that has nothing", name)
		}
	})
}

func TestTheNumberOfFilesIsBounded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.c", "b.c", "c.c", "d.c", "e.c"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for seen, want := range map[int]int{maxEntries - 5: 5, maxEntries - 3: 3, maxEntries: 0} {
		p := &project{root: root, files: make(map[string]*file), entries: seen}
		if err := p.walk(".", 0, false); err != nil || len(p.files) != want || (len(p.findings) == 1) != (want < 5) {
			t.Errorf("after %d: %d files, %+v, %v", seen, len(p.files), p.findings, err)
		}
	}
}

func TestTheTextOfAProjectIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.c"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for before, want := range map[int64]bool{maxTotal - 10: true, maxTotal - 9: false} {
		p := &project{root: root, total: before}
		if text, err := p.text("a.c", maxFile); (err == nil) != want || want && text != "0123456789" {
			t.Errorf("after %d bytes: %q, %v", before, text, err)
		}
	}
}

// FuzzSources: whatever the source, the words end where it ends and their lines are its lines.
func FuzzSources(f *testing.F) {
	for _, s := range []string{"", "a(\"b\\\"c\") /* d\n */ '\\'' // e", "#define A \\\n \"x\"\nclient_id = A;", "void f() { vTaskDelay(1); g(); }", "){){){", "\"\\", "'", "/*", "R\"x(\n)x\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src := &file{"a.c", s}
		p := &project{sources: []*file{src}}
		p.checkSources()
		last := 1
		lines := src.lineAt(len(s))
		for _, w := range src.words(func(_, _ string, line int) {
			if line < 1 || line > lines {
				t.Errorf("a macro in line %d of %d", line, lines)
			}
		}) {
			if w.line < last || w.line > lines {
				t.Errorf("%q in line %d, after %d, of %d", w.text, w.line, last, lines)
			}
			last = w.line
		}
	})
}
