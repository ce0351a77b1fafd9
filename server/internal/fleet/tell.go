package fleet

import (
	"context"
	"fmt"

	"bmsota/protocol"
)

// Messenger is a Commander that can also say something once: Tell publishes cmd on the device's own topic without
// leaving it there.
type Messenger interface {
	Commander
	Tell(ctx context.Context, device string, cmd protocol.Command) error
}

// Command gives one device an operator's command, and returns it as it went out. An update, and a rollback to a known
// version, are rows before they are sent and reach a device that is away when it comes back; where the broker is away,
// the loop of Run sends them. check, status and a rollback to whatever is there live by this one delivery, so they are
// refused for a device that is not connected.
// Errors: ErrDenied, ErrInvalid, ErrNotFound (no such device), ErrRefused (revoked, or not connected), ErrStorage.
func (f *Fleet) Command(ctx context.Context, out Messenger, by Identity, device string, cmd protocol.Command) (protocol.Command, error) {
	if err := f.operator(by); err != nil {
		return cmd, err
	}
	d, err := f.Device(ctx, device)
	switch {
	case err != nil:
		return cmd, err
	case d.Revoked:
		return cmd, fmt.Errorf("%w: device %q is revoked", ErrRefused, device)
	}
	if cmd.Action == protocol.ActionRollback && cmd.Version == "" {
		cmd.Version = d.PreviousVersion
	}
	kept := cmd.Action == protocol.ActionUpdate || cmd.Action == protocol.ActionRollback && cmd.Version != ""
	payload, err := cmd.Append(nil)
	if err == nil {
		_, err = protocol.ParseCommand(payload)
	}
	if err != nil {
		return cmd, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !kept && !d.Online && !f.live(device) { // its row may say so a moment later
		return cmd, fmt.Errorf("%w: device %q is not connected, and the command %q is not kept for it", ErrRefused, device, cmd.Action)
	}
	if payload, err = f.Order(ctx, by, device, kept, payload); err != nil {
		return cmd, err
	}
	if cmd, err = protocol.ParseCommand(payload); err != nil {
		return cmd, fmt.Errorf("read back the command: %w", err)
	}
	if !kept {
		if said, err := f.sayElsewhere(ctx, device, cmd); said || err != nil {
			return cmd, err
		}
		return cmd, out.Tell(ctx, device, cmd)
	}
	if err := out.Send(ctx, device, cmd); err != nil {
		f.cfg.Log.Warn("command waits for the broker", "device", device, "err", err)
	}
	return cmd, nil
}
