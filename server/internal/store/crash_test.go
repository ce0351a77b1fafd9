package store_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bmsota/durable/crashdisk"
	"bmsota/esp/appimage"
	"bmsota/manifest"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// The crash tests run this test binary again as a server that publishes or folds, and kill it: no deferred call, no
// Close and no write that the process still holds in memory gets a say.
const (
	crashDir  = "BMSOTA_CRASH_DIR"
	crashStep = "BMSOTA_CRASH_STEP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" && !strings.HasPrefix(os.Getenv(crashStep), lifeStep) {
		if err := victim(dir, os.Getenv(crashStep)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	for _, end := range atEnd {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	endSharedS3()
	os.Exit(code)
}

// atEnd is what the tests of this package have started once and must end.
var atEnd []func() error

var root = fleet.Identity{Name: "anna", Role: fleet.RoleOperator}

// die is kill -9 by one's own hand, at an exact place.
func die() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	fmt.Fprintln(os.Stderr, "still alive:", err)
	select {}
}

// dyingStore dies before, within or after the transaction of a publish.
type dyingStore struct {
	fleet.Store
	step string
}

func (s dyingStore) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	if s.step == "before row" {
		die()
	}
	err := s.Store.Update(ctx, func(tx fleet.Tx) error {
		err := fn(tx)
		if s.step == "before commit" {
			die()
		}
		return err
	})
	if s.step == "after row" {
		die()
	}
	return err
}

// parts are what a server has under dir.
func parts(ctx context.Context, dir string) (*store.DB, *store.Folder, error) {
	db, err := store.OpenSQLite(ctx, filepath.Join(dir, "bmsota.db"))
	if err != nil {
		return nil, nil, err
	}
	folder, err := store.OpenFolder(filepath.Join(dir, "firmware"))
	return db, folder, err
}

func victim(dir, step string) error {
	ctx := context.Background()
	db, folder, err := parts(ctx, dir)
	if err != nil {
		return err
	}
	if step == "folds" {
		return foldForEver(ctx, db, folder)
	}
	record(folder).SetBefore(func(_ int, op crashdisk.Op) error {
		name := string(op.Kind)
		if op.Kind == crashdisk.SyncFolder && op.Name == "." {
			name += " above"
		}
		if name == step {
			die()
		}
		return nil
	})
	return publish(ctx, dir, dyingStore{db, step}, folder, "2.0.0")
}

// publish brings a version as an operator does, upload and all.
func publish(ctx context.Context, dir string, s fleet.Store, blobs fleet.Blobs, version string) error {
	f, err := fleet.New(fleet.Config{Store: s, Blobs: blobs, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return publishBy(ctx, f, dir, version, 256<<10)
}

func publishBy(ctx context.Context, f *fleet.Fleet, dir, version string, size int64) error {
	b, err := appimage.Build(appimage.BuildOptions{Chip: appimage.ESP32C3, Project: "bms", Version: version, Size: size})
	if err != nil {
		return err
	}
	key, err := signingKey(dir)
	if err != nil {
		return err
	}
	img, err := appimage.Parse(b)
	if err != nil {
		return err
	}
	m, err := manifest.New(b, img, "")
	if err != nil {
		return err
	}
	text, err := manifest.Sign(m, key)
	if err != nil {
		return err
	}
	public, err := manifest.EncodePublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := f.Upload(ctx, root, m.SHA256, m.Size, bytes.NewReader(b)); err != nil {
		return err
	}
	_, _, err = f.Publish(ctx, root, fleet.PublishRequest{SHA256: m.SHA256, Manifest: text, PublicKeyPEM: string(public)})
	return err
}

func signingKey(dir string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	return manifest.ParsePrivateKey(text)
}

func newDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := manifest.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := manifest.EncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, dir, step string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+step)
	return cmd
}

// offered is the version a device would be offered, after checking that the bytes behind it are all there.
func offered(t *testing.T, dir string) string {
	t.Helper()
	db, folder, err := parts(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	defer db.Close()
	f, err := fleet.New(fleet.Config{Store: db, Blobs: folder, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	releases, err := f.Releases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range releases {
		blob, err := f.Firmware(t.Context(), r.SHA256)
		if err != nil {
			t.Fatalf("release %s has no bytes: %v", r.Version, err)
		}
		b, err := io.ReadAll(blob)
		if err != nil || digest(b) != r.SHA256 {
			t.Errorf("release %s has other bytes (%v)", r.Version, err)
		}
		blob.Close()
	}
	o, err := f.Offer(t.Context(), fleet.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if len(releases) == 1 != (o.Release.Version == "1.0.0") {
		t.Errorf("%d releases and %s is offered", len(releases), o.Release.Version)
	}
	return o.Release.Version
}

func TestKillDuringPublishLeavesOldOrNew(t *testing.T) {
	for _, c := range []struct{ step, want string }{
		{"create", "1.0.0"}, {"write", "1.0.0"}, {"fsync", "1.0.0"}, {"close", "1.0.0"}, {"mkdir", "1.0.0"}, {"fsync dir above", "1.0.0"},
		{"rename", "1.0.0"}, {"fsync dir", "1.0.0"}, {"before row", "1.0.0"}, {"before commit", "1.0.0"}, {"after row", "2.0.0"},
		{"never", "2.0.0"},
	} {
		t.Run(c.step, func(t *testing.T) {
			dir := newDir(t)
			db, folder, err := parts(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := publish(t.Context(), dir, db, folder, "1.0.0"); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Close(), folder.Close()); err != nil {
				t.Fatal(err)
			}

			out, err := run(t, dir, c.step).CombinedOutput()
			if killed := err != nil; killed != (c.step != "never") || len(out) > 0 {
				t.Fatalf("the victim ended with %v: %s", err, out)
			}
			if got := offered(t, dir); got != c.want {
				t.Errorf("offered is %s, want %s", got, c.want)
			}
			for _, name := range files(t, filepath.Join(dir, "firmware")) {
				if !strings.HasSuffix(name, ".bin") {
					t.Errorf("%s was not swept", name)
				}
			}

			if db, folder, err = parts(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			if err := publish(t.Context(), dir, db, folder, "2.0.0"); err != nil {
				t.Errorf("publish again: %v", err)
			}
			if err := errors.Join(db.Close(), folder.Close()); err != nil {
				t.Fatal(err)
			}
			if got := offered(t, dir); got != "2.0.0" {
				t.Errorf("offered after publishing again is %s", got)
			}
		})
	}
}

// nobody is a Commander without a broker.
type nobody struct{}

func (nobody) Send(context.Context, string, protocol.Command) error { return nil }
func (nobody) Clear(context.Context, string) error                  { return nil }
func (nobody) Drop(context.Context, string) error                   { return nil }

// foldForEver says on standard output which status it has acknowledged, and never stops.
func foldForEver(ctx context.Context, db *store.DB, folder *store.Folder) error {
	f, err := fleet.New(fleet.Config{Store: db, Blobs: folder, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, nobody{}) }()
	for seq := uint64(1); ; {
		s := protocol.Status{BootID: "b", Seq: seq, Phase: protocol.PhaseIdle, CurrentVersion: "1.0.0"}
		b, err := s.Append(nil)
		if err != nil {
			return err
		}
		switch err := f.Fold(ctx, "d1", false, b); {
		case errors.Is(err, fleet.ErrStopped): // not running yet
			select {
			case err := <-ended:
				return err
			default:
			}
			continue
		case err != nil:
			return err
		}
		fmt.Println(seq)
		seq++
	}
}

func TestKillWhileFoldingLosesNothingAcknowledged(t *testing.T) {
	dir := newDir(t)
	var acknowledged uint64
	for range 3 {
		goal := acknowledged + 40 // what the last round stored is acknowledged once more, as a duplicate
		cmd := run(t, dir, "folds")
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		killed := false
		for lines.Scan() {
			var seq uint64
			if _, err := fmt.Sscan(lines.Text(), &seq); err != nil {
				t.Fatalf("the victim said %q", lines.Text())
			}
			acknowledged = max(acknowledged, seq) // also what it said between the kill and its death
			if !killed && seq > goal {
				killed = true
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !killed {
			t.Fatalf("the victim ended by itself: %v", err)
		}
		db := openDB(t, filepath.Join(dir, "bmsota.db"))
		view(t, db, func(tx fleet.Tx) error {
			d, err := tx.Device("d1")
			if d.Seq < acknowledged {
				t.Errorf("seq %d was acknowledged and %d is stored", acknowledged, d.Seq)
			}
			return err
		})
	}
}
