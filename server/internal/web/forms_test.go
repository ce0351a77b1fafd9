package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// fingerprint is everything that a form could change.
func (s *site) fingerprint() string {
	return fmt.Sprintf("%s\n%d commands", fingerprintOf(s.t, s.store), s.mail.count())
}

// fingerprintOf is everything in a store that a request could change.
func fingerprintOf(t testing.TB, store fleet.Store) string {
	t.Helper()
	var b strings.Builder
	err := store.View(context.Background(), func(tx fleet.Tx) error {
		devices, e1 := tx.Devices()
		releases, e2 := tx.Releases()
		channels, e3 := tx.Channels()
		open, e4 := tx.OpenAttempts()
		accounts, e5 := tx.Accounts()
		rollouts, e6 := tx.Rollouts()
		quarantines, e7 := tx.Quarantines()
		operators, e8 := tx.Operators()
		hooks, e10 := tx.Webhooks()
		for i := range devices {
			devices[i].Status.Battery = nil
		}
		states, e9 := json.Marshal(rollouts) // they hold pointers
		fmt.Fprintf(&b, "%+v\n%+v\n%+v\n%+v\n%+v\n%s\n%+v\n%+v\n%+v", devices, releases, channels, open, accounts, string(states), quarantines, operators, hooks)
		return errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, e9, e10)
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBadFormsSaySoAndChangeNothing(t *testing.T) {
	s := newSite(t)
	s.people()
	if err := s.fleet.AddAccount(t.Context(), admin, "anna", fleet.RoleOperator, testPassword); err != nil {
		t.Fatal(err)
	}
	r := s.do("POST", "/login", "", url.Values{"name": {"anna"}, "password": {testPassword}, "next": {"/"}})
	anna := r.Cookies()[0].Value
	command, channel := "/devices/d-well/command", "/releases/"+digestA+"/channel"
	long, start := strings.Repeat("x", 300), "release="+digestB+"&who="
	before := s.fingerprint()
	for _, c := range []struct {
		path, form string
		status     int
	}{
		{command, "", 400}, {command, "action=explode", 400}, {command, "action=update&version=not+a+version", 400}, {command, "action=update&version=" + long, 400},
		{command, "action=update&force=perhaps", 400}, {command, "action=update&extra=1", 400}, {command, "action=update&action=check", 400}, {command, "%zz", 400},
		{command, "action=update&confirmed=no", 400}, {command, "action=" + strings.Repeat("x", 20<<10), 413},
		{"/devices/nobody/command", "action=check", 404}, {"/devices/d-stuck/command", "action=check", 422}, {"/devices/nobody/revoke", "confirmed=yes", 404},
		{"/devices/d-well/revoke", "confirmed=yes&x=1", 400},
		{"/devices/d-well/channel", "", 400}, {"/devices/d-well/channel", "channel=a/b", 400}, {"/devices/d-well/channel", "channel=none", 422}, {"/devices/nobody/channel", "channel=stable", 404},
		{"/devices/d-well/channel", "channel=stable&x=1", 400},
		{channel, "", 400}, {channel, "channel=", 400}, {channel, "channel=a/b", 400}, {channel, "channel=" + long, 400}, {channel, "channel=%3Cscript%3E", 400},
		{"/releases/" + strings.Repeat("d", 64) + "/channel", "channel=stable", 404}, {"/releases/xyz/channel", "channel=stable", 400},
		{"/releases/xyz/withdraw", "confirmed=yes", 400}, {"/releases/" + strings.Repeat("d", 64) + "/withdraw", "confirmed=yes", 404},
		{"/releases/xyz/lift", "", 400}, {"/releases/" + digestA + "/lift", "", 404}, {"/releases/" + digestA + "/lift", "confirmed=yes", 404}, {"/releases/" + digestC + "/lift", "x=1", 400},
		{"/rollouts/r-none/pause", "", 404}, {"/rollouts/r-running/pause", "x=1", 400}, {"/rollouts/r-halted/pause", "", 409}, {"/rollouts/r-running/resume", "confirmed=yes", 409},
		{"/rollouts/r-halted/resume", "confirmed=yes", 422}, {"/rollouts/r-none/abort", "confirmed=yes", 404}, {"/rollouts/r-running/abort", "confirmed=yes&confirmed=yes", 400},
		{"/rollouts", "", 400}, {"/rollouts", "release=xyz&who=all", 400}, {"/rollouts", "release=" + strings.Repeat("d", 64) + "&who=all", 404}, {"/rollouts", "release=" + digestB, 400},
		{"/rollouts", "release=" + digestC + "&who=all", 422}, {"/rollouts", start + "all&x=1", 400}, {"/rollouts", start + "some", 400}, {"/rollouts", start + "all&ids=d-well", 400},
		{"/rollouts", start + "some&label=x", 400}, {"/rollouts", start + "some&ids=a/b", 400}, {"/rollouts", start + "some&running=~~", 400}, {"/rollouts", start + "all&waves=x", 400},
		{"/rollouts", start + "all&max_failed=5.5", 400}, {"/rollouts", start + "all&window=2-4", 400}, {"/rollouts", start + "all&spread=A+b", 400},
		{"/rollouts", start + "all&min_soc=NaN", 400}, {"/rollouts", start + "all&min_soc=-1", 400}, {"/rollouts", start + "all&min_soc=101", 400}, {"/rollouts", start + "all&not_charging=perhaps", 400},
		{"/rollouts", start + "all&min_temp=NaN", 400}, {"/rollouts", start + "all&channel=stable", 400}, {"/rollouts", start + "some&channel=a/b", 400},
		{"/rollouts", start + "all&min_temp=20&max_temp=19", 400}, {"/rollouts", start + "all&max_temp=warm", 400}, {"/rollouts", start + "all&max_current=-1", 400},
		{"/rollouts", start + "all&confirmed=yes", 422}, {"/rollouts", start + "all&confirmed=yes&expect=7", 422}, {"/rollouts", start + "all&confirmed=yes&expect=x", 400},
		{"/rollouts", start + "all&confirmed=yes&expect=2&key=" + long, 400}, {"/rollouts", start + "some&ids=nobody&confirmed=yes&expect=1", 422},
		{"/account/password", "", 403}, {"/account/password", "old=wrong+password&new=aaaaaaaaaaaa&again=aaaaaaaaaaaa", 403},
		{"/account/password", "old=correct+horse+battery&new=aaaaaaaaaaaa&again=bbbbbbbbbbbb", 400}, {"/account/password", "old=correct+horse+battery&new=short&again=short", 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+c.path, strings.NewReader(c.form))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.AddCookie(&http.Cookie{Name: sessionCookie, Value: anna})
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.status {
			t.Errorf("%s %.60s: %d, want %d", c.path, c.form, resp.StatusCode, c.status)
		}
		faultOf(t, string(b))
		if after := s.fingerprint(); after != before {
			t.Fatalf("%s %.60s changed something:\n%s\n%s", c.path, c.form, before, after)
		}
	}
	for _, path := range []string{"/devices?state=x", "/devices?sort=x", "/devices?order=x", "/devices?after=x", "/devices?before=e30", "/devices?q=" + long, "/devices?nonsense=1",
		"/devices?q=%00", "/devices/a%20b", "/releases/xyz", "/rollouts/r-none", "/rollouts/a%20b", "/events?device=a%20b"} {
		r := s.get(path, anna)
		if r.StatusCode/100 != 4 {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
		faultOf(t, r.body)
	}
}

func TestGoodFormsDoWhatTheySay(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleOperator)
	post := func(path string, form string) reply {
		t.Helper()
		v, err := url.ParseQuery(form)
		if err != nil {
			t.Fatal(err)
		}
		return s.do("POST", path, cookie, v)
	}
	to := func(r reply, want string) {
		t.Helper()
		if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != want {
			t.Errorf("%d to %q, want %q\n%s", r.StatusCode, r.Header.Get("Location"), want, r.body)
		}
	}
	to(post("/devices/d-well/command", "action=check"), "/devices/d-well?done=check")
	if c := s.mail.last(); c.Action != protocol.ActionCheck || c.ID == "" {
		t.Errorf("%+v", c)
	}
	to(post("/devices/d-well/command", "action=update&version=1.1.0"), "/devices/d-well?done=update")
	open, err := s.fleet.Attempts(t.Context(), "d-well", 10)
	if c := s.mail.last(); err != nil || len(open) != 1 || open[0].CommandID != c.ID || open[0].CreatedBy != "operator" || open[0].Version != "1.1.0" || c.Force {
		t.Errorf("%+v, %+v, %v", c, open, err)
	}
	if r := s.get("/devices/d-well?done=update", cookie); !strings.Contains(r.body, doneTexts["update"]) || !strings.Contains(r.body, "not taken up") && !strings.Contains(r.body, "under way") {
		t.Errorf("the page does not show the order:\n%s", r.body)
	}
	// What is hard to take back is asked about, with nothing done; the answer does it.
	n := s.mail.count()
	for form, ask := range map[string]string{"action=rollback": "Roll d-well back?", "action=update&force=yes&version=1.0.0": "Force an update of d-well?"} {
		r := post("/devices/d-well/command", form)
		if r.StatusCode != 200 || !strings.Contains(r.body, ask) || !strings.Contains(r.body, "bmsota ") || s.mail.count() != n {
			t.Errorf("%s: %d, %d commands\n%s", form, r.StatusCode, s.mail.count()-n, r.body)
		}
	}
	to(post("/devices/d-well/command", "action=rollback&confirmed=yes"), "/devices/d-well?done=rollback")
	if c := s.mail.last(); c.Action != protocol.ActionRollback || c.Version != "0.9.0" {
		t.Errorf("%+v", c)
	}
	to(post("/devices/d-well/command", "action=update&force=yes&version=1.0.0&confirmed=yes"), "/devices/d-well?done=update")
	if c := s.mail.last(); !c.Force {
		t.Errorf("%+v", c)
	}
	to(post("/devices/d-well/channel", "channel=stable"), "/devices/d-well?done=moved")
	if r := post("/devices/d-well/revoke", ""); r.StatusCode != 200 || !strings.Contains(r.body, "Revoke d-well?") {
		t.Errorf("%d", r.StatusCode)
	}
	to(post("/devices/d-well/revoke", "confirmed=yes"), "/devices/d-well?done=revoke")
	if d, err := s.fleet.Device(t.Context(), "d-well"); err != nil || !d.Revoked {
		t.Errorf("%+v, %v", d, err)
	}
	to(post("/releases/"+digestA+"/channel", "channel=beta"), "/releases/"+digestA+"?done=channel")
	if r := s.get("/releases/"+digestA, cookie); !strings.Contains(r.body, ">beta<") {
		t.Error("the channel is not shown")
	}
	if r := post("/releases/"+digestA+"/withdraw", ""); !strings.Contains(r.body, "Withdraw bms 1.0.0 for esp32?") || !strings.Contains(r.body, "beta") {
		t.Errorf("%s", r.body)
	}
	to(post("/releases/"+digestA+"/withdraw", "confirmed=yes"), "/releases/"+digestA+"?done=withdraw")
	if rel, err := s.fleet.Release(t.Context(), digestA); err != nil || !rel.Withdrawn {
		t.Errorf("%+v, %v", rel, err)
	}
}

func TestCountsLeadToTheVeryDevices(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleViewer)
	homePage := s.get("/", cookie).body
	counts := regexp.MustCompile(`<a href="(/devices\?state=\w+)"><strong>(\d+)</strong>`).FindAllStringSubmatch(homePage, -1)
	if len(counts) != 6 {
		t.Fatalf("%d counts:\n%s", len(counts), homePage)
	}
	rows := regexp.MustCompile(`<tr><td data-label="Device">`)
	for _, c := range counts {
		r := s.get(c[1], cookie)
		if n := len(rows.FindAllString(r.body, -1)); fmt.Sprint(n) != c[2] || !strings.Contains(r.body, "<strong>"+c[2]+"</strong> device") {
			t.Errorf("%s: %d rows, the first page says %s", c[1], n, c[2])
		}
	}
	if r := s.get("/devices?state=stuck", cookie); !strings.Contains(r.body, "d-stuck") || strings.Contains(r.body, "d-well") {
		t.Errorf("the stuck devices are others:\n%s", r.body)
	}
}

func TestListingPagesThroughEveryDeviceOnce(t *testing.T) {
	s := newSite(t)
	const n = 123
	s.put(func(tx fleet.Tx) error {
		var errs []error
		for i := range n {
			errs = append(errs, tx.PutDevice(fleet.Device{ID: fmt.Sprintf("d%03d", i), LastSeen: time.UnixMilli(int64(i/40) * 1000), Version: fmt.Sprint(i % 3)}))
		}
		return errors.Join(errs...)
	})
	cookie := s.signIn(fleet.RoleViewer)
	ids := regexp.MustCompile(`<a href="/devices/(d\d+)">`)
	link := func(body, rel string) string {
		m := regexp.MustCompile(`rel="` + rel + `" href="([^"]+)"`).FindStringSubmatch(body)
		if m == nil {
			return ""
		}
		return strings.ReplaceAll(m[1], "&amp;", "&")
	}
	for _, query := range []string{"", "?sort=seen&order=down", "?sort=version", "?q=d&order=down"} {
		var forward, seen []string
		var last string
		for path := "/devices" + query; path != ""; {
			r := s.get(path, cookie)
			if r.StatusCode != 200 {
				t.Fatalf("%s: %d", path, r.StatusCode)
			}
			for _, m := range ids.FindAllStringSubmatch(r.body, -1) {
				forward = append(forward, m[1])
			}
			last, path = r.body, link(r.body, "next")
		}
		// And back again, page by page.
		for path := link(last, "prev"); path != ""; {
			r := s.get(path, cookie)
			var page []string
			for _, m := range ids.FindAllStringSubmatch(r.body, -1) {
				page = append(page, m[1])
			}
			seen = append(page, seen...)
			path = link(r.body, "prev")
		}
		unique := make(map[string]bool)
		for _, id := range forward {
			unique[id] = true
		}
		if len(forward) != n || len(unique) != n {
			t.Errorf("%s: %d devices, %d different, want %d", query, len(forward), len(unique), n)
		}
		if got, want := strings.Join(seen, " "), strings.Join(forward[:len(seen)], " "); got != want || len(seen) != 100 {
			t.Errorf("%s: back are %d devices in another order", query, len(seen))
		}
	}
}
