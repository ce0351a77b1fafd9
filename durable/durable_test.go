package durable_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"bmsota/durable"
)

func TestAFileIsReplacedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, c := range []struct {
		data string
		perm fs.FileMode
	}{{"first", 0o600}, {"second, longer", 0o644}, {"", 0o640}} {
		if err := durable.WriteFile(path, []byte(c.data), c.perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.data {
			t.Errorf("got %q, %v, want %q", got, err, c.data)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != c.perm {
			t.Errorf("mode %v, %v, want %v", info.Mode(), err, c.perm)
		}
	}
	only(t, dir, "a")
}

func TestAFailureLeavesTheOldContentAndNothingBeside(t *testing.T) {
	dir := t.TempDir()
	// A folder that is not empty cannot be replaced by a file: the rename fails after everything before it went well.
	path := filepath.Join(dir, "a")
	if err := os.MkdirAll(filepath.Join(path, "inside"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("new"), 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	only(t, dir, "a")
	err := durable.WriteFile(filepath.Join(dir, "missing", "a"), nil, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
}

func TestWhatIsStagedHasNoNameUntilItIsCommitted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := durable.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	staged, err := durable.Stage(path, strings.NewReader("new"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("before the commit: %q, %v", got, err)
	}
	if err := staged.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("after the commit: %q, %v", got, err)
	}
	if staged, err = durable.Stage(path, strings.NewReader("newer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := staged.Discard(); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	if _, err := durable.Stage(path, io.MultiReader(strings.NewReader("newest"), iotest.ErrReader(broken)), 0o644); !errors.Is(err, broken) {
		t.Errorf("a reader that breaks: %v", err)
	}
	only(t, dir, "a")
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("after the discard: %q, %v", got, err)
	}
}

func only(t *testing.T, dir, want string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != want {
		t.Errorf("the folder holds %v, want %s alone", entries, want)
	}
}
