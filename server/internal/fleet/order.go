package fleet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
)

// Order takes a command that an operator has published to device, or to all when device is empty, and returns the
// payload to send on: the same command with an id and, for an update, an expiry filled in; never more than
// protocol.MaxCommand bytes. When it returns, every known device concerned has an attempt row that takes the place of
// its older open ones: rows before words, so that no device can answer a command that the server does not remember.
//
// To all that is many transactions, between which statuses get their turn. Where ctx ends or the store fails after the first of
// them it is ErrUnderWay: the order is durable, nothing is to be sent on, and Run makes the other rows, by which each device
// is sent the command. That is also what happens when the server ends. Whoever was not answered and gives the command again under its
// id gives one command; under another id he gives a second, which takes the place of the first.
//
// check and status make no rows. An id that a device already has an attempt for changes nothing for that device, so a
// command delivered twice is one command. A retained rollback that names no version is refused, because it would act at
// every boot. An empty retained payload is MQTT's way to take a retained message back and is passed on as it is: on the
// topic of one device it ends the attempts that the device has not taken up, so that they are not sent again.
// Errors: ErrDenied, ErrInvalid (not a command), ErrNotFound (no such device), ErrRefused, ErrUnderWay, ErrStorage.
func (f *Fleet) Order(ctx context.Context, by Identity, device string, retained bool, payload []byte) ([]byte, error) {
	if err := f.operator(by); err != nil {
		return nil, err
	}
	if retained && len(payload) == 0 {
		return payload, f.takeBack(ctx, by, device)
	}
	cmd, err := protocol.ParseCommand(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	now := f.cfg.Now()
	if cmd.Expired(now) {
		return nil, fmt.Errorf("%w: the command expired at %s", ErrInvalid, cmd.ExpiresAt.UTC().Format(time.RFC3339))
	}
	if cmd.ID == "" {
		var id [8]byte
		rand.Read(id[:]) // never fails (crypto/rand)
		cmd.ID = hex.EncodeToString(id[:])
	}
	if cmd.Action == protocol.ActionUpdate && cmd.ExpiresAt.IsZero() {
		cmd.ExpiresAt = now.Add(f.cfg.Expiry).Truncate(time.Second)
	}
	switch rows := cmd.Action == protocol.ActionUpdate || cmd.Action == protocol.ActionRollback; {
	case rows && device == "":
		cmd, err = f.orderAll(ctx, by, cmd, now, retained)
	case rows:
		cmd, err = f.attempt(ctx, by, device, cmd, now, retained)
	default:
		err = f.update(ctx, by, func(tx Tx) error {
			note(tx, sentEntry(device, cmd))
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	out, err := cmd.Append(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return out, nil
}

// sentEntry is the row of a command; without a device it went to all. The attempts that it makes have rows beside it.
func sentEntry(device string, cmd protocol.Command) audit.Entry {
	return audit.Entry{What: audit.CommandSend, About: cmd.ID, Device: device,
		Details: audit.Of("action", string(cmd.Action), "version", cmd.Version, "force", yes(cmd.Force), "to", toAll(device))}
}

func toAll(device string) string {
	if device == "" {
		return "all"
	}
	return ""
}

// takeBack ends the attempts of a device that it has said nothing about yet.
func (f *Fleet) takeBack(ctx context.Context, by Identity, device string) error {
	cat, err := f.catalogueNow(ctx)
	if err != nil {
		return err
	}
	now := f.cfg.Now()
	var ended int
	err = f.update(ctx, by, func(tx Tx) error {
		if d, there, err := before(tx.Device(device)); err != nil {
			return err
		} else if there {
			if err := f.giveOwed(tx, cat, d, now); err != nil {
				return err
			}
		}
		open, err := tx.OpenAttemptsOf(device)
		if err != nil {
			return err
		}
		open = slices.DeleteFunc(open, func(a Attempt) bool { return a.Phase != "" })
		ended = len(open)
		note(tx, audit.Entry{What: audit.CommandTakeBack, Device: device, Details: audit.Of("to", toAll(device), "attempts", fmt.Sprint(ended))})
		return supersede(tx, open, now, "taken back by "+by.Name)
	})
	if err == nil && ended > 0 {
		f.touch(device) // a pass that had read the row before may be sending it now
	}
	return err
}

// mayGoOut refuses a command that must not, before a row speaks of it.
func mayGoOut(cmd protocol.Command, retained bool) error {
	if retained && cmd.Action == protocol.ActionRollback && cmd.Version == "" {
		return fmt.Errorf("%w: a retained rollback must name the version to go back to, or it repeats at every boot", ErrRefused)
	}
	if _, err := cmd.Append(nil); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// attempt makes the row of a command to one device, which must be known and not revoked. It returns the command with the version
// of a rollback filled in.
func (f *Fleet) attempt(ctx context.Context, by Identity, device string, cmd protocol.Command, now time.Time, retained bool) (protocol.Command, error) {
	cat, err := f.catalogueNow(ctx)
	if err != nil {
		return cmd, err
	}
	final := cmd
	var made bool
	err = f.update(ctx, by, func(tx Tx) error {
		final, made = cmd, false
		d, err := tx.Device(device)
		if err != nil {
			return fmt.Errorf("device %q: %w", device, err)
		}
		if d.Revoked {
			return fmt.Errorf("%w: device %q is revoked", ErrRefused, device)
		}
		if cmd.Action == protocol.ActionRollback && cmd.Version == "" {
			final.Version = d.PreviousVersion
		}
		if err := mayGoOut(final, retained); err != nil {
			return err
		}
		note(tx, sentEntry(device, final))
		a := f.newAttempt(cat, d, final, by, now)
		if cat.quarantined[a.SHA256] {
			return barredError(cat.bySHA[a.SHA256].Release, "quarantined")
		}
		if err := f.giveOwed(tx, cat, d, now); err != nil {
			return err
		}
		made, err = putAttempt(tx, d, a)
		return err
	})
	if err != nil {
		return cmd, err
	}
	if made {
		f.touch(device)
	}
	return final, nil
}

// expiresAt is when the attempts of a command that was given at a time are over: every attempt ends.
func (f *Fleet) expiresAt(cmd protocol.Command, given time.Time) time.Time {
	if cmd.ExpiresAt.IsZero() {
		return given.Add(f.cfg.Expiry).Truncate(time.Second)
	}
	return cmd.ExpiresAt
}

// newAttempt is the row of cmd for d.
func (f *Fleet) newAttempt(cat *catalog, d Device, cmd protocol.Command, by Identity, now time.Time) Attempt {
	a := Attempt{
		ID: cmd.ID + "/" + d.ID, CommandID: cmd.ID, DeviceID: d.ID, Action: cmd.Action, Force: cmd.Force, Version: cmd.Version,
		CreatedAt: now, CreatedBy: by.Name, ExpiresAt: f.expiresAt(cmd, now), State: AttemptOpen, UpdatedAt: now,
	}
	switch a.Action {
	case protocol.ActionRollback:
		if a.Version == "" {
			a.Version = d.PreviousVersion
		}
	case protocol.ActionUpdate:
		if a.Version != "" {
			if o := cat.byVersion[keyOf(d.Status.Project, d.Status.Chip, a.Version)]; o != nil {
				a.SHA256 = o.Release.SHA256
			}
		} else if o, err := cat.offer(Query{Device: d.ID}, askerOf(d, nil), f.cfg.DefaultProject); err == nil {
			a.SHA256 = o.Release.SHA256
		}
	}
	return a
}

// putAttempt adds a to the rows of its device and supersedes the open ones. made is false when a was there already.
func putAttempt(tx Tx, d Device, a Attempt) (made bool, err error) {
	if _, err := tx.Attempt(a.ID); err == nil {
		return false, nil
	} else if !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if err := endOpen(tx, d.ID, a.CreatedAt, laterCommand); err != nil {
		return false, err
	}
	return true, tx.PutAttempt(a)
}

// endOpen supersedes every open attempt of a device.
func endOpen(tx Tx, device string, now time.Time, why string) error {
	open, err := tx.OpenAttemptsOf(device)
	if err != nil {
		return err
	}
	return supersede(tx, open, now, why)
}

// laterCommand is why most attempts are superseded.
const laterCommand = "a later command took its place"

// superseded is a with something else in its place.
func superseded(a Attempt, now time.Time, why string) Attempt {
	a.State, a.Message, a.UpdatedAt, a.EndedAt = AttemptSuperseded, why, now, now
	return a
}

func supersede(tx Tx, open []Attempt, now time.Time, why string) error {
	for _, a := range open {
		if err := tx.PutAttempt(superseded(a, now, why)); err != nil {
			return err
		}
	}
	return nil
}

// AttemptsAfter are at most limit attempts of a device, newest first: those behind the one named, or from the newest
// where none is. Errors: ErrNotFound (no such device), ErrInvalid (it has no such attempt), ErrStorage.
func (f *Fleet) AttemptsAfter(ctx context.Context, device, after string, limit int) (list []Attempt, err error) {
	if after == "" {
		return f.Attempts(ctx, device, limit)
	}
	err = f.cfg.Store.View(ctx, func(tx Tx) error {
		if _, err := tx.Device(device); err != nil {
			return fmt.Errorf("device %q: %w", device, err)
		}
		a, err := tx.Attempt(after)
		if errors.Is(err, ErrNotFound) || err == nil && a.DeviceID != device {
			return invalid("after: device %q has no attempt %.140q", device, after)
		}
		if err != nil {
			return err
		}
		list, err = tx.AttemptsBefore(a, limit)
		return err
	})
	return list, err
}

// Attempts are the newest attempts of a device, newest first; limit 0 means 100.
func (f *Fleet) Attempts(ctx context.Context, device string, limit int) ([]Attempt, error) {
	if limit <= 0 {
		limit = 100
	}
	var list []Attempt
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		if _, err := tx.Device(device); err != nil {
			return fmt.Errorf("device %q: %w", device, err)
		}
		var err error
		list, err = tx.AttemptsOf(device, limit)
		return err
	})
	return list, err
}

// Sent says whether a command that came from a broker which several servers share is one of theirs: MQTT 3.1.1 does not say who
// published. The question that a planner asks has no id, and nobody records it.
func (f *Fleet) Sent(ctx context.Context, device string, cmd protocol.Command) (bool, error) {
	if cmd.ID == "" {
		return cmd.Action == protocol.ActionStatus, nil
	}
	sent := false
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		if device != "" {
			open, err := tx.AttemptsOf(device, 1)
			if err != nil {
				return err
			}
			if sent = len(open) > 0 && open[0].CommandID == cmd.ID; sent {
				return nil
			}
		}
		rows, err := tx.AuditPage(AuditQuery{What: audit.CommandSend, Device: device, NewestFirst: true, Limit: 100})
		sent = slices.ContainsFunc(rows, func(e audit.Entry) bool { return e.About == cmd.ID })
		return err
	})
	return sent, err
}
