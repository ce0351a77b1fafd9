package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// fakeSSO knows one person, by the code "right".
type fakeSSO struct {
	account string
	away    error
}

func (f *fakeSSO) Name() string { return "Example ID" }

func (f *fakeSSO) Begin() (to, keep string, err error) {
	return "https://id.example/authorize?state=s", "s.n.v", f.away
}

func (f *fakeSSO) Finish(_ context.Context, keep string, a SSOAnswer) (string, error) {
	switch {
	case f.away != nil:
		return "", f.away
	case keep != "s.n.v" || a != SSOAnswer{State: "s", Code: "right", Issuer: "https://id.example"}:
		return "", fmt.Errorf("%w: it is the answer to another sign-in", fleet.ErrDenied)
	}
	return f.account, nil
}

const comesBack = SSOCallback + "?state=s&code=right&iss=https%3A%2F%2Fid.example"

func away(r reply) *http.Cookie {
	for _, c := range r.Cookies() {
		if c.Name == ssoCookie {
			return c
		}
	}
	return nil
}

func TestSigningInByAProvider(t *testing.T) {
	id := &fakeSSO{account: "anna"}
	s := newSite(t, func(c *Config) { c.SSO = id })
	if err := s.fleet.AddAccountWithoutPassword(t.Context(), admin, "anna", fleet.RoleOperator); err != nil {
		t.Fatal(err)
	}
	if r := s.get("/login?next=/rollouts", ""); !strings.Contains(r.body, `href="/login/sso?next=%2frollouts"`) || !strings.Contains(r.body, "Sign in with Example ID") {
		t.Errorf("the login page: %s", r.body)
	}
	out := s.get("/login/sso?next=/rollouts", "")
	kept := away(out)
	if out.StatusCode != http.StatusSeeOther || out.Header.Get("Location") != "https://id.example/authorize?state=s" || kept == nil ||
		!kept.Secure || !kept.HttpOnly || kept.SameSite != http.SameSiteLaxMode || kept.Path != "/" || kept.MaxAge > 600 {
		t.Fatalf("%d to %q, keeps %v", out.StatusCode, out.Header.Get("Location"), kept)
	}
	back := s.do("GET", comesBack, "", nil, "Cookie: "+kept.Name+"="+kept.Value)
	var session string
	for _, c := range back.Cookies() {
		if c.Name == sessionCookie {
			session = c.Value
		}
	}
	if back.StatusCode != http.StatusSeeOther || back.Header.Get("Location") != "/rollouts" || session == "" {
		t.Fatalf("%d to %q: %v", back.StatusCode, back.Header.Get("Location"), back.Cookies())
	}
	if gone := away(back); gone == nil || gone.MaxAge >= 0 {
		t.Errorf("what the browser kept is still there: %v", gone)
	}
	if r := s.get("/", session); r.StatusCode != http.StatusOK {
		t.Errorf("signed in, and the first page is %d", r.StatusCode)
	}
	rows, err := s.fleet.Audit(t.Context(), admin, fleet.AuditQuery{What: audit.LoginOK, Limit: 10})
	if err != nil || len(rows) != 1 || rows[0].Who != "anna" || !strings.Contains(fmt.Sprint(rows[0].Details), fleet.ViaSSO) {
		t.Errorf("audit: %+v, %v", rows, err)
	}
	// No password opens the account, not even none.
	for _, password := range []string{"", "x", "correct horse battery"} {
		if _, _, err := s.fleet.Login(t.Context(), "anna", password, "192.0.2.1"); err == nil {
			t.Errorf("password %q opens an account without one", password)
		}
	}
}

func TestWhoMayNotComeInByAProviderIsTold(t *testing.T) {
	id := &fakeSSO{account: "nobody"}
	s := newSite(t, func(c *Config) { c.SSO = id })
	good := ssoCookie + "=s.n.v.Lw"
	for name, c := range map[string]struct {
		path, cookie string
		away         error
		status       int
		says         string
	}{
		"without the cookie":      {comesBack, "", nil, 401, "another sign-in"},
		"another's answer":        {strings.Replace(comesBack, "state=s", "state=t", 1), good, nil, 401, "another sign-in"},
		"somebody unknown":        {comesBack, good, nil, 401, "no account"},
		"a provider that is away": {comesBack, good, errors.New("dial tcp: secret-host refused"), 502, "Example ID does not answer"},
		"at the beginning":        {"/login/sso", "", errors.New("dial tcp: secret-host refused"), 502, "Example ID does not answer"},
		"a huge cookie":           {comesBack, ssoCookie + "=" + strings.Repeat("a", 5000), nil, 401, "another sign-in"},
	} {
		id.away = c.away
		r := s.do("GET", c.path, "", nil, "Cookie: "+c.cookie)
		if r.StatusCode != c.status || !strings.Contains(r.body, c.says) || strings.Contains(r.body, "secret-host") || !strings.Contains(r.body, `name="password"`) {
			t.Errorf("%s: %d, %s", name, r.StatusCode, r.body)
		}
		for _, got := range r.Cookies() {
			if got.Name == sessionCookie {
				t.Errorf("%s: a session", name)
			}
		}
	}
	// A link to the beginning cannot lead elsewhere at the end.
	id.away = nil
	for next, want := range map[string]string{"https://evil.example/": "Lw", "//evil.example": "Lw", "/devices": "L2RldmljZXM"} {
		if c := away(s.get("/login/sso?next="+next, "")); c == nil || !strings.HasSuffix(c.Value, "."+want) {
			t.Errorf("next %q: %v", next, c)
		}
	}
	// And a cookie that somebody made up does not either.
	id.account = "anna"
	if err := s.fleet.AddAccountWithoutPassword(t.Context(), admin, "anna", fleet.RoleViewer); err != nil {
		t.Fatal(err)
	}
	if r := s.do("GET", comesBack, "", nil, "Cookie: "+ssoCookie+"=s.n.v.aHR0cHM6Ly9ldmlsLmV4YW1wbGUv"); r.Header.Get("Location") != "/" {
		t.Errorf("leads to %q", r.Header.Get("Location"))
	}
}

// Who tries again and again waits, as with passwords, and the provider is not asked for him.
func TestGuessingAtTheProvidersDoorIsSlowedDown(t *testing.T) {
	id := &fakeSSO{account: "anna"}
	s := newSite(t, func(c *Config) { c.SSO = id })
	for range 20 {
		if r := s.get(comesBack, ""); r.StatusCode != http.StatusUnauthorized {
			t.Fatalf("refused with %d", r.StatusCode)
		}
	}
	for _, path := range []string{comesBack, "/login/sso"} {
		if r := s.get(path, ""); r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
}

func TestWithoutAProviderThereIsNoSuchPath(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/login/sso", comesBack} {
		if r := s.get(path, ""); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	if r := s.get("/login", ""); strings.Contains(r.body, "sso") {
		t.Error("the login page offers it")
	}
}
