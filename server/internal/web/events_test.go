package web

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

func TestChangesAreToldWhileTheSessionLives(t *testing.T) {
	closing := make(chan struct{})
	s := newSite(t, func(c *Config) { c.Closing = closing })
	s.people()
	cookie := s.signIn(fleet.RoleViewer)
	listen := func(path string) (*http.Response, func() string) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp, func() string {
			buf := make([]byte, 512)
			n, err := resp.Body.Read(buf)
			if err != nil {
				return "end: " + err.Error()
			}
			return string(buf[:n])
		}
	}
	resp, all := listen("/events")
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v", resp.Header)
	}
	_, one := listen("/events?device=d-stuck")
	all() // what a stream begins with
	one()
	if err := s.fleet.Connected(t.Context(), "d-well"); err != nil {
		t.Fatal(err)
	}
	if got := all(); !strings.HasPrefix(got, "event: change\n") {
		t.Errorf("told %q", got)
	}
	if err := s.fleet.Connected(t.Context(), "d-stuck"); err != nil {
		t.Fatal(err)
	}
	if got := one(); !strings.HasPrefix(got, "event: change\n") {
		t.Errorf("told %q", got)
	}
	close(closing)
	if got := one(); !strings.HasPrefix(got, "end") {
		t.Errorf("a stream outlives the server: %q", got)
	}
}

func TestOnlySoManyStreams(t *testing.T) {
	u := &ui{h: &handler{cfg: Config{Log: quiet()}}, readers: make(chan struct{}, 1)}
	u.readers <- struct{}{}
	w := httptest.NewRecorder()
	if err := u.events(w, httptest.NewRequest("GET", "/events", nil), fleet.Identity{}); err != nil || w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d, %v", w.Code, err)
	}
}

// TestAStreamEndsWithTheAccount: within a second of the removal, not at the next beat, and also when the session went
// between the look at the cookie and the watch.
func TestAStreamEndsWithTheAccount(t *testing.T) {
	s := newSite(t)
	if err := s.fleet.AddAccount(t.Context(), admin, "eva", fleet.RoleViewer, testPassword); err != nil {
		t.Fatal(err)
	}
	cookie, _, err := s.fleet.Login(t.Context(), "eva", testPassword, "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 64)); err != nil { // what a stream begins with
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.fleet.RemoveAccount(t.Context(), admin, "eva"); err != nil {
		t.Fatal(err)
	}
	if left, err := io.ReadAll(resp.Body); err != nil || len(left) > 0 {
		t.Errorf("told %q, %v", left, err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	u := &ui{h: &handler{cfg: Config{Log: quiet(), Fleet: s.fleet}}, readers: make(chan struct{}, 1)}
	late := httptest.NewRequest("GET", "/events", nil)
	late.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
	if err := u.events(httptest.NewRecorder(), late, fleet.Identity{Name: "eva", Role: fleet.RoleViewer}); !errors.Is(err, fleet.ErrDenied) {
		t.Errorf("a stream for nobody: %v", err)
	}
}
