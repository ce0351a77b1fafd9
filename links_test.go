package bmsota_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	fenced   = regexp.MustCompile("(?s)```.*?```")
	linked   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headline = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped  = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// TestLinksOfPagesLeadSomewhere follows every relative link of every page: the file is there, and so is the headline behind #.
func TestLinksOfPagesLeadSomewhere(t *testing.T) {
	pages, links := 0, 0
	err := filepath.WalkDir(".", func(page string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && page != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(page) != ".md":
			return nil
		}
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		pages++
		for _, m := range linked.FindAllSubmatch(fenced.ReplaceAll(text, nil), -1) {
			link := string(m[1])
			if strings.Contains(link, ":") {
				continue // another host's
			}
			links++
			file, anchor, _ := strings.Cut(link, "#")
			leads := page
			if file != "" {
				leads = filepath.Join(filepath.Dir(page), file)
			}
			there, err := os.Stat(leads)
			if err != nil {
				t.Errorf("%s: (%s) leads nowhere", page, link)
			} else if anchor != "" && (there.IsDir() || !hasHeadline(t, leads, anchor)) {
				t.Errorf("%s: (%s): %s has no such headline", page, link, leads)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pages < 20 || links < 100 {
		t.Errorf("%d links of %d pages were looked at: too few to be all", links, pages)
	}
}

// hasHeadline finds the headline that a browser makes anchor of: small letters, no signs, spaces as hyphens.
func hasHeadline(t *testing.T, page, anchor string) bool {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headline.FindAllStringSubmatch(string(text), -1) {
		name := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(h[1])), "")
		if strings.ReplaceAll(name, " ", "-") == anchor {
			return true
		}
	}
	return false
}
