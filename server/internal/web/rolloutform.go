package web

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"bmsota/api"
	"bmsota/server/internal/fleet"
)

// draftListed is how many devices of a kind a dry run names.
const draftListed = 20

// rolloutFields are what the form for a rollout asks; the address of the form may say them beforehand.
var rolloutFields = []string{"release", "who", "label", "ids", "running", "channel", "waves", "max_failed", "window", "spread", "min_soc", "not_charging", "max_current", "min_temp", "max_temp"}

type rolloutFormData struct {
	Releases []fleet.Release // that may be rolled out
	Fields   map[string]string
}

func (u *ui) newRollout(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	fields := map[string]string{"who": "all", "waves": "1%:30m,10%:30m,100%", "max_failed": "5%"}
	for _, name := range rolloutFields {
		if v, given := r.URL.Query()[name]; given {
			fields[name] = v[0]
		}
	}
	return u.showRolloutForm(w, r, by, http.StatusOK, fields, nil)
}

func (u *ui) showRolloutForm(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, fields map[string]string, refusal error) error {
	releases, err := u.h.cfg.Fleet.Releases(r.Context())
	if err != nil {
		return err
	}
	held, err := u.h.quarantines(r.Context())
	if err != nil {
		return err
	}
	d := rolloutFormData{Fields: make(map[string]string)}
	for _, name := range rolloutFields {
		d.Fields[name] = fields[name]
	}
	for _, rel := range releases {
		if _, barred := held[rel.SHA256]; !barred && !rel.Withdrawn {
			d.Releases = append(d.Releases, rel)
		}
	}
	p := page{Title: "New rollout", Here: "rollouts", By: by, Data: d}
	if refusal != nil {
		p.Fault = sentence(refusal)
	}
	return u.show(w, status, "rolloutform", p)
}

// createRollout shows first what would be done. The answer to that comes back as the same form with confirmed=yes, the
// number of devices that was shown, and a key that makes of a form sent twice one rollout.
func (u *ui) createRollout(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, append([]string{"confirmed", "expect", "key"}, rolloutFields...)...)
	if err != nil {
		return err
	}
	target, err := u.draftOrCreate(w, r, by, f)
	if err != nil {
		if p := problemOf(err); p.Status < 500 {
			return u.showRolloutForm(w, r, by, p.Status, f, err)
		}
		return err
	}
	if target == "" {
		return nil
	}
	return done(w, r, target, "create")
}

// draftOrCreate shows the dry run, or creates the rollout and says where it is.
func (u *ui) draftOrCreate(w http.ResponseWriter, r *http.Request, by fleet.Identity, f map[string]string) (target string, err error) {
	if !isDigest(f["release"]) {
		return "", fmt.Errorf("%w: choose the release", fleet.ErrInvalid)
	}
	rel, err := u.h.cfg.Fleet.Release(r.Context(), f["release"])
	if err != nil {
		return "", err
	}
	req, args, err := requestOfForm(f, rel)
	if err != nil {
		return "", err
	}
	if f["confirmed"] != "yes" {
		d, err := u.h.cfg.Fleet.PlanRollout(r.Context(), by, req)
		if err != nil {
			return "", err
		}
		return "", u.showDraft(w, by, d, f, args)
	}
	expect, err := number(f["expect"], "expect", 0, 1, 1<<31-1) // 0 is refused: whoever says yes was shown a number
	if err != nil {
		return "", err
	}
	req.Expect, req.Key = &expect, f["key"]
	made, err := u.h.cfg.Fleet.CreateRollout(r.Context(), by, req)
	return "/rollouts/" + made.ID, err
}

// requestOfForm turns the form into a request, and into the arguments of the command that asks for the same.
func requestOfForm(f map[string]string, rel fleet.Release) (req fleet.RolloutRequest, args []string, err error) {
	in := api.RolloutRequest{Version: rel.Version, Project: rel.Project, Chip: rel.Chip}
	p := &in.Policy
	args = []string{"bmsota", "rollout", "create", rel.Version, "--project", rel.Project, "--chip", rel.Chip}
	fault := func(err error) (fleet.RolloutRequest, []string, error) {
		return req, nil, fmt.Errorf("%w: %w", fleet.ErrInvalid, err)
	}
	switch f["who"] {
	case "all":
		p.Selector.All = true
		args = append(args, "--all")
	case "some":
	default:
		return fault(fmt.Errorf("say whether all devices are meant or some"))
	}
	list := func(text string) []string {
		return strings.FieldsFunc(text, func(c rune) bool { return c == ',' || c == ' ' || c == '\t' || c == '\r' || c == '\n' })
	}
	for _, text := range list(f["label"]) {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			return fault(fmt.Errorf("label %.64q is not key=value", text))
		}
		if p.Selector.Labels == nil {
			p.Selector.Labels = make(map[string]string)
		}
		p.Selector.Labels[key] = value
		args = append(args, "--label", text)
	}
	for _, id := range list(f["ids"]) {
		p.Selector.IDs = append(p.Selector.IDs, id)
		args = append(args, "--device", id)
	}
	for _, text := range list(f["waves"]) {
		wave, err := api.ParseWave(text)
		if err != nil {
			return fault(err)
		}
		p.Waves = append(p.Waves, wave)
	}
	if f["max_failed"] != "" {
		n, pct, err := api.ParseLimit(f["max_failed"])
		if err != nil {
			return fault(fmt.Errorf("failures: %w", err))
		}
		if count := int(n); pct {
			p.Stop.FailedPct = &n
		} else {
			p.Stop.Failed = &count
		}
	}
	if f["min_soc"] != "" {
		if p.Gate.MinSOCPct, err = strconv.ParseFloat(f["min_soc"], 64); err != nil || !(p.Gate.MinSOCPct >= 0) {
			return fault(fmt.Errorf("a state of charge of %.32q is no percentage", f["min_soc"]))
		}
	}
	if f["max_current"] != "" {
		if p.Gate.MaxCurrentA, err = strconv.ParseFloat(f["max_current"], 64); err != nil {
			return fault(fmt.Errorf("a current of %.32q is no number of ampere", f["max_current"]))
		}
	}
	for _, limit := range []struct {
		name string
		to   **float64
	}{{"min_temp", &p.Gate.MinTempC}, {"max_temp", &p.Gate.MaxTempC}} {
		if f[limit.name] == "" {
			continue
		}
		degrees, err := strconv.ParseFloat(f[limit.name], 64)
		if err != nil {
			return fault(fmt.Errorf("a temperature of %.32q is no number of degrees", f[limit.name]))
		}
		*limit.to = &degrees
	}
	switch f["not_charging"] {
	case "yes":
		p.Gate.NotWhileCharging = true
	case "":
	default:
		return fault(fmt.Errorf("the form says %.32q for not_charging", f["not_charging"]))
	}
	p.Selector.Versions, p.Selector.Channel, p.Window, p.Spread = f["running"], f["channel"], f["window"], f["spread"]
	for _, flag := range []struct{ name, value string }{{"running", f["running"]}, {"channel", f["channel"]}, {"waves", strings.Join(list(f["waves"]), ",")}, {"max-failed", f["max_failed"]},
		{"window", f["window"]}, {"spread", f["spread"]}, {"min-soc", f["min_soc"]},
		{"max-current", f["max_current"]}, {"min-temp", f["min_temp"]}, {"max-temp", f["max_temp"]}} {
		if flag.value != "" {
			args = append(args, "--"+flag.name, flag.value)
		}
	}
	if p.Gate.NotWhileCharging {
		args = append(args, "--not-while-charging")
	}
	return rolloutRequestOf(in), args, nil
}

// shellLine joins arguments as a shell takes them.
func shellLine(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsFunc(a, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.,:=%/+@", c))
		}) {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// cause is how many devices cannot take a release for one reason, with an example of what is said about it.
type cause struct {
	Reason, Detail string
	Count          int
}

type draftData struct {
	fleet.Draft
	Row        rolloutRow
	First      []fleet.Member // of the first wave
	FirstMore  int
	Causes     []cause // most first
	Named      []fleet.Cannot
	CannotMore int
	Fields     map[string]string // of the form that creates it
	DryCLI     string
	CLI        string
	Back       string // to the form, as it was filled in
}

func (u *ui) showDraft(w http.ResponseWriter, by fleet.Identity, draft fleet.Draft, f map[string]string, args []string) error {
	members := draft.Rollout.Members
	d := draftData{Draft: draft, Row: rolloutRow{fleet.RolloutView{Rollout: draft.Rollout, Figures: fleet.Figures{Pending: members}}},
		DryCLI: shellLine(append(slices.Clone(args), "--dry-run")...), CLI: shellLine(append(slices.Clone(args), "--expect", strconv.Itoa(members))...),
		Fields: map[string]string{"confirmed": "yes", "expect": strconv.Itoa(members), "key": rand.Text()}}
	back := make(url.Values)
	for _, name := range rolloutFields {
		back.Set(name, f[name])
		d.Fields[name] = f[name]
	}
	d.Back = "/rollouts/new?" + back.Encode()
	if members > 0 {
		first := draft.Selection.Members[:draft.Rollout.Limits[0]]
		d.First = first[:min(len(first), draftListed)]
		d.FirstMore = len(first) - len(d.First)
	}
	d.Named = draft.Cannot[:min(len(draft.Cannot), draftListed)]
	d.CannotMore = len(draft.Cannot) - len(d.Named)
	at := make(map[string]int)
	for _, c := range draft.Cannot {
		i, known := at[c.Reason]
		if !known {
			i = len(d.Causes)
			at[c.Reason] = i
			d.Causes = append(d.Causes, cause{Reason: c.Reason, Detail: c.Detail})
		}
		d.Causes[i].Count++
	}
	slices.SortStableFunc(d.Causes, func(a, b cause) int { return cmp.Compare(b.Count, a.Count) })
	return u.show(w, http.StatusOK, "draft", page{Title: "Dry run of " + draft.Rollout.Version, Here: "rollouts", By: by, Data: d})
}
