package fleet

import (
	"net/url"
	"slices"
	"strings"

	"bmsota/audit"
)

// PutWebhook tells who is to be told what. How deliveries go is in the row, and is no act of anybody.
func (t *audited) PutWebhook(h Webhook) error {
	old, there, err := before(t.Webhook(h.ID))
	if err != nil {
		return err
	}
	details := audit.Of("host", hostOf(h.URL), "events", eventNames(h.Events), "was", was(hostOf(old.URL), hostOf(h.URL)))
	switch {
	case !there:
		t.add(audit.Entry{What: audit.WebhookAdd, About: h.ID, Details: details})
	case old.URL != h.URL || old.Secret != h.Secret || !slices.Equal(old.Events, h.Events):
		t.add(audit.Entry{What: audit.WebhookChange, About: h.ID, Details: details})
	}
	return t.Tx.PutWebhook(h)
}

func (t *audited) DeleteWebhook(id string) error {
	old, there, err := before(t.Webhook(id))
	if err != nil {
		return err
	}
	if there {
		t.add(audit.Entry{What: audit.WebhookRemove, About: id, Details: audit.Of("host", hostOf(old.URL))})
	}
	return t.Tx.DeleteWebhook(id)
}

// hostOf is what may be said of an address: the path of many is a secret.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

func eventNames(events []NoticeType) string {
	if len(events) == 0 {
		return "all"
	}
	var names []string
	for _, e := range events {
		names = append(names, string(e))
	}
	return strings.Join(names, " ")
}

// PutDelivery tells nothing: what waits to be sent tells of what has its own row. The server that sends it is told.
func (t *audited) PutDelivery(d Delivery) error {
	inform(t, func(c *changed) { c.Notices = true })
	return t.Tx.PutDelivery(d)
}
