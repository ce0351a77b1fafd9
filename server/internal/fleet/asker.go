package fleet

import (
	"context"

	"bmsota/protocol"
)

// asker is what an offer takes from the rows of the device that asks. The zero value is a device that has none.
type asker struct {
	revoked                         bool
	channel, project, chip, version string
	sha256                          string // of the image it runs
	slotSize                        int64
	secureVersion                   uint32
	assigned                        string // version that its newest open attempt is an update to; empty = none
}

// askerOf is d with its open attempts, oldest first.
func askerOf(d Device, open []Attempt) asker {
	a := asker{
		revoked: d.Revoked, channel: d.Channel, project: d.Status.Project, chip: d.Status.Chip, version: d.Status.CurrentVersion,
		sha256: d.Status.ImageSHA256, slotSize: d.Status.SlotSize, secureVersion: d.Status.SecureVersion,
	}
	if n := len(open); n > 0 && open[n-1].Action == protocol.ActionUpdate {
		a.assigned = open[n-1].Version
	}
	return a
}

// asker reads the rows of a device that asks, or remembers what they say. Where other servers change them they are read each
// time, and what was committed before, by whomever, holds when it returns. So they are where this server was silent for so long
// that another may have taken its place.
func (f *Fleet) asker(ctx context.Context, device string) (asker, error) {
	if f.shared() || !f.plans() {
		a, _, last, err := f.readAsker(ctx, device)
		if err == nil {
			err = f.fresh(ctx, last)
		}
		return a, err
	}
	if a, ok := f.askers.get(device); ok {
		return a, nil
	}
	look := f.askers.look(device)
	a, there, _, err := f.readAsker(ctx, device)
	f.askers.looked(look, a, err == nil && there, f.cfg.Now())
	return a, err
}

// readAsker reads the rows of a device, and with several servers the number of the last change. The zero asker is one that has not
// said anything yet: what it asks is all that is known.
func (f *Fleet) readAsker(ctx context.Context, device string) (a asker, there bool, last int64, err error) {
	err = f.cfg.Store.View(ctx, func(tx Tx) error {
		var d Device
		var err error
		if d, there, err = before(tx.Device(device)); err != nil {
			return err
		}
		if there {
			open, err := tx.OpenAttemptsOf(device)
			if err != nil {
				return err
			}
			a = askerOf(d, open)
		}
		if f.shared() {
			last, err = tx.LastChange()
		}
		return err
	})
	if err != nil {
		return asker{}, false, 0, err
	}
	return a, there, last, nil
}

// maxAskers is how many devices are remembered: some 6 MB. Names that nobody has enrolled take no room.
const maxAskers = 16384
