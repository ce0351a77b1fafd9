//go:build unix

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// link finds the targets of links in a page that are files of the tree.
var link = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)

// What the pages of docs tell a person to install exists once, as a file in docs/servers: a page links to it and holds no
// second copy, and a story starts it. What needs another machine beside the server's is read by TestComposeVariantsNameWhatThereIs
// alone: there is no container engine to start it with.
func TestEveryServerFileIsShownOnceAndStarted(t *testing.T) {
	docs := folder("../docs")
	linked := make(map[string]bool)
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages in %s: %v", docs, err)
	}
	for _, page := range pages {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.Join(docs, m[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to what is not there: %v", filepath.Base(page), err)
			}
			linked[target] = true
		}
		for _, directive := range []string{"ssl_certificate", "SSLEngine", "ExecStart="} {
			if strings.Contains(text, directive) {
				t.Errorf("%s has a copy of what belongs into docs/servers: %s", filepath.Base(page), directive)
			}
		}
	}
	var stories strings.Builder
	scripts, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		stories.WriteString(read(t, script))
	}
	onlyRead := []string{"compose.bucket.yaml", "compose.postgres.yaml", "config.bucket.json", "config.postgres.json"}
	n := 0
	err = filepath.WalkDir(filepath.Join(docs, "servers"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		if !linked[path] {
			t.Errorf("no page links to %s", d.Name())
		}
		if !strings.Contains(stories.String(), "$DOCS/servers/"+d.Name()) && !slices.Contains(onlyRead, d.Name()) {
			t.Errorf("no story starts %s", d.Name())
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Fatalf("%d files in docs/servers: %v", n, err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
