package fleet

import (
	"context"

	"bmsota/protocol"
)

// startShare finds out who plans, and from which change on the others are followed: what is read after this is at least as new.
func (f *Fleet) startShare(ctx context.Context) error {
	var last int64
	err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
		last, err = tx.LastChange()
		return err
	})
	if err != nil {
		return err
	}
	f.share.heard.Store(last)
	f.catalog.forget()
	_, err = f.beat(ctx)
	return err
}

// emptyHome notes that nobody is connected to a server's broker.
func (f *Fleet) emptyHome(ctx context.Context, place string) error {
	for {
		var emptied bool
		err := f.update(ctx, theServer, func(tx Tx) (err error) {
			emptied, err = leaveHome(tx, place)
			return err
		})
		if err != nil || emptied {
			return err
		}
	}
}

// moveHome notes whose broker has a device. moved: it is connected to another's by now, and what has ended here is old.
func (f *Fleet) moveHome(tx Tx, device string, online bool) (moved bool, err error) {
	if !f.shared() || f.cfg.ForeignSessions {
		return false, nil
	}
	if online {
		return false, tx.PutHome(device, f.share.Place)
	}
	if moved, err = f.elsewhere(tx, device); err != nil || moved {
		return moved, err
	}
	return false, tx.PutHome(device, "")
}

// elsewhere says whether another server's broker has a device.
func (f *Fleet) elsewhere(tx Tx, device string) (bool, error) {
	if !f.shared() || f.cfg.ForeignSessions {
		return false, nil
	}
	place, err := tx.Home(device)
	return place != "" && place != f.share.Place, err
}

// catalogueNow is the catalogue with everything that any server has committed.
func (f *Fleet) catalogueNow(ctx context.Context) (*catalog, error) {
	if f.shared() {
		var last int64
		err := f.cfg.Store.View(ctx, func(tx Tx) (err error) {
			last, err = tx.LastChange()
			return err
		})
		if err == nil {
			err = f.fresh(ctx, last)
		}
		if err != nil {
			return nil, err
		}
	}
	return f.catalogue(ctx)
}

// takeOver begins to plan where another has ended: nothing that this process remembers of commands holds any more, and what was
// said until now was said to somebody else.
func (l *loop) takeOver(ctx context.Context) error {
	f := l.fleet
	now := f.cfg.Now()
	f.heardSince.Store(&now)
	clear(l.rollouts.next)
	if !f.cfg.ForeignSessions {
		return nil // its broker has the commands already
	}
	clear(l.sent)
	if err := l.first(ctx); err != nil {
		return err
	}
	if again, ok := l.out.(interface{ LookAgain() }); ok {
		again.LookAgain()
	}
	return nil
}

// heard does what other servers have ordered of this one's broker.
func (l *loop) heard(ctx context.Context) error {
	f := l.fleet
	if !f.shared() {
		return nil
	}
	say, all := f.share.heardOf()
	out, ok := l.out.(Messenger)
	for _, s := range say {
		cmd, err := protocol.ParseCommand(s.Payload)
		if err != nil || !ok || !f.live(s.Device) {
			continue // not of this server's broker
		}
		if err := out.Tell(ctx, s.Device, cmd); err != nil {
			l.failure("send command to", s.Device, err)
		}
	}
	if !all || !f.sends() {
		return nil
	}
	clear(l.sent)
	return l.first(ctx)
}

// note remembers for ownUp that a device was sent something, or something of it was taken back.
func (l *loop) note(device string) {
	if l.fleet.shared() && l.fleet.cfg.ForeignSessions {
		l.told = append(l.told, device)
	}
}

// ownUp tells the planner of what this server has sent when it may not have been the planner any more: a process that slept
// between reading a row and sending has put what is old in the place of what is new.
func (l *loop) ownUp(ctx context.Context) {
	f := l.fleet
	if len(l.told) > 0 && !f.plans() && ctx.Err() == nil && !f.share.mute {
		err := f.update(ctx, theServer, func(tx Tx) error {
			inform(tx, func(c *changed) { c.Again = append(c.Again, l.told...) })
			return nil
		})
		if err != nil {
			f.cfg.Log.Warn("tell the planner of late commands", "err", err)
			return // with those of the next pass
		}
	}
	l.told = l.told[:0]
}

// takeForeign says, once, that another server has ordered something for a device, or sent it what is old.
func (f *Fleet) takeForeign(device string) bool {
	if !f.shared() {
		return false
	}
	f.share.mu.Lock()
	defer f.share.mu.Unlock()
	_, there := f.share.foreign[device]
	delete(f.share.foreign, device)
	return there
}
