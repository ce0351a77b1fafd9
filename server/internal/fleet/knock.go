package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"bmsota/audit"
)

// Knock is somebody who was turned away, or let in without a row of his own: a login that failed, a right that was
// missing, a topic that was not his, an operator's login to MQTT. Knocks change nothing and anyone can cause them, so
// they wait in memory until the loop of Run writes them, those that are alike in one row, and never more rows than
// knockRows allows.
type Knock struct {
	What    audit.Action // LoginOK, LoginFailed or AccessDenied
	Name    string       // that was given; kept only where it is somebody's, for people type passwords into that field
	Role    Role         // filled in when it is written
	Via     string       // ViaWeb, ViaSSO, ViaAPI or ViaMQTT
	Address string
	About   string // what was refused: a right, a topic
}

// The ways in.
const (
	ViaWeb  = "web"
	ViaSSO  = "single sign-on"
	ViaAPI  = "api"
	ViaMQTT = "mqtt"
)

const (
	knockEvery = time.Minute // between two rows about knocks that are alike
	knockKinds = 256         // different ones that are remembered; what comes beyond is counted as one
	// knockRows may be written at once, then one for each knockRefill: 4320 rows a day, about 2 MB. Beside them stands one
	// a minute for what they had no room for, of each action and way in.
	knockRows   = 100
	knockRefill = 20 * time.Second
)

// knocks counts them. It is safe for concurrent use.
type knocks struct {
	writing sync.Mutex // held while rows are written, so that whoever reads the log after it finds them

	mu    sync.Mutex
	kinds map[Knock]*tally // guarded by mu
	spent []time.Time      // when the rows of the last knockRows refills were written, oldest first; guarded by writing
}

// tally is how often a knock has come since its last row.
type tally struct {
	times       int
	first, last time.Time
	quiet       time.Time // no row before it
}

// add counts a knock.
func (k *knocks) add(n Knock, now time.Time) {
	n.Name, n.About = n.Name[:min(len(n.Name), 64)], n.About[:min(len(n.About), 128)]
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kinds == nil {
		k.kinds = make(map[Knock]*tally)
	}
	if k.kinds[n] == nil && len(k.kinds) >= knockKinds {
		n = n.anyone()
	}
	k.count(n, 1, now, now)
}

// anyone stands for every knock of a kind that there is no room for.
func (n Knock) anyone() Knock { return Knock{What: n.What, Via: n.Via, Address: "many"} }

// count adds to a tally. The lock is held.
func (k *knocks) count(n Knock, times int, first, last time.Time) {
	t := k.kinds[n]
	if t == nil {
		t = new(tally)
		k.kinds[n] = t
	}
	if t.times == 0 {
		t.first = first
	}
	t.times += times
	t.last = last
}

// due takes the tallies that may become rows now. Where there are more than the budget has room for, the rest is put
// together, one row for each action and way in.
func (k *knocks) due(now time.Time, room int) map[Knock]tally {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[Knock]tally)
	var late []Knock
	for n, t := range k.kinds {
		switch {
		case t.times == 0 && now.After(t.quiet):
			delete(k.kinds, n)
		case t.times == 0 || now.Before(t.quiet):
		case n == n.anyone():
			late = append(late, n)
		case len(out) < room:
			out[n] = *t
			*t = tally{quiet: now.Add(knockEvery)}
		default:
			k.count(n.anyone(), t.times, t.first, t.last)
			delete(k.kinds, n)
			late = append(late, n.anyone())
		}
	}
	for _, n := range late {
		if t := k.kinds[n]; t.times > 0 && !now.Before(t.quiet) {
			out[n] = *t
			*t = tally{quiet: now.Add(knockEvery)}
		}
	}
	return out
}

// giveBack undoes due, where the rows could not be written.
func (k *knocks) giveBack(list map[Knock]tally) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n, t := range list {
		k.count(n, t.times, t.first, t.last)
		k.kinds[n].first, k.kinds[n].quiet = t.first, time.Time{}
	}
}

// TurnedAway tells the audit log of a knock.
func (f *Fleet) TurnedAway(n Knock) { f.knocks.add(n, f.cfg.Now()) }

// writeKnocks makes rows of the knocks that are due.
func (f *Fleet) writeKnocks(ctx context.Context) error {
	k := &f.knocks
	k.writing.Lock()
	defer k.writing.Unlock()
	now := f.cfg.Now()
	k.spent = slices.DeleteFunc(k.spent, func(at time.Time) bool { return now.Sub(at) >= knockRows*knockRefill })
	list := k.due(now, knockRows-len(k.spent))
	if len(list) == 0 {
		return nil
	}
	var rows map[Knock]tally
	err := f.update(ctx, theServer, func(tx Tx) error {
		rows = make(map[Knock]tally, len(list))
		for n, t := range list {
			var err error
			if n.Name, n.Role, err = known(tx, n.Name, now); err != nil {
				return err
			}
			if same, there := rows[n]; there { // two names that are nobody's
				t.times, t.first, t.last = t.times+same.times, earlier(t.first, same.first), maxTime(t.last, same.last)
			}
			rows[n] = t
		}
		order := func(a, b Knock) int { return rows[a].first.Compare(rows[b].first) }
		for _, n := range slices.SortedFunc(maps.Keys(rows), order) {
			note(tx, n.entry(rows[n]))
		}
		return nil
	})
	if err != nil {
		k.giveBack(list)
		return fmt.Errorf("write who was turned away: %w", err)
	}
	for range list {
		k.spent = append(k.spent, now)
	}
	for n, t := range rows {
		// Only here, where it is known whose the name is: what was typed into that field may be a password.
		if n.What == audit.LoginFailed && n.Name != "" {
			f.cfg.Log.Warn("login refused", "name", n.Name, "role", n.Role, "via", n.Via, "address", n.Address, "about", n.About, "times", t.times)
		}
	}
	return nil
}

// known is the name and role of an account, a token or a device; empty for everybody else.
func known(tx Tx, name string, now time.Time) (string, Role, error) {
	if name == "" {
		return "", "", nil
	}
	role, _, err := holder(tx, name, now)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return name, role, err
	}
	_, there, err := before(tx.Device(name))
	if !there {
		return "", "", err
	}
	return name, RoleDevice, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// entry is the row of a knock.
func (n Knock) entry(t tally) audit.Entry {
	e := audit.Entry{Who: n.Name, Role: string(n.Role), What: n.What, Details: audit.Of("via", n.Via, "address", n.Address, "refused", n.About)}
	if n.Name == "" {
		e.Who, e.Role = "stranger", "none"
	}
	if n.Role == RoleDevice {
		e.Device = n.Name
	}
	if t.times > 1 {
		e.Details = append(e.Details, audit.Of("times", fmt.Sprint(t.times), "first", t.first.UTC().Format(time.RFC3339), "last", t.last.UTC().Format(time.RFC3339))...)
	}
	return e
}
