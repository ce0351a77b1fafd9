package fleet

import (
	"slices"
	"strings"

	"bmsota/protocol"

	"github.com/Masterminds/semver/v3"
)

// Selector says which devices a rollout is for: those that every field which is given is true of. Devices of another
// project or chip than the release's are never meant.
type Selector struct {
	All      bool // must be said where nothing else is: an empty selector is more often a slip than a wish
	IDs      []string
	Labels   Labels // each must be there with this value
	Versions string // range of running versions, such as ">=1.2.0 <2.0.0"
	Channel  string
	Chip     string
}

const maxSelectedIDs = 20_000

func (s Selector) check() error {
	narrow := len(s.IDs) > 0 || len(s.Labels) > 0 || s.Versions != "" || s.Channel != "" || s.Chip != ""
	switch {
	case !s.All && !narrow:
		return invalid("the selector names no device: give ids, labels, versions, a channel or a chip, or say that all are meant")
	case s.All && narrow:
		return invalid("the selector says all and names some: give one of them")
	case len(s.IDs) > maxSelectedIDs:
		return invalid("%d ids, the limit is %d", len(s.IDs), maxSelectedIDs)
	}
	for _, id := range s.IDs {
		if err := protocol.CheckDeviceID(id); err != nil {
			return invalid("selector: %w", err)
		}
	}
	for key, value := range s.Labels {
		if err := checkLabel(key, value); err != nil {
			return err
		}
	}
	if s.Channel != "" {
		if err := checkChannel(s.Channel); err != nil {
			return err
		}
	}
	if len(s.Chip) > 32 {
		return invalid("selector: chip %.40q", s.Chip)
	}
	_, err := versionRange(s.Versions)
	return err
}

// versionRange reads a range; nil for none. A pre-release is within it by order alone.
func versionRange(text string) (*semver.Constraints, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > 200 {
		return nil, invalid("a range of versions of %d letters, the limit is 200", len(text))
	}
	c, err := semver.NewConstraint(text)
	if err != nil {
		return nil, invalid("versions %q is not a range such as \">=1.2.0 <2.0.0\"", text)
	}
	c.IncludePrerelease = true
	return c, nil
}

// matcher is a selector made ready for many devices.
type matcher struct {
	s        Selector
	ids      map[string]bool
	versions *semver.Constraints
}

func (s Selector) matcher() (*matcher, error) {
	m := &matcher{s: s}
	if len(s.IDs) > 0 {
		m.ids = make(map[string]bool, len(s.IDs))
		for _, id := range s.IDs {
			m.ids[id] = true
		}
	}
	var err error
	m.versions, err = versionRange(s.Versions)
	return m, err
}

// matches says whether d is meant. A device whose version is no proper one is in no range.
func (m *matcher) matches(d *Device) bool {
	switch {
	case m.ids != nil && !m.ids[d.ID],
		m.s.Channel != "" && first(d.Channel, DefaultChannel) != m.s.Channel,
		m.s.Chip != "" && d.Status.Chip != m.s.Chip:
		return false
	}
	for key, value := range m.s.Labels {
		if d.Labels[key] != value {
			return false
		}
	}
	if m.versions == nil {
		return true
	}
	v, ok := protocol.ParseVersion(d.Version)
	return ok && m.versions.Check(v)
}

// Cannot is a device that a selector means and a rollout leaves out.
type Cannot struct {
	DeviceID string
	Reason   string // a reason of the protocol, or unprotected, revoked, never_seen, unknown
	Detail   string // for people
}

// Reasons of this server's own for leaving a device out.
const (
	CannotUnprotected = "unprotected"
	CannotRevoked     = "revoked"
	CannotNeverSeen   = "never_seen"
	CannotUnknown     = "unknown"
)

// Selection is who a rollout would be for.
type Selection struct {
	Release Release
	Members []Member // in their order
	Cannot  []Cannot // by id
	// Through counts members that install another release first, because theirs is too old for this one.
	Through int
	// UpToDate counts members that run the release already: they succeed untouched.
	UpToDate int
}

// selection decides who is a member. rolledBack are the devices that undid this image before. It reads every device
// once, which is what makes the members a fixed number from here on.
func (c *catalog) selection(r Release, p Policy, devices []Device, rolledBack map[string]bool) (Selection, error) {
	m, err := p.Selector.matcher()
	if err != nil {
		return Selection{}, err
	}
	s := Selection{Release: r}
	known := make(map[string]bool, len(m.ids))
	for i := range devices {
		d := &devices[i]
		known[d.ID] = true
		if !m.matches(d) {
			continue
		}
		// Another line of releases is meant only where a device of it is named.
		other := d.Status.Project != "" && d.Status.Project != r.Project || d.Status.Chip != "" && d.Status.Chip != r.Chip
		if other && m.ids == nil {
			continue
		}
		if why := c.cannot(r, p, d, rolledBack[d.ID]); why != nil {
			s.Cannot = append(s.Cannot, *why)
			continue
		}
		switch {
		case d.SHA256 == r.SHA256:
			s.UpToDate++
		case r.MinVersion != "" && protocol.Older(d.Version, r.MinVersion):
			s.Through++
		}
		s.Members = append(s.Members, Member{DeviceID: d.ID, State: MemberPending})
	}
	for id := range m.ids {
		if !known[id] {
			s.Cannot = append(s.Cannot, Cannot{id, CannotUnknown, "no device of this name was ever enrolled or heard of"})
		}
	}
	rankMembers(s.Members, first(p.Seed, r.SHA256))
	slices.SortFunc(s.Cannot, func(a, b Cannot) int { return strings.Compare(a.DeviceID, b.DeviceID) })
	return s, nil
}

// rankMembers puts members into the order of a seed.
func rankMembers(members []Member, seed string) {
	hashes := make(map[string]uint64, len(members))
	for _, m := range members {
		hashes[m.DeviceID] = order(seed, m.DeviceID)
	}
	slices.SortFunc(members, func(a, b Member) int {
		x, y := hashes[a.DeviceID], hashes[b.DeviceID]
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return strings.Compare(a.DeviceID, b.DeviceID)
	})
	for i := range members {
		members[i].Rank = i
	}
}

// cannot says why d cannot take r, nil when it can.
func (c *catalog) cannot(r Release, p Policy, d *Device, rolledBack bool) *Cannot {
	no := func(reason, detail string) *Cannot { return &Cannot{d.ID, reason, detail} }
	if d.Revoked {
		return no(CannotRevoked, "its login was taken away")
	}
	if d.Status.Phase == "" {
		return no(CannotNeverSeen, "it has never said what it is")
	}
	if d.Status.Signed && r.Manifest == "" {
		return no(string(protocol.ReasonUnsigned), "it takes signed releases only")
	}
	me := deviceFacts(d)
	me.Quarantined = func(string) bool { return rolledBack }
	refusal := protocol.Refuse(me, releaseFacts(r), p.Force)
	if refusal != nil {
		switch refusal.Reason {
		case protocol.ReasonUpToDate:
			refusal = nil
		case protocol.ReasonNeedsIntermediate:
			if o := c.bySHA[r.SHA256]; o != nil && c.step(line{r.Project, r.Chip}, o, askerOf(*d, nil)) != nil {
				refusal = nil // it is offered the step, and then this
			}
		}
	}
	if refusal != nil {
		return no(string(refusal.Reason), refusal.Error())
	}
	if !d.Status.RollbackProtected && !p.AllowUnprotected && d.SHA256 != r.SHA256 {
		return no(CannotUnprotected, "it could not undo a bad image")
	}
	return nil
}

// deviceFacts is what a device's last status says for protocol.Refuse. Of a device on trial it is the image before.
func deviceFacts(d *Device) protocol.Device {
	s := &d.Status
	return protocol.Device{Chip: s.Chip, Project: s.Project, Version: d.Version, ImageSHA256: d.SHA256, SlotSize: s.SlotSize, SecureVersion: s.SecureVersion}
}
