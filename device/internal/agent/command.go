package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

// wish is an order being carried out.
type wish struct {
	cmd      protocol.Command
	retained bool // it was on the broker before this session
}

// same says whether a command asks for what w is already doing.
func (w *wish) same(c protocol.Command) bool {
	return w != nil && w.cmd.Same(c)
}

// clockWait is how long after the start an order with a limit of time waits for the time.
const clockWait = 10 * time.Minute

// clockMayCome says that a limit of time cannot be judged yet, and still may be.
func (a *agent) clockMayCome() bool {
	return !protocol.ClockSet(a.env.Clock()) && time.Since(a.began) < clockWait
}

// keep puts an order off until it can be carried out; the latest counts.
func (a *agent) keep(c command) { a.waiting, a.needsClock = &c, false }

var errReplaced = errors.New("replaced by another order")

// command answers one message on a command topic. Shared topic and own topic mean the same here.
func (a *agent) command(ctx context.Context, c command) {
	cmd, err := protocol.ParseCommand(c.payload)
	if refusal, ok := errors.AsType[*protocol.Refusal](err); ok {
		a.rep.answer("", refusal.Reason, refusal.Error())
		return
	}
	w := &wish{cmd: cmd, retained: c.retained}
	switch {
	case !cmd.ExpiresAt.IsZero() && a.clockMayCome():
		a.keep(c)
		a.needsClock = true
		a.rep.say("")
	case !cmd.ExpiresAt.IsZero() && !protocol.ClockSet(a.env.Clock()):
		// Too old must not be carried out, and what counts is given again or still retained.
		a.rep.answer(cmd.ID, protocol.ReasonExpired, "the command has a time limit and this device does not know the time")
	case cmd.Expired(a.env.Clock()):
		a.rep.answer(cmd.ID, protocol.ReasonExpired, "")
	case cmd.Action == protocol.ActionStatus:
		a.rep.say(cmd.ID)
	case cmd.Action == protocol.ActionRollback:
		a.orderRollback(ctx, c, w)
	case a.unsettled():
		// A retained order is what brought the board here as a rule, and the broker sends it once per session. So it
		// is kept until the story before it has been told; the latest counts. The board says how it is, and not in the name
		// of this order: what it says is what another one led to.
		a.keep(c)
		a.rep.say("")
	case a.job != nil && a.job.wish.same(cmd):
		if cmd.ID != "" {
			a.rep.set(func(s *protocol.Status) { s.CommandID = cmd.ID })
		}
		a.rep.say(cmd.ID)
	case a.job != nil && cmd.Action == protocol.ActionUpdate && a.rep.current() == protocol.PhaseWaiting:
		// Nothing is written while a gate is closed, which can be for days: the newer order takes the place.
		a.keep(c)
		a.job.cancel(errReplaced)
	case a.job != nil:
		a.rep.answer(cmd.ID, protocol.ReasonBusy, "")
	case a.web == nil || a.cfg.problem != nil && !a.cfg.haveOTA:
		a.rep.answer(cmd.ID, protocol.ReasonBadConfig, a.problem())
	default:
		a.rep.order(cmd.ID, protocol.PhaseChecking, protocol.ReasonNone, "")
		a.start(ctx, w, func(ctx context.Context) outcome { return a.carryOut(ctx, w) })
	}
}

func (a *agent) problem() string {
	if a.cfg.problem == nil {
		return ""
	}
	return a.cfg.problem.Error()
}

// orderRollback goes back to the other slot on an operator's word.
//
// The image that is left has shown nothing wrong, so it is neither buried nor quarantined, and its slot stays
// bootable: the one that comes up is put on trial, and where that fails the board is back here. But an order to
// update that the broker still retains would reinstall it at the next connect and undo what the operator did. So the
// note that tells of the rollback also holds the image: an order that was there before the board connected does not
// bring it back, one that is given while the board listens does. Any other release is not held.
func (a *agent) orderRollback(ctx context.Context, c command, w *wish) {
	cmd := w.cmd
	switch {
	case cmd.Version != "" && protocol.SameVersion(cmd.Version, a.self.version):
		a.rep.answer(cmd.ID, protocol.ReasonUpToDate, "")
	case w.retained && cmd.Version == "":
		// Done at every connect it would go back and forth for ever.
		a.rep.answer(cmd.ID, protocol.ReasonStaleCommand, "")
	case a.job == nil && a.unsettled():
		a.keep(c)
	case a.job != nil:
		a.rep.answer(cmd.ID, protocol.ReasonBusy, "")
	default:
		a.start(ctx, w, func(ctx context.Context) outcome { return a.rollback(w) })
	}
}

func (a *agent) rollback(w *wish) outcome {
	slot, reason, err := a.goBack(w.cmd.Version)
	switch {
	case err != nil && gone(err):
		return outcome{err: err}
	case err != nil:
		a.rep.answer(w.cmd.ID, reason, err.Error())
		return outcome{}
	}
	a.rep.order(w.cmd.ID, protocol.PhaseRebooting, protocol.ReasonOperator, "going back to "+slot.Name)
	return outcome{restart: true}
}

// goBack makes the other slot the one that boots.
func (a *agent) goBack(version string) (parttable.Partition, protocol.Reason, error) {
	slot := a.self.target
	recs, err := a.ops.Records()
	if err != nil {
		return slot, protocol.ReasonNoRollback, err
	}
	active := otadata.Select(recs)
	slots := a.env.Table.Slots()
	if active < 0 || !a.env.Running.IsOTA() || slots[otadata.SlotIndex(recs[active].Seq, len(slots))] != a.env.Running {
		return slot, protocol.ReasonNoRollback, errors.New("the boot records do not name the running slot")
	}
	if other := recs[1-active]; other.Usable() {
		slot = slots[otadata.SlotIndex(other.Seq, len(slots))]
	}
	if slot == a.env.Running || !slot.IsOTA() {
		return slot, protocol.ReasonNoRollback, errors.New("there is no other slot")
	}
	img, err := a.verify(slot)
	if err != nil {
		if gone(err) {
			return slot, protocol.ReasonNoRollback, err
		}
		a.log.Info("rollback refused", "slot", slot.Name, "err", err)
		return slot, protocol.ReasonNoRollback, fmt.Errorf("%s holds no good image to go back to", slot.Name)
	}
	if img.Desc != nil {
		if version != "" && !protocol.SameVersion(version, img.Desc.Version) && !protocol.GenericVersion(img.Desc.Version) {
			return slot, protocol.ReasonVersionMissing, fmt.Errorf("%s holds %s", slot.Name, printable(img.Desc.Version))
		}
	}
	if set, err := manifest.Builtin(a.section(slot), img); err != nil || set.Sequence < a.cfg.trust.Sequence {
		return slot, protocol.ReasonNoRollback, fmt.Errorf("%s carries trusted keys that were given up", slot.Name)
	}
	if a.env.Ops.AntiRollback && (img.Desc == nil || img.Desc.SecureVersion < a.self.floor) {
		// Asked here because otaops, as ESP-IDF, answers it by erasing the slot.
		return slot, protocol.ReasonSecurityFloor, fmt.Errorf("%s is below the floor", slot.Name)
	}
	// With three slots and more an image from before the last two may still be there. It goes first: should the power
	// fail while the records are rewritten, what verifies is what tells the next boot where this one was going.
	if err := a.unprovenSlots(); err != nil {
		return slot, protocol.ReasonFlash, err
	}
	// The note before the pointer: the other way round, a power cut between the two would come up with the older
	// image and no word why.
	if err := a.writeNote(active, note{digest: a.self.sum, cause: protocol.ReasonOperator}); gone(err) {
		return slot, protocol.ReasonFlash, err
	} else if err != nil {
		a.log.Warn("note of a rollback not written", "err", err)
	}
	if err := a.switchTo(slot); err != nil {
		return slot, protocol.ReasonFlash, err
	}
	return slot, protocol.ReasonNone, nil
}

// settle closes the story of a rollback that the broker has: it is marked as told, in flash, and the board is idle.
func (a *agent) settle() error {
	rb := a.self.rolledBack
	var err error
	switch {
	case rb.noted:
		err = a.mark(rb.record, noteTold)
	default:
		err = a.ops.AckTombstone(rb.slot)
	}
	if gone(err) {
		return err
	} else if err != nil {
		a.log.Warn("told rollback not marked, it will be told again", "err", err)
	}
	a.self.rolledBack = nil
	a.rep.set(func(s *protocol.Status) { s.FailedSHA256 = "" })
	a.rep.phase(protocol.PhaseIdle, protocol.ReasonNone, "")
	return nil
}
