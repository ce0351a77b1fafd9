package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"bmsota/durable"
	"bmsota/server/internal/fleet"
)

const tempPrefix = "upload-"

// Folder is fleet.Blobs in a folder: aa/<sha256>.bin, aa being the first two digits. A file under that name is whole and
// durable; what is not yet is an upload-* file beside the aa folders, in the same file system. It is safe for
// concurrent use, by several processes too where they have opened it so.
type Folder struct {
	root  *os.Root      // every path is resolved below it, so that no link leads out
	files durable.Files // what changes the folder: durable.Below of root
}

// OpenFolder opens the folder, makes it when it is not there, and removes what interrupted uploads have left.
func OpenFolder(dir string) (*Folder, error) { return openFolder(dir, 0) }

// OpenSharedFolder is OpenFolder where other processes work in the folder too: an upload of the last day may be theirs.
func OpenSharedFolder(dir string) (*Folder, error) { return openFolder(dir, 24*time.Hour) }

func openFolder(dir string, keep time.Duration) (*Folder, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("firmware folder: %w: %w", fleet.ErrStorage, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("firmware folder: %w: %w", fleet.ErrStorage, err)
	}
	f := &Folder{root: root, files: durable.Below{Root: root}}
	if err := f.sweep(keep); err != nil {
		return nil, errors.Join(fmt.Errorf("firmware folder: %w: %w", fleet.ErrStorage, err), root.Close())
	}
	return f, nil
}

func (f *Folder) sweep(keep time.Duration) error {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) < keep {
				continue
			}
			if err != nil {
				return err
			}
			if err := f.files.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close gives the folder back. Open files stay open.
func (f *Folder) Close() error { return f.root.Close() }

// Put implements fleet.Blobs. A file that is there but no longer has its digest is replaced. Errors: ErrInvalid when r
// holds other bytes than promised, ErrStorage when they cannot be kept (the folder is then as it was, or, where the last
// sync of all failed, holds the file whole and owes it to nobody); an error of r itself is wrapped as it is.
func (f *Folder) Put(ctx context.Context, digest string, size int64, r io.Reader) (err error) {
	path, err := blobPath(digest)
	if err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("%w: size of %d bytes", fleet.ErrInvalid, size)
	}
	if f.intact(path, digest, size) {
		if _, err := copyExactly(ctx, io.Discard, r, digest, size); err != nil {
			return err
		}
		// The name may be there because a Put was cut off right after its rename.
		if err := errors.Join(f.files.SyncFolder("."), f.files.SyncFolder(path[:2])); err != nil {
			return fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err)
		}
		return nil
	}
	temp := tempName()
	if err := f.write(ctx, temp, r, digest, size); err != nil {
		return err
	}
	if err := f.publish(temp, path); err != nil {
		return errors.Join(fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err), f.remove(temp))
	}
	return nil
}

func tempName() string {
	var random [8]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	return tempPrefix + hex.EncodeToString(random[:])
}

// write brings the bytes into a durable file that nobody looks at yet, and removes it when it cannot.
func (f *Folder) write(ctx context.Context, temp string, r io.Reader, digest string, size int64) (err error) {
	storage := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("store firmware: %w: %w", fleet.ErrStorage, err)
	}
	file, err := f.files.Create(temp)
	if err != nil {
		return storage(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.remove(temp))
		}
	}()
	writeFailed, err := copyExactly(ctx, file, r, digest, size)
	switch {
	case writeFailed:
		return errors.Join(storage(err), file.Close())
	case err != nil:
		return errors.Join(err, file.Close())
	}
	// The bytes before the name: a name that survives a power cut must not stand for bytes that did not.
	if err = file.Sync(); err != nil {
		return errors.Join(storage(err), file.Close())
	}
	return storage(file.Close())
}

// publish gives the durable file its name, and makes the name durable.
func (f *Folder) publish(temp, path string) error {
	dir := path[:2]
	if err := f.files.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := f.files.SyncFolder("."); err != nil { // also for a folder that a Put before has made and not synced
		return err
	}
	if err := f.files.Rename(temp, path); err != nil {
		return err
	}
	return f.files.SyncFolder(dir)
}

func (f *Folder) remove(temp string) error {
	if err := f.files.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// intact says whether the file is there with the bytes it is named after.
func (f *Folder) intact(path, digest string, size int64) bool {
	file, err := f.root.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	_, err = copyExactly(context.Background(), io.Discard, file, digest, size)
	return err == nil
}

// copyExactly copies size bytes that must have the digest, with nothing after them. writeFailed says that w was at
// fault, not r.
func copyExactly(ctx context.Context, w io.Writer, r io.Reader, digest string, size int64) (writeFailed bool, err error) {
	sum := sha256.New()
	buf := make([]byte, 64<<10)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		k, err := r.Read(buf)
		if n += int64(k); n > size {
			return false, fmt.Errorf("%w: more than the %d bytes promised", fleet.ErrInvalid, size)
		}
		sum.Write(buf[:k])
		if _, err := w.Write(buf[:k]); err != nil {
			return true, err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, fmt.Errorf("read upload: %w", err)
		}
	}
	if n != size {
		return false, fmt.Errorf("%w: %d bytes, %d were promised", fleet.ErrInvalid, n, size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return false, fmt.Errorf("%w: the bytes have the digest %s, not the one promised", fleet.ErrInvalid, got)
	}
	return false, nil
}

// blobPath is where the bytes of a digest are. It refuses everything that is no digest, before a name is made of it.
func blobPath(digest string) (string, error) {
	b, err := hex.DecodeString(digest)
	if err != nil || len(b) != sha256.Size || strings.ToLower(digest) != digest {
		return "", fmt.Errorf("%w: a digest is 64 lower-case hex digits", fleet.ErrInvalid)
	}
	return digest[:2] + "/" + digest + ".bin", nil
}

// digestOf is blobPath the other way round; empty for another file.
func digestOf(path string) string {
	digest, _ := strings.CutSuffix(path[strings.LastIndexByte(path, '/')+1:], ".bin")
	if want, err := blobPath(digest); err != nil || want != path {
		return ""
	}
	return digest
}

// blob is an open firmware file.
type blob struct {
	*os.File
	size int64
}

// Size is the length in bytes.
func (b blob) Size() int64 { return b.size }

// Reread implements fleet.Blobs: there is nothing nearer than the folder.
func (f *Folder) Reread(ctx context.Context, digest string) (fleet.Blob, error) {
	return f.Open(ctx, digest)
}

// Open implements fleet.Blobs.
func (f *Folder) Open(_ context.Context, digest string) (fleet.Blob, error) {
	path, err := blobPath(digest)
	if err != nil {
		return nil, err
	}
	file, err := f.root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("firmware %.12s…: %w", digest, fleet.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open firmware: %w: %w", fleet.ErrStorage, err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open firmware: %w: %w", fleet.ErrStorage, err), file.Close())
	}
	return blob{file, info.Size()}, nil
}
