package web

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// The client is the last address that no proxy of ours vouches for as another proxy; what a client writes before that, or writes
// without a proxy, changes nothing.
func TestTheClientIsWhomOurProxiesHeard(t *testing.T) {
	proxies := prefixes("10.0.0.0/8", "127.0.0.1/32", "fd00::/8")
	for _, c := range []struct {
		name, peer string
		header     []string
		want       string
	}{
		{"no proxy, no header", "192.0.2.1:1000", nil, "192.0.2.1"},
		{"no proxy, and a header of the client's own", "192.0.2.1:1000", []string{"198.51.100.9"}, "192.0.2.1"},
		{"a proxy", "10.1.2.3:1000", []string{"198.51.100.9"}, "198.51.100.9"},
		{"a proxy over IPv6", "[fd00::7]:1000", []string{"2001:db8::9"}, "2001:db8::9"},
		{"a proxy whose address is mapped", "[::ffff:10.1.2.3]:1000", []string{"198.51.100.9"}, "198.51.100.9"},
		{"a client behind it that claims to be another", "10.1.2.3:1000", []string{"203.0.113.5, 198.51.100.9"}, "198.51.100.9"},
		{"the same in two headers", "10.1.2.3:1000", []string{"203.0.113.5", "198.51.100.9"}, "198.51.100.9"},
		{"a client that claims to be a proxy", "10.1.2.3:1000", []string{"10.9.9.9, 198.51.100.9"}, "198.51.100.9"},
		{"two proxies", "127.0.0.1:1000", []string{"198.51.100.9, 10.1.2.3"}, "198.51.100.9"},
		{"two proxies and a liar", "127.0.0.1:1000", []string{"203.0.113.5, 198.51.100.9, 10.1.2.3"}, "198.51.100.9"},
		{"with a port", "10.1.2.3:1000", []string{"198.51.100.9:4711"}, "198.51.100.9"},
		{"IPv6 in brackets, with a port", "10.1.2.3:1000", []string{"[2001:db8::9]:4711"}, "2001:db8::9"},
		{"IPv6 in brackets", "10.1.2.3:1000", []string{"[2001:db8::9]"}, "2001:db8::9"},
		{"a proxy that says nothing", "10.1.2.3:1000", nil, "10.1.2.3"},
		{"a proxy that writes something else", "10.1.2.3:1000", []string{"198.51.100.9, unknown"}, "10.1.2.3"},
		{"something else behind a second proxy", "127.0.0.1:1000", []string{"<script>, 10.1.2.3"}, "10.1.2.3"},
		{"an empty entry", "10.1.2.3:1000", []string{"198.51.100.9,"}, "10.1.2.3"},
		{"proxies without end", "10.1.2.3:1000", []string{"198.51.100.9" + strings.Repeat(", 10.0.0.1", 100)}, "10.0.0.1"},
		{"a zone", "10.1.2.3:1000", []string{"fe80::1%eth0"}, "fe80::1"},
	} {
		var got string
		h := behind(proxies, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = addressOf(r) }))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.peer
		for _, v := range c.header {
			r.Header.Add("X-Forwarded-For", v)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Who guesses passwords behind a proxy waits alone: without the setting everybody behind it would.
func TestGuessingBehindAProxySlowsDownTheGuesserAlone(t *testing.T) {
	for _, trusted := range []bool{true, false} {
		s := newSite(t, func(c *Config) {
			if trusted {
				c.TrustedProxies = prefixes("127.0.0.1/32", "::1/128")
			}
		})
		try := func(client, name string) int {
			return s.do("POST", "/login", "", url.Values{"name": {name}, "password": {"wrong password"}, "next": {"/"}}, "X-Forwarded-For: "+client).StatusCode
		}
		for i := range 40 {
			try("198.51.100.9", "name"+strings.Repeat("x", i))
		}
		if got := try("198.51.100.9", "anna"); got != http.StatusTooManyRequests {
			t.Errorf("trusted %v: the guesser gets %d", trusted, got)
		}
		if got := try("203.0.113.5", "bert"); (got == http.StatusUnauthorized) != trusted {
			t.Errorf("trusted %v: another client gets %d", trusted, got)
		}
	}
}
