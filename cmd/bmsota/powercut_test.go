package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"bmsota/device"
)

// TestBrickIsKeptWithTheCommandThatShowsIt: exit code 4, a flash file for the first few, and no end of them in memory.
func TestBrickIsKeptWithTheCommandThatShowsIt(t *testing.T) {
	t.Chdir(t.TempDir())
	cmd := newPowercutCmd()
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetContext(t.Context())
	var r proofReport
	for i := range maxFailures + 50 {
		r.keep(cmd, device.ProofFailure{Story: "crash", Cut: "power cut before operation 3", Problem: "boots none", Flash: []byte{byte(i)}}, "--partitions p.csv --old a.bin --new b.bin")
	}
	if len(r.Failures) != maxFailures {
		t.Errorf("%d failures are listed", len(r.Failures))
	}
	files, err := os.ReadDir(".")
	if err != nil || len(files) != maxFailureFiles {
		t.Errorf("%d files: %v", len(files), err)
	}
	if b, err := os.ReadFile("powercut-crash-2.flash"); err != nil || !bytes.Equal(b, []byte{1}) {
		t.Errorf("the second file holds %x: %v", b, err)
	}
	r.Bricks = maxFailures + 50
	err = r.finish(cmd, false, "kept.txt")
	var f *fault
	if !errors.As(err, &f) || f.code != exitDevice {
		t.Errorf("ends with %v", err)
	}
	kept, _ := os.ReadFile("kept.txt")
	want := "bmsota powercut --partitions p.csv --old a.bin --new b.bin --replay powercut-crash-2.flash --story crash\n"
	if !strings.Contains(out.String(), want) || out.String() != string(kept) {
		t.Errorf("the report says:\n%s", out.String())
	}
}
