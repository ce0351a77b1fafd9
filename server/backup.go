package server

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"bmsota/durable"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// A backup is a tar file: backup.json first, then the data folder, and an empty backup.end, without which a file that was
// cut off between two entries would pass for a whole one. It holds what the folder holds: the authority's key, and tokens.
const (
	backupHead    = "backup.json"
	backupEnd     = "backup.end"
	backupVersion = 1
	// maxBackedUp is the most that one file in a backup may hold, in bytes; firmware is far below it.
	maxBackedUp = 64 << 30
)

// backupInfo is backup.json.
type backupInfo struct {
	Version int       `json:"version"`
	Taken   time.Time `json:"taken"`
}

// Errors of Restore that are the caller's to explain.
var (
	ErrNotBackup = errors.New("not a backup")       // or a damaged one
	ErrInUse     = errors.New("the folder is used") // it holds something already
)

// Backup writes a backup of the data folder to w, while a server runs on it or not. now is when. The database comes first:
// a firmware file is there before a row speaks of it, so every row that is in the backup finds its bytes there. Rows that are
// in PostgreSQL are not in it, see DatabaseElsewhere: a dump of them that was begun before finds its bytes as well.
func Backup(ctx context.Context, dataDir string, now time.Time, w io.Writer) error {
	temp, err := os.MkdirTemp("", "bmsota-backup-*") // for this account only
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	elsewhere, err := DatabaseElsewhere(dataDir)
	if err != nil {
		return err
	}
	snapshot := filepath.Join(temp, databaseName)
	if elsewhere == "" {
		if err := store.Snapshot(ctx, filepath.Join(dataDir, databaseName), snapshot); err != nil {
			return err
		}
	}
	head, err := json.Marshal(backupInfo{Version: backupVersion, Taken: now.UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	b := &backup{tar: tar.NewWriter(w), now: now}
	if err := b.header(backupHead, int64(len(head))); err != nil {
		return err
	}
	if _, err := b.tar.Write(head); err != nil {
		return err
	}
	if elsewhere == "" {
		if err := b.file(databaseName, snapshot); err != nil {
			return err
		}
	}
	err = filepath.WalkDir(dataDir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		rel, err := filepath.Rel(dataDir, at)
		if err != nil || !d.Type().IsRegular() || passing(filepath.ToSlash(rel)) {
			return err
		}
		return b.file(filepath.ToSlash(rel), at)
	})
	if err != nil {
		return fmt.Errorf("back up %s: %w", dataDir, err)
	}
	return errors.Join(b.header(backupEnd, 0), b.tar.Close())
}

// passing says that a file of the data folder is none that is kept: the database is in the backup by itself, the rest is
// of the moment.
func passing(name string) bool {
	base := path.Base(name)
	return name == lockName || strings.HasPrefix(name, nearName+"/") || strings.HasPrefix(name, databaseName) || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "upload-")
}

type backup struct {
	tar *tar.Writer
	now time.Time
}

func (b *backup) header(name string, size int64) error {
	return b.tar.WriteHeader(&tar.Header{Name: name, Mode: private, Size: size, ModTime: b.now.Truncate(time.Second), Format: tar.FormatPAX})
}

func (b *backup) file(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := b.header(name, info.Size()); err != nil {
		return err
	}
	_, err = io.CopyN(b.tar, f, info.Size()) // files of the folder are replaced, not written over
	return err
}

// Restored says what was restored, and what was done to it.
type Restored struct {
	Taken                            time.Time
	Releases, Devices, Paused, Ended int
	Elsewhere                        string // the PostgreSQL database that the rows are in; nothing was done to them yet
}

// Restore makes the data folder out of a backup. The folder must not be there, or be empty. It gets its name when
// everything in it is whole, checked and durable; before that, and after an error, there is nothing. What ran when the
// backup was made does not run on: see fleet.Restored. Errors: ErrInUse, ErrNotBackup, those of the disk.
func Restore(ctx context.Context, r io.Reader, dataDir string, now time.Time) (_ Restored, err error) {
	dataDir, err = filepath.Abs(dataDir)
	if err != nil {
		return Restored{}, err
	}
	if dataDir, err = vacant(dataDir); err != nil {
		return Restored{}, err
	}
	if err := durable.MkdirAll(filepath.Dir(dataDir), 0o700); err != nil {
		return Restored{}, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dataDir), ".bmsota-restore-*")
	if err != nil {
		return Restored{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	info, err := unpack(ctx, r, temp)
	if err != nil {
		return Restored{}, err
	}
	elsewhere, err := DatabaseElsewhere(temp)
	if err != nil {
		return Restored{}, fmt.Errorf("%w: %w", ErrNotBackup, err)
	}
	var done fleet.Restoration
	if elsewhere != "" {
		err = owe(temp, info.Taken)
	} else {
		done, err = revive(ctx, temp, info.Taken, now)
	}
	if err != nil {
		return Restored{}, err
	}
	if err := syncAll(temp); err != nil {
		return Restored{}, err
	}
	if err := os.Remove(dataDir); err != nil && !errors.Is(err, fs.ErrNotExist) { // empty, or this says that it is not
		return Restored{}, err
	}
	if err := os.Rename(temp, dataDir); err != nil {
		return Restored{}, err
	}
	return Restored{Taken: info.Taken, Releases: done.Releases, Devices: done.Devices, Paused: done.Paused, Ended: done.Ended, Elsewhere: elsewhere},
		durable.SyncFolder(filepath.Dir(dataDir))
}

// vacant says where a folder would come to stand, which is where a link leads, perhaps to a larger disk. What cannot be
// taken away, because a disk is mounted there, says so before everything is unpacked for it.
func vacant(dir string) (string, error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil
	}
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("%w: %s holds %s", ErrInUse, dir, entries[0].Name())
	}
	if err := os.Remove(dir); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// unpack puts the files of a backup below dir.
func unpack(ctx context.Context, r io.Reader, dir string) (info backupInfo, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrNotBackup}, args...)...)
	}
	in := tar.NewReader(r)
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return info, err
		}
		h, err := in.Next()
		switch {
		case err == io.EOF:
			return info, bad("it is cut off")
		case err == nil && h.Name == backupEnd && !first:
			return info, nil
		case err != nil:
			return info, bad("%w", err)
		case first != (h.Name == backupHead):
			return info, bad("%s stands where it should not", h.Name)
		case first:
			b, err := io.ReadAll(io.LimitReader(in, 4096))
			if err != nil || json.Unmarshal(b, &info) != nil || info.Version < 1 {
				return info, bad("%s cannot be read", backupHead)
			}
			if info.Version > backupVersion {
				return info, bad("it is of version %d and this program knows %d: use the newer program", info.Version, backupVersion)
			}
			continue
		case h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || h.Size > maxBackedUp:
			return info, bad("%.200q is no file of a data folder", h.Name)
		}
		if err := root.MkdirAll(path.Dir(h.Name), 0o700); err != nil {
			return info, err
		}
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, private)
		if err != nil {
			return info, err
		}
		_, err = io.Copy(f, in)
		if err != nil && !errors.As(err, new(*fs.PathError)) {
			err = bad("%w", err)
		}
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return info, err
		}
	}
}

// revive checks what was unpacked, and has the fleet make it safe to go on from.
func revive(ctx context.Context, dir string, taken, now time.Time) (done fleet.Restoration, err error) {
	file := filepath.Join(dir, databaseName)
	if _, err := os.Stat(file); err != nil {
		return done, fmt.Errorf("%w: there is no database in it", ErrNotBackup)
	}
	db, err := store.OpenSQLite(ctx, file)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	switch wrong, err := db.Check(ctx); {
	case err != nil:
		return done, err
	case len(wrong) > 0:
		return done, fmt.Errorf("%w: its database is damaged: %.500s", ErrNotBackup, strings.Join(wrong, "; "))
	}
	var releases []fleet.Release
	if err := db.View(ctx, func(tx fleet.Tx) (err error) {
		releases, err = tx.Releases()
		return err
	}); err != nil {
		return done, err
	}
	inBucket := false
	if _, err := os.Stat(filepath.Join(dir, bucketName)); err == nil {
		inBucket = true // where the next start holds it against the releases
	}
	for _, r := range releases {
		if inBucket {
			break
		}
		if err := bytesOf(ctx, filepath.Join(dir, firmwareName), r.SHA256); err != nil {
			return done, fmt.Errorf("%w: firmware of version %s: %w", ErrNotBackup, r.Version, err)
		}
	}
	return fleet.Restored(ctx, db, taken, now, newLife())
}

// newLife tells what is done after one restore from what is done after another of the same backup.
func newLife() string {
	var life [4]byte
	rand.Read(life[:]) // never fails (crypto/rand)
	return hex.EncodeToString(life[:])
}

// bytesOf says whether the firmware file of a digest is whole.
func bytesOf(ctx context.Context, folder, digest string) (err error) {
	blobs, err := store.OpenFolder(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	blob, err := blobs.Open(ctx, digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, blob); err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return errors.New("other bytes")
	}
	return nil
}

// syncAll makes the names in dir and below durable; files are by now.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncFolder(at)
	})
}
