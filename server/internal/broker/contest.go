package broker

import (
	"slices"
	"time"

	"bmsota/server/internal/fleet"
)

// A login is contested when two ends use it: each takes the session from the other, or they stand side by side under two
// client identifiers. One board that comes back from another address, or on a bad line, does so now and then; what passes
// these numbers is two boards with one login, or a login that somebody else has. They count for one session each, because
// the original firmware has three, which all meet their old selves when it restarts.
const (
	contestWindow   = 10 * time.Minute
	contestBetween  = 3  // meetings of different addresses within the window
	contestSame     = 10 // meetings within the window wherever they come from: two ends may sit behind one router
	contestMeetings = 64
)

// meeting is one session of an identity that met another of it.
type meeting struct {
	at       time.Time
	session  string // that was taken over; empty when both stand
	from, by string // sources: of the session that was there, of the one that came
}

// contest keeps the latest meetings of an identity.
type contest []meeting

// note adds a meeting. While the login is contested it returns the addresses, sorted, and how often they have met.
func (c *contest) note(m meeting) (addresses []string, times int) {
	old := func(o meeting) bool { return m.at.Sub(o.at) > contestWindow }
	*c = append(slices.DeleteFunc(*c, old), m)
	if over := len(*c) - contestMeetings; over > 0 {
		*c = slices.Delete(*c, 0, over)
	}
	between := 0
	for _, o := range *c {
		if o.session != m.session {
			continue
		}
		times++
		if o.from != o.by {
			between++
		}
		addresses = append(addresses, o.from, o.by)
	}
	if between < contestBetween && times < contestSame {
		return nil, 0
	}
	slices.Sort(addresses)
	return slices.Compact(addresses), times
}

// met notes that a session of id from one source met another, and reports a login that is contested. Only a device has one
// place; an operator's token may be in many tools.
func (e *Embedded) met(p *peer, id fleet.Identity, session, from, by string) {
	if id.Role != fleet.RoleDevice {
		return
	}
	e.mu.Lock()
	addresses, times := p.contest.note(meeting{time.Now(), session, from, by})
	e.mu.Unlock()
	if times == 0 {
		return
	}
	e.count.contested.Add(1)
	e.note("login is used in two places", "device", id.Name, "addresses", addresses, "times", times)
	e.cfg.Handler.Contested(id.Name, addresses, times)
}
