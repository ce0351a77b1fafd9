package fleet

import "context"

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
