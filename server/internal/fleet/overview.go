package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"bmsota/protocol"
)

// When a device needs somebody to look at it.
const (
	// StuckAfter is how long an updating device may be silent: in a download it speaks every two seconds, and the
	// longest it is away is one restart.
	StuckAfter = 10 * time.Minute
	// AwayAfter is how long a device may be offline.
	AwayAfter = 24 * time.Hour
	// FailedWithin is how long a failed update counts that nothing has made good since.
	FailedWithin = 7 * 24 * time.Hour
)

// State is what a listing of devices can be narrowed to. All but StateRevoked leave revoked devices out.
type State string

// The states.
const (
	StateAny         State = ""            // every device, revoked ones too
	StateOnline      State = "online"      // connected
	StateOffline     State = "offline"     // not connected
	StateAway        State = "away"        // not connected, and not heard of or enrolled for AwayAfter
	StateUpdating    State = "updating"    // between the order and the end of an update, waiting ones too
	StateWaiting     State = "waiting"     // held back by a gate
	StateStuck       State = "stuck"       // updating, not waiting, and silent for StuckAfter
	StateFailed      State = "failed"      // failed or rolled back now, or within FailedWithin with no success since
	StateUnprotected State = "unprotected" // cannot roll back, or takes unsigned releases
	StateUnreleased  State = "unreleased"  // runs an image that is no release here
	StateSuspect     State = "suspect"     // not believed (Suspicion)
	StateRevoked     State = "revoked"
)

// States lists the states, for forms.
func States() []State {
	return []State{StateOnline, StateOffline, StateAway, StateUpdating, StateWaiting, StateStuck, StateFailed, StateUnprotected, StateUnreleased, StateSuspect, StateRevoked}
}

// Sort is what a listing of devices is ordered by; the id decides between equals.
type Sort string

// The orders.
const (
	SortID      Sort = "id"
	SortSeen    Sort = "seen"
	SortVersion Sort = "version" // as text: 1.10.0 comes before 1.9.0
)

// DeviceMark is a place in a listing: just behind one device.
type DeviceMark struct {
	ID      string
	Seen    time.Time // for SortSeen
	Version string    // for SortVersion
}

// Mark is the place of d in any order.
func (d Device) Mark() DeviceMark { return DeviceMark{ID: d.ID, Seen: d.LastSeen, Version: d.Version} }

// DeviceQuery selects devices. Empty fields select all.
type DeviceQuery struct {
	State   State
	Phase   protocol.Phase
	Reason  protocol.Reason
	Version string
	SHA256  string // of the image that runs
	Project string
	Chip    string
	Channel string
	Text    string // part of the id, in upper or lower case

	Sort  Sort // empty = SortID
	Desc  bool
	After *DeviceMark // nil = from the beginning
	// Back takes the devices before After, nearest to it; they come in the order of the listing all the same.
	Back  bool
	Limit int // at most MaxPage
	// Now is what StuckAfter, AwayAfter and FailedWithin count from.
	Now time.Time
}

// MaxPage bounds a page of devices.
const MaxPage = 500

// Plain says whether q selects every device.
func (q DeviceQuery) Plain() bool {
	return q.State == "" && q.Phase == "" && q.Reason == "" && q.Version == "" && q.SHA256 == "" && q.Project == "" && q.Chip == "" && q.Channel == "" && q.Text == ""
}

func (q DeviceQuery) check() error {
	if q.State != "" && !slices.Contains(States(), q.State) {
		return fmt.Errorf("%w: there is no state %.32q", ErrInvalid, q.State)
	}
	if q.Sort != SortID && q.Sort != SortSeen && q.Sort != SortVersion {
		return fmt.Errorf("%w: devices cannot be sorted by %.32q", ErrInvalid, q.Sort)
	}
	for _, text := range []string{string(q.Phase), string(q.Reason), q.Version, q.SHA256, q.Project, q.Chip, q.Channel, q.Text} {
		if len(text) > 64 || !printable(text) {
			return fmt.Errorf("%w: what is looked for is too long, or no text", ErrInvalid)
		}
	}
	return nil
}

// Facts are what a DeviceQuery asks of other rows.
type Facts struct {
	Failed   bool // an attempt failed or was rolled back within FailedWithin, and none that came after it succeeded
	Released bool // there is a release of the image that runs
}

// Matches says whether the query selects d. It is what the stores are held to.
func (q DeviceQuery) Matches(d Device, facts Facts) bool {
	s := d.Status
	for _, c := range []struct{ want, got string }{
		{string(q.Phase), string(s.Phase)}, {string(q.Reason), string(s.Reason)}, {q.Version, d.Version}, {q.SHA256, d.SHA256},
		{q.Project, s.Project}, {q.Chip, s.Chip}, {q.Channel, first(d.Channel, DefaultChannel)},
	} {
		if c.want != "" && c.want != c.got {
			return false
		}
	}
	if !strings.Contains(strings.ToLower(d.ID), strings.ToLower(q.Text)) {
		return false
	}
	switch q.State {
	case StateAny:
		return true
	case StateRevoked:
		return d.Revoked
	}
	if d.Revoked {
		return false
	}
	switch q.State {
	case StateOnline:
		return d.Online
	case StateOffline:
		return !d.Online
	case StateAway:
		since := q.Now.Add(-AwayAfter)
		return !d.Online && d.LastSeen.Before(since) && d.EnrolledAt.Before(since)
	case StateUpdating:
		return s.Phase.Updating()
	case StateWaiting:
		return s.Phase == protocol.PhaseWaiting
	case StateStuck:
		return s.Phase.Updating() && s.Phase != protocol.PhaseWaiting && d.LastSeen.Before(q.Now.Add(-StuckAfter))
	case StateFailed:
		return s.Phase == protocol.PhaseFailed || s.Phase == protocol.PhaseRolledBack || facts.Failed
	case StateUnprotected:
		return s.Phase != "" && !(s.RollbackProtected && s.Signed)
	case StateUnreleased:
		return d.Version != "" && !facts.Released
	case StateSuspect:
		return d.Suspect()
	}
	return false
}

// DeviceTally counts the devices that are not revoked and have all of this in common.
type DeviceTally struct {
	Project, Chip, Version, SHA256 string // of the image that runs
	Phase                          protocol.Phase
	Reason                         protocol.Reason
	Released                       bool

	Count, Online, Stuck, Unprotected, Away int
}

// AttemptTally counts open attempts.
type AttemptTally struct {
	Action  protocol.Action
	Version string
	Phase   protocol.Phase // furthest reached; empty = not taken up yet
	Count   int
}

// FailureTally counts attempts that failed or were rolled back.
type FailureTally struct {
	Action  protocol.Action
	Version string // ordered; empty where the order named none
	SHA256  string // of the release that it came to, where that is known
	State   AttemptState
	Reason  protocol.Reason
	Count   int
}

// OverviewTx is the part of Tx that answers questions about the whole fleet without handing it out.
type OverviewTx interface {
	DevicePage(DeviceQuery) ([]Device, error)
	DeviceCount(DeviceQuery) (int, error)
	DeviceTallies(now time.Time) ([]DeviceTally, error)

	OpenTallies() ([]AttemptTally, error)
	NewestOpen(limit int) ([]Attempt, error)                    // newest first
	NewestFailed(since time.Time, limit int) ([]Attempt, error) // failed or rolled back, latest end first
	FailureTallies(since time.Time) ([]FailureTally, error)     // of those that ended since then; most first
	ReleaseTally(sha256 string) (map[AttemptState]int, error)   // of the attempts at a release
}

// DevicePage is one page of a listing, and how many devices the query selects in all.
func (f *Fleet) DevicePage(ctx context.Context, q DeviceQuery) (page []Device, total int, err error) {
	q.Sort = cmp.Or(q.Sort, SortID)
	if err := q.check(); err != nil {
		return nil, 0, err
	}
	q.Limit = min(max(q.Limit, 1), MaxPage)
	q.Now = f.cfg.Now()
	err = f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if page, err = tx.DevicePage(q); err != nil {
			return err
		}
		if total = len(page); q.After == nil && total < q.Limit {
			return nil // that was all
		}
		total, err = tx.DeviceCount(q)
		return err
	})
	return page, total, err
}

// Census is the fleet in numbers. Devices and what follows leave revoked devices out.
type Census struct {
	At                                       time.Time
	Devices, Online, Updating, Waiting       int
	Stuck, Failed, Unprotected, Away, Others int // Others run no release of this server
	Suspect                                  int
	Versions                                 []VersionCount
	Images                                   map[string]int // devices by the digest they run
	Reasons                                  []ReasonCount
	Failures                                 []FailureTally // within FailedWithin
	Open                                     []AttemptTally
	OpenTotal                                int
}

// VersionCount is how many devices run a version; most first.
type VersionCount struct {
	Project, Chip, Version string
	Released               bool
	Count                  int
}

// ReasonCount is how many devices wait, were refused, failed or went back for a reason; most first.
type ReasonCount struct {
	Phase  protocol.Phase
	Reason protocol.Reason
	Count  int
}

// CensusFresh is the age of a census that is as good as new: it looks at every device, and everybody who has the first
// page open asks.
const CensusFresh = 2 * time.Second

type censusCache struct {
	mu  sync.Mutex // held while counting, so that one counts and the others wait for it
	now *Census    // guarded by mu; what it points at never changes
}

// Census counts the fleet, or returns a count that is no older than age. The answer must not be changed.
func (f *Fleet) Census(ctx context.Context, age time.Duration) (*Census, error) {
	f.census.mu.Lock()
	defer f.census.mu.Unlock()
	now := f.cfg.Now()
	if c := f.census.now; c != nil && now.Sub(c.At) < age && !now.Before(c.At) {
		return c, nil
	}
	c := &Census{At: now}
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		*c = Census{At: now}
		tallies, err := tx.DeviceTallies(now)
		if err != nil {
			return err
		}
		c.add(tallies)
		if c.Failed, err = tx.DeviceCount(DeviceQuery{State: StateFailed, Now: now}); err != nil {
			return err
		}
		if c.Suspect, err = tx.DeviceCount(DeviceQuery{State: StateSuspect, Now: now}); err != nil {
			return err
		}
		if c.Failures, err = tx.FailureTallies(now.Add(-FailedWithin)); err != nil {
			return err
		}
		if c.Open, err = tx.OpenTallies(); err != nil {
			return err
		}
		for _, t := range c.Open {
			c.OpenTotal += t.Count
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	f.census.now = c
	return c, nil
}

func (c *Census) add(tallies []DeviceTally) {
	versions, reasons := make(map[VersionCount]int), make(map[ReasonCount]int)
	c.Images = make(map[string]int)
	for _, t := range tallies {
		c.Devices += t.Count
		c.Online += t.Online
		c.Stuck += t.Stuck
		c.Unprotected += t.Unprotected
		c.Away += t.Away
		if t.SHA256 != "" {
			c.Images[t.SHA256] += t.Count
		}
		if t.Version != "" {
			versions[VersionCount{t.Project, t.Chip, t.Version, t.Released, 0}] += t.Count
			if !t.Released {
				c.Others += t.Count
			}
		}
		switch {
		case t.Phase == protocol.PhaseWaiting:
			c.Waiting += t.Count
			fallthrough
		case t.Phase.Updating():
			c.Updating += t.Count
		}
		if t.Phase == protocol.PhaseWaiting || t.Phase.Ended() && t.Phase != protocol.PhaseConfirmed {
			reasons[ReasonCount{t.Phase, t.Reason, 0}] += t.Count
		}
	}
	for v, n := range versions {
		v.Count = n
		c.Versions = append(c.Versions, v)
	}
	slices.SortFunc(c.Versions, func(a, b VersionCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Project, b.Project), cmp.Compare(a.Chip, b.Chip), cmp.Compare(a.Version, b.Version))
	})
	for r, n := range reasons {
		r.Count = n
		c.Reasons = append(c.Reasons, r)
	}
	slices.SortFunc(c.Reasons, func(a, b ReasonCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Phase, b.Phase), cmp.Compare(a.Reason, b.Reason))
	})
}

// UnderWay are the newest open attempts, and the latest that failed or were rolled back within FailedWithin.
func (f *Fleet) UnderWay(ctx context.Context, limit int) (open, failed []Attempt, err error) {
	err = f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if open, err = tx.NewestOpen(limit); err != nil {
			return err
		}
		failed, err = tx.NewestFailed(f.cfg.Now().Add(-FailedWithin), limit)
		return err
	})
	return open, failed, err
}

// ReleaseTally counts the attempts at a release by how they stand.
func (f *Fleet) ReleaseTally(ctx context.Context, sha256 string) (tally map[AttemptState]int, err error) {
	err = f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		tally, err = tx.ReleaseTally(sha256)
		return err
	})
	return tally, err
}

// OffersFor are the releases that could be meant for a device: of its project and chip, newest first, withdrawn ones left
// out; and the version that its channel offers it, empty when it offers none.
func (f *Fleet) OffersFor(ctx context.Context, d Device) (list []Release, offered string, err error) {
	cat, err := f.catalogue(ctx)
	if err != nil {
		return nil, "", err
	}
	o, err := cat.offer(Query{Device: d.ID}, askerOf(d, nil), f.cfg.DefaultProject)
	switch {
	case err == nil:
		offered = o.Release.Version
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid):
		return nil, "", err
	}
	for _, o := range cat.lines[line{d.Status.Project, d.Status.Chip}] {
		list = append(list, o.Release)
	}
	return list, offered, nil
}
