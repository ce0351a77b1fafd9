package web

import (
	"fmt"
	"net/http"

	"bmsota/server/internal/fleet"
)

// noticeTexts say what the events are, for the form that chooses them.
var noticeTexts = map[fleet.NoticeType]string{
	fleet.NoticeHalted: "a rollout halts by a rule", fleet.NoticeFinished: "a rollout is done or aborted",
	fleet.NoticeRolledBack: "a device goes back to the image it had", fleet.NoticeQuarantined: "a release is quarantined",
}

type noticeChoice struct {
	Type   fleet.NoticeType
	Text   string
	Chosen bool
}

type webhooksData struct {
	Hooks   []fleet.WebhookView
	Choices []noticeChoice
	Address string // what a form that was refused held
	// New and Secret are of a webhook that has just been made: shown here, and never again.
	New    string
	Secret string
}

func (u *ui) routeWebhooks() {
	u.route(http.MethodGet, "/webhooks", fleet.RightAdminister, func(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
		return u.showWebhooks(w, r, by, http.StatusOK, webhooksData{}, nil, nil)
	})
	post := func(pattern string, v view) { u.route(http.MethodPost, pattern, fleet.RightAdminister, v) }
	post("/webhooks", u.addWebhook)
	post("/webhooks/{id}/test", u.testWebhook)
	post("/webhooks/{id}/remove", u.removeWebhook)
}

// showWebhooks is the page of who is told of events, with the reason why a form on it was refused. chosen are the events that are
// ticked; nil is all of them.
func (u *ui) showWebhooks(w http.ResponseWriter, r *http.Request, by fleet.Identity, status int, d webhooksData, chosen map[fleet.NoticeType]bool, refusal error) error {
	var err error
	if d.Hooks, err = u.h.cfg.Fleet.Webhooks(r.Context(), by); err != nil {
		return err
	}
	for _, t := range fleet.NoticeTypes() {
		d.Choices = append(d.Choices, noticeChoice{t, noticeTexts[t], chosen == nil || chosen[t]})
	}
	p := page{Title: "Webhooks", Here: "webhooks", By: by, Done: doneTexts[r.URL.Query().Get("done")], Data: d}
	if refusal != nil {
		_ = busy(w, refusal)
		p.Done, p.Fault = "", sentence(refusal)
	}
	return u.show(w, status, "webhooks", p)
}

// refuseWebhook shows the page with why something was not done; a fault of the server is a page of its own.
func (u *ui) refuseWebhook(w http.ResponseWriter, r *http.Request, by fleet.Identity, d webhooksData, chosen map[fleet.NoticeType]bool, err error) error {
	if p := problemOf(err); p.Status < 500 {
		return u.showWebhooks(w, r, by, p.Status, d, chosen, err)
	}
	return err
}

// addWebhook answers with the secret instead of sending the reader on, as addToken does. All events ticked are all there will ever
// be, as without --events on the command line.
func (u *ui) addWebhook(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	fields := []string{"url"}
	for _, t := range fleet.NoticeTypes() {
		fields = append(fields, string(t))
	}
	f, err := form(r, fields...)
	if err != nil {
		return err
	}
	var events []fleet.NoticeType
	chosen := make(map[fleet.NoticeType]bool)
	for _, t := range fleet.NoticeTypes() {
		if chosen[t] = f[string(t)] == "yes"; chosen[t] {
			events = append(events, t)
		}
	}
	switch len(events) {
	case 0:
		err = fmt.Errorf("%w: tick at least one event", fleet.ErrInvalid)
	case len(chosen):
		events = nil
	}
	d := webhooksData{Address: f["url"]}
	if err == nil {
		var made fleet.Webhook
		made, err = u.h.cfg.Fleet.AddWebhook(r.Context(), by, f["url"], events)
		d.New, d.Secret = made.ID, string(made.Secret)
	}
	if err != nil {
		return u.refuseWebhook(w, r, by, d, chosen, err)
	}
	d.Address = ""
	return u.showWebhooks(w, r, by, http.StatusOK, d, nil, nil)
}

func (u *ui) testWebhook(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	if _, err := form(r); err != nil {
		return err
	}
	if err := u.h.cfg.Fleet.TestWebhook(r.Context(), by, r.PathValue("id")); err != nil {
		return u.refuseWebhook(w, r, by, webhooksData{}, nil, err)
	}
	return done(w, r, "/webhooks", "webhook-test")
}

// removeWebhook asks, and then deletes a webhook.
func (u *ui) removeWebhook(w http.ResponseWriter, r *http.Request, by fleet.Identity) error {
	f, err := form(r, "confirmed")
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	if f["confirmed"] != "yes" {
		return u.confirm(w, by, "webhooks", confirmation{
			Question: "Remove the webhook " + id + "?", Button: "Remove", CLI: "bmsota webhooks remove " + id,
			Means:  []string{"Its receiver is told of nothing more.", "What waits for it is deleted."},
			Action: "/webhooks/" + id + "/remove", Fields: map[string]string{}, Back: "/webhooks",
		})
	}
	if err := u.h.cfg.Fleet.RemoveWebhook(r.Context(), by, id); err != nil {
		return u.refuseWebhook(w, r, by, webhooksData{}, nil, err)
	}
	return done(w, r, "/webhooks", "webhook-gone")
}
