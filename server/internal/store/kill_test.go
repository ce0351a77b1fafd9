package store_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"bmsota/durable/crashdisk"
)

// lifeStep begins the steps of a victim that lives a site's life in a test of this binary, because the life needs one for
// its virtual time.
const lifeStep = "life: "

// killSteps are what a server is killed in, and killPoints where in the first commit of it.
var (
	killSteps  = []string{"publish 2.0.0", "channel", "start", "fold", "rollout create", "advance", "pause", "resume", "halt", "restart"}
	killPoints = []string{"before commit", "write", "fsync", "after commit"}
)

// TestKillAtEveryNamedStepIsBeforeOrAfter kills a process with SIGKILL at every named step of a server's life, and at
// moments that chance chooses: what it had acknowledged is there, and what it was doing is there whole or not at all.
func TestKillAtEveryNamedStepIsBeforeOrAfter(t *testing.T) {
	if step, ok := strings.CutPrefix(os.Getenv(crashStep), lifeStep); ok {
		liveAndDie(t, os.Getenv(crashDir), step)
		return
	}
	w := newSweep(t)
	rng := rand.New(rand.NewPCG(w.seed, 0))
	random := 5
	if w.every {
		random = 200
	}
	var steps []string
	for _, step := range killSteps {
		for _, point := range killPoints {
			if w.every || point == "fsync" || point == "after commit" {
				steps = append(steps, step+", "+point)
			}
		}
	}
	for range random {
		steps = append(steps, fmt.Sprintf("operation %d", rng.IntN(1000)))
	}
	t.Logf("seed %d: %d kills", w.seed, len(steps))
	for _, step := range steps {
		killed(t, step)
	}
}

// killed has a victim die at a step and looks at what it leaves.
func killed(t *testing.T, step string) {
	t.Helper()
	dir := newDir(t)
	cmd := run(t, dir, lifeStep+step)
	cmd.Args = append(cmd.Args, "-test.run=^TestKillAtEveryNamedStepIsBeforeOrAfter$")
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != -1 { // -1: by a signal
		t.Errorf("%s: it was not killed but ended with %v: %s", step, err, out)
		return
	}
	var will, did string
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		switch verb, sum, _ := strings.Cut(lines.Text(), " "); verb {
		case "will":
			will = sum
		case "did":
			did, will = sum, ""
		}
	}
	watch(t, dir, nil)
	db, folder, err := parts(t.Context(), dir)
	if err != nil {
		t.Errorf("%s: it does not open again: %v", step, err)
		return
	}
	defer folder.Close()
	defer db.Close()
	dump, err := db.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := sum(dump); got != did && got != will && did != "" {
		t.Errorf("%s: the database holds neither what was acknowledged nor what came next", step)
	}
	if wrong, err := db.Check(t.Context()); err != nil || len(wrong) > 0 {
		t.Errorf("%s: damaged: %v %v", step, wrong, err)
	}
	if err := releasesAreWhole(t.Context(), db, folder); err != nil {
		t.Errorf("%s: %v", step, err)
	}
	for _, name := range files(t, filepath.Join(dir, "firmware")) {
		if !strings.HasSuffix(name, ".bin") {
			t.Errorf("%s: %s was not swept", step, name)
		}
	}
}

func sum(dump string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(dump))) }

// liveAndDie is the victim: it says on standard output what it is about to keep and what it has acknowledged.
func liveAndDie(t *testing.T, dir, step string) {
	s := newSite(t, dir)
	name, point, _ := strings.Cut(step, ", ")
	at := -1
	_, _ = fmt.Sscanf(step, "operation %d", &at)
	armed := false // within the first commit of the step
	s.will = func(dump string) {
		fmt.Println("will", sum(dump))
		if armed = s.step == name; armed && point == "before commit" {
			die()
		}
	}
	s.did = func(dump string) {
		fmt.Println("did", sum(dump))
		if armed && point == "after commit" {
			die()
		}
	}
	s.log.SetBefore(func(n int, op crashdisk.Op) error {
		if n == at || armed && string(op.Kind) == point {
			die()
		}
		return nil
	})
	synctest.Test(t, func(t *testing.T) {
		s.t = t
		s.life()
	})
}
