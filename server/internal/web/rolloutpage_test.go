package web

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

// What a rule has halted is met on the first page, and its page says why, by which rule, and names the devices.
func TestHaltedRolloutIsMetFirstAndSaysWhy(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleViewer)
	home := s.get("/", cookie).body
	first := regexp.MustCompile(`(?s)<ul class="needs">\s*<li class="some"><a href="(/rollouts/[^"]+)"><strong>1</strong><span class="name">rollout halted</span><span class="about">1\.2\.0: 1 device failed<`)
	m := first.FindStringSubmatch(home)
	if m == nil {
		t.Fatalf("the first card is another:\n%s", home)
	}
	under := home[strings.Index(home, `id="h-under"`):]
	if !strings.Contains(under, `href="/rollouts/r-running"`) || !strings.Contains(under, "wave 1 of 2") || !strings.Contains(home, "was quarantined") {
		t.Errorf("no running rollout, or no quarantine:\n%s", home)
	}
	body := s.get(m[1], cookie).body
	for _, want := range []string{"by the rule <code>failed_pct</code>: 1 device failed.", `<a href="/devices/d-well">`, "it crashed", "rolled back", "wave 1", "created", "more than 5 % of the wave fail",
		"bmsota rollout show r-halted", "nothing starts", `href="/releases/` + digestC + `#lift"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	list := s.get("/rollouts", cookie).body
	if a, b := strings.Index(list, "r-halted"), strings.Index(list, "r-running"); a < 0 || b < a {
		t.Errorf("the halted rollout is not the first:\n%s", list)
	}
}

func TestRolloutPageCountsWhatHoldsMembersBack(t *testing.T) {
	s := newSite(t)
	s.people()
	body := s.get("/rollouts/r-running", s.signIn(fleet.RoleOperator)).body
	held := body[strings.Index(body, `id="h-held"`):]
	held = held[:strings.Index(held, "</section>")]
	for _, want := range []string{"blocked: state of charge too low", "waits for its wave", `class="value">1<`} {
		if !strings.Contains(held, want) {
			t.Errorf("no %q in\n%s", want, held)
		}
	}
	for _, want := range []string{"bmsota rollout pause r-running", "bmsota rollout abort r-running", "Nobody so far.", `<div class="note wait" id="waits">`, "bmsota rollout skip r-running DEVICE", "of its own: 1 waiting"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestRolloutButtonsDoWhatTheySay(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleOperator)
	is := func(id string, want fleet.RolloutState) {
		t.Helper()
		if v, err := s.fleet.Rollout(t.Context(), id); err != nil || v.State != want {
			t.Errorf("%s is %s (%v), want %s", id, v.State, err, want)
		}
	}
	post := func(path, confirmed string) reply {
		t.Helper()
		form := url.Values{}
		if confirmed != "" {
			form.Set("confirmed", confirmed)
		}
		return s.do("POST", path, cookie, form)
	}
	to := func(r reply, want string) {
		t.Helper()
		if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != want {
			t.Errorf("%d to %q, want %q\n%s", r.StatusCode, r.Header.Get("Location"), want, r.body)
		}
	}
	asks := func(r reply, question, cli string) {
		t.Helper()
		if r.StatusCode != 200 || !strings.Contains(r.body, question) || !strings.Contains(r.body, cli) {
			t.Errorf("%d, want a question %q with %q:\n%s", r.StatusCode, question, cli, r.body)
		}
	}
	to(post("/rollouts/r-running/pause", ""), "/rollouts/r-running?done=pause")
	is("r-running", fleet.RolloutPaused)
	to(post("/rollouts/r-running/resume", ""), "/rollouts/r-running?done=resume")
	is("r-running", fleet.RolloutRunning)

	// A quarantined release goes nowhere before that is lifted.
	if r := post("/rollouts/r-halted/resume", "yes"); !strings.Contains(faultOf(t, r.body), "quarantined") || strings.Contains(r.body, `id="resume"`) {
		t.Errorf("%d\n%s", r.StatusCode, r.body)
	}
	lift := "/releases/" + digestC + "/lift"
	asks(post(lift, ""), "Lift the quarantine of bms 1.2.0 for esp32?", "bmsota releases lift "+digestC[:12])
	to(post(lift, "yes"), "/releases/"+digestC+"?done=lift")
	if r := s.get("/releases/"+digestC, cookie); strings.Contains(r.body, "quarantined") {
		t.Errorf("still quarantined:\n%s", r.body)
	}
	asks(post("/rollouts/r-halted/resume", ""), "Resume the rollout of bms 1.2.0?", "bmsota rollout resume r-halted")
	is("r-halted", fleet.RolloutHalted)
	to(post("/rollouts/r-halted/resume", "yes"), "/rollouts/r-halted?done=resume")
	is("r-halted", fleet.RolloutRunning)

	asks(post("/rollouts/r-halted/abort", ""), "Abort the rollout of bms 1.2.0?", "bmsota rollout abort r-halted")
	is("r-halted", fleet.RolloutRunning)
	to(post("/rollouts/r-halted/abort", "yes"), "/rollouts/r-halted?done=abort")
	is("r-halted", fleet.RolloutAborted)
	if r := post("/rollouts/r-halted/abort", ""); r.StatusCode != http.StatusConflict {
		t.Errorf("an aborted rollout can be aborted: %d", r.StatusCode)
	}
}

// An open page learns of what was done elsewhere, though no device has changed.
func TestRolloutThatIsTurnedIsTold(t *testing.T) {
	s := newSite(t)
	s.people()
	changes, stop := s.fleet.Watch()
	defer stop()
	if _, err := s.fleet.Pause(t.Context(), admin, "r-running"); err != nil {
		t.Fatal(err)
	}
	if err := s.fleet.LiftQuarantine(t.Context(), admin, digestC); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"r-running", digestC} {
		select {
		case id := <-changes:
			if id != want {
				t.Errorf("told %q, want %q", id, want)
			}
		default:
			t.Errorf("%s is not told", want)
		}
	}
}

func TestWavesAreShownAsFarAsTheyHaveCome(t *testing.T) {
	now := time.Now()
	r := rolloutRow{fleet.RolloutView{Rollout: fleet.Rollout{State: fleet.RolloutRunning, Members: 100, Wave: 1, Limits: []int{10, 50, 100},
		Soaks: []time.Duration{time.Hour, time.Hour, 0}}, Figures: fleet.Figures{Pending: 70, Succeeded: 30}}}
	look := func() string {
		var text []string
		for _, w := range r.WaveRows() {
			text = append(text, strings.Join([]string{grouped(int64(w.From)), grouped(int64(w.Begun)), grouped(int64(w.To)), w.Mark}, " "))
		}
		return strings.Join(text, "; ")
	}
	if got := look(); got != "1 10 10 gone through; 11 30 50 now; 51 0 100 to come" {
		t.Error(got)
	}
	r.SoakSince = now.Add(-2 * time.Hour)
	if got := look(); !strings.Contains(got, "30 50 stands;") {
		t.Error(got)
	}
	r.SoakSince = now
	if got := look(); !strings.Contains(got, "stands; soaks for another 1h") && !strings.Contains(got, "another 59m59s") {
		t.Error(got)
	}
	r.State, r.Wave = fleet.RolloutDone, 2
	if got := look(); !strings.Contains(got, "100 100 gone through") {
		t.Error(got)
	}
}
