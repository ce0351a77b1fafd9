package fleet

import (
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
	f.mu.Unlock()
	f.watchers.tell(device)
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
