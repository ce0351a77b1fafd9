package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// Memory is a fleet.Store that forgets everything when the process ends, for tests and demonstrations. It keeps the
// contract of the databases, times rounded to milliseconds and all. A View inside an Update blocks for ever.
type Memory struct {
	mu sync.RWMutex // Updates hold it alone, Views share it

	releases  map[string]fleet.Release
	channels  map[[3]string]fleet.Channel
	devices   map[string]fleet.Device
	attempts  map[string]fleet.Attempt
	open      map[string]map[string]struct{} // ids of open attempts by device
	keys      map[keyID]fleet.ProjectKey
	operators map[string]fleet.Operator
	accounts  map[string]fleet.Account
	sessions  map[string]fleet.Session

	rollouts   map[string]fleet.Rollout
	members    map[string]map[string]fleet.Member // by rollout and device
	quarantine map[string]fleet.Quarantine

	audit      []audit.Entry // by Seq, from 1
	webhooks   map[string]fleet.Webhook
	deliveries map[deliveryKey]fleet.Delivery

	shared sharedRows
	orders map[string]fleet.Order // by command
}

// keyID is the primary key of a fleet.ProjectKey.
type keyID struct {
	project  string
	kind     fleet.KeyKind
	sequence uint32
	key      string
}

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{
		releases: make(map[string]fleet.Release), channels: make(map[[3]string]fleet.Channel),
		devices: make(map[string]fleet.Device), attempts: make(map[string]fleet.Attempt),
		open: make(map[string]map[string]struct{}), keys: make(map[keyID]fleet.ProjectKey),
		operators: make(map[string]fleet.Operator), accounts: make(map[string]fleet.Account), sessions: make(map[string]fleet.Session),
		rollouts: make(map[string]fleet.Rollout), members: make(map[string]map[string]fleet.Member),
		quarantine: make(map[string]fleet.Quarantine),
		webhooks:   make(map[string]fleet.Webhook), deliveries: make(map[deliveryKey]fleet.Delivery),
		shared: newSharedRows(), orders: make(map[string]fleet.Order),
	}
}

// Update implements fleet.Store.
func (m *Memory) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	tx := &memoryTx{m: m}
	committed := false
	defer func() {
		if !committed { // by an error or a panic
			for _, undo := range slices.Backward(tx.undo) {
				undo()
			}
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	if tx.failed != nil {
		return tx.failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	committed = true
	return nil
}

// View implements fleet.Store.
func (m *Memory) View(ctx context.Context, fn func(fleet.Tx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return fn(&memoryTx{m: m, readOnly: true})
}

// Close implements fleet.Store.
func (m *Memory) Close() error { return nil }

// memoryTx changes the maps in place and remembers how to take it back.
type memoryTx struct {
	m        *Memory
	readOnly bool
	undo     []func()
	failed   error
}

func (t *memoryTx) may() error {
	if t.readOnly {
		return errReadOnly
	}
	return t.failed
}

func (t *memoryTx) conflict(format string, args ...any) error {
	t.failed = fmt.Errorf("%w: %s", fleet.ErrConflict, fmt.Sprintf(format, args...))
	return t.failed
}

func set[K comparable, V any](t *memoryTx, rows map[K]V, key K, v V) {
	old, had := rows[key]
	t.undo = append(t.undo, func() {
		if had {
			rows[key] = old
		} else {
			delete(rows, key)
		}
	})
	rows[key] = v
}

func get[K comparable, V any](rows map[K]V, key K) (V, error) {
	v, ok := rows[key]
	if !ok {
		return v, fleet.ErrNotFound
	}
	return v, nil
}

func sorted[K comparable, V any](rows map[K]V, order func(a, b V) int) []V {
	return slices.SortedFunc(maps.Values(rows), order)
}

// trim is what a time becomes in a row.
func trim(times ...*time.Time) {
	for _, t := range times {
		*t = fromMillis(millis(*t))
	}
}

func (t *memoryTx) Release(sha256 string) (fleet.Release, error) { return get(t.m.releases, sha256) }

func (t *memoryTx) ReleaseByVersion(project, chip, version string) (fleet.Release, error) {
	for _, r := range t.m.releases {
		if r.Project == project && r.Chip == chip && r.Version == version {
			return r, nil
		}
	}
	return fleet.Release{}, fleet.ErrNotFound
}

func (t *memoryTx) Releases() ([]fleet.Release, error) {
	return sorted(t.m.releases, func(a, b fleet.Release) int {
		return cmp.Or(b.PublishedAt.Compare(a.PublishedAt), cmp.Compare(a.SHA256, b.SHA256))
	}), nil
}

func (t *memoryTx) PutRelease(r fleet.Release) error {
	if err := t.may(); err != nil {
		return err
	}
	if old, err := t.ReleaseByVersion(r.Project, r.Chip, r.Version); err == nil && old.SHA256 != r.SHA256 {
		return t.conflict("two releases of one version")
	}
	trim(&r.BuildDate, &r.PublishedAt)
	set(t, t.m.releases, r.SHA256, r)
	return nil
}

func (t *memoryTx) Channel(project, chip, name string) (fleet.Channel, error) {
	return get(t.m.channels, [3]string{project, chip, name})
}

func (t *memoryTx) Channels() ([]fleet.Channel, error) {
	return sorted(t.m.channels, func(a, b fleet.Channel) int {
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Chip, b.Chip), cmp.Compare(a.Name, b.Name))
	}), nil
}

func (t *memoryTx) PutChannel(c fleet.Channel) error {
	if err := t.may(); err != nil {
		return err
	}
	if _, err := t.Release(c.SHA256); err != nil {
		return t.conflict("a channel without its release")
	}
	trim(&c.SetAt)
	set(t, t.m.channels, [3]string{c.Project, c.Chip, c.Name}, c)
	return nil
}

func (t *memoryTx) Device(id string) (fleet.Device, error) {
	d, err := get(t.m.devices, id)
	return cloneDevice(d), err
}

func (t *memoryTx) Devices() ([]fleet.Device, error) {
	list := sorted(t.m.devices, func(a, b fleet.Device) int { return cmp.Compare(a.ID, b.ID) })
	for i := range list {
		list[i] = cloneDevice(list[i])
	}
	return list, nil
}

func (t *memoryTx) PutDevice(d fleet.Device) error {
	if err := t.may(); err != nil {
		return err
	}
	d = cloneDevice(d)
	if d.Status.Phase == "" {
		d.Status = protocol.Status{} // a device that has said nothing
	}
	trim(&d.EnrolledAt, &d.FirstSeen, &d.LastSeen, &d.PhaseSince)
	set(t, t.m.devices, d.ID, d)
	return nil
}

// cloneDevice copies what a Device points at, so that no caller holds a row.
func cloneDevice(d fleet.Device) fleet.Device {
	if len(d.OldBoots) > 0 {
		d.OldBoots = slices.Clone(d.OldBoots)
	} else {
		d.OldBoots = nil
	}
	if d.Labels = maps.Clone(d.Labels); len(d.Labels) == 0 {
		d.Labels = nil
	}
	d.Doubts = d.Doubts.Clone()
	if d.Status.Battery != nil {
		battery := d.Status.Battery.Clone()
		d.Status.Battery = &battery
	}
	return d
}

func (t *memoryTx) Attempt(id string) (fleet.Attempt, error) { return get(t.m.attempts, id) }

func oldestFirst(a, b fleet.Attempt) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
}

func (t *memoryTx) AttemptsOf(device string, limit int) ([]fleet.Attempt, error) {
	var list []fleet.Attempt
	for _, a := range t.m.attempts {
		if a.DeviceID == device {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(a, b fleet.Attempt) int { return oldestFirst(b, a) })
	return list[:min(len(list), max(limit, 0))], nil
}

func (t *memoryTx) AttemptsBefore(a fleet.Attempt, limit int) ([]fleet.Attempt, error) {
	trim(&a.CreatedAt)
	all, err := t.AttemptsOf(a.DeviceID, len(t.m.attempts))
	var list []fleet.Attempt
	for _, b := range all {
		if oldestFirst(b, a) < 0 && len(list) < limit {
			list = append(list, b)
		}
	}
	return list, err
}

func (t *memoryTx) OpenAttempts() ([]fleet.Attempt, error) {
	var list []fleet.Attempt
	for _, ids := range t.m.open {
		for id := range ids {
			list = append(list, t.m.attempts[id])
		}
	}
	slices.SortFunc(list, oldestFirst)
	return list, nil
}

func (t *memoryTx) OpenAttemptsOf(device string) ([]fleet.Attempt, error) {
	var list []fleet.Attempt
	for id := range t.m.open[device] {
		list = append(list, t.m.attempts[id])
	}
	slices.SortFunc(list, oldestFirst)
	return list, nil
}

func (t *memoryTx) PutAttempt(a fleet.Attempt) error {
	if err := t.may(); err != nil {
		return err
	}
	if _, ok := t.m.devices[a.DeviceID]; !ok {
		return t.conflict("an attempt without its device")
	}
	trim(&a.CreatedAt, &a.ExpiresAt, &a.UpdatedAt, &a.EndedAt)
	set(t, t.m.attempts, a.ID, a)
	ids := t.m.open[a.DeviceID]
	if ids == nil {
		ids = make(map[string]struct{})
		t.m.open[a.DeviceID] = ids
	}
	_, was := ids[a.ID]
	if is := a.State == fleet.AttemptOpen; is && !was {
		set(t, ids, a.ID, struct{}{})
	} else if !is && was {
		t.undo = append(t.undo, func() { ids[a.ID] = struct{}{} })
		delete(ids, a.ID)
	}
	return nil
}

func (t *memoryTx) Keys(project string) ([]fleet.ProjectKey, error) {
	var list []fleet.ProjectKey
	for _, k := range t.m.keys {
		if k.Project == project || project == "" {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b fleet.ProjectKey) int {
		return cmp.Or(a.AddedAt.Compare(b.AddedAt), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Key, b.Key))
	})
	return list, nil
}

func (t *memoryTx) PutKey(k fleet.ProjectKey) error {
	if err := t.may(); err != nil {
		return err
	}
	trim(&k.AddedAt)
	set(t, t.m.keys, keyID{k.Project, k.Kind, k.Sequence, k.Key}, k)
	return nil
}

func (t *memoryTx) Operator(name string) (fleet.Operator, error) { return get(t.m.operators, name) }

func (t *memoryTx) OperatorByToken(sha256 string) (fleet.Operator, error) {
	for _, o := range t.m.operators {
		if o.TokenSHA256 == sha256 {
			return o, nil
		}
	}
	return fleet.Operator{}, fleet.ErrNotFound
}

func (t *memoryTx) PutOperator(o fleet.Operator) error {
	if err := t.may(); err != nil {
		return err
	}
	if old, err := t.OperatorByToken(o.TokenSHA256); err == nil && old.Name != o.Name {
		return t.conflict("two operators with one token")
	}
	trim(&o.CreatedAt, &o.ExpiresAt)
	set(t, t.m.operators, o.Name, o)
	return nil
}
