package fleet

import (
	"container/heap"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bmsota/protocol"
)

var (
	simulationSeed   = flag.Uint64("simulation-seed", 0, "replay this one fleet of the simulation")
	simulationFleets = flag.Uint64("simulation-fleets", 0, "play so many fleets")
)

// Figures of the simulation in a normal run; BMSOTA_ROLLOUTS=long runs a million.
const (
	simulatedFleets     = 6_000
	simulatedFleetsLong = 1_000_000
)

var epoch = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// scene is one fleet, one policy and what happens to them, from a seed.
type scene struct {
	seed   uint64
	random *rand.Rand
	w      *world
	policy Policy

	// The ledger: what is known without asking Plan.
	attempted map[string]bool
	tries     map[string]int
	openOf    map[string]string // attempt by device
	starts    []time.Time
	harmed    map[string]Fate
	absent    map[string]bool // is away or leaves for good
	back      map[string]bool // leaves and comes back, perhaps too late
	leavers   bool            // one that has left may count as dark, whatever it runs
	wave      int
	waveSince time.Time
	halted    bool
	paused    bool
	resumed   bool
	restarts  int
	told      uint64 // by twins of liars
	errs      []string
}

func (s *scene) fail(format string, args ...any) {
	if len(s.errs) < 5 {
		s.errs = append(s.errs, fmt.Sprintf("%v: ", s.w.now.Sub(epoch))+fmt.Sprintf(format, args...))
	}
}

// chance is true with probability p.
func (s *scene) chance(p float64) bool { return s.random.Float64() < p }

// within is a duration up to d, in whole seconds.
func (s *scene) within(d time.Duration) time.Duration {
	return time.Duration(s.random.Int64N(int64(d/time.Second)+1)) * time.Second
}

func newScene(seed uint64) *scene {
	s := &scene{seed: seed, random: rand.New(rand.NewPCG(seed, 0xf1ee7)), attempted: map[string]bool{}, tries: map[string]int{},
		openOf: map[string]string{}, harmed: map[string]Fate{}, absent: map[string]bool{}, back: map[string]bool{}, waveSince: epoch}
	n := 1 + s.random.IntN(24)
	s.policy = s.randomPolicy(n)
	mix := s.randomMix()
	release := protocol.Release{SHA256: strings.Repeat("ab", 32), Version: "2.0.0", Project: "bms", Chip: "esp32", Size: 1 << 20}

	members := make([]Member, n)
	for i := range members {
		members[i] = Member{RolloutID: "r", DeviceID: fmt.Sprintf("bms-%06x", i), State: MemberPending}
	}
	rankMembers(members, s.policy.Seed)
	actors := make([]actor, n)
	var coming []event
	for i, m := range members {
		a := &actors[i]
		a.fate, a.took = mix.of(fmt.Sprint(seed), m.DeviceID), 20*time.Second+s.within(2*time.Minute)
		a.Device = Device{ID: m.DeviceID, Online: true, Version: "1.0.0", SHA256: strings.Repeat("0", 64), LastSeen: epoch,
			Labels: Labels{"bank": fmt.Sprint(s.random.IntN(1 + n/2)), TimezoneLabel: []string{"+00:00", "+05:30", "-08:00"}[s.random.IntN(3)]},
			Status: protocol.Status{Phase: protocol.PhaseIdle, Chip: "esp32", Project: "bms", CurrentVersion: "1.0.0", SlotSize: 2 << 20,
				Battery: &protocol.Battery{SOCPct: 80}}}
		if s.chance(0.1) {
			a.Online = false
			coming = append(coming, event{at: epoch.Add(s.within(20 * time.Minute)), number: i})
		}
		if s.chance(0.1) {
			from := s.within(10 * time.Minute)
			coming = append(coming, event{at: epoch.Add(from), number: i, charge: 1}, event{at: epoch.Add(from + time.Second + s.within(20*time.Minute)), number: i, charge: -1})
		}
	}
	r := Rollout{ID: "r", State: RolloutRunning, SHA256: release.SHA256, Version: "2.0.0", Project: "bms", Chip: "esp32", Policy: s.policy,
		Members: n, WaveSince: epoch, CreatedAt: epoch, ExpiresAt: epoch.Add(s.policy.Lasts)}
	var waves []Wave
	r.Limits, waves = s.policy.limits(n)
	for _, w := range waves {
		r.Soaks = append(r.Soaks, w.Soak)
	}
	s.w = newWorld(r, release, members, actors)
	s.w.listening = epoch
	for _, e := range append(coming, s.travels()...) {
		s.w.events = append(s.w.events, e)
	}
	heap.Init(&s.w.events)
	s.w.looked = s.check
	return s
}

// travels has devices be away from long before, and leave between two tries; some come back. It draws from numbers of its
// own, so that a seed of before there were travellers means the same fleet.
func (s *scene) travels() (events []event) {
	random := rand.New(rand.NewPCG(s.seed, 0x7a4e1))
	if random.IntN(4) > 0 {
		return nil
	}
	for i := range s.w.devices {
		d := &s.w.devices[i]
		back := event{at: epoch.Add(time.Duration(random.Int64N(int64(48 * time.Hour)))), number: i}
		switch x := random.Float64(); {
		case x < 0.15:
			d.Online, d.LastSeen = false, epoch.Add(-30*24*time.Hour)
		case x < 0.3:
			s.leavers = true
			events = append(events, event{at: epoch.Add(time.Duration(random.Int64N(int64(20 * time.Minute)))), number: i, leaves: true})
			back.at = back.at.Add(20 * time.Minute)
		default:
			continue
		}
		if random.IntN(2) == 0 {
			events = append(events, back)
			s.back[d.ID] = true
		} else {
			s.absent[d.ID] = true
		}
	}
	return events
}

func (s *scene) randomPolicy(n int) Policy {
	p := Policy{Selector: Selector{All: true}, Seed: fmt.Sprint("seed", s.seed), NeedPct: 50, Concurrency: 1 + s.random.IntN(8), Retries: s.random.IntN(3),
		RetryAfter: s.within(2 * time.Minute), Silence: 3*time.Minute + s.within(3*time.Minute), Deadline: 30 * time.Minute, Lasts: 240 * time.Hour}
	switch s.random.IntN(3) {
	case 0:
		p.Waves = []Wave{{Percent: 100}}
	case 1:
		p.Waves = []Wave{{Percent: 10, Soak: s.within(5 * time.Minute)}, {Percent: 50, Soak: s.within(5 * time.Minute)}, {Percent: 100, Soak: s.within(10 * time.Minute)}}
	default:
		p.Waves = []Wave{{Count: 1 + s.random.IntN(3), Soak: s.within(5 * time.Minute)}, {Count: 1 + s.random.IntN(n), Soak: time.Minute}, {Percent: 100}}
	}
	if s.chance(0.5) {
		limit := s.random.IntN(4)
		p.Stop.Failed = &limit
	} else {
		pct := float64(s.random.IntN(40))
		p.Stop.FailedPct = &pct
	}
	if s.chance(0.3) {
		limit := s.random.IntN(2)
		p.Stop.RolledBack = &limit
	}
	if s.chance(0.3) {
		limit := s.random.IntN(2)
		p.Stop.Brownouts = &limit
	}
	if s.chance(0.3) {
		p.PerMinute = 1 + s.random.IntN(4)
	}
	if s.chance(0.3) {
		p.Jitter = s.within(3 * time.Minute)
	}
	if s.chance(0.3) {
		p.Spread = "bank"
	}
	if s.chance(0.3) {
		p.Gate.NotWhileCharging = true
	}
	if s.chance(0.1) {
		p.Window = "01:00-05:00"
	}
	return p
}

func (s *scene) randomMix() Mix {
	mix := Mix{FateGood: 1}
	if s.chance(0.3) {
		return mix
	}
	for _, f := range Fates() {
		if f != FateGood && s.chance(0.3) {
			mix[f] = s.random.Float64() * 0.3
		}
	}
	return mix
}

// wavesLimit is how many devices may have been touched, computed from the policy as it was written and nothing else.
func (s *scene) wavesLimit(wave int) int {
	n, reached := len(s.w.members), []int{}
	for _, w := range s.policy.Waves {
		limit := w.Count
		if limit == 0 {
			limit = int(math.Ceil(w.Percent / 100 * float64(n)))
		}
		if limit = min(limit, n); len(reached) == 0 || limit > reached[len(reached)-1] {
			reached = append(reached, limit)
		}
	}
	return reached[min(wave, len(reached)-1)]
}

// check holds every step against the ledger.
func (s *scene) check(in *Input, out *Output) {
	now, r := s.w.now, &out.Rollout
	for _, a := range out.End {
		if a.State == AttemptSuperseded {
			s.tries[a.DeviceID]--
		}
	}
	if s.halted && len(out.Begin) > 0 {
		s.fail("%d started after a halt", len(out.Begin))
	}
	if (s.paused || r.State == RolloutAborted) && len(out.Begin) > 0 {
		s.fail("%d started while it is %s", len(out.Begin), r.State)
	}
	if s.halted && r.State == RolloutRunning {
		s.fail("a halted rollout runs again by itself")
	}
	for _, a := range out.Begin {
		number := -1
		for i := range s.w.members {
			if s.w.members[i].DeviceID == a.DeviceID {
				number = i
			}
		}
		d := &s.w.devices[number]
		s.attempted[a.DeviceID] = true
		s.tries[a.DeviceID]++
		s.starts = append(s.starts, now)
		if !d.Online {
			s.fail("%s started while it was away", d.ID)
		}
		if s.policy.Gate.NotWhileCharging && d.Status.Battery.Charging {
			s.fail("%s started while it charged", d.ID)
		}
		if s.policy.Window != "" {
			if h := now.In(s.w.zones.of(d.Labels)).Hour(); h < 1 || h >= 5 {
				s.fail("%s started at %d o'clock", d.ID, h)
			}
		}
		if s.tries[a.DeviceID] > s.policy.Retries+1 {
			s.fail("try %d of %s, the budget is %d", s.tries[a.DeviceID], d.ID, s.policy.Retries+1)
		}
		if early := (&Rollout{ID: "r", Wave: r.Wave, Policy: s.policy}).jitterOf(d.ID); !s.resumed && now.Before(s.waveSince.Add(early)) && r.Wave == s.wave {
			s.fail("%s started before its moment in the wave", d.ID)
		}
		if d.fate != FateGood && d.fate != FateFlaky {
			s.harmed[d.ID] = d.fate
		}
	}
	if got, limit := len(s.attempted), s.wavesLimit(s.wave); got > limit {
		s.fail("%d devices attempted in wave %d, which may touch %d", got, s.wave+1, limit)
	}
	if len(s.w.open) > s.policy.Concurrency {
		s.fail("%d open attempts, the cap is %d", len(s.w.open), s.policy.Concurrency)
	}
	if s.policy.PerMinute > 0 {
		recent := 0
		for i := len(s.starts) - 1; i >= 0 && now.Sub(s.starts[i]) < time.Minute; i-- {
			recent++
		}
		if recent > s.policy.PerMinute {
			s.fail("%d starts within a minute, the cap is %d", recent, s.policy.PerMinute)
		}
	}
	if s.policy.Spread != "" {
		busy := map[string]string{}
		for number := range s.w.open {
			d := &s.w.devices[number]
			if other, taken := busy[d.Labels["bank"]]; taken {
				s.fail("%s and %s of one bank are updated at once", other, d.ID)
			}
			busy[d.Labels["bank"]] = d.ID
		}
	}
	s.checkFailures(in, out)
	if r.Wave != s.wave {
		if r.Wave != s.wave+1 {
			s.fail("wave %d after wave %d", r.Wave+1, s.wave+1)
		}
		if soak := s.w.rollout.Soaks[s.wave]; soak > 0 && (in.Rollout.SoakSince.IsZero() || now.Sub(in.Rollout.SoakSince) < soak) {
			s.fail("wave %d began %v after the one before stood, its soak is %v", r.Wave+1, now.Sub(in.Rollout.SoakSince), soak)
		}
		s.checkStood()
		s.wave, s.waveSince = r.Wave, now
	}
	if r.State == RolloutHalted {
		s.halted = true
	}
}

// checkStood counts what the wave that has been left speaks by.
func (s *scene) checkStood() {
	ended, succeeded := 0, 0
	for number := range s.w.members {
		m, d := &s.w.members[number], &s.w.devices[number]
		switch {
		case m.State == MemberOpen:
			s.fail("wave %d was left while %s was under way", s.wave+1, d.ID)
		case m.State != MemberPending:
			ended++
		case m.Tries > 0 && !d.Online:
			s.fail("wave %d was left although %s failed a try and went", s.wave+1, d.ID)
		case m.Tries > 0 && s.w.now.Before(m.NotBefore):
			s.fail("wave %d was left although %s is to be tried again", s.wave+1, d.ID)
		}
		if d.SHA256 == s.w.release.SHA256 {
			succeeded++
		}
	}
	if limit := s.wavesLimit(s.wave); ended < limit && float64(succeeded) < s.policy.NeedPct/100*float64(limit) {
		s.fail("wave %d of %d was left when %d had come to an end and %d had succeeded", s.wave+1, limit, ended, succeeded)
	}
}

// checkFailures counts from the rows of devices and attempts and wants the halt that the rules promise.
func (s *scene) checkFailures(in *Input, out *Output) {
	if s.resumed || out.Rollout.State != RolloutRunning {
		return
	}
	failed, rolledBack, brownouts := 0, 0, 0
	for number := range s.w.members {
		switch s.w.members[number].State {
		case MemberFailed, MemberSilent:
			failed++
		case MemberRolledBack:
			failed++
			rolledBack++
		case MemberBrownout:
			brownouts++
		}
	}
	stop, limit := s.policy.Stop, s.wavesLimit(in.Rollout.Wave)
	switch {
	case stop.Failed != nil && failed > *stop.Failed:
		s.fail("%d devices failed, %d may, and it runs on", failed, *stop.Failed)
	case stop.FailedPct != nil && float64(failed) > *stop.FailedPct/100*float64(limit)+1e-9:
		s.fail("%d devices of %d failed, %v %% may, and it runs on", failed, limit, *stop.FailedPct)
	case stop.RolledBack != nil && rolledBack > *stop.RolledBack:
		s.fail("%d devices rolled back, %d may, and it runs on", rolledBack, *stop.RolledBack)
	case stop.Brownouts != nil && brownouts > *stop.Brownouts:
		s.fail("%d brownouts, %d may, and it runs on", brownouts, *stop.Brownouts)
	}
}

// restart is the end of one process and the start of the next: what is not in rows is gone, and nobody is connected.
func (s *scene) restart(forget bool) {
	w := s.w
	b, err := json.Marshal(w.rollout)
	if err != nil {
		s.fail("%v", err)
	}
	var r Rollout
	if err := json.Unmarshal(b, &r); err != nil {
		s.fail("%v", err)
	}
	if forget && r.State == RolloutHalted {
		r.State = RolloutRunning
	}
	// What devices do while it is down is heard when they are connected again, in the order in which they did it.
	up := w.now.Add(s.within(20 * time.Minute))
	w.rollout, w.listening, w.zones, w.first, w.begun, w.now = r, up, new(zones), 0, nil, up
	for _, at := range s.starts { // the store counts attempts
		if w.now.Sub(at) < time.Minute {
			w.begun = append(w.begun, at)
		}
	}
	connects := make([]time.Time, len(w.devices))
	for number := range w.devices {
		connects[number] = up.Add(s.within(30 * time.Second))
		if d := &w.devices[number]; d.Online {
			d.Online = false
			w.events = append(w.events, event{at: connects[number], number: number})
		}
	}
	slices.SortStableFunc(w.events, func(a, b event) int { return a.at.Compare(b.at) })
	for i := range w.events {
		if e := &w.events[i]; e.at.Before(connects[e.number]) {
			connects[e.number] = connects[e.number].Add(time.Millisecond)
			e.at = connects[e.number]
		}
	}
	heap.Init(&w.events)
	s.restarts++
}

// play runs the scene to its end.
func (s *scene) play(m mutant) {
	w := s.w
	if m.alter != nil {
		w.plan = func(in Input, now time.Time) Output {
			original := in.Rollout
			m.alter(&in, w)
			out := Plan(in, now)
			out.Rollout.Policy, out.Rollout.Limits, out.Rollout.Soaks = original.Policy, original.Limits, original.Soaks
			return out
		}
	}
	end := epoch.Add(s.policy.Lasts + time.Hour)
	for acts := 0; acts < 3 && s.chance(0.4); acts++ {
		if err := w.run(context.Background(), w.now.Add(s.within(15*time.Minute))); err != nil {
			s.fail("%v", err)
		}
		f := w.figures
		switch s.random.IntN(4) {
		case 0, 1:
			s.restart(m.forgetHalt)
		case 2:
			if w.rollout.verb(VerbPause, f, "anna", w.now) == nil {
				s.paused = true
				w.through = true
				_ = w.run(context.Background(), w.now.Add(s.within(20*time.Minute)))
				w.through = false
				if w.rollout.verb(VerbResume, f, "anna", w.now) == nil {
					s.resumed = true
				}
				s.paused = false
				s.waveSince = w.now
			}
		case 3:
			if s.halted && w.rollout.verb(VerbResume, w.figures, "anna", w.now) == nil {
				s.halted, s.resumed, s.waveSince = false, true, w.now
			}
		}
	}
	if err := w.run(context.Background(), end); err != nil {
		s.fail("%v", err)
	}
	if s.halted {
		// A second start of the server finds it halted, and so it stays.
		s.restart(m.forgetHalt)
		_ = w.run(context.Background(), w.now.Add(10*time.Minute))
	}
	s.atEnd()
}

// atEnd looks at what came of it.
func (s *scene) atEnd() {
	w := s.w
	for _, m := range w.members {
		if m.State == MemberOpen {
			s.fail("%s is open at the end", m.DeviceID)
		}
	}
	// A wave that lacks its successes because a device of it left after its command was taken back waits for it: the
	// command may have reached it, and nobody knows what came of it.
	waits := false
	for number := range w.members {
		m := &w.members[number]
		waits = waits || m.State == MemberPending && m.Attempts > 0 && !w.devices[number].Online
	}
	good := !s.leavers
	for number := range w.devices {
		d := &w.devices[number]
		healthy := d.fate == FateGood || d.fate == FateFlaky && s.policy.Retries > 0
		good = good && healthy
		m := w.members[number]
		// One that failed a try, left, and has not come back when the rollout ends has had its chance.
		late := s.back[d.ID] && m.State == MemberSilent && !d.Online
		healthy = healthy && (!s.absent[d.ID] || d.Online) && !late
		switch {
		case d.fate == FateGood && m.State != MemberPending && m.State != MemberSucceeded:
			s.fail("healthy %s is %s (%s %s)", d.ID, m.State, m.Reason, m.Message)
		case w.rollout.State == RolloutDone && !waits && healthy && d.SHA256 != w.release.SHA256:
			s.fail("healthy %s does not run the release at the end: %s", d.ID, m.State)
		case m.State == MemberSucceeded && d.SHA256 != w.release.SHA256:
			s.fail("%s is said to have succeeded and does not run the release", d.ID)
		}
	}
	if good && w.rollout.State != RolloutDone {
		s.fail("a good release on healthy devices ended %s: %+v", w.rollout.State, w.rollout.Halt)
	}
	if st := w.rollout.State; st != RolloutDone && st != RolloutHalted {
		s.fail("still %s at the end", st)
	}
	if w.rollout.State == RolloutDone && len(s.harmed) > 0 && s.policy.Stop.Failed != nil && *s.policy.Stop.Failed == 0 && !s.resumed {
		for id, fate := range s.harmed {
			if fate != FateBrownout && fate != FateDark {
				s.fail("done although %s was %s and none may fail", id, fate)
			}
		}
	}
}

// mutant switches a rule off.
type mutant struct {
	name       string
	alter      func(in *Input, w *world)
	forgetHalt bool
}

var mutants = []mutant{
	{name: "the waves' limits", alter: func(in *Input, w *world) {
		in.Rollout.Limits = []int{len(w.members)}
		in.Rollout.Soaks = []time.Duration{0}
		in.Rollout.Wave = 0
		in.Waiting = w.waiting(len(w.members))
	}},
	{name: "the stop rules", alter: func(in *Input, _ *world) { in.Rollout.Policy.Stop = Stop{} }},
	{name: "the limit on failures", alter: func(in *Input, _ *world) {
		in.Rollout.Policy.Stop.Failed, in.Rollout.Policy.Stop.FailedPct = nil, nil
	}},
	{name: "the limit on rollbacks", alter: func(in *Input, _ *world) { in.Rollout.Policy.Stop.RolledBack = nil }},
	{name: "the limit on brownouts", alter: func(in *Input, _ *world) { in.Rollout.Policy.Stop.Brownouts = nil }},
	{name: "silence as a failure", alter: func(in *Input, _ *world) {
		in.Rollout.Policy.Silence = 1000 * time.Hour
	}},
	{name: "the cap on open attempts", alter: func(in *Input, _ *world) { in.Rollout.Policy.Concurrency = 1000 }},
	{name: "the cap per minute", alter: func(in *Input, _ *world) { in.Rollout.Policy.PerMinute = 0 }},
	{name: "jitter", alter: func(in *Input, _ *world) { in.Rollout.Policy.Jitter = 0 }},
	{name: "spread", alter: func(in *Input, _ *world) { in.Rollout.Policy.Spread = "" }},
	{name: "the gate", alter: func(in *Input, _ *world) { in.Rollout.Policy.OverrideGates = true }},
	{name: "the window", alter: func(in *Input, _ *world) { in.Rollout.Policy.Window = "" }},
	{name: "the retry budget", alter: func(in *Input, _ *world) { in.Rollout.Policy.Retries = 50 }},
	{name: "the soak", alter: func(in *Input, _ *world) { in.Rollout.Soaks = make([]time.Duration, len(in.Rollout.Soaks)) }},
	{name: "that others take the place of who is away", alter: func(in *Input, _ *world) { in.Away = nil }},
	{name: "that who failed a try and left is not away", alter: func(in *Input, _ *world) { in.Gone = nil }},
	{name: "that enough of a wave succeed", alter: func(in *Input, _ *world) { in.Rollout.Policy.NeedPct = 1e-9 }},
	{name: "since when the server listens", alter: func(in *Input, _ *world) { in.Listening = epoch }},
	{name: "that a halt is in the row", forgetHalt: true},
	{name: "that a halted rollout starts nothing", alter: func(in *Input, _ *world) { in.Rollout.State = RolloutRunning; in.Rollout.Policy.Stop = Stop{} }},
}

// simulate plays scenes with every processor until n are played or one fails, and returns what failed.
func simulate(from, n uint64, m mutant, figures func(*scene)) (failed *scene, played uint64) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // fleets are small and soon over
	var next atomic.Uint64
	var mu sync.Mutex
	var wg sync.WaitGroup
	next.Store(from)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := next.Add(1) - 1
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if seed >= from+n || stop {
					return
				}
				s := newScene(seed)
				s.play(m)
				mu.Lock()
				if len(s.errs) > 0 && (failed == nil || failed.seed > seed) {
					failed = s
				}
				played++
				if figures != nil {
					figures(s)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed, played
}

// TestRolloutsKeepTheirPromisesOverRandomFleets: after every step of every fleet the number of devices touched is
// within the wave, nothing starts after a halt, caps, spread, gates and budgets hold; a halt survives a restart; at the
// end every healthy device has the release unless a rule has halted.
func TestRolloutsKeepTheirPromisesOverRandomFleets(t *testing.T) {
	n := uint64(simulatedFleets)
	from := rand.Uint64() >> 8
	switch {
	case *simulationSeed != 0:
		from, n = *simulationSeed, 1
	case *simulationFleets != 0:
		n = *simulationFleets
	case os.Getenv("BMSOTA_ROLLOUTS") == "long":
		n = simulatedFleetsLong
	case testing.Short():
		n /= 10
	}
	t.Logf("fleets from seed %d: replay one with -simulation-seed=N", from)
	began := time.Now()
	var halted, done, devices, harmed, haltedDevices, steps int
	var timeToHalt time.Duration
	failed, played := simulate(from, n, mutant{}, func(s *scene) {
		devices += len(s.w.members)
		steps += s.w.steps
		if s.w.rollout.State == RolloutHalted {
			halted++
			timeToHalt += s.w.rollout.Halt.At.Sub(epoch)
			harmed += len(s.harmed)
			haltedDevices += len(s.w.members)
		} else {
			done++
		}
	})
	if failed != nil {
		t.Fatalf("seed %d (-simulation-seed=%d), %d devices, policy %+v:\n%s\n%+v", failed.seed, failed.seed, len(failed.w.members), failed.policy,
			strings.Join(failed.errs, "\n"), failed.w.rollout.Events)
	}
	took := time.Since(began)
	t.Logf("%d fleets of %d devices, %d steps, in %v (%.0f a minute): %d done, %d halted, after %v in the mean; of the %d devices of those halted %d met a bad build",
		played, devices, steps, took.Round(time.Millisecond), float64(played)/took.Minutes(), done, halted,
		(timeToHalt / time.Duration(max(halted, 1))).Round(time.Second), haltedDevices, harmed)
	if *simulationSeed == 0 && (halted < int(n)/20 || done < int(n)/20) {
		t.Errorf("%d halted and %d done of %d: one of the two is hardly tried", halted, done, n)
	}
}

// TestFleetsThatOnceFailedKeepTheirPromises replays what the simulation has found: a deadline that came before the
// silence that a restart of the server had put off, for devices that were dead and for devices that were not.
func TestFleetsThatOnceFailedKeepTheirPromises(t *testing.T) {
	for _, seed := range []uint64{45501912653312794, 20497234311689598, 29527372917541530, 31670853452350221, 5687587700236500} {
		s := newScene(seed)
		s.play(mutant{})
		if len(s.errs) > 0 {
			t.Errorf("seed %d: %v", seed, s.errs)
		}
	}
}

// TestTheSimulationNoticesEveryRuleThatIsSwitchedOff: a check that cannot fail proves nothing.
func TestTheSimulationNoticesEveryRuleThatIsSwitchedOff(t *testing.T) {
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			failed, played := simulate(1, 20_000, m, nil)
			if failed == nil {
				t.Fatalf("%d fleets without %s and nothing was noticed", played, m.name)
			}
			t.Logf("noticed after %d fleets: %s", played, failed.errs[0])
		})
	}
}
