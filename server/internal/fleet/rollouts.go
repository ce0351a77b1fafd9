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
}

// PlanRollout says what CreateRollout would make of a request, and changes nothing.
// Errors: ErrDenied, ErrInvalid, ErrNotFound (no such release), ErrRefused (withdrawn or quarantined), ErrStorage.
func (f *Fleet) PlanRollout(ctx context.Context, by Identity, req RolloutRequest) (Draft, error) {
	if err := operator(by); err != nil {
		return Draft{}, err
	}
	var d Draft
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		d, err = f.draft(ctx, tx, by, req)
		return err
	})
	return d, err
}

// CreateRollout chooses the members and begins. The same request with the same key again returns the rollout that the
// first one made; with another body it is ErrConflict. A rollout without members, or with another number of them than
// expected, is refused.
// Errors: those of PlanRollout, and ErrConflict.
func (f *Fleet) CreateRollout(ctx context.Context, by Identity, req RolloutRequest) (Rollout, error) {
	if err := operator(by); err != nil {
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
	switch {
	case r.Members == 0:
		return Rollout{}, fmt.Errorf("%w: no device is meant and can take the release (%d cannot); a dry run says why", ErrRefused, len(d.Cannot))
	case req.Expect != nil && *req.Expect != r.Members:
		return Rollout{}, fmt.Errorf("%w: %s would be members, %d are expected", ErrRefused, plural(r.Members, "device"), *req.Expect)
	}
	r.Key, r.KeyBody = key, bodySum
	r.say(r.CreatedAt, by.Name, "created for %s; %s begins: up to %s", plural(r.Members, "device"), r.waveText(), plural(r.limit(), "device"))
	if r.Policy.OverrideGates {
		r.say(r.CreatedAt, by.Name, "gates and window are overridden")
	}
	err = f.cfg.Store.Update(ctx, func(tx Tx) error {
		made = false
		if old, err := repeated(tx, key, bodySum); err == nil {
			*r = old
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
		for _, m := range d.Selection.Members {
			m.RolloutID, m.UpdatedAt = r.ID, r.CreatedAt
			if err := tx.PutMember(m); err != nil {
				return err
			}
		}
		made = true
		*r, err = tx.Rollout(r.ID)
		return err
	})
	if err != nil {
		return Rollout{}, err
	}
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
	return Draft{Selection: s, Rollout: r}, nil
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

// RolloutView is a rollout with its figures.
type RolloutView struct {
	Rollout
	Figures Figures
}

// Rollouts are all rollouts, newest first.
func (f *Fleet) Rollouts(ctx context.Context) ([]RolloutView, error) {
	return f.rolloutsWhere(ctx, func(Rollout) bool { return true })
}

// OpenRollouts are those that are running, paused or halted, newest first.
func (f *Fleet) OpenRollouts(ctx context.Context) ([]RolloutView, error) {
	return f.rolloutsWhere(ctx, func(r Rollout) bool { return !r.State.Ended() })
}

func (f *Fleet) rolloutsWhere(ctx context.Context, want func(Rollout) bool) ([]RolloutView, error) {
	var list []RolloutView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		list = nil
		all, err := tx.Rollouts()
		if err != nil {
			return err
		}
		for _, r := range all {
			if !want(r) {
				continue
			}
			v, err := f.view(tx, r)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		return nil
	})
	return list, err
}

// RolloutPage are at most limit rollouts, newest first: those behind the one named, or from the newest where none is.
// Errors: ErrInvalid (there is no such rollout), ErrStorage.
func (f *Fleet) RolloutPage(ctx context.Context, after string, limit int) ([]RolloutView, error) {
	var list []RolloutView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		list = nil
		all, err := tx.Rollouts()
		if err != nil {
			return err
		}
		if after != "" {
			at := slices.IndexFunc(all, func(r Rollout) bool { return r.ID == after })
			if at < 0 {
				return invalid("after: there is no rollout %.64q", after)
			}
			all = all[at+1:]
		}
		for _, r := range all[:min(len(all), limit)] {
			v, err := f.view(tx, r)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		return nil
	})
	return list, err
}

// Rollout is one rollout.
func (f *Fleet) Rollout(ctx context.Context, id string) (RolloutView, error) {
	var v RolloutView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		r, err := tx.Rollout(id)
		if err != nil {
			return fmt.Errorf("rollout %.64q: %w", id, err)
		}
		v, err = f.view(tx, r)
		return err
	})
	return v, err
}

func (f *Fleet) view(tx Tx, r Rollout) (RolloutView, error) {
	figures, err := f.figures(tx, &r, f.cfg.Now())
	return RolloutView{r, figures}, err
}

// figures count the members of a rollout; the dark ones while it is open and this server has listened for long enough.
func (f *Fleet) figures(tx Tx, r *Rollout, now time.Time) (Figures, error) {
	counts, err := tx.MemberCounts(r.ID)
	if err != nil {
		return Figures{}, err
	}
	figures := Count(counts)
	if since := f.heardSince.Load(); !r.State.Ended() && since != nil && now.Sub(*since) > r.Policy.Silence {
		figures.Dark, err = tx.CountDark(r.ID, now.Add(-r.Policy.Silence))
	}
	return figures, err
}

// MemberView is a member with what holds it back, where it is pending.
type MemberView struct {
	Member
	Hold  Hold
	Phase protocol.Phase // of its device
}

// RolloutMembers are members of a rollout with a rank above after, by rank, at most limit; with state they are those in
// it alone.
func (f *Fleet) RolloutMembers(ctx context.Context, id string, state MemberState, after, limit int) ([]MemberView, error) {
	now := f.cfg.Now()
	var list []MemberView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		list = nil
		r, err := tx.Rollout(id)
		if err != nil {
			return fmt.Errorf("rollout %.64q: %w", id, err)
		}
		release, err := tx.Release(r.SHA256)
		if err != nil {
			return err
		}
		members, err := tx.Members(id, state, after, limit)
		if err != nil {
			return err
		}
		for _, m := range members {
			d, err := tx.Device(m.DeviceID)
			if err != nil {
				return err
			}
			v := MemberView{Member: m, Phase: d.Status.Phase}
			if m.State == MemberPending && !r.State.Ended() {
				if m.Rank >= r.limit() {
					v.Hold = HoldWave
				} else if v.Hold = r.hold(Candidate{Member: m, Device: &d}, releaseFacts(release), &f.zones, now); v.Hold == HoldNone {
					v.Hold = HoldTurn
				}
			}
			list = append(list, v)
		}
		return nil
	})
	return list, err
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
	if err := operator(by); err != nil {
		return RolloutView{}, err
	}
	now := f.cfg.Now()
	var view RolloutView
	err := f.cfg.Store.Update(ctx, func(tx Tx) error {
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
		if err := tx.PutRollout(r); err != nil {
			return err
		}
		if err := f.queue(tx, now, rolloutNotices(before, r, false)...); err != nil {
			return err
		}
		view, err = f.view(tx, r)
		view.Revision++
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
	if err := operator(by); err != nil {
		return err
	}
	now := f.cfg.Now()
	err := f.cfg.Store.Update(ctx, func(tx Tx) error {
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
