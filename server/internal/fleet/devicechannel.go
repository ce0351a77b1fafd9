package fleet

import (
	"context"
	"fmt"

	"bmsota/protocol"
)

// SetDeviceChannel puts a device into a channel: what that points at is what the device is offered from now on, unless it asks
// by a path that names another. The channel must exist for the device's project and chip, or be the default one: a slip in the
// name would keep every update from the device, and say nothing.
//
// An update that names no version and that the device has not taken up yet goes for what the new channel offers.
// Errors: ErrDenied, ErrInvalid (no name of a channel), ErrNotFound (no such device), ErrRefused (no such channel), ErrStorage.
func (f *Fleet) SetDeviceChannel(ctx context.Context, by Identity, device, channel string) (Device, error) {
	if err := f.operator(by); err != nil {
		return Device{}, err
	}
	if err := checkChannel(channel); err != nil {
		return Device{}, err
	}
	cat, err := f.catalogue(ctx)
	if err != nil {
		return Device{}, err
	}
	var d Device
	err = f.update(ctx, by, func(tx Tx) (err error) {
		if d, err = tx.Device(device); err != nil {
			return fmt.Errorf("device %q: %w", device, err)
		}
		if channel != DefaultChannel && !cat.hasChannel(channel, d.Status) {
			return fmt.Errorf("%w: no channel %q has a release that is meant for device %q: publish one with --channel %[2]s first", ErrRefused, channel, device)
		}
		d.Channel = channel
		if err := f.aim(tx, cat, d); err != nil {
			return err
		}
		return tx.PutDevice(d)
	})
	if err != nil {
		return Device{}, err
	}
	f.cfg.Log.Info("device put into a channel", "device", device, "channel", channel, "by", by.Name)
	f.watchers.tell(device)
	return d, nil
}

// hasChannel says whether a channel of that name has a release for what a device says it is; what it has not said fits all.
func (c *catalog) hasChannel(name string, s protocol.Status) bool {
	for _, l := range c.names[name] {
		if (s.Project == "" || l.project == s.Project) && (s.Chip == "" || l.chip == "" || l.chip == s.Chip) {
			return true
		}
	}
	return false
}

// aim points the updates of d that are on their way and name no version at what its channel offers.
func (f *Fleet) aim(tx Tx, cat *catalog, d Device) error {
	open, err := tx.OpenAttemptsOf(d.ID)
	if err != nil {
		return err
	}
	for _, a := range open {
		if a.Action != protocol.ActionUpdate || a.Version != "" || a.Phase != "" {
			continue
		}
		a.SHA256 = ""
		if o, err := cat.offer(Query{Device: d.ID}, askerOf(d, nil), f.cfg.DefaultProject); err == nil {
			a.SHA256 = o.Release.SHA256
		}
		if err := tx.PutAttempt(a); err != nil {
			return err
		}
	}
	return nil
}
