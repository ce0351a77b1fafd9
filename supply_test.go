package bmsota_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Masterminds/semver/v3"
)

var (
	update  = flag.Bool("update", false, "write docs/licences.md anew")
	release = flag.Bool("release", false, "what holds for a release only: permissions that have run out, builds with nothing from a cache")
)

// run runs a program in a folder and returns what it printed.
func run(t *testing.T, dir string, env []string, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// buildBinary builds bmsota as a release is built.
func buildBinary(t *testing.T, dir string, env ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "bmsota")
	run(t, dir, append(env, "CGO_ENABLED=0"), "go", "build", "-trimpath", "-buildvcs=false", "-o", out, "./cmd/bmsota")
	return out
}

// TestBuildIsTheSameInAnyFolder: the tracked files in two folders of different names make the same bytes, so that anyone
// can hold a binary against its source. With -release nothing comes from a cache; without, a compiler that writes
// different bytes each time would be covered up by it.
func TestBuildIsTheSameInAnyFolder(t *testing.T) {
	var built [2][]byte
	for i, name := range []string{"a", "a-much-longer-name/and/deeper"} {
		dir := filepath.Join(t.TempDir(), name)
		copyTracked(t, dir)
		var env []string
		if *release {
			env = []string{"GOCACHE=" + t.TempDir()}
		}
		var err error
		if built[i], err = os.ReadFile(buildBinary(t, dir, env...)); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(built[i], []byte(dir)) {
			t.Errorf("the binary names the folder it was built in, %s", dir)
		}
	}
	if !bytes.Equal(built[0], built[1]) {
		t.Errorf("two builds of the same files differ: %d and %d bytes", len(built[0]), len(built[1]))
	}
}

// vulnerabilities is tools/vulnerabilities.json.
type vulnerabilities struct {
	// Version and Sum pin a state of golang.org/x/vulndb, the Go vulnerability database.
	Version, Sum string
	Allow        []allowed
}

// allowed lets findings pass for a time: one by its id, or those of a module that a version of it has mended.
type allowed struct {
	ID, Module, FixedIn string
	Until               string // the last day
	Why                 string
}

func (a allowed) covers(f finding) bool {
	if a.ID != "" {
		return a.ID == f.OSV
	}
	fixed, err := semver.NewVersion(f.FixedVersion)
	limit, bad := semver.NewVersion(a.FixedIn)
	return err == nil && bad == nil && a.Module == f.Trace[0].Module && !fixed.GreaterThan(limit)
}

// finding is what govulncheck says of one vulnerability; the first step of the trace is the vulnerable symbol.
type finding struct {
	OSV          string `json:"osv"`
	FixedVersion string `json:"fixed_version"`
	Trace        []struct{ Module, Package, Function string }
}

// TestNothingLinkedHasAKnownVulnerability holds the binary against a pinned state of the Go vulnerability database, which
// comes through the module proxy like every dependency, so that the answer is the same on every machine and every day.
// What may pass stands in tools/vulnerabilities.json with a last day; with -release that day counts.
func TestNothingLinkedHasAKnownVulnerability(t *testing.T) {
	text, err := os.ReadFile("tools/vulnerabilities.json")
	if err != nil {
		t.Fatal(err)
	}
	var pinned vulnerabilities
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&pinned); err != nil {
		t.Fatalf("tools/vulnerabilities.json: %v", err)
	}
	var got struct{ Dir, Sum string }
	empty := t.TempDir() // outside the module: the database is no dependency
	if err := json.Unmarshal(run(t, empty, nil, "go", "mod", "download", "-json", "golang.org/x/vulndb@"+pinned.Version), &got); err != nil {
		t.Fatal(err)
	}
	if got.Sum != pinned.Sum {
		t.Fatalf("vulnerability database %s has the sum %s, pinned is %s", pinned.Version, got.Sum, pinned.Sum)
	}
	database := "file://" + filepath.ToSlash(filepath.Join(got.Dir, "data", "osv"))
	out := run(t, ".", nil, "go", "tool", "-modfile=tools/go.mod", "govulncheck", "-mode=binary", "-format=json", "-db="+database, buildBinary(t, "."))
	known := 0
	found := make(map[string]finding)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var line struct {
			OSV     *struct{ ID string } `json:"osv"`
			Finding *finding             `json:"finding"`
		}
		if err := d.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if line.OSV != nil {
			known++
		}
		if f := line.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" {
			found[f.OSV] = *f
		}
	}
	if known == 0 {
		t.Fatal("the database says nothing about any module of ours: it was not read")
	}
	used := make([]bool, len(pinned.Allow))
	for id, f := range found {
		i := slices.IndexFunc(pinned.Allow, func(a allowed) bool { return a.covers(f) })
		if i < 0 {
			t.Errorf("%s in %s, mended in %q: https://pkg.go.dev/vuln/%s", id, f.Trace[0].Package, f.FixedVersion, id)
			continue
		}
		used[i] = true
	}
	for i, a := range pinned.Allow {
		last, err := time.Parse(time.DateOnly, a.Until)
		if err != nil || a.Why == "" {
			t.Errorf("permission %+v: needs a last day and a reason", a)
		}
		if over := time.Now().After(last.AddDate(0, 0, 1)); over && *release {
			t.Errorf("permission %+v has run out", a)
		} else if over {
			t.Logf("permission %+v has run out: look again before the next release", a)
		}
		if !used[i] {
			t.Logf("permission %+v is not needed with this toolchain", a)
		}
	}
}

// licenceMarks are sentences by which a licence is known, of the text in lower case with single spaces.
var licenceMarks = []struct{ name, mark, without string }{
	{"Apache-2.0", "apache license version 2.0", ""},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy", ""},
	{"BSD-3-Clause", "be used to endorse or promote products derived from this software", ""},
	{"BSD-2-Clause", "redistribution and use in source and binary forms", "endorse or promote"},
	{"EPL-2.0", "eclipse public license - v 2.0", ""},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose", ""},
	{"MPL-2.0", "mozilla public license, version 2.0", ""},
	{"public domain", "has been dedicated to the public domain by the authors", ""},
}

var (
	licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[sc]e|copying)`)
	spaces      = regexp.MustCompile(`\s+`)
)

// licencesOf names the licences in a module's folder.
func licencesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		plain := spaces.ReplaceAllString(strings.ToLower(string(text)), " ")
		for _, l := range licenceMarks {
			if strings.Contains(plain, l.mark) && (l.without == "" || !strings.Contains(plain, l.without)) {
				names = append(names, l.name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// TestLicencesAreThoseOfWhatIsLinked: docs/licences.md has one row for each module in the binary of any system, with the
// licences found in its folder now. A module without one that we know fails: nobody has said that we may use it.
func TestLicencesAreThoseOfWhatIsLinked(t *testing.T) {
	modules := make(map[string]string) // folder by path
	for _, system := range []string{"linux", "darwin", "windows"} {
		out := run(t, ".", []string{"GOOS=" + system}, "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}\t{{.Dir}}{{end}}", "./cmd/bmsota")
		for line := range strings.Lines(string(out)) {
			if path, dir, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && path != module {
				modules[path] = dir
			}
		}
	}
	const page = "docs/licences.md"
	text, err := os.ReadFile(page)
	if err != nil && !*update {
		t.Fatal(err)
	}
	const head = "| module | licence |\n|---|---|\n"
	before, _, _ := strings.Cut(string(text), head)
	var b strings.Builder
	b.WriteString(before + head)
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		names, err := licencesOf(modules[path])
		if err != nil {
			t.Fatal(err)
		}
		if len(names) == 0 {
			t.Errorf("%s has no licence that is known here: read the files in %s", path, modules[path])
		}
		fmt.Fprintf(&b, "| %s | %s |\n", path, strings.Join(names, ", "))
	}
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if b.String() != string(text) {
		t.Errorf("%s is not of what is linked now: go test . -run Licences -update, and look at the difference", page)
	}
}

// TestThreatsNameTestsThatExist: a promise in SECURITY.md whose test was renamed or removed is one that nobody keeps.
func TestThreatsNameTestsThatExist(t *testing.T) {
	page, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for file := range strings.Lines(string(run(t, ".", nil, "git", "ls-files", "--cached", "--others", "--exclude-standard", "*_test.go"))) {
		text, err := os.ReadFile(strings.TrimSpace(file))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not committed yet
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			there[m[1]] = true
		}
	}
	for row := range strings.Lines(string(page)) {
		cells := strings.Split(row, "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "-") || strings.TrimSpace(cells[1]) == "attacker" {
			continue
		}
		names := regexp.MustCompile(`(?:Test|Fuzz)\w+`).FindAllString(cells[4], -1)
		if len(names) == 0 {
			t.Errorf("no test is named against %s", cells[1])
		}
		for _, name := range names {
			if !there[name] {
				t.Errorf("%s, named against %s, does not exist", name, cells[1])
			}
		}
	}
}
