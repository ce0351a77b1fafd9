package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"bmsota/api"
	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

func (s *site) api(path, token string) reply {
	s.t.Helper()
	return s.do("GET", api.Prefix+path, "", nil, "Authorization: Bearer "+token)
}

func TestTheAuditLogIsForOperatorsAndAdminsAlone(t *testing.T) {
	s := newSite(t)
	for _, role := range fleet.Roles() {
		want := http.StatusOK
		if role == fleet.RoleViewer {
			want = http.StatusForbidden
		}
		for _, path := range []string{"/audit", "/audit/export"} {
			if r := s.api(path, s.token[role]); r.StatusCode != want {
				t.Errorf("%s asks for %s: %d, want %d", role, path, r.StatusCode, want)
			}
		}
		cookie := s.signIn(role)
		if r := s.get("/audit", cookie); r.StatusCode != want {
			t.Errorf("%s opens the page: %d, want %d", role, r.StatusCode, want)
		}
		if led := strings.Contains(s.get("/", cookie).body, `href="/audit"`); led != (want == http.StatusOK) {
			t.Errorf("%s is led to the page: %v", role, led)
		}
	}
	for _, path := range []string{"/audit", "/audit/export"} {
		if r := s.api(path, "made-up"); r.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, r.StatusCode)
		}
		if r := s.do("DELETE", api.Prefix+path, "", nil, "Authorization: Bearer "+s.token[fleet.RoleAdmin]); r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s is deleted: %d", path, r.StatusCode)
		}
	}
	// All of that was noted, with where it came from.
	rows, err := s.fleet.Audit(t.Context(), admin, fleet.AuditQuery{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, e := range rows {
		found[string(e.What)+" "+e.Who+" "+e.Details.Get("via")+" "+e.Details.Get("refused")+" "+e.Details.Get("address")] = true
	}
	for _, want := range []string{"access.denied viewer api audit 127.0.0.1", "access.denied viewer web audit 127.0.0.1", "login.failed stranger api  127.0.0.1", "login.ok admin web  127.0.0.1"} {
		if !found[want] {
			t.Errorf("%q is not in the log: %v", want, found)
		}
	}
}

// Page after page gives every row once, whichever way, and the export is the whole log, as it is hashed.
func TestTheAuditLogIsPagedAndExportedWhole(t *testing.T) {
	srv, c, f := realFleet(t, 0)
	ctx := t.Context()
	for i := range 1234 {
		if _, err := f.Enroll(ctx, admin, fmt.Sprint("d", i)); err != nil {
			t.Fatal(err)
		}
	}
	chain := &audit.Chain{}
	for q := (api.AuditQuery{Limit: 100}); ; {
		p, err := c.Audit(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			if err := chain.Next(e.Line()); err != nil {
				t.Fatal(err)
			}
		}
		if q.After = p.Next; q.After == 0 {
			break
		}
	}
	n := chain.Rows
	if n < 1236 {
		t.Fatalf("%d rows", n)
	}
	for q := (api.AuditQuery{Limit: 1000, NewestFirst: true, What: "device."}); ; {
		p, err := c.Audit(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			if e.Seq != n {
				t.Fatalf("row %d, want %d", e.Seq, n)
			}
			n--
		}
		if q.Before = p.Next; q.Before == 0 {
			break
		}
	}
	if n != chain.Rows-1234 {
		t.Errorf("%d rows are left", n)
	}
	log, err := c.ExportAudit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	again := &audit.Chain{Expect: []audit.Head{chain.Head()}}
	if err := again.Verify(log); err != nil || again.Head() != chain.Head() {
		t.Errorf("the export: %v", err)
	}
	for _, bad := range []string{"after=x", "after=-1", "limit=0", "limit=1001", "since=now", "order=up", "color=red", "who=a&who=b", "what=nothing", "who=" + strings.Repeat("x", 200)} {
		req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+api.Prefix+"/audit?"+bad, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := f.NewOperator(ctx, "asks")
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, resp.StatusCode)
		}
	}
}

// breaking is a fleet whose store fails after some pages.
type breaking struct {
	Fleet
	pages int
}

func (b *breaking) Audit(ctx context.Context, by fleet.Identity, q fleet.AuditQuery) ([]audit.Entry, error) {
	if b.pages--; b.pages < 0 {
		return nil, errors.New("disk")
	}
	return b.Fleet.Audit(ctx, by, q)
}

func TestAnExportThatBreaksOffIsNotTakenForTheWhole(t *testing.T) {
	broken := &breaking{pages: 1}
	s := newSite(t, func(c *Config) { broken.Fleet = c.Fleet; c.Fleet = broken })
	for i := range exportChunk {
		if _, err := s.fleet.Enroll(t.Context(), admin, fmt.Sprint("d", i)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := api.NewClient(api.Options{BaseURL: s.URL, Token: s.token[fleet.RoleAdmin], HTTPClient: s.Client()})
	if err != nil {
		t.Fatal(err)
	}
	log, err := c.ExportAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	b, err := io.ReadAll(log)
	if !errors.Is(err, api.ErrUnreachable) || bytes.Count(b, []byte("\n")) == 0 {
		t.Errorf("%d bytes and %v", len(b), err)
	}
	var problem *api.Error
	if _, err := c.ExportAudit(t.Context()); !errors.As(err, &problem) || problem.Status != http.StatusInternalServerError {
		t.Errorf("from the start: %v", err)
	}
}

func TestTheAuditPageTurnsPages(t *testing.T) {
	s := newSite(t)
	cookie := s.signIn(fleet.RoleAdmin)
	for i := range 120 {
		if _, err := s.fleet.Enroll(t.Context(), admin, fmt.Sprintf("d%03d", i)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(body, rel string) string {
		_, rest, ok := strings.Cut(body, `rel="`+rel+`" href="`)
		href, _, _ := strings.Cut(rest, `"`)
		if !ok {
			return ""
		}
		return strings.ReplaceAll(href, "&amp;", "&")
	}
	seen := func(body string) (ids []string) {
		for i := range 120 {
			if id := fmt.Sprintf("d%03d", i); strings.Contains(body, ">"+id+"<") {
				ids = append(ids, id)
			}
		}
		return ids
	}
	first := s.get("/audit?"+url.Values{"what": {"device."}, "who": {"boss"}, "since": {""}}.Encode(), cookie).body
	second := s.get(link(first, "next"), cookie).body
	third := s.get(link(second, "next"), cookie).body
	if a, b, c := seen(first), seen(second), seen(third); len(a) != 50 || len(b) != 50 || len(c) != 20 || a[49] != "d119" || b[49] != "d069" || c[19] != "d019" {
		t.Errorf("pages of %d, %d and %d", len(a), len(b), len(c))
	}
	if link(first, "prev") != "" || link(third, "next") != "" {
		t.Error("there is a page beyond the last")
	}
	back := s.get(link(third, "prev"), cookie).body
	if b := seen(back); len(b) != 50 || b[49] != "d069" {
		t.Errorf("back: %v", b)
	}
	if b := seen(s.get(link(back, "prev"), cookie).body); len(b) != 50 || b[49] != "d119" {
		t.Errorf("back at the first: %v", b)
	}
	if !strings.Contains(first, "bmsota audit list --what device. --who boss") {
		t.Error("the command line is missing")
	}
	if r := s.get("/audit?what=%3Cscript%3E", cookie); r.StatusCode != http.StatusBadRequest || strings.Contains(r.body, "<script>") {
		t.Errorf("an action that is none: %d", r.StatusCode)
	}
	if r := s.get("/audit?rollout=none", cookie); !strings.Contains(r.body, "Nothing of the kind has been done.") {
		t.Errorf("no rows: %d", r.StatusCode)
	}
}
