package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"bmsota/protocol"
)

// RolloutView is a rollout with its figures.
type RolloutView struct {
	Rollout
	Figures Figures
	// What follows is left out of listings.
	Waves []WaveView
	// Waits are the first members of the present wave that keep it, or the end, waiting while nothing is under way, with
	// why; More is how many there are beside them.
	Waits []Wait
	More  int
}

// WaveView counts the members of one wave, those of the waves before it not included, and its pending ones by what holds
// them back, as far as they were looked at.
type WaveView struct {
	Figures Figures // Dark is not counted by wave
	Held    map[Hold]int
}

// Wait is a member that is waited for.
type Wait struct {
	DeviceID string
	Hold     Hold
	Since    time.Time // when one that is not connected was last heard of
}

const (
	maxWaits = 5
	// maxLookedAt bounds the pending members of whom is found out what holds them back: each is a device to be read.
	maxLookedAt = 500
)

// Rollouts are all rollouts, newest first.
func (f *Fleet) Rollouts(ctx context.Context) ([]RolloutView, error) {
	return f.rolloutsWhere(ctx, func(Rollout) bool { return true }, f.glance)
}

// OpenRollouts are those that are running, paused or halted, newest first.
func (f *Fleet) OpenRollouts(ctx context.Context) ([]RolloutView, error) {
	return f.rolloutsWhere(ctx, func(r Rollout) bool { return !r.State.Ended() }, f.glance)
}

// OpenRolloutsByWave are the same with the figures of the waves of those that run.
func (f *Fleet) OpenRolloutsByWave(ctx context.Context) ([]RolloutView, error) {
	return f.rolloutsWhere(ctx, func(r Rollout) bool { return !r.State.Ended() }, func(tx Tx, r Rollout, now time.Time) (RolloutView, error) {
		v, err := f.glance(tx, r, now)
		if err == nil && r.State == RolloutRunning {
			err = v.countWaves(tx)
		}
		return v, err
	})
}

func (f *Fleet) rolloutsWhere(ctx context.Context, want func(Rollout) bool, view func(Tx, Rollout, time.Time) (RolloutView, error)) ([]RolloutView, error) {
	return f.rolloutViews(ctx, func(all []Rollout) ([]Rollout, error) {
		return slices.DeleteFunc(all, func(r Rollout) bool { return !want(r) }), nil
	}, view)
}

// rolloutViews are the rollouts that choose leaves of all of them, newest first, each as view shows it.
func (f *Fleet) rolloutViews(ctx context.Context, choose func([]Rollout) ([]Rollout, error), view func(Tx, Rollout, time.Time) (RolloutView, error)) ([]RolloutView, error) {
	var list []RolloutView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		all, err := tx.Rollouts()
		if err == nil {
			all, err = choose(all)
		}
		if err != nil {
			return err
		}
		for _, r := range all {
			v, err := view(tx, r, f.cfg.Now())
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
	return f.rolloutViews(ctx, func(all []Rollout) ([]Rollout, error) {
		if after != "" {
			at := slices.IndexFunc(all, func(r Rollout) bool { return r.ID == after })
			if at < 0 {
				return nil, invalid("after: there is no rollout %.64q", after)
			}
			all = all[at+1:]
		}
		return all[:min(len(all), limit)], nil
	}, f.glance)
}

// Rollout is one rollout.
func (f *Fleet) Rollout(ctx context.Context, id string) (RolloutView, error) {
	var v RolloutView
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		r, err := tx.Rollout(id)
		if err != nil {
			return fmt.Errorf("rollout %.64q: %w", id, err)
		}
		v, err = f.view(tx, r, f.cfg.Now())
		return err
	})
	return v, err
}

// glance is a rollout as listings show it.
func (f *Fleet) glance(tx Tx, r Rollout, now time.Time) (RolloutView, error) {
	figures, err := f.figures(tx, &r, now)
	return RolloutView{Rollout: r, Figures: figures}, err
}

func (f *Fleet) view(tx Tx, r Rollout, now time.Time) (RolloutView, error) {
	v, err := f.glance(tx, r, now)
	if err != nil {
		return v, err
	}
	if err := v.countWaves(tx); err != nil {
		return v, err
	}
	for i := range v.Waves {
		if n := v.Waves[i].Figures.Pending; i > r.Wave && n > 0 && !r.State.Ended() {
			v.Waves[i].Held[HoldWave] = n
		}
	}
	if r.State.Ended() || v.Figures.Pending == 0 {
		return v, nil
	}
	holding, err := f.newHolding(tx, &r, now)
	if err != nil {
		return v, err
	}
	late, err := tx.Candidates(r.ID, r.Policy.Priority, -1, r.limit(), maxLookedAt, true)
	if err != nil {
		return v, err
	}
	for _, c := range late {
		h := holding.of(c)
		v.Waves[r.waveOf(c.Member.Rank)].Held[h]++
		if r.State != RolloutRunning || v.Figures.Open > 0 || h == HoldTurn {
			continue
		}
		if len(v.Waits) == maxWaits {
			v.More++
			continue
		}
		wait := Wait{DeviceID: c.Member.DeviceID, Hold: h}
		if h == HoldOffline {
			wait.Since = c.Device.LastSeen
		}
		v.Waits = append(v.Waits, wait)
	}
	if len(v.Waits) > 0 {
		v.More += v.late() - len(late)
	}
	return v, nil
}

// countWaves fills in the figures of the waves.
func (v *RolloutView) countWaves(tx Tx) error {
	from := 0
	for _, limit := range v.Limits {
		counts, err := tx.MemberCountsBetween(v.ID, from, limit)
		if err != nil {
			return err
		}
		v.Waves = append(v.Waves, WaveView{Figures: Count(counts), Held: make(map[Hold]int)})
		from = limit
	}
	return nil
}

// Stalled says that the present wave does not stand and nothing of it is under way: it waits for devices, a gate, a window
// or a cap. The waves must have been counted.
func (v *RolloutView) Stalled() bool {
	if v.State != RolloutRunning || v.Figures.Open > 0 || !v.SoakSince.IsZero() {
		return false
	}
	return v.late() > 0
}

// late is how many members of the waves so far have not been started, or wait for another try.
func (v *RolloutView) late() (n int) {
	for _, w := range v.Waves[:min(v.Wave+1, len(v.Waves))] {
		n += w.Figures.Pending
	}
	return n
}

// holding says what holds the pending members of a rollout back.
type holding struct {
	rollout *Rollout
	release protocol.Release
	taken   map[string]bool // groups of the spread label in which a device is being updated
	zones   *zones
	now     time.Time
}

func (f *Fleet) newHolding(tx Tx, r *Rollout, now time.Time) (*holding, error) {
	release, err := tx.Release(r.SHA256)
	if err != nil {
		return nil, err
	}
	taken, err := taken(tx, r.Policy.Spread)
	return &holding{r, releaseFacts(release), taken, &f.zones, now}, err
}

func (h *holding) of(c Candidate) Hold {
	if c.Member.Rank >= h.rollout.limit() {
		return HoldWave
	}
	switch hold := h.rollout.hold(c, h.release, h.zones, h.now); {
	case hold == HoldNone && h.taken[c.Device.Labels[h.rollout.Policy.Spread]]:
		return HoldSpread
	case (hold == holdUpToDate || hold == holdUnfit) && !c.Device.Online && !c.Device.Revoked:
		return HoldOffline
	case hold == HoldNone, hold == holdUpToDate, hold == holdUnfit:
		return HoldTurn // the next look decides
	default:
		return hold
	}
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
		holding, err := f.newHolding(tx, &r, now)
		if err != nil {
			return err
		}
		members, err := tx.Members(id, state, after, limit)
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.State == MemberPending && !r.State.Ended() {
				c, err := tx.Candidates(id, r.Policy.Priority, m.Rank-1, m.Rank+1, 1, true)
				if err != nil {
					return err
				}
				if len(c) != 1 {
					return fmt.Errorf("rollout %s: %d members of rank %d", id, len(c), m.Rank)
				}
				list = append(list, MemberView{Member: m, Phase: c[0].Device.Status.Phase, Hold: holding.of(c[0])})
				continue
			}
			d, err := tx.Device(m.DeviceID)
			if err != nil {
				return err
			}
			list = append(list, MemberView{Member: m, Phase: d.Status.Phase})
		}
		return nil
	})
	return list, err
}
