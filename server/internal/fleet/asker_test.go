package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// crossing is a store in which things happen at the worst moments: between what a View has read and what is done with it, and
// between the changes of an Update and its commit, when every reader still sees the old rows; and between the commit and its answer.
type crossing struct {
	fleet.Store
	inside      bool // of one of these: what they do goes through undisturbed
	viewed      func()
	uncommitted func()
	committed   func() // before Update says so
	answer      error  // of an Update that is committed all the same
}

func (s *crossing) View(ctx context.Context, fn func(fleet.Tx) error) error {
	err := s.Store.View(ctx, fn)
	s.cross(s.viewed)
	return err
}

// Update runs fn twice, as fleet.Store says it may.
func (s *crossing) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	undone := errors.New("undone")
	err := s.Store.Update(ctx, func(tx fleet.Tx) error { return errors.Join(fn(tx), undone) })
	if !errors.Is(err, undone) {
		return err
	}
	s.cross(s.uncommitted)
	if err := s.Store.Update(ctx, fn); err != nil {
		return err
	}
	s.cross(s.committed)
	if s.inside {
		return nil
	}
	return s.answer
}

func (s *crossing) cross(do func()) {
	if do == nil || s.inside {
		return
	}
	s.inside = true
	defer func() { s.inside = false }()
	do()
}

// askingWalk is a fleet that remembers and one that has nothing to remember, over the same rows.
type askingWalk struct {
	*fleet.Fleet
	t        *testing.T
	r        *rand.Rand
	store    *crossing
	ids      []string
	releases []fleet.Release
}

func newAskingWalk(t *testing.T, r *rand.Rand) *askingWalk {
	s := &crossing{Store: store.NewMemory()}
	w := &askingWalk{t: t, r: r, store: s, Fleet: newFleet(t, fleet.Config{Store: s}), ids: []string{"d1", "d2", "d3", "never"}}
	err := fleet.ChangeRows(t.Context(), w.Fleet, func(tx fleet.Tx) error {
		w.releases = nil
		for i, project := range []string{"bms", "bms", "bms", "charger"} {
			release := fleet.Release{SHA256: fmt.Sprintf("%064x", i+1), Project: project, Chip: "esp32", Version: fmt.Sprintf("1.%d.0", i), Size: int64(i+1) << 16, SecureVersion: uint32(i)}
			if i == 2 {
				release.MinVersion = "1.1.0"
			}
			w.releases = append(w.releases, release)
			if err := tx.PutRelease(release); err != nil {
				return err
			}
			channel := fleet.Channel{Project: project, Chip: "esp32", Name: []string{"beta", "stable", "stable", "stable"}[i], SHA256: release.SHA256}
			if err := tx.PutChannel(channel); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// put changes the rows of one device in what an offer depends on, and often in nothing else.
func (w *askingWalk) put(tx fleet.Tx, id string) error {
	d, err := tx.Device(id)
	if errors.Is(err, fleet.ErrNotFound) {
		return tx.PutDevice(fleet.Device{ID: id, FirstSeen: time.Unix(1, 0)})
	}
	if err != nil {
		return err
	}
	switch w.r.IntN(9) {
	case 0:
		d.Revoked = !d.Revoked
	case 1:
		d.Channel = pick(w.r, "", "beta", "stable")
	case 2:
		d.Status.Project = pick(w.r, "bms", "charger")
	case 3:
		d.Status.CurrentVersion = pick(w.r, "", "1.0.0", "1.1.0", "1.2.0")
	case 4:
		d.Status.SlotSize = pick[int64](w.r, 0, 1<<16, 2<<16)
	case 5:
		d.Status.SecureVersion = pick[uint32](w.r, 0, 1, 2)
	case 6:
		d.Status.ImageSHA256 = pick(w.r, "", w.releases[0].SHA256, w.releases[1].SHA256)
	default:
		a := fleet.Attempt{ID: fmt.Sprint(id, " ", w.r.IntN(3)), DeviceID: id, CreatedAt: time.Unix(int64(w.r.IntN(9)), 0),
			Action: pick(w.r, protocol.ActionUpdate, protocol.ActionUpdate, protocol.ActionRollback), Version: pick(w.r, "", "1.0.0", "1.1.0"),
			State: pick(w.r, fleet.AttemptOpen, fleet.AttemptOpen, fleet.AttemptSucceeded)}
		a.CommandID = a.ID
		return tx.PutAttempt(a)
	}
	return tx.PutDevice(d)
}

func (w *askingWalk) change() {
	if w.r.IntN(12) == 0 { // a transaction that changes its mind
		err := fleet.ChangeRows(w.t.Context(), w.Fleet, func(tx fleet.Tx) error {
			return errors.Join(w.put(tx, w.id()), fleet.ErrInvalid)
		})
		if !errors.Is(err, fleet.ErrInvalid) {
			w.t.Error(err)
		}
		return
	}
	seed, n := w.r.Uint64(), 1+w.r.IntN(3)
	err := fleet.ChangeRows(w.t.Context(), w.Fleet, func(tx fleet.Tx) error {
		own := *w
		own.r = rand.New(rand.NewPCG(seed, 0)) // both runs do the same
		for range n {
			if err := own.put(tx, own.id()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}

func (w *askingWalk) id() string { return pick(w.r, w.ids[:3]...) }

func (w *askingWalk) query(id string) fleet.Query {
	q := fleet.Query{Device: id}
	if w.r.IntN(4) == 0 {
		q.Project, q.Channel = pick(w.r, "", "bms", "charger"), pick(w.r, "", "beta")
	}
	return q
}

// wrong compares what is remembered with what the rows say, for every device.
func (w *askingWalk) wrong() (what string) {
	w.store.inside = true // an answer that was read before a change is none that can be compared
	defer func() { w.store.inside = false }()
	fresh := newFleet(w.t, fleet.Config{Store: w.store.Store})
	for _, id := range w.ids {
		q := w.query(id)
		for range 2 { // the second is remembered
			got, gotErr := w.Offer(w.t.Context(), q)
			want, wantErr := fresh.Offer(w.t.Context(), q)
			if !reflect.DeepEqual(got, want) || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				return fmt.Sprintf("%+v: got %s (%v), want %s (%v)", q, got.Release.Version, gotErr, want.Release.Version, wantErr)
			}
		}
	}
	return ""
}

// play takes n steps and returns the first wrong answer.
func (w *askingWalk) play(n int) string {
	ask := func() { _, _ = w.Offer(w.t.Context(), w.query(pick(w.r, w.ids...))) }
	return w.store.play(w.r, n, ask, w.change, w.wrong)
}

// play has reads and changes cross for n steps, and returns the first wrong answer.
func (s *crossing) play(r *rand.Rand, n int, read, change func(), wrong func() string) string {
	some := func() {
		for range r.IntN(5) {
			read() // old or new: nothing was acknowledged yet
		}
	}
	s.uncommitted = some
	s.viewed = func() {
		if r.IntN(3) == 0 {
			change()
		}
	}
	for range n {
		some()
		change()
		if what := wrong(); what != "" {
			return what
		}
	}
	return ""
}

// neverWrong takes walks, each of which returns its first wrong answer: there is none, but in some walk of a fleet that strikes
// nobody out.
func neverWrong(t *testing.T, walk func(r *rand.Rand, unstruck bool) string) {
	t.Helper()
	const walks = 40
	seed := uint64(time.Now().UnixNano())
	for n := range uint64(walks) {
		if what := walk(rand.New(rand.NewPCG(seed, n)), false); what != "" {
			t.Fatalf("seed %d, walk %d: %s", seed, n, what)
		}
	}
	for n := range uint64(walks) {
		if walk(rand.New(rand.NewPCG(seed, n)), true) != "" {
			return
		}
	}
	t.Errorf("seed %d: a fleet that strikes nobody out is not found", seed)
}

// What a device is offered is what its rows say, from the moment a change of them is acknowledged: however readings and
// changes cross, and whatever a transaction that was undone had put.
func TestWhatIsRememberedOfADeviceIsWhatItsRowsSay(t *testing.T) {
	neverWrong(t, func(r *rand.Rand, unstruck bool) string {
		w := newAskingWalk(t, r)
		if unstruck {
			fleet.Unstruck(w.Fleet)
		}
		what := w.play(60)
		if known, _ := fleet.Remembered(w.Fleet); known == 0 && what == "" {
			what = "nothing is remembered"
		}
		return what
	})
}

// Where nobody knows whether a change was committed, nothing is remembered until the database must know.
func TestNothingIsRememberedAfterAChangeInDoubt(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	w := newAskingWalk(t, rand.New(rand.NewPCG(1, 1)))
	f := newFleet(t, fleet.Config{Store: w.store, Now: func() time.Time { return now }})
	touch := func(tx fleet.Tx) error {
		return tx.PutDevice(fleet.Device{ID: "d1", Status: status("b", 1, protocol.PhaseIdle)})
	}
	known := func(want int) {
		t.Helper()
		_, _ = f.Offer(t.Context(), fleet.Query{Device: "d1"})
		if n, _ := fleet.Remembered(f); n != want {
			t.Errorf("%d devices are remembered, want %d", n, want)
		}
	}
	if err := fleet.ChangeRows(t.Context(), f, touch); err != nil {
		t.Fatal(err)
	}
	known(1)
	w.store.answer = errors.New("the connection was lost")
	if err := fleet.ChangeRows(t.Context(), f, touch); err == nil {
		t.Fatal("no error")
	}
	w.store.answer = nil
	known(0)
	now = now.Add(2*time.Minute - time.Second)
	known(0)
	now = now.Add(time.Second)
	known(1)
}

// Names that nobody has enrolled are not remembered, and of the others no more than there is room for.
func TestWhoeverAsksTakesABoundedRoom(t *testing.T) {
	f := newFleet(t, fleet.Config{Store: store.NewMemory()})
	_, limit := fleet.Remembered(f)
	err := fleet.ChangeRows(t.Context(), f, func(tx fleet.Tx) error {
		for i := range limit + 10 {
			if err := tx.PutDevice(fleet.Device{ID: fmt.Sprint("d", i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range limit + 10 {
		for _, id := range []string{fmt.Sprint("d", i), fmt.Sprint("stranger", i)} {
			if _, err := f.Offer(t.Context(), fleet.Query{Device: id}); !errors.Is(err, fleet.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	if n, _ := fleet.Remembered(f); n != limit {
		t.Errorf("%d are remembered, the bound is %d", n, limit)
	}
}

// TestADeviceThatIsRevokedIsOfferedNothingWhileOthersAsk is the same with real crossings.
func TestADeviceThatIsRevokedIsOfferedNothingWhileOthersAsk(t *testing.T) {
	w := newAskingWalk(t, rand.New(rand.NewPCG(1, 1)))
	f := newFleet(t, fleet.Config{Store: w.store.Store})
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	q := fleet.Query{Device: "d1", Project: "bms"}
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				_, _ = f.Offer(ctx, q)
			}
		})
	}
	for i := range 300 {
		revoked := i%2 == 1
		d := fleet.Device{ID: "d1", Revoked: revoked}
		put := func(tx fleet.Tx) error { return tx.PutDevice(d) }
		if i%4 > 1 {
			put = func(tx fleet.Tx) error { return tx.PutDevices([]fleet.Device{d}) }
		}
		if err := fleet.ChangeRows(t.Context(), f, put); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := f.Offer(t.Context(), q); errors.Is(err, fleet.ErrDenied) != revoked {
				t.Fatalf("change %d: revoked %t, answered %v", i, revoked, err)
			}
		}
	}
}

// A way to change the rows of a device that is new has to strike it out (audit.go), and is then named here.
func TestWhateverChangesADevicesRowsStrikesItOut(t *testing.T) {
	strikes := map[string]bool{"PutDevice": true, "PutDevices": true, "PutReports": true, "PutAttempt": true, "PutAttempts": true}
	rows := map[reflect.Type]bool{reflect.TypeFor[fleet.Device](): true, reflect.TypeFor[fleet.Attempt](): true}
	kind := reflect.TypeFor[fleet.Tx]()
	for i := range kind.NumMethod() {
		m := kind.Method(i)
		if m.Type.NumOut() != 1 { // the error: a change
			continue
		}
		for j := range m.Type.NumIn() {
			in := m.Type.In(j)
			if in.Kind() == reflect.Slice {
				in = in.Elem()
			}
			if rows[in] && !strikes[m.Name] {
				t.Errorf("Tx.%s puts rows of devices and strikes nobody out", m.Name)
			}
			if rows[in] {
				delete(strikes, m.Name)
			}
		}
	}
	if len(strikes) > 0 {
		t.Errorf("Tx has no %v", strikes)
	}
}
