package fleet

import (
	"context"
	"time"
)

// RehearsalRequest asks what a rollout would do to this fleet.
type RehearsalRequest struct {
	Rollout RolloutRequest
	Mix     Mix           // of the bad build
	Seed    string        // of who meets which fate
	Update  time.Duration // what an update takes, from half of it to one and a half; 0 means 3 minutes
}

// Rehearsal is what came of it.
type Rehearsal struct {
	Members int
	Away    int // of them, not heard of for a day: they are not reached
	Bad     RehearsalRun
	Good    RehearsalRun
}

// RehearsalRun is one run of a policy over the copy of a fleet.
type RehearsalRun struct {
	State   RolloutState
	Halt    *Halt
	Wave    int // the last one, from 1
	Touched int // devices with an attempt
	Harmed  int // of them, those that the build did not suit
	Figures Figures
	Took    time.Duration // from the start to the halt or the end
	Events  []Event
}

const (
	usualUpdate = 3 * time.Minute
	usualAway   = 24 * time.Hour
	// rehearsalGrain is into how many looks of the planner an update is divided, rehearsalTime how long a caller may wait.
	rehearsalGrain = 50
	rehearsalTime  = 45 * time.Second
)

// Rehearse runs the very policy of a request, by the very planner, over a copy of this server's fleet in virtual time:
// once with a build that does to devices what mix says, once with a good one. Devices that were heard of within a day
// count as connected; what their last status says of battery and versions stays as it is. It changes nothing.
// Errors: those of PlanRollout.
func (f *Fleet) Rehearse(ctx context.Context, by Identity, req RehearsalRequest) (Rehearsal, error) {
	if err := req.Mix.check(); err != nil {
		return Rehearsal{}, err
	}
	if req.Update == 0 {
		req.Update = usualUpdate
	}
	if req.Update < time.Second || req.Update > 24*time.Hour || len(req.Seed) > 128 {
		return Rehearsal{}, invalid("an update takes from a second to a day, a seed has at most 128 bytes")
	}
	draft, err := f.PlanRollout(ctx, by, req.Rollout)
	if err != nil {
		return Rehearsal{}, err
	}
	devices, err := f.Devices(ctx)
	if err != nil {
		return Rehearsal{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, rehearsalTime)
	defer cancel()
	byID := make(map[string]*Device, len(devices))
	for i := range devices {
		byID[devices[i].ID] = &devices[i]
	}
	out := Rehearsal{Members: draft.Rollout.Members}
	run := func(mix Mix) (RehearsalRun, error) {
		out.Away = 0
		members := append([]Member(nil), draft.Selection.Members...)
		actors := make([]actor, len(members))
		for i, m := range members {
			a := &actors[i]
			if d := byID[m.DeviceID]; d != nil { // a device that came since stays unknown, and away
				a.Device = *d
			}
			a.ID, a.fate = m.DeviceID, mix.of(req.Seed, m.DeviceID)
			a.took = req.Update/2 + time.Duration(order(req.Seed+"/took", m.DeviceID)%uint64(req.Update))
			if a.Online = draft.Rollout.CreatedAt.Sub(a.LastSeen) < usualAway; a.Online {
				a.LastSeen = draft.Rollout.CreatedAt
			} else {
				out.Away++
			}
		}
		w := newWorld(draft.Rollout, releaseFacts(draft.Release), members, actors)
		w.listening, w.batch = w.now, max(planEvery, req.Update/rehearsalGrain)
		if err := w.run(ctx, w.rollout.ExpiresAt.Add(time.Hour)); err != nil {
			return RehearsalRun{}, err
		}
		return w.result(), nil
	}
	if out.Bad, err = run(req.Mix); err != nil {
		return Rehearsal{}, err
	}
	out.Good, err = run(Mix{FateGood: 1})
	return out, err
}

// result is what came of a run. One that ran out of devices it can reach took as long as those it reached.
func (w *world) result() RehearsalRun {
	r := &w.rollout
	run := RehearsalRun{State: r.State, Halt: r.Halt, Wave: min(r.Wave+1, len(r.Limits)), Figures: w.figures, Events: r.Events, Took: w.now.Sub(r.CreatedAt)}
	var last time.Time
	for number, m := range w.members {
		if m.Attempts == 0 {
			continue
		}
		run.Touched++
		if w.devices[number].fate != FateGood {
			run.Harmed++
		}
		if m.UpdatedAt.After(last) {
			last = m.UpdatedAt
		}
	}
	switch {
	case r.State == RolloutHalted:
		run.Took = r.Halt.At.Sub(r.CreatedAt)
	case w.figures.Pending > 0:
		run.Took = max(0, last.Sub(r.CreatedAt))
	}
	return run
}
