package hosttest_test

import (
	"net/url"
	"strings"
	"testing"
)

// TestAddressesMeanTheSame holds the component's reading of addresses to that of the Go agent, which is net/url's: where the
// folder of a server_url is, and what a version file's url means.
func TestAddressesMeanTheSame(t *testing.T) {
	p := startC(t)
	bases := []string{"https://nas.local:8443/firmware/firmware.bin", "https://h", "https://h/", "https://h/a/b/c/version.json?x=/y#z",
		"http://[::1]:8080/a//b/", "https://h?query=/x", "HTTPS://H/a/./b/../c.bin"}
	refs := []string{"x.bin", "./x.bin", "../x.bin", "../../../../x.bin", "a/../b/./x.bin", "a/..", "a/.", "..", ".", "/abs/x.bin", "/abs/../x", "//other/x.bin",
		"//u@other/x", "https://other/x.bin?q=1#f", "http://other/x.bin", "ftp://other/x", "https:///x", "https://u:p@other/x", "?q", "#f", "a?b/../c", "x:y",
		"a b", "a\tb", "a\nHost: evil", "\u00e9.bin", "x/..?q", "...", "a/.../b", "//", "https://", "https://other", strings.Repeat("a", 400), strings.Repeat("../", 130) + "x"}
	for _, base := range bases {
		at, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		folder := *at
		folder.RawQuery, folder.Fragment = "", ""
		if folder.Path = at.Path[:strings.LastIndexByte(at.Path, '/')+1]; folder.Path == "" {
			folder.Path = "/"
		}
		if got, want := p.ask("beside", base, "version.json"), folder.String()+"version.json"; !strings.EqualFold(got, want) {
			t.Errorf("beside %q: %q, want %q", base, got, want)
		}
		for _, ref := range refs {
			for _, plain := range []string{"0", "1"} {
				got, want := p.ask("resolve", base, ref, plain), resolve(at, ref, plain == "1")
				if !strings.EqualFold(got, want) {
					t.Errorf("%q in %q (plain %s): %q, want %q", ref, base, plain, got, want)
				}
			}
		}
	}
}

// resolve is agent.imageURL. What Go would put into percent signs, a space or a letter that is not ASCII, the component refuses,
// and so it does with an authority that is empty, which net/url takes for none.
func resolve(at *url.URL, ref string, plain bool) string {
	if ref == "//" || strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "no"
	}
	u, err := at.Parse(ref)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && !(u.Scheme == "http" && plain):
		return "no"
	}
	u.Fragment, u.RawFragment = "", "" // it is not sent
	return u.String()
}
