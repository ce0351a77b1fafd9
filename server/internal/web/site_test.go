package web

import (
	"context"
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
