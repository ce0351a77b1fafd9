package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/protocol"
)

// Share makes one of several fleets on one store of a Fleet. Nil in Config: nobody else is there, and none of this costs anything.
type Share struct {
	Place string // of this server: its data folder's id, which no other process has at the same time
	Name  string // for people; empty for a server that works alone, and refuses every other
	// Lease is how long the one who does what goes by the clock may be silent before another may; 0 = 10 s.
	Lease time.Duration
}

const (
	defaultLease = 10 * time.Second
	leaseBeats   = 4                      // in one lease
	followEvery  = 200 * time.Millisecond // what another server has revoked holds here after this
	keepChanges  = 10 * time.Minute
	// deafFor is how long a server may have heard nothing before it takes it that everything has changed.
	deafFor     = keepChanges / 2
	changePage  = 500
	maxInChange = 1000 // ids in one change; more is All
)

// ErrOusted is the error of Run where a server that works alone was silent for so long that another has taken its place: what this
// one remembers of the rows may be old, and nobody tells it what has changed.
var ErrOusted = errors.New("another server has begun to work on this database while this one was silent, and replicas.name, which lets several work there, is not set")

// ErrOutdated is the error of Run, and of what writes, where a newer version has taken something away from the tables while this
// program was silent. Nothing was written.
var ErrOutdated = errors.New("a newer version has changed the tables while this server was silent, and this one cannot work on them any more: start the newer version here too")

// ErrNotPlanner says that another server has taken over what this one was about to do. Nothing was written.
var ErrNotPlanner = errors.New("another server plans")

// share is what a Fleet keeps of the others.
type share struct {
	*Share

	unfenced bool // the mutant of planned, for its test
	mute     bool // the mutant of ownUp

	heard  atomic.Int64 // number of the last change that was followed
	token  atomic.Int64 // of the lease; 0 = another has it
	until  atomic.Pointer[time.Time]
	follow sync.Mutex // held while changes are followed
	at     time.Time  // of the last look; guarded by follow

	mu      sync.Mutex
	foreign map[string]struct{} // devices whose command is to be sent whatever this process remembers of them; guarded by mu
	say     []Saying            // guarded by mu
	all     bool                // everything has changed; guarded by mu
}

// Join says that a server begins to work on the store, and refuses it where that must not be: ErrRefused with a sentence. It is
// called before anything is changed.
func Join(ctx context.Context, s Store, me Share) error {
	lease := me.lease()
	return byServer(ctx, s, time.Now(), func(tx Tx) error {
		now, err := tx.Clock()
		if err != nil {
			return err
		}
		peers, err := tx.Peers()
		if err != nil {
			return err
		}
		for _, p := range peers {
			if p.Place == me.Place || now.Sub(p.Seen) > lease {
				continue
			}
			ago := now.Sub(p.Seen).Round(time.Second)
			switch {
			case p.Name == "":
				return fmt.Errorf("%w: a server without replicas.name works on this database (it said so %s ago): give it one, and every server another", ErrRefused, ago)
			case me.Name == "":
				return fmt.Errorf("%w: server %q works on this database (it said so %s ago): set replicas.name, which lets several work there", ErrRefused, p.Name, ago)
			case p.Name == me.Name:
				return fmt.Errorf("%w: a server of the name %q works on this database from another data folder (it said so %s ago): give this one another replicas.name, or wait %s where that one has ended", ErrRefused, p.Name, ago, (lease-now.Sub(p.Seen)).Round(time.Second)+time.Second)
			}
		}
		return tx.PutPeer(Peer{Place: me.Place, Name: me.Name, Seen: now})
	})
}

func (s *Share) lease() time.Duration {
	if s.Lease == 0 {
		return defaultLease
	}
	return s.Lease
}

// shared says whether other servers work on the store.
func (f *Fleet) shared() bool { return f.share != nil && f.share.Name != "" }

// plans says whether what goes by the clock is this server's to do. The answer may be old when it is used; what is written is
// held against the lease itself.
func (f *Fleet) plans() bool {
	if f.share == nil {
		return true
	}
	until := f.share.until.Load()
	// By both clocks: one of them stands still while the machine sleeps, the other may be set.
	return f.share.token.Load() != 0 && until != nil && time.Now().Before(*until) && time.Now().Round(0).Before(until.Round(0))
}

// sends says whether this server keeps the commands at its broker: each its own, or, at one for all, the planner alone.
func (f *Fleet) sends() bool { return !f.cfg.ForeignSessions || f.plans() }

// late is for how long statuses may come out of order because servers share them.
func (f *Fleet) late() time.Duration {
	if f.shared() && f.cfg.ForeignSessions {
		return lateByShare
	}
	return 0
}

// planned is update for what goes by the clock: it is written only where the right to it is this server's still, by the row in
// the same transaction.
func (f *Fleet) planned(ctx context.Context, fn func(Tx) error) error {
	if f.share == nil {
		return f.update(ctx, theServer, fn)
	}
	mine := f.share.token.Load() // before whatever holds this process up
	return f.update(ctx, theServer, func(tx Tx) error {
		l, err := tx.Lease()
		if err != nil {
			return err
		}
		if (mine == 0 || l.Token != mine) && !f.share.unfenced {
			return fmt.Errorf("%w: the lease has number %d and this server's had %d", ErrNotPlanner, l.Token, mine)
		}
		return fn(tx)
	})
}

// beat says that this server is there, and takes or keeps the lease. took says that it has the lease now and had not.
func (f *Fleet) beat(ctx context.Context) (took bool, err error) {
	s := f.share
	asked := time.Now() // the lease runs from before the store's clock was read: by ours it never ends later
	mine, token := s.token.Load(), int64(0)
	ousted := false
	var dead []Peer
	err = f.update(ctx, theServer, func(tx Tx) error {
		token, dead, ousted = 0, nil, false
		now, err := tx.Clock()
		if err != nil {
			return err
		}
		l, err := tx.Lease()
		if err != nil {
			return err
		}
		if ousted = s.Name == "" && mine != 0 && l.Token != mine; ousted {
			return nil
		}
		switch {
		case l.Holder == s.Place && l.Token == mine:
			token = mine
		case l.Holder == s.Place, !now.Before(l.Until): // of the process before this one, or run out
			token = l.Token + 1
		}
		if err := tx.PutPeer(Peer{Place: s.Place, Name: s.Name, Seen: now}); err != nil || token == 0 {
			return err
		}
		if err := tx.PutLease(Lease{Holder: s.Place, Token: token, Until: now.Add(s.lease())}); err != nil {
			return err
		}
		if dead, err = bury(tx, s.Place, now.Add(-s.lease())); err != nil {
			return err
		}
		return tx.DeleteChanges(now.Add(-keepChanges))
	})
	if err != nil {
		return false, err // what is held is held until it runs out
	}
	if ousted {
		s.token.Store(0)
		return false, ErrOusted
	}
	for _, p := range dead {
		f.cfg.Log.Warn("server is gone", "name", p.Name, "last_seen", p.Seen)
	}
	until := asked.Add(s.lease())
	s.until.Store(&until)
	s.token.Store(token)
	took = token != 0 && token != mine
	if took && f.shared() {
		f.cfg.Log.Info("this server plans from now on", "lease", token)
	}
	return took, nil
}

// bury takes away the rows of servers that have not been seen since a time; the devices at their brokers are connected nowhere.
func bury(tx Tx, me string, since time.Time) ([]Peer, error) {
	peers, err := tx.Peers()
	if err != nil {
		return nil, err
	}
	var dead []Peer
	for _, p := range peers {
		if p.Place == me || !p.Seen.Before(since) {
			continue
		}
		emptied, err := leaveHome(tx, p.Place)
		if err != nil {
			return nil, err
		}
		if !emptied {
			continue // the rest at the next beat
		}
		dead = append(dead, p)
		if err := tx.DeletePeer(p.Place); err != nil {
			return nil, err
		}
	}
	return dead, nil
}

// homePage is how many devices of a dead server one transaction takes.
const homePage = 2000

// leaveHome notes that the devices at a server's broker are gone. emptied: there are no more.
func leaveHome(tx Tx, place string) (emptied bool, err error) {
	list, err := tx.HomesOf(place, homePage)
	if err != nil {
		return false, err
	}
	for _, id := range list {
		if err := tx.PutHome(id, ""); err != nil {
			return false, err
		}
		d, there, err := before(tx.Device(id))
		if err != nil {
			return false, err
		}
		if !there || !d.Online {
			continue
		}
		d.Online = false
		if err := tx.PutDevice(d); err != nil {
			return false, err
		}
	}
	return len(list) < homePage, nil
}

// runShare beats and follows until ctx ends, then gives the lease back. took is told when this server begins to plan. The error is
// one that is over.
func (f *Fleet) runShare(ctx context.Context, took chan<- struct{}) error {
	beats := time.NewTicker(f.share.lease() / leaseBeats)
	defer beats.Stop()
	follow := time.NewTicker(followEvery)
	defer follow.Stop()
	var failing bool
	note := func(what string, err error) {
		if err != nil && ctx.Err() == nil && !failing {
			f.cfg.Log.Warn(what, "err", err)
		}
		failing = err != nil
	}
	for {
		select {
		case <-ctx.Done():
			f.leave(context.WithoutCancel(ctx))
			return nil
		case <-beats.C:
			begun, err := f.beat(ctx)
			if over(err) {
				return err
			}
			note("say that this server is there", err)
			if begun {
				select {
				case took <- struct{}{}:
				default:
				}
			}
		case <-follow.C:
			if f.shared() {
				note("follow other servers", f.followOthers(ctx))
			}
		}
	}
}

// over says that a server cannot go on: others work on the database in a way that it does not know.
func over(err error) bool { return errors.Is(err, ErrOusted) || errors.Is(err, ErrOutdated) }

// leave takes this server's row away, and ends its lease, so that nobody waits for either.
func (f *Fleet) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, f.share.lease()/2)
	defer cancel()
	mine := f.share.token.Swap(0)
	err := f.update(ctx, theServer, func(tx Tx) error {
		if err := tx.DeletePeer(f.share.Place); err != nil {
			return err
		}
		l, err := tx.Lease()
		if err != nil || l.Holder != f.share.Place || l.Token != mine {
			return err
		}
		if l.Until, err = tx.Clock(); err != nil {
			return err
		}
		return tx.PutLease(l)
	})
	if err != nil {
		f.cfg.Log.Warn("give back the lease", "err", err)
	}
}

// followOthers hears what other servers have changed since the last time.
func (f *Fleet) followOthers(ctx context.Context) error {
	s := f.share
	s.follow.Lock()
	defer s.follow.Unlock()
	now := f.cfg.Now().Round(0) // by the wall: a machine that slept has heard nothing either
	if !s.at.IsZero() && now.Sub(s.at) > deafFor {
		f.hear(Change{All: true})
	}
	for {
		var list []Change
		err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
			list, err = tx.Changes(s.heard.Load(), changePage)
			return err
		})
		if err != nil {
			return err
		}
		for _, c := range list {
			if c.Place != s.Place {
				f.hear(c)
			}
			s.heard.Store(c.Number)
		}
		if len(list) < changePage {
			s.at = now
			return nil
		}
	}
}

// fresh has everything that was committed before now hold here; where there is nothing new that is one look at one row.
func (f *Fleet) fresh(ctx context.Context, last int64) error {
	if !f.shared() || last <= f.share.heard.Load() {
		return nil
	}
	return f.followOthers(ctx)
}

// hear does here what the server that made a change did when it had committed it.
func (f *Fleet) hear(c Change) {
	if c.Catalog || c.All {
		f.catalog.forget()
	}
	if len(c.Logins) > 0 {
		f.mu.Lock()
		for _, name := range c.Logins {
			f.drops[name] = struct{}{}
		}
		f.mu.Unlock()
		f.wakeLoop()
	}
	if len(c.Logins) > 0 || c.Out {
		f.watchers.end()
	}
	if c.All {
		f.watchers.end()
		f.share.mu.Lock()
		f.share.all = true
		f.share.mu.Unlock()
		f.wakeLoop()
	}
	if ids := slices.Concat(c.Attempts, c.Again); len(ids) > 0 || len(c.Say) > 0 {
		anew := ids
		if f.cfg.ForeignSessions {
			anew = c.Again // what was ordered elsewhere has gone out to the one broker
		}
		f.share.mu.Lock()
		for _, id := range anew {
			f.share.foreign[id] = struct{}{}
		}
		f.share.say = append(f.share.say, c.Say...)
		f.share.mu.Unlock()
		f.later(ids...)
		f.wakeLoop()
	}
	f.watchers.tell(c.Devices...)
	f.watchers.tell(c.Rollouts...)
	f.watchers.tell(c.Lifted...)
	if len(c.Rollouts) > 0 {
		f.planSoon()
	}
	if c.Notices {
		f.ring()
	}
}

// heardOf is what is to be said at this broker, and whether more has changed than is known. It is taken once.
func (s *share) heardOf() (say []Saying, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	say, all = s.say, s.all
	s.say, s.all = nil, false
	return say, all
}

// changed gathers the Change of one transaction.
type changed struct {
	Change
	devices, attempts, rollouts map[string]struct{}
}

func newChanged() *changed {
	return &changed{devices: make(map[string]struct{}), attempts: make(map[string]struct{}), rollouts: make(map[string]struct{})}
}

// write puts what was gathered for the other servers, if there is anything.
func (c *changed) write(tx Tx, place string) error {
	if c == nil {
		return nil
	}
	for id := range c.attempts {
		delete(c.devices, id) // who has an attempt is looked at anyway
	}
	n := len(c.devices) + len(c.attempts) + len(c.rollouts)
	if n == 0 && !c.Catalog && !c.Notices && !c.Out && len(c.Logins)+len(c.Lifted)+len(c.Say)+len(c.Again) == 0 {
		return nil
	}
	if c.All = n > maxInChange; !c.All {
		sorted := func(set map[string]struct{}) []string { return slices.Sorted(maps.Keys(set)) }
		c.Devices, c.Attempts, c.Rollouts = sorted(c.devices), sorted(c.attempts), sorted(c.rollouts)
	}
	at, err := tx.Clock()
	if err != nil {
		return err
	}
	c.Place, c.At = place, at
	return tx.PutChange(c.Change)
}

// inform has the change that a transaction tells the others hold more.
func inform(tx Tx, add func(*changed)) {
	if t, ok := tx.(*audited); ok && t.book.change != nil {
		add(t.book.change)
	}
}

// sayElsewhere has the other servers say a command once to a device that this one's broker does not have. It says whether that
// is so.
func (f *Fleet) sayElsewhere(ctx context.Context, device string, cmd protocol.Command) (bool, error) {
	if !f.shared() || f.cfg.ForeignSessions || f.live(device) {
		return false, nil
	}
	payload, err := cmd.Append(nil)
	if err != nil {
		return false, err
	}
	return true, f.update(ctx, theServer, func(tx Tx) error {
		inform(tx, func(c *changed) { c.Say = append(c.Say, Saying{device, payload}) })
		return nil
	})
}
