package web

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// imageCache holds the images that are and were lately served, each once, up to a number of bytes; what was not asked
// for the longest goes first. What somebody is reading stays: its bytes are in memory, whether they are counted or not,
// and readers who take their time could otherwise have every image there at once.
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

	readers int // guarded by the cache's mu
}

func newImageCache(limit int64) *imageCache {
	return &imageCache{limit: limit, recent: list.New(), images: make(map[string]*list.Element)}
}

// content gives a reader for the bytes of blob, from memory when they fit. It checks the digest when it loads: a file
// that has rotted on disk is a fault here, once, and not in every device. The reader must not be used after done. It takes blob
// over, and closes it before it returns where the bytes are in memory: thousands of downloads that take their time would hold
// thousands of open files.
func (c *imageCache) content(sha256 string, blob fleet.Blob) (_ io.ReadSeeker, done func(), _ error) {
	entry := c.enter(sha256, blob)
	if entry == nil {
		return blob, func() { _ = blob.Close() }, nil
	}
	defer blob.Close()
	image, err := entry.load()
	if err != nil {
		c.drop(entry)
		return nil, func() {}, err
	}
	return newImageReader(image), func() { c.leave(entry) }, nil
}

// held is content without a blob, for an image that is in memory or about to be. A release is never removed, so what stands for
// one does so for good.
func (c *imageCache) held(sha256 string) (_ io.ReadSeeker, done func(), ok bool) {
	c.mu.Lock()
	entry := c.find(sha256)
	c.mu.Unlock()
	if entry == nil {
		return nil, nil, false
	}
	image, err := entry.load()
	if err != nil { // whoever loads it says so, and drops it
		return nil, nil, false
	}
	return newImageReader(image), func() { c.leave(entry) }, true
}

// find is an image that is in memory or about to be, for one more reader; nil when there is none. It is called with mu held.
func (c *imageCache) find(sha256 string) *cachedImage {
	e, ok := c.images[sha256]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	entry := e.Value.(*cachedImage)
	entry.readers++
	return entry
}

// enter is nil when there is no room.
func (c *imageCache) enter(sha256 string, blob fleet.Blob) *cachedImage {
	size := blob.Size()
	if size > c.limit/2 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if entry := c.find(sha256); entry != nil {
		return entry
	}
	for e := c.recent.Back(); e != nil && c.used+size > c.limit; {
		older := e.Prev()
		if e.Value.(*cachedImage).readers == 0 {
			c.remove(e)
		}
		e = older
	}
	if c.used+size > c.limit {
		return nil
	}
	entry := &cachedImage{sha256: sha256, size: size, readers: 1}
	entry.load = sync.OnceValues(func() ([]byte, error) { return readImage(sha256, size, blob) })
	c.images[sha256] = c.recent.PushFront(entry)
	c.used += size
	return entry
}

func (c *imageCache) leave(entry *cachedImage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry.readers--
}

// drop forgets an image that could not be loaded.
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
	last  atomic.Pointer[versionBody] // the one asked for last: most fleets are offered one, and hashing it is more than to compare it
	mu    sync.Mutex
	files map[protocol.VersionFile]*versionBody // guarded by mu
}

type versionBody struct {
	file protocol.VersionFile
	body []byte // shared, never written to
	// As values of a header, shared as well.
	length, etag []string
}

func (c *versionCache) body(f protocol.VersionFile) (*versionBody, error) {
	if v := c.last.Load(); v != nil && v.file == f {
		return v, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.files[f]; ok {
		c.last.Store(v)
		return v, nil
	}
	b, err := f.Append(nil)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	v := &versionBody{file: f, body: b, length: []string{strconv.Itoa(len(b))}, etag: []string{`"` + hex.EncodeToString(sum[:8]) + `"`}}
	if c.files == nil || len(c.files) >= maxVersions {
		c.files = make(map[protocol.VersionFile]*versionBody)
	}
	c.files[f] = v
	c.last.Store(v)
	return v, nil
}
