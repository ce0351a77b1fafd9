package web

import (
	"fmt"
	"net/http"
	"net/url"

	"bmsota/server/internal/fleet"
)

// homeListed is how many versions, attempts and reasons the first page names; it says how many more there are.
const homeListed = 8

// need is one thing that wants a person, with the very devices behind its link.
type need struct {
	Count             int
	Link, Name, About string
}

type homeData struct {
	*fleet.Census
	Needs        []need
	Quiet        bool         // nothing needs anybody
	Rollouts     []rolloutRow // running or paused
	Held         []releaseRow // quarantined
	Contests     []fleet.Contest
	Shown        []fleet.VersionCount
	More         int // versions beyond Shown
	MoreDevices  int // that run those
	Under        []fleet.Attempt
	Lately       []fleet.Attempt
	Causes       []fleet.FailureTally // of what failed lately
	Failed       int                  // attempts
	ReleaseCount int
}

func (u *ui) home(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	census, err := u.h.cfg.Fleet.Census(r.Context(), fleet.CensusFresh)
	if err != nil {
		return err
	}
	open, err := u.h.cfg.Fleet.OpenRollouts(r.Context())
	if err != nil {
		return err
	}
	rows := rolloutRows(open) // halted ones first
	halted := 0
	for halted < len(rows) && rows[halted].State == fleet.RolloutHalted {
		halted++
	}
	d := homeData{Census: census, Needs: needsOf(census), Shown: census.Versions}
	if halted > 0 {
		d.Needs = append([]need{haltedNeed(rows[:halted])}, d.Needs...)
	}
	d.Rollouts = rows[halted:]
	d.Contests = u.h.cfg.Fleet.Contests()
	d.Quiet = len(d.Contests) == 0
	d.Contests = d.Contests[:min(len(d.Contests), homeListed)]
	for _, n := range d.Needs {
		d.Quiet = d.Quiet && n.Count == 0
	}
	if len(d.Shown) > homeListed {
		for _, v := range d.Shown[homeListed:] {
			d.More++
			d.MoreDevices += v.Count
		}
		d.Shown = d.Shown[:homeListed]
	}
	if d.Under, d.Lately, err = u.h.cfg.Fleet.UnderWay(r.Context(), homeListed); err != nil {
		return err
	}
	releases, err := u.h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return err
	}
	d.ReleaseCount = len(releases)
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	for _, rel := range releases {
		if q, ok := held[rel.SHA256]; ok && !rel.Withdrawn {
			d.Held = append(d.Held, releaseRow{Release: rel, Quarantine: &q})
		}
	}
	nameVersions(d.Under, releases)
	nameVersions(d.Lately, releases)
	for _, f := range census.Failures {
		d.Failed += f.Count
		if f.Version == "" {
			f.Version = versionOf(f.SHA256, releases)
		}
		if len(d.Causes) < homeListed {
			d.Causes = append(d.Causes, f)
		}
	}
	return u.show(w, http.StatusOK, "home", page{Title: "Home", Here: "home", By: by, Live: "/events", Data: d})
}

func needsOf(c *fleet.Census) []need {
	return []need{
		{c.Stuck, devicesIn(fleet.StateStuck), "stuck", "updating, and silent for more than " + minutes(fleet.StuckAfter.Minutes())},
		{c.Failed, devicesIn(fleet.StateFailed), "failed or rolled back", "now, or in the last 7 days with no success since"},
		{c.Unprotected, devicesIn(fleet.StateUnprotected), "unprotected", "cannot undo a bad image, or take unsigned ones"},
		{c.Away, devicesIn(fleet.StateAway), "offline over a day", "not connected, and not heard of"},
		{c.Suspect, devicesIn(fleet.StateSuspect), "not believed", "what they report does not go together: two boards, or a stolen login"},
		{c.Others, devicesIn(fleet.StateUnreleased), "on no release", "run an image that was not published here"},
	}
}

func minutes(n float64) string { return fmt.Sprintf("%.0f minutes", n) }

// devicesIn leads to the devices that are counted.
func devicesIn(s fleet.State) string { return "/devices?state=" + url.QueryEscape(string(s)) }

// haltedNeed is the card of rollouts that a rule has halted.
func haltedNeed(halted []rolloutRow) need {
	n := need{len(halted), "/rollouts", "rollouts halted", "a rule stopped them; nothing starts until somebody decides"}
	if len(halted) == 1 {
		n.Link, n.Name, n.About = "/rollouts/"+halted[0].ID, "rollout halted", halted[0].Version+": "+halted[0].Halt.Text
	}
	return n
}

// VersionLink leads to the devices of one bar.
func (homeData) VersionLink(v fleet.VersionCount) string {
	q := url.Values{"version": {v.Version}}
	if v.Project != "" {
		q.Set("project", v.Project)
	}
	if v.Chip != "" {
		q.Set("chip", v.Chip)
	}
	if !v.Released {
		q.Set("state", string(fleet.StateUnreleased))
	}
	return "/devices?" + q.Encode()
}

// ReasonLink leads to the devices of one reason.
func (homeData) ReasonLink(c fleet.ReasonCount) string {
	q := url.Values{"phase": {string(c.Phase)}}
	if c.Reason != "" {
		q.Set("reason", string(c.Reason))
	}
	return "/devices?" + q.Encode()
}

// nameVersions fills in which version an order without one came to, where the release it was for is known.
func nameVersions(attempts []fleet.Attempt, releases []fleet.Release) {
	for i, a := range attempts {
		if a.Version == "" {
			attempts[i].Version = versionOf(a.SHA256, releases)
		}
	}
}

// versionOf is the version of a release; empty when there is no such release.
func versionOf(sha256 string, releases []fleet.Release) string {
	for _, rel := range releases {
		if sha256 != "" && rel.SHA256 == sha256 {
			return rel.Version
		}
	}
	return ""
}
