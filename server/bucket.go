package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"bmsota/durable"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// Firmware is the section "firmware".
type Firmware struct {
	// Folder keeps firmware there, in place of <data_dir>/firmware, as where several servers share it.
	Folder string `json:"folder"`

	// Bucket keeps firmware in an S3-compatible store, in place of <data_dir>/firmware.
	Bucket BucketConfig `json:"bucket"`
}

// BucketConfig is the section "firmware.bucket".
type BucketConfig struct {
	// Bucket is the bucket's name; setting it turns the bucket on. The server makes none.
	Bucket string `json:"bucket"`
	// Endpoint is the store's address, https://host or https://host:port, without the bucket's name. Plain http will do
	// for a store on a network of yours: what comes from it is held against its digest, and no secret is sent.
	Endpoint string `json:"endpoint"`
	// Prefix is what the names of all objects begin with; it ends in a slash. One server to a prefix. Default: none.
	Prefix string `json:"prefix"`
	// Region is the bucket's. Default: asked of the store.
	Region string `json:"region"`
	// AccessKey and SecretKeyFile are the login; the file holds the secret key and nothing else. Default: AWS_ACCESS_KEY_ID
	// and AWS_SECRET_ACCESS_KEY of the environment, else the role of the machine.
	AccessKey     string `json:"access_key"`
	SecretKeyFile string `json:"secret_key_file"`
	// PathStyle asks for endpoint/bucket/object in place of bucket.endpoint/object, as most stores of one's own need. It is
	// so always where the endpoint is an address. Default false.
	PathStyle bool `json:"path_style"`
	// CAFile is the PEM to trust for the endpoint. Default: the system's authorities.
	CAFile string `json:"ca_file"`

	// Download says how devices get at an image: "proxy", from this server, or "presigned", from the store under an
	// address that is good for a time. Default "proxy".
	Download string `json:"download"`
	// PresignTTL is for how long such an address is signed; a device is given one that is good for at least half of it.
	// From 2h to 7d, default "24h".
	PresignTTL Duration `json:"presign_ttl"`
	// PublicURL is the address under which anybody finds the objects without their prefix, as of a CDN before the bucket:
	// devices then get their images there. Default: none.
	PublicURL string `json:"public_url"`
	// CacheBytes bounds the folder <data_dir>/firmware-near, which holds what was read lately. Default 1073741824 (1 GiB).
	CacheBytes int64 `json:"cache_bytes"`
}

const (
	downloadProxy     = "proxy"
	downloadPresigned = "presigned"
)

func (c *BucketConfig) fillIn(set func(*string, string)) {
	if c.Bucket == "" {
		return
	}
	set(&c.Download, downloadProxy)
	c.PresignTTL = cmp.Or(c.PresignTTL, Duration(24*time.Hour))
	c.CacheBytes = cmp.Or(c.CacheBytes, 1<<30)
	c.Endpoint, c.PublicURL = strings.TrimRight(c.Endpoint, "/"), strings.TrimRight(c.PublicURL, "/")
}

var (
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixForm = regexp.MustCompile(`^([A-Za-z0-9._-]{1,64}/){0,4}$`)
)

// check says what is wrong, beginning with the key within firmware.bucket.
func (c BucketConfig) check() error {
	if c.Bucket == "" {
		if c != (BucketConfig{}) {
			return errors.New("bucket is empty, but other keys of firmware.bucket are set")
		}
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	switch {
	case !bucketForm.MatchString(c.Bucket):
		return fmt.Errorf("bucket: %q is no name of a bucket: 3 to 63 small letters, digits, dots and hyphens", c.Bucket)
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || !isHost(u.Hostname()) || u.User != nil || !bareHost(u):
		return errors.New("endpoint: it is not https://host or https://host:port")
	case !prefixForm.MatchString(c.Prefix):
		return fmt.Errorf("prefix: %q is not a path like firmware/ of letters, digits and . _ -, with a slash at its end", c.Prefix)
	case (c.AccessKey == "") != (c.SecretKeyFile == ""):
		return errors.New("access_key and firmware.bucket.secret_key_file go together")
	case c.Download != downloadProxy && c.Download != downloadPresigned:
		return fmt.Errorf("download: %q is neither proxy nor presigned", c.Download)
	case c.Download == downloadPresigned && u.Scheme != "https":
		return errors.New("download: devices take images over https only, and the endpoint is plain http: use proxy")
	case c.CacheBytes < 0:
		return errors.New("cache_bytes is negative")
	}
	// A device takes up to half an hour for a download, and may be told an address at the end of its first half.
	if ttl := time.Duration(c.PresignTTL); ttl < 2*time.Hour || ttl > 7*24*time.Hour {
		return fmt.Errorf("presign_ttl: %v is not within 2h to 7d", ttl)
	}
	if c.PublicURL == "" {
		return nil
	}
	p, err := url.Parse(c.PublicURL)
	switch {
	case err != nil || p.Scheme != "https" || !isHost(p.Hostname()) || p.User != nil || p.RawQuery != "" || p.ForceQuery || p.Fragment != "":
		return errors.New("public_url: it is not https://host/path")
	case c.Download == downloadPresigned:
		return errors.New("public_url and firmware.bucket.download presigned exclude each other")
	case len(c.public(strings.Repeat("0", 64))) > protocol.MaxURL:
		return fmt.Errorf("public_url: with the name of an image behind it, it is longer than the %d bytes devices take", protocol.MaxURL)
	}
	return nil
}

func (c BucketConfig) public(digest string) string { return c.PublicURL + "/" + digest + ".bin" }

// Errors of Open: what firmware.bucket names does not let this server in, or is away.
var (
	ErrBucketRefused = store.ErrBucketRefused
	ErrBucketAway    = store.ErrBucketAway
)

// bucket is the opened bucket, and whether it was reached lately.
type bucket struct {
	*store.Bucket
	away atomic.Pointer[error]
}

// bucketNote is bucket.json: without it nobody would know where the firmware of a data folder is, or that a prefix is this
// folder's own.
type bucketNote struct {
	Owner    string `json:"owner"`
	Endpoint string `json:"endpoint"`
	Bucket   string `json:"bucket"`
	Prefix   string `json:"prefix"`
}

// openBucket opens what the configuration names, if it names one. When that fails, nothing has been written.
func (s *Server) openBucket(ctx context.Context) error {
	cfg, path := s.cfg.Firmware.Bucket, filepath.Join(s.cfg.DataDir, bucketName)
	note, err := readBucketNote(path)
	if err != nil {
		return err
	}
	if cfg.Bucket == "" {
		if note.Owner != "" {
			return fmt.Errorf("the firmware of this data folder is in bucket %q at %s: set firmware.bucket, or see docs/deploying.md for the way back", note.Bucket, note.Endpoint)
		}
		return nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return fmt.Errorf("firmware.bucket.endpoint: %w", err)
	}
	_, notAddress := netip.ParseAddr(u.Hostname())
	b := store.BucketConfig{Endpoint: cfg.Endpoint, Bucket: cfg.Bucket, Prefix: cfg.Prefix, Region: cfg.Region, AccessKey: cfg.AccessKey,
		PathStyle: cfg.PathStyle || notAddress == nil || u.Hostname() == "localhost", Near: filepath.Join(s.cfg.DataDir, nearName), NearBytes: cfg.CacheBytes}
	if cfg.Download == downloadPresigned {
		b.SignedFor, b.SignedMax = time.Duration(cfg.PresignTTL), protocol.MaxURL
	}
	if cfg.SecretKeyFile != "" {
		secret, err := os.ReadFile(cfg.SecretKeyFile)
		if err != nil {
			return fmt.Errorf("firmware.bucket.secret_key_file: %w", err)
		}
		if b.SecretKey = strings.TrimSpace(string(secret)); b.SecretKey == "" {
			return fmt.Errorf("firmware.bucket.secret_key_file: %s is empty", cfg.SecretKeyFile)
		}
	}
	if cfg.CAFile != "" {
		if b.CAPEM, err = readPEM(cfg.CAFile); err != nil {
			return fmt.Errorf("firmware.bucket.ca_file: %w", err)
		}
	}
	// The note before the bucket learns the name in it: a start that is cut off in between finds its own name there.
	now := bucketNote{cmp.Or(s.cfg.bucketOwner(), note.Owner, newOwner()), cfg.Endpoint, cfg.Bucket, cfg.Prefix}
	b.Owner = now.Owner
	if now != note {
		if err := writeBucketNote(path, now); err != nil {
			return err
		}
	}
	opened, err := store.OpenBucket(ctx, b)
	if err == nil {
		s.keep(opened)
		s.bucket = &bucket{Bucket: opened}
		return nil
	}
	switch {
	case now == note:
		return err
	case note.Owner != "":
		return errors.Join(err, writeBucketNote(path, note))
	}
	return errors.Join(err, os.Remove(path))
}

func newOwner() string {
	var b [12]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func readBucketNote(path string) (note bucketNote, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return note, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &note)
	}
	if err != nil {
		return note, fmt.Errorf("read %s: %w", path, err)
	}
	return note, nil
}

func writeBucketNote(path string, note bucketNote) error {
	b, err := json.MarshalIndent(note, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), private)
}

// orphansAfter is how old an upload gets that has become no release.
const orphansAfter = 7 * 24 * time.Hour

// openBlobs opens where firmware is.
func (s *Server) openBlobs(ctx context.Context) (fleet.Blobs, error) {
	folder := cmp.Or(s.cfg.Firmware.Folder, filepath.Join(s.cfg.DataDir, firmwareName))
	shared := s.cfg.Replicas.Name != ""
	if s.bucket == nil {
		open := store.OpenFolder
		if shared {
			open = store.OpenSharedFolder
		}
		blobs, err := open(folder)
		if err != nil {
			return nil, err
		}
		s.keep(blobs)
		return blobs, nil
	}
	var before *store.Folder
	if _, err := os.Stat(folder); err == nil {
		if before, err = store.OpenFolder(folder); err != nil {
			return nil, err
		}
		defer before.Close()
	}
	var releases []fleet.Release
	if err := s.store.View(ctx, func(tx fleet.Tx) (err error) {
		releases, err = tx.Releases()
		return err
	}); err != nil {
		return nil, err
	}
	leftovers := s.started.Add(-orphansAfter)
	if shared { // another server may be about to find one there
		leftovers = time.Time{}
	}
	done, err := s.bucket.Settle(ctx, releases, before, leftovers)
	if err != nil {
		s.log.Warn("the bucket was not held against the releases", "err", err)
	}
	if done != (store.Settled{}) {
		s.log.Info("bucket settled", "moved_from_folder", done.Moved, "leftovers_removed", done.Collected)
	}
	for _, doubt := range s.bucket.Doubts() {
		s.log.Error(doubt)
	}
	return s.bucket, nil
}

// watchEvery is how often the bucket is asked whether it is there.
const watchEvery = 5 * time.Second

// watchBucket keeps up with whether the bucket is reached, until ctx ends.
func (s *Server) watchBucket(ctx context.Context) error {
	if s.bucket == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, watchEvery)
		err := s.bucket.Probe(asked)
		cancel()
		was := s.bucket.away.Load()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && was != nil:
			s.bucket.away.Store(nil)
			s.log.Info("firmware bucket is reached again")
		case err != nil && was == nil:
			s.bucket.away.Store(&err)
			s.log.Error("firmware bucket", "err", err)
		}
	}
}

// reached says why not.
func (b *bucket) reached() error {
	if b == nil || b.away.Load() == nil {
		return nil
	}
	return errors.New("firmware bucket cannot be read: the log says why")
}

// imageURL is where version.json sends devices for an image; nil where that is here.
func (s *Server) imageURL() func(ctx context.Context, digest string) (string, error) {
	cfg := s.cfg.Firmware.Bucket
	switch {
	case cfg.PublicURL != "":
		return func(_ context.Context, digest string) (string, error) { return cfg.public(digest), nil }
	case s.bucket != nil && cfg.Download == downloadPresigned:
		return func(ctx context.Context, digest string) (string, error) {
			return s.bucket.Signed(ctx, digest, time.Now())
		}
	}
	return nil
}
