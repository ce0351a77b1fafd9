//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// deviceKind is a firmware that the boards of the stories run.
type deviceKind struct {
	name    string
	program func() (string, error) // path of the application; nil for the one built in
}

// deviceKinds are the firmwares that must tell every story alike.
var deviceKinds = []deviceKind{
	{name: "go"},
	{name: "component", program: sync.OnceValues(buildMonitor)},
}

// toldOnce are the stories with a device that one kind tells alone, each with its reason.
var toldOnce = map[string]struct{ kind, why string }{
	"clock-not-set": {"component", "a board in Go has this machine's clock; package device tests the same with one of its own"},
}

// stories are the scripts that a kind runs: those with a device in them, and the firmware built in the others as well.
func (k deviceKind) stories() ([]string, error) {
	all, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		alone, once := toldOnce[strings.TrimSuffix(filepath.Base(file), ".txtar")]
		switch device := bytes.Contains(text, []byte("\ndevice ")) || bytes.Contains(text, []byte("\nkillrounds ")); {
		case once && alone.kind != k.name:
		case device || k.program == nil:
			files = append(files, file)
		}
	}
	return files, nil
}

// buildMonitor makes the component's firmware for a virtual board, with the sanitizers.
func buildMonitor() (string, error) {
	if path := os.Getenv("BMSOTA_E2E_MONITOR"); path != "" {
		return filepath.Abs(path)
	}
	folder, err := filepath.Abs(filepath.Join("..", "firmware", "host_test"))
	if err != nil {
		return "", err
	}
	out, err := exec.Command("make", "-j2", "-C", folder, "build/asan/monitor").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make monitor (e2e/deps.sh installs what it needs): %w\n%s", err, out)
	}
	return filepath.Join(folder, "build", "asan", "monitor"), nil
}

// board is the command line of a board that runs from a flash file with the firmware of this story.
func (s *story) board(args []string) []string {
	line := []string{"bmsota", "device", "run", "--flash", args[0]}
	if s.application != "" {
		line = append(line, "--application", s.application)
	}
	return append(line, args[1:]...)
}

// cmdDevice starts a board in the background: device NAME FLASH [FLAGS…]
func cmdDevice(ts *testscript.TestScript, neg bool, args []string) {
	plain(ts, neg, "device")
	if len(args) < 2 {
		ts.Fatalf("usage: device NAME FLASH [FLAGS…]")
	}
	ts.Check(begin(ts, args[0], of(ts).board(args[1:])...))
}
