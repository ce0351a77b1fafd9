package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"bmsota/durable"
)

// Names in the data folder.
const (
	lockName     = "server.lock"
	databaseName = "bmsota.db"
	firmwareName = "firmware"
	nearName     = "firmware-near" // what was read lately of a bucket
	bucketName   = "bucket.json"   // which bucket has this folder's firmware
	tlsName      = "tls"
)

// private is the mode of what the server keeps: for its own account only.
const private = 0o600

var errLocked = errors.New("locked")

// openFolder makes the data folder and takes its lock, which the caller closes last of all. A folder that was there
// keeps its permissions: it may be one that others need.
func openFolder(dir string, log *slog.Logger) (*os.File, error) {
	err := durable.MkdirAll(dir, 0o700)
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s cannot be the data folder: a part of it is a file", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		log.Warn("other accounts can write to the data folder", "path", dir, "mode", info.Mode().Perm().String())
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	if err := lockFile(lock); err != nil {
		defer lock.Close()
		if errors.Is(err, errLocked) {
			return nil, fmt.Errorf("data folder %s is in use by another server%s: stop that one, or give this one another folder", dir, holder(lock))
		}
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	// The process number is for people; the lock itself goes with the open file.
	if err := lock.Truncate(0); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	if _, err := fmt.Fprintf(lock, "%d\n", os.Getpid()); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open data folder: %w", err)
	}
	return lock, nil
}

func holder(lock *os.File) string {
	b, err := io.ReadAll(io.LimitReader(lock, 20))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return " (process " + pid + ")"
	}
	return ""
}

// canWrite says whether a file can be made in dir now: what a full or read-only disk forbids.
func canWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".ready-*")
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}
