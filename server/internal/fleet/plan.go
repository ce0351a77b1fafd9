package fleet

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"bmsota/protocol"
)

// Progress is a member with its last attempt and its device, as their rows say.
type Progress struct {
	Member  Member
	Attempt Attempt
	Device  *Device
}

// Candidate is a pending member that might be started.
type Candidate struct {
	Member Member
	Device *Device
	Busy   bool // it has an open attempt of another command
	// Reserved says that a running rollout of higher priority has it and has not finished with it.
	Reserved bool
}

// Input is everything that decides what becomes of a rollout next.
type Input struct {
	Rollout Rollout
	Release protocol.Release
	Figures Figures // of all members
	Recent  int     // attempts begun within the last minute
	// Barred says why the release may start nowhere at all: "quarantined" or "withdrawn"; empty when it may.
	Barred string
	Open   []Progress // every member that is open
	Silent []Progress // every member that is silent
	// Waiting gives the pending members that are connected and below the present wave's limit, by rank. It is read as
	// far as there is room to start.
	Waiting iter.Seq[Candidate]
	// Away are members of the present wave that this rollout has never started and that nothing can be said of: they are
	// not connected, were not before the wave began or have not been for a day (Rollout.awayBefore), and were in no update
	// when they were last heard of. By rank. Others take their place.
	Away []Member
	// Spare gives the candidates of later waves, by rank. It is read as far as Away and the room go.
	Spare iter.Seq[Candidate]
	// Gone are the pending members that have used up a try and are not connected: what became of them is not known.
	Gone []Candidate
	// Doubted are the members that do not stand as their devices do: neither set aside nor skipped nor open, while the device
	// is suspected of something; or set aside while it is not.
	Doubted []Candidate
	// Taken are the values of the policy's spread label that devices with an open attempt have.
	Taken map[string]bool
	// Listening is since when devices could be heard. Silence is not counted before it.
	Listening time.Time
	Zones     *zones
}

// Output is what is to be done about it, in one transaction.
type Output struct {
	Rollout Rollout // as it is then
	Changed bool    // Rollout differs from what it was
	Members []Member
	Begin   []Attempt // new ones, of members among Members
	End     []Attempt // open ones that are over by the server's decision
	// Ask are devices whose readings are too old for the gate to judge.
	Ask []string
}

// idle says that there is nothing to write.
func (o *Output) idle() bool { return !o.Changed && len(o.Members) == 0 }

const (
	// staleReading is how old a status may be for a gate to be judged by it, maxAsk how many devices one pass asks for a
	// newer one.
	staleReading = 5 * time.Minute
	maxAsk       = 20
)

// Plan decides what becomes of a rollout at now: which attempts are over, whether a rule halts it, whether the next wave
// begins, who starts. It is a pure function: the same input gives the same output, and nothing in the input is changed.
// Steps come in this order, because the result of a device must be able to stop the next one from starting.
func Plan(in Input, now time.Time) Output {
	p := &planning{Input: in, now: now, out: Output{Rollout: in.Rollout}, figures: in.Figures, taken: make(map[string]bool), judged: make(map[string]bool)}
	p.judge()
	p.settle()
	p.tellAside()
	p.hear()
	p.miss()
	if p.r().State == RolloutRunning {
		p.stop()
	}
	if p.r().State != RolloutRunning || !now.Before(p.r().ExpiresAt) {
		p.takeBack()
		p.end()
		return p.out
	}
	p.advance(p.start())
	return p.out
}

// planning is one call of Plan.
type planning struct {
	Input
	now     time.Time
	out     Output
	figures Figures // with what this call has changed
	still   []Progress
	taken   map[string]bool // groups of the spread label that this call has begun in
	judged  map[string]bool // devices of Doubted
	aside   int             // members that this call has set aside
	unsure  int             // members that may yet have another try: the wave has to wait for them
}

func (p *planning) r() *Rollout { return &p.out.Rollout }

func (p *planning) change(by, format string, args ...any) {
	p.out.Changed = true
	p.r().say(p.now, by, format, args...)
}

// put changes a member.
func (p *planning) put(m Member, from MemberState) {
	m.UpdatedAt = p.now
	if m.State == MemberPending && from != MemberPending {
		p.unsure++ // it is not among those that wait, which were read before
	}
	p.out.Members = append(p.out.Members, m)
	p.figures.move(from, m.State)
}

// settle takes the ends of attempts into their members, and ends those that time has ended.
func (p *planning) settle() {
	for _, g := range p.Open {
		if g.Attempt.State == AttemptOpen {
			state, reason := overdueInRollout(g, &p.r().Policy, p.Listening, p.now)
			if state == AttemptOpen {
				p.still = append(p.still, g)
				continue
			}
			g.Attempt = ended(g.Attempt, state, reason, reason.Text(), p.now)
			p.out.End = append(p.out.End, g.Attempt)
		}
		if g.Device.Suspect() {
			p.setAside(g.Member, g.Device)
			continue
		}
		p.put(settled(g, p.r(), p.Barred != "", p.now), MemberOpen)
	}
}

func ended(a Attempt, state AttemptState, reason protocol.Reason, message string, now time.Time) Attempt {
	a.State, a.Reason, a.Message, a.UpdatedAt, a.EndedAt = state, reason, message, now, now
	return a
}

// overdueInRollout is overdue by the policy's times, and stricter: a device that was connected when it was started and
// has not taken the command up within them is silent, and a device that talks and never comes to an end has failed.
func overdueInRollout(g Progress, policy *Policy, listening, now time.Time) (AttemptState, protocol.Reason) {
	state, reason := overdue(*g.Device, g.Attempt, now, listening, policy.Silence)
	since := maxTime(g.Attempt.CreatedAt, listening)
	switch {
	case state == AttemptFailed, state == AttemptExpired && g.Device.Status.Phase == protocol.PhaseWaiting:
		return state, reason
	case g.Attempt.Phase == "": // its time may be over because the server was away
		if now.Sub(since) > policy.Silence {
			return AttemptFailed, protocol.ReasonSilent
		}
	case state == AttemptExpired, now.After(g.Attempt.ExpiresAt.Add(policy.Silence)):
		switch {
		case now.Sub(listening) <= policy.Silence: // what it has done while the server was away is still on its way
		case g.Device.Online:
			return AttemptFailed, protocol.ReasonDeadline
		case now.Sub(g.Device.LastSeen) > policy.Silence: // not one to be tried again that never comes back
			return AttemptFailed, protocol.ReasonSilent
		}
	}
	return AttemptOpen, protocol.ReasonNone
}

// settled is the member after its attempt has ended.
func settled(g Progress, r *Rollout, barred bool, now time.Time) Member {
	m, a := g.Member, g.Attempt
	m.Reason, m.Message = a.Reason, a.Message
	again := func(free bool) Member {
		m.State = MemberPending
		if free {
			m.Tries--
		} else {
			m.NotBefore = now.Add(r.Policy.RetryAfter)
		}
		return m
	}
	switch a.State {
	case AttemptSucceeded:
		m.State = MemberSucceeded
	case AttemptRolledBack:
		m.State = MemberRolledBack
		if a.Reason == protocol.ReasonBrownout || a.Reason == protocol.ReasonPowerLoss {
			m.State = MemberBrownout
		}
	case AttemptFailed:
		switch {
		case a.Reason == protocol.ReasonSilent:
			m.State = MemberSilent
		case m.Tries <= r.Policy.Retries:
			return again(false)
		default:
			m.State = MemberFailed
		}
	case AttemptRefused:
		// What is offered no more is refused by whoever was asking at that moment, and that is not the device's doing.
		gone := a.Reason == protocol.ReasonNotPublished || a.Reason == protocol.ReasonVersionMissing
		if gone && barred {
			return again(true)
		}
		m.State = MemberFailed
	case AttemptExpired: // it never got past its own gate, or heard of the command when that was no longer good
		return again(true)
	default: // a later command took its place
		m.State = MemberSkipped
		if g.Device.SHA256 == r.SHA256 {
			m.State = MemberSucceeded
		}
	}
	return m
}

// hear looks whether silent members have been heard of since.
func (p *planning) hear() {
	for _, g := range p.Silent {
		m, d := g.Member, g.Device
		switch {
		case p.judged[m.DeviceID]:
			continue
		case d.SHA256 == p.r().SHA256:
			m.State, m.Reason, m.Message = MemberSucceeded, protocol.ReasonNone, "it came back with the release"
		case d.Status.FailedSHA256 == p.r().SHA256 && d.LastSeen.After(m.UpdatedAt):
			m.State, m.Reason, m.Message = MemberRolledBack, d.Status.Reason, "it came back without the release"
		case p.r().State == RolloutRunning && d.Online && !d.Revoked && d.LastSeen.After(m.UpdatedAt) &&
			!d.Status.Phase.Updating() && m.Tries <= p.r().Policy.Retries:
			m.State, m.NotBefore = MemberPending, p.now.Add(p.r().Policy.RetryAfter)
		default:
			continue
		}
		p.put(m, MemberSilent)
	}
}

// miss makes those silent that failed a try and have not been heard of since: a wave that counted them as merely away
// would pass on the devices that a release has harmed.
func (p *planning) miss() {
	for _, c := range p.Gone {
		if c.Device.Revoked || p.judged[c.Device.ID] {
			continue // start skips it, or it is set aside
		}
		if p.now.Sub(maxTime(c.Device.LastSeen, p.Listening)) <= p.r().Policy.Silence {
			p.unsure++
			continue
		}
		m := c.Member
		m.State, m.Reason, m.Message = MemberSilent, protocol.ReasonSilent, "it failed a try and has not been heard of since"
		p.put(m, MemberPending)
		p.figures.Dark-- // it was one of them
	}
}

// stop halts the rollout when a rule says so.
func (p *planning) stop() {
	h := p.breach()
	if h == nil {
		return
	}
	h.At = p.now
	p.r().Halt = h
	p.r().State = RolloutHalted
	p.r().SoakSince = time.Time{}
	p.change("", "halted in %s: %s", p.r().waveText(), h.Text)
}

// breach is the rule that is broken, nil when none is.
func (p *planning) breach() *Halt {
	r, f := p.r(), p.figures
	if p.Barred != "" {
		return &Halt{Rule: p.Barred, Text: "the release is " + p.Barred}
	}
	failed := max(0, f.Failures()-r.Forgiven.Failures())
	of := func(what string) string {
		text := plural(failed, "device") + " failed (" + f.failureText() + ")"
		if r.Forgiven.Failures() > 0 {
			text += fmt.Sprintf(", %d of before not counted", r.Forgiven.Failures())
		}
		return text + what
	}
	stop := r.Policy.Stop
	if pct := stop.FailedPct; pct != nil && float64(failed)*100 > *pct*float64(r.touchable()) {
		return &Halt{Rule: "failed_pct", Figure: failed, Of: r.touchable(), Limit: *pct,
			Text: of(fmt.Sprintf(" of the %d that %s may touch, more than %v %%", r.touchable(), r.waveText(), *pct))}
	}
	if n := stop.Failed; n != nil && failed > *n {
		return &Halt{Rule: "failed", Figure: failed, Limit: float64(*n), Text: of(fmt.Sprintf(", more than %d", *n))}
	}
	if n, got := stop.RolledBack, f.RolledBack-r.Forgiven.RolledBack; n != nil && got > *n {
		return &Halt{Rule: "rolled_back", Figure: got, Limit: float64(*n), Text: fmt.Sprintf("%s rolled back, more than %d", plural(got, "device"), *n)}
	}
	if n, got := stop.Brownouts, f.Brownouts-r.Forgiven.Brownouts; n != nil && got > *n {
		return &Halt{Rule: "brownouts", Figure: got, Limit: float64(*n),
			Text: fmt.Sprintf("%s lost supply during the trial, more than %d", plural(got, "device"), *n)}
	}
	return nil
}

// failureText says what the failures are made of.
func (f Figures) failureText() string {
	text := ""
	for _, c := range []struct {
		n    int
		what string
	}{{f.RolledBack, "rolled back"}, {f.Silent, "went silent"}, {f.Failed, "failed or refused"}, {f.Dark, "went dark afterwards"}} {
		if c.n > 0 {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%d %s", c.n, c.what)
		}
	}
	return text
}

// takeBack ends the attempts that have not begun on the device, as stopMeans says.
func (p *planning) takeBack() {
	for _, g := range p.still {
		if !takenBack(g) {
			continue
		}
		m := g.Member
		m.State, m.Reason, m.Message = MemberPending, protocol.ReasonNone, "taken back before it began"
		m.Tries--
		p.out.End = append(p.out.End, ended(g.Attempt, AttemptSuperseded, protocol.ReasonNone, "the rollout is "+string(p.r().State), p.now))
		p.put(m, MemberOpen)
	}
}

// end notes that the time of a rollout is over.
func (p *planning) end() {
	if p.r().State == RolloutRunning && p.figures.Open == 0 {
		p.done("its time is over: " + plural(p.figures.Pending, "device") + " not reached")
	}
}

func (p *planning) done(text string) {
	p.r().State, p.r().EndedAt = RolloutDone, p.now
	p.change("", "done: %s", text)
}

// start begins attempts as far as there is room. quiet says that there was room and that whoever is left is away: not
// connected, at a gate, or wanted more by another rollout. Room that is left goes to later waves, for members that are away.
func (p *planning) start() (quiet bool) {
	r := p.r()
	room := r.Policy.Concurrency - p.figures.Open
	if n := r.Policy.PerMinute; n > 0 {
		room = min(room, n-p.Recent)
	}
	room = min(room, r.limit()-p.figures.begun())
	if room <= 0 || p.Waiting == nil {
		return room > 0
	}
	quiet = true
	for c := range p.Waiting {
		m := c.Member
		switch h := p.hold(c); h {
		case HoldNone:
			quiet = false
			p.begin(c)
		case holdUpToDate:
			m.State, m.Message = MemberSucceeded, "it runs the release already"
			p.put(m, MemberPending)
		case holdUnfit:
			m.State = MemberSkipped
			m.Reason, m.Message = unfit(c.Device, p.Release, r.Policy.Force)
			p.put(m, MemberPending)
		case HoldSuspect:
			continue // it is set aside
		default:
			quiet = quiet && h.away()
			continue
		}
		if room--; room == 0 {
			return quiet
		}
	}
	return p.replace(room) && quiet
}

// hold is what holds c back, its group of the label spread taken in. A device whose reading is too old is asked.
func (p *planning) hold(c Candidate) Hold {
	h := p.r().hold(c, p.Release, p.Zones, p.now)
	switch {
	case h == HoldNone && p.group(c) != "" && (p.Taken[p.group(c)] || p.taken[p.group(c)]):
		return HoldSpread
	case h == HoldReading && len(p.out.Ask) < maxAsk:
		p.out.Ask = append(p.out.Ask, c.Device.ID)
	}
	return h
}

// group is the value of the policy's spread label that a candidate has; empty when it has none.
func (p *planning) group(c Candidate) string { return c.Device.Labels[p.r().Policy.Spread] }

// replace starts members of later waves in the place of those that are away: they exchange their ranks. So a wave is of
// as many devices as the policy says, all of them such that can speak for the release or against it, and waits for
// nobody who was not there. none says that nobody was started.
func (p *planning) replace(room int) (none bool) {
	none = true
	if len(p.Away) == 0 || p.Spare == nil {
		return none
	}
	away := slices.DeleteFunc(slices.Clone(p.Away), func(m Member) bool { return p.judged[m.DeviceID] })
	away = away[:min(room, len(away))]
	for c := range p.Spare {
		if len(away) == 0 {
			break
		}
		if p.hold(c) != HoldNone {
			continue
		}
		gone := away[0]
		away = away[1:]
		gone.Message = fmt.Sprintf("it was away in %s: %s took its place", p.r().waveText(), c.Member.DeviceID)
		gone.Rank, c.Member.Rank = c.Member.Rank, gone.Rank
		p.put(gone, MemberPending)
		p.begin(c)
		none = false
	}
	return none
}

// begin makes the attempt of a member.
func (p *planning) begin(c Candidate) {
	r, m := p.r(), c.Member
	m.Attempts++
	m.Tries++
	command := r.command(m.Attempts)
	m.State, m.AttemptID = MemberOpen, command+"/"+m.DeviceID
	m.Reason, m.Message = protocol.ReasonNone, ""
	p.out.Begin = append(p.out.Begin, Attempt{
		ID: m.AttemptID, CommandID: command, DeviceID: m.DeviceID, RolloutID: r.ID, Action: protocol.ActionUpdate,
		Force: r.Policy.Force, Version: r.Version, SHA256: r.SHA256, CreatedAt: p.now, CreatedBy: r.CreatedBy,
		ExpiresAt: p.now.Add(r.Policy.Deadline).Truncate(time.Second), State: AttemptOpen, UpdatedAt: p.now,
	})
	p.put(m, MemberPending)
	if value := p.group(c); value != "" {
		p.taken[value] = true
	}
}

// advance goes to the next wave when the present one has stood for its soak. A wave stands when each of its members has
// come to an end, or when enough of them have succeeded and the rest is away. One that failed a try and left has not come
// to its end, and is not merely away.
func (p *planning) advance(quiet bool) {
	r, f := p.r(), p.figures
	left := r.limit() - f.begun()
	enough := float64(f.Succeeded)*100 >= r.Policy.NeedPct*float64(r.touchable())
	if f.Open > 0 || p.unsure > 0 || left > 0 && !(quiet && enough) {
		return
	}
	if f.Succeeded == 0 && f.begun() > r.Forgiven.begun() {
		r.Halt = &Halt{Rule: "no_success", Of: r.touchable(), At: p.now, Text: "no device of the wave has succeeded, so nothing speaks for the release"}
		r.State = RolloutHalted
		p.change("", "halted in %s: %s", r.waveText(), r.Halt.Text)
		return
	}
	if r.SoakSince.IsZero() {
		r.SoakSince = p.now
		p.change("", "%s stands: %d succeeded, %d failed, %d left behind", r.waveText(), f.Succeeded, f.Failures(), left)
	}
	if p.now.Sub(r.SoakSince) < r.Soaks[r.Wave] {
		return
	}
	if !r.lastWave() {
		r.Wave, r.WaveSince, r.SoakSince = r.Wave+1, p.now, time.Time{}
		p.change("", "%s begins: up to %s", r.waveText(), plural(r.limit(), "device"))
	} else if left == 0 {
		p.done(fmt.Sprintf("%d succeeded, %d failed", f.Succeeded, f.Failures()))
	}
}
