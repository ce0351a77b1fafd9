package agent

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bmsota/esp/otadata"
	"bmsota/protocol"
)

// confirmPause is the time between two tries to confirm where the flash does not take it: each is an erase.
const confirmPause = 30 * time.Second

// health is what a boot has shown so far.
type health struct {
	network atomic.Bool   // a connection to the broker's address was made
	server  atomic.Bool   // the server answered over HTTPS
	acked   chan struct{} // closed by the first PUBACK
	once    sync.Once
}

func (h *health) ack() { h.once.Do(func() { close(h.acked) }) }

func (h *health) broker() bool {
	select {
	case <-h.acked:
		return true
	default:
		return false
	}
}

// trial is the first boot of a new image: it stays when it has shown everything a monitor is there for within the
// deadline, and is given up when not. A crash, a hang and a power cut need nothing of this: the record is PENDING, and
// the bootloader ends it.
func (a *agent) trial(ctx context.Context) outcome {
	limits := a.cfg.ota.Health.WithDefaults()
	if a.without(MutantConfirmFirst) {
		return outcome{err: a.confirm()}
	}
	probe, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { a.reachServer(probe) })

	deadline := time.NewTimer(time.Duration(limits.DeadlineS) * time.Second)
	defer deadline.Stop()
	frame := time.NewTicker(a.env.FramePeriod)
	defer frame.Stop()
	frames := 0
	var retry time.Time // no confirmation is tried before
	// keep confirms what is healthy. False when the flash did not take it.
	keep := func() (bool, outcome) {
		err := a.confirm()
		if err == nil || gone(err) {
			return true, outcome{err: err}
		}
		// Healthy, but the next reset would undo it: that is no confirmation, and nobody is told that it is one.
		retry = time.Now().Add(confirmPause)
		a.log.Error("new image not confirmed", "err", err)
		a.rep.phase(a.rep.current(), protocol.ReasonFlash, "healthy, but not confirmed: "+err.Error())
		return false, outcome{}
	}
	for {
		select {
		case <-ctx.Done():
			return outcome{}
		case <-deadline.C:
			cause := a.missing(limits, frames)
			if cause == protocol.ReasonNone && retry.IsZero() {
				// The last of it came after the last look.
				if done, out := keep(); done {
					return out
				}
			}
			stays, err := a.giveUp(cause)
			switch {
			case err != nil && gone(err):
				return outcome{err: err}
			case err == nil && stays == "":
				return outcome{restart: true}
			case err != nil:
				stays = err.Error()
			}
			// It goes on watching: what is not undone may still become healthy.
			a.log.Warn("new image is not healthy and stays", "reason", cause, "why", stays)
			a.rep.phase(a.rep.current(), cause, cause.Text()+"; it stays because "+stays)
		case <-frame.C:
			if _, ok := a.env.Battery(); ok {
				frames++
			}
			if a.missing(limits, frames) != protocol.ReasonNone || time.Now().Before(retry) {
				continue
			}
			if done, out := keep(); done {
				return out
			}
		}
	}
}

// missing is the first thing that the image has not shown.
func (a *agent) missing(limits protocol.Health, frames int) protocol.Reason {
	free, _, _ := a.heap.read()
	switch {
	case !a.health.network.Load() && !a.health.server.Load() && !a.health.broker():
		return protocol.ReasonNoNetwork
	case !a.health.broker():
		return protocol.ReasonNoBroker
	case !a.health.server.Load():
		return protocol.ReasonNoServer
	case frames < limits.BMSFrames:
		return protocol.ReasonBMSSilent
	case free < limits.MinHeap:
		return protocol.ReasonLowHeap
	}
	return protocol.ReasonNone
}

// reachServer asks for the version file until the server answers. Any answer below 500 will do: what is tested is the
// way that the next update comes, not whether there is one. The mirror proves nothing of itself, and whoever is on the wire
// can answer in its name: only a release that a trusted key signed will do there.
func (a *agent) reachServer(ctx context.Context) {
	if a.web == nil {
		return
	}
	pause := pauses{rand: newRand(a.env.Seed, 4), first: time.Second, limit: a.env.longest(30 * time.Second)}
	for {
		resp, f := a.web.get(ctx, http.MethodGet, a.ask(a.cfg.ota.ServerURL, "version").at, nil)
		answered := f == nil && resp.StatusCode < 500
		if f == nil {
			resp.stop()
		} else {
			_, answered = a.lookAtMirror(ctx)
		}
		if answered {
			a.health.server.Store(true)
			return
		}
		if !sleep(ctx, pause.next()) {
			return
		}
	}
}

// confirm keeps the image that was on trial. An error is of the flash: nothing is confirmed then.
func (a *agent) confirm() error {
	// VALID first; otaops raises the security floor only when that is in flash. The other order would leave a board,
	// after a power cut, whose one proven image is below its floor.
	if err := a.ops.MarkValid(); err != nil {
		return err
	}
	if a.env.Ops.AntiRollback && a.env.Ops.Efuse != nil {
		a.self.floor = *a.env.Ops.Efuse
	}
	a.self.trial = false
	a.rep.set(func(s *protocol.Status) { s.RollbackPending, s.SecureVersion = false, a.self.floor })
	if a.rep.current() == protocol.PhaseTrial {
		a.rep.phase(protocol.PhaseConfirmed, protocol.ReasonNone, "")
		a.rep.phase(protocol.PhaseIdle, protocol.ReasonNone, "")
	}
	return nil
}

// sameSlot says whether rec would boot the running image. ESP-IDF does not ask that, and would mark an image as failed to boot
// it again by the other record, for good.
func (a *agent) sameSlot(rec otadata.Record) bool {
	slots := a.env.Table.Slots()
	return rec.Usable() && slots[otadata.SlotIndex(rec.Seq, len(slots))] == a.env.Running
}

// giveUp marks the running image as failed. stays says why it could not.
func (a *agent) giveUp(cause protocol.Reason) (stays string, err error) {
	if a.cfg.haveOTA && !a.cfg.ota.AutoRollbackEnabled {
		return "auto_rollback_enabled is false", nil
	}
	possible, err := a.ops.CheckRollbackPossible()
	if err != nil {
		return "", err
	}
	recs, err := a.ops.Records()
	if err != nil {
		return "", err
	}
	own := otadata.Select(recs)
	if !possible || a.sameSlot(recs[1-own]) {
		return "there is no other image to go back to", nil
	}
	if err := a.ops.GiveUp(); gone(err) {
		return "", err
	} else if err != nil {
		// The record stops counting before it is rewritten. Where only the second failed, it is given up all the same.
		if asked, ok, rerr := a.ops.BootPartition(); rerr != nil || !ok || asked == a.env.Running {
			return "", errors.Join(err, rerr)
		}
		a.log.Error("record of a new image that failed not rewritten", "err", err)
		a.rep.phase(protocol.PhaseRebooting, cause, "")
		return "", nil
	}
	// The cause goes where the record is, see note, and after it, because writing the record erases the sector.
	if err := a.writeNote(own, note{digest: a.self.sum, cause: cause}); gone(err) {
		return "", err
	} else if err != nil {
		a.log.Warn("cause not noted", "err", err)
	}
	a.rep.phase(protocol.PhaseRebooting, cause, "")
	return "", nil
}
