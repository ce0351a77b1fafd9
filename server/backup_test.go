package server

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// restoreInto restores text, and holds a failure to its promise: nothing is left.
func restoreInto(t *testing.T, text []byte) (string, Restored, error) {
	t.Helper()
	above := t.TempDir()
	dir := filepath.Join(above, "data")
	done, err := Restore(t.Context(), bytes.NewReader(text), dir, time.Now())
	entries, readErr := os.ReadDir(above)
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err != nil && len(entries) > 0 || err == nil && len(entries) != 1 {
		t.Errorf("after %v the folder holds %v", err, entries)
	}
	return dir, done, err
}

func TestBackupOfARunningServerIsRestoredOrRefusedWhole(t *testing.T) {
	c := testConfig(t)
	s, stop := run(t, c)
	key := newKey(t)
	for _, v := range []string{"1.0.0", "1.1.0"} {
		publish(t, operatorClient(t, s), makeRelease(t, key, v, 64<<10))
	}
	var b bytes.Buffer
	taken := time.Now()
	if err := Backup(t.Context(), c.DataDir, taken, &b); err != nil {
		t.Fatal(err)
	}
	stop()

	dir, done, err := restoreInto(t, b.Bytes())
	if err != nil || done.Releases != 2 || !done.Taken.Equal(taken.UTC().Truncate(time.Second)) {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, name := range []string{"operator.json", "tls/ca.pem", "tls/ca.key"} {
		want, err := os.ReadFile(filepath.Join(c.DataDir, name))
		got, gotErr := os.ReadFile(filepath.Join(dir, name))
		if err != nil || gotErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what it was (%v, %v)", name, err, gotErr)
		}
	}
	if _, err := Restore(t.Context(), bytes.NewReader(b.Bytes()), dir, time.Now()); !errors.Is(err, ErrInUse) {
		t.Errorf("into a folder that is used: %v", err)
	}
	c.DataDir = dir
	again, stop := run(t, c)
	if _, err := operatorClient(t, again).Releases(t.Context()); err != nil {
		t.Errorf("the restored server: %v", err)
	}
	stop()

	// The last three blocks are the mark at the end, and tar's own, which says nothing new.
	for n := 0; n <= b.Len()-3*512; n += 512 * (1 + (b.Len()-3*512-n)/512/40) {
		if _, _, err := restoreInto(t, b.Bytes()[:n]); !errors.Is(err, ErrNotBackup) {
			t.Errorf("the first %d of %d bytes: %v", n, b.Len(), err)
		}
	}
	for _, c := range []struct {
		name string
		edit func(h *tar.Header, content []byte) []byte
	}{
		{"a name that leads out", func(h *tar.Header, b []byte) []byte { h.Name = strings.Replace(h.Name, "tls/", "../tls/", 1); return b }},
		{"a name from the root", func(h *tar.Header, b []byte) []byte { h.Name = strings.Replace(h.Name, "tls/", "/tls/", 1); return b }},
		{"a link", func(h *tar.Header, b []byte) []byte {
			if strings.HasPrefix(h.Name, "tls/") {
				h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "/etc/passwd", 0
				return nil
			}
			return b
		}},
		{"a later version", func(h *tar.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":9`), 1)
		}},
		{"other firmware", func(h *tar.Header, b []byte) []byte {
			if strings.HasSuffix(h.Name, ".bin") {
				b[len(b)/2] ^= 1
			}
			return b
		}},
		{"no firmware", func(h *tar.Header, b []byte) []byte { h.Name = strings.Replace(h.Name, ".bin", ".not", 1); return b }},
		{"no database", func(h *tar.Header, b []byte) []byte {
			h.Name = strings.Replace(h.Name, databaseName, "other.db", 1)
			return b
		}},
		{"a damaged database", func(h *tar.Header, b []byte) []byte {
			if h.Name == databaseName {
				for i := 4096; i < len(b); i += 4096 {
					b[i] ^= 0x5a // what kind of page it is
				}
			}
			return b
		}},
	} {
		if _, _, err := restoreInto(t, edited(t, b.Bytes(), c.edit)); err == nil {
			t.Errorf("%s: it was restored", c.name)
		}
	}
}

// TestRestoreGoesWhereALinkLeads: the link of a data folder that lies on another disk stays, and the data is there.
func TestRestoreGoesWhereALinkLeads(t *testing.T) {
	c := testConfig(t)
	_, stop := run(t, c)
	var b bytes.Buffer
	if err := Backup(t.Context(), c.DataDir, time.Now(), &b); err != nil {
		t.Fatal(err)
	}
	stop()
	above := t.TempDir()
	disk, link := filepath.Join(above, "disk"), filepath.Join(above, "link")
	if err := errors.Join(os.Mkdir(disk, 0o700), os.Symlink(disk, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), bytes.NewReader(b.Bytes()[:1024]), link, time.Now()); !errors.Is(err, ErrNotBackup) {
		t.Errorf("a part of it: %v", err)
	}
	if _, err := Restore(t.Context(), bytes.NewReader(b.Bytes()), link, time.Now()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v now (%v)", info, err)
	}
	if _, err := os.Stat(filepath.Join(disk, databaseName)); err != nil {
		t.Error(err)
	}
}

// edited is a tar file with every entry changed by edit.
func edited(t *testing.T, text []byte, edit func(*tar.Header, []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	in, w := tar.NewReader(bytes.NewReader(text)), tar.NewWriter(&out)
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		b = edit(h, b)
		h.Size, h.PAXRecords = int64(len(b)), nil
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
