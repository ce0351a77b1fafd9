package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"bmsota/protocol"
)

const (
	// passEvery is how often all open attempts are looked at.
	passEvery = 15 * time.Second
	// patience is how long a connected device may leave a command unanswered before it is sent again; it doubles with
	// every send up to maxPatience.
	patience    = 30 * time.Second
	maxPatience = time.Hour
)

// Run does what the fleet does by itself until ctx ends, and returns nil then: it commits folds in groups, sends the
// commands of open attempts again until they are taken up, takes back the retained commands of attempts that have
// ended, makes the rows of an order to all that are not there yet, and ends attempts by silence and expiry. It may be called once,
// and ends early with ErrOusted or ErrOutdated.
//
// Commands are sent from rows, never from memory: after a restart every open attempt is sent again, and a command that
// arrives twice is harmless by the protocol.
func (f *Fleet) Run(ctx context.Context, out Commander) error {
	if !f.started.CompareAndSwap(false, true) {
		return errors.New("fleet: Run was called before")
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if f.share != nil {
		if err := f.startShare(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("start: %w", err)
		}
	}
	if err := f.markAllOffline(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("start: %w", err)
	}
	now := f.cfg.Now()
	f.heardSince.Store(&now)
	var wg sync.WaitGroup
	wg.Go(func() { f.runCommitter(ctx) })
	wg.Go(func() { f.runOrders(ctx) })
	l := &loop{fleet: f, out: out, sent: make(map[string]sending), pruner: pruner{fleet: f}, took: make(chan struct{}, 1)}
	if f.share != nil {
		wg.Go(func() { end(f.runShare(ctx, l.took)) })
	}
	l.rollouts = rollouts{next: make(map[string]time.Time), asked: make(map[string]time.Time)}
	l.run(ctx)
	wg.Wait()
	if err := f.writeKnocks(context.WithoutCancel(ctx)); err != nil {
		f.cfg.Log.Error("audit log", "err", err)
	}
	if cause := context.Cause(ctx); over(cause) {
		return cause
	}
	return nil
}

// markAllOffline forgets who was connected when the last process ended; whoever still is says so again.
func (f *Fleet) markAllOffline(ctx context.Context) error {
	if f.cfg.ForeignSessions {
		return nil
	}
	if f.shared() {
		return f.emptyHome(ctx, f.share.Place)
	}
	return f.update(ctx, theServer, func(tx Tx) error {
		devices, err := tx.Devices()
		if err != nil {
			return err
		}
		for _, d := range devices {
			if !d.Online || f.live(d.ID) {
				continue
			}
			d.Online = false
			if err := tx.PutDevice(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// touch asks the loop to look at a device, after its rows are committed.
func (f *Fleet) touch(devices ...string) {
	f.later(devices...)
	f.wakeLoop()
}

// later is touch without the wake-up: the next pass will do.
func (f *Fleet) later(devices ...string) {
	f.mu.Lock()
	for _, d := range devices {
		f.dirty[d] = struct{}{}
	}
	f.mu.Unlock()
	f.watchers.tell(devices...)
}

func (f *Fleet) wakeLoop() {
	select {
	case f.wake <- struct{}{}:
	default: // a wake-up is already waiting, and the loop takes everything
	}
}

// loop sends and takes back retained commands. All of it belongs to the goroutine of Run.
type loop struct {
	fleet *Fleet
	out   Commander
	sent  map[string]sending // by device: what this process last sent there, or cleared for

	rollouts rollouts
	pruner   pruner
	took     chan struct{} // capacity 1: this server plans from now on
	told     []string      // devices that were sent or cleared something in this pass, where another may have taken over meanwhile

	// Of the present pass: how many devices the broker could not be told about, and why the last of them. A broker that
	// is away is one line in the log then and not one for each device.
	failed   int
	failedBy error
}

type sending struct {
	attempt string
	at      time.Time
	wait    time.Duration // until it is sent again to a device that is connected and does not take it up
}

func (l *loop) run(ctx context.Context) {
	tick := time.NewTicker(passEvery)
	defer tick.Stop()
	plan := time.NewTicker(planEvery)
	defer plan.Stop()
	l.logged(ctx, "first pass", l.first)
	// What another does is left to it.
	planner := func(what string, do func(context.Context) error) {
		if l.fleet.plans() {
			l.logged(ctx, what, do)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.fleet.wake:
			l.logged(ctx, "send commands", l.touched)
		case <-plan.C:
			l.fleet.endExpired()
			planner("advance rollouts", l.advanceAll)
			l.logged(ctx, "audit log", l.fleet.writeKnocks)
			l.logged(ctx, "contested logins", l.fleet.writeContests)
		case <-l.fleet.planning:
			planner("advance rollouts", l.advanceAll)
		case <-l.took:
			l.logged(ctx, "take over", l.takeOver)
		case <-tick.C:
			planner("sweep", l.fleet.sweep)
			planner("suspicions", l.fleet.endSuspicions)
			l.logged(ctx, "send commands", l.all)
			planner("retention", l.pruner.step)
		}
	}
}

func (l *loop) logged(ctx context.Context, what string, do func(context.Context) error) {
	switch err := do(ctx); {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, ErrNotPlanner):
		l.fleet.cfg.Log.Info("another server plans", "left", what)
	default:
		l.fleet.cfg.Log.Error(what, "err", err)
	}
	if l.failed > 0 && ctx.Err() == nil {
		l.fleet.cfg.Log.Warn("commands wait for the broker", "devices", l.failed, "err", l.failedBy)
	}
	l.failed, l.failedBy = 0, nil
	l.ownUp(ctx)
}

func (l *loop) failure(what, device string, err error) {
	l.failed++
	l.failedBy = fmt.Errorf("%s %s: %w", what, device, err)
}

// first sends everything open, and takes back what the last process may have left retained: the command of an attempt
// that ended just before that process did and that a device would still obey.
func (l *loop) first(ctx context.Context) error {
	if !l.fleet.sends() {
		return nil
	}
	now := l.fleet.cfg.Now()
	var stale []string
	err := l.fleet.cfg.Store.View(ctx, func(tx Tx) error {
		stale = nil
		devices, err := tx.Devices()
		if err != nil {
			return err
		}
		for _, d := range devices {
			last, err := tx.AttemptsOf(d.ID, 1)
			if err != nil {
				return err
			}
			if len(last) == 1 && last[0].State != AttemptOpen && now.Before(last[0].ExpiresAt) {
				stale = append(stale, d.ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range stale {
		l.clear(ctx, id)
	}
	return l.all(ctx)
}

// job is a device and its newest open attempt, if it has one.
type job struct {
	device  Device
	attempt *Attempt
}

// all looks at every open attempt.
func (l *loop) all(ctx context.Context) error {
	if !l.fleet.sends() {
		return l.touched(ctx)
	}
	var jobs []job
	err := l.fleet.cfg.Store.View(ctx, func(tx Tx) error {
		jobs = nil
		open, err := tx.OpenAttempts()
		if err != nil {
			return err
		}
		newest := make(map[string]*Attempt, len(open))
		for i := range open {
			newest[open[i].DeviceID] = &open[i]
		}
		for id, a := range newest {
			d, err := tx.Device(id)
			if err != nil {
				return err
			}
			jobs = append(jobs, job{d, a})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, j := range jobs {
		l.tend(ctx, j)
	}
	return l.touched(ctx)
}

// touched looks at the devices whose attempts have changed, and ends the sessions of those who lost their right.
func (l *loop) touched(ctx context.Context) error {
	f := l.fleet
	f.mu.Lock()
	dirty := slices.Collect(maps.Keys(f.dirty))
	drops := slices.Collect(maps.Keys(f.drops))
	clear(f.dirty)
	clear(f.drops)
	f.mu.Unlock()
	for _, id := range drops {
		if err := l.out.Drop(ctx, id); err != nil {
			f.cfg.Log.Warn("end session", "name", id, "err", err)
		}
	}
	if err := l.heard(ctx); err != nil {
		f.later(dirty...)
		return err
	}
	if len(dirty) == 0 || !f.sends() { // whose commands are another's to send it hears of too
		return nil
	}
	var devices []Device
	newest := make(map[string]*Attempt, len(dirty))
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if devices, err = tx.DevicesIn(dirty); err != nil {
			return err
		}
		open, err := tx.OpenAttemptsIn(dirty)
		for i := range open {
			newest[open[i].DeviceID] = &open[i]
		}
		return err
	})
	if err != nil {
		f.later(dirty...)
		return err
	}
	for _, d := range devices {
		l.tend(ctx, job{d, newest[d.ID]})
	}
	return nil
}

// tend makes the retained command of one device what its rows say it should be.
func (l *loop) tend(ctx context.Context, j job) {
	id := j.device.ID
	foreign := l.fleet.takeForeign(id)
	if foreign {
		delete(l.sent, id)
	}
	last, sent := l.sent[id]
	switch a := j.attempt; {
	case a == nil:
		l.clear(ctx, id)
	case a.Action == protocol.ActionRollback && a.Version == "":
		// Retained it would roll back at every boot (protocol.ReasonStaleCommand): it lives by its first delivery alone,
		// and must not leave an older command in its place, whoever has sent that one.
		if !sent || last.attempt != a.ID {
			if l.clear(ctx, id) {
				l.sent[id] = sending{attempt: a.ID}
			}
		}
	default:
		now := l.fleet.cfg.Now()
		same := sent && last.attempt == a.ID
		if !due(j.device, a, last, same, sent, now) && !foreign {
			return
		}
		cmd := protocol.Command{Action: a.Action, Force: a.Force, ID: a.CommandID, Version: a.Version, ExpiresAt: a.ExpiresAt}
		l.note(id)
		if err := l.out.Send(ctx, id, cmd); err != nil {
			l.failure("send command to", id, err)
			return // the next pass tries again
		}
		next := sending{attempt: a.ID, at: now, wait: patience}
		if same {
			next.wait = min(2*last.wait, maxPatience)
		}
		l.sent[id] = next
	}
}

// due says whether the command of a must be sent now. A device that is away finds it retained when it comes back, so
// one send is enough; a connected one is given time to answer, and is asked again when it does not.
func due(d Device, a *Attempt, last sending, same, sent bool, now time.Time) bool {
	switch {
	case sent && !same:
		return true // the command of an older attempt is still retained there
	case !d.Online:
		return !same
	case d.Status.Phase.Updating() && (d.Status.CommandID == "" || d.Status.CommandID == a.CommandID):
		return false
	case same:
		return now.Sub(last.at) >= last.wait
	case a.RolloutID != "":
		return true // an operator's command went out when it was given, this one never did
	}
	since := a.CreatedAt
	if d.PhaseSince.After(since) {
		since = d.PhaseSince
	}
	return now.Sub(since) >= patience
}

func (l *loop) clear(ctx context.Context, device string) (done bool) {
	l.note(device)
	if err := l.out.Clear(ctx, device); err != nil {
		l.failure("take back command of", device, err)
		l.fleet.later(device)
		return false
	}
	delete(l.sent, device)
	return true
}

// sweep ends attempts that no status will end.
func (f *Fleet) sweep(ctx context.Context) error {
	now := f.cfg.Now()
	var ended []string
	var rows []Attempt
	var candidates bool
	// Most passes end nothing, and a transaction that writes nothing should not wait for the writer.
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		var err error
		candidates, err = f.sweepTx(tx, now, func(Attempt) error { return nil })
		return err
	})
	if err != nil || !candidates {
		return err
	}
	err = f.planned(ctx, func(tx Tx) error {
		ended, rows = nil, nil
		_, err := f.sweepTx(tx, now, func(a Attempt) error {
			ended, rows = append(ended, a.DeviceID), append(rows, a)
			return tx.PutAttempt(a)
		})
		return err
	})
	if err == nil {
		f.count(rows...)
		f.touch(ended...)
	}
	return err
}

func (f *Fleet) sweepTx(tx Tx, now time.Time, end func(Attempt) error) (any bool, err error) {
	open, err := tx.OpenAttempts()
	if err != nil {
		return false, err
	}
	for _, a := range open {
		if a.RolloutID != "" {
			continue // Plan ends it, by the times of its policy
		}
		d, err := tx.Device(a.DeviceID)
		if err != nil {
			return false, err
		}
		state, reason := overdue(d, a, now, *f.heardSince.Load(), f.cfg.Silence)
		if state == AttemptOpen {
			continue
		}
		any = true
		a.State, a.Reason, a.Message = state, reason, reason.Text()
		a.UpdatedAt, a.EndedAt = now, now
		if err := end(a); err != nil {
			return false, err
		}
	}
	return any, nil
}

// overdue says how time has ended an attempt; AttemptOpen when it has not. A device that waits at a gate may be quiet
// for as long as the command lives, and before listening there was nobody to hear any.
func overdue(d Device, a Attempt, now, listening time.Time, silence time.Duration) (AttemptState, protocol.Reason) {
	waiting := d.Status.Phase == protocol.PhaseWaiting
	heard := listening
	for _, at := range []time.Time{a.UpdatedAt, d.LastSeen} {
		if at.After(heard) {
			heard = at
		}
	}
	switch {
	case a.Phase.Updating() && !waiting && now.Sub(heard) > silence:
		return AttemptFailed, protocol.ReasonSilent
	case !a.ExpiresAt.IsZero() && now.After(a.ExpiresAt) && (waiting || a.Phase == "" || !d.Status.Phase.Updating()):
		return AttemptExpired, protocol.ReasonExpired
	}
	return AttemptOpen, protocol.ReasonNone
}
