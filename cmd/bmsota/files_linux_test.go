package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
)

// asNobody runs f with the file rights of another user, because nothing is forbidden to root, which tests often are.
// The rights belong to the thread, which is thrown away with the goroutine.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				done <- err
				return
			}
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestForbiddenFilesAndFoldersAreNamed(t *testing.T) {
	dir := t.TempDir()
	secret := writeFile(t, filepath.Join(dir, "secret"), []byte("x"))
	out := filepath.Join(dir, "out")
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	asNobody(t, func() {
		for _, args := range readers(out) {
			args[slices.Index(args, "FILE")] = secret
			mustFail(t, exitFailed, "this user may not read", args...)
		}
		for _, args := range [][]string{
			{"partition", "convert", "testdata/partition/partitions.csv", out},
			{"image", "new", "--chip", "esp32", "--project", "p", "--version", "1.0.0", "-o", out},
			{"keys", "new", "-o", out},
			{"spiffs", "build", "--size", "64K", "testdata/spiffs/src", out},
		} {
			mustFail(t, exitFailed, "this user may not write", args...)
		}
	})
}

func TestPipeIsWrittenToAndNotReplacedByAFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both, so that neither side waits for the other; the table fits in the pipe's buffer.
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	mustRun(t, "partition", "convert", "testdata/partition/partitions.csv", pipe)
	if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("the pipe is now %v, %v", info.Mode(), err)
	}
	want := readFile(t, "testdata/partition/partitions.bin")
	got := make([]byte, len(want))
	if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the pipe got other bytes, %v", err)
	}
}
