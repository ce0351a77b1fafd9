package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
)

// Order is a command to all devices that have no row of it yet, or not all of them. There is never more than one: a later one
// takes its place.
type Order struct {
	Command   protocol.Command
	By        Identity
	CreatedAt time.Time
	Reached   string    // id of the last device that was looked at; empty = none was
	Moved     time.Time // when that was, by the store's clock
}

// OrderTx is the part of Tx that keeps orders to all until every device has its row.
type OrderTx interface {
	Orders() ([]Order, error) // oldest first
	PutOrder(Order) error
	DeleteOrder(command string) error
	// DevicesAfter are those with an id behind after, by id, at most limit. AttemptsIn are those of the named that there are.
	DevicesAfter(after string, limit int) ([]Device, error)
	AttemptsIn(ids []string) ([]Attempt, error)
}

const (
	// orderPart is how many devices one transaction of an order is about. Statuses get their turn between two of them.
	orderPart = 500
	// orderIdle is for how long nobody has gone on with an order when the planner does. It spares two the same work; that no
	// row is made twice does not depend on it.
	orderIdle = 5 * time.Second
)

// errOrderGone says that an order is at its end, or another has taken its place.
var errOrderGone = errors.New("there is nothing left of the order")

// orderAll makes the rows of a command to all devices, and returns it as it is to go out, or ErrUnderWay where its rows are
// not all there when it returns.
//
// Each part of the devices, by id, is one transaction, which also says in the order's row how far it is. So it is made once for
// every device, whoever goes on with it and wherever the one before has died. What is refused is refused before the first row.
// The command goes out last: a device without its row has not heard of it, and one that has it may have been sent it already.
//
// Devices that are enrolled meanwhile are among those it is for where their ids are behind the point reached, as those
// are whose login is taken away before it is their turn.
func (f *Fleet) orderAll(ctx context.Context, by Identity, cmd protocol.Command, now time.Time, retained bool) (protocol.Command, error) {
	if err := mayGoOut(cmd, retained); err != nil {
		return cmd, err
	}
	if err := f.barredSomewhere(ctx, cmd); err != nil {
		return cmd, err
	}
	update := func(ctx context.Context, fn func(Tx) error) error { return f.update(ctx, by, fn) }
	o, more, err := f.nextRows(ctx, update, Order{Command: cmd, By: by, CreatedAt: now}, true)
	if err != nil {
		return cmd, err
	}
	for more {
		if o, more, err = f.nextRows(ctx, update, o, false); err != nil {
			f.cfg.Log.Info("order to all is left to go on by itself", "command", o.Command.ID, "reached", o.Reached, "why", err)
			return cmd, fmt.Errorf("%w: command %s: %v", ErrUnderWay, o.Command.ID, err) // not %w: to the caller it is no fault of the store
		}
	}
	return o.Command, nil
}

// barredSomewhere refuses a version that is in quarantine for one of the devices. All of them are looked at only where there is
// such a release.
func (f *Fleet) barredSomewhere(ctx context.Context, cmd protocol.Command) error {
	cat, err := f.catalogueNow(ctx)
	if err != nil || cmd.Action != protocol.ActionUpdate || cmd.Version == "" {
		return err
	}
	barred := make(map[line]Release)
	for key, o := range cat.byVersion {
		if key.version == canonical(cmd.Version) && cat.quarantined[o.Release.SHA256] {
			barred[line{key.project, key.chip}] = o.Release
		}
	}
	if len(barred) == 0 {
		return nil
	}
	return f.cfg.Store.View(ctx, func(tx Tx) error {
		for after := ""; ; {
			page, err := tx.DevicesAfter(after, orderPart)
			if err != nil {
				return err
			}
			for _, d := range page {
				if r, is := barred[line{d.Status.Project, d.Status.Chip}]; is && !d.Revoked {
					return barredError(r, "quarantined")
				}
				after = d.ID
			}
			if len(page) < orderPart {
				return nil
			}
		}
	})
}

// underWay is the order to all that is under way, if there is one.
func underWay(tx Tx) (o Order, there bool, err error) {
	list, err := tx.Orders()
	if err != nil || len(list) == 0 {
		return Order{}, false, err
	}
	return list[0], true, nil
}

// nextRows makes the rows of the next devices, in one transaction with how far the order is then, and says whether there are more.
// begin has the order begin, or takes up the one of the same id. The order is then that one. Else it is errOrderGone where it is
// not there any more.
func (f *Fleet) nextRows(ctx context.Context, update func(context.Context, func(Tx) error) error, asked Order, begin bool) (o Order, more bool, err error) {
	cat, err := f.catalogueNow(ctx)
	if err != nil {
		return asked, false, err
	}
	var touched []string
	err = update(ctx, func(tx Tx) error {
		o, more, touched = asked, false, nil
		present, there, err := underWay(tx)
		if err != nil {
			return err
		}
		same := there && present.Command.ID == asked.Command.ID
		switch {
		case same:
			o = present
		case !begin:
			return errOrderGone
		case there:
			if err := tx.DeleteOrder(present.Command.ID); err != nil {
				return err
			}
		}
		if begin {
			said := sentEntry("", o.Command)
			if there && !same {
				said.Details = append(said.Details, audit.Of("in_place_of", present.Command.ID)...)
			}
			note(tx, said)
		}
		now := f.cfg.Now()
		if now.Before(f.expiresAt(o.Command, o.CreatedAt)) {
			page, err := tx.DevicesAfter(o.Reached, orderPart)
			if err != nil {
				return err
			}
			if touched, err = f.giveRows(as(tx, o.By, ""), cat, o, page, now); err != nil {
				return err
			}
			if more = len(page) == orderPart; more {
				o.Reached = page[len(page)-1].ID
				if o.Moved, err = tx.Clock(); err != nil {
					return err
				}
				return tx.PutOrder(o)
			}
		}
		if !same {
			return nil // all of it in one transaction
		}
		return tx.DeleteOrder(o.Command.ID)
	})
	if err != nil {
		return asked, false, err
	}
	f.touch(touched...)
	return o, more, nil
}

// giveRows makes the rows of an order for those of some devices that it is for and that have none of it, and says who they are. Their
// older open attempts end. A release that was put into quarantine since the order began is ordered to nobody else.
func (f *Fleet) giveRows(tx Tx, cat *catalog, o Order, devices []Device, now time.Time) (made []string, err error) {
	var ids, names []string
	attempts := make([]Attempt, 0, len(devices))
	for _, d := range devices {
		a := f.newAttempt(cat, d, o.Command, o.By, o.CreatedAt)
		if d.Revoked || o.Command.Version != "" && cat.quarantined[a.SHA256] {
			continue
		}
		attempts, ids, names = append(attempts, a), append(ids, a.ID), append(names, d.ID)
	}
	have, err := tx.AttemptsIn(ids)
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool, len(have))
	for _, a := range have {
		there[a.DeviceID] = true
	}
	open, err := tx.OpenAttemptsIn(names)
	if err != nil {
		return nil, err
	}
	older := make(map[string][]Attempt, len(open))
	for _, a := range open {
		older[a.DeviceID] = append(older[a.DeviceID], a)
	}
	var list []Attempt
	for _, a := range attempts {
		if there[a.DeviceID] {
			continue
		}
		for _, old := range older[a.DeviceID] {
			list = append(list, superseded(old, now, laterCommand))
		}
		list, made = append(list, a), append(made, a.DeviceID)
	}
	return made, tx.PutAttempts(list)
}

// giveOwed makes the row that an order under way still owes a device, before anything else becomes of its attempts: what is
// ordered later takes the place of it then, and what is taken back is it too. Which of two commands is the later one is said
// by the order of the transactions: the clocks of two servers may differ.
func (f *Fleet) giveOwed(tx Tx, cat *catalog, d Device, now time.Time) error {
	o, there, err := underWay(tx)
	if err != nil || !there || d.ID <= o.Reached {
		return err
	}
	_, err = f.giveRows(as(tx, o.By, ""), cat, o, []Device{d}, now)
	return err
}

// runOrders goes on with an order whose caller has stopped waiting, or has died, until ctx ends. Of several servers the planner does.
func (f *Fleet) runOrders(ctx context.Context) {
	tick := time.NewTicker(orderIdle)
	defer tick.Stop()
	for {
		if f.plans() {
			switch err := f.goOn(ctx); {
			case err == nil || ctx.Err() != nil:
			case errors.Is(err, ErrNotPlanner), errors.Is(err, errOrderGone):
				f.cfg.Log.Info("order to all is left to another", "why", err)
			default:
				f.cfg.Log.Error("order to all", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// goOn makes what rows are left to be made, where nobody else does.
func (f *Fleet) goOn(ctx context.Context) error {
	var o Order
	var idle bool
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		var there bool
		var err error
		if o, there, err = underWay(tx); err != nil || !there {
			idle = false
			return err
		}
		now, err := tx.Clock()
		idle = now.Sub(o.Moved) >= orderIdle
		return err
	})
	if err != nil || !idle {
		return err
	}
	f.cfg.Log.Info("order to all is taken up", "command", o.Command.ID, "reached", o.Reached)
	for more := true; more; {
		if o, more, err = f.nextRows(ctx, f.planned, o, false); err != nil {
			return err
		}
	}
	return nil
}
