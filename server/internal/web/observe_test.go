package web

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

func TestMetricsNeedATokenThatMayView(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "figures 1\n") })
	})
	if r := s.get("/metrics", s.signIn(fleet.RoleAdmin)); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("with a cookie: %d", r.StatusCode)
	}
	for auth, want := range map[string]int{"": 401, "Bearer wrong": 401, "Bearer " + s.token[fleet.RoleViewer]: 200, "Bearer " + s.token[fleet.RoleAdmin]: 200} {
		if r := s.do("GET", "/metrics", "", nil, "Authorization: "+auth); r.StatusCode != want || (want == 200) != strings.Contains(r.body, "figures") {
			t.Errorf("%.10q: %d, want %d", auth, r.StatusCode, want)
		}
	}
}

func TestAnswersAreObservedByRouteAndNotByPath(t *testing.T) {
	var mu sync.Mutex
	seen := make(map[string]Served)
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 200_000))
	srv := start(t, f, func(c *Config) {
		c.Observe = func(s Served) { mu.Lock(); defer mu.Unlock(); seen[s.Route] = s }
	})
	for _, path := range []string{"/firmware/" + digest + ".bin", "/firmware/version", "/firmware/", "/api/v1/devices/some-device", "/healthz", "/no/such/path", "/"} {
		ask(t, "GET", srv.URL+path, "Authorization: Bearer "+operatorToken)
	}
	srv.Close() // every answer has been observed then
	for route, want := range map[string]int{"/firmware/image": 200, "/firmware/version": 200, "/firmware/": 200, "/api/v1/devices/{id}": 404, "/healthz": 200, "none": 404, "/{$}": 200} {
		if s, ok := seen[route]; !ok || s.Status != want || s.Method != "GET" {
			t.Errorf("%s: %+v", route, s)
		}
	}
	if s := seen["/firmware/image"]; !s.Image || s.Cut || s.Bytes != 200_000 || len(seen) != 7 {
		t.Errorf("%+v, %d routes", s, len(seen))
	}
}

// deaf takes a part of an answer and then fails, as a connection that is lost.
type deaf struct {
	*httptest.ResponseRecorder
	left int
}

func (d *deaf) Write(b []byte) (int, error) {
	if d.left -= len(b); d.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

func TestADownloadThatIsCutOffIsSeenAsSuch(t *testing.T) {
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 200_000))
	var seen Served
	h := New(Config{Fleet: f, Log: quiet(), Observe: func(s Served) { seen = s }})
	h.ServeHTTP(&deaf{httptest.NewRecorder(), 150_000}, httptest.NewRequest("GET", "/firmware/"+digest+".bin", nil))
	if !seen.Cut || !seen.Image || seen.Bytes != 2*pacedChunk {
		t.Errorf("%+v", seen)
	}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("HEAD", "/firmware/"+digest+".bin", nil))
	if seen.Cut || seen.Image {
		t.Errorf("HEAD: %+v", seen)
	}
}

// TestAContestedLoginIsShown on the first page, on the device's and to tools; nothing is said about other devices.
func TestAContestedLoginIsShown(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleViewer)
	const said = "login is used in two places"
	for _, contested := range []bool{false, true} {
		if contested {
			s.fleet.Contested("d-well", []string{"192.0.2.1", "192.0.2.2"}, 3)
		}
		for _, path := range []string{"/", "/devices/d-well"} {
			if r := s.get(path, cookie); strings.Contains(r.body, said) != contested || contested && !strings.Contains(r.body, "192.0.2.2") {
				t.Errorf("%s, contested %t: %s", path, contested, r.body)
			}
		}
		if r := s.get("/devices/d-stuck", cookie); strings.Contains(r.body, said) {
			t.Error("another device is said to be contested")
		}
		r := s.do("GET", "/api/v1/devices/d-well", "", nil, "Authorization: Bearer "+s.token[fleet.RoleViewer])
		if strings.Contains(r.body, `"contest":{`) != contested {
			t.Errorf("API, contested %t: %s", contested, r.body)
		}
	}
}

// TestASuspectIsShown with a link from the first page to the very devices, on its page, in the listing and to tools, until
// the form on its page clears it.
func TestASuspectIsShown(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleOperator)
	const kind = `"kind":"alternating_boots"`
	for _, suspect := range []bool{true, false} {
		if suspect {
			s.put(func(tx fleet.Tx) error {
				d, err := tx.Device("d-well")
				d.Doubts.List = []fleet.Suspicion{{Kind: fleet.SuspectBoots, Since: time.Now(), Last: time.Now(), Times: 2, Evidence: "boot <a> after boot b"}}
				return errors.Join(err, tx.PutDevice(d))
			})
		} else if r := s.do("POST", "/devices/d-well/clear", cookie, url.Values{}); r.StatusCode != 303 {
			t.Fatalf("clear: %d %s", r.StatusCode, r.body)
		}
		for path, want := range map[string]string{
			"/devices/d-well":        "boot &lt;a&gt; after boot b",
			"/devices?state=suspect": "d-well",
			"/devices?q=d-well":      "not believed</span>",
			"/":                      `<li class="some"><a href="/devices?state=suspect"><strong>1</strong>`,
		} {
			if path == "/" && !suspect {
				continue // its counts may be CensusFresh old
			}
			if r := s.get(path, cookie); r.StatusCode != 200 || strings.Contains(r.body, want) != suspect {
				t.Errorf("%s, suspect %t: %d %s", path, suspect, r.StatusCode, r.body)
			}
		}
		for _, path := range []string{"/api/v1/devices", "/api/v1/devices/d-well"} {
			if r := s.do("GET", path, "", nil, "Authorization: Bearer "+s.token[fleet.RoleViewer]); strings.Contains(r.body, kind) != suspect {
				t.Errorf("%s, suspect %t: %s", path, suspect, r.body)
			}
		}
	}
}
