// Package hosttest builds the programs of firmware/host_test for tests in Go. A machine that lacks a compiler or a
// library fails the test: e2e/deps.sh installs them.
package hosttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Build makes one program of firmware/host_test, such as "slots_tool", and returns its path: with the sanitizers, or plain
// for sweeps. Test processes that build at once wait for each other.
func Build(t testing.TB, program string, plain bool) string {
	t.Helper()
	if !plain {
		return build(t, "build/asan/"+program)
	}
	return build(t, "build/plain/"+program, "PLAIN=1")
}

// BuildMutant is Build of a plain "monitor" in which one file of the component says something else in one place: a protection
// is off.
func BuildMutant(t testing.TB, file, says, instead string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(source(t), "../components/ota_manager", file))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), says); n != 1 {
		t.Fatalf("%s has %d places that say %q", file, n, says)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "changed.c"), []byte(strings.Replace(string(text), says, instead, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return build(t, filepath.Join(folder, "monitor"), "PLAIN=1", "MUTANT="+folder)
}

// build makes what is asked for and returns its path.
func build(t testing.TB, program string, variables ...string) string {
	t.Helper()
	folder := source(t)
	if err := os.MkdirAll(filepath.Join(folder, "build"), 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{filepath.Join(folder, "build/make.lock"), "make", "--silent", "-j2", "-C", folder, program}, variables...)
	if out, err := exec.Command("flock", args...).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v (e2e/deps.sh installs what it needs)\n%s", program, err, out)
	}
	if filepath.IsAbs(program) {
		return program
	}
	return filepath.Join(folder, program)
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
