package web

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
)

// auditShown is how many rows a page of the log shows.
const auditShown = 50

type auditData struct {
	Query        fleet.AuditQuery
	Since, Until string // as the form sends them
	Rows         []audit.Entry
	Actions      []audit.Action
	Groups       []string // "rollout.", for all of them
	Newer, Older string   // links; empty where there is none
	Plain        bool     // nothing is chosen
	CLI          string
}

// auditPage shows the log, newest first.
func (u *ui) auditPage(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	values := r.URL.Query()
	for name, v := range values {
		if len(v) > 0 && v[0] == "" {
			values.Del(name) // a form sends what is left empty, too
		}
	}
	q, err := auditQuery(values)
	if err != nil {
		return err
	}
	q.NewestFirst, q.Limit = true, auditShown+1
	back := q.After != 0
	if back {
		q.NewestFirst = false // the rows next above the mark
	}
	rows, err := u.h.cfg.Fleet.Audit(r.Context(), by, q)
	if err != nil {
		return err
	}
	more := len(rows) > auditShown
	if more {
		rows = rows[:auditShown]
	}
	if back {
		for i, j := 0, len(rows)-1; i < j; i, j = i+1, j-1 {
			rows[i], rows[j] = rows[j], rows[i]
		}
	}
	d := auditData{Query: q, Since: values.Get("since"), Until: values.Get("until"), Rows: rows, Actions: audit.Actions()}
	for _, a := range d.Actions {
		group, _, _ := strings.Cut(string(a), ".")
		if n := len(d.Groups); n == 0 || d.Groups[n-1] != group+"." {
			d.Groups = append(d.Groups, group+".")
		}
	}
	if n := len(rows); n > 0 {
		if back && more || q.Before != 0 {
			d.Newer = auditGoOn(values, "after", rows[0].Seq)
		}
		if !back && more || back {
			d.Older = auditGoOn(values, "before", rows[n-1].Seq)
		}
	}
	choices := auditChoices(values)
	d.Plain, d.CLI = len(choices) == 0, auditCLI(values)
	live := "/events"
	if back || q.Before != 0 {
		live = "" // what is past does not change
	}
	return u.show(w, http.StatusOK, "audit", page{Title: "Audit", Here: "audit", By: by, Live: live, Data: d})
}

// auditChoices are what an address chooses rows by.
func auditChoices(values url.Values) url.Values {
	chosen := url.Values{}
	for _, name := range []string{"who", "what", "device", "rollout", "since", "until"} {
		if v := values.Get(name); v != "" {
			chosen.Set(name, v)
		}
	}
	return chosen
}

// auditGoOn is the page that goes on at a row.
func auditGoOn(values url.Values, to string, seq int64) string {
	next := auditChoices(values)
	next.Set(to, strconv.FormatInt(seq, 10))
	return "/audit?" + next.Encode()
}

// auditCLI is what to type for the same rows.
func auditCLI(values url.Values) string {
	line := "bmsota audit list"
	for _, name := range []string{"what", "who", "device", "rollout", "since", "until"} {
		v := values.Get(name)
		if v == "" {
			continue
		}
		if name == "since" || name == "until" {
			if at, err := readTime(v); err == nil {
				v = at.Format(time.RFC3339)
			}
		}
		line += " --" + name + " " + v
	}
	return line
}

// auditTone is how an action looks: ok, busy, wait, bad or none.
func auditTone(e audit.Entry) string {
	switch e.What {
	case audit.LoginFailed, audit.AccessDenied, audit.RolloutHalt, audit.QuarantineSet, audit.RolloutAbort, audit.DeviceSuspect:
		return "bad"
	case audit.DeviceRevoke, audit.ReleaseWithdraw, audit.AccountRemove, audit.TokenRemove, audit.CommandTakeBack, audit.QuarantineLift, audit.RolloutPause:
		return "wait"
	case audit.AttemptEnd:
		return attemptTone(fleet.AttemptState(e.Details.Get("state")))
	case audit.RolloutDone, audit.LoginOK:
		return "ok"
	case audit.AttemptBegin, audit.CommandSend, audit.RolloutCreate, audit.RolloutAdvance, audit.RolloutResume, audit.ReleasePublish, audit.ChannelSet:
		return "busy"
	}
	return "none"
}

// auditLink is one of the things that a row is about, with its page; Path is empty where it has none.
type auditLink struct{ Text, Path string }

// auditLinks are what a row is about.
func auditLinks(e audit.Entry) []auditLink {
	var list []auditLink
	if e.Device != "" {
		list = append(list, auditLink{e.Device, "/devices/" + e.Device})
	}
	if e.Rollout != "" {
		list = append(list, auditLink{e.Rollout, "/rollouts/" + e.Rollout})
	}
	digest := e.About
	if !isDigest(digest) {
		digest = e.Details.Get("sha256")
	}
	switch {
	case isDigest(digest) && e.What != audit.KeyAdd:
		list = append(list, auditLink{"release " + short(digest), "/releases/" + digest})
	case len(list) == 0 && e.About != "":
		list = append(list, auditLink{Text: short(e.About)})
	}
	return list
}

// auditFacts are the details that a person wants to read: digests are links already, commands are noise.
func auditFacts(e audit.Entry) audit.Details {
	var d audit.Details
	for _, pair := range e.Details {
		said := pair.Key == "phase" && pair.Value == e.Details.Get("state")
		if pair.Key != "sha256" && pair.Key != "command" && !said {
			pair.Key = strings.ReplaceAll(pair.Key, "_", " ")
			d = append(d, pair)
		}
	}
	return d
}
