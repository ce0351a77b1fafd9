package fleet

import (
	"container/heap"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"bmsota/protocol"
)

// Fate is what a release does to a device in a rehearsal.
type Fate string

// The fates.
const (
	FateGood     Fate = "good"
	FateCrash    Fate = "crash"    // rolls back after a crash in the trial
	FateSilent   Fate = "silent"   // restarts into the new image and is never heard of again
	FateBrownout Fate = "brownout" // loses supply in the trial
	FateFail     Fate = "fail"     // never gets the image down
	FateFlaky    Fate = "flaky"    // fails the first time, then is good
	FateRefuse   Fate = "refuse"   // refuses the release
	FateDark     Fate = "dark"     // succeeds, and goes silent a while after
	FateMute     Fate = "mute"     // never takes the command up
)

// Fates lists them all.
func Fates() []Fate {
	return []Fate{FateGood, FateCrash, FateSilent, FateBrownout, FateFail, FateFlaky, FateRefuse, FateDark, FateMute}
}

// Mix is how often each fate comes, as shares of their sum.
type Mix map[Fate]float64

// check refuses a mix with unknown fates or shares that are none.
func (m Mix) check() error {
	sum := 0.0
	for fate, share := range m {
		if !slices.Contains(Fates(), fate) {
			return invalid("mix: %.32q is none of %v", string(fate), Fates())
		}
		if !(share >= 0 && share <= 1e6) {
			return invalid("mix: a share of %v for %s", share, fate)
		}
		sum += share
	}
	if sum > 1+1e-9 { // ten tenths are a little more than one
		return invalid("mix: the shares add up to %.4g, the most is 1", sum)
	}
	if sum <= 0 {
		return invalid("mix: the shares add up to nothing")
	}
	return nil
}

// of is the fate of a device: by its hash, so that it is the same whenever it is asked.
func (m Mix) of(seed, device string) Fate {
	sum := 0.0
	for _, fate := range Fates() { // in one order: sums of floating numbers depend on it
		sum += m[fate]
	}
	at := float64(order(seed+"/fate", device)) / math.MaxUint64 * sum
	for _, fate := range Fates() {
		if at -= m[fate]; at < 0 {
			return fate
		}
	}
	return FateGood
}

// world is a fleet in memory and virtual time that a rollout runs over: Plan decides about it as it does about the
// rows of a store, Apply folds what its devices say. It keeps no clock and draws no numbers.
type world struct {
	rollout Rollout
	release protocol.Release
	plan    func(Input, time.Time) Output
	// looked sees every step after it was applied. May be nil.
	looked func(in *Input, out *Output)
	// hears sees a device before what it says is applied. May be nil.
	hears  func(d *actor, s protocol.Status)
	barred string
	// batch is the shortest time between two plans: what happens within it is looked at together.
	batch time.Duration
	// through has run go on while the rollout rests.
	through bool

	now       time.Time
	listening time.Time
	members   []Member // by number, which is the rank that each began with
	devices   []actor  // likewise
	attempts  []Attempt
	figures   Figures
	order     []int          // numbers by rank
	numbers   map[string]int // by device
	open      map[int]struct{}
	silent    map[int]struct{}
	tried     map[int]struct{} // pending after a try
	left      map[int]struct{} // devices that have gone while it ran
	first     int              // no pending member has a rank below it
	begun     []time.Time      // starts of the last minute, oldest first
	events    events
	zones     *zones
	steps     int
}

// actor is a device that plays a fate.
type actor struct {
	Device
	fate Fate
	took time.Duration // a whole update of it
	dead bool          // it will not be heard of again
	boot int
	seq  uint64
}

// event is something a device does.
type event struct {
	at      time.Time
	number  int
	command string         // that it is a part of; empty for what needs none
	phase   protocol.Phase // empty: with a command it goes dead, without one it connects or does what is said below
	reason  protocol.Reason
	charge  int  // with no phase: 1 and -1 begin and end charging
	leaves  bool // with no phase: it goes, unless it is being updated
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(v any)        { *e = append(*e, v.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	v := (*e)[last]
	*e = (*e)[:last]
	return v
}

// newWorld makes a world of a rollout that begins at its WaveSince. Members and devices go together, by rank.
func newWorld(r Rollout, release protocol.Release, members []Member, devices []actor) *world {
	w := &world{
		rollout: r, release: release, plan: Plan, now: r.WaveSince, members: members, devices: devices,
		attempts: make([]Attempt, len(members)), figures: Figures{Pending: len(members)},
		order: make([]int, len(members)), numbers: make(map[string]int, len(members)),
		open: make(map[int]struct{}), silent: make(map[int]struct{}), tried: make(map[int]struct{}), left: make(map[int]struct{}), zones: new(zones),
	}
	for n, m := range members {
		w.order[m.Rank], w.numbers[m.DeviceID] = n, n
	}
	return w
}

// The longest time between two looks at a world in which nothing happens: while attempts are open, and else.
const (
	longestTick = time.Minute
	longestRest = 15 * time.Minute
)

// run goes on until the rollout is over, rests (paused or halted, with nothing open), or until comes.
func (w *world) run(ctx context.Context, until time.Time) error {
	tick := time.Second
	for w.now.Before(until) {
		if w.steps++; w.steps%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if w.step() {
			tick = time.Second
		} else {
			longest := longestRest
			if w.figures.Open > 0 {
				longest = longestTick
			}
			tick = min(2*tick, longest)
		}
		if !w.through && w.rollout.State != RolloutRunning && w.figures.Open == 0 {
			return nil
		}
		w.wait(w.now.Add(tick))
	}
	return nil
}

// wait lets time pass until something happens that may change a plan, and no longer than until.
func (w *world) wait(until time.Time) {
	if r := &w.rollout; !r.SoakSince.IsZero() {
		if soaked := r.SoakSince.Add(r.Soaks[r.Wave]); soaked.After(w.now) && soaked.Before(until) {
			until = soaked
		}
	}
	due := w.now.Add(w.batch)
	until = maxTime(until, due)
	for len(w.events) > 0 && !w.events[0].at.After(until) {
		e := heap.Pop(&w.events).(event)
		if e.at.After(w.now) {
			w.now = e.at
		}
		w.happen(e)
		if e.phase == "" || e.phase.Ended() {
			until = maxTime(due, w.now) // what else comes by then
		}
	}
	w.now = until
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// step plans once and applies what was decided.
func (w *world) step() (changed bool) {
	in := w.input()
	out := w.plan(in, w.now)
	w.apply(&out)
	if w.looked != nil {
		w.looked(&in, &out)
	}
	return !out.idle() || len(out.Ask) > 0
}

func (w *world) input() Input {
	for len(w.begun) > 0 && w.now.Sub(w.begun[0]) >= time.Minute {
		w.begun = w.begun[1:]
	}
	in := Input{Rollout: w.rollout, Release: w.release, Figures: w.figures, Recent: len(w.begun), Barred: w.barred,
		Open: w.progress(w.open), Silent: w.progress(w.silent), Waiting: w.waiting(w.rollout.limit()), Listening: w.listening, Zones: w.zones}
	for _, g := range w.progress(w.tried) {
		if !g.Device.Online {
			in.Gone = append(in.Gone, Candidate{Member: g.Member, Device: g.Device})
		}
	}
	w.findSpares(&in)
	if spread := w.rollout.Policy.Spread; spread != "" {
		in.Taken = make(map[string]bool, len(w.open))
		for number := range w.open {
			in.Taken[w.devices[number].Labels[spread]] = true
		}
	}
	if silence := w.rollout.Policy.Silence; w.now.Sub(w.listening) > silence {
		for number := range w.left {
			m := &w.members[number]
			if touched := m.State == MemberSucceeded || m.State == MemberPending && m.Tries > 0; touched && w.now.Sub(w.devices[number].LastSeen) > silence {
				in.Figures.Dark++
			}
		}
	}
	return in
}

// findSpares looks for members that are away and those that may take their place.
func (w *world) findSpares(in *Input) {
	r := &w.rollout
	before := r.awayBefore(w.listening, w.now)
	if before.IsZero() || r.lastWave() || w.figures.begun() >= r.limit() {
		return
	}
	for rank := w.first; rank < r.limit(); rank++ {
		m, d := &w.members[w.order[rank]], &w.devices[w.order[rank]]
		if m.State == MemberPending && m.Attempts == 0 && !d.Online && d.LastSeen.Before(before) && !d.Status.Phase.Updating() {
			in.Away = append(in.Away, *m)
		}
	}
	in.Spare = w.candidates(r.limit(), len(w.order))
}

func (w *world) progress(numbers map[int]struct{}) []Progress {
	list := make([]Progress, 0, len(numbers))
	for number := range numbers {
		if w.batch > 0 && w.undecided(&w.attempts[number]) {
			continue // a large fleet has thousands of them at every look
		}
		list = append(list, Progress{w.members[number], w.attempts[number], &w.devices[number].Device})
	}
	slices.SortFunc(list, func(a, b Progress) int { return a.Member.Rank - b.Member.Rank })
	return list
}

// undecided says that Plan can only leave an attempt as it is: neither it nor its time is over.
func (w *world) undecided(a *Attempt) bool {
	return a.State == AttemptOpen && w.rollout.State == RolloutRunning && w.now.Sub(a.UpdatedAt) <= w.rollout.Policy.Silence && !w.now.After(a.ExpiresAt)
}

func (w *world) waiting(limit int) iter.Seq[Candidate] {
	return func(yield func(Candidate) bool) {
		for w.first < len(w.order) && w.members[w.order[w.first]].State != MemberPending {
			w.first++
		}
		w.candidates(w.first, limit)(yield)
	}
}

// candidates gives the pending members with from <= rank < below that are connected.
func (w *world) candidates(from, below int) iter.Seq[Candidate] {
	return func(yield func(Candidate) bool) {
		for rank := from; rank < min(below, len(w.order)); rank++ {
			n := w.order[rank]
			if w.members[n].State == MemberPending && w.devices[n].Online {
				if !yield(Candidate{Member: w.members[n], Device: &w.devices[n].Device}) {
					return
				}
			}
		}
	}
}

func (w *world) apply(out *Output) {
	w.rollout = out.Rollout
	byAttempt := make(map[string]int, len(out.Members))
	for _, m := range out.Members {
		n := w.numbers[m.DeviceID]
		old := w.members[n]
		w.members[n], w.order[m.Rank] = m, n
		w.figures.move(old.State, m.State)
		delete(w.open, n)
		delete(w.silent, n)
		delete(w.tried, n)
		switch m.State {
		case MemberOpen:
			w.open[n] = struct{}{}
		case MemberSilent:
			w.silent[n] = struct{}{}
		case MemberPending:
			w.first = min(w.first, m.Rank)
			if m.Tries > 0 {
				w.tried[n] = struct{}{}
			}
		}
		byAttempt[m.AttemptID] = n
	}
	for _, a := range out.End {
		w.attempts[byAttempt[a.ID]] = a
	}
	for _, a := range out.Begin {
		number := byAttempt[a.ID]
		w.attempts[number] = a
		w.begun = append(w.begun, w.now)
		w.play(number, a.CommandID)
	}
	for _, id := range out.Ask {
		w.devices[w.numbers[id]].LastSeen = w.now
	}
}

// play schedules what a device does with a command.
func (w *world) play(number int, command string) {
	d := &w.devices[number]
	part := func(n, of time.Duration) time.Time { return w.now.Add(d.took * n / of) }
	say := func(at time.Time, p protocol.Phase, why protocol.Reason) {
		heap.Push(&w.events, event{at: at, number: number, command: command, phase: p, reason: why})
	}
	if d.fate == FateMute {
		return
	}
	say(part(1, 20), protocol.PhaseChecking, protocol.ReasonNone)
	if d.fate == FateRefuse {
		say(part(2, 20), protocol.PhaseRefused, protocol.ReasonBadSignature)
		return
	}
	say(part(2, 20), protocol.PhaseDownloading, protocol.ReasonNone)
	if d.fate == FateFail || d.fate == FateFlaky && w.members[number].Attempts == 1 {
		say(part(10, 20), protocol.PhaseFailed, protocol.ReasonStalled)
		return
	}
	say(part(14, 20), protocol.PhaseRebooting, protocol.ReasonNone)
	switch d.fate {
	case FateSilent:
		heap.Push(&w.events, event{at: part(15, 20), number: number, command: command})
	case FateCrash:
		say(part(20, 20), protocol.PhaseRolledBack, protocol.ReasonCrash)
	case FateBrownout:
		say(part(20, 20), protocol.PhaseRolledBack, protocol.ReasonBrownout)
	default:
		say(part(16, 20), protocol.PhaseTrial, protocol.ReasonNone)
		say(part(20, 20), protocol.PhaseConfirmed, protocol.ReasonNone)
		if d.fate == FateDark {
			heap.Push(&w.events, event{at: part(30, 20), number: number, command: command})
		}
	}
}

// happen does what an event says.
func (w *world) happen(e event) {
	d := &w.devices[e.number]
	if e.phase == "" {
		switch {
		case e.charge != 0:
			d.Status.Battery = &protocol.Battery{SOCPct: 80, Charging: e.charge > 0}
			if d.Online {
				d.LastSeen = w.now
			}
		case e.command != "":
			d.dead = true
			fallthrough
		case e.leaves && w.attempts[e.number].State != AttemptOpen:
			d.Online = false
			w.left[e.number] = struct{}{}
		case !e.leaves && !d.dead:
			d.Online, d.LastSeen = true, w.now
			delete(w.left, e.number)
		}
		return
	}
	a := &w.attempts[e.number]
	current := a.State == AttemptOpen && a.CommandID == e.command
	if !current && e.phase == protocol.PhaseChecking {
		// The command was taken back before the device took it up: nothing of it happens.
		w.events = slices.DeleteFunc(w.events, func(o event) bool { return o.command == e.command && o.number == e.number })
		heap.Init(&w.events)
		return
	}
	if e.phase == protocol.PhaseTrial || e.phase == protocol.PhaseRolledBack {
		d.boot++
		d.seq = 0
	}
	d.seq++
	s := d.Status
	s.BootID, s.Seq, s.Phase, s.Reason, s.CommandID = fmt.Sprint("b", d.boot), d.seq, e.phase, e.reason, e.command
	s.RollbackPending = e.phase == protocol.PhaseTrial
	switch e.phase {
	case protocol.PhaseTrial, protocol.PhaseConfirmed:
		s.CurrentVersion, s.ImageSHA256 = w.release.Version, w.release.SHA256
	case protocol.PhaseRolledBack:
		s.FailedSHA256 = w.release.SHA256
	}
	var open *Attempt
	if current {
		open = a
	}
	if w.hears != nil {
		w.hears(d, s)
	}
	next, after, _ := Apply(d.Device, open, s, w.now)
	d.Device = next
	if after != nil {
		*a = *after
	}
}
