package web

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"bmsota/server/internal/fleet"
)

const (
	rolloutsShown = 100 // of the list
	leftShown     = 50  // devices that did not get the release, of a rollout's page
)

// rolloutRow is a rollout as pages show it.
type rolloutRow struct{ fleet.RolloutView }

// figure is one count of members.
type figure struct {
	Count      int
	Name, Tone string
}

// Counts are the figures that are not zero.
func (r rolloutRow) Counts() []figure { return counts(r.Figures) }

func counts(f fleet.Figures) []figure {
	all := []figure{{f.Succeeded, "succeeded", "ok"}, {f.Open, "under way", "busy"}, {f.Pending, "waiting", ""}, {f.RolledBack, "rolled back", "bad"},
		{f.Silent, "silent", "bad"}, {f.Failed, "failed", "bad"}, {f.Dark, "not heard of since", "bad"}, {f.Brownouts, "lost supply", "wait"}, {f.Skipped, "skipped", ""},
		{f.Suspect, "set aside, not believed", "wait"}}
	return slices.DeleteFunc(all, func(f figure) bool { return f.Count == 0 })
}

// WaveText is the present wave.
func (r rolloutRow) WaveText() string {
	return fmt.Sprintf("wave %d of %d", min(r.Wave+1, len(r.Limits)), len(r.Limits))
}

// waveRow is a wave with how far it has come. Limits count the members of the waves before, so do the figures.
type waveRow struct {
	Number, From, To int
	Begun            int // members that were started by now, of To
	Mark             string
	Tone             string
	Soak             time.Duration
	Own              []figure // its own members
}

// WaveRows are what a rollout's page shows of its waves. A wave that has been gone through may have left members behind, so
// of it only that is said.
func (r rolloutRow) WaveRows() []waveRow {
	rows := make([]waveRow, 0, len(r.Limits))
	from := 0
	for i, limit := range r.Limits {
		w := waveRow{Number: i + 1, From: from + 1, To: limit, Mark: "to come", Soak: r.Soaks[i]}
		switch {
		case i < r.Wave || r.State == fleet.RolloutDone:
			w.Begun, w.Mark = limit, "gone through"
		case i == r.Wave:
			w.Begun, w.Mark, w.Tone = min(r.Members-r.Figures.Pending, limit), r.soakText(), rolloutTone(r.State)
		}
		if i < len(r.Waves) {
			w.Own = counts(r.Waves[i].Figures)
		}
		rows = append(rows, w)
		from = limit
	}
	return rows
}

// soakText says where the present wave stands.
func (r rolloutRow) soakText() string {
	switch {
	case r.State != fleet.RolloutRunning:
		return string(r.State)
	case r.SoakSince.IsZero():
		return "now"
	}
	if left := r.Soaks[r.Wave] - time.Since(r.SoakSince); left > 0 {
		return "stands; soaks for another " + span(left)
	}
	return "stands"
}

func rolloutTone(s fleet.RolloutState) string {
	switch s {
	case fleet.RolloutRunning:
		return "busy"
	case fleet.RolloutPaused:
		return "wait"
	case fleet.RolloutHalted:
		return "bad"
	case fleet.RolloutDone:
		return "ok"
	}
	return "none"
}

// rolloutOrder has those first that may want somebody.
var rolloutOrder = []fleet.RolloutState{fleet.RolloutHalted, fleet.RolloutRunning, fleet.RolloutPaused}

// rolloutRows puts rollouts, which come newest first, into the order of the pages.
func rolloutRows(list []fleet.RolloutView) []rolloutRow {
	rows := make([]rolloutRow, 0, len(list))
	for _, v := range list {
		rows = append(rows, rolloutRow{v})
	}
	place := func(r rolloutRow) int {
		if i := slices.Index(rolloutOrder, r.State); i >= 0 {
			return i
		}
		return len(rolloutOrder)
	}
	slices.SortStableFunc(rows, func(a, b rolloutRow) int { return cmp.Compare(place(a), place(b)) })
	return rows
}

type rolloutsData struct {
	Rows  []rolloutRow
	Total int
}

func (u *ui) rollouts(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	list, err := u.h.cfg.Fleet.Rollouts(r.Context())
	if err != nil {
		return err
	}
	d := rolloutsData{Rows: rolloutRows(list), Total: len(list)}
	d.Rows = d.Rows[:min(len(d.Rows), rolloutsShown)]
	return u.show(w, http.StatusOK, "rollouts", page{Title: "Rollouts", Here: "rollouts", By: by, Live: "/events", Data: d})
}

// heldRow is how many pending members one thing holds back.
type heldRow struct {
	Text  string
	Count int
}

type rolloutData struct {
	rolloutRow
	Held     []heldRow
	Unlooked int // pending members that were not asked
	Left     []fleet.MemberView
	LeftMore int
	Barred   *fleet.Quarantine // of the release; nil when there is none
}

func (u *ui) rollout(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	return u.showRollout(w, r, by, http.StatusOK, nil)
}

func (u *ui) showRollout(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, refusal error) error {
	v, err := u.h.cfg.Fleet.Rollout(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	d := rolloutData{rolloutRow: rolloutRow{v}}
	if v.State == fleet.RolloutRunning {
		d.Held, d.Unlooked = held(v)
	}
	if d.Left, d.LeftMore, err = u.leftBehind(r.Context(), v); err != nil {
		return err
	}
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	if q, ok := held[v.SHA256]; ok {
		d.Barred = &q
	}
	p := page{Title: "Rollout of " + v.Version, Here: "rollouts", By: by, Live: "/events", Done: doneTexts[r.URL.Query().Get("done")], Data: d}
	if refusal != nil {
		p.Done, p.Fault = "", sentence(refusal)
	}
	return u.show(w, status, "rollout", p)
}

// held counts pending members by what holds them back, most first.
func held(v fleet.RolloutView) (rows []heldRow, unlooked int) {
	by := make(map[string]int)
	unlooked = v.Figures.Pending
	for _, w := range v.Waves {
		for hold, n := range w.Held {
			by[hold.Text()] += n
			unlooked -= n
		}
	}
	for text, n := range by {
		rows = append(rows, heldRow{text, n})
	}
	slices.SortFunc(rows, func(a, b heldRow) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Text, b.Text)) })
	return rows, max(0, unlooked)
}

// leftStates are how a member ends without the release, those that speak against it first.
var leftStates = []fleet.MemberState{fleet.MemberRolledBack, fleet.MemberSilent, fleet.MemberFailed, fleet.MemberBrownout, fleet.MemberSuspect, fleet.MemberSkipped}

// leftBehind are the first members that did not get the release, and how many more there are.
func (u *ui) leftBehind(ctx context.Context, v fleet.RolloutView) (list []fleet.MemberView, more int, err error) {
	f := v.Figures
	for _, state := range leftStates {
		members, err := u.h.cfg.Fleet.RolloutMembers(ctx, v.ID, state, -1, leftShown-len(list))
		if err != nil {
			return nil, 0, err
		}
		if list = append(list, members...); len(list) >= leftShown {
			break
		}
	}
	return list, max(0, f.RolledBack+f.Silent+f.Failed+f.Brownouts+f.Skipped+f.Suspect-len(list)), nil
}

// WaveOf is the wave of a member.
func (d rolloutData) WaveOf(m fleet.MemberView) int { return waveOf(m.Rank, d.Limits) }

func memberTone(s fleet.MemberState) string {
	switch s {
	case fleet.MemberRolledBack, fleet.MemberSilent, fleet.MemberFailed:
		return "bad"
	case fleet.MemberBrownout, fleet.MemberSuspect:
		return "wait"
	}
	return "none"
}

// turnRollout carries out a verb. Those that are hard to take back are asked about.
func (u *ui) turnRollout(verb fleet.Verb, carryOut func(context.Context, fleet.Identity, string) (fleet.RolloutView, error)) view {
	return func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
		f, err := form(r, "confirmed")
		if err != nil {
			return err
		}
		v, err := u.h.cfg.Fleet.Rollout(r.Context(), r.PathValue("id"))
		if err != nil {
			return err
		}
		ask := verb == fleet.VerbAbort || verb == fleet.VerbResume && v.State == fleet.RolloutHalted
		if ask && v.State.Can(verb) && f["confirmed"] != "yes" {
			return u.confirm(w, by, "rollouts", turnQuestion(rolloutRow{v}, verb))
		}
		if _, err := carryOut(r.Context(), by, v.ID); err != nil {
			if p := problemOf(err); p.Status < 500 {
				return u.showRollout(w, r, by, p.Status, err)
			}
			return err
		}
		return done(w, r, "/rollouts/"+v.ID, string(verb))
	}
}

func turnQuestion(r rolloutRow, verb fleet.Verb) confirmation {
	what := "the rollout of " + r.Project + " " + r.Version + "?"
	c := confirmation{Question: "Abort " + what, Button: "Abort", CLI: "bmsota rollout " + string(verb) + " " + r.ID,
		Action: "/rollouts/" + r.ID + "/" + string(verb), Fields: map[string]string{}, Back: "/rollouts/" + r.ID,
		Means: []string{fmt.Sprintf("It ends for good: %s waiting %s not started.", devices(r.Figures.Pending), plural(r.Figures.Pending, "is", "are")),
			"An update that has begun on a device runs on to its end; one that the device has not taken up is taken back."}}
	if verb == fleet.VerbResume {
		c.Question, c.Button = "Resume "+what, "Resume"
		c.Means = []string{"It is halted: " + r.Halt.Text + ".",
			fmt.Sprintf("The failures so far (%d) count no more. The rules apply to what comes on top of them.", r.Figures.Failures()),
			fmt.Sprintf("It goes on in %s, and up to %s may be touched now.", r.WaveText(), devices(r.Limits[min(r.Wave, len(r.Limits)-1)]))}
	}
	return c
}

func devices(n int) string { return grouped(int64(n)) + " " + plural(n, "device", "devices") }

// NewestEvents are the events, newest first.
func (r rolloutRow) NewestEvents() []fleet.Event {
	list := slices.Clone(r.Events)
	slices.Reverse(list)
	return list
}

// Rules are the figures above which it halts.
func (r rolloutRow) Rules() (list []string) {
	s := r.Policy.Stop
	if s.FailedPct != nil {
		list = append(list, fmt.Sprintf("more than %v %% of the wave fail", *s.FailedPct))
	}
	for _, rule := range []struct {
		limit *int
		text  string
	}{{s.Failed, "fail"}, {s.RolledBack, "roll back"}, {s.Brownouts, "lose supply during the trial"}} {
		if rule.limit != nil {
			list = append(list, fmt.Sprintf("more than %s %s", devices(*rule.limit), rule.text))
		}
	}
	return list
}

// Holds are what its policy holds members back by.
func (r rolloutRow) Holds() (list []string) {
	p := r.Policy
	add := func(given bool, format string, args ...any) {
		if given {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	add(p.Gate.MinSOCPct > 0, "below %v %% charge", p.Gate.MinSOCPct)
	add(p.Gate.NotWhileCharging, "while charging")
	add(p.Gate.MaxCurrentA > 0, "above %v A", p.Gate.MaxCurrentA)
	if t := p.Gate.MinTempC; t != nil {
		add(true, "below %v °C", *t)
	}
	if t := p.Gate.MaxTempC; t != nil {
		add(true, "above %v °C", *t)
	}
	add(p.Window != "", "outside %s of its own time", p.Window)
	add(p.Spread != "", "beside another of its %s", p.Spread)
	add(true, "while %s update", devices(p.Concurrency))
	add(p.PerMinute > 0, "after %d within a minute", p.PerMinute)
	return list
}
