package fleet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"bmsota/protocol"
)

const (
	// planEvery is the shortest time between two looks at a rollout; one that costs much is looked at less often.
	planEvery = time.Second
	planShare = 20 // a rollout may take this part of the time
	// candidatePage is how many candidates are read at once.
	candidatePage = 200
	awayPage      = 200         // members that one look finds others for
	askEvery      = time.Minute // of one device, for a status
)

// planSoon has the loop look at the rollouts now.
func (f *Fleet) planSoon() {
	select {
	case f.planning <- struct{}{}:
	default:
	}
}

// rollouts is what the loop remembers of them; it may be lost at any time.
type rollouts struct {
	next  map[string]time.Time // when a rollout is looked at again
	asked map[string]time.Time // devices, for a status
}

// advanceAll looks at every rollout that wants it, each in a transaction of its own: the rows of the one before are
// there for the next, and one that cannot be read does not hold up the others.
func (l *loop) advanceAll(ctx context.Context) error {
	f := l.fleet
	var tend []Rollout
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		tend, err = tx.RolloutsToTend()
		return err
	})
	if err != nil || len(tend) == 0 {
		return err
	}
	var errs []error
	for _, r := range tend {
		began := f.cfg.Now()
		if began.Before(l.rollouts.next[r.ID]) {
			continue
		}
		if err := l.advance(ctx, r.ID, began); err != nil {
			errs = append(errs, fmt.Errorf("rollout %s: %w", r.ID, err))
		}
		end := f.cfg.Now()
		l.rollouts.next[r.ID] = end.Add(planShare * end.Sub(began))
		if r.State.Ended() {
			delete(l.rollouts.next, r.ID)
		}
	}
	return errors.Join(errs...)
}

// advance plans for one rollout and writes what comes of it, if anything does. Most looks change nothing, and a
// transaction that writes nothing should not wait for the writer.
func (l *loop) advance(ctx context.Context, id string, now time.Time) error {
	f := l.fleet
	var out Output
	var before RolloutState
	plan := func(tx Tx) error {
		in, failed, err := f.input(tx, id, now)
		if err != nil {
			return err
		}
		before = in.Rollout.State
		out = Plan(in, now)
		return *failed
	}
	if err := f.cfg.Store.View(ctx, plan); err != nil {
		return err
	}
	l.ask(ctx, out.Ask, now)
	if out.idle() {
		return nil
	}
	quarantined := false
	err := f.planned(ctx, func(tx Tx) error {
		quarantined = false
		if err := plan(tx); err != nil { // from the rows as they are now
			return err
		}
		for _, list := range [][]Attempt{out.End, out.Begin} {
			if err := tx.PutAttempts(list); err != nil {
				return err
			}
		}
		if err := tx.PutMembers(out.Members); err != nil {
			return err
		}
		notices := rolledBack(out.End...)
		if out.Changed {
			var err error
			if quarantined, err = quarantineHalted(tx, out.Rollout, now); err != nil {
				return err
			}
			if err := tx.PutRollout(out.Rollout); err != nil {
				return err
			}
			notices = append(notices, rolloutNotices(before, out.Rollout, quarantined)...)
		}
		return f.queue(tx, now, notices...)
	})
	if err != nil {
		return err
	}
	if quarantined {
		f.catalog.forget()
	}
	f.count(out.End...)
	f.tell(out, quarantined)
	f.ring()
	f.watchers.tell(id)
	// Rows came first: now the commands may go out, and those of attempts that are over come back.
	for _, a := range append(out.End, out.Begin...) {
		f.touch(a.DeviceID)
	}
	return nil
}

// quarantineHalted puts the image of a rollout that a rule has just halted under quarantine, when devices rolled it back.
func quarantineHalted(tx Tx, r Rollout, now time.Time) (bool, error) {
	if r.State != RolloutHalted || !r.Halt.At.Equal(now) || r.Halt.Rule == "quarantined" || r.Halt.Rule == "withdrawn" {
		return false, nil
	}
	counts, err := tx.MemberCounts(r.ID)
	if err != nil || Count(counts).RolledBack <= r.Forgiven.RolledBack {
		return false, err
	}
	return true, tx.PutQuarantine(Quarantine{SHA256: r.SHA256, RolloutID: r.ID, Why: r.Halt.Text, Since: now})
}

// tell puts into the log what an operator wants to find there.
func (f *Fleet) tell(out Output, quarantined bool) {
	r := out.Rollout
	if out.Changed {
		last := r.Events[len(r.Events)-1].Text
		if r.State == RolloutHalted {
			f.cfg.Log.Warn("rollout halted", "rollout", r.ID, "release", r.Version, "rule", r.Halt.Rule, "why", r.Halt.Text)
		} else {
			f.cfg.Log.Info("rollout goes on", "rollout", r.ID, "what", last)
		}
	}
	if quarantined {
		f.cfg.Log.Warn("release quarantined", "release", r.Version, "sha256", r.SHA256, "rollout", r.ID)
	}
}

// ask has devices say their status, for readings that are new enough to judge. The command is not left behind.
func (l *loop) ask(ctx context.Context, devices []string, now time.Time) {
	f := l.fleet
	for _, id := range devices {
		if now.Sub(l.rollouts.asked[id]) < askEvery {
			continue
		}
		if len(l.rollouts.asked) > 10_000 {
			clear(l.rollouts.asked)
		}
		l.rollouts.asked[id] = now
		cmd := protocol.Command{Action: protocol.ActionStatus}
		if said, err := f.sayElsewhere(ctx, id, cmd); said || err != nil {
			if err != nil {
				l.failure("ask", id, err)
			}
			continue
		}
		if err := l.out.Send(ctx, id, cmd); err != nil {
			l.failure("ask", id, err)
			continue
		}
		l.clear(ctx, id)
	}
}

// input reads what Plan needs. The candidates are read when Plan asks for them; failed points at the error of that.
func (f *Fleet) input(tx Tx, id string, now time.Time) (in Input, failed *error, err error) {
	failed = new(error)
	if in.Rollout, err = tx.Rollout(id); err != nil {
		return in, failed, err
	}
	r := &in.Rollout
	release, err := tx.Release(r.SHA256)
	if err != nil {
		return in, failed, err
	}
	in.Release = releaseFacts(release)
	in.Listening, in.Zones = *f.heardSince.Load(), &f.zones
	if in.Barred, err = barred(tx, release); err != nil {
		return in, failed, err
	}
	if in.Figures, err = f.figures(tx, r, now); err != nil {
		return in, failed, err
	}
	if in.Recent, err = tx.CountAttempts(id, now.Add(-time.Minute-time.Millisecond)); err != nil {
		return in, failed, err
	}
	if in.Open, err = progress(tx, id, MemberOpen, in.Figures.Open); err != nil {
		return in, failed, err
	}
	if in.Silent, err = progress(tx, id, MemberSilent, in.Figures.Silent); err != nil {
		return in, failed, err
	}
	if in.Doubted, err = tx.Doubted(id); err != nil {
		return in, failed, err
	}
	if r.State != RolloutRunning {
		return in, failed, nil
	}
	if in.Taken, err = taken(tx, r.Policy.Spread); err != nil {
		return in, failed, err
	}
	if in.Gone, err = tx.TriedAndGone(id); err != nil {
		return in, failed, err
	}
	// While one is under way every device has a command open, or is about to.
	_, ordered, err := underWay(tx)
	if err != nil {
		return in, failed, err
	}
	in.Waiting = waiting(tx, r, -1, r.limit(), ordered, failed)
	if before := r.awayBefore(in.Listening, now); !before.IsZero() && !r.lastWave() && in.Figures.begun() < r.limit() {
		if in.Away, err = tx.AwayMembers(id, r.limit(), before, awayPage); err != nil {
			return in, failed, err
		}
		in.Spare = waiting(tx, r, r.limit()-1, r.Members, ordered, failed)
	}
	return in, failed, nil
}

// progress reads the members in a state, with their attempts and devices.
func progress(tx Tx, rollout string, state MemberState, n int) ([]Progress, error) {
	if n == 0 {
		return nil, nil
	}
	members, err := tx.Members(rollout, state, -1, n)
	if err != nil {
		return nil, err
	}
	list := make([]Progress, 0, len(members))
	for _, m := range members {
		a, err := tx.Attempt(m.AttemptID)
		if err != nil {
			return nil, fmt.Errorf("attempt %q: %w", m.AttemptID, err)
		}
		d, err := tx.Device(m.DeviceID)
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", m.DeviceID, err)
		}
		list = append(list, Progress{m, a, &d})
	}
	return list, nil
}

// taken are the values of a label that devices with an open attempt have, whoever has ordered it.
func taken(tx Tx, label string) (map[string]bool, error) {
	if label == "" {
		return nil, nil
	}
	open, err := tx.OpenAttempts()
	if err != nil {
		return nil, err
	}
	values := make(map[string]bool, len(open))
	for _, a := range open {
		d, err := tx.Device(a.DeviceID)
		if err != nil {
			return nil, err
		}
		if value := d.Labels[label]; value != "" {
			values[value] = true
		}
	}
	return values, nil
}

// waiting gives the candidates with after < rank < below, page by page; all of them busy where that is said.
func waiting(tx Tx, r *Rollout, after, below int, busy bool, failed *error) iter.Seq[Candidate] {
	return func(yield func(Candidate) bool) {
		for after := after; ; {
			page, err := tx.Candidates(r.ID, r.Policy.Priority, after, below, candidatePage, false)
			if err != nil {
				*failed = err
				return
			}
			for _, c := range page {
				c.Busy = c.Busy || busy
				if !yield(c) {
					return
				}
				after = c.Member.Rank
			}
			if len(page) < candidatePage {
				return
			}
		}
	}
}
