package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/singleflight"

	"bmsota/server/internal/fleet"
)

// BucketConfig says where a bucket of an S3-compatible store is, who asks, and what of it is kept near.
type BucketConfig struct {
	Endpoint             string        // https://host[:port]; http for a store on this machine
	Bucket, Prefix       string        // objects are called Prefix + <sha256>.bin
	Region               string        // empty: asked of the store
	AccessKey, SecretKey string        // empty: of the environment, else of the machine's role
	PathStyle            bool          // host/bucket/key in place of bucket.host/key
	CAPEM                []byte        // to trust for Endpoint; empty: the system's authorities
	Owner                string        // of the objects below Prefix: an id of this server's data folder
	Near                 string        // folder for what was read lately
	NearBytes            int64         // bound of that folder, one object always fits
	SignedFor            time.Duration // for how long Signed signs; 0 where nobody asks it to
	SignedMax            int           // bytes that such an address may have
	Tries                int           // of one request, while the store cannot; 0 means 3
}

// Times of one operation on the bucket. What is larger than an image takes is a store that hangs.
const (
	bucketDial   = 10 * time.Second
	bucketAnswer = 30 * time.Second
	bucketWhole  = 3 * time.Minute
)

// Bucket is fleet.Blobs in a bucket: <prefix><sha256>.bin, put in one request, which a store keeps whole or not at all, and
// read back before Put says that it is there. What is read comes by way of a folder on this machine, into which nothing gets
// whose digest is not the one it is called by. It is safe for concurrent use.
type Bucket struct {
	cfg    BucketConfig
	api    *minio.Core
	near   *near
	secure bool

	fetching singleflight.Group // by digest

	mu     sync.Mutex
	wrong  map[string]string // what is damaged in the bucket, and how, by digest; guarded by mu
	signed map[string]signed // guarded by mu
}

// Errors of a bucket at start, which are not the moment's.
var (
	ErrBucketRefused = errors.New("firmware bucket refused")     // wrong name, credentials, rights, region, owner
	ErrBucketAway    = errors.New("firmware bucket not reached") // nobody answers, or says that it cannot now
)

// OpenBucket makes sure that the bucket can be read, listed and written by this server and is no other's. The error wraps
// ErrBucketRefused or ErrBucketAway and is one sentence; the bucket is then as it was.
func OpenBucket(ctx context.Context, cfg BucketConfig) (*Bucket, error) {
	b, err := newBucket(cfg)
	if err != nil {
		return nil, err
	}
	if err := b.checkSigned(ctx); err != nil {
		return nil, err
	}
	if err := b.claim(ctx); err != nil {
		return nil, err
	}
	if b.near, err = openNear(cfg.Near, cfg.NearBytes); err != nil {
		return nil, err
	}
	return b, nil
}

func newBucket(cfg BucketConfig) (*Bucket, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: endpoint: %w", ErrBucketRefused, err)
	}
	b := &Bucket{cfg: cfg, secure: u.Scheme == "https", wrong: make(map[string]string), signed: make(map[string]signed)}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(cfg.CAPEM) > 0 {
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM(cfg.CAPEM)
	}
	lookup := minio.BucketLookupDNS
	if cfg.PathStyle {
		lookup = minio.BucketLookupPath
	}
	b.api, err = minio.NewCore(u.Host, &minio.Options{
		Creds: cfg.credentials(), Secure: b.secure, Region: cfg.Region, BucketLookup: lookup, MaxRetries: cmp.Or(cfg.Tries, 3),
		Transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: bucketDial}).DialContext, TLSHandshakeTimeout: bucketDial,
			ResponseHeaderTimeout: bucketAnswer, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
			TLSClientConfig: conf, DisableCompression: true, // what is hashed is what was stored
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBucketRefused, err)
	}
	b.api.SetS3EnableDualstack(false) // Amazon's name for it is ten bytes longer, which signed addresses do not have
	return b, nil
}

func (c BucketConfig) credentials() *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, "")
	}
	if os.Getenv("AWS_ACCESS_KEY_ID") != "" {
		return credentials.NewEnvAWS()
	}
	return credentials.NewIAM("")
}

// Close gives the near folder back.
func (b *Bucket) Close() error { return b.near.folder.Close() }

// claimKey is the object that says whose the prefix is. It begins with no digit, so that it is no firmware.
const claimKey = "owner.txt"

// claim writes the owner's name, or finds it there. It is written at each start: this is how it is known that this server may
// write. A reader of another's prefix would take that one's firmware for leftovers.
func (b *Bucket) claim(ctx context.Context) error {
	want := []byte(b.cfg.Owner + "\n")
	ctx, cancel := context.WithTimeout(ctx, bucketWhole)
	defer cancel()
	body, _, _, err := b.api.GetObject(ctx, b.cfg.Bucket, b.cfg.Prefix+claimKey, minio.GetObjectOptions{})
	if err == nil {
		var got []byte
		got, err = io.ReadAll(io.LimitReader(body, 4096))
		_ = body.Close()
		if err == nil && string(got) != string(want) {
			return fmt.Errorf("%w: below %q of bucket %s lies the firmware of another server (%.64q): give this one a prefix of its own",
				ErrBucketRefused, b.cfg.Prefix, b.cfg.Bucket, strings.TrimSpace(string(got)))
		}
	}
	if err != nil && answerOf(err).Code != minio.NoSuchKey {
		return b.atStart("read", err)
	}
	if _, err := b.List(ctx); err != nil {
		return b.atStart("list", err)
	}
	if err := b.send(ctx, claimKey, want); err != nil {
		return b.atStart("write", err)
	}
	return nil
}

func (b *Bucket) send(ctx context.Context, name string, content []byte) error {
	sum := sha256.Sum256(content)
	return b.put(ctx, name, strings.NewReader(string(content)), int64(len(content)), hex.EncodeToString(sum[:]), "text/plain")
}

// put sends one object in one request. The digest is part of what is signed, so the store refuses other bytes; a request
// that is cut off leaves nothing.
func (b *Bucket) put(ctx context.Context, name string, r io.ReadSeeker, size int64, digest, kind string) error {
	opts := minio.PutObjectOptions{ContentType: kind, DisableContentSha256: true}
	if kind == octets {
		opts.CacheControl = "public, max-age=31536000, immutable"
	}
	_, err := b.api.PutObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, r, size, "", digest, opts)
	return err
}

const octets = "application/octet-stream"

func objectName(digest string) (string, error) {
	if _, err := blobPath(digest); err != nil {
		return "", err
	}
	return digest + ".bin", nil
}

// Put implements fleet.Blobs. The bytes are judged in a file on this machine before the first of them is sent, and read back
// before it returns nil. An object that is there but no longer has its digest is replaced. Errors are those of Folder.Put;
// after one the bucket holds what it held, or, where only the answer was lost, the object whole.
func (b *Bucket) Put(ctx context.Context, digest string, size int64, r io.Reader) error {
	name, err := objectName(digest)
	if err != nil {
		return err
	}
	if size < 0 || size > fleet.MaxUpload {
		return fmt.Errorf("%w: size of %d bytes", fleet.ErrInvalid, size)
	}
	temp, err := b.near.take(ctx, digest, size, r)
	if err != nil {
		return err
	}
	if err := b.deliver(ctx, temp, name, digest, size); err != nil {
		return errors.Join(err, b.near.folder.remove(temp))
	}
	b.forgive(digest)
	return b.near.adopt(temp, digest)
}

func (b *Bucket) deliver(ctx context.Context, temp, name, digest string, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, bucketWhole)
	defer cancel()
	if b.holds(ctx, name, digest, size) == nil {
		return nil
	}
	file, err := b.near.folder.root.Open(temp)
	if err != nil {
		return fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err)
	}
	err = b.put(ctx, name, io.NewSectionReader(file, 0, size), size, digest, octets)
	if err = errors.Join(err, file.Close()); err == nil {
		err = b.holds(ctx, name, digest, size)
	}
	if err != nil {
		return b.fault("store", err)
	}
	return nil
}

// holds reads an object and says what is wrong with it.
func (b *Bucket) holds(ctx context.Context, name, digest string, size int64) error {
	body, _, _, err := b.api.GetObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = copyExactly(ctx, io.Discard, body, digest, size)
	return err
}

// Open implements fleet.Blobs: from the near folder, which fetches what it does not have. ErrDamaged where the bucket holds
// other bytes than it should, ErrNotFound where it has none.
func (b *Bucket) Open(ctx context.Context, digest string) (fleet.Blob, error) {
	if _, err := objectName(digest); err != nil {
		return nil, err
	}
	if blob, err := b.near.open(ctx, digest); !errors.Is(err, fleet.ErrNotFound) {
		return blob, err
	}
	// One fetch for all who wait for it, and not ended by the one of them who asked first.
	wait := b.fetching.DoChan(digest, func() (any, error) { return nil, b.fetch(context.WithoutCancel(ctx), digest) })
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case done := <-wait:
		if done.Err != nil {
			return nil, done.Err
		}
	}
	return b.near.open(ctx, digest)
}

// Reread implements fleet.Blobs: what is near does not count.
func (b *Bucket) Reread(ctx context.Context, digest string) (fleet.Blob, error) {
	if err := b.near.drop(digest); err != nil {
		return nil, err
	}
	return b.Open(ctx, digest)
}

func (b *Bucket) fetch(ctx context.Context, digest string) error {
	ctx, cancel := context.WithTimeout(ctx, bucketWhole)
	defer cancel()
	name, err := objectName(digest)
	if err != nil {
		return err
	}
	body, info, _, err := b.api.GetObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, minio.GetObjectOptions{})
	if err != nil {
		if answerOf(err).Code == minio.NoSuchKey {
			b.accuse(digest, "is not in the bucket")
			return fmt.Errorf("firmware %.12s…: %w", digest, fleet.ErrNotFound)
		}
		return b.fault("read", err)
	}
	defer body.Close()
	if info.Size < 0 || info.Size > fleet.MaxUpload {
		b.accuse(digest, "has other bytes in the bucket than it should")
		return fmt.Errorf("%w: firmware %s: the bucket's object has %d bytes", fleet.ErrDamaged, digest, info.Size)
	}
	temp, err := b.near.take(ctx, digest, info.Size, body)
	switch {
	case errors.Is(err, fleet.ErrInvalid):
		b.accuse(digest, "has other bytes in the bucket than it should")
		return fmt.Errorf("%w: firmware %s: the bucket holds other bytes: %w", fleet.ErrDamaged, digest, err)
	case errors.Is(err, fleet.ErrStorage):
		return err
	case err != nil:
		return b.fault("read", err)
	}
	b.forgive(digest)
	return b.near.adopt(temp, digest)
}
