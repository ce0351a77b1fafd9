package store_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"bmsota/e2e/s3server"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// TestBucketAtStart: what is wrong with the bucket is one sentence, and of two kinds: to be changed, or to be waited for.
// Nothing is written.
func TestBucketAtStart(t *testing.T) {
	s := s3(t)
	if err := s.Admin(t.Context(), "create-user", "--access", "reader", "--secret", "reader-secret", "--role", "user"); err != nil {
		t.Fatal(err)
	}
	away := newBetween(t, s)
	for _, c := range []struct {
		name   string
		change func(*store.BucketConfig)
		answer func(w http.ResponseWriter, r *http.Request) bool
		want   error
		says   string
	}{
		{"no such bucket", func(c *store.BucketConfig) { c.Bucket = "nobody-has-made-it" }, nil, store.ErrBucketRefused, `there is no bucket "nobody-has-made-it"`},
		{"unknown key", func(c *store.BucketConfig) { c.AccessKey = "stranger" }, nil, store.ErrBucketRefused, "the access key is not known there"},
		{"wrong secret", func(c *store.BucketConfig) { c.SecretKey = "guessed" }, nil, store.ErrBucketRefused, "the secret key is not the one"},
		{"wrong region", func(c *store.BucketConfig) { c.Region = "us-west-9" }, nil, store.ErrBucketRefused, "set firmware.bucket.region"},
		{"no rights at all", func(c *store.BucketConfig) { c.AccessKey, c.SecretKey = "reader", "reader-secret" }, nil, store.ErrBucketRefused, `may not read "bms/"`},
		{"may not write", nil, refuses(http.StatusForbidden, "AccessDenied", "PUT"), store.ErrBucketRefused, `may not write "bms/"`},
		{"may not write, without a code", nil, refuses(http.StatusForbidden, "", "PUT"), store.ErrBucketRefused, "may not write"},
		{"clock", nil, refuses(http.StatusForbidden, "RequestTimeTooSkewed", "GET"), store.ErrBucketRefused, "the clock of this machine"},
		{"credentials have expired", nil, refuses(http.StatusBadRequest, "ExpiredToken", "GET"), store.ErrBucketRefused, "have expired"},
		{"other region", nil, refuses(http.StatusMovedPermanently, "PermanentRedirect", "GET"), store.ErrBucketRefused, "set firmware.bucket.region"},
		{"no S3 at all", nil, refuses(http.StatusNotFound, "", "GET PUT"), store.ErrBucketRefused, ""},
		{"overloaded", nil, refuses(http.StatusServiceUnavailable, "SlowDown", "GET"), store.ErrBucketAway, "cannot now: it answers 503"},
		{"broken", nil, refuses(http.StatusInternalServerError, "InternalError", "PUT"), store.ErrBucketAway, "cannot now: it answers 500"},
		{"nobody there", func(c *store.BucketConfig) { c.Endpoint = "http://127.0.0.1:1" }, nil, store.ErrBucketAway, "cannot be reached"},
		{"not TLS", func(c *store.BucketConfig) { c.Endpoint = strings.Replace(c.Endpoint, "http:", "https:", 1) }, nil, store.ErrBucketAway, "cannot be reached"},
	} {
		cfg := bucketOf(t, s)
		cfg.Near = filepath.Join(cfg.Near, "near")
		if c.change != nil {
			c.change(&cfg)
		}
		if c.answer != nil {
			away.set(c.answer)
			cfg.Endpoint = away.URL
		}
		b, err := store.OpenBucket(t.Context(), cfg)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v\nwant %v, %q", c.name, err, c.want, c.says)
		}
		if err == nil {
			_ = b.Close()
		}
		if strings.Contains(err.Error(), cfg.SecretKey) {
			t.Errorf("%s: the secret key is said: %v", c.name, err)
		}
		if _, err := os.Stat(cfg.Near); err == nil {
			t.Errorf("%s: a folder was made", c.name)
		}
		if got, _ := os.ReadDir(filepath.Join(s.Objects(), cfg.Bucket)); len(got) != 0 {
			t.Errorf("%s: the bucket holds %v", c.name, got)
		}
	}
}

// TestBucketHasOneOwner: a second server below the same prefix would take the first one's firmware for leftovers.
func TestBucketHasOneOwner(t *testing.T) {
	cfg := bucketOf(t, s3(t))
	openBucket(t, cfg)
	openBucket(t, cfg) // the same server again
	other := cfg
	other.Owner, other.Near = "server-2", t.TempDir()
	if _, err := store.OpenBucket(t.Context(), other); !errors.Is(err, store.ErrBucketRefused) || !strings.Contains(err.Error(), `another server ("server-1")`) {
		t.Errorf("a second owner: %v", err)
	}
	other.Prefix = "other/"
	openBucket(t, other)
}

// TestBucketFaults: whatever the store does during a Put, the answer is ErrStorage, the object is there whole or not at all,
// nothing is near that is not there, and the next Put mends it.
func TestBucketFaults(t *testing.T) {
	s := s3(t)
	way := newBetween(t, s)
	cfg := bucketOf(t, s)
	cfg.Endpoint, cfg.Tries = way.URL, 1
	b := openBucket(t, cfg)
	firmware := bytes.Repeat([]byte("firmware"), 20_000)
	sha := digest(firmware)
	file := filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, sha+".bin")
	put := func() error { return b.Put(t.Context(), sha, int64(len(firmware)), bytes.NewReader(firmware)) }
	afterPut := func(then func()) func(w http.ResponseWriter, r *http.Request) bool {
		var did atomic.Bool
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".bin") {
				if _, err := os.Stat(file); err == nil && did.CompareAndSwap(false, true) {
					then()
				}
			}
			return false
		}
	}
	damage := func(content string) func() {
		return func() {
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	hangUp := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			_, _ = io.CopyN(io.Discard, r.Body, 50_000)
			panic(http.ErrAbortHandler)
		}
		return false
	}
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request) bool
		says   string
	}{
		{"500", refuses(http.StatusInternalServerError, "InternalError", "PUT"), "answers 500"},
		{"503", refuses(http.StatusServiceUnavailable, "SlowDown", "PUT"), "answers 503"},
		{"403", refuses(http.StatusForbidden, "AccessDenied", "PUT"), "may not store"},
		{"clock", refuses(http.StatusForbidden, "RequestTimeTooSkewed", "PUT"), "the clock"},
		{"the bucket goes", refuses(http.StatusNotFound, "NoSuchBucket", "PUT"), "there is no bucket"},
		{"dies in the middle", hangUp, "cannot be reached"},
		{"says yes and keeps nothing", func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			return r.Method == http.MethodPut
		}, ""},
		{"keeps a part", afterPut(damage("firmware")), "other bytes"},
		{"keeps other bytes", afterPut(damage(strings.Repeat("hardware", 20_000))), "other bytes"},
		{"cannot be read back", refuses(http.StatusForbidden, "AccessDenied", "GET"), "may not store"},
	} {
		way.set(c.answer)
		err := put()
		if !errors.Is(err, fleet.ErrStorage) || errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want ErrStorage and %q", c.name, err, c.says)
		}
		way.set(refuses(http.StatusServiceUnavailable, "SlowDown", "GET"))
		if got := files(t, cfg.Near); len(got) != 0 {
			t.Errorf("%s: near are %v", c.name, got)
		}
		way.set(nil)
		if err := put(); err != nil {
			t.Fatalf("%s, and again when it is over: %v", c.name, err)
		}
		if got := readBlob(t, b, sha); !bytes.Equal(got, firmware) || len(objects(t, s, cfg)) != 1 {
			t.Errorf("%s, and again: %d bytes, objects %v", c.name, len(got), objects(t, s, cfg))
		}
		if err := errors.Join(os.Remove(file), os.RemoveAll(filepath.Join(cfg.Near, sha[:2]))); err != nil {
			t.Fatal(err)
		}
	}
}

// cutter is a way to the server that passes on so many bytes of what the client sends, and then breaks.
func cutter(t *testing.T, to string, bytes *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() {
				buf := make([]byte, 4<<10)
				for {
					n, err := in.Read(buf)
					if left := bytes.Add(-int64(n)); left < 0 {
						n, err = max(0, n+int(left)), io.EOF
					}
					if _, werr := out.Write(buf[:n]); werr != nil || err != nil {
						_, _ = in.Close(), out.Close()
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestBucketLineCutAtEveryWrite: the line dies after so many bytes, again and again later, through a whole Put. Until it is
// done nothing is under the name, and never a part.
func TestBucketLineCutAtEveryWrite(t *testing.T) {
	s := s3(t)
	cfg := bucketOf(t, s)
	cfg.Tries = 1
	var left atomic.Int64
	left.Store(1 << 40)
	cfg.Endpoint = "http://" + cutter(t, s.Addr, &left)
	b := openBucket(t, cfg)
	firmware := bytes.Repeat([]byte("firmware"), 10_000)
	sha := digest(firmware)
	cuts := 0
	for at := int64(0); ; at += 4 << 10 {
		left.Store(at)
		err := b.Put(t.Context(), sha, int64(len(firmware)), bytes.NewReader(firmware))
		left.Store(1 << 40)
		if got := objects(t, s, cfg); len(got) > 1 || len(got) == 1 && !bytes.Equal(readBlob(t, b, sha), firmware) {
			t.Fatalf("cut after %d bytes: objects %v", at, got)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fleet.ErrStorage) {
			t.Errorf("cut after %d bytes: %v, want ErrStorage", at, err)
		}
		cuts++
	}
	if cuts < len(firmware)>>12 {
		t.Errorf("%d cuts: the line was not cut within the bytes", cuts)
	}
	if got := readBlob(t, b, sha); !bytes.Equal(got, firmware) {
		t.Errorf("%d other bytes at last", len(got))
	}
}

func readBlob(t *testing.T, b fleet.Blobs, sha string) []byte {
	t.Helper()
	blob, err := b.Open(t.Context(), sha)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer blob.Close()
	got, err := io.ReadAll(blob)
	if err != nil || int64(len(got)) != blob.Size() {
		t.Errorf("read %d of %d bytes (%v)", len(got), blob.Size(), err)
	}
	return got
}

// TestBucketServerDiesAndComesBack: what was acknowledged is there after the store was killed; meanwhile what is near is
// served and the rest is ErrStorage.
func TestBucketServerDiesAndComesBack(t *testing.T) {
	s, err := s3server.New(t.TempDir(), "", "")
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	cfg := bucketOf(t, s)
	b := openBucket(t, cfg)
	one, two := []byte("firmware one"), []byte("firmware two")
	for _, f := range [][]byte{one, two} {
		if err := b.Put(t.Context(), digest(f), int64(len(f)), bytes.NewReader(f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Stop(), os.RemoveAll(filepath.Join(cfg.Near, digest(two)[:2]))); err != nil {
		t.Fatal(err)
	}
	if got := readBlob(t, b, digest(one)); !bytes.Equal(got, one) {
		t.Errorf("near is %q", got)
	}
	if _, err := b.Open(t.Context(), digest(two)); !errors.Is(err, fleet.ErrStorage) {
		t.Errorf("the store is dead: %v, want ErrStorage", err)
	}
	if b.Probe(t.Context()) == nil {
		t.Error("a dead store answers")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if got := readBlob(t, b, digest(two)); !bytes.Equal(got, two) {
		t.Errorf("when it is back: %q", got)
	}
	if err := b.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}
