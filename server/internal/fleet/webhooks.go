package fleet

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// Webhook is a receiver of notices outside.
type Webhook struct {
	ID        string
	URL       string
	Events    []NoticeType // that it wants; nil = all
	Secret    Secret       // that signs what is sent to it
	CreatedAt time.Time
	CreatedBy string

	Seq         int64 // of the last notice that was queued for it
	Dropped     int64 // notices that it will never get
	SucceededAt time.Time
	FailedAt    time.Time
	Failure     string    // of the last try that failed
	Failures    int       // tries that have failed since the last success
	RetryAt     time.Time // not before; zero = at once
}

// Secret is a key that must be kept as it is, because it signs. It shows itself to nobody who prints it by mistake.
type Secret string

// String implements fmt.Stringer.
func (Secret) String() string { return "(secret)" }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return "(secret)" }

// WebhookTx is the part of Tx that keeps webhooks and what waits for them. Deleting what is not there is no error.
type WebhookTx interface {
	Webhook(id string) (Webhook, error)
	Webhooks() ([]Webhook, error) // by id
	PutWebhook(Webhook) error
	DeleteWebhook(id string) error // and what waits for it

	Deliveries(webhook string, only NoticeType, limit int) ([]Delivery, error) // oldest first; only "" = all
	CountDeliveries(webhook string) (int, error)
	PutDelivery(Delivery) error
	DeleteDelivery(webhook string, seq int64) error
}

const (
	maxWebhooks   = 20
	maxWebhookURL = 2048
	maxFailure    = 200 // bytes of Webhook.Failure

	// secretPrefix marks the secrets of Standard Webhooks.
	secretPrefix = "whsec_"

	// firstRetry doubles with every failure up to maxRetryWait; a notice is given up giveUpAfter it happened.
	firstRetry   = 5 * time.Second
	maxRetryWait = time.Hour
	giveUpAfter  = 72 * time.Hour
)

func (h Webhook) wants(t NoticeType) bool { return len(h.Events) == 0 || slices.Contains(h.Events, t) }

func checkWebhook(address string, events []NoticeType) error {
	u, err := url.Parse(address)
	switch {
	case len(address) > maxWebhookURL:
		return invalid("the address has %d bytes, the limit is %d", len(address), maxWebhookURL)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return invalid("%.100q is not an address such as https://host/path", address)
	case u.User != nil || u.Fragment != "":
		return invalid("the address holds a login or a fragment")
	}
	for i, e := range events {
		if !slices.Contains(NoticeTypes(), e) {
			return invalid("event %.64q is none of %v", string(e), NoticeTypes())
		}
		if slices.Contains(events[:i], e) {
			return invalid("event %s is named twice", e)
		}
	}
	return nil
}

// AddWebhook makes a webhook for some events, or for all where none are named. Its secret is in the answer and in no
// later one. A second webhook to one address is ErrConflict, so a request that is repeated makes one.
// Errors of the webhooks: ErrDenied, ErrInvalid, ErrConflict, ErrNotFound, ErrRefused (too many), ErrStorage.
func (f *Fleet) AddWebhook(ctx context.Context, by Identity, address string, events []NoticeType) (Webhook, error) {
	if err := f.may(by, RightAdminister); err != nil {
		return Webhook{}, err
	}
	if err := checkWebhook(address, events); err != nil {
		return Webhook{}, err
	}
	var id [4]byte
	var secret [32]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	rand.Read(secret[:])
	h := Webhook{ID: "w-" + hex.EncodeToString(id[:]), URL: address, Events: events, CreatedAt: f.cfg.Now(), CreatedBy: by.Name,
		Secret: Secret(secretPrefix + base64.StdEncoding.EncodeToString(secret[:]))}
	err := f.update(ctx, by, func(tx Tx) error {
		all, err := tx.Webhooks()
		if err != nil {
			return err
		}
		if at := slices.IndexFunc(all, func(o Webhook) bool { return o.URL == address }); at >= 0 {
			return fmt.Errorf("%w: webhook %s goes to this address already", ErrConflict, all[at].ID)
		}
		if len(all) >= maxWebhooks {
			return fmt.Errorf("%w: there are %d webhooks, which is the limit", ErrRefused, len(all))
		}
		return tx.PutWebhook(h)
	})
	if err != nil {
		return Webhook{}, err
	}
	f.cfg.Log.Info("webhook added", "webhook", h.ID, "by", by.Name)
	return h, nil
}

// WebhookView is a webhook, without its secret, and how much waits for it.
type WebhookView struct {
	Webhook
	Waiting int
}

// Webhooks are all webhooks, by id, without their secrets.
func (f *Fleet) Webhooks(ctx context.Context, by Identity) ([]WebhookView, error) {
	if err := f.may(by, RightAdminister); err != nil {
		return nil, err
	}
	var list []WebhookView
	err := f.eachWebhook(ctx, func(tx Tx, h Webhook) error {
		waiting, err := tx.CountDeliveries(h.ID)
		h.Secret = ""
		list = append(list, WebhookView{h, waiting})
		return err
	})
	return list, err
}

// eachWebhook looks at every webhook, by id, on one state of the store.
func (f *Fleet) eachWebhook(ctx context.Context, look func(Tx, Webhook) error) error {
	return f.cfg.Store.View(ctx, func(tx Tx) error {
		all, err := tx.Webhooks()
		if err != nil {
			return err
		}
		for _, h := range all {
			if err := look(tx, h); err != nil {
				return err
			}
		}
		return nil
	})
}

// Outbox is how deliveries to the webhooks go, of all of them together.
type Outbox struct {
	Waiting int // notices
	Failing int // webhooks whose last try failed
}

// Outbox sums up the webhooks, for whoever watches the server.
func (f *Fleet) Outbox(ctx context.Context) (Outbox, error) {
	var out Outbox
	err := f.eachWebhook(ctx, func(tx Tx, h Webhook) error {
		waiting, err := tx.CountDeliveries(h.ID)
		out.Waiting += waiting
		if h.Failures > 0 {
			out.Failing++
		}
		return err
	})
	return out, err
}

// RemoveWebhook deletes a webhook and what waits for it.
func (f *Fleet) RemoveWebhook(ctx context.Context, by Identity, id string) error {
	err := f.withWebhook(ctx, by, id, func(tx Tx, _ Webhook) error { return tx.DeleteWebhook(id) })
	if err == nil {
		f.cfg.Log.Info("webhook removed", "webhook", id, "by", by.Name)
	}
	return err
}

// TestWebhook queues a notice that tells of nothing, and has the webhook tried at once whatever went before.
func (f *Fleet) TestWebhook(ctx context.Context, by Identity, id string) error {
	now := f.cfg.Now()
	err := f.withWebhook(ctx, by, id, func(tx Tx, h Webhook) error {
		h.RetryAt = time.Time{}
		return f.queueFor(tx, h, now, []Notice{{NoticeTest, NoticeFacts{Text: "a test, asked for by " + by.Name}}})
	})
	if err == nil {
		f.ring()
	}
	return err
}

func (f *Fleet) withWebhook(ctx context.Context, by Identity, id string, do func(tx Tx, h Webhook) error) error {
	if err := f.may(by, RightAdminister); err != nil {
		return err
	}
	return f.update(ctx, by, func(tx Tx) error {
		h, err := tx.Webhook(id)
		if err != nil {
			return fmt.Errorf("webhook %.64q: %w", id, err)
		}
		return do(tx, h)
	})
}

// Due is the oldest notice that waits for a webhook, and not before when it may be tried.
type Due struct {
	Webhook  Webhook // with its secret
	Delivery Delivery
}

// Deliverable is the oldest notice of every webhook that has one. A webhook gets them in order: the next comes when this
// one is delivered or given up. Of several servers the planner alone has any.
func (f *Fleet) Deliverable(ctx context.Context) ([]Due, error) {
	var list []Due
	if !f.plans() {
		return nil, nil
	}
	err := f.eachWebhook(ctx, func(tx Tx, h Webhook) error {
		oldest, err := tx.Deliveries(h.ID, "", 1)
		for _, d := range oldest {
			list = append(list, Due{h, d})
		}
		return err
	})
	return list, err
}

// Delivered takes a notice out of its queue, because its receiver has it. Until it returns nil the notice may be sent
// again, with the same id.
func (f *Fleet) Delivered(ctx context.Context, d Delivery) error {
	return f.tried(ctx, d, func(tx Tx, h *Webhook, now time.Time) error {
		h.SucceededAt, h.Failures, h.RetryAt = now, 0, time.Time{}
		return tx.DeleteDelivery(d.WebhookID, d.Seq)
	})
}

// NotDelivered notes that a try has failed, and why. A notice that is too old is given up.
func (f *Fleet) NotDelivered(ctx context.Context, d Delivery, why string) error {
	return f.tried(ctx, d, func(tx Tx, h *Webhook, now time.Time) error {
		h.FailedAt, h.Failure = now, why[:min(len(why), maxFailure)]
		h.Failures++
		h.RetryAt = now.Add(retryWait(h.Failures, d.ID))
		if now.Sub(d.CreatedAt) < giveUpAfter {
			return nil
		}
		h.Dropped++
		f.cfg.Log.Warn("a notice is given up", "webhook", h.ID, "type", d.Type, "dropped", h.Dropped)
		return tx.DeleteDelivery(d.WebhookID, d.Seq)
	})
}

func (f *Fleet) tried(ctx context.Context, d Delivery, note func(tx Tx, h *Webhook, now time.Time) error) error {
	now := f.cfg.Now()
	err := f.planned(ctx, func(tx Tx) error {
		h, err := tx.Webhook(d.WebhookID)
		if err != nil {
			return err
		}
		if err := note(tx, &h, now); err != nil {
			return err
		}
		return tx.PutWebhook(h)
	})
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNotPlanner) {
		return nil // removed meanwhile, and its queue with it; or another server sends it again, with the same id
	}
	return err
}

// retryWait is how long after its n-th failure a webhook is left alone: twice as long each time, and up to a fifth more
// or less, so that many servers do not call a receiver that has come back in one moment.
func retryWait(n int, notice string) time.Duration {
	wait := min(firstRetry<<min(n-1, 20), maxRetryWait)
	spread := wait / 5
	return wait - spread + time.Duration(order(fmt.Sprint(n), notice)%uint64(2*spread+1))
}
