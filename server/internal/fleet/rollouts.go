package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"bmsota/protocol"
)

// RolloutRequest asks for a rollout.
type RolloutRequest struct {
	Version       string
	Project, Chip string // where several releases have the version
	Policy        Policy
	// Expect, when it is not nil, is how many members the operator expects: any other number is refused.
	Expect *int
	// Key makes a repeated request of one operator the same request; may be empty. At most 128 bytes.
	Key string
}

// Draft is a rollout as it would be, which is what a dry run answers.
type Draft struct {
	Selection
	Rollout Rollout
	Holds   map[string]Hold // what holds members back as they are now, by device; gates, the window and being away
}

// PlanRollout says what CreateRollout would make of a request, and changes nothing.
// Errors: ErrDenied, ErrInvalid, ErrNotFound (no such release), ErrRefused (withdrawn or quarantined, or another number of
// members than expected), ErrStorage.
func (f *Fleet) PlanRollout(ctx context.Context, by Identity, req RolloutRequest) (Draft, error) {
	if err := f.operator(by); err != nil {
		return Draft{}, err
	}
	var d Draft
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		d, err = f.draft(ctx, tx, by, req)
		return err
	})
	if err == nil {
		err = d.expected(req.Expect)
	}
	return d, err
}

// expected refuses a draft with another number of members than an operator expects.
func (d *Draft) expected(n *int) error {
	if n != nil && *n != d.Rollout.Members {
		return fmt.Errorf("%w: %s would be members, %d are expected", ErrRefused, plural(d.Rollout.Members, "device"), *n)
	}
	return nil
}

// CreateRollout chooses the members and begins. The same request with the same key again returns the rollout that the
// first one made; with another body it is ErrConflict. A rollout without members, or with another number of them than
// expected, is refused.
// Errors: those of PlanRollout, and ErrConflict.
func (f *Fleet) CreateRollout(ctx context.Context, by Identity, req RolloutRequest) (Rollout, error) {
	if err := f.operator(by); err != nil {
		return Rollout{}, err
	}
	if len(req.Key) > 128 {
		return Rollout{}, invalid("an idempotency key of %d bytes, the limit is 128", len(req.Key))
	}
	body, err := json.Marshal(req)
	if err != nil {
		return Rollout{}, invalid("%w", err)
	}
	sum := sha256.Sum256(body)
	key := ""
	if req.Key != "" {
		key = by.Name + " " + req.Key
	}
	bodySum := hex.EncodeToString(sum[:])
	// The devices are read outside of the transaction that writes: statuses need not wait until a hundred thousand are
	// judged. Whoever has changed meanwhile is judged again before it is started.
	var d Draft
	made := false
	err = f.cfg.Store.View(ctx, func(tx Tx) error {
		old, err := repeated(tx, key, bodySum)
		if err == nil {
			d.Rollout = old
			return nil
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		d, err = f.draft(ctx, tx, by, req)
		made = err == nil
		return err
	})
	if err != nil || !made {
		return d.Rollout, err
	}
	r := &d.Rollout
	if r.Members == 0 {
		return Rollout{}, fmt.Errorf("%w: no device is meant and can take the release (%d cannot); a dry run says why", ErrRefused, len(d.Cannot))
	}
	if err := d.expected(req.Expect); err != nil {
		return Rollout{}, err
	}
	r.Key, r.KeyBody = key, bodySum
	r.say(r.CreatedAt, by.Name, "created for %s; %s begins: up to %s", plural(r.Members, "device"), r.waveText(), plural(r.limit(), "device"))
	if r.Policy.OverrideGates {
		r.say(r.CreatedAt, by.Name, "gates and window are overridden")
	}
	var kept Rollout
	err = f.update(ctx, by, func(tx Tx) error {
		made = false
		if old, err := repeated(tx, key, bodySum); err == nil {
			kept = old
			return nil
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		release, err := tx.Release(r.SHA256)
		if err != nil {
			return err
		}
		if why, err := barred(tx, release); err != nil || why != "" {
			return errors.Join(err, barredError(release, why))
		}
		if err := tx.PutRollout(*r); err != nil {
			return err
		}
		members := slices.Clone(d.Selection.Members)
		for i := range members {
			members[i].RolloutID, members[i].UpdatedAt = r.ID, r.CreatedAt
		}
		if err := tx.PutMembers(members); err != nil {
			return err
		}
		made = true
		kept, err = tx.Rollout(r.ID)
		return err
	})
	if err != nil {
		return Rollout{}, err
	}
	*r = kept
	if made {
		f.cfg.Log.Info("rollout created", "rollout", r.ID, "release", r.Version, "members", r.Members, "by", by.Name,
			"override_gates", r.Policy.OverrideGates)
		f.watchers.tell(r.ID)
		f.planSoon()
	}
	return d.Rollout, nil
}

// repeated is the rollout that an earlier request with this key made; ErrNotFound when there is none.
func repeated(tx Tx, key, body string) (Rollout, error) {
	if key == "" {
		return Rollout{}, ErrNotFound
	}
	old, err := tx.RolloutByKey(key)
	if err == nil && old.KeyBody != body {
		return Rollout{}, fmt.Errorf("%w: the idempotency key belongs to another request, which made rollout %s", ErrConflict, old.ID)
	}
	return old, err
}

// draft makes the rollout and its members of a request.
func (f *Fleet) draft(ctx context.Context, tx Tx, by Identity, req RolloutRequest) (Draft, error) {
	now := f.cfg.Now()
	p := req.Policy.WithDefaults(f.cfg.Silence)
	if err := p.Check(); err != nil {
		return Draft{}, err
	}
	if len(req.Version) > 64 || req.Version == "" {
		return Draft{}, invalid("version %.70q: give the version of a release", req.Version)
	}
	all, err := tx.Releases()
	if err != nil {
		return Draft{}, err
	}
	release, err := theRelease(all, req.Project, req.Chip, req.Version)
	if err != nil {
		return Draft{}, err
	}
	if why, err := barred(tx, release); err != nil || why != "" {
		return Draft{}, errors.Join(err, barredError(release, why))
	}
	devices, err := tx.Devices()
	if err != nil {
		return Draft{}, err
	}
	channels, err := tx.Channels()
	if err != nil {
		return Draft{}, err
	}
	quarantines, err := tx.Quarantines()
	if err != nil {
		return Draft{}, err
	}
	undone, err := tx.RolledBack(release.SHA256)
	if err != nil {
		return Draft{}, err
	}
	rolledBack := make(map[string]bool, len(undone))
	for _, id := range undone {
		rolledBack[id] = true
	}
	if err := ctx.Err(); err != nil {
		return Draft{}, err
	}
	s, err := newCatalog(all, channels, quarantines).selection(release, p, devices, rolledBack)
	if err != nil {
		return Draft{}, err
	}
	r := Rollout{ID: newRolloutID(), State: RolloutRunning, SHA256: release.SHA256, Project: release.Project, Chip: release.Chip, Version: release.Version,
		Policy: p, Members: len(s.Members), WaveSince: now, CreatedAt: now, CreatedBy: by.Name, ExpiresAt: now.Add(p.Lasts)}
	r.plotWaves()
	return Draft{Selection: s, Rollout: r, Holds: r.holds(releaseFacts(release), s.Members, devices, &f.zones, now)}, nil
}

// plotWaves turns the policy's waves into limits and soaks for its members.
func (r *Rollout) plotWaves() {
	limits, waves := r.Policy.limits(r.Members)
	r.Limits = limits
	for _, w := range waves {
		r.Soaks = append(r.Soaks, w.Soak)
	}
}

func newRolloutID() string {
	var id [4]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	return "r-" + hex.EncodeToString(id[:])
}

// barred says why a release may be started nowhere; empty when it may.
func barred(tx Tx, r Release) (string, error) {
	if r.Withdrawn {
		return "withdrawn", nil
	}
	q, err := tx.Quarantine(r.SHA256)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && !q.Stands():
		return "", nil
	case err != nil:
		return "", err
	}
	return "quarantined", nil
}

func barredError(r Release, why string) error {
	switch why {
	case "":
		return nil
	case "quarantined":
		return fmt.Errorf("%w: version %s is quarantined: devices rolled it back, and a rollout of it was halted; lift the quarantine to start it all the same", ErrRefused, r.Version)
	}
	return fmt.Errorf("%w: version %s is %s", ErrRefused, r.Version, why)
}

// Pause stops a rollout from starting devices until it is resumed. What it means for a device is in Means.
// Errors of the verbs: ErrDenied, ErrNotFound, ErrConflict (not in this state), ErrStorage.
func (f *Fleet) Pause(ctx context.Context, by Identity, rollout string) (RolloutView, error) {
	return f.turn(ctx, by, rollout, VerbPause)
}

// Resume lets a rollout go on that was paused, or halted: then the failures so far count no more. A quarantine has to
// be lifted first.
func (f *Fleet) Resume(ctx context.Context, by Identity, rollout string) (RolloutView, error) {
	return f.turn(ctx, by, rollout, VerbResume)
}

// Abort ends a rollout for good.
func (f *Fleet) Abort(ctx context.Context, by Identity, rollout string) (RolloutView, error) {
	return f.turn(ctx, by, rollout, VerbAbort)
}

func (f *Fleet) turn(ctx context.Context, by Identity, id string, v Verb) (RolloutView, error) {
	if err := f.operator(by); err != nil {
		return RolloutView{}, err
	}
	now := f.cfg.Now()
	var view RolloutView
	err := f.update(ctx, by, func(tx Tx) error {
		r, err := tx.Rollout(id)
		if err != nil {
			return fmt.Errorf("rollout %.64q: %w", id, err)
		}
		figures, err := f.figures(tx, &r, now)
		if err != nil {
			return err
		}
		if v == VerbResume {
			release, err := tx.Release(r.SHA256)
			if err != nil {
				return err
			}
			if why, err := barred(tx, release); err != nil || why != "" {
				return errors.Join(err, barredError(release, why))
			}
		}
		before := r.State
		if err := r.verb(v, figures, by.Name, now); err != nil {
			return err
		}
		if err := f.queue(tx, now, rolloutNotices(before, r, false)...); err != nil {
			return err
		}
		view, err = f.put(tx, r, now)
		return err
	})
	if err != nil {
		return RolloutView{}, err
	}
	f.cfg.Log.Info("rollout "+done[v], "rollout", id, "by", by.Name)
	f.ring()
	f.watchers.tell(id)
	f.planSoon()
	return view, nil
}

// put writes a rollout and shows it as it is then.
func (f *Fleet) put(tx Tx, r Rollout, now time.Time) (RolloutView, error) {
	if err := tx.PutRollout(r); err != nil {
		return RolloutView{}, err
	}
	r.Revision++
	return f.view(tx, r, now)
}

// SkipMember leaves a member out that has not been started, or waits for another try: no wave waits for it any more. The
// place of one that was never started goes to the next of a later wave, so that the wave speaks by as many as before. It is
// the operator's word that the member says nothing of the release; the event keeps whose.
// Errors: ErrDenied, ErrNotFound, ErrConflict (the rollout has ended, or the member is under way or through), ErrStorage.
func (f *Fleet) SkipMember(ctx context.Context, by Identity, rollout, device string) (RolloutView, error) {
	if err := f.operator(by); err != nil {
		return RolloutView{}, err
	}
	now := f.cfg.Now()
	var view RolloutView
	err := f.update(ctx, by, func(tx Tx) error {
		r, err := tx.Rollout(rollout)
		if err != nil {
			return fmt.Errorf("rollout %.64q: %w", rollout, err)
		}
		m, err := tx.Member(rollout, device)
		if err != nil {
			return fmt.Errorf("device %.64q of rollout %s: %w", device, r.ID, err)
		}
		switch {
		case r.State.Ended():
			return fmt.Errorf("%w: the rollout is %s", ErrConflict, r.State)
		case m.State != MemberPending:
			return fmt.Errorf("%w: %s is %s, only who waits can be left out", ErrConflict, device, m.State)
		}
		m.State, m.Reason, m.Message, m.UpdatedAt = MemberSkipped, protocol.ReasonNone, "left out by "+by.Name, now
		if m.Attempts == 0 {
			r.leaveOut(m.Rank)
		}
		if err := tx.PutMember(m); err != nil {
			return err
		}
		r.say(now, by.Name, "%s is left out", device)
		view, err = f.put(tx, r, now)
		return err
	})
	if err != nil {
		return RolloutView{}, err
	}
	f.cfg.Log.Info("rollout goes on without a member", "rollout", rollout, "device", device, "by", by.Name)
	f.watchers.tell(rollout)
	f.planSoon()
	return view, nil
}

// Quarantines are all quarantines, those that were lifted too, newest first.
func (f *Fleet) Quarantines(ctx context.Context) ([]Quarantine, error) {
	var list []Quarantine
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Quarantines()
		return err
	})
	return list, err
}

// LiftQuarantine lets an image be offered again. Devices that rolled it back still refuse it.
// Errors: ErrDenied, ErrNotFound (not quarantined), ErrStorage.
func (f *Fleet) LiftQuarantine(ctx context.Context, by Identity, sha256 string) error {
	if err := f.operator(by); err != nil {
		return err
	}
	now := f.cfg.Now()
	err := f.update(ctx, by, func(tx Tx) error {
		q, err := tx.Quarantine(sha256)
		if err == nil && !q.Stands() {
			err = ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("quarantine of %.64q: %w", sha256, err)
		}
		q.LiftedAt, q.LiftedBy = now, by.Name
		return tx.PutQuarantine(q)
	})
	if err != nil {
		return err
	}
	f.catalog.forget()
	f.watchers.tell(sha256)
	f.cfg.Log.Warn("quarantine lifted", "release", sha256, "by", by.Name)
	return nil
}
