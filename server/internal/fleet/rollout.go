package fleet

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"bmsota/protocol"
)

// RolloutState is how a rollout stands.
type RolloutState string

// The states. A rollout begins running; done and aborted are final.
const (
	RolloutRunning RolloutState = "running"
	RolloutPaused  RolloutState = "paused"  // by an operator
	RolloutHalted  RolloutState = "halted"  // by a rule; Rollout.Halt says which
	RolloutAborted RolloutState = "aborted" // by an operator
	RolloutDone    RolloutState = "done"
)

// Ended says whether nothing more comes of a rollout in this state.
func (s RolloutState) Ended() bool { return s == RolloutDone || s == RolloutAborted }

// Wave is one step of a rollout: so many of its members may have been attempted, those of the waves before included.
type Wave struct {
	Count   int           // members; 0: Percent says
	Percent float64       // of the members, rounded up
	Soak    time.Duration // how long the wave must stand before the next begins
}

// Stop holds the rules that halt a rollout. A figure above its limit halts; a nil limit is no rule. Failures are devices
// that refused, failed, rolled back, went silent, or went dark after they had been updated. A trial that ended for want of
// supply (brownout, power loss) says nothing about the image and is counted apart.
type Stop struct {
	FailedPct  *float64 // percent of what the present wave may touch
	Failed     *int
	RolledBack *int
	Brownouts  *int
}

// Gate holds what the last status of a device must say before the device is started. The device has its own gate
// beside it (protocol.Gate), which no server can open.
type Gate struct {
	MinSOCPct        float64 // percent
	NotWhileCharging bool
	MaxCurrentA      float64 // ampere through the pack in either direction; 0 = any
	// °C of the coldest and of the warmest cell; nil = any.
	MinTempC, MaxTempC *float64
}

// onDevice is the gate as a device would hold it against its readings.
func (g Gate) onDevice() protocol.Gate {
	return protocol.Gate{MinSOCPct: g.MinSOCPct, NotWhileCharging: g.NotWhileCharging, MaxCurrentA: g.MaxCurrentA, MinTempC: g.MinTempC, MaxTempC: g.MaxTempC}
}

// zero says that the gate holds nothing back.
func (g Gate) zero() bool { return g == Gate{} }

// Policy is how a release is delivered. WithDefaults fills in what is left zero.
type Policy struct {
	Description string
	Selector    Selector
	Seed        string // orders the members; the same seed gives the same order. Default: the digest of the release
	Waves       []Wave
	Stop        Stop
	NeedPct     float64 // of a wave's members must have succeeded before members that are away are left behind
	Gate        Gate
	// OverrideGates starts devices whatever Gate and Window say. It is kept with the rollout, and in the log.
	OverrideGates bool
	Window        string        // "HH:MM-HH:MM" in the time of each device (label "timezone", else UTC); devices start within it
	Concurrency   int           // open attempts at once
	PerMinute     int           // starts within any minute; 0 = any
	Jitter        time.Duration // a member starts at a point of this time after its wave began, by its hash
	Priority      int           // the higher goes first where two rollouts want one device
	Retries       int           // further tries for a device whose try failed
	RetryAfter    time.Duration // before the next try
	Silence       time.Duration // without a word from a device that should speak: a failure
	Deadline      time.Duration // of one attempt
	Lasts         time.Duration // of the rollout: then nothing more starts
	Spread        string        // label: devices that share a value of it never update at once
	Force         bool          // skips the comparison of versions
	// AllowUnprotected takes devices that cannot undo a bad image.
	AllowUnprotected bool
}

// Defaults of a policy.
const (
	defaultNeedPct     = 90
	defaultConcurrency = 50
	defaultRetryAfter  = 10 * time.Minute
	defaultDeadline    = 24 * time.Hour
	defaultLasts       = 30 * 24 * time.Hour
	defaultFailedPct   = 5
	defaultSoak        = 30 * time.Minute
)

// WithDefaults is p with what it leaves open filled in; silence is the server's.
func (p Policy) WithDefaults(silence time.Duration) Policy {
	if len(p.Waves) == 0 {
		p.Waves = []Wave{{Percent: 1, Soak: defaultSoak}, {Percent: 10, Soak: defaultSoak}, {Percent: 100}}
	}
	if p.Stop == (Stop{}) {
		pct := float64(defaultFailedPct)
		p.Stop.FailedPct = &pct
	}
	if p.NeedPct == 0 {
		p.NeedPct = defaultNeedPct
	}
	if p.Concurrency == 0 {
		p.Concurrency = defaultConcurrency
	}
	p.RetryAfter = cmp.Or(p.RetryAfter, defaultRetryAfter)
	p.Silence = cmp.Or(p.Silence, silence)
	p.Deadline = cmp.Or(p.Deadline, defaultDeadline)
	p.Lasts = cmp.Or(p.Lasts, defaultLasts)
	return p
}

// The limits of a policy.
const (
	maxWaves       = 20
	maxRetries     = 10
	maxConcurrency = 100_000
	maxSpan        = 366 * 24 * time.Hour
)

// Check refuses a policy that makes no sense. It is given after WithDefaults.
func (p Policy) Check() error {
	if len(p.Waves) > maxWaves {
		return invalid("%d waves, the limit is %d", len(p.Waves), maxWaves)
	}
	for i, w := range p.Waves {
		switch {
		case w.Count < 0 || !(w.Percent >= 0 && w.Percent <= 100):
			return invalid("wave %d: a count is above 0, percent within 0 to 100", i+1)
		case (w.Count == 0) == (w.Percent == 0):
			return invalid("wave %d: give a count or percent, one of them", i+1)
		case w.Soak < 0 || w.Soak > maxSpan:
			return invalid("wave %d: soak of %v", i+1, w.Soak)
		}
	}
	if last := p.Waves[len(p.Waves)-1]; last.Percent != 100 && last.Count == 0 {
		return invalid("the last wave reaches %v %% of the devices: end with 100 %%, or with a count", last.Percent)
	}
	if f := p.Stop.FailedPct; f != nil && !(*f >= 0 && *f <= 100) {
		return invalid("a limit of %v %% failed is not within 0 to 100", *f)
	}
	for name, n := range map[string]*int{"failed": p.Stop.Failed, "rolled back": p.Stop.RolledBack, "brownouts": p.Stop.Brownouts} {
		if n != nil && *n < 0 {
			return invalid("a limit of %d %s", *n, name)
		}
	}
	if p.Stop.FailedPct == nil && p.Stop.Failed == nil {
		return invalid("a rollout needs a limit on failures, as a count or as percent, or nothing stops it")
	}
	gate := p.Gate.onDevice()
	gate.Window = p.Window
	if err := gate.Check(); err != nil {
		return invalid("%w", err)
	}
	switch {
	case !(p.NeedPct > 0 && p.NeedPct <= 100):
		return invalid("need of %v %% is not within 0 to 100", p.NeedPct)
	case p.Concurrency < 1 || p.Concurrency > maxConcurrency:
		return invalid("concurrency of %d is not within 1 to %d", p.Concurrency, maxConcurrency)
	case p.PerMinute < 0:
		return invalid("%d starts a minute", p.PerMinute)
	case p.Retries < 0 || p.Retries > maxRetries:
		return invalid("%d retries are not within 0 to %d", p.Retries, maxRetries)
	case p.Priority < -1000 || p.Priority > 1000:
		return invalid("priority of %d is not within -1000 to 1000", p.Priority)
	case len(p.Description) > 2048 || len(p.Seed) > 128:
		return invalid("description above 2048 bytes, or seed above 128")
	}
	for name, d := range map[string]time.Duration{"jitter": p.Jitter, "retry_after": p.RetryAfter, "silence": p.Silence, "deadline": p.Deadline, "lasts": p.Lasts} {
		if d < 0 || d > maxSpan {
			return invalid("%s of %v is not within 0 to a year", name, d)
		}
	}
	if p.Silence < time.Second || p.Deadline < time.Second || p.Lasts < time.Second {
		return invalid("silence, deadline and lasts are at least a second")
	}
	if p.Spread != "" {
		if err := checkLabelKey(p.Spread); err != nil {
			return err
		}
	}
	return p.Selector.check()
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// limits are the waves as numbers of members: each more than the one before, none above all. A wave that adds nobody
// falls away, and its soak with it.
func (p Policy) limits(members int) (limits []int, waves []Wave) {
	for _, w := range p.Waves {
		n := w.Count
		if n == 0 {
			n = int(math.Ceil(w.Percent * float64(members) / 100))
		}
		n = min(n, members)
		if len(limits) > 0 && n <= limits[len(limits)-1] || n == 0 {
			continue
		}
		limits, waves = append(limits, n), append(waves, w)
	}
	return limits, waves
}

// Rollout is the delivery of one release to its members, who are chosen once, when it is created. Stores keep it as the
// JSON of this type.
type Rollout struct {
	ID       string
	Life     string // part of its commands' ids since it came out of a backup (Restored); empty before
	Revision int64  // counts the changes of the row; a Put is refused when the row has another
	State    RolloutState
	// The release.
	SHA256, Project, Chip, Version string
	Policy                         Policy // Waves as they came; what they mean is in Limits and Soaks
	Limits                         []int  // how many members each wave may have touched, the last one all that will be
	Soaks                          []time.Duration
	Members                        int
	Wave                           int       // the present one, from 0
	WaveSince                      time.Time // when it began
	SoakSince                      time.Time // when it first stood; zero while it does not
	CreatedAt                      time.Time
	CreatedBy                      string
	Key                            string // of the request that made it, so that it is made once; may be empty
	KeyBody                        string // digest of that request
	ExpiresAt                      time.Time
	EndedAt                        time.Time
	Halt                           *Halt   // why it is halted; kept when it is resumed
	LeftOut                        int     // members that an operator has left out before they were started, and those set aside as suspect
	Forgiven                       Figures // of before it was resumed after a halt: they count no more
	Events                         []Event // oldest first
}

// Halt is the rule that halted a rollout, with its figures.
type Halt struct {
	Rule   string // failed_pct, failed, rolled_back, brownouts, quarantined, withdrawn, no_success
	Figure int    // devices
	Of     int    // the limit of the wave; for failed_pct
	Limit  float64
	Text   string // the whole of it, for people
	At     time.Time
}

// Event is something that happened to a rollout.
type Event struct {
	At   time.Time
	By   string // operator; empty = the server
	Text string
}

// maxEvents bounds the events of a rollout. Where there are more, those in the middle go: how it began is kept, and what
// came last, which is what notices and the log are told.
const maxEvents = 200

func (r *Rollout) say(now time.Time, by, format string, args ...any) {
	list := slices.Clone(r.Events) // of whoever has the rollout as it was
	if len(list) >= maxEvents {
		list = slices.Delete(list, maxEvents/2, len(list)-maxEvents/2+1)
	}
	r.Events = append(list, Event{At: now, By: by, Text: fmt.Sprintf(format, args...)})
}

// limit is how many members may have been attempted by now.
func (r *Rollout) limit() int {
	if len(r.Limits) == 0 {
		return 0
	}
	return r.Limits[min(r.Wave, len(r.Limits)-1)]
}

// leaveOut makes room for another in the place of a member that says nothing of the release: it counts as come to its end from now on,
// so the waves that do not have it yet, or have it and would be one short, reach one member further.
func (r *Rollout) leaveOut(rank int) {
	r.LeftOut++
	within := rank < r.limit()
	for i := r.Wave; i < len(r.Limits) && (within || rank >= r.Limits[i]); i++ {
		r.Limits[i] = min(r.Limits[i]+1, r.Members)
	}
}

// touchable is how many devices may have been started by now: what a wave's figures are measured by.
func (r *Rollout) touchable() int { return r.limit() - r.LeftOut }

// waveOf is the wave of the member of a rank, from 0.
func (r *Rollout) waveOf(rank int) int {
	wave, _ := slices.BinarySearch(r.Limits, rank+1)
	return min(wave, len(r.Limits)-1)
}

// awayBefore is the time since when a member must not have been heard of at now to be away in the present wave, if this
// server has listened since listening; zero when that cannot be said. It is longer ago than the policy's silence, so that
// nobody is passed over for a moment's loss of connection.
func (r *Rollout) awayBefore(listening, now time.Time) time.Time {
	silence := now.Add(-r.Policy.Silence)
	if !listening.Before(silence) {
		return time.Time{}
	}
	before := maxTime(r.WaveSince, now.Add(-AwayAfter))
	if before.After(silence) {
		return silence
	}
	return before
}

func (r *Rollout) lastWave() bool { return r.Wave >= len(r.Limits)-1 }

// MemberState is how a device stands in a rollout.
type MemberState string

// The states. Pending and open members may still change, silent ones when they are heard of again, and any of them when
// its device is suspected of something or cleared.
const (
	MemberPending    MemberState = "pending"
	MemberOpen       MemberState = "open" // its attempt runs
	MemberSucceeded  MemberState = "succeeded"
	MemberFailed     MemberState = "failed" // or refused
	MemberRolledBack MemberState = "rolled_back"
	MemberBrownout   MemberState = "brownout" // undone for want of supply
	MemberSilent     MemberState = "silent"   // not heard of in time
	MemberSuspect    MemberState = "suspect"  // set aside: its device is not believed (Suspicion), so it counts for nothing
	MemberSkipped    MemberState = "skipped"  // left out: revoked, taken over by another command, runs something newer
)

// MemberStates lists them.
func MemberStates() []MemberState {
	return []MemberState{MemberPending, MemberOpen, MemberSucceeded, MemberFailed, MemberRolledBack, MemberBrownout, MemberSilent, MemberSkipped, MemberSuspect}
}

// Member is a device in a rollout.
type Member struct {
	RolloutID, DeviceID string
	Rank                int // from 0; a wave is the members below its limit
	State               MemberState
	Attempts            int    // begun; they number the commands
	Tries               int    // of them those that used up the budget: not those that never got past a gate
	AttemptID           string // the last one
	NotBefore           time.Time
	Reason              protocol.Reason
	Message             string
	UpdatedAt           time.Time
}

// Quarantine is an image that is offered to nobody, since a rollout of it was halted after devices had rolled back.
type Quarantine struct {
	SHA256    string
	RolloutID string // that was halted
	Why       string
	Since     time.Time
	LiftedAt  time.Time // zero while it stands
	LiftedBy  string
}

// Stands says whether the quarantine holds.
func (q Quarantine) Stands() bool { return q.LiftedAt.IsZero() }

// Figures count the members of a rollout by state.
type Figures struct {
	Pending, Open, Succeeded, Failed, RolledBack, Brownouts, Silent, Skipped int
	// Dark are those of Succeeded, and of Pending after a failed try, that are not connected and have not been heard of
	// for longer than the policy's silence.
	Dark int
	// Suspect are set aside: none of the others.
	Suspect int `json:",omitempty"`
}

// Count is the figures of members by state.
func Count(by map[MemberState]int) Figures {
	return Figures{Pending: by[MemberPending], Open: by[MemberOpen], Succeeded: by[MemberSucceeded], Failed: by[MemberFailed],
		RolledBack: by[MemberRolledBack], Brownouts: by[MemberBrownout], Silent: by[MemberSilent], Skipped: by[MemberSkipped], Suspect: by[MemberSuspect]}
}

// Failures are the devices that speak against the release.
func (f Figures) Failures() int { return f.Failed + f.RolledBack + f.Silent + f.Dark }

// begun are the members that are past pending.
func (f Figures) begun() int {
	return f.Open + f.Succeeded + f.Failed + f.RolledBack + f.Brownouts + f.Silent + f.Skipped + f.Suspect
}

func (f *Figures) of(s MemberState) *int {
	switch s {
	case MemberPending:
		return &f.Pending
	case MemberOpen:
		return &f.Open
	case MemberSucceeded:
		return &f.Succeeded
	case MemberFailed:
		return &f.Failed
	case MemberRolledBack:
		return &f.RolledBack
	case MemberBrownout:
		return &f.Brownouts
	case MemberSilent:
		return &f.Silent
	case MemberSuspect:
		return &f.Suspect
	}
	return &f.Skipped
}

func (f *Figures) move(from, to MemberState) {
	*f.of(from)--
	*f.of(to)++
}

// order is where a device stands among the members, and where within a span of jitter: the same for the same seed,
// whoever else is there.
func order(seed, device string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed)) // never fails (hash.Hash)
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(device))
	// FNV alone keeps ids that differ in their last letter close to each other; what follows (the finish of MurmurHash3)
	// does not.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// jitterOf is how long after its wave began a member starts at the earliest.
func (r *Rollout) jitterOf(device string) time.Duration {
	if r.Policy.Jitter <= 0 {
		return 0
	}
	return time.Duration(order(r.ID+fmt.Sprint("/", r.Wave), device) % uint64(r.Policy.Jitter))
}

// text of a wave for people: "wave 2 of 3".
func (r *Rollout) waveText() string {
	return fmt.Sprintf("wave %d of %d", min(r.Wave+1, len(r.Limits)), len(r.Limits))
}

// plural says how many: "1 device", "3 devices".
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
