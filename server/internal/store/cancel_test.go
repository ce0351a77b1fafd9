package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"bmsota/server/internal/fleet"
)

// TestEndOfAContextIsNoStorageFault: whoever gives up is not told that the disk is broken, at whatever point of the
// transaction it was, and the store goes on as if nothing had been.
func TestEndOfAContextIsNoStorageFault(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			st := s.open(t)
			update(t, st, seed)
			before := dump(t, st)
			put := func(tx fleet.Tx) error { return tx.PutDevice(device("late")) }
			for name, run := range map[string]func(context.Context, context.CancelFunc) error{
				"before": func(ctx context.Context, cancel context.CancelFunc) error {
					cancel()
					return st.Update(ctx, put)
				},
				"before a change": func(ctx context.Context, cancel context.CancelFunc) error {
					return st.Update(ctx, func(tx fleet.Tx) error { cancel(); return put(tx) })
				},
				"before the commit": func(ctx context.Context, cancel context.CancelFunc) error {
					return st.Update(ctx, func(tx fleet.Tx) error {
						err := put(tx)
						cancel()
						return err
					})
				},
				"some time before the commit": func(ctx context.Context, cancel context.CancelFunc) error {
					return st.Update(ctx, func(tx fleet.Tx) error {
						err := put(tx)
						cancel()
						time.Sleep(20 * time.Millisecond) // the driver undoes the transaction on a goroutine of its own
						return err
					})
				},
				"some time before a change": func(ctx context.Context, cancel context.CancelFunc) error {
					return st.Update(ctx, func(tx fleet.Tx) error {
						cancel()
						time.Sleep(20 * time.Millisecond)
						return put(tx)
					})
				},
				"in a view": func(ctx context.Context, cancel context.CancelFunc) error {
					return st.View(ctx, func(tx fleet.Tx) error {
						cancel()
						time.Sleep(20 * time.Millisecond)
						_, err := tx.Devices()
						return errors.Join(err, ctx.Err())
					})
				},
			} {
				ctx, cancel := context.WithCancel(t.Context())
				if err := run(ctx, cancel); !errors.Is(err, context.Canceled) || errors.Is(err, fleet.ErrStorage) {
					t.Errorf("%s: %v, want the end of the context", name, err)
				}
				cancel()
				if after := dump(t, st); after != before {
					t.Errorf("%s: it changed something", name)
				}
			}
		})
	}
}
