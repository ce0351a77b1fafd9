package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"bmsota/server/internal/fleet"
)

// blobs is a fleet.Blobs under test, and what a test must know of how it keeps them.
type blobs struct {
	fleet.Blobs
	list func() []string         // every file or object there
	path func(sha string) string // the file that holds a digest's bytes
}

// eachBlobs runs a test over every fleet.Blobs: this is the contract's suite.
func eachBlobs(t *testing.T, test func(t *testing.T, f blobs)) {
	t.Run("folder", func(t *testing.T) {
		dir := t.TempDir()
		test(t, blobs{openFolder(t, dir), func() []string { return files(t, dir) },
			func(sha string) string { return filepath.Join(dir, sha[:2], sha+".bin") }})
	})
	t.Run("bucket", func(t *testing.T) {
		s := s3(t)
		cfg := bucketOf(t, s)
		test(t, blobs{openBucket(t, cfg), func() []string { return append(objects(t, s, cfg), files(t, cfg.Near)...) },
			func(sha string) string { return filepath.Join(s.Objects(), cfg.Bucket, cfg.Prefix, sha+".bin") }})
	})
}

func TestBlobsAreKeptUnderTheirDigest(t *testing.T) {
	eachBlobs(t, func(t *testing.T, f blobs) {
		for _, b := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("firmware"), 100_000)} {
			for range 2 {
				if err := f.Put(t.Context(), digest(b), int64(len(b)), iotest.HalfReader(bytes.NewReader(b))); err != nil {
					t.Fatal(err)
				}
				if got := readBlob(t, f, digest(b)); !bytes.Equal(got, b) {
					t.Errorf("read %d other bytes, want %d", len(got), len(b))
				}
			}
			blob, err := f.Reread(t.Context(), digest(b))
			if err != nil {
				t.Fatal(err)
			}
			part := make([]byte, len(b)/2)
			if _, err := blob.ReadAt(part, int64(len(b)-len(part))); err != nil && len(part) > 0 || !bytes.Equal(part, b[len(b)-len(part):]) {
				t.Errorf("the second half is %d other bytes (%v)", len(part), err)
			}
			if err := blob.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := f.Open(t.Context(), digest([]byte("never"))); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
	})
}

func TestBlobsRefuseOtherBytesThanPromised(t *testing.T) {
	eachBlobs(t, func(t *testing.T, f blobs) {
		b := []byte("firmware")
		broken := errors.New("connection lost")
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		for _, c := range []struct {
			name   string
			ctx    context.Context
			digest string
			size   int64
			r      io.Reader
			want   error
		}{
			{"too few", t.Context(), digest(b), 9, bytes.NewReader(b), fleet.ErrInvalid},
			{"too many", t.Context(), digest(b), 7, bytes.NewReader(b), fleet.ErrInvalid},
			{"endless", t.Context(), digest(b), 8, endless{}, fleet.ErrInvalid},
			{"other bytes", t.Context(), digest(b), 8, strings.NewReader("firmwarE"), fleet.ErrInvalid},
			{"negative", t.Context(), digest(b), -1, bytes.NewReader(b), fleet.ErrInvalid},
			{"lost connection", t.Context(), digest(b), 8, io.MultiReader(strings.NewReader("firm"), iotest.ErrReader(broken)), broken},
			{"given up", cancelled, digest(b), 8, bytes.NewReader(b), context.Canceled},
			{"no digest", t.Context(), "../../../../etc/passwd", 8, bytes.NewReader(b), fleet.ErrInvalid},
			{"capitals", t.Context(), strings.ToUpper(digest(b)), 8, bytes.NewReader(b), fleet.ErrInvalid},
			{"short digest", t.Context(), "ab", 8, bytes.NewReader(b), fleet.ErrInvalid},
		} {
			if err := f.Put(c.ctx, c.digest, c.size, c.r); !errors.Is(err, c.want) || errors.Is(err, fleet.ErrStorage) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
			if got := f.list(); len(got) != 0 {
				t.Fatalf("%s: left %v", c.name, got)
			}
		}
		for _, name := range []string{"", "..", "ab/../../x", strings.Repeat("/", 64)} {
			if _, err := f.Open(t.Context(), name); !errors.Is(err, fleet.ErrInvalid) {
				t.Errorf("open %q: %v, want ErrInvalid", name, err)
			}
		}
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestDamagedBlobIsReplacedByTheNextPut(t *testing.T) {
	eachBlobs(t, func(t *testing.T, f blobs) {
		b := []byte("firmware")
		sha := digest(b)
		put := func() error { return f.Put(t.Context(), sha, 8, bytes.NewReader(b)) }
		if err := put(); err != nil {
			t.Fatal(err)
		}
		for _, damage := range []string{"", "firmwarE", "firmware and more"} {
			if err := os.WriteFile(f.path(sha), []byte(damage), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := put(); err != nil {
				t.Fatal(err)
			}
			if got := readBlob(t, f, sha); !bytes.Equal(got, b) {
				t.Errorf("%q stayed", got)
			}
		}
	})
}

func TestReadersSeeWholeBlobsOnly(t *testing.T) {
	eachBlobs(t, func(t *testing.T, f blobs) {
		b := bytes.Repeat([]byte("firmware"), 50_000)
		sha := digest(b)
		done := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := f.Put(t.Context(), sha, int64(len(b)), bytes.NewReader(b)); err != nil {
					t.Error(err)
				}
			})
		}
		var reader sync.WaitGroup
		reader.Go(func() {
			for {
				if blob, err := f.Open(t.Context(), sha); err == nil {
					if blob.Size() != int64(len(b)) {
						t.Errorf("a reader saw %d bytes", blob.Size())
					}
					blob.Close()
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		wg.Wait()
		close(done)
		reader.Wait()
		if got := readBlob(t, f, sha); !bytes.Equal(got, b) {
			t.Error("other bytes")
		}
	})
}

// BenchmarkBlobs opens and reads an image of 1 MiB: from the folder, from a bucket with the image near, and with nothing near.
func BenchmarkBlobs(b *testing.B) {
	image := bytes.Repeat([]byte("firmware"), 128<<10)
	read := func(b *testing.B, from fleet.Blobs, open func(ctx context.Context, sha string) (fleet.Blob, error)) {
		if err := from.Put(b.Context(), digest(image), int64(len(image)), bytes.NewReader(image)); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(image)))
		for b.Loop() {
			blob, err := open(b.Context(), digest(image))
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, blob); err != nil || n != int64(len(image)) {
				b.Fatal(n, err)
			}
			if err := blob.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	folder := openFolder(b, b.TempDir())
	b.Run("folder", func(b *testing.B) { read(b, folder, folder.Open) })
	bucket := openBucket(b, bucketOf(b, s3(b)))
	b.Run("bucket/near", func(b *testing.B) { read(b, bucket, bucket.Open) })
	b.Run("bucket/fetched", func(b *testing.B) { read(b, bucket, bucket.Reread) })
}
