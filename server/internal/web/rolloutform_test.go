package web

import (
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]+)" value="([^"]*)">`)

// The first step shows and changes nothing; its form, sent twice, makes one rollout.
func TestRolloutIsShownBeforeItIsMade(t *testing.T) {
	s := newSite(t)
	s.people()
	s.put(func(tx fleet.Tx) error {
		return tx.PutDevice(fleet.Device{ID: "d-spare", TokenSHA256: "x", EnrolledAt: time.Now()})
	})
	cookie := s.signIn(fleet.RoleOperator)
	before := s.fingerprint()
	if r := s.get("/rollouts/new?release="+digestA, cookie); !strings.Contains(r.body, `value="`+digestA+`" selected`) || strings.Contains(r.body, digestC) {
		t.Errorf("the form does not choose the release, or offers the quarantined one:\n%s", r.body)
	}
	draft := s.do("POST", "/rollouts", cookie, url.Values{"release": {digestB}, "who": {"all"}, "waves": {"1:1h30m, 100%"}, "max_failed": {"3"}, "window": {"02:00-04:30"},
		"spread": {"bank"}, "min_soc": {"40"}, "not_charging": {"yes"}, "max_current": {"20"}, "min_temp": {"-5"}, "max_temp": {"45.5"}})
	for _, want := range []string{"would go to <strong>2</strong> devices", "soaks 1h30m", "up to 1<", "never_seen", `href="/devices/d-spare"`, "Begin with 1 device", "more than 3 devices fail",
		"below 40 % charge", "while charging", "above 20 A", "below -5 °C", "above 45.5 °C", "<li>blocked: not connected: 1<", "outside 02:00-04:30", "beside another of its bank",
		"bmsota rollout create 1.1.0 --project bms --chip esp32 --all --waves 1:1h30m,100% --max-failed 3 --window 02:00-04:30 --spread bank --min-soc 40 --max-current 20 --min-temp -5 --max-temp 45.5 --not-while-charging --expect 2<"} {
		if !strings.Contains(draft.body, want) {
			t.Errorf("no %q in\n%s", want, draft.body)
		}
	}
	if s.fingerprint() != before {
		t.Error("a dry run changed something")
	}
	form := make(url.Values)
	for _, m := range hidden.FindAllStringSubmatch(draft.body, -1) {
		form.Set(m[1], m[2])
	}
	var made string
	for range 2 {
		r := s.do("POST", "/rollouts", cookie, form)
		target := r.Header.Get("Location")
		if r.StatusCode != http.StatusSeeOther || !strings.HasSuffix(target, "?done=create") || made != "" && target != made {
			t.Fatalf("%d to %q, before to %q\n%s", r.StatusCode, target, made, r.body)
		}
		made = target
	}
	list, err := s.fleet.Rollouts(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("%d rollouts (%v)", len(list), err)
	}
	r := list[0]
	if r.Members != 2 || r.CreatedBy != "operator" || r.Version != "1.1.0" || r.Limits[0] != 1 || r.Soaks[0] != 90*time.Minute || *r.Policy.Stop.Failed != 3 ||
		r.Policy.Window != "02:00-04:30" || r.Policy.Spread != "bank" || !reflect.DeepEqual(r.Policy.Gate, fleet.Gate{MinSOCPct: 40, NotWhileCharging: true, MaxCurrentA: 20, MinTempC: new(-5.0), MaxTempC: new(45.5)}) {
		t.Errorf("made %+v", r)
	}
	if r := s.get(made, cookie); !strings.Contains(r.body, doneTexts["create"]) {
		t.Errorf("%s does not say what was done", made)
	}
}

func TestRolloutForSomeAndForNobody(t *testing.T) {
	s := newSite(t)
	s.people()
	cookie := s.signIn(fleet.RoleOperator)
	r := s.do("POST", "/rollouts", cookie, url.Values{"release": {digestB}, "who": {"some"}, "ids": {"d-well,\nd-none"}, "running": {"<1.1.0"}, "channel": {"stable"}})
	for _, want := range []string{"would go to <strong>1</strong> device ", "--device d-well --device d-none --running &#39;&lt;1.1.0&#39; --channel stable", "unknown"} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %q in\n%s", want, r.body)
		}
	}
	r = s.do("POST", "/rollouts", cookie, url.Values{"release": {digestB}, "who": {"some"}, "label": {"site=north"}})
	if !strings.Contains(faultOf(t, r.body), "nobody") || strings.Contains(r.body, `id="confirm"`) || !strings.Contains(r.body, "label=site%3Dnorth") {
		t.Errorf("a rollout for nobody:\n%s", r.body)
	}
	// What was refused is still in the form.
	r = s.do("POST", "/rollouts", cookie, url.Values{"release": {digestB}, "who": {"some"}, "label": {"site"}, "waves": {"7"}})
	if !strings.Contains(faultOf(t, r.body), "not key=value") || !strings.Contains(r.body, `name="label" value="site"`) || !strings.Contains(r.body, `name="waves" value="7"`) {
		t.Errorf("%s", r.body)
	}
}

func TestShellLineIsTakenAsItWasMeant(t *testing.T) {
	if got, want := shellLine("a", "", "x y", "it's", "$HOME", "<1.0.0", "10%:1h,100%", "k=v"), `a '' 'x y' 'it'\''s' '$HOME' '<1.0.0' 10%:1h,100% k=v`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
