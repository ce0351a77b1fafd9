package store

import (
	"strings"

	"bmsota/server/internal/fleet"
)

const (
	webhookColumns  = `id, url, events, secret, created_at, created_by, seq, dropped, succeeded_at, failed_at, failure, failures, retry_at`
	deliveryColumns = `webhook_id, seq, id, type, body, created_at`
)

func scanWebhook(s scanner) (h fleet.Webhook, err error) {
	var events string
	err = s.Scan(&h.ID, &h.URL, &events, &h.Secret, instant{&h.CreatedAt}, &h.CreatedBy, &h.Seq, &h.Dropped, instant{&h.SucceededAt},
		instant{&h.FailedAt}, &h.Failure, &h.Failures, instant{&h.RetryAt})
	for _, e := range strings.Fields(events) {
		h.Events = append(h.Events, fleet.NoticeType(e))
	}
	return h, err
}

func scanDelivery(s scanner) (d fleet.Delivery, err error) {
	err = s.Scan(&d.WebhookID, &d.Seq, &d.ID, &d.Type, &d.Body, instant{&d.CreatedAt})
	return d, err
}

func (t *sqlTx) Webhook(id string) (fleet.Webhook, error) {
	return oneOf(t, scanWebhook, `SELECT `+webhookColumns+` FROM webhooks WHERE id = $1`, id)
}

func (t *sqlTx) Webhooks() ([]fleet.Webhook, error) {
	return manyOf(t, scanWebhook, `SELECT `+webhookColumns+` FROM webhooks ORDER BY id`)
}

func (t *sqlTx) PutWebhook(h fleet.Webhook) error {
	events := make([]string, len(h.Events))
	for i, e := range h.Events {
		events[i] = string(e)
	}
	return t.exec(`INSERT INTO webhooks (`+webhookColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (id) DO UPDATE SET url = excluded.url, events = excluded.events, secret = excluded.secret, created_at = excluded.created_at,
 created_by = excluded.created_by, seq = excluded.seq, dropped = excluded.dropped, succeeded_at = excluded.succeeded_at,
 failed_at = excluded.failed_at, failure = excluded.failure, failures = excluded.failures, retry_at = excluded.retry_at`,
		h.ID, h.URL, strings.Join(events, " "), string(h.Secret), millis(h.CreatedAt), h.CreatedBy, h.Seq, h.Dropped, millis(h.SucceededAt),
		millis(h.FailedAt), h.Failure, int64(h.Failures), millis(h.RetryAt))
}

func (t *sqlTx) DeleteWebhook(id string) error {
	if err := t.exec(`DELETE FROM webhook_deliveries WHERE webhook_id = $1`, id); err != nil {
		return err
	}
	return t.exec(`DELETE FROM webhooks WHERE id = $1`, id)
}

func (t *sqlTx) Deliveries(webhook string, only fleet.NoticeType, limit int) ([]fleet.Delivery, error) {
	return manyOf(t, scanDelivery, `SELECT `+deliveryColumns+` FROM webhook_deliveries WHERE webhook_id = $1 AND ($2 = '' OR type = $2) ORDER BY seq LIMIT $3`,
		webhook, string(only), int64(limit))
}

func (t *sqlTx) CountDeliveries(webhook string) (int, error) {
	return oneOf(t, scanCount, `SELECT COUNT(*) FROM webhook_deliveries WHERE webhook_id = $1`, webhook)
}

func (t *sqlTx) PutDelivery(d fleet.Delivery) error {
	return t.exec(`INSERT INTO webhook_deliveries (`+deliveryColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (webhook_id, seq) DO UPDATE SET id = excluded.id, type = excluded.type, body = excluded.body, created_at = excluded.created_at`,
		d.WebhookID, d.Seq, d.ID, string(d.Type), d.Body, millis(d.CreatedAt))
}

func (t *sqlTx) DeleteDelivery(webhook string, seq int64) error {
	return t.exec(`DELETE FROM webhook_deliveries WHERE webhook_id = $1 AND seq = $2`, webhook, seq)
}
