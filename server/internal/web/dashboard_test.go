package web

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/api"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// mailbox is a broker that keeps what it is given.
type mailbox struct {
	mu   sync.Mutex
	sent []protocol.Command
}

func (m *mailbox) keep(cmd protocol.Command) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent = append(m.sent, cmd)
	return nil
}

func (m *mailbox) last() protocol.Command {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.sent) == 0 {
		return protocol.Command{}
	}
	return m.sent[len(m.sent)-1]
}

func (m *mailbox) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sent)
}

func (m *mailbox) Send(_ context.Context, _ string, c protocol.Command) error { return m.keep(c) }
func (m *mailbox) Tell(_ context.Context, _ string, c protocol.Command) error { return m.keep(c) }
func (m *mailbox) Clear(context.Context, string) error                        { return nil }
func (m *mailbox) Drop(context.Context, string) error                         { return nil }

// site is a server with a real fleet, in memory, and its dashboard.
type site struct {
	*httptest.Server
	t     *testing.T
	fleet *fleet.Fleet
	store *store.Memory
	mail  *mailbox
	token map[fleet.Role]string
}

const testPassword = "correct horse battery"

var admin = fleet.Identity{Name: "boss", Role: fleet.RoleAdmin}

func newSite(t *testing.T, change ...func(*Config)) *site {
	t.Helper()
	blobs, err := store.OpenFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = blobs.Close() })
	s := &site{t: t, store: store.NewMemory(), mail: &mailbox{}, token: make(map[fleet.Role]string)}
	if s.fleet, err = fleet.New(fleet.Config{Store: s.store, Blobs: blobs, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Fleet: s.fleet, Log: quiet(), Version: "1.2.3", Messenger: s.mail}
	for _, fn := range change {
		fn(&cfg)
	}
	s.Server = httptest.NewUnstartedServer(nil)
	s.Config.Handler = New(cfg)
	s.StartTLS()
	t.Cleanup(s.Close)
	s.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, role := range fleet.Roles() {
		if s.token[role], err = s.fleet.NewToken(t.Context(), admin, string(role), role, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// put writes rows behind the fleet's back.
func (s *site) put(fn func(tx fleet.Tx) error) {
	s.t.Helper()
	if err := s.store.Update(s.t.Context(), fn); err != nil {
		s.t.Fatal(err)
	}
}

type reply struct {
	*http.Response
	body string
}

func (s *site) do(method, path, cookie string, form url.Values, lines ...string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cookie != "" {
		req.AddCookie(&http.Cookie{Name: sessionCookie, Value: cookie})
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{resp, string(b)}
}

func (s *site) get(path, cookie string) reply { s.t.Helper(); return s.do("GET", path, cookie, nil) }

// post sends a form, given as it is encoded.
func (s *site) post(path, form, cookie string) reply {
	s.t.Helper()
	v, err := url.ParseQuery(form)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do("POST", path, cookie, v)
}

// leadsTo: a form was carried out, and its answer leads to a page that says so.
func (s *site) leadsTo(r reply, page, what string) {
	s.t.Helper()
	if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != page+"?done="+what {
		s.t.Errorf("%d to %q, want %q\n%s", r.StatusCode, r.Header.Get("Location"), what, r.body)
	}
	if doneTexts[what] == "" {
		s.t.Errorf("nothing is said of %q", what)
	}
}

// signIn is a session of a role, by its token.
func (s *site) signIn(role fleet.Role) string {
	s.t.Helper()
	r := s.do("POST", "/login", "", url.Values{"name": {string(role)}, "password": {s.token[role]}, "next": {"/devices"}})
	if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != "/devices" || len(r.Cookies()) != 1 {
		s.t.Fatalf("sign in as %s: %d, to %q", role, r.StatusCode, r.Header.Get("Location"))
	}
	return r.Cookies()[0].Value
}

var digestA, digestB, digestC = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)

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

// people puts a small fleet: two releases, a device that runs one of them, and one that is stuck.
func (s *site) people() {
	now := time.Now()
	rel := fleet.Release{SHA256: digestA, Project: "bms", Chip: "esp32", Version: "1.0.0", Manifest: "x", Size: 1 << 20, PublishedAt: now, PublishedBy: "boss"}
	newer := rel
	newer.SHA256, newer.Version = digestB, "1.1.0"
	st := protocol.Status{Phase: protocol.PhaseIdle, CurrentVersion: "1.0.0", Project: "bms", Chip: "esp32", Slot: "ota_0", SlotSize: 1536 << 10,
		RollbackProtected: true, Signed: true, Battery: &protocol.Battery{SOCPct: 81, PackCurrentA: -2.5, TempMinC: new(-0.5), TempMaxC: new(3.25)}}
	well := fleet.Device{ID: "d-well", TokenSHA256: "x", EnrolledAt: now, Online: true, LastSeen: now, Version: "1.0.0", SHA256: digestA, PreviousVersion: "0.9.0", Status: st}
	stuck := well
	stuck.ID, stuck.Online, stuck.LastSeen, stuck.Status.Phase = "d-stuck", false, now.Add(-time.Hour), protocol.PhaseDownloading
	s.put(func(tx fleet.Tx) error {
		return errors.Join(tx.PutRelease(rel), tx.PutRelease(newer), tx.PutChannel(fleet.Channel{Project: "bms", Chip: "esp32", Name: "stable", SHA256: digestB, SetAt: now}),
			tx.PutDevice(well), tx.PutDevice(stuck))
	})
	s.rolls(rel)
}

// rolls puts two rollouts: r-running of the newer release, which waits for d-well, and r-halted of one that d-well has
// rolled back, so that it is quarantined.
func (s *site) rolls(rel fleet.Release) {
	now := time.Now()
	pct := 5.0
	running := fleet.Rollout{ID: "r-running", State: fleet.RolloutRunning, SHA256: digestB, Project: "bms", Chip: "esp32", Version: "1.1.0", Members: 2,
		Limits: []int{1, 2}, Soaks: []time.Duration{time.Hour, 0}, WaveSince: now, CreatedAt: now, CreatedBy: "boss", ExpiresAt: now.Add(time.Hour),
		Policy: fleet.Policy{Stop: fleet.Stop{FailedPct: &pct}, Gate: fleet.Gate{MinSOCPct: 90}, Silence: time.Hour, Concurrency: 5},
		Events: []fleet.Event{{At: now, By: "boss", Text: "created"}}}
	halted := running
	halted.ID, halted.State, halted.SHA256, halted.Version, halted.CreatedAt = "r-halted", fleet.RolloutHalted, digestC, "1.2.0", now.Add(-time.Hour)
	halted.Halt = &fleet.Halt{Rule: "failed_pct", Figure: 1, Of: 1, Limit: 5, Text: "1 device failed", At: now}
	rel.SHA256, rel.Version = digestC, "1.2.0"
	member := func(rollout, device string, rank int, state fleet.MemberState) fleet.Member {
		return fleet.Member{RolloutID: rollout, DeviceID: device, Rank: rank, State: state, UpdatedAt: now}
	}
	failed := member("r-halted", "d-well", 0, fleet.MemberRolledBack)
	failed.Reason, failed.Message, failed.Tries = protocol.ReasonCrash, "it crashed", 1
	s.put(func(tx fleet.Tx) error {
		return errors.Join(tx.PutRelease(rel), tx.PutRollout(running), tx.PutRollout(halted), tx.PutMember(failed),
			tx.PutMember(member("r-halted", "d-stuck", 1, fleet.MemberPending)), tx.PutMember(member("r-running", "d-well", 0, fleet.MemberPending)),
			tx.PutMember(member("r-running", "d-stuck", 1, fleet.MemberPending)),
			tx.PutQuarantine(fleet.Quarantine{SHA256: digestC, RolloutID: "r-halted", Why: "1 device failed", Since: now}))
	})
}

// sitePages are all pages of a fleet as people makes it.
var sitePages = []string{"/", "/devices", "/devices/d-well", "/releases", "/releases/" + digestA, "/releases/" + digestC, "/rollouts", "/rollouts/new", "/rollouts/r-running", "/rollouts/r-halted",
	"/account", "/access", "/webhooks"}

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

var alert = regexp.MustCompile(`role="alert">([^<]*)<`)

// faultOf is the one sentence on a page about what went wrong.
func faultOf(t *testing.T, body string) string {
	t.Helper()
	found := alert.FindAllStringSubmatch(body, -1)
	if len(found) != 1 {
		t.Errorf("%d sentences about what is wrong, want 1:\n%s", len(found), body)
		return ""
	}
	text := found[0][1]
	if len(text) < 10 || !strings.HasSuffix(text, ".") || strings.Contains(text, "invalid: ") || strings.Contains(text, "%!") {
		t.Errorf("%q is no sentence for a person", text)
	}
	return text
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
