// Package hosttest builds the programs of firmware/host_test for tests in Go. A machine that lacks a compiler or a
// library fails the test: e2e/deps.sh installs them.
package hosttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// Build makes one program of firmware/host_test, such as "slots_tool", and returns its path: with the sanitizers, or plain
// for sweeps. Test processes that build at once wait for each other.
func Build(t testing.TB, program string, plain bool) string {
	t.Helper()
	folder, variant := source(t), "asan"
	args := []string{"build/make.lock", "make", "--silent", "-j2", "-C", folder}
	if plain {
		variant = "plain"
		args = append(args, "PLAIN=1")
	}
	if err := os.MkdirAll(filepath.Join(folder, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	args[0] = filepath.Join(folder, args[0])
	out, err := exec.Command("flock", append(args, "build/"+variant+"/"+program)...).CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v (e2e/deps.sh installs what it needs)\n%s", program, err, out)
	}
	return filepath.Join(folder, "build", variant, program)
}

// source is firmware/host_test, the folder above this file's.
func source(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no source position: build the tests without -trimpath")
	}
	return filepath.Dir(filepath.Dir(file))
}
