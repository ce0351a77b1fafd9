package fleet

import (
	"bmsota/protocol"
)

// Observer is told what has been committed, for figures. Its methods are called from the committer and the loop, one
// after another for each; they must not block.
type Observer interface {
	// Folded is one status that a device has sent: what it said, the phase it was in before, and what became of it.
	Folded(s protocol.Status, before protocol.Phase, e Effects)
	// Ended is an attempt that a status, silence or time has ended.
	Ended(a Attempt)
}

// announce tells watchers and the observer about a group that is committed.
func (f *Fleet) announce(group []*fold, results []result) {
	for i, fo := range group {
		r := results[i]
		if r.err != nil {
			continue
		}
		if fo.online != nil || r.effects.Device || r.effects.Attempt {
			f.watchers.tell(fo.device)
		}
		if f.cfg.Observer == nil {
			continue
		}
		if fo.online == nil {
			f.cfg.Observer.Folded(fo.status, r.before, r.effects)
		}
		if r.ended != nil {
			f.cfg.Observer.Ended(*r.ended)
		}
	}
}

// count tells the observer about attempts that no status has ended. One whose place another took has no end of its own.
func (f *Fleet) count(ended ...Attempt) {
	if f.cfg.Observer == nil {
		return
	}
	for _, a := range ended {
		if a.State != AttemptSuperseded {
			f.cfg.Observer.Ended(a)
		}
	}
}
