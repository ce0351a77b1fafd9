package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// contestShown is how long a contested login is shown after it was last seen so.
const contestShown = time.Hour

// Contest is a device's login that two ends use at once: two boards that were given one, or a stolen one. It is kept in
// memory alone, because it shows again within minutes while it is so.
type Contest struct {
	Device    string
	At        time.Time // last seen so
	Addresses []string  // where the login comes from, sorted
	Times     int       // how often its sessions met within the broker's window
}

// Contested notes that a device's login is used in two places, as the broker has found.
func (f *Fleet) Contested(device string, addresses []string, times int) {
	now := f.cfg.Now()
	f.mu.Lock()
	maps.DeleteFunc(f.contests, func(_ string, c Contest) bool { return now.Sub(c.At) > contestShown })
	f.contests[device] = Contest{Device: device, At: now, Addresses: addresses, Times: times}
	f.accused[device] = struct{}{}
	f.mu.Unlock()
	f.watchers.tell(device)
}

// forgetContest is for a device whose login is settled.
func (f *Fleet) forgetContest(device string) {
	f.mu.Lock()
	delete(f.contests, device)
	delete(f.accused, device)
	f.mu.Unlock()
}

// writeContests makes suspicions of the contests that came since the last call. The broker, which reports them, must not
// wait for the store.
func (f *Fleet) writeContests(ctx context.Context) error {
	now := f.cfg.Now()
	f.mu.Lock()
	accused := make([]Contest, 0, len(f.accused))
	for id := range f.accused {
		if c, there := f.contests[id]; there {
			accused = append(accused, c)
		}
	}
	clear(f.accused)
	f.mu.Unlock()
	if len(accused) == 0 {
		return nil
	}
	err := f.update(ctx, theServer, func(tx Tx) error {
		for _, c := range accused {
			d, err := tx.Device(c.Device)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			d.doubt(SuspectLogin, "", fmt.Sprintf("sessions from %s met %d times", strings.Join(c.Addresses, ", "), c.Times), now)
			if err := tx.PutDevice(d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil { // the next call tries again
		f.mu.Lock()
		for _, c := range accused {
			f.accused[c.Device] = struct{}{}
		}
		f.mu.Unlock()
	}
	return err
}

// endSuspicions takes away the suspicions that have come to an end by themselves.
func (f *Fleet) endSuspicions(ctx context.Context) error {
	now := f.cfg.Now()
	each := func(tx Tx, do func(Device) error) error {
		q := DeviceQuery{State: StateSuspect, Sort: SortID, Limit: MaxPage, Now: now}
		for {
			page, err := tx.DevicePage(q)
			if err != nil {
				return err
			}
			for _, d := range page {
				if d.lapse(now) {
					if err := do(d); err != nil {
						return err
					}
				}
			}
			if len(page) < q.Limit {
				return nil
			}
			last := page[len(page)-1].Mark()
			q.After = &last
		}
	}
	any := false
	err := f.cfg.Store.View(ctx, func(tx Tx) error {
		any = false
		return each(tx, func(Device) error { any = true; return nil })
	})
	if err != nil || !any {
		return err
	}
	return f.planned(ctx, func(tx Tx) error { return each(tx, tx.PutDevice) })
}

// Clear takes away what a device is suspected of, as somebody has looked into it: rollouts count it again. Twice is no
// error. Errors: ErrDenied, ErrNotFound (no such device), ErrStorage.
func (f *Fleet) Clear(ctx context.Context, by Identity, device string) (Device, error) {
	if err := f.operator(by); err != nil {
		return Device{}, err
	}
	f.forgetContest(device)
	var d Device
	err := f.update(ctx, by, func(tx Tx) (err error) {
		if d, err = tx.Device(device); err != nil {
			return fmt.Errorf("device %.64q: %w", device, err)
		}
		if len(d.Doubts.List) == 0 {
			return nil
		}
		d.Doubts = d.Doubts.Clone()
		d.Doubts.List = nil
		return tx.PutDevice(d)
	})
	if err != nil {
		return Device{}, err
	}
	f.cfg.Log.Info("device cleared of suspicion", "device", device, "by", by.Name)
	f.watchers.tell(device)
	f.planSoon()
	return d, nil
}

// Contests are the contested logins of the last hour, by device.
func (f *Fleet) Contests() []Contest {
	now := f.cfg.Now()
	f.mu.Lock()
	list := slices.Collect(maps.Values(f.contests))
	f.mu.Unlock()
	list = slices.DeleteFunc(list, func(c Contest) bool { return now.Sub(c.At) > contestShown })
	slices.SortFunc(list, func(a, b Contest) int { return strings.Compare(a.Device, b.Device) })
	return list
}

// ContestOf is the contest about one device's login; nil when there is none.
func (f *Fleet) ContestOf(device string) *Contest {
	f.mu.Lock()
	c, there := f.contests[device]
	f.mu.Unlock()
	if !there || f.cfg.Now().Sub(c.At) > contestShown {
		return nil
	}
	return &c
}
