package web

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
)

var secretShown = regexp.MustCompile(`<code class="long" id="secret">(whsec_[^<]+)</code>`)

const allEvents = "&rollout.halted=yes&rollout.finished=yes&device.rolled_back=yes&release.quarantined=yes"

func TestWebhooksPageTellsAndTakesAway(t *testing.T) {
	s := newSite(t)
	cookie := s.signIn(fleet.RoleAdmin)
	post := func(path, form string) reply { t.Helper(); return s.post("/webhooks"+path, form, cookie) }
	list := func() []fleet.WebhookView {
		t.Helper()
		hooks, err := s.fleet.Webhooks(t.Context(), admin)
		if err != nil {
			t.Fatal(err)
		}
		return hooks
	}
	r := post("", "url=http%3A%2F%2Freceiver.lan%2Fall"+allEvents)
	found := secretShown.FindStringSubmatch(r.body)
	if r.StatusCode != http.StatusOK || found == nil || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d\n%s", r.StatusCode, r.body)
	}
	all := list()[0]
	if all.URL != "http://receiver.lan/all" || len(all.Events) != 0 {
		t.Errorf("all events are ticked, and it is told of %v at %s", all.Events, all.URL)
	}
	if r := s.get("/webhooks", cookie); strings.Contains(r.body, "whsec_") || !strings.Contains(r.body, "http://receiver.lan/all") {
		t.Errorf("the page should name it and hold no secret:\n%s", r.body)
	}
	post("", "url=http%3A%2F%2Freceiver.lan%2Fsome&rollout.halted=yes&device.rolled_back=yes")
	at := slices.IndexFunc(list(), func(h fleet.WebhookView) bool { return h.URL == "http://receiver.lan/some" })
	if at < 0 || !slices.Equal(list()[at].Events, []fleet.NoticeType{fleet.NoticeHalted, fleet.NoticeRolledBack}) {
		t.Fatalf("%+v", list())
	}

	to := func(r reply, what string) { t.Helper(); s.leadsTo(r, "/webhooks", what) }
	to(post("/"+all.ID+"/test", ""), "webhook-test")
	if at := slices.IndexFunc(list(), func(h fleet.WebhookView) bool { return h.ID == all.ID }); list()[at].Waiting != 1 {
		t.Errorf("no test waits: %+v", list()[at])
	}
	if r := post("/"+all.ID+"/remove", ""); r.StatusCode != http.StatusOK || !strings.Contains(r.body, "Remove the webhook "+all.ID+"?") || len(list()) != 2 {
		t.Errorf("%d, %d webhooks\n%s", r.StatusCode, len(list()), r.body)
	}
	to(post("/"+all.ID+"/remove", "confirmed=yes"), "webhook-gone")
	if left := list(); len(left) != 1 || left[0].URL != "http://receiver.lan/some" {
		t.Errorf("left: %+v", left)
	}
}

func TestBadWebhookFormsSaySoAndChangeNothing(t *testing.T) {
	s := newSite(t)
	if _, err := s.fleet.AddWebhook(t.Context(), admin, "http://receiver.lan/", nil); err != nil {
		t.Fatal(err)
	}
	cookie := s.signIn(fleet.RoleAdmin)
	before := s.fingerprint()
	for _, c := range []struct {
		path, form string
		status     int
	}{
		{"", "", 400}, {"", "url=http%3A%2F%2Fother.lan%2F", 400}, {"", "url=ftp%3A%2F%2Fother.lan%2F" + allEvents, 400}, {"", "url=" + allEvents, 400},
		{"", "url=http%3A%2F%2Freceiver.lan%2F" + allEvents, 409}, {"", "url=http%3A%2F%2Fother.lan%2F&rollout.exploded=yes" + allEvents, 400},
		{"", "url=http%3A%2F%2Fanna%3Asecret%40other.lan%2F" + allEvents, 400},
		{"/w-none/test", "", 404}, {"/w-none/test", "x=1", 400}, {"/w-none/remove", "confirmed=yes", 404}, {"/w-none/remove", "confirmed=yes&x=1", 400},
	} {
		r := s.post("/webhooks"+c.path, c.form, cookie)
		if r.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.path, c.form, r.StatusCode, c.status)
		}
		faultOf(t, r.body)
		if after := s.fingerprint(); after != before {
			t.Fatalf("%s %s changed something:\n%s\n%s", c.path, c.form, before, after)
		}
	}
	ticked := s.do("POST", "/webhooks", cookie, url.Values{"url": {"ftp://other.lan/"}, "rollout.halted": {"yes"}})
	if n := strings.Count(ticked.body, " checked"); n != 1 || !strings.Contains(ticked.body, `value="ftp://other.lan/"`) {
		t.Errorf("the form that was refused should hold what was typed: %d boxes ticked\n%s", n, ticked.body)
	}
}
