package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/iotest"

	"bmsota/durable"
	"bmsota/durable/crashdisk"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

func openFolder(t testing.TB, dir string) *store.Folder {
	t.Helper()
	f, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// record has what f does from now on written down.
func record(f *store.Folder) *crashdisk.Log {
	log := &crashdisk.Log{}
	f.SetFiles(func(real durable.Files) durable.Files { return crashdisk.Files{Log: log, Real: real} })
	return log
}

// files lists every file below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			list = append(list, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFolderKeepsBytesUnderTheirDigest(t *testing.T) {
	dir := t.TempDir()
	f := openFolder(t, dir)
	log := record(f)
	for _, b := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("firmware"), 100_000)} {
		begin := log.Len()
		for range 2 {
			if err := f.Put(t.Context(), digest(b), int64(len(b)), iotest.HalfReader(bytes.NewReader(b))); err != nil {
				t.Fatal(err)
			}
		}
		if got := readBlob(t, f, digest(b)); !bytes.Equal(got, b) {
			t.Errorf("read %d other bytes, want %d", len(got), len(b))
		}
		var steps []crashdisk.Kind
		for _, op := range log.Ops()[begin:] {
			steps = append(steps, op.Kind)
		}
		want := []crashdisk.Kind{crashdisk.Create, crashdisk.Write, crashdisk.Sync, crashdisk.Close, crashdisk.Mkdir, crashdisk.SyncFolder,
			crashdisk.Rename, crashdisk.SyncFolder}
		if got := slices.Compact(steps); !slices.Equal(got, want) { // the second Put only syncs both folders once more
			t.Errorf("steps of a first and a second Put: %v, want %v", got, want)
		}
	}
	if _, err := f.Open(t.Context(), digest([]byte("never"))); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if got := files(t, dir); len(got) != 3 {
		t.Errorf("files %v, want three", got)
	}
}

func TestFaultAtAnyOperationLeavesTheFolderAsItWas(t *testing.T) {
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		for at, done := 0, false; !done; at++ {
			dir := t.TempDir()
			f := openFolder(t, dir)
			b := bytes.Repeat([]byte("firmware"), 20_000)
			put := func() error { return f.Put(t.Context(), digest(b), int64(len(b)), bytes.NewReader(b)) }
			var failed []crashdisk.Op
			log := record(f)
			log.SetBefore(func(n int, op crashdisk.Op) error {
				if n == at || n > at && op.Kind == crashdisk.Write && len(failed) > 0 { // a full disk stays full
					failed = append(failed, op)
					return fault
				}
				return nil
			})
			err := put()
			if done = len(failed) == 0; done != (err == nil) {
				t.Fatalf("%v at operation %d of %v: the answer is %v", fault, at, failed, err)
			}
			if !done && (!errors.Is(err, fleet.ErrStorage) || !errors.Is(err, fault)) {
				t.Errorf("%v at operation %d: %v, want ErrStorage that wraps it", fault, at, err)
			}
			last := !done && failed[0].Kind == crashdisk.SyncFolder && failed[0].Name != "."
			if got := files(t, dir); len(got) != 0 && !done && !last {
				t.Errorf("%v at operation %d (%s): left %v", fault, at, failed[0].Kind, got)
			}
			log.SetBefore(nil)
			if err := put(); err != nil {
				t.Fatalf("%v at operation %d, and again when it is over: %v", fault, at, err)
			}
			if got := readBlob(t, f, digest(b)); !bytes.Equal(got, b) || len(files(t, dir)) != 1 {
				t.Errorf("%v at operation %d, and again when it is over: %d bytes, files %v", fault, at, len(got), files(t, dir))
			}
		}
	}
}

func TestOpenFolderSweepsInterruptedUploadsOnly(t *testing.T) {
	dir := t.TempDir()
	b := []byte("firmware")
	if err := openFolder(t, dir).Put(t.Context(), digest(b), 8, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"upload-0123456789abcdef", "README"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openFolder(t, dir)
	if got, want := files(t, dir), []string{"README", digest(b)[:2] + "/" + digest(b) + ".bin"}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("files %v, want %v", got, want)
	}
}

func TestNoLinkLeadsOutOfTheFolder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	b := []byte("firmware")
	sha := digest(b)
	if err := os.WriteFile(filepath.Join(outside, sha+".bin"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, sha[:2])); err != nil {
		t.Fatal(err)
	}
	f := openFolder(t, dir)
	if blob, err := f.Open(t.Context(), sha); err == nil {
		blob.Close()
		t.Error("a link was followed out of the folder")
	}
	if err := f.Put(t.Context(), sha, 8, bytes.NewReader(b)); err == nil {
		t.Error("a link was followed out of the folder")
	}
	if got, err := os.ReadFile(filepath.Join(outside, sha+".bin")); err != nil || string(got) != "secret" {
		t.Errorf("%q (%v)", got, err)
	}
}
