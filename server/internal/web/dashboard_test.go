package web

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// A person whose link leads nowhere is shown a page, a program a problem.
func TestALinkThatLeadsNowhereIsAPageForPeople(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct{ path, accept, kind string }{
		{"/devics", "text/html,application/xhtml+xml", "text/html"}, {"/a/b/c", "text/html", "text/html"}, {"/devics", "*/*", api.ProblemType},
		{"/devics", "", api.ProblemType}, {"/api/v1/devics", "text/html", api.ProblemType}, {"/firmware/a/b/c/d", "text/html", api.ProblemType},
	} {
		r := s.do("GET", c.path, "", nil, "Accept: "+c.accept)
		if r.StatusCode != http.StatusNotFound || !strings.HasPrefix(r.Header.Get("Content-Type"), c.kind) {
			t.Errorf("%s for %q: %d, %s", c.path, c.accept, r.StatusCode, r.Header.Get("Content-Type"))
		}
	}
	if r := s.do("POST", "/devics", "", url.Values{}, "Accept: text/html"); !strings.HasPrefix(r.Header.Get("Content-Type"), api.ProblemType) {
		t.Errorf("a form to nowhere: %s", r.Header.Get("Content-Type"))
	}
}

func TestPagesAreForWhoIsSignedIn(t *testing.T) {
	s := newSite(t)
	s.people()
	for _, path := range append(sitePages, "/devices?state=stuck") {
		r := s.get(path, "")
		want := "/login?next=" + url.QueryEscape(path)
		if path == "/" {
			want = "/login"
		}
		if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != want || strings.Contains(r.body, "esp32") {
			t.Errorf("%s: %d to %q, want %q", path, r.StatusCode, r.Header.Get("Location"), want)
		}
		if r := s.get(path, "a-wrong-cookie"); r.StatusCode != http.StatusSeeOther {
			t.Errorf("%s with a wrong cookie: %d", path, r.StatusCode)
		}
	}
	if r := s.get("/events", ""); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("events: %d", r.StatusCode)
	}
	if r := s.do("GET", "/devices", "", nil, liveHeader+": 1"); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("a page asked for by the script: %d, want 401 and no redirect", r.StatusCode)
	}
}

// Headers are the second wall behind the escaping: whatever gets onto a page does not run there.
func TestEveryPageHasItsHeadersAndNoScriptOfItsOwn(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleAdmin)
	for _, path := range append(sitePages, "/login", "/devices/nobody", "/devices?state=x") {
		r := s.get(path, cookie)
		if path == "/login" {
			r = s.get(path, "")
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": pagePolicy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin", "Content-Type": "text/html; charset=utf-8",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if !strings.HasSuffix(strings.TrimSpace(r.body), "</html>") {
			t.Errorf("%s is half a page", path)
		}
		for _, bad := range []string{"<style", " style=", "javascript:", " onclick", "http://", "https://", "<script>"} {
			if strings.Contains(r.body, bad) {
				t.Errorf("%s holds %q", path, bad)
			}
		}
		for _, m := range regexp.MustCompile(`(?:src|href)="(/static/[^"]+)"`).FindAllStringSubmatch(r.body, -1) {
			a := s.get(m[1], "")
			if a.StatusCode != 200 || !strings.Contains(a.Header.Get("Cache-Control"), "immutable") || a.Header.Get("Content-Type") == "" {
				t.Errorf("%s: %d %q", m[1], a.StatusCode, a.Header)
			}
		}
	}
	if !strings.Contains(pagePolicy, "default-src 'none'") || strings.Contains(pagePolicy, "unsafe") {
		t.Error("the policy lets scripts in")
	}
}

func TestTheCookieIsOutOfReach(t *testing.T) {
	s := newSite(t)
	r := s.do("POST", "/login", "", url.Values{"name": {"viewer"}, "password": {s.token[fleet.RoleViewer]}, "next": {"/"}})
	c := r.Header.Get("Set-Cookie")
	for _, want := range []string{"__Host-bmsota=", "; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax", "; Max-Age=604800"} {
		if !strings.Contains(c, want) {
			t.Errorf("%q lacks %q", c, want)
		}
	}
	if strings.Contains(c, "Domain") {
		t.Errorf("%q is for other hosts too", c)
	}
	cookie := r.Cookies()[0].Value
	r = s.do("POST", "/logout", cookie, nil)
	if r.StatusCode != http.StatusSeeOther || !strings.Contains(r.Header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("logout: %d, %q", r.StatusCode, r.Header.Get("Set-Cookie"))
	}
	if r := s.get("/", cookie); r.StatusCode != http.StatusSeeOther {
		t.Errorf("the session lives on: %d", r.StatusCode)
	}
}

func TestLoginSaysOneSentenceAndLeadsNowhereElse(t *testing.T) {
	s := newSite(t)
	if err := s.fleet.AddAccount(t.Context(), admin, "anna", fleet.RoleOperator, testPassword); err != nil {
		t.Fatal(err)
	}
	said := make(map[string]bool)
	for _, c := range [][2]string{{"anna", "wrong password"}, {"nobody", "wrong password"}, {"viewer", "wrong password"}} {
		r := s.do("POST", "/login", "", url.Values{"name": {c[0]}, "password": {c[1]}, "next": {"/"}})
		if r.StatusCode != http.StatusUnauthorized || len(r.Cookies()) != 0 {
			t.Errorf("%v: %d", c, r.StatusCode)
		}
		said[faultOf(t, r.body)] = true
	}
	if len(said) != 1 || !said["Name or password is wrong."] {
		t.Errorf("%v", said)
	}
	for next, want := range map[string]string{"/devices?state=stuck": "/devices?state=stuck", "//evil.example": "/", "https://evil.example/": "/", `/\evil.example`: "/",
		"/login": "/", "": "/", "/\r\nX: y": "/"} {
		r := s.do("POST", "/login", "", url.Values{"name": {"anna"}, "password": {testPassword}, "next": {next}})
		if got := r.Header.Get("Location"); r.StatusCode != http.StatusSeeOther || got != want {
			t.Errorf("next %q leads to %q (%d), want %q", next, got, r.StatusCode, want)
		}
	}
	var soon reply
	for range 10 {
		if soon = s.do("POST", "/login", "", url.Values{"name": {"anna"}, "password": {"wrong password"}, "next": {"/"}}); soon.StatusCode == http.StatusTooManyRequests {
			break
		}
	}
	if soon.StatusCode != http.StatusTooManyRequests || soon.Header.Get("Retry-After") == "" || !strings.Contains(faultOf(t, soon.body), "Too many tries") {
		t.Errorf("after ten tries: %d, %q", soon.StatusCode, soon.Header.Get("Retry-After"))
	}
}

// Every form and every API call that changes something, by every role: the table of rights, as a browser and a tool meet it.
func TestRolesAreHeldAtEveryDoor(t *testing.T) {
	s := newSite(t)
	s.people()
	forms := map[string]fleet.Right{"/devices/d-well/command": fleet.RightOperate, "/devices/d-well/revoke": fleet.RightOperate, "/devices/d-well/clear": fleet.RightOperate, "/devices/d-well/channel": fleet.RightOperate,
		"/releases/" + digestA + "/channel": fleet.RightOperate, "/releases/" + digestA + "/withdraw": fleet.RightOperate, "/account/password": fleet.RightPassword,
		"/releases/" + digestC + "/lift": fleet.RightOperate, "/rollouts/r-running/pause": fleet.RightOperate, "/rollouts/r-running/resume": fleet.RightOperate,
		"/rollouts/r-running/abort": fleet.RightOperate, "/rollouts": fleet.RightOperate,
		"/access/accounts": fleet.RightAdminister, "/access/accounts/x/password": fleet.RightAdminister, "/access/accounts/x/remove": fleet.RightAdminister,
		"/access/tokens": fleet.RightAdminister, "/access/tokens/x/remove": fleet.RightAdminister,
		"/webhooks": fleet.RightAdminister, "/webhooks/x/test": fleet.RightAdminister, "/webhooks/x/remove": fleet.RightAdminister}
	calls := []struct {
		method, path string
		right        fleet.Right
	}{
		{"GET", "/devices", fleet.RightView}, {"GET", "/devices/d-well", fleet.RightView}, {"GET", "/releases", fleet.RightView}, {"GET", "/channels", fleet.RightView}, {"GET", "/server", fleet.RightView},
		{"GET", "/rollouts", fleet.RightView}, {"GET", "/rollouts/r-running", fleet.RightView}, {"GET", "/rollouts/r-running/members", fleet.RightView},
		{"POST", "/rollouts", fleet.RightOperate}, {"POST", "/rollouts/dry-run", fleet.RightOperate}, {"POST", "/rollouts/rehearse", fleet.RightOperate},
		{"POST", "/rollouts/r-none/pause", fleet.RightOperate}, {"POST", "/rollouts/r-none/resume", fleet.RightOperate}, {"POST", "/rollouts/r-none/abort", fleet.RightOperate},
		{"POST", "/devices/nobody/labels", fleet.RightOperate}, {"POST", "/releases/" + digestA + "/lift", fleet.RightOperate},
		{"POST", "/devices", fleet.RightOperate}, {"POST", "/devices/nobody/revoke", fleet.RightOperate}, {"POST", "/devices/nobody/clear", fleet.RightOperate}, {"POST", "/devices/nobody/channel", fleet.RightOperate}, {"POST", "/releases", fleet.RightOperate},
		{"PUT", "/blobs/" + digestA, fleet.RightOperate}, {"PUT", "/channels", fleet.RightOperate}, {"POST", "/releases/" + strings.Repeat("d", 64) + "/withdraw", fleet.RightOperate},
		{"GET", "/accounts", fleet.RightAdminister}, {"POST", "/accounts", fleet.RightAdminister}, {"DELETE", "/accounts/x", fleet.RightAdminister},
		{"PUT", "/accounts/x/password", fleet.RightAdminister}, {"GET", "/tokens", fleet.RightAdminister}, {"POST", "/tokens", fleet.RightAdminister}, {"DELETE", "/tokens/x", fleet.RightAdminister},
	}
	for _, role := range fleet.Roles() {
		who := fleet.Identity{Name: string(role), Role: role}
		cookie := s.signIn(role)
		for path, right := range forms {
			// A form that is understood nowhere: whoever has the right is told so, whoever has not is refused first.
			r := s.do("POST", path, cookie, url.Values{"nonsense": {"1"}})
			if refused := r.StatusCode == http.StatusForbidden; refused == who.Has(right) {
				t.Errorf("%s %s: %d", role, path, r.StatusCode)
			}
		}
		for _, c := range calls {
			r := s.do(c.method, "/api/v1"+c.path, "", nil, "Authorization: Bearer "+s.token[role], "Content-Type: application/json")
			if refused := r.StatusCode == http.StatusForbidden; refused == who.Has(c.right) {
				t.Errorf("%s %s %s: %d", role, c.method, c.path, r.StatusCode)
			}
		}
		r := s.get("/devices/d-well", cookie)
		if buttons := strings.Contains(r.body, `id="update"`); buttons != who.Has(fleet.RightOperate) {
			t.Errorf("%s sees buttons: %v", role, buttons)
		}
		if r := s.get("/rollouts/new", cookie); (r.StatusCode == http.StatusForbidden) == who.Has(fleet.RightOperate) {
			t.Errorf("%s asks for the form of a rollout: %d", role, r.StatusCode)
		}
		for _, path := range []string{"/access", "/webhooks"} {
			if r := s.get(path, cookie); (r.StatusCode == http.StatusForbidden) == who.Has(fleet.RightAdminister) {
				t.Errorf("%s asks for %s: %d", role, path, r.StatusCode)
			}
		}
		for path, button := range map[string]string{"/rollouts/r-running": `id="pause"`, "/rollouts/r-halted": `id="abort"`, "/releases/" + digestC: `id="lift"`} {
			if r := s.get(path, cookie); strings.Contains(r.body, button) != who.Has(fleet.RightOperate) || r.StatusCode != 200 {
				t.Errorf("%s sees %s of %s: %d", role, button, path, r.StatusCode)
			}
		}
	}
}

func TestAccountsThroughTheClient(t *testing.T) {
	s := newSite(t)
	call := func(role fleet.Role, method, path string, in any) (int, string) {
		t.Helper()
		step := apiStep{method: method, path: path}
		if in != nil {
			b, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			step.body = string(b)
		}
		req := request(t, s.Server, s.token[role], step)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(out)
	}
	if code, out := call(fleet.RoleAdmin, "POST", "/accounts", map[string]any{"name": "anna", "role": "viewer", "password": testPassword}); code != 204 {
		t.Fatalf("%d %s", code, out)
	}
	if code, out := call(fleet.RoleAdmin, "GET", "/accounts", nil); code != 200 || !strings.Contains(out, `"name":"anna"`) || strings.Contains(out, "argon2") {
		t.Errorf("%d %s", code, out)
	}
	if code, _ := call(fleet.RoleAdmin, "PUT", "/accounts/anna/password", map[string]any{"password": "another good one"}); code != 204 {
		t.Error(code)
	}
	if _, _, err := s.fleet.Login(t.Context(), "anna", "another good one", "x"); err != nil {
		t.Error(err)
	}
	if code, out := call(fleet.RoleAdmin, "POST", "/tokens", map[string]any{"name": "ci", "role": "operator", "expires_at": time.Now().Add(time.Hour)}); code != 200 || !strings.Contains(out, `"token":"`) {
		t.Errorf("%d %s", code, out)
	}
	if code, out := call(fleet.RoleAdmin, "GET", "/tokens", nil); code != 200 || !strings.Contains(out, `"expires_at"`) || strings.Contains(out, "sha256") {
		t.Errorf("%d %s", code, out)
	}
	for _, path := range []string{"/accounts/anna", "/tokens/ci"} {
		if code, out := call(fleet.RoleAdmin, "DELETE", path, nil); code != 204 {
			t.Errorf("%s: %d %s", path, code, out)
		}
		if code, _ := call(fleet.RoleAdmin, "DELETE", path, nil); code != 404 {
			t.Errorf("%s again: %d", path, code)
		}
	}
}

// A browser sends the cookie with a form from any site; what another site sends must do nothing.
func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleAdmin)
	before := s.fingerprint()
	for _, lines := range [][]string{{"Sec-Fetch-Site: cross-site"}, {"Sec-Fetch-Site: same-site"}, {"Origin: https://evil.example"}, {"Origin: null"}} {
		for path, form := range map[string]string{"/devices/d-well/command": "action=update", "/devices/d-well/revoke": "confirmed=yes", "/logout": "", "/login": "name=a&password=b&next=",
			"/releases/" + digestA + "/withdraw": "confirmed=yes", "/account/password": "old=a&new=b&again=b",
			"/releases/" + digestC + "/lift": "confirmed=yes", "/rollouts/r-running/pause": "", "/rollouts/r-halted/resume": "confirmed=yes", "/rollouts/r-running/abort": "confirmed=yes",
			"/rollouts": "release=" + digestB + "&who=all&confirmed=yes&expect=2", "/access/tokens/viewer/remove": "confirmed=yes",
			"/access/accounts": "name=eve&role=admin&new=aaaaaaaaaaaa&again=aaaaaaaaaaaa", "/access/tokens": "name=eve&role=admin&life=",
			"/webhooks": "url=http%3A%2F%2Freceiver.lan%2F&rollout.halted=yes"} {
			v, err := url.ParseQuery(form)
			if err != nil {
				t.Fatal(err)
			}
			if r := s.do("POST", path, cookie, v, lines...); r.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %v: %d", path, lines, r.StatusCode)
			}
		}
	}
	if s.fingerprint() != before {
		t.Error("a form of another site changed something")
	}
	if r := s.get("/", cookie); r.StatusCode != 200 {
		t.Errorf("another site ended the session: %d", r.StatusCode)
	}
	if r := s.do("POST", "/devices/d-well/command", cookie, url.Values{"action": {"check"}}, "Sec-Fetch-Site: same-origin"); r.StatusCode != http.StatusSeeOther {
		t.Errorf("a form of this site: %d", r.StatusCode)
	}
}

func TestHostileTextsStayTexts(t *testing.T) {
	s := newSite(t)
	s.people()
	const evil = `"'><script>alert(1)</script><img src=x onerror=alert(2)>`
	now := time.Now()
	s.put(func(tx fleet.Tx) error {
		d, err := tx.Device("d-well")
		if err != nil {
			return err
		}
		d.Version, d.PreviousVersion, d.SHA256 = evil, evil, evil
		d.Status = protocol.Status{Phase: protocol.PhaseFailed, Message: evil, CurrentVersion: evil, AvailableVersion: evil, Project: evil, Chip: evil, Slot: evil, ResetReason: evil, Reason: evil}
		rel, err := tx.Release(digestA)
		if err != nil {
			return err
		}
		rel.Description, rel.Project, rel.PublishedBy, rel.MinVersion = evil, evil, evil, evil
		a := fleet.Attempt{ID: "a1", CommandID: evil, DeviceID: "d-well", Action: evil, Version: evil, State: fleet.AttemptFailed, Message: evil, Reason: evil, CreatedBy: evil, CreatedAt: now, EndedAt: now}
		b := a
		b.ID, b.State = "a2", fleet.AttemptOpen
		ro, err := tx.Rollout("r-halted")
		if err != nil {
			return err
		}
		ro.Project, ro.CreatedBy, ro.Policy.Description, ro.Policy.Window, ro.Policy.Spread, ro.Halt.Text, ro.Halt.Rule = evil, evil, evil, evil, evil, evil, evil
		ro.Events = []fleet.Event{{At: now, By: evil, Text: evil}}
		m, err := tx.Member("r-halted", "d-well")
		if err != nil {
			return err
		}
		m.Reason, m.Message = evil, evil
		if err := errors.Join(tx.PutRollout(ro), tx.PutMember(m), tx.PutQuarantine(fleet.Quarantine{SHA256: digestC, RolloutID: evil, Why: evil, Since: now})); err != nil {
			return err
		}
		return errors.Join(tx.PutDevice(d), tx.PutRelease(rel), tx.PutAttempt(a), tx.PutAttempt(b), tx.PutChannel(fleet.Channel{Project: evil, Chip: "esp32", Name: evil, SHA256: digestA}))
	})
	cookie := s.signIn(fleet.RoleAdmin)
	paths := append(sitePages, "/devices?"+url.Values{"version": {evil[:50]}, "q": {evil[:50]}, "project": {evil[:50]}, "reason": {evil[:50]}}.Encode(), "/devices?done="+url.QueryEscape(evil),
		"/devices/d-well?done="+url.QueryEscape(evil))
	for _, path := range paths {
		r := s.get(path, cookie)
		if strings.Contains(r.body, "<script>") || strings.Contains(r.body, "<img") || strings.Contains(r.body, `"'>`) {
			t.Errorf("%s runs what a device says:\n%s", path, r.body)
		}
	}
	for _, path := range []string{"/devices/d-well", "/rollouts/r-halted", "/releases/" + digestC} {
		if r := s.get(path, cookie); !strings.Contains(r.body, "&lt;script&gt;") {
			t.Errorf("what was said is not shown at all on %s:\n%s", path, r.body)
		}
	}
	for _, name := range rolloutFields {
		form := url.Values{"release": {digestB}, "who": {"some"}, name: {evil}}
		if r := s.do("POST", "/rollouts", cookie, form); strings.Contains(r.body, "<script>") || strings.Contains(r.body, `"'>`) {
			t.Errorf("%s runs on the form:\n%s", name, r.body)
		}
	}
	for _, path := range []string{"/rollouts/r-halted/resume", "/rollouts/r-halted/abort", "/releases/" + digestC + "/lift"} {
		if r := s.do("POST", path, cookie, nil); r.StatusCode != 200 || strings.Contains(r.body, "<script>") || strings.Contains(r.body, `"'>`) || !strings.Contains(r.body, "&lt;script&gt;") {
			t.Errorf("the question of %s (%d):\n%s", path, r.StatusCode, r.body)
		}
	}
	r := s.do("POST", "/login", "", url.Values{"name": {evil}, "password": {"x"}, "next": {"/" + evil}})
	if strings.Contains(r.body, "<script>") || strings.Contains(r.body, `"'>`) {
		t.Error("the login page runs what is typed")
	}
}

// TestBrowsersAreToldToComeByHTTPSOnlyWhereTheNameIsOurs: on every page and nothing that a device fetches.
func TestBrowsersAreToldToComeByHTTPSOnlyWhereTheNameIsOurs(t *testing.T) {
	for _, only := range []bool{false, true} {
		s := newSite(t, func(c *Config) { c.HTTPSOnly = only })
		want := map[bool]string{true: "max-age=31536000"}[only]
		for path, page := range map[string]bool{"/login": true, "/": true, "/devices": true, "/healthz": false, "/firmware/version.json": false} {
			expect := want
			if !page {
				expect = ""
			}
			if got := s.get(path, "").Header.Get("Strict-Transport-Security"); got != expect {
				t.Errorf("%s, HTTPS only %t: %q", path, only, got)
			}
		}
	}
}
