package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"bmsota/server/internal/fleet"
)

// near is the folder in which a Bucket keeps what it has read lately, so that a thousand boards cost one download from the
// store. It is a Folder, so a file under its name is whole; it is nobody's only copy, so it may be lost at any time.
type near struct {
	folder *Folder
	limit  int64

	mu    sync.Mutex
	asked uint64            // how often anything was asked for; guarded by mu
	used  map[string]uint64 // what asked was when a digest was asked for last; only of what is known to be right; guarded by mu
}

func openNear(dir string, limit int64) (*near, error) {
	f, err := OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	return &near{folder: f, limit: limit, used: make(map[string]uint64)}, nil
}

// take brings size bytes of a digest into a file that has no name yet.
func (n *near) take(ctx context.Context, digest string, size int64, r io.Reader) (temp string, err error) {
	temp = tempName()
	return temp, n.folder.write(ctx, temp, r, digest, size)
}

// adopt gives the file its name, and makes room for it.
func (n *near) adopt(temp, digest string) error {
	path, err := blobPath(digest)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.folder.publish(temp, path); err != nil {
		return errors.Join(fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err), n.folder.remove(temp))
	}
	n.use(digest)
	return n.trim(digest)
}

// trim removes what was not asked for the longest until the rest fits. Called with mu held.
func (n *near) trim(keep string) error {
	type kept struct {
		path, digest string
		size         int64
	}
	var all []kept
	var sum int64
	err := fs.WalkDir(n.folder.root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if digest := digestOf(path); digest != "" {
			all, sum = append(all, kept{path, digest, info.Size()}), sum+info.Size()
		}
		return nil
	})
	for err == nil && sum > n.limit && len(all) > 1 {
		oldest := -1
		for i, k := range all {
			if k.digest != keep && (oldest < 0 || n.used[k.digest] < n.used[all[oldest].digest]) {
				oldest = i
			}
		}
		k := all[oldest]
		all = append(all[:oldest], all[oldest+1:]...)
		if n.folder.remove(k.path) == nil { // some systems keep what somebody reads: it goes another time
			delete(n.used, k.digest)
			sum -= k.size
		}
	}
	if err != nil {
		return fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err)
	}
	return nil
}

// open opens what is there. A file that an earlier run of the server has left is read once before it is believed.
func (n *near) open(ctx context.Context, digest string) (fleet.Blob, error) {
	n.mu.Lock()
	_, known := n.used[digest]
	n.mu.Unlock()
	b, err := n.folder.Open(ctx, digest)
	if err != nil {
		return nil, err
	}
	if !known {
		if _, err := copyExactly(ctx, io.Discard, io.NewSectionReader(b, 0, b.Size()), digest, b.Size()); err != nil {
			if ctx.Err() != nil {
				return nil, errors.Join(ctx.Err(), b.Close())
			}
			return nil, errors.Join(b.Close(), fmt.Errorf("firmware %.12s…: %w", digest, fleet.ErrNotFound))
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.use(digest)
	return b, nil
}

// use is called with mu held.
func (n *near) use(digest string) {
	n.asked++
	n.used[digest] = n.asked
}

// drop forgets a file.
func (n *near) drop(digest string) error {
	path, err := blobPath(digest)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, digest)
	if err := n.folder.remove(path); err != nil {
		return fmt.Errorf("open firmware: %w: %w", fleet.ErrStorage, err)
	}
	return nil
}
