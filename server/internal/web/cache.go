package web

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// imageCache holds the images that were served lately, each once, up to a number of bytes; what was not asked for the
// longest goes first. A download that runs keeps its slice, so an image that goes lives until its last reader is done.
type imageCache struct {
	limit int64

	mu     sync.Mutex
	used   int64                    // bytes; guarded by mu
	recent *list.List               // of *cachedImage, most recent first; guarded by mu
	images map[string]*list.Element // by digest; guarded by mu
}

type cachedImage struct {
	sha256 string
	size   int64
	load   func() ([]byte, error) // sync.OnceValues: the first reader loads, the others wait for it
}

func newImageCache(limit int64) *imageCache {
	return &imageCache{limit: limit, recent: list.New(), images: make(map[string]*list.Element)}
}

// content gives a reader for the bytes of blob, from memory when they fit. It checks the digest when it loads: a file
// that has rotted on disk is a fault here, once, and not in every device. The reader must not be used after blob is
// closed.
func (c *imageCache) content(sha256 string, blob fleet.Blob) (io.ReadSeeker, error) {
	size := blob.Size()
	if size > c.limit/2 {
		return blob, nil
	}
	entry := c.entry(sha256, size, blob)
	image, err := entry.load()
	if err != nil {
		c.drop(entry)
		return nil, err
	}
	return newImageReader(image), nil
}

func (c *imageCache) entry(sha256 string, size int64, blob fleet.Blob) *cachedImage {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.images[sha256]; ok {
		c.recent.MoveToFront(e)
		return e.Value.(*cachedImage)
	}
	entry := &cachedImage{sha256: sha256, size: size}
	entry.load = sync.OnceValues(func() ([]byte, error) { return readImage(sha256, size, blob) })
	c.images[sha256] = c.recent.PushFront(entry)
	c.used += size
	for c.used > c.limit {
		c.remove(c.recent.Back())
	}
	return entry
}

func (c *imageCache) drop(entry *cachedImage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.images[entry.sha256]; ok && e.Value == any(entry) {
		c.remove(e)
	}
}

// remove is called with mu held.
func (c *imageCache) remove(e *list.Element) {
	entry := c.recent.Remove(e).(*cachedImage)
	delete(c.images, entry.sha256)
	c.used -= entry.size
}

func readImage(digest string, size int64, blob fleet.Blob) ([]byte, error) {
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(blob, 0, size), b); err != nil {
		return nil, fmt.Errorf("read firmware %s: %w: %w", digest, fleet.ErrStorage, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("read firmware %s: %w: the file holds other bytes", digest, fleet.ErrStorage)
	}
	return b, nil
}

// maxVersions bounds versionCache: so many different offers are alive at once only in a fleet of many projects.
const maxVersions = 256

// versionCache holds version.json as it goes out, by what it says. Its keys are whole values, so nothing in it can be
// stale: a changed offer is another key.
type versionCache struct {
	mu    sync.Mutex
	files map[protocol.VersionFile]versionBody // guarded by mu
}

type versionBody struct {
	body []byte // shared, never written to
	etag string
}

func (c *versionCache) body(f protocol.VersionFile) (versionBody, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.files[f]; ok {
		return v, nil
	}
	b, err := f.Append(nil)
	if err != nil {
		return versionBody{}, err
	}
	sum := sha256.Sum256(b)
	v := versionBody{body: b, etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
	if c.files == nil || len(c.files) >= maxVersions {
		c.files = make(map[protocol.VersionFile]versionBody)
	}
	c.files[f] = v
	return v, nil
}
