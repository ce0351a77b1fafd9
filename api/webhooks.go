package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Webhook is a receiver that is told of events.
type Webhook struct {
	ID        string    `json:"id"`
	URL       string    `json:"url"`
	Events    []string  `json:"events"` // empty = all
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	Waiting   int       `json:"waiting"` // events in its queue
	Dropped   int64     `json:"dropped"` // events that it will never get
	// SucceededAt and FailedAt are of its last tries; Failure says why the last one that failed did.
	SucceededAt time.Time `json:"succeeded_at,omitzero"`
	FailedAt    time.Time `json:"failed_at,omitzero"`
	Failure     string    `json:"failure,omitempty"`
	Failures    int       `json:"failures"` // tries since the last success
	RetryAt     time.Time `json:"retry_at,omitzero"`
}

// AddWebhookRequest makes a webhook.
type AddWebhookRequest struct {
	URL    string   `json:"url"`
	Events []string `json:"events,omitempty"` // rollout.halted, rollout.finished, device.rolled_back, release.quarantined; none = all
}

// AddWebhookResponse carries the secret that signs what is sent. It is shown this one time.
type AddWebhookResponse struct {
	ID     string `json:"id"`
	Secret string `json:"secret"` // whsec_ and base64 of 256 bits, as libraries for Standard Webhooks take it
}

// WebhookEvent is the body of what a webhook gets.
type WebhookEvent struct {
	Type      string           `json:"type"` // one of those of AddWebhookRequest, or test
	Timestamp time.Time        `json:"timestamp"`
	Sequence  int64            `json:"sequence"` // counts the events of this webhook; one that is missing was dropped
	Data      WebhookEventData `json:"data"`
}

// WebhookEventData is what an event says; what does not belong to its type is left out.
type WebhookEventData struct {
	RolloutID string `json:"rollout_id,omitempty"`
	State     string `json:"state,omitempty"` // of the rollout: halted, done, aborted
	Rule      string `json:"rule,omitempty"`  // that halted it
	Members   int    `json:"members,omitempty"`
	DeviceID  string `json:"device_id,omitempty"`
	CommandID string `json:"command_id,omitempty"`
	Reason    string `json:"reason,omitempty"` // why the device went back
	Project   string `json:"project,omitempty"`
	Chip      string `json:"chip,omitempty"`
	Version   string `json:"version,omitempty"` // of the release
	SHA256    string `json:"sha256,omitempty"`
	Text      string `json:"text,omitempty"` // the whole of it, for people
}

// Webhooks lists the webhooks, by id.
func (c *Client) Webhooks(ctx context.Context) ([]Webhook, error) {
	return all[Webhook](ctx, c, "/webhooks")
}

// AddWebhook makes a webhook and returns its secret.
func (c *Client) AddWebhook(ctx context.Context, in AddWebhookRequest) (out AddWebhookResponse, err error) {
	return out, c.call(ctx, http.MethodPost, "/webhooks", in, &out)
}

// RemoveWebhook deletes a webhook and what waits for it.
func (c *Client) RemoveWebhook(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/webhooks/"+url.PathEscape(id), nil, nil)
}

// TestWebhook sends a webhook an event that tells of nothing.
func (c *Client) TestWebhook(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/webhooks/"+url.PathEscape(id)+"/test", nil, nil)
}
