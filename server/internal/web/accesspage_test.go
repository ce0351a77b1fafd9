package web

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

var tokenShown = regexp.MustCompile(`<code class="long" id="token">([^<]+)</code>`)

func TestAccessPageLetsInAndShutsOut(t *testing.T) {
	s := newSite(t)
	cookie := s.signIn(fleet.RoleAdmin)
	post := func(path, form string) reply { t.Helper(); return s.post("/access/"+path, form, cookie) }
	to := func(r reply, what string) { t.Helper(); s.leadsTo(r, "/access", what) }
	const first, second = "a first password", "  the second one "
	to(post("accounts", "name=anna&role=operator&new="+url.QueryEscape(first)+"&again="+url.QueryEscape(first)), "account-made")
	session, by, err := s.fleet.Login(t.Context(), "anna", first, "x")
	if err != nil || by.Role != fleet.RoleOperator {
		t.Fatalf("%+v, %v", by, err)
	}
	to(post("accounts/anna/password", "new="+url.QueryEscape(second)+"&again="+url.QueryEscape(second)), "password")
	if _, err := s.fleet.BySession(t.Context(), session, false); err == nil {
		t.Error("a session outlived its password")
	}
	if _, _, err := s.fleet.Login(t.Context(), "anna", second, "x"); err != nil {
		t.Errorf("spaces do not belong to the password: %v", err)
	}

	r := post("tokens", "name=ci&role=operator&life=90d")
	found := tokenShown.FindStringSubmatch(r.body)
	if r.StatusCode != 200 || found == nil || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d\n%s", r.StatusCode, r.body)
	}
	if by, err := s.fleet.OperatorByToken(t.Context(), found[1]); err != nil || by.Name != "ci" || by.Role != fleet.RoleOperator {
		t.Errorf("%+v, %v", by, err)
	}
	page := s.get("/access", cookie)
	if strings.Contains(page.body, found[1]) || strings.Contains(page.body, "argon2") || !strings.Contains(page.body, "<strong>ci</strong>") || !strings.Contains(page.body, "<strong>anna</strong>") {
		t.Errorf("the page should name them and hold no secret:\n%s", page.body)
	}

	for path, ask := range map[string]string{"accounts/anna/remove": "Remove the account anna?", "tokens/ci/remove": "Remove the token ci?"} {
		if r := post(path, ""); r.StatusCode != 200 || !strings.Contains(r.body, ask) || !strings.Contains(r.body, "bmsota ") {
			t.Errorf("%d\n%s", r.StatusCode, r.body)
		}
	}
	if _, err := s.fleet.OperatorByToken(t.Context(), found[1]); err != nil {
		t.Errorf("gone before it was confirmed: %v", err)
	}
	to(post("accounts/anna/remove", "confirmed=yes"), "account-gone")
	to(post("tokens/ci/remove", "confirmed=yes"), "token-gone")
	if _, err := s.fleet.OperatorByToken(t.Context(), found[1]); err == nil {
		t.Error("a removed token still works")
	}
	if _, _, err := s.fleet.Login(t.Context(), "anna", second, "x"); err == nil {
		t.Error("a removed account still signs in")
	}
}

func TestBadAccessFormsSaySoAndChangeNothing(t *testing.T) {
	s := newSite(t)
	if err := s.fleet.AddAccount(t.Context(), admin, "anna", fleet.RoleViewer, testPassword); err != nil {
		t.Fatal(err)
	}
	cookie := s.signIn(fleet.RoleAdmin)
	before := s.fingerprint()
	const good = "&new=aaaaaaaaaaaa&again=aaaaaaaaaaaa"
	for _, c := range []struct {
		path, form string
		status     int
	}{
		{"accounts", "", 400}, {"accounts", "name=eve&role=king" + good, 400}, {"accounts", "name=a/b&role=viewer" + good, 400}, {"accounts", "name=anna&role=viewer" + good, 409},
		{"accounts", "name=admin&role=viewer" + good, 409}, {"accounts", "name=eve&role=viewer&new=short&again=short", 400},
		{"accounts", "name=eve&role=viewer&new=aaaaaaaaaaaa&again=bbbbbbbbbbbb", 400}, {"accounts", "name=eve&role=viewer&extra=1" + good, 400},
		{"accounts", "name=eve&role=viewer&role=admin" + good, 400},
		{"accounts/nobody/password", good[1:], 404}, {"accounts/anna/password", "new=short&again=short", 400}, {"accounts/anna/password", "new=aaaaaaaaaaaa&again=", 400},
		{"accounts/anna/remove", "confirmed=yes&x=1", 400}, {"accounts/nobody/remove", "confirmed=yes", 404},
		{"tokens", "", 400}, {"tokens", "name=ci&role=viewer&life=1y", 400}, {"tokens", "name=ci&role=king&life=", 400}, {"tokens", "name=anna&role=viewer&life=", 409},
		{"tokens", "name=viewer&role=viewer&life=", 409}, {"tokens/nobody/remove", "confirmed=yes", 404},
	} {
		r := s.post("/access/"+c.path, c.form, cookie)
		if r.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.path, c.form, r.StatusCode, c.status)
		}
		faultOf(t, r.body)
		if strings.Contains(r.body, "aaaaaaaaaaaa") {
			t.Errorf("%s %s: the page holds the password", c.path, c.form)
		}
		if after := s.fingerprint(); after != before {
			t.Fatalf("%s %s changed something:\n%s\n%s", c.path, c.form, before, after)
		}
	}
}

func TestTokensEndWhenTheFormSaysSo(t *testing.T) {
	now := time.Date(2028, 2, 28, 12, 0, 0, 0, time.UTC)
	for life, want := range map[string]time.Time{"": {}, "30d": now.Add(30 * 24 * time.Hour), "90d": now.Add(90 * 24 * time.Hour), "365d": now.Add(365 * 24 * time.Hour)} {
		if got, err := tokenEnd(life, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", life, got, err, want)
		}
	}
}
