package store_test

import (
	"errors"
	"fmt"
	"testing"

	"bmsota/server/internal/fleet"
)

func attemptsHavePages(t *testing.T, s fleet.Store) {
	var of []fleet.Attempt // newest first
	update(t, s, func(tx fleet.Tx) error {
		of = nil
		errs := []error{tx.PutDevice(device("d1")), tx.PutDevice(device("d2")), tx.PutAttempt(attempt("other", "d2", 3, fleet.AttemptFailed))}
		for i := range 7 {
			a := attempt(fmt.Sprintf("a%d", i), "d1", int64(i/2), fleet.AttemptFailed) // two at a time
			of = append([]fleet.Attempt{a}, of...)
			errs = append(errs, tx.PutAttempt(a))
		}
		return all(errs...)
	})
	view(t, s, func(tx fleet.Tx) error {
		for i, a := range of {
			want := of[i+1:]
			if len(want) == 0 {
				want = nil
			}
			same(t, want)(tx.AttemptsBefore(a, 100))
			same(t, want[:min(len(want), 2)])(tx.AttemptsBefore(a, 2))
		}
		return nil
	})
}

func webhooksComeAndGo(t *testing.T, s fleet.Store) {
	full := fleet.Webhook{ID: "w-1", URL: "https://x.example/?a=b c", Events: []fleet.NoticeType{fleet.NoticeHalted, fleet.NoticeFinished}, Secret: "whsec_x",
		CreatedAt: at(1), CreatedBy: "anna", Seq: 1 << 40, Dropped: 3, SucceededAt: at(2), FailedAt: at(3), Failure: "x answered 500", Failures: 4, RetryAt: at(5)}
	bare := fleet.Webhook{ID: "w-0", URL: "http://y.example/"}
	d := func(webhook string, seq int64) fleet.Delivery {
		return fleet.Delivery{WebhookID: webhook, Seq: seq, ID: "msg_1", Type: fleet.NoticeTest, Body: `{"type":"test"}`, CreatedAt: at(seq)}
	}
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.PutWebhook(full), tx.PutWebhook(bare), tx.PutDelivery(d("w-1", 10)), tx.PutDelivery(d("w-1", 9)), tx.PutDelivery(d("w-1", 11)), tx.PutDelivery(d("w-0", 1)))
	})
	view(t, s, func(tx fleet.Tx) error {
		same(t, full)(tx.Webhook("w-1"))
		same(t, []fleet.Webhook{bare, full})(tx.Webhooks())
		same(t, []fleet.Delivery{d("w-1", 9), d("w-1", 10)})(tx.Deliveries("w-1", "", 2))
		same(t, []fleet.Delivery{d("w-1", 9)})(tx.Deliveries("w-1", "", 1))
		same(t, []fleet.Delivery{d("w-1", 9), d("w-1", 10)})(tx.Deliveries("w-1", fleet.NoticeTest, 2))
		same(t, []fleet.Delivery(nil))(tx.Deliveries("w-1", fleet.NoticeHalted, 2))
		same(t, 3)(tx.CountDeliveries("w-1"))
		same(t, 0)(tx.CountDeliveries("none"))
		if _, err := tx.Webhook("none"); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("a webhook that is not there: %v", err)
		}
		return nil
	})
	err := s.Update(t.Context(), func(tx fleet.Tx) error {
		return errors.Join(tx.PutDelivery(d("w-1", 12)), tx.DeleteDelivery("w-1", 9), tx.DeleteWebhook("w-0"), errGiveUp)
	})
	if !errors.Is(err, errGiveUp) {
		t.Errorf("given up: %v", err)
	}
	if err := s.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutDelivery(d("none", 1)) }); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a delivery without its webhook: %v", err)
	}
	view(t, s, func(tx fleet.Tx) error {
		same(t, 3)(tx.CountDeliveries("w-1"))
		same(t, 1)(tx.CountDeliveries("w-0"))
		return nil
	})
	full.Events, full.Seq, full.Failures = nil, 12, 0
	update(t, s, func(tx fleet.Tx) error {
		return all(tx.DeleteDelivery("w-1", 9), tx.DeleteDelivery("w-1", 99), tx.PutWebhook(full), tx.DeleteWebhook("w-0"), tx.DeleteWebhook("none"))
	})
	view(t, s, func(tx fleet.Tx) error {
		same(t, []fleet.Webhook{full})(tx.Webhooks())
		same(t, 0)(tx.CountDeliveries("w-0"))
		same(t, []fleet.Delivery{d("w-1", 10), d("w-1", 11)})(tx.Deliveries("w-1", "", 5))
		return nil
	})
}
