package fleet

import (
	"fmt"
	"slices"

	"bmsota/protocol"
)

// judge sets members aside whose devices have become suspect, and takes back those whose devices are so no more. It comes
// before everything else: what a device said that is not believed must neither stop a rollout nor move it on, whether it
// was counted already or not.
func (p *planning) judge() {
	if p.r().State.Ended() {
		return
	}
	for _, c := range p.Doubted {
		p.judged[c.Device.ID] = true
		switch {
		case c.Device.Suspect() && c.Member.State != MemberSuspect:
			if p.isDark(c) {
				p.figures.Dark--
			}
			p.setAside(c.Member, c.Device)
		case !c.Device.Suspect() && c.Member.State == MemberSuspect:
			p.takeIn(c)
		}
	}
}

// tellAside says how many were set aside, while there is room for events: half of it is for what the rollout does itself.
func (p *planning) tellAside() {
	if p.aside > 0 && len(p.r().Events) < maxEvents/2 {
		p.r().say(p.now, "", "%s set aside: what is reported does not go together", plural(p.aside, "device"))
	}
}

// setAside takes a member out of the figures; another may be started in its place.
func (p *planning) setAside(m Member, d *Device) {
	from := m.State
	m.State, m.Reason, m.Message = MemberSuspect, protocol.ReasonNone, "set aside: "+suspicionText(d.Suspicions())
	p.r().Limits = slices.Clone(p.r().Limits)
	p.r().leaveOut(m.Rank)
	p.out.Changed = true
	p.aside++
	p.put(m, from)
}

// takeIn counts a member again. What it had tried says nothing, so it has its tries back.
func (p *planning) takeIn(c Candidate) {
	m := c.Member
	m.State, m.Tries, m.Message = MemberPending, 0, fmt.Sprintf("cleared of suspicion: %s", m.Message)
	if c.Device.SHA256 == p.r().SHA256 {
		m.State = MemberSucceeded
	}
	p.r().LeftOut--
	p.out.Changed = true
	p.put(m, MemberSuspect)
}

// isDark says whether a member is one of Figures.Dark.
func (p *planning) isDark(c Candidate) bool {
	m, silence := c.Member, p.r().Policy.Silence
	return (m.State == MemberSucceeded || m.State == MemberPending && m.Tries > 0) && !c.Device.Online &&
		p.now.Sub(p.Listening) > silence && p.now.Sub(c.Device.LastSeen) > silence
}
