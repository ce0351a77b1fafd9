package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"bmsota/esp/appimage"
	"bmsota/esp/otadata"
	"bmsota/esp/parttable"
	"bmsota/manifest"
	"bmsota/protocol"
)

const (
	// checkDeadline is how long a check tries, and how long an update tries a server whose certificate is not trusted.
	checkDeadline = 90 * time.Second
	gatePoll      = 5 * time.Second // between two looks at a closed gate
)

// carryOut does a check or an update from the first question to the restart. What went wrong is a status; the outcome
// has an error only when the power failed.
func (a *agent) carryOut(ctx context.Context, w *wish) outcome {
	restart, fl := a.pursue(ctx, w)
	if fl == nil {
		return outcome{restart: restart}
	}
	if gone(fl.err) {
		return outcome{err: fl.err}
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errReplaced) && a.rep.current() == protocol.PhaseWaiting:
		return outcome{} // the order that took its place goes on from here
	case cause != nil && !errors.Is(cause, errReplaced):
		return outcome{} // power off: nobody to tell
	}
	a.log.Info("update ended", "phase", fl.phase, "reason", fl.reason, "err", fl.err)
	if fl.phase == protocol.PhaseRefused && w.cmd.Action == protocol.ActionCheck {
		fl.phase = protocol.PhaseIdle // a check refuses nothing, it answers
	}
	a.rep.phase(fl.phase, fl.reason, fl.err.Error())
	return outcome{}
}

// pursue begins in the phase checking, in which the order was taken up.
func (a *agent) pursue(ctx context.Context, w *wish) (restart bool, fl *fault) {
	for {
		o, fl := a.check(ctx, w)
		if fl != nil {
			return false, fl
		}
		a.rep.set(func(s *protocol.Status) { s.AvailableVersion = o.Version })
		if refusal := a.judge(o, w); refusal != nil {
			fl := refused(refusal.Reason, refusal)
			if refusal.Reason == protocol.ReasonUpToDate {
				fl.phase = protocol.PhaseIdle
			}
			return false, fl
		}
		if o.stale != nil {
			a.rep.phase(protocol.PhaseChecking, protocol.ReasonNone, o.Version+" from the mirror, where there may be something newer")
		}
		if w.cmd.Action == protocol.ActionCheck && !o.force {
			a.rep.phase(protocol.PhaseIdle, protocol.ReasonUpdateExists, "")
			return false, nil
		}
		if a.self.noTarget != nil {
			return false, failed(protocol.ReasonFlash, "%w", a.self.noTarget)
		}
		waited, fl := a.wait(ctx, w)
		if fl != nil {
			return false, fl
		}
		if waited {
			// The offer is as old as the wait was long: ask again.
			a.rep.phase(protocol.PhaseChecking, protocol.ReasonNone, "")
			continue
		}
		if fl := a.install(ctx, o); fl != nil {
			return false, fl
		}
		return true, nil
	}
}

// check looks at the offer, and again while the network or the server fails: a server that is away for a moment must
// not fail an order. What it waits for is said at every try, because the wait of an update can be long.
func (a *agent) check(ctx context.Context, w *wish) (offer, *fault) {
	limit := overallDeadline
	if w.cmd.Action == protocol.ActionCheck {
		limit = checkDeadline
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errDeadline)
	defer cancel()
	began := time.Now()
	pause := pauses{rand: a.rand, first: time.Second, limit: a.env.longest(time.Minute)}
	var last *fault
	for {
		o, fl := a.look(ctx)
		if fl != nil && last != nil && errors.Is(fl.err, errDeadline) {
			return o, last // says more than that the time is up
		}
		if fl == nil || !fl.retry || a.without(MutantAskOnce) || fl.reason == protocol.ReasonTLS && time.Since(began) >= checkDeadline {
			return o, fl
		}
		last = fl
		a.rep.phase(protocol.PhaseChecking, protocol.ReasonNone, "will try again: "+fl.err.Error())
		if !sleep(ctx, max(pause.next(), fl.after)) {
			return o, fl
		}
	}
}

// wait holds the update back while a gate is closed.
func (a *agent) wait(ctx context.Context, w *wish) (waited bool, fl *fault) {
	if a.without(MutantOpenGate) {
		return false, nil
	}
	said := protocol.ReasonNone
	for {
		var battery *protocol.Battery
		if b, ok := a.env.Battery(); ok {
			battery = &b
		}
		now := a.env.Clock()
		reason := a.cfg.ota.Gate.Blocked(battery, now)
		if reason == protocol.ReasonNone && a.cfg.ota.Gate.Window != "" && !protocol.ClockSet(now) {
			reason = protocol.ReasonOutsideWindow // whatever the clock shows, it is not the time of day
		}
		if reason == protocol.ReasonNone {
			return waited, nil
		}
		if w.cmd.Expired(now) {
			return waited, &fault{phase: protocol.PhaseIdle, reason: protocol.ReasonExpired, err: errors.New("the order expired while the device waited")}
		}
		if reason != said {
			a.rep.phase(protocol.PhaseWaiting, reason, "")
			said = reason
		}
		waited = true
		if !sleep(ctx, gatePoll) {
			return waited, failed(protocol.ReasonOther, "%w", context.Cause(ctx))
		}
	}
}

// install brings the offered image into the other slot and makes it the one that boots.
//
// The order is the safety. The record is written last, after every byte of the slot was read back from flash and
// matched; up to that one write the board boots what it boots now, whatever happens. After it, the bootloader boots
// the new image once, on trial.
func (a *agent) install(ctx context.Context, o offer) *fault {
	slot := a.self.target
	if a.without(MutantSwitchFirst) {
		if err := a.mutantSwitch(); err != nil {
			return flashFault(err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, overallDeadline, errDeadline)
	defer cancel()
	a.rep.phase(protocol.PhaseDownloading, protocol.ReasonNone, "")
	d := newDownload(a, o, slot)
	if fl := d.run(ctx); fl != nil {
		return fl
	}
	a.rep.progress(d.size, d.size, d.retries)
	a.rep.phase(protocol.PhaseVerifying, protocol.ReasonNone, "")
	if fl := a.prove(o, d.size); fl != nil {
		if gone(fl.err) {
			return fl
		}
		// A whole image that is not the promised one must not stay bootable: without records the bootloader takes
		// whatever verifies.
		if err := a.unboot(slot); err != nil {
			return flashFault(errors.Join(fl.err, err))
		}
		return fl
	}
	a.rep.phase(protocol.PhaseSwitching, protocol.ReasonNone, "")
	if err := a.switchTo(slot); err != nil {
		return flashFault(err)
	}
	a.rep.phase(protocol.PhaseRebooting, protocol.ReasonNone, "")
	return nil
}

// switchTo makes slot the one that boots next, and holds that against the records: a board that restarts for a slot that
// they do not ask for would do it again and again.
func (a *agent) switchTo(slot parttable.Partition) error {
	if err := a.ops.Switch(slot); err != nil {
		return err
	}
	asked, ok, err := a.ops.BootPartition()
	if err == nil && (!ok || asked != slot) {
		err = fmt.Errorf("the boot records do not ask for %s after the switch to it", slot.Name)
	}
	return err
}

func flashFault(err error) *fault {
	return &fault{phase: protocol.PhaseFailed, reason: protocol.ReasonFlash, err: err}
}

// prove judges what is in flash, not what was received: size bytes of it, from the start of the slot.
func (a *agent) prove(o offer, size int64) *fault {
	slot := a.self.target
	r := a.section(slot)
	// A signature sector of an earlier, longer file behind the image would count as a part of it.
	if next := (size + otadata.SectorSize - 1) &^ (otadata.SectorSize - 1); next < r.Size() {
		if err := a.blank(int64(slot.Offset) + next); err != nil {
			return flashFault(err)
		}
	}
	sum, err := hashOf(io.NewSectionReader(r, 0, size))
	if err != nil {
		return flashFault(err)
	}
	if o.SHA256 != "" && digestText(sum) != o.SHA256 && !a.without(MutantSkipReadBack) {
		return failed(protocol.ReasonDigestMismatch, "flash holds %s, promised is %s", digestText(sum), o.SHA256)
	}
	img, err := a.verify(slot)
	switch {
	case err != nil:
		return failed(protocol.ReasonImageInvalid, "%w", err)
	case appimage.FileLength(r, r.Size(), img) != size && !a.without(MutantSkipReadBack):
		return failed(protocol.ReasonImageInvalid, "the image has %d bytes, the file %d", img.Length, size)
	}
	next, err := manifest.Builtin(r, img)
	switch {
	case err != nil:
		return failed(protocol.ReasonImageInvalid, "%w", err)
	case next.Sequence < a.cfg.trust.Sequence && !a.without(MutantOlderKeys):
		// It would bring back keys that were given up, or none.
		return failed(protocol.ReasonSecurityFloor, "image carries set %d of trusted keys, this device trusts set %d", next.Sequence, a.cfg.trust.Sequence)
	case sum == a.self.sum:
		// Only without a promised digest: it would be installed again at every order.
		return failed(protocol.ReasonUpToDate, "the server's file is the image that runs")
	case img.Desc == nil:
		return nil
	case img.Desc.SecureVersion < a.self.floor:
		return failed(protocol.ReasonSecurityFloor, "image has secure version %d, the floor is %d", img.Desc.SecureVersion, a.self.floor)
	case o.manifest != nil && len(a.cfg.trust.Keys) > 0 && img.Desc.SecureVersion != o.SecureVersion:
		return failed(protocol.ReasonImageInvalid, "image has secure version %d, its manifest says %d", img.Desc.SecureVersion, o.SecureVersion)
	}
	return nil
}

// blank erases the sector at off unless it is erased.
func (a *agent) blank(off int64) error {
	var b [otadata.SectorSize]byte
	if _, err := a.env.Flash.ReadAt(b[:], off); err != nil {
		return err
	}
	for _, c := range b {
		if c != 0xFF {
			return a.env.Flash.Erase(off, otadata.SectorSize)
		}
	}
	return nil
}
