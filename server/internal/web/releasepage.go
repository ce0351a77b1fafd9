package web

import (
	"fmt"
	"net/http"
	"strings"

	"bmsota/server/internal/fleet"
)

type releaseRow struct {
	fleet.Release
	Channels   []string
	Running    int               // devices
	Quarantine *fleet.Quarantine // nil when there is none that stands
}

func (r *releaseRow) hold(held map[string]fleet.Quarantine) {
	if q, ok := held[r.SHA256]; ok {
		r.Quarantine = &q
	}
}

type releasesData struct {
	Rows []releaseRow
}

func (u *ui) releases(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	list, err := u.h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return err
	}
	channels, err := u.h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return err
	}
	census, err := u.h.cfg.Fleet.Census(r.Context(), fleet.CensusFresh)
	if err != nil {
		return err
	}
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	names := channelNames(channels)
	var d releasesData
	for _, rel := range list {
		row := releaseRow{Release: rel, Channels: names[rel.SHA256], Running: census.Images[rel.SHA256]}
		row.hold(held)
		d.Rows = append(d.Rows, row)
	}
	return u.show(w, http.StatusOK, "releases", page{Title: "Releases", Here: "releases", By: by, Live: "/events", Data: d})
}

type releaseData struct {
	releaseRow
	Tally  map[fleet.AttemptState]int
	States []fleet.AttemptState
	Chosen string // channel of the form that was refused
}

func (u *ui) release(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	return u.showRelease(w, r, by, http.StatusOK, "", nil)
}

func (u *ui) showRelease(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, chosen string, refusal error) error {
	digest, err := digestOf(r)
	if err != nil {
		return err
	}
	d := releaseData{Chosen: chosen, States: []fleet.AttemptState{fleet.AttemptOpen, fleet.AttemptSucceeded, fleet.AttemptFailed, fleet.AttemptRolledBack,
		fleet.AttemptRefused, fleet.AttemptExpired, fleet.AttemptSuperseded}}
	if d.Release, err = u.h.cfg.Fleet.Release(r.Context(), digest); err != nil {
		return err
	}
	channels, err := u.h.cfg.Fleet.Channels(r.Context())
	if err != nil {
		return err
	}
	d.Channels = channelNames(channels)[digest]
	if _, d.Running, err = u.h.cfg.Fleet.DevicePage(r.Context(), fleet.DeviceQuery{SHA256: digest, Limit: 1}); err != nil {
		return err
	}
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	d.hold(held)
	if d.Tally, err = u.h.cfg.Fleet.ReleaseTally(r.Context(), digest); err != nil {
		return err
	}
	p := page{Title: d.Project + " " + d.Version, Here: "releases", By: by, Live: "/events", Done: doneTexts[r.URL.Query().Get("done")], Data: d}
	if refusal != nil {
		p.Done, p.Fault = "", sentence(refusal)
	}
	return u.show(w, status, "release", p)
}

func (u *ui) pointChannel(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	digest, err := digestOf(r)
	if err != nil {
		return err
	}
	f, err := form(r, "channel")
	if err != nil {
		return err
	}
	rel, err := u.h.cfg.Fleet.Release(r.Context(), digest)
	if err != nil {
		return err
	}
	if f["channel"] == "" {
		err = fmt.Errorf("%w: name the channel", fleet.ErrInvalid)
	} else {
		_, err = u.h.cfg.Fleet.SetChannel(r.Context(), by, rel.Project, rel.Chip, f["channel"], rel.Version)
	}
	if err != nil {
		if p := problemOf(err); p.Status < 500 {
			return u.showRelease(w, r, by, p.Status, f["channel"], err)
		}
		return err
	}
	u.h.cfg.Log.Info("channel set", "by", by.Name, "channel", f["channel"], "version", rel.Version)
	return done(w, r, "/releases/"+digest, "channel")
}

func (u *ui) withdrawRelease(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	digest, err := digestOf(r)
	if err != nil {
		return err
	}
	f, err := form(r, "confirmed")
	if err != nil {
		return err
	}
	rel, err := u.h.cfg.Fleet.Release(r.Context(), digest)
	if err != nil {
		return err
	}
	if f["confirmed"] != "yes" {
		channels, err := u.h.cfg.Fleet.Channels(r.Context())
		if err != nil {
			return err
		}
		means := []string{"It is offered to nobody any more. Devices that run it go on running it.", "Its version stays taken, and this cannot be undone."}
		if names := channelNames(channels)[digest]; len(names) > 0 {
			means = append(means, "These channels point at it and will offer nothing until they are set again: "+strings.Join(names, ", ")+".")
		}
		return u.confirm(w, by, "releases", confirmation{
			Question: "Withdraw " + rel.Project + " " + rel.Version + " for " + rel.Chip + "?", Button: "Withdraw", Means: means,
			CLI: "bmsota releases withdraw " + digest[:12], Action: "/releases/" + digest + "/withdraw", Fields: map[string]string{}, Back: "/releases/" + digest,
		})
	}
	if err := u.h.cfg.Fleet.Withdraw(r.Context(), by, digest); err != nil {
		return err
	}
	u.h.cfg.Log.Info("release withdrawn", "by", by.Name, "version", rel.Version)
	return done(w, r, "/releases/"+digest, "withdraw")
}

func (u *ui) liftQuarantine(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	digest, err := digestOf(r)
	if err != nil {
		return err
	}
	f, err := form(r, "confirmed")
	if err != nil {
		return err
	}
	rel, err := u.h.cfg.Fleet.Release(r.Context(), digest)
	if err != nil {
		return err
	}
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	if q, ok := held[digest]; ok && f["confirmed"] != "yes" {
		return u.confirm(w, by, "releases", confirmation{
			Question: "Lift the quarantine of " + rel.Project + " " + rel.Version + " for " + rel.Chip + "?", Button: "Lift",
			Means: []string{"Rollout " + q.RolloutID + " was halted: " + q.Why + ".",
				"Channels and rollouts may offer it again. Devices that rolled it back still refuse it.", "The rollout itself stays halted until it is resumed."},
			CLI: "bmsota releases lift " + digest[:12], Action: "/releases/" + digest + "/lift", Fields: map[string]string{}, Back: "/releases/" + digest,
		})
	}
	if err := u.h.cfg.Fleet.LiftQuarantine(r.Context(), by, digest); err != nil {
		return err
	}
	return done(w, r, "/releases/"+digest, "lift")
}
