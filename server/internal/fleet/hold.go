package fleet

import (
	"cmp"
	"slices"
	"time"

	"bmsota/protocol"
)

// Hold is why a pending member is not started now; a gate's hold is the protocol's reason for it.
type Hold string

// The holds.
const (
	HoldNone     Hold = ""
	HoldOffline  Hold = "offline"
	HoldBusy     Hold = "busy"     // another command is under way on it
	HoldReserved Hold = "reserved" // a rollout of higher priority has it
	HoldRetry    Hold = "retry"    // its next try comes later
	HoldJitter   Hold = "jitter"   // its moment within the wave has not come
	HoldSpread   Hold = "spread"   // a device of its group is being updated
	HoldReading  Hold = "reading"  // its last status is too old for the gate; it is asked
	HoldWave     Hold = "wave"     // its wave has not begun
	HoldTurn     Hold = "turn"     // nothing but the caps
	HoldSuspect  Hold = "suspect"  // it is not believed (Suspicion)

	holdUpToDate Hold = "up_to_date"
	holdUnfit    Hold = "unfit"
)

// away says that the hold is the device's own and may last: it does not keep a wave from standing.
func (h Hold) away() bool {
	switch h {
	case HoldBusy, HoldRetry, HoldJitter, HoldSpread:
		return false
	}
	return true
}

// Text is the sentence for people.
func (h Hold) Text() string {
	switch h {
	case HoldNone, HoldTurn:
		return "waits for its turn"
	case HoldOffline:
		return "blocked: not connected"
	case HoldBusy:
		return "blocked: another command is under way"
	case HoldReserved:
		return "blocked: a rollout of higher priority has it"
	case HoldRetry:
		return "waits for its next try"
	case HoldJitter:
		return "waits for its moment in the wave"
	case HoldSpread:
		return "blocked: a device of its group is being updated"
	case HoldReading:
		return "blocked: no fresh reading"
	case HoldWave:
		return "waits for its wave"
	case HoldSuspect:
		return "blocked: its reports do not go together"
	}
	if text := protocol.Reason(h).Text(); text != "" {
		return text
	}
	return string(h)
}

// hold says why c is not started at now, whatever the caps and its group say.
func (r *Rollout) hold(c Candidate, release protocol.Release, z *zones, now time.Time) Hold {
	d := c.Device
	switch {
	case d.Suspect():
		return HoldSuspect
	case d.SHA256 == r.SHA256:
		return holdUpToDate
	case d.Revoked:
		return holdUnfit
	case c.Busy:
		return HoldBusy
	case now.Before(c.Member.NotBefore):
		return HoldRetry
	case c.Reserved:
		return HoldReserved
	case !d.Online:
		return HoldOffline
	}
	if reason, _ := unfit(d, release, r.Policy.Force); reason != protocol.ReasonNone {
		return holdUnfit
	}
	if !r.Policy.OverrideGates {
		if h := r.gate(d, z, now); h != HoldNone {
			return h
		}
	}
	if j := r.jitterOf(d.ID); j > 0 && now.Before(r.WaveSince.Add(j)) {
		return HoldJitter
	}
	return HoldNone
}

// gate judges the policy's gate and window.
func (r *Rollout) gate(d *Device, z *zones, now time.Time) Hold {
	g := r.Policy.Gate
	if r.Policy.Window != "" {
		window := protocol.Gate{Window: r.Policy.Window}
		if reason := window.Blocked(nil, now.In(z.of(d.Labels))); reason != protocol.ReasonNone {
			return Hold(reason)
		}
	}
	if g.zero() {
		return HoldNone
	}
	if now.Sub(d.LastSeen) > staleReading {
		return HoldReading
	}
	return Hold(g.onDevice().Blocked(d.Status.Battery, now))
}

// holds says what would hold back members now if r began, by device; those that nothing does are not in it. Gates are judged by
// the last reading, however old. That another command is under way, or another rollout has the device, is not looked at.
func (r *Rollout) holds(release protocol.Release, members []Member, devices []Device, z *zones, now time.Time) map[string]Hold {
	rank := make(map[string]int, len(members))
	for i, m := range members {
		rank[m.DeviceID] = i
	}
	held := make(map[string]Hold)
	for i := range devices {
		d := &devices[i]
		at, is := rank[d.ID]
		if !is {
			continue
		}
		h := r.hold(Candidate{Member: members[at], Device: d}, release, z, now)
		if h == HoldReading { // it would be asked; until then the old reading is the best guess
			h = Hold(r.Policy.Gate.onDevice().Blocked(d.Status.Battery, now))
		}
		switch h {
		case HoldNone, HoldJitter, holdUpToDate, holdUnfit:
		default:
			held[d.ID] = h
		}
	}
	return held
}

// HeldCount is how many members one thing holds back.
type HeldCount struct {
	Hold  Hold
	Count int
}

// Held counts the members that something holds back, most first.
func (d Draft) Held() []HeldCount {
	counts := make(map[Hold]int)
	for _, h := range d.Holds {
		counts[h]++
	}
	list := make([]HeldCount, 0, len(counts))
	for h, n := range counts {
		list = append(list, HeldCount{h, n})
	}
	slices.SortFunc(list, func(a, b HeldCount) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Hold, b.Hold)) })
	return list
}

// unfit says why a device can no longer take the release it was chosen for; ReasonNone when it can. One that must pass
// through another release first is on its way.
func unfit(d *Device, release protocol.Release, force bool) (protocol.Reason, string) {
	if d.Revoked {
		return protocol.ReasonOther, "its login was taken away"
	}
	refusal := protocol.Refuse(deviceFacts(d), release, force)
	if refusal == nil || refusal.Reason == protocol.ReasonNeedsIntermediate {
		return protocol.ReasonNone, ""
	}
	return refusal.Reason, refusal.Error()
}
