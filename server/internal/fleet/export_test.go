package fleet

import "context"

// InTurn runs work as a login's password is worked on.
func InTurn(ctx context.Context, f *Fleet, work func()) error { return f.guard.inTurn(ctx, work) }

// LookAt plans once for a rollout, as the loop does.
func LookAt(ctx context.Context, f *Fleet, rollout string) error {
	now := f.cfg.Now()
	since := now.Add(-f.cfg.Silence * 2)
	f.heardSince.Store(&since)
	return f.cfg.Store.View(ctx, func(tx Tx) error {
		in, failed, err := f.input(tx, rollout, now)
		if err != nil {
			return err
		}
		Plan(in, now)
		return *failed
	})
}
