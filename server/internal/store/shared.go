package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"bmsota/server/internal/fleet"
)

// postgresClock is the time of the server, which all servers on it share; the other databases have one process.
const postgresClock = `SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)`

func (t *sqlTx) Clock() (now time.Time, err error) {
	if t.clock == "" {
		return fromMillis(time.Now().UnixMilli()), nil
	}
	return oneOf(t, func(s scanner) (now time.Time, err error) { return now, s.Scan(instant{&now}) }, t.clock)
}

func scanLease(s scanner) (l fleet.Lease, err error) {
	return l, s.Scan(&l.Holder, &l.Token, instant{&l.Until})
}

func (t *sqlTx) Lease() (fleet.Lease, error) {
	l, err := oneOf(t, scanLease, `SELECT holder, token, until FROM lease WHERE id = 1`)
	if errors.Is(err, fleet.ErrNotFound) {
		err = nil
	}
	return l, err
}

func (t *sqlTx) PutLease(l fleet.Lease) error {
	rows, err := t.change(`INSERT INTO lease (id, holder, token, until) VALUES (1, $1, $2, $3)
ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, token = excluded.token, until = excluded.until WHERE lease.token <= excluded.token`,
		l.Holder, l.Token, millis(l.Until))
	if err == nil && rows == 0 {
		t.failed = fmt.Errorf("%w: a lease of number %d is older than the one that is there", fleet.ErrConflict, l.Token)
		err = t.failed
	}
	return err
}

func scanPeer(s scanner) (p fleet.Peer, err error) {
	return p, s.Scan(&p.Place, &p.Name, instant{&p.Seen}, &p.Tables)
}

func (t *sqlTx) Peers() ([]fleet.Peer, error) {
	return manyOf(t, scanPeer, `SELECT place, name, seen, tables_of FROM servers ORDER BY place`)
}

func (t *sqlTx) PutPeer(p fleet.Peer) error {
	return t.exec(`INSERT INTO servers (place, name, seen, tables_of) VALUES ($1, $2, $3, $4)
ON CONFLICT (place) DO UPDATE SET name = excluded.name, seen = excluded.seen, tables_of = excluded.tables_of`, p.Place, p.Name, millis(p.Seen), t.tables)
}

func (t *sqlTx) DeletePeer(place string) error {
	return t.exec(`DELETE FROM servers WHERE place = $1`, place)
}

func scanChange(s scanner) (c fleet.Change, err error) {
	var number int64
	var place string
	var at time.Time
	var body []byte
	if err := s.Scan(&number, &place, instant{&at}, &body); err != nil {
		return c, err
	}
	if err := json.Unmarshal(body, &c); err != nil {
		c = fleet.Change{All: true} // of a newer server that says it otherwise: whatever it is, everything is looked at again
	}
	c.Number, c.Place, c.At = number, place, at
	return c, nil
}

func (t *sqlTx) Changes(after int64, limit int) ([]fleet.Change, error) {
	return manyOf(t, scanChange, `SELECT number, place, at, body FROM changes WHERE number > $1 ORDER BY number LIMIT $2`, after, int64(limit))
}

func (t *sqlTx) LastChange() (int64, error) {
	return oneOf(t, func(s scanner) (n int64, err error) { return n, s.Scan(&n) }, `SELECT COALESCE(MAX(number), 0) FROM changes`)
}

func (t *sqlTx) PutChange(c fleet.Change) error {
	body, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode change: %w", err)
	}
	return t.exec(`INSERT INTO changes (place, at, body) VALUES ($1, $2, $3)`, c.Place, millis(c.At), string(body))
}

func (t *sqlTx) DeleteChanges(before time.Time) error {
	return t.exec(`DELETE FROM changes WHERE at < $1`, millis(before))
}

func (t *sqlTx) Home(device string) (string, error) {
	place, err := oneOf(t, scanText, `SELECT place FROM homes WHERE device_id = $1`, device)
	if errors.Is(err, fleet.ErrNotFound) {
		err = nil
	}
	return place, err
}

func (t *sqlTx) HomesOf(place string, limit int) ([]string, error) {
	return manyOf(t, scanText, `SELECT device_id FROM homes WHERE place = $1 ORDER BY device_id LIMIT $2`, place, int64(limit))
}

func (t *sqlTx) PutHome(device, place string) error {
	if place == "" {
		return t.exec(`DELETE FROM homes WHERE device_id = $1`, device)
	}
	return t.exec(`INSERT INTO homes (device_id, place) VALUES ($1, $2) ON CONFLICT (device_id) DO UPDATE SET place = excluded.place`, device, place)
}

// sharedRows are those tables of Memory.
type sharedRows struct {
	lease   fleet.Lease
	peers   map[string]fleet.Peer
	changes map[int64]fleet.Change
	last    int64 // change
	homes   map[string]string
}

func newSharedRows() sharedRows {
	return sharedRows{peers: make(map[string]fleet.Peer), changes: make(map[int64]fleet.Change), homes: make(map[string]string)}
}

func (t *memoryTx) Clock() (time.Time, error) { return fromMillis(time.Now().UnixMilli()), nil }

func (t *memoryTx) Lease() (fleet.Lease, error) { return t.m.shared.lease, nil }

func (t *memoryTx) PutLease(l fleet.Lease) error {
	if err := t.may(); err != nil {
		return err
	}
	old := t.m.shared.lease
	if l.Token < old.Token {
		return t.conflict("a lease of number %d is older than the one that is there", l.Token)
	}
	trim(&l.Until)
	t.undo = append(t.undo, func() { t.m.shared.lease = old })
	t.m.shared.lease = l
	return nil
}

func (t *memoryTx) Peers() ([]fleet.Peer, error) {
	return sorted(t.m.shared.peers, func(a, b fleet.Peer) int { return cmp.Compare(a.Place, b.Place) }), nil
}

func (t *memoryTx) PutPeer(p fleet.Peer) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&p.Seen)
	set(t, t.m.shared.peers, p.Place, p)
	return nil
}

func (t *memoryTx) DeletePeer(place string) error { return drop(t, t.m.shared.peers, place) }

func (t *memoryTx) Changes(after int64, limit int) ([]fleet.Change, error) {
	list := sorted(t.m.shared.changes, func(a, b fleet.Change) int { return cmp.Compare(a.Number, b.Number) })
	list = slices.DeleteFunc(list, func(c fleet.Change) bool { return c.Number <= after })
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) LastChange() (int64, error) { return t.m.shared.last, nil }

func (t *memoryTx) PutChange(c fleet.Change) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&c.At)
	t.m.shared.last++ // as a sequence: what is undone leaves a gap
	c.Number = t.m.shared.last
	set(t, t.m.shared.changes, c.Number, c)
	return nil
}

func (t *memoryTx) DeleteChanges(before time.Time) error {
	for number, c := range t.m.shared.changes {
		if c.At.Before(before) {
			if err := drop(t, t.m.shared.changes, number); err != nil {
				return err
			}
		}
	}
	return t.may()
}

func (t *memoryTx) Home(device string) (string, error) { return t.m.shared.homes[device], nil }

func (t *memoryTx) HomesOf(place string, limit int) ([]string, error) {
	var list []string
	for device, at := range t.m.shared.homes {
		if at == place {
			list = append(list, device)
		}
	}
	slices.Sort(list)
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) PutHome(device, place string) error {
	if place == "" {
		return drop(t, t.m.shared.homes, device)
	}
	if err := t.may(); err != nil {
		return err
	}
	set(t, t.m.shared.homes, device, place)
	return nil
}
