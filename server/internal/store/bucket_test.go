package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bmsota/e2e/s3server"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// bucketNames makes a name for each bucket of this process.
var bucketNames atomic.Int64

// sharedS3 is one server for all tests but those that stop it. It ends with the process (killS3).
var sharedS3 = sync.OnceValues(func() (*s3server.Server, error) {
	dir, err := os.MkdirTemp("", "bmsota-s3-")
	if err != nil {
		return nil, err
	}
	s3Folder = dir
	s, err := s3server.New(dir, "", "")
	if err != nil {
		return nil, err
	}
	return s, s.Start()
})

var s3Folder string

func endSharedS3() {
	if s3Folder == "" {
		return
	}
	if s, err := sharedS3(); err == nil {
		_ = s.Stop()
	}
	_ = os.RemoveAll(s3Folder)
}

func s3(t testing.TB) *s3server.Server {
	t.Helper()
	s, err := sharedS3()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client speaks to the server beside the code under test.
func client(t testing.TB, s *s3server.Server) *minio.Client {
	t.Helper()
	c, err := minio.New(s.Addr, &minio.Options{Creds: credentials.NewStaticV4(s3server.RootKey, s3server.RootSecret, ""), Region: s3server.Region,
		BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bucketOf is a configuration for a new bucket on the server.
func bucketOf(t testing.TB, s *s3server.Server) store.BucketConfig {
	t.Helper()
	name := "firmware-" + strconv.FormatInt(bucketNames.Add(1), 10)
	if err := client(t, s).MakeBucket(t.Context(), name, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return store.BucketConfig{Endpoint: s.URL(), Bucket: name, Prefix: "bms/", Region: s3server.Region, AccessKey: s3server.RootKey,
		SecretKey: s3server.RootSecret, PathStyle: true, Owner: "server-1", Near: t.TempDir(), NearBytes: 64 << 20}
}

func openBucket(t testing.TB, cfg store.BucketConfig) *store.Bucket {
	t.Helper()
	b, err := store.OpenBucket(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// objects lists the files of the prefix, as the server keeps them.
func objects(t *testing.T, s *s3server.Server, cfg store.BucketConfig) []string {
	t.Helper()
	var list []string
	for _, name := range files(t, filepath.Join(s.Objects(), cfg.Bucket)) {
		if rest, ok := strings.CutPrefix(name, cfg.Prefix); ok && rest != "owner.txt" {
			list = append(list, rest)
		}
	}
	return list
}

// between is a way to the server that a test can break. It keeps the Host header, which is signed.
type between struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request) bool // true: has answered; guarded by mu
}

func newBetween(t *testing.T, s *s3server.Server) *between {
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	b := &between{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		answer := b.answer
		b.mu.Unlock()
		if answer == nil || !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *between) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// refuses answers as S3 does, where the method is one of those.
func refuses(status int, code, methods string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(methods, r.Method) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>as the test wants it</Message></Error>")
		return true
	}
}

// TestBucketNeverServesOtherBytes: an object that was cut short or replaced in the bucket is ErrDamaged and a doubt, one that
// is gone ErrNotFound and a doubt, until it is published again.
func TestBucketNeverServesOtherBytes(t *testing.T) {
	s := s3(t)
	cfg := bucketOf(t, s)
	b := openBucket(t, cfg)
	firmware := []byte("firmware")
	sha := digest(firmware)
	file := filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, sha+".bin")
	for _, c := range []struct {
		name, content string
		want          error
	}{{"cut", "firm", fleet.ErrDamaged}, {"empty", "", fleet.ErrDamaged}, {"replaced", "firmwarE", fleet.ErrDamaged}, {"longer", "firmware2", fleet.ErrDamaged},
		{"gone", "-", fleet.ErrNotFound}} {
		if err := b.Put(t.Context(), sha, 8, bytes.NewReader(firmware)); err != nil {
			t.Fatal(err)
		}
		if got := b.Doubts(); len(got) != 0 {
			t.Errorf("%s: doubts before: %v", c.name, got)
		}
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if c.content == "-" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		if got := readBlob(t, b, sha); !bytes.Equal(got, firmware) {
			t.Errorf("%s: what is near is %q", c.name, got)
		}
		for range 2 {
			if blob, err := b.Reread(t.Context(), sha); !errors.Is(err, c.want) {
				t.Errorf("%s: reread %v, %v, want %v", c.name, blob, err, c.want)
			}
			if blob, err := b.Open(t.Context(), sha); !errors.Is(err, c.want) {
				t.Errorf("%s: open %v, %v, want %v", c.name, blob, err, c.want)
			}
		}
		if got := b.Doubts(); len(got) != 1 || !strings.Contains(got[0], sha[:12]) {
			t.Errorf("%s: doubts %v", c.name, got)
		}
	}
}

// TestBucketNearIsBoundedAndDoubted: the folder keeps to its bound, one object always fits, and a file that has rotted in it
// between two runs is fetched again.
func TestBucketNearIsBoundedAndDoubted(t *testing.T) {
	cfg := bucketOf(t, s3(t))
	cfg.NearBytes = 2500
	b := openBucket(t, cfg)
	var all [][]byte
	for i := range 5 {
		f := bytes.Repeat([]byte{byte(i)}, 1000)
		all = append(all, f)
		if err := b.Put(t.Context(), digest(f), 1000, bytes.NewReader(f)); err != nil {
			t.Fatal(err)
		}
	}
	if got := files(t, cfg.Near); len(got) != 2 {
		t.Errorf("near are %d files, want the two that fit", len(got))
	}
	large := bytes.Repeat([]byte("l"), 9000)
	if err := b.Put(t.Context(), digest(large), 9000, bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, cfg.Near); len(got) != 1 {
		t.Errorf("near are %v, want the large one", got)
	}
	for _, f := range append(all, large) {
		if got := readBlob(t, b, digest(f)); !bytes.Equal(got, f) {
			t.Errorf("%d other bytes", len(got))
		}
	}
	sha := digest(large)
	if err := os.WriteFile(filepath.Join(cfg.Near, sha[:2], sha+".bin"), []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readBlob(t, openBucket(t, cfg), sha); !bytes.Equal(got, large) {
		t.Errorf("after a restart: %q", got)
	}
}

// TestBucketManyReadersOneFetch: a thousand boards that ask for one release at once cost one download from the store.
func TestBucketManyReadersOneFetch(t *testing.T) {
	s := s3(t)
	way := newBetween(t, s)
	cfg := bucketOf(t, s)
	cfg.Endpoint = way.URL
	b := openBucket(t, cfg)
	firmware := bytes.Repeat([]byte("firmware"), 100_000)
	sha := digest(firmware)
	if err := b.Put(t.Context(), sha, int64(len(firmware)), bytes.NewReader(firmware)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.Near, sha[:2])); err != nil {
		t.Fatal(err)
	}
	var gets atomic.Int64
	way.set(func(_ http.ResponseWriter, r *http.Request) bool { gets.Add(1); return false })
	var wg sync.WaitGroup
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 40 {
		wg.Go(func() {
			if i == 0 { // who has gone away ends nobody else's wait
				_, _ = b.Open(gone, sha)
				return
			}
			if got := readBlob(t, b, sha); !bytes.Equal(got, firmware) {
				t.Errorf("%d other bytes", len(got))
			}
		})
	}
	wg.Wait()
	if n := gets.Load(); n != 1 {
		t.Errorf("%d downloads from the store", n)
	}
}

// TestBucketSettles: releases that only the folder of before has are brought into the bucket, what is missing is said, and
// what became no release is removed when it is old.
func TestBucketSettles(t *testing.T) {
	s := s3(t)
	cfg := bucketOf(t, s)
	b := openBucket(t, cfg)
	folder := openFolder(t, t.TempDir())
	put := func(to fleet.Blobs, text string) fleet.Release {
		if err := to.Put(t.Context(), digest([]byte(text)), int64(len(text)), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		return fleet.Release{SHA256: digest([]byte(text)), Size: int64(len(text))}
	}
	inBucket, inFolder, nowhere := put(b, "in the bucket"), put(folder, "in the folder"), fleet.Release{SHA256: digest(nil), Size: 7}
	cut := put(b, "cut short")
	orphan := put(b, "became no release")
	if err := os.WriteFile(filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, cut.SHA256+".bin"), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, "README"), []byte("of somebody"), 0o600); err != nil {
		t.Fatal(err)
	}
	releases := []fleet.Release{inBucket, inFolder, nowhere, cut}
	done, err := b.Settle(t.Context(), releases, folder, time.Now().Add(-time.Hour))
	if err != nil || done != (store.Settled{Moved: 1}) {
		t.Errorf("settled %+v, %v", done, err)
	}
	if got := readBlob(t, b, orphan.SHA256); len(got) == 0 {
		t.Error("an upload of this hour is gone")
	}
	if got := b.Doubts(); len(got) != 2 {
		t.Errorf("doubts %v, want those of the missing and the cut one", got)
	}
	done, err = b.Settle(t.Context(), releases, nil, time.Now().Add(time.Hour))
	if err != nil || done != (store.Settled{Collected: 1}) {
		t.Errorf("settled %+v, %v", done, err)
	}
	if _, err := b.Open(t.Context(), orphan.SHA256); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("the leftover: %v", err)
	}
	for _, r := range []fleet.Release{inBucket, inFolder} {
		if blob, err := b.Reread(t.Context(), r.SHA256); err != nil {
			t.Error(err)
		} else {
			blob.Close()
		}
	}
	if got := objects(t, s, cfg); len(got) != 4 {
		t.Errorf("objects %v, want three and the README", got)
	}
}

// TestBucketSignedAddress: whoever has it reads the object, with ranges, and nothing else; it stays the same for half its time.
func TestBucketSignedAddress(t *testing.T) {
	s := s3(t)
	cfg := bucketOf(t, s)
	cfg.SignedFor, cfg.SignedMax = time.Hour, 400
	b := openBucket(t, cfg)
	if err := b.Put(t.Context(), digest([]byte("firmware")), 8, strings.NewReader("firmware")); err != nil {
		t.Fatal(err)
	}
	get := func(u string) (int, string) {
		req, err := http.NewRequest(http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=4-")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	now := time.Now()
	first, err := b.Signed(t.Context(), digest([]byte("firmware")), now)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := get(first); status != http.StatusPartialContent || body != "ware" {
		t.Errorf("%d %q", status, body)
	}
	if status, _ := get(strings.Replace(first, ".bin", ".bim", 1)); status != http.StatusForbidden {
		t.Errorf("another object with the same signature: %d", status)
	}
	if again, err := b.Signed(t.Context(), digest([]byte("firmware")), now.Add(29*time.Minute)); err != nil || again != first {
		t.Errorf("within half its time: %q, %v", again, err)
	}
	time2 := now.Add(31 * time.Minute)
	if _, err := b.Signed(t.Context(), digest([]byte("firmware")), time2); err != nil {
		t.Error(err)
	}
	if n := b.SignedUntil(digest([]byte("firmware"))); !n.Equal(time2.Add(time.Hour)) {
		t.Errorf("after half its time it is good until %v", n)
	}
}

// TestBucketSignedAddressFitsDevices: with a key of Amazon's and names of usual length it has less than the 400 bytes that
// devices take, and where it has more the server does not start.
func TestBucketSignedAddressFitsDevices(t *testing.T) {
	cfg := store.BucketConfig{Endpoint: "https://s3.eu-central-1.amazonaws.com", Bucket: "my-firmware", Prefix: "fleet/", Region: "eu-central-1",
		AccessKey: "AKIAIOSFODNN7EXAMPLE", SecretKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", SignedFor: 24 * time.Hour, SignedMax: 400}
	b, err := store.NewBucket(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := b.Signed(t.Context(), digest(nil), time.Now()); err != nil || len(u) > 400 {
		t.Errorf("%d bytes, %v: %s", len(u), err, u)
	}
	here := bucketOf(t, s3(t))
	here.SignedFor, here.SignedMax, here.Prefix = time.Hour, 400, strings.Repeat("x", 60)+"/"+strings.Repeat("y", 60)+"/"
	if _, err := store.OpenBucket(t.Context(), here); !errors.Is(err, store.ErrBucketRefused) || !strings.Contains(err.Error(), "and devices take 400") {
		t.Errorf("a long address: %v", err)
	}
	if got := files(t, filepath.Join(s3(t).Objects(), here.Bucket)); len(got) != 0 {
		t.Errorf("the bucket holds %v", got)
	}
}

// forgetful loses an object in the bucket right after it was acknowledged, while it is still near.
type forgetful struct {
	*store.Bucket
	file func(sha string) string
}

func (f forgetful) Put(ctx context.Context, sha string, size int64, r io.Reader) error {
	return errors.Join(f.Bucket.Put(ctx, sha, size, r), os.Remove(f.file(sha)))
}

// TestNoReleaseWithoutItsBytesInTheBucket: what is near is not what a row may speak of.
func TestNoReleaseWithoutItsBytesInTheBucket(t *testing.T) {
	s := s3(t)
	cfg := bucketOf(t, s)
	b := openBucket(t, cfg)
	rows := store.NewMemory()
	lost := forgetful{b, func(sha string) string { return filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, sha+".bin") }}
	if err := publish(t.Context(), newDir(t), rows, lost, "1.0.0"); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("published without its bytes: %v", err)
	}
	var releases []fleet.Release
	if err := rows.View(t.Context(), func(tx fleet.Tx) (err error) {
		releases, err = tx.Releases()
		return err
	}); err != nil || len(releases) != 0 {
		t.Errorf("releases %v, %v", releases, err)
	}
	if err := publish(t.Context(), newDir(t), rows, b, "1.0.0"); err != nil {
		t.Error(err)
	}
}
