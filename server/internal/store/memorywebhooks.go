package store

import (
	"cmp"
	"slices"

	"bmsota/server/internal/fleet"
)

// deliveryKey is the webhook and the number of a delivery.
type deliveryKey struct {
	webhook string
	seq     int64
}

func (t *memoryTx) Webhook(id string) (fleet.Webhook, error) {
	h, err := get(t.m.webhooks, id)
	h.Events = slices.Clone(h.Events)
	return h, err
}

func (t *memoryTx) Webhooks() ([]fleet.Webhook, error) {
	list := sorted(t.m.webhooks, func(a, b fleet.Webhook) int { return cmp.Compare(a.ID, b.ID) })
	for i := range list {
		list[i].Events = slices.Clone(list[i].Events)
	}
	return list, nil
}

func (t *memoryTx) PutWebhook(h fleet.Webhook) error {
	if err := t.may(); err != nil {
		return err
	}
	if h.Events = slices.Clone(h.Events); len(h.Events) == 0 {
		h.Events = nil
	}
	trim(&h.CreatedAt, &h.SucceededAt, &h.FailedAt, &h.RetryAt)
	set(t, t.m.webhooks, h.ID, h)
	return nil
}

func (t *memoryTx) DeleteWebhook(id string) error {
	for key := range t.m.deliveries {
		if key.webhook == id {
			if err := drop(t, t.m.deliveries, key); err != nil {
				return err
			}
		}
	}
	return drop(t, t.m.webhooks, id)
}

func (t *memoryTx) Deliveries(webhook string, only fleet.NoticeType, limit int) ([]fleet.Delivery, error) {
	var list []fleet.Delivery
	for key, d := range t.m.deliveries {
		if key.webhook == webhook && (only == "" || d.Type == only) {
			list = append(list, d)
		}
	}
	oldest := func(a, b fleet.Delivery) int { return cmp.Compare(a.Seq, b.Seq) }
	if limit == 1 && len(list) > 0 {
		return []fleet.Delivery{slices.MinFunc(list, oldest)}, nil // as asked for with every notice
	}
	slices.SortFunc(list, oldest)
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) CountDeliveries(webhook string) (n int, err error) {
	for key := range t.m.deliveries {
		if key.webhook == webhook {
			n++
		}
	}
	return n, nil
}

func (t *memoryTx) PutDelivery(d fleet.Delivery) error {
	if err := t.may(); err != nil {
		return err
	}
	if _, ok := t.m.webhooks[d.WebhookID]; !ok {
		return t.conflict("a delivery without its webhook")
	}
	trim(&d.CreatedAt)
	set(t, t.m.deliveries, deliveryKey{d.WebhookID, d.Seq}, d)
	return nil
}

func (t *memoryTx) DeleteDelivery(webhook string, seq int64) error {
	return drop(t, t.m.deliveries, deliveryKey{webhook, seq})
}
