package fleet

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"bmsota/protocol"
)

// NoticeType is what a notice tells of.
type NoticeType string

// The types. They are part of what receivers are promised (docs/api.md).
const (
	NoticeHalted      NoticeType = "rollout.halted"      // by a rule
	NoticeFinished    NoticeType = "rollout.finished"    // done or aborted
	NoticeRolledBack  NoticeType = "device.rolled_back"  // a device has gone back by itself
	NoticeQuarantined NoticeType = "release.quarantined" // offered to nobody any more
	NoticeTest        NoticeType = "test"                // asked for by an operator
)

// NoticeTypes lists those that a webhook can choose from.
func NoticeTypes() []NoticeType {
	return []NoticeType{NoticeHalted, NoticeFinished, NoticeRolledBack, NoticeQuarantined}
}

// Notice is something that happened and that receivers outside want to know.
type Notice struct {
	Type NoticeType
	NoticeFacts
}

// NoticeFacts are what a notice says; what does not belong to its type is left out.
type NoticeFacts struct {
	RolloutID string          `json:"rollout_id,omitempty"`
	State     RolloutState    `json:"state,omitempty"` // of the rollout
	Rule      string          `json:"rule,omitempty"`  // that halted it
	Members   int             `json:"members,omitempty"`
	DeviceID  string          `json:"device_id,omitempty"`
	CommandID string          `json:"command_id,omitempty"`
	Reason    protocol.Reason `json:"reason,omitempty"`
	Project   string          `json:"project,omitempty"`
	Chip      string          `json:"chip,omitempty"`
	Version   string          `json:"version,omitempty"` // of the release; for a device, the one it came back from, where that is known
	SHA256    string          `json:"sha256,omitempty"`
	Text      string          `json:"text,omitempty"` // the whole of it, for people
}

// Delivery is a notice in the queue of one webhook. Body is what is sent, whole, so that every try sends the same.
type Delivery struct {
	WebhookID string
	Seq       int64  // from 1, in the order of the events; one that is missing was dropped
	ID        string // of the event at this webhook: a receiver that sees it twice has it already
	Type      NoticeType
	Body      string // JSON
	CreatedAt time.Time
}

// noticeBody is the JSON of Delivery.Body, in the shape that Standard Webhooks asks for.
type noticeBody struct {
	Type     NoticeType  `json:"type"`
	At       time.Time   `json:"timestamp"`
	Sequence int64       `json:"sequence"`
	Data     NoticeFacts `json:"data"`
}

// maxQueue bounds the notices that wait for one webhook. When one more comes the oldest of a device goes, and the oldest of
// all where no device's waits: a device that rolls back over and over, or says so, must not silence a halt.
const maxQueue = 1000

// queue puts notices into the queues of the webhooks that want them. It is called in the transaction that makes what
// they tell of happen: whoever finds the rows finds the notices, and nobody hears of what was never committed.
func (f *Fleet) queue(tx Tx, now time.Time, notices ...Notice) error {
	if len(notices) == 0 {
		return nil
	}
	hooks, err := tx.Webhooks()
	if err != nil {
		return err
	}
	for _, h := range hooks {
		wanted := slices.DeleteFunc(slices.Clone(notices), func(n Notice) bool { return !h.wants(n.Type) })
		if err := f.queueFor(tx, h, now, wanted); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) queueFor(tx Tx, h Webhook, now time.Time, notices []Notice) error {
	if len(notices) == 0 {
		return nil
	}
	waiting, err := tx.CountDeliveries(h.ID)
	if err != nil {
		return err
	}
	for _, n := range notices {
		h.Seq++
		body, err := json.Marshal(noticeBody{Type: n.Type, At: now.UTC(), Sequence: h.Seq, Data: n.NoticeFacts})
		if err != nil {
			return fmt.Errorf("encode notice: %w", err)
		}
		if err := tx.PutDelivery(Delivery{WebhookID: h.ID, Seq: h.Seq, ID: newNoticeID(), Type: n.Type, Body: string(body), CreatedAt: now}); err != nil {
			return err
		}
		if waiting++; waiting <= maxQueue {
			continue
		}
		oldest, err := tx.Deliveries(h.ID, NoticeRolledBack, 1)
		if err == nil && len(oldest) == 0 {
			oldest, err = tx.Deliveries(h.ID, "", 1)
		}
		if err != nil {
			return err
		}
		if err := tx.DeleteDelivery(h.ID, oldest[0].Seq); err != nil {
			return err
		}
		waiting--
		if h.Dropped++; h.Dropped%100 == 1 {
			f.cfg.Log.Warn("notices for a webhook are dropped, the oldest first", "webhook", h.ID, "dropped", h.Dropped)
		}
	}
	return tx.PutWebhook(h)
}

func newNoticeID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return "msg_" + hex.EncodeToString(id[:])
}

// ring says that there may be something to deliver, once it is committed.
func (f *Fleet) ring() {
	select {
	case f.noticed <- struct{}{}:
	default: // a ring is already waiting, and whoever hears it looks at every queue
	}
}

// Noticed tells when there may be something new in the queues. One listens.
func (f *Fleet) Noticed() <-chan struct{} { return f.noticed }

// rolloutNotices are those of a step of a rollout from the state before.
func rolloutNotices(before RolloutState, r Rollout, quarantined bool) []Notice {
	if r.State == before {
		return nil
	}
	facts := NoticeFacts{RolloutID: r.ID, State: r.State, Members: r.Members, Project: r.Project, Chip: r.Chip, Version: r.Version, SHA256: r.SHA256}
	if len(r.Events) > 0 {
		facts.Text = r.Events[len(r.Events)-1].Text
	}
	var list []Notice
	switch {
	case r.State == RolloutHalted:
		facts.Rule, facts.Text = r.Halt.Rule, r.Halt.Text
		list = append(list, Notice{NoticeHalted, facts})
		if quarantined {
			list = append(list, Notice{NoticeQuarantined, facts})
		}
	case r.State.Ended():
		list = append(list, Notice{NoticeFinished, facts})
	}
	return list
}

// rolledBack are the notices of attempts that ended so.
func rolledBack(attempts ...Attempt) []Notice {
	var list []Notice
	for _, a := range attempts {
		if a.State == AttemptRolledBack {
			list = append(list, Notice{NoticeRolledBack, NoticeFacts{RolloutID: a.RolloutID, DeviceID: a.DeviceID, CommandID: a.CommandID,
				Reason: a.Reason, Version: a.Version, SHA256: a.SHA256, Text: a.Message}})
		}
	}
	return list
}

// cameBack are the notices of a status: the attempt that it ended by a rollback, or a rollback that no attempt is known
// for, as after the plain command of the original tool.
func cameBack(device string, s protocol.Status, before protocol.Phase, r result, hadAttempt bool) []Notice {
	switch {
	case r.ended != nil:
		return rolledBack(*r.ended)
	case hadAttempt || r.effects.Dropped != "" || s.Phase != protocol.PhaseRolledBack || before == protocol.PhaseRolledBack:
		return nil
	}
	return []Notice{{NoticeRolledBack, NoticeFacts{DeviceID: device, CommandID: s.CommandID, Reason: s.Reason, Project: s.Project, Chip: s.Chip,
		SHA256: s.FailedSHA256, Text: s.Message}}}
}
