//go:build unix

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bmsota/firmware/host_test/hosttest"
	"bmsota/server/pgtest"

	"github.com/rogpeppe/go-internal/testscript"
)

// deviceKind is a firmware that the boards of the stories run.
type deviceKind struct {
	name     string
	program  string         // of firmware/host_test; empty for the firmware built in
	postgres *pgtest.Server // where the servers of the stories keep their rows; nil for their data folders
}

// deviceKinds are the firmwares that must tell every story alike.
var deviceKinds = []deviceKind{
	{name: "go"},
	{name: "component", program: "monitor"},
}

// toldOnce are the stories with a device that one kind tells alone, each with its reason.
var toldOnce = map[string]struct{ kind, why string }{
	"battery-hangs":   {"component", "the battery of a board in Go is a number that never waits"},
	"clock-not-set":   {"component", "a board in Go has this machine's clock; package device tests the same with one of its own"},
	"component-calls": {"component", "what an application calls is C"},
	"library-hangs":   {"component", "net/http has a deadline for a header, esp_http_client has none"},
}

// stories are the scripts that a kind runs: those with a device in them, and the firmware built in the others as well.
func (k deviceKind) stories() ([]string, error) {
	all, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		return nil, err
	}
	if k.postgres != nil {
		return onPostgres(all)
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
		case device || k.program == "":
			files = append(files, file)
		}
	}
	return files, nil
}

// On PostgreSQL these stories are told always, and with BMSOTA_E2E_DATABASE=postgres all of those with a server in them but the
// others, each with its reason.
var (
	fewOnPostgres = []string{"good-update", "rollout-halts-crash", "rollout-killed-server", "killed-while-publishing", "audit", "webhooks", "publish-rules"}
	notOnPostgres = map[string]string{
		"backup":    "it is told for PostgreSQL in testdata/postgres",
		"full-disk": "the disk that is full is that of the data folder",
	}
)

func onPostgres(all []string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join("testdata", "postgres", "*.txtar"))
	if err != nil {
		return nil, err
	}
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		ofC := toldOnce[name].kind == "component" // its boards here are those in Go
		long := os.Getenv("BMSOTA_E2E_DATABASE") == "postgres" && notOnPostgres[name] == "" && !ofC && bytes.Contains(text, []byte("\nserver "))
		if long || slices.Contains(fewOnPostgres, name) {
			files = append(files, file)
		}
	}
	return files, nil
}

// application is the path of the program that the boards run, built with the sanitizers.
func (k deviceKind) application(t *testing.T) string {
	if k.program == "" {
		return ""
	}
	if path := os.Getenv("BMSOTA_E2E_" + strings.ToUpper(k.program)); path != "" {
		return path
	}
	return hosttest.Build(t, k.program, false)
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
