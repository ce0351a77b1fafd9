package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"bmsota/durable"
	"bmsota/durable/crashdisk"
)

// seed makes the crash tests of this package the same at every run.
const seed = 20261

func below(t *testing.T) (string, durable.Files) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, durable.Below{Root: root}
}

// contents are what one file holds in turn.
var contents = [][]byte{bytes.Repeat([]byte("first"), 700), bytes.Repeat([]byte("second"), 900), []byte("third")}

// powerLosses writes contents through wrap, lets the power go after every operation, and says what was wrong then.
func powerLosses(t *testing.T, wrap func(durable.Files) durable.Files) (states int, wrong []string) {
	t.Helper()
	_, real := below(t)
	log := &crashdisk.Log{}
	files := wrap(crashdisk.Files{Log: log, Real: real})
	var acknowledged []int
	for _, data := range contents {
		if err := durable.WriteFileOn(files, "a", data, 0o600); err != nil {
			t.Fatal(err)
		}
		acknowledged = append(acknowledged, log.Len())
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	disk := crashdisk.NewReplay()
	for n, op := range log.Ops() {
		if err := disk.Apply(op); err != nil {
			t.Fatal(err)
		}
		at := 0 // how many of contents are acknowledged by now
		for at < len(acknowledged) && acknowledged[at] <= n+1 {
			at++
		}
		for _, s := range crashdisk.Survivals() {
			for range 8 {
				states++
				got, there := disk.Lose(s, rng)["a"]
				old := at == 0 && !there || at > 0 && bytes.Equal(got, contents[at-1])
				if !old && (at == len(contents) || !there || !bytes.Equal(got, contents[at])) {
					wrong = append(wrong, fmt.Sprintf("after operation %d (%s %s), %s: %d acknowledged, the file holds %d bytes (there: %v)", n, op.Kind, op.Name, s, at, len(got), there))
				}
			}
		}
	}
	return states, wrong
}

func TestPowerLossAtAnyMomentLeavesOldOrNew(t *testing.T) {
	states, wrong := powerLosses(t, func(f durable.Files) durable.Files { return f })
	t.Logf("seed %d: %d states of the disk", seed, states)
	for _, w := range wrong {
		t.Error(w)
	}
}

func TestEveryStepOfWriteFileIsNeeded(t *testing.T) {
	for _, c := range []struct {
		name    string
		forgets crashdisk.Forgets
	}{
		{"no fsync of the folder", crashdisk.FolderSync}, {"no fsync of the file", crashdisk.FileSync},
		{"rename before fsync", crashdisk.SyncBeforeRename},
	} {
		states, wrong := powerLosses(t, func(files durable.Files) durable.Files { return crashdisk.Forgetful(files, c.forgets) })
		t.Logf("%s: wrong in %d of %d states", c.name, len(wrong), states)
		if len(wrong) == 0 {
			t.Errorf("%s: nobody notices", c.name)
		}
	}
}

func TestFaultAtAnyOperationLeavesOldOrNewAndNothingBeside(t *testing.T) {
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO} {
		for at, done := 0, false; !done; at++ {
			dir, real := below(t)
			log := &crashdisk.Log{}
			files := crashdisk.Files{Log: log, Real: real}
			if err := durable.WriteFileOn(files, "a", contents[0], 0o600); err != nil {
				t.Fatal(err)
			}
			var failed crashdisk.Op
			log.SetBefore(func(n int, op crashdisk.Op) error {
				if n == at {
					failed = op
					return fault
				}
				return nil
			})
			err := durable.WriteFileOn(files, "a", contents[1], 0o600)
			done = failed.Kind == ""
			if done != (err == nil) || !done && !errors.Is(err, fault) {
				t.Errorf("%v at operation %d (%s): the answer is %v", fault, at, failed.Kind, err)
			}
			want := contents[0]
			if done || failed.Kind == crashdisk.SyncFolder { // whole and in place, but not yet owed to anybody
				want = contents[1]
			}
			if got, err := fs.ReadFile(os.DirFS(dir), "a"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v at operation %d (%s): the file holds %d bytes (%v)", fault, at, failed.Kind, len(got), err)
			}
			only(t, dir, "a")
		}
	}
}

func TestAFileInANewFolderSurvivesWithTheFolder(t *testing.T) {
	for _, forgets := range []crashdisk.Forgets{0, crashdisk.FolderSync} {
		dir, real := below(t)
		log := &crashdisk.Log{}
		var files durable.Files = crashdisk.Files{Log: log, Real: real}
		making := files
		if forgets != 0 {
			making = crashdisk.Forgetful(files, forgets)
		}
		if err := durable.MkdirAllOn(making, "x/y/z", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFileOn(files, "x/y/z/a", contents[0], 0o600); err != nil {
			t.Fatal(err)
		}
		disk := crashdisk.NewReplay()
		for _, op := range log.Ops() {
			if err := disk.Apply(op); err != nil {
				t.Fatal(err)
			}
		}
		lost := 0
		rng := rand.New(rand.NewPCG(seed, 1))
		for _, s := range crashdisk.Survivals() {
			if !bytes.Equal(disk.Lose(s, rng)["x/y/z/a"], contents[0]) {
				lost++
			}
		}
		if (lost > 0) != (forgets != 0) {
			t.Errorf("folders synced: %v, and the file is lost in %d of %d ways", forgets == 0, lost, len(crashdisk.Survivals()))
		}
		for range 2 { // made, and there
			if err := durable.MkdirAll(dir+"/p/q", 0o700); err != nil {
				t.Error(err)
			}
		}
		if err := durable.MkdirAll(dir+"/x/y/z/a", 0o700); err == nil {
			t.Error("a file passes for a folder")
		}
	}
}
