package fleet

import (
	"context"
	"errors"
	"strconv"
	"time"

	"bmsota/audit"
)

// Restoration is what Restored has done.
type Restoration struct {
	Releases, Devices int // that there are
	Paused            int // rollouts that were running
	Ended             int // commands that were open
}

// Restored makes rows that came out of a backup safe to go on from, before anything else sees them: nobody knows what has
// happened since taken, when the backup was made. Rollouts that were running may have been halted, so they are paused, and
// say why. Commands that were open may have been carried out or taken back, so they are ended. Rollouts number their
// commands, and the next numbers have been given out before, perhaps to the same devices: from now on life is part of
// them. It must never have been used before.
//
// Statuses need nothing: devices count on, and one that names a command which is not in the rows is a device's status and
// no attempt's.
func Restored(ctx context.Context, s Store, taken, now time.Time, life string) (Restoration, error) {
	var done Restoration
	err := byServer(ctx, s, now, func(tx Tx) error {
		done = Restoration{}
		note(tx, audit.Entry{What: audit.BackupRestore, Details: audit.Of("taken", taken.UTC().Format(time.RFC3339))})
		releases, err := tx.Releases()
		if err != nil {
			return err
		}
		devices, err := tx.Devices()
		if err != nil {
			return err
		}
		done.Releases, done.Devices = len(releases), len(devices)
		if o, there, err := underWay(tx); err != nil {
			return err
		} else if there { // who has no row of it is not told
			if err := tx.DeleteOrder(o.Command.ID); err != nil {
				return err
			}
		}
		if err := endRestored(tx, &done, now); err != nil {
			return err
		}
		rollouts, err := tx.Rollouts()
		if err != nil {
			return err
		}
		for _, r := range rollouts {
			if r.State.Ended() {
				continue
			}
			r.Life = life
			text := "restored from a backup of %s"
			if r.State == RolloutRunning {
				r.State, r.SoakSince, text = RolloutPaused, time.Time{}, "paused: "+text
				done.Paused++
			}
			r.say(now, "", text, taken.UTC().Format(time.RFC3339))
			if err := tx.PutRollout(r); err != nil {
				return err
			}
		}
		return nil
	})
	return done, err
}

// endRestored ends every open attempt. A member of a rollout waits again, and has lost no try.
func endRestored(tx Tx, done *Restoration, now time.Time) error {
	open, err := tx.OpenAttempts()
	if err != nil {
		return err
	}
	done.Ended = len(open)
	if err := supersede(tx, open, now, "given before a backup was restored"); err != nil {
		return err
	}
	for _, a := range open {
		m, err := tx.Member(a.RolloutID, a.DeviceID)
		switch {
		case errors.Is(err, ErrNotFound):
			continue
		case err != nil:
			return err
		case m.State != MemberOpen || m.AttemptID != a.ID:
			continue
		}
		m.State, m.Message, m.UpdatedAt = MemberPending, "its command was given before a backup was restored", now
		m.Tries--
		if err := tx.PutMember(m); err != nil {
			return err
		}
	}
	return nil
}

// command is the id of the nth command of a member.
func (r *Rollout) command(n int) string {
	if r.Life != "" {
		return r.ID + "." + r.Life + "." + strconv.Itoa(n)
	}
	return r.ID + "." + strconv.Itoa(n)
}
