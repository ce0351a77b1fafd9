package fleet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bmsota/protocol"
)

// SuspicionKind is why the word of a device is not believed.
type SuspicionKind string

// The kinds. Each speaks of the whole device id: which of two ends that use it is the true one cannot be told from here.
const (
	SuspectBoots    SuspicionKind = "alternating_boots" // a boot goes on that another had taken the place of
	SuspectSequence SuspicionKind = "sequence_back"     // one boot says numbers again, or far below those it had reached
	SuspectImage    SuspicionKind = "never_offered"     // during an order it came to run an image that was never published here
	SuspectLogin    SuspicionKind = "contested"         // its login is used in two places (Contest)
)

// Text is the sentence for people.
func (k SuspicionKind) Text() string {
	switch k {
	case SuspectBoots:
		return "two boots of it report in turn: two boards have its login"
	case SuspectSequence:
		return "its reports go back in number"
	case SuspectImage:
		return "it reports an image that it was never offered"
	case SuspectLogin:
		return "its login is used in two places"
	}
	return string(k)
}

// needs is how often something must be seen before it is believed: what a network delivers late, or a switch of addresses,
// may look like it once.
func (k SuspicionKind) needs() int {
	if k == SuspectBoots || k == SuspectSequence {
		return 2
	}
	return 1
}

const (
	// evidenceFor is how long something that was seen once counts towards the second time.
	evidenceFor = 24 * time.Hour
	// reorder is how far below the highest number of a boot a status may be that was only late: a device has one status
	// that is acknowledged on its way, and a stream of progress that is not.
	reorder = 64
)

// Suspicion is one reason not to believe a device, or what has been seen of it so far.
type Suspicion struct {
	Kind     SuspicionKind
	Since    time.Time // first seen so
	Last     time.Time
	Times    int    // seen; it stands from two on, of some kinds from the first
	Evidence string // the last of it, for people
	// Mark is the word of the present boot that it was last counted after: what of an old boot comes in a bunch counts once.
	Mark string `json:",omitempty"`
}

// Stands says whether it is believed.
func (s Suspicion) Stands() bool { return s.Times >= s.Kind.needs() }

// lapsed says that it has come to an end by itself. A login that was in two hands within the hour only is as good as new
// (a board on a bad line looks so, too); the other kinds are a contradiction that an operator has to clear up.
func (s Suspicion) lapsed(now time.Time) bool {
	return s.Kind == SuspectLogin && now.Sub(s.Last) > contestShown
}

// Doubts are what a device has said that does not go together. Stores keep them as the JSON of this type.
type Doubts struct {
	// Seqs are the highest numbers that boots before the present one had reached, by boot.
	Seqs map[string]uint64 `json:",omitempty"`
	List []Suspicion       `json:",omitempty"` // at most one of a kind
	// BootSince is when the present boot took the place of another, where several servers share statuses.
	BootSince time.Time `json:",omitzero"`
}

// Clone copies what d points at; empty parts become nil.
func (d Doubts) Clone() Doubts {
	if d.Seqs = maps.Clone(d.Seqs); len(d.Seqs) == 0 {
		d.Seqs = nil
	}
	if d.List = slices.Clone(d.List); len(d.List) == 0 {
		d.List = nil
	}
	return d
}

// Zero says that there are none.
func (d Doubts) Zero() bool { return len(d.Seqs) == 0 && len(d.List) == 0 && d.BootSince.IsZero() }

// Suspicions are those about the device that stand.
func (d Device) Suspicions() (list []Suspicion) {
	for _, s := range d.Doubts.List {
		if s.Stands() {
			list = append(list, s)
		}
	}
	return list
}

// Suspect says whether the device is not believed: rollouts leave it out.
func (d Device) Suspect() bool { return slices.ContainsFunc(d.Doubts.List, Suspicion.Stands) }

// suspicionText names the kinds that stand, in one order; empty for none.
func suspicionText(list []Suspicion) string {
	kinds := make([]string, 0, len(list))
	for _, s := range list {
		kinds = append(kinds, string(s.Kind))
	}
	slices.Sort(kinds)
	return strings.Join(kinds, ", ")
}

// doubt notes evidence against the device. With a mark that was noted last it is nothing new.
func (d *Device) doubt(kind SuspicionKind, mark, evidence string, now time.Time) (changed bool) {
	now = now.UTC().Truncate(time.Millisecond) // as a row keeps it
	d.Doubts = d.Doubts.Clone()
	i := slices.IndexFunc(d.Doubts.List, func(s Suspicion) bool { return s.Kind == kind })
	if i < 0 {
		d.Doubts.List = append(d.Doubts.List, Suspicion{Kind: kind, Since: now})
		i = len(d.Doubts.List) - 1
	}
	s := &d.Doubts.List[i]
	if mark != "" && s.Mark == mark {
		return false
	}
	if !s.Stands() && now.Sub(s.Last) > evidenceFor {
		s.Times, s.Since = 0, now
	}
	s.Times, s.Last, s.Mark, s.Evidence = s.Times+1, now, mark, evidence
	return true
}

// lapse takes away the suspicions that have come to an end by themselves.
func (d *Device) lapse(now time.Time) (changed bool) {
	if !slices.ContainsFunc(d.Doubts.List, func(s Suspicion) bool { return s.lapsed(now) }) {
		return false
	}
	d.Doubts = d.Doubts.Clone()
	d.Doubts.List = slices.DeleteFunc(d.Doubts.List, func(s Suspicion) bool { return s.lapsed(now) })
	return true
}

// Examine holds a status against what the device has said before, and notes what does not go together. It is given the
// device as it was before the status was applied, and changes nothing that it was given.
//
// A device counts its statuses from 1 within a boot, and a boot that another has taken the place of is over. What the
// network delivers late was said before: it is a number that the boot had reached already, or one more in flight while the
// device restarted. So a boot that is over is believed to live on when it has said something new twice, and the present
// boot has spoken between.
func Examine(d Device, s protocol.Status, now time.Time) (_ Device, changed bool) {
	return examine(d, s, now, 0)
}

// lateByShare is for how long a boot may speak on after another has taken its place where several servers share what a broker
// brings: what is dealt to one may be stored after what is dealt to another and was said later. A broker gives up a server that
// does not answer after 15 s.
const lateByShare = time.Minute

func examine(d Device, s protocol.Status, now time.Time, late time.Duration) (_ Device, changed bool) {
	if s.Phase == protocol.PhaseOffline || s.BootID == "" || s.Seq == 0 || d.Boot == "" {
		return d, false
	}
	switch {
	case s.BootID == d.Boot && s.Seq > d.Seq:
	case s.BootID == d.Boot:
		again := s.Seq == d.Seq && d.Status.BootID == s.BootID && d.Status.Seq == s.Seq && !sameStatus(s, d.Status)
		if again || d.Seq-s.Seq > reorder {
			changed = d.doubt(SuspectSequence, "", fmt.Sprintf("boot %.16s says number %d after %d", s.BootID, s.Seq, d.Seq), now)
		}
	case slices.Contains(d.OldBoots, s.BootID):
		reached, known := d.Doubts.Seqs[s.BootID]
		if known && s.Seq <= reached {
			return d, false
		}
		d.Doubts = d.Doubts.Clone()
		if d.Doubts.Seqs == nil {
			d.Doubts.Seqs = make(map[string]uint64)
		}
		d.Doubts.Seqs[strings.Clone(s.BootID)], changed = s.Seq, true // the id alone: a part of a status holds all of it
		if known && now.Sub(d.Doubts.BootSince) >= late {             // else its numbers of before are not remembered
			d.doubt(SuspectBoots, fmt.Sprintf("%s/%d", d.Boot, d.Seq),
				fmt.Sprintf("boot %.16s says number %d after boot %.16s had taken its place", s.BootID, s.Seq, d.Boot), now)
		}
	default: // a new boot takes the place
		d.Doubts = d.Doubts.Clone()
		maps.DeleteFunc(d.Doubts.Seqs, func(boot string, _ uint64) bool { return !slices.Contains(d.OldBoots, boot) })
		if d.Doubts.Seqs == nil {
			d.Doubts.Seqs = make(map[string]uint64)
		}
		d.Doubts.Seqs[d.Boot], changed = d.Seq, true
		if late > 0 {
			d.Doubts.BootSince = now.UTC().Truncate(time.Millisecond)
		}
	}
	return d, changed
}

// strayImage is the digest of an image that a device has come to run during an update that is to bring another one; empty
// when it has not. Whoever is at work on a board over USB does so between orders: that is no lie, and the board is
// StateUnreleased.
func strayImage(d *Device, a *Attempt, s protocol.Status) string {
	if a == nil || a.State != AttemptOpen || a.Action != protocol.ActionUpdate || a.SHA256 == "" || onTrialStill(s) ||
		s.Phase == protocol.PhaseRolledBack || s.Phase == protocol.PhaseOffline || s.ImageSHA256 == a.SHA256 ||
		d.SHA256 == "" || s.ImageSHA256 == d.SHA256 {
		return ""
	}
	return s.ImageSHA256
}

// examineImage doubts a device that came by an image which is no release here.
func examineImage(tx Tx, d *Device, a *Attempt, s protocol.Status, now time.Time) (changed bool, err error) {
	digest := strayImage(d, a, s)
	if digest == "" {
		return false, nil
	}
	_, err = tx.Release(digest)
	if !errors.Is(err, ErrNotFound) {
		return false, err
	}
	return d.doubt(SuspectImage, digest, fmt.Sprintf("it runs %.32q (%.12s), which was never published here, during the order of %.12s", s.CurrentVersion, digest, a.SHA256), now), nil
}
