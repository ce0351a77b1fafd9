package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bmsota/protocol"
)

// presenceWait is how long those who come and leave are gathered for one commit, while no caller waits for any other fold. A
// command that waits for a device that comes is retained at the broker, which does not wait for this.
const presenceWait = 100 * time.Millisecond

// Connected notes that a device has an MQTT session. Where this server is alone with its store it does not wait for the commit,
// which follows within presenceWait, before that of any status that is handed to Fold later.
func (f *Fleet) Connected(ctx context.Context, device string) error {
	f.mu.Lock()
	f.sessions[device]++
	f.mu.Unlock()
	return f.setOnline(ctx, device, true)
}

// Disconnected notes that a session of a device has ended; it waits as Connected does. A device is offline when its last one has:
// a device that comes back before its old connection was given up is never shown as gone.
func (f *Fleet) Disconnected(ctx context.Context, device string) error {
	f.mu.Lock()
	left := f.sessions[device] - 1
	if left > 0 {
		f.sessions[device] = left
	} else {
		delete(f.sessions, device)
	}
	f.mu.Unlock()
	if left > 0 {
		return nil
	}
	return f.setOnline(ctx, device, false)
}

func (f *Fleet) setOnline(ctx context.Context, device string, online bool) error {
	if err := protocol.CheckDeviceID(device); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	fo := &fold{device: device, online: &online}
	select {
	case <-f.running:
	default:
		return f.commit(ctx, []*fold{fo})[0].err // the broker opens before Run; these two need no group
	}
	give := f.hand
	if f.shared() {
		give = f.submit // at whose broker a device is, is what was committed last
	}
	err := give(ctx, fo)
	if !errors.Is(err, ErrStopped) {
		return err
	}
	select {
	case <-f.emptied: // what was handed over before comes first
		return f.commit(ctx, []*fold{fo})[0].err // the broker closes after Run
	case <-ctx.Done():
		return ctx.Err()
	}
}

// live says whether the broker of this process holds a session of device.
func (f *Fleet) live(device string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[device] > 0
}
