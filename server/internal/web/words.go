package web

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// words are the functions of the templates: how values are said to people.
func words() template.FuncMap {
	return template.FuncMap{
		"ago": ago, "stamp": stamp, "count": func(n int) string { return grouped(int64(n)) }, "bytes": byteSize, "phase": phaseName, "tone": phaseTone, "why": why,
		"state": stateName, "attempt": attemptName, "attemptTone": attemptTone, "share": share, "dict": dict, "short": short, "plural": plural,
		"rolloutTone": rolloutTone, "span": span, "memberTone": memberTone,
		"memberName": func(s fleet.MemberState) string { return strings.ReplaceAll(string(s), "_", " ") },
		"auditTone":  auditTone, "auditLinks": auditLinks, "auditFacts": auditFacts,
		"said": said, "because": because, "steps": steps, "channelName": channelName,
	}
}

// ago says how long since t, in the largest unit.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	switch {
	case d < 5*time.Second:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// span is a length of time to the second: 1h30m, 45s.
func span(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// stamp is a time to the second, in UTC.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// grouped writes 12345 as 12,345.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func byteSize(n int64) string {
	switch {
	case n <= 0:
		return "unknown"
	case n < 10<<10:
		return grouped(n) + " bytes"
	case n < 10<<20:
		return fmt.Sprintf("%s KiB", grouped(n>>10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// short is the beginning of a digest.
func short(s string) string {
	if len(s) > 12 {
		return s[:12] + "…"
	}
	return s
}

func phaseName(p protocol.Phase) string {
	switch p {
	case "":
		return "not heard of yet"
	case protocol.PhaseTrial:
		return "on trial"
	}
	return strings.ReplaceAll(string(p), "_", " ")
}

// because is a reason and what was said about it, without saying it twice.
func because(r protocol.Reason, message string) string {
	text := r.Text()
	switch {
	case r == protocol.ReasonNone, strings.HasPrefix(message, text):
		return message
	case message == "":
		return why(r)
	}
	return why(r) + ": " + message
}

// said is what a device says beyond the name of its phase.
func said(s protocol.Status) string {
	if s.Message == s.Phase.Text() {
		s.Message = ""
	}
	return because(s.Reason, s.Message)
}

// phaseTone is how a phase looks: ok, busy, wait, bad or none.
func phaseTone(p protocol.Phase) string {
	switch {
	case p == protocol.PhaseConfirmed:
		return "ok"
	case p == protocol.PhaseWaiting || p == protocol.PhaseRefused:
		return "wait"
	case p == protocol.PhaseFailed || p == protocol.PhaseRolledBack:
		return "bad"
	case p.Updating():
		return "busy"
	}
	return "none"
}

// why is the sentence of a reason.
func why(r protocol.Reason) string {
	if r == protocol.ReasonNone {
		return "no reason given"
	}
	if text := r.Text(); text != "" {
		return text
	}
	return string(r)
}

func stateName(s fleet.State) string {
	switch s {
	case fleet.StateAny:
		return "any state"
	case fleet.StateAway:
		return "offline longer than a day"
	case fleet.StateStuck:
		return "stuck: updating and silent"
	case fleet.StateFailed:
		return "failed or rolled back"
	case fleet.StateUnprotected:
		return "unprotected"
	case fleet.StateUnreleased:
		return "runs no release of this server"
	case fleet.StateSuspect:
		return "not believed"
	case fleet.StateWaiting:
		return "waiting at a gate"
	}
	return string(s)
}

func attemptName(s fleet.AttemptState) string {
	if s == fleet.AttemptOpen {
		return "under way"
	}
	return strings.ReplaceAll(string(s), "_", " ")
}

func attemptTone(s fleet.AttemptState) string {
	switch s {
	case fleet.AttemptOpen:
		return "busy"
	case fleet.AttemptSucceeded:
		return "ok"
	case fleet.AttemptFailed, fleet.AttemptRolledBack:
		return "bad"
	case fleet.AttemptRefused, fleet.AttemptExpired:
		return "wait"
	}
	return "none"
}

// share is n of total in percent, never 0 for something and never 100 for less than all.
func share(n, total int) int {
	if total <= 0 || n <= 0 {
		return 0
	}
	p := int(math.Round(100 * float64(n) / float64(total)))
	if n < total {
		p = min(p, 99)
	}
	return max(p, 1)
}

func channelName(name string) string {
	if name == "" {
		return fleet.DefaultChannel
	}
	return name
}

// dict hands several values to a template.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict of %d values", len(pairs))
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: key %v is no text", pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// step is one phase of an attempt as its page shows it.
type step struct {
	Name, Mark string // Mark: done, now, bad or to come
}

// steps are the phases of an update with how far an attempt has come.
func steps(a fleet.Attempt) []step {
	order := []protocol.Phase{protocol.PhaseChecking, protocol.PhaseDownloading, protocol.PhaseVerifying, protocol.PhaseSwitching,
		protocol.PhaseRebooting, protocol.PhaseTrial, protocol.PhaseConfirmed}
	if a.Action != protocol.ActionUpdate || a.Reason == protocol.ReasonUpToDate {
		return nil // nothing was installed
	}
	at := -1
	for i, p := range order {
		if p == a.Phase {
			at = i
		}
	}
	end := a.State != fleet.AttemptOpen
	switch {
	case a.State == fleet.AttemptSucceeded:
		at = len(order) - 1
	case a.Phase == protocol.PhaseWaiting:
		at = 0
	case a.Phase == protocol.PhaseRolledBack:
		at = len(order) - 2 // the trial is what ended
	}
	list := make([]step, len(order))
	for i, p := range order {
		list[i] = step{phaseName(p), "to come"}
		switch {
		case i < at || i == at && a.State == fleet.AttemptSucceeded:
			list[i].Mark = "done"
		case i == at && end:
			list[i].Mark = "bad"
		case i == at:
			list[i].Mark = "now"
		}
	}
	if at < 0 && end {
		return nil // it ended somewhere that the row does not say
	}
	return list
}
