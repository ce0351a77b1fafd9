package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

func addWebhook(t *testing.T, f *fleet.Fleet, address string, events ...fleet.NoticeType) fleet.Webhook {
	t.Helper()
	h, err := f.AddWebhook(t.Context(), boss, address, events)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// heard delivers everything that waits for a webhook and is what its receiver got, in order.
func heard(t *testing.T, f *fleet.Fleet, webhook string) (list []fleet.Delivery) {
	t.Helper()
	for {
		due, err := f.Deliverable(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(due, func(d fleet.Due) bool { return d.Webhook.ID == webhook })
		if at < 0 {
			return list
		}
		list = append(list, due[at].Delivery)
		if err := f.Delivered(t.Context(), due[at].Delivery); err != nil {
			t.Fatal(err)
		}
	}
}

func types(list []fleet.Delivery) (out []fleet.NoticeType) {
	for _, d := range list {
		out = append(out, d.Type)
	}
	return out
}

// watchedStore looks at what is committed each time that something is.
type watchedStore struct {
	fleet.Store
	committed func()
}

func (s *watchedStore) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	err := s.Store.Update(ctx, fn)
	if err == nil && s.committed != nil {
		s.committed()
	}
	return err
}

// After every commit, wherever the process might end then, the queue holds a notice for each thing that has happened by
// that commit, and for nothing else.
func TestNoticeIsCommittedWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 12, func(i int) fleet.Fate {
			if i%2 == 0 {
				return fleet.FateCrash
			}
			return fleet.FateGood
		})
		defer y.stop()
		all := addWebhook(t, y.Fleet, "https://all.example/")
		halts := addWebhook(t, y.Fleet, "https://halts.example/", fleet.NoticeHalted)
		memory := y.store.Store
		watched := &watchedStore{Store: memory}
		y.store.Store = watched
		commits, most := 0, int64(0)
		watched.committed = func() {
			commits++
			var happened, queued int64
			err := memory.View(context.Background(), func(tx fleet.Tx) error {
				tally, e1 := tx.ReleaseTally(y.good.SHA256)
				rollouts, e2 := tx.Rollouts()
				quarantines, e3 := tx.Quarantines()
				h, e4 := tx.Webhook(all.ID)
				happened = int64(tally[fleet.AttemptRolledBack] + len(quarantines))
				for _, r := range rollouts {
					if r.Halt != nil {
						happened++
					}
					if r.State.Ended() {
						happened++
					}
				}
				queued = h.Seq
				return errors.Join(e1, e2, e3, e4)
			})
			if most = max(most, queued); err != nil || happened != queued {
				t.Errorf("after commit %d %d things have happened and %d are queued (%v)", commits, happened, queued, err)
			}
		}
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}, Stop: fleet.Stop{Failed: limit(3)}})
		halted := y.pass(r.ID, time.Hour, fleet.RolloutHalted)
		if _, err := y.Abort(t.Context(), anna, r.ID); err != nil {
			t.Fatal(err)
		}
		if most < 7 {
			t.Errorf("only %d things have happened", most)
		}
		list := heard(t, y.Fleet, all.ID)
		got := types(list)
		if n := len(got); got[n-1] != fleet.NoticeFinished || !slices.Contains(got, fleet.NoticeHalted) || !slices.Contains(got, fleet.NoticeQuarantined) {
			t.Errorf("heard %v", got)
		}
		for i, d := range list {
			var body struct {
				Type     fleet.NoticeType
				Sequence int64
				At       time.Time `json:"timestamp"`
				Data     fleet.NoticeFacts
			}
			if err := json.Unmarshal([]byte(d.Body), &body); err != nil || body.Type != d.Type || body.Sequence != int64(i+1) || body.At.IsZero() || body.Data.RolloutID != r.ID ||
				body.Data.SHA256 != y.good.SHA256 || body.Data.Text == "" || (body.Data.DeviceID != "") != (d.Type == fleet.NoticeRolledBack) {
				t.Errorf("notice %d of %s: %s (%v)", i, d.Type, d.Body, err)
			}
			if d.Type == fleet.NoticeHalted && (body.Data.Rule != halted.Halt.Rule || body.Data.Text != halted.Halt.Text || body.Data.State != fleet.RolloutHalted) {
				t.Errorf("halt: %s, want %+v", d.Body, halted.Halt)
			}
		}
		if got := types(heard(t, y.Fleet, halts.ID)); !slices.Equal(got, []fleet.NoticeType{fleet.NoticeHalted}) {
			t.Errorf("who asked for halts heard %v", got)
		}
	})
}

func TestEndOfARolloutAndRollbackWithoutAnAttemptAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, everyone(fleet.FateGood))
		defer y.stop()
		h := addWebhook(t, y.Fleet, "https://x.example/")
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}})
		y.pass(r.ID, time.Hour, fleet.RolloutDone)
		// Of the original tool's command to all nobody knows an attempt. What is heard twice is told once.
		for range 2 {
			y.say("d01", protocol.PhaseRolledBack, "", func(s *protocol.Status) { s.Reason, s.FailedSHA256 = protocol.ReasonCrash, strings.Repeat("ab", 32) })
		}
		list := heard(t, y.Fleet, h.ID)
		if got := types(list); !slices.Equal(got, []fleet.NoticeType{fleet.NoticeFinished, fleet.NoticeRolledBack}) {
			t.Fatalf("heard %v", got)
		}
		if !strings.Contains(list[0].Body, `"state":"done"`) || !strings.Contains(list[1].Body, `"device_id":"d01"`) || !strings.Contains(list[1].Body, `"reason":"crash"`) {
			t.Errorf("%s\n%s", list[0].Body, list[1].Body)
		}
	})
}

// A receiver that is dead for good costs a bounded queue, whose oldest go first, and a count of what went.
func TestQueueOfADeadReceiverIsBounded(t *testing.T) {
	f := newFleet(t, fleet.Config{})
	h := addWebhook(t, f, "https://dead.example/")
	const events = 10_000
	for range events {
		if err := f.TestWebhook(t.Context(), boss, h.ID); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.Webhooks(t.Context(), boss)
	if err != nil || len(list) != 1 || list[0].Waiting != 1000 || list[0].Dropped != events-1000 {
		t.Fatalf("%+v (%v)", list, err)
	}
	for i, d := range heard(t, f, h.ID) {
		if want := int64(events - 1000 + 1 + i); d.Seq != want || !strings.Contains(d.Body, fmt.Sprintf(`"sequence":%d,`, want)) {
			t.Fatalf("notice %d is number %d, want %d: %s", i, d.Seq, want, d.Body)
		}
	}
}

// A device that says over and over that it has gone back pushes out its own notices, not what else there is to tell.
func TestADeviceCannotSilenceTheEndOfARollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 1, everyone(fleet.FateGood))
		defer y.stop()
		h := addWebhook(t, y.Fleet, "https://away.example/")
		r := y.create(fleet.Policy{Waves: []fleet.Wave{{Percent: 100}}})
		y.pass(r.ID, time.Hour, fleet.RolloutDone)
		for range 1100 {
			y.say("d00", protocol.PhaseRolledBack, "", func(s *protocol.Status) { s.Reason, s.FailedSHA256 = protocol.ReasonCrash, strings.Repeat("ab", 32) })
			y.say("d00", protocol.PhaseIdle, "")
		}
		list := heard(t, y.Fleet, h.ID)
		if len(list) != 1000 || list[0].Type != fleet.NoticeFinished || list[999].Seq != 1101 {
			t.Errorf("%d notices, the first %+v, the last %d", len(list), list[0], list[len(list)-1].Seq)
		}
	})
}

func TestNoticeIsTriedEverMoreSeldomAndGivenUpAfterThreeDays(t *testing.T) {
	clock := newClock()
	f := newFleet(t, fleet.Config{Now: clock.Now})
	h := addWebhook(t, f, "https://dead.example/")
	for range 2 {
		if err := f.TestWebhook(t.Context(), boss, h.ID); err != nil {
			t.Fatal(err)
		}
	}
	began, wait, tries := clock.Now(), time.Duration(0), 0
	for {
		due, err := f.Deliverable(t.Context())
		if err != nil || len(due) != 1 {
			t.Fatalf("%v (%v)", due, err)
		}
		if due[0].Delivery.Seq == 2 {
			break
		}
		if err := f.NotDelivered(t.Context(), due[0].Delivery, strings.Repeat("no ", 500)); err != nil {
			t.Fatal(err)
		}
		if out, err := f.Outbox(t.Context()); err != nil || out.Failing != 1 || out.Waiting == 0 {
			t.Errorf("%+v (%v)", out, err)
		}
		list, err := f.Webhooks(t.Context(), boss)
		if err != nil {
			t.Fatal(err)
		}
		w := list[0]
		if tries++; w.Failures != tries || len(w.Failure) > 200 || !w.FailedAt.Equal(clock.Now()) {
			t.Fatalf("after try %d: %+v", tries, w)
		}
		next := w.RetryAt.Sub(clock.Now())
		if low, high := min(5*time.Second<<min(tries-1, 20), time.Hour)*4/5, min(5*time.Second<<min(tries-1, 20), time.Hour)*6/5; next < low || next > high+time.Millisecond {
			t.Fatalf("try %d comes %v after the one before, want %v to %v", tries+1, next, low, high)
		}
		wait = next
		clock.add(wait)
	}
	if lived := clock.Now().Sub(began) - wait; lived < 72*time.Hour || lived > 74*time.Hour {
		t.Errorf("it was given up after %v", lived)
	}
	list, err := f.Webhooks(t.Context(), boss)
	if err != nil || list[0].Dropped != 1 || list[0].Waiting != 1 {
		t.Errorf("%+v (%v)", list, err)
	}
}

func TestWebhooksAreForAdministratorsAndTheirSecretIsShownOnce(t *testing.T) {
	f := newFleet(t, fleet.Config{})
	h := addWebhook(t, f, "https://x.example/", fleet.NoticeHalted)
	if !strings.HasPrefix(string(h.Secret), "whsec_") || len(h.Secret) != len("whsec_")+44 {
		t.Errorf("the secret has %d letters", len(h.Secret))
	}
	for _, by := range []fleet.Identity{{}, {Name: "v", Role: fleet.RoleViewer}, anna, {Name: "d1", Role: fleet.RoleDevice}} {
		_, e1 := f.AddWebhook(t.Context(), by, "https://y.example/", nil)
		_, e2 := f.Webhooks(t.Context(), by)
		for _, err := range []error{e1, e2, f.RemoveWebhook(t.Context(), by, h.ID), f.TestWebhook(t.Context(), by, h.ID)} {
			if !errors.Is(err, fleet.ErrDenied) {
				t.Errorf("%+v: %v, want ErrDenied", by, err)
			}
		}
	}
	list, err := f.Webhooks(t.Context(), boss)
	if err != nil || len(list) != 1 || list[0].Secret != "" {
		t.Errorf("%d webhooks, a secret of %d letters (%v)", len(list), len(list[0].Secret), err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", h, h, h, h.Secret); strings.Contains(text, string(h.Secret)) {
		t.Errorf("the secret prints itself: %s", text)
	}
	for _, bad := range []struct {
		address string
		events  []fleet.NoticeType
		want    error
	}{
		{"https://x.example/", nil, fleet.ErrConflict}, {"", nil, fleet.ErrInvalid}, {"x.example", nil, fleet.ErrInvalid}, {"ftp://x.example/", nil, fleet.ErrInvalid},
		{"https:///path", nil, fleet.ErrInvalid}, {"https://a:b@x.example/", nil, fleet.ErrInvalid}, {"https://x.example/#f", nil, fleet.ErrInvalid},
		{"https://x.example/" + strings.Repeat("x", 2048), nil, fleet.ErrInvalid}, {"https://y.example\n/", nil, fleet.ErrInvalid},
		{"https://y.example/", []fleet.NoticeType{"rollout.began"}, fleet.ErrInvalid}, {"https://y.example/", []fleet.NoticeType{"test"}, fleet.ErrInvalid},
		{"https://y.example/", []fleet.NoticeType{fleet.NoticeHalted, fleet.NoticeHalted}, fleet.ErrInvalid},
	} {
		if _, err := f.AddWebhook(t.Context(), boss, bad.address, bad.events); !errors.Is(err, bad.want) {
			t.Errorf("%.50q %v: %v, want %v", bad.address, bad.events, err, bad.want)
		}
	}
	for i := range 19 {
		addWebhook(t, f, fmt.Sprintf("https://n%d.example/", i))
	}
	if _, err := f.AddWebhook(t.Context(), boss, "https://more.example/", nil); !errors.Is(err, fleet.ErrRefused) {
		t.Errorf("the twenty-first webhook: %v", err)
	}
	if err := f.TestWebhook(t.Context(), boss, h.ID); err != nil {
		t.Fatal(err)
	}
	due, err := f.Deliverable(t.Context())
	if err != nil || len(due) != 1 {
		t.Fatalf("%v (%v)", due, err)
	}
	if err := f.RemoveWebhook(t.Context(), boss, h.ID); err != nil {
		t.Fatal(err)
	}
	// A try that was under way ends in nothing.
	if err := errors.Join(f.Delivered(t.Context(), due[0].Delivery), f.NotDelivered(t.Context(), due[0].Delivery, "x")); err != nil {
		t.Error(err)
	}
	if err := f.RemoveWebhook(t.Context(), boss, h.ID); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}
