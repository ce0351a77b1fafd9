package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

var anna = fleet.Identity{Name: "anna", Role: fleet.RoleOperator}

// outbox is a Commander that remembers what is retained for each device.
type outbox struct {
	mu       sync.Mutex
	retained map[string]protocol.Command
	sends    map[string]int
	clears   map[string]int
	drops    []string
	broken   error // returned by everything when set
}

func newOutbox() *outbox {
	return &outbox{retained: make(map[string]protocol.Command), sends: make(map[string]int), clears: make(map[string]int)}
}

func (o *outbox) Send(_ context.Context, device string, cmd protocol.Command) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		return o.broken
	}
	o.retained[device] = cmd
	o.sends[device]++
	return nil
}

func (o *outbox) Clear(_ context.Context, device string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		return o.broken
	}
	delete(o.retained, device)
	o.clears[device]++
	return nil
}

func (o *outbox) Drop(_ context.Context, device string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drops = append(o.drops, device)
	return nil
}

func (o *outbox) get(device string) (cmd protocol.Command, ok bool, sends int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	cmd, ok = o.retained[device]
	return cmd, ok, o.sends[device]
}

func (o *outbox) setBroken(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = err
}

// countingStore counts commits and can be told to fail.
type countingStore struct {
	fleet.Store
	updates atomic.Int64
	fail    atomic.Pointer[error]
	slow    time.Duration // what a commit costs
}

func (s *countingStore) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	s.updates.Add(1)
	if s.slow > 0 {
		time.Sleep(s.slow)
	}
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return s.Store.Update(ctx, fn)
}

// twice is a store that runs every change a second time, as PostgreSQL has to after a deadlock or a lost connection: what the
// first run did is undone, but what it left outside of the transaction is not. With it under the fleets of these tests, a
// change that does not begin anew shows in what they test.
type twice struct{ fleet.Store }

var errUndone = errors.New("undone by the test: the change is run again")

func (s twice) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	err := s.Store.Update(ctx, func(tx fleet.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return errUndone
	})
	if !errors.Is(err, errUndone) {
		return err
	}
	return s.Store.Update(ctx, fn)
}

func newFleet(t testing.TB, cfg fleet.Config) *fleet.Fleet {
	t.Helper()
	if cfg.Store == nil {
		cfg.Store = store.NewMemory()
	}
	if memory, ok := cfg.Store.(*store.Memory); ok {
		cfg.Store = twice{memory}
	}
	if cfg.Blobs == nil {
		blobs, err := store.OpenFolder(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = blobs.Close() })
		cfg.Blobs = blobs
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f, err := fleet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// start runs f; stop ends it and waits.
func start(t testing.TB, f *fleet.Fleet, out fleet.Commander) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, out) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func payload(t testing.TB, s protocol.Status) []byte {
	t.Helper()
	if s.Status == 0 {
		s.Status, _ = s.Phase.Code()
	}
	b, err := s.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func status(boot string, seq uint64, phase protocol.Phase) protocol.Status {
	return protocol.Status{BootID: boot, Seq: seq, Phase: phase, CurrentVersion: "1.0.0", Project: "bms", Chip: "esp32c3"}
}

func BenchmarkFoldToSQLite(b *testing.B) {
	for _, callers := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			db, err := store.OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "db"))
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			f := newFleet(b, fleet.Config{Store: db})
			stop := start(b, f, newOutbox())
			var next atomic.Int64
			waitRunning(b, f)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for {
						n := next.Add(1)
						if n > int64(b.N) {
							return
						}
						s := status("boot", uint64(n), protocol.PhaseDownloading)
						s.Message, s.BytesDone, s.BytesTotal, s.Slot = "downloading", n, 1<<20, "ota_0"
						if err := f.Fold(b.Context(), fmt.Sprintf("bms-%06x", n%10000), false, payload(b, s)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "folds/s")
			stop()
		})
	}
}

// waitRunning returns when f takes folds.
func waitRunning(t testing.TB, f *fleet.Fleet) {
	t.Helper()
	for {
		err := f.Fold(t.Context(), "warm-up", false, payload(t, status("b", 1, protocol.PhaseIdle)))
		if !errors.Is(err, fleet.ErrStopped) {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFoldsAreCommittedInGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: store.NewMemory(), slow: 10 * time.Millisecond}
		f := newFleet(t, fleet.Config{Store: s})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		time.Sleep(time.Second)
		before := s.updates.Load()
		var wg sync.WaitGroup
		for n := range 2001 {
			wg.Go(func() {
				if err := f.Fold(t.Context(), fmt.Sprintf("d%d", n), false, payload(t, status("b", 1, protocol.PhaseIdle))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := s.updates.Load() - before; n < 5 || n > 8 {
			t.Errorf("2001 statuses took %d commits, want groups of up to 500", n)
		}
		devices, err := f.Devices(t.Context())
		if err != nil || len(devices) != 2001 {
			t.Errorf("%d devices are stored (%v), want 2001", len(devices), err)
		}
		stop()
	})
}

func TestFoldOutsideRunIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Config{})
		fold := func() error {
			return f.Fold(t.Context(), "d1", false, payload(t, status("b", 1, protocol.PhaseIdle)))
		}
		if err := fold(); !errors.Is(err, fleet.ErrStopped) {
			t.Errorf("before Run: %v, want ErrStopped", err)
		}
		stop := start(t, f, newOutbox())
		synctest.Wait()
		if err := fold(); err != nil {
			t.Error(err)
		}
		stop()
		if err := fold(); !errors.Is(err, fleet.ErrStopped) {
			t.Errorf("after Run: %v, want ErrStopped", err)
		}
		if err := f.Run(t.Context(), newOutbox()); err == nil {
			t.Error("a second Run is no error")
		}
	})
}

// TestAcknowledgedFoldsAreStoredWhenRunEnds ends Run in the middle of a storm: what was answered with nil is there,
// what is not there was answered with an error, and nobody waits for ever.
func TestAcknowledgedFoldsAreStoredWhenRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: store.NewMemory(), slow: 10 * time.Millisecond}
		f := newFleet(t, fleet.Config{Store: s})
		stop := start(t, f, newOutbox())
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		errs := make([]error, 3000)
		for n := range errs {
			wg.Go(func() {
				errs[n] = f.Fold(t.Context(), fmt.Sprintf("d%d", n), false, payload(t, status("b", 1, protocol.PhaseIdle)))
			})
		}
		time.Sleep(25 * time.Millisecond)
		stop()
		wg.Wait()
		var taken int
		for n, err := range errs {
			_, gone := f.Device(t.Context(), fmt.Sprintf("d%d", n))
			if (err == nil) != (gone == nil) {
				t.Errorf("fold %d was answered %v, and its row: %v", n, err, gone)
			}
			if err == nil {
				taken++
			}
		}
		if taken == 0 || taken == len(errs) {
			t.Errorf("%d of %d were taken: the end did not come in the middle", taken, len(errs))
		}
	})
}

func TestFoldRefusesWhatIsNoStatusOfThatDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Config{})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		other := status("b", 1, protocol.PhaseIdle)
		other.DeviceID = "d2"
		good := payload(t, status("b", 1, protocol.PhaseIdle))
		for _, c := range []struct {
			name, device string
			shared       bool
			payload      []byte
			want         error
		}{
			{"not JSON", "d1", false, []byte("hello"), fleet.ErrInvalid},
			{"unknown phase", "d1", false, []byte(`{"phase":"dancing"}`), fleet.ErrInvalid},
			{"of another device", "d1", false, payload(t, other), fleet.ErrDenied},
			{"shared topic", "d1", true, good, fleet.ErrDenied},
			{"no device id", "a/b", false, good, fleet.ErrInvalid},
		} {
			if err := f.Fold(t.Context(), c.device, c.shared, c.payload); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		}
		if devices, err := f.Devices(t.Context()); err != nil || len(devices) != 0 {
			t.Errorf("%d devices (%v), want none", len(devices), err)
		}
		stop()
	})
}

func TestFoldThatCannotBeStoredIsNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: store.NewMemory()}
		f := newFleet(t, fleet.Config{Store: s})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		full := fmt.Errorf("disk full: %w", fleet.ErrStorage)
		s.fail.Store(&full)
		fold := func() error {
			return f.Fold(t.Context(), "d1", false, payload(t, status("b", 1, protocol.PhaseIdle)))
		}
		if err := fold(); !errors.Is(err, fleet.ErrStorage) {
			t.Errorf("%v, want ErrStorage", err)
		}
		s.fail.Store(nil)
		if err := fold(); err != nil {
			t.Errorf("after the fault: %v", err)
		}
		stop()
	})
}

func TestRevokedDeviceIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, out := newFleet(t, fleet.Config{}), newOutbox()
		stop := start(t, f, out)
		synctest.Wait()
		if _, err := f.Enroll(t.Context(), anna, "d1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Revoke(t.Context(), anna, "d1"); err != nil {
			t.Fatal(err)
		}
		// One fold of a revoked device must not spoil the group it is in.
		var wg sync.WaitGroup
		for _, id := range []string{"d1", "d2", "d3"} {
			wg.Go(func() {
				err := f.Fold(t.Context(), id, false, payload(t, status("b", 1, protocol.PhaseIdle)))
				if id == "d1" && !errors.Is(err, fleet.ErrDenied) || id != "d1" && err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if len(out.drops) == 0 || out.drops[len(out.drops)-1] != "d1" {
			t.Errorf("dropped sessions: %v, want d1", out.drops)
		}
		stop()
	})
}

func TestReconnectNeverShowsADeviceAsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Config{})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		online := func(want bool) {
			t.Helper()
			time.Sleep(fleet.PresenceWait)
			synctest.Wait()
			if d, err := f.Device(t.Context(), "d1"); err != nil || d.Online != want {
				t.Errorf("online is %v (%v), want %v", d.Online, err, want)
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		must(f.Connected(t.Context(), "d1"))
		online(true)
		must(f.Connected(t.Context(), "d1")) // comes back before the old session was given up
		must(f.Fold(t.Context(), "d1", false, payload(t, protocol.Status{Phase: protocol.PhaseOffline, BootID: "b"})))
		must(f.Disconnected(t.Context(), "d1"))
		online(true)
		must(f.Disconnected(t.Context(), "d1"))
		online(false)
		stop()
		must(f.Connected(t.Context(), "d1"))
		online(true)
	})
}

// poisoned is a store in which the row of one device cannot be read.
type poisoned struct{ fleet.Store }

type poisonedTx struct{ fleet.Tx }

func (s poisoned) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	return s.Store.Update(ctx, func(tx fleet.Tx) error { return fn(poisonedTx{tx}) })
}

func (t poisonedTx) Device(id string) (fleet.Device, error) {
	if id == "poison" {
		return fleet.Device{}, fmt.Errorf("row cannot be read: %w", fleet.ErrStorage)
	}
	return t.Tx.Device(id)
}

func (t poisonedTx) DevicesIn(ids []string) ([]fleet.Device, error) {
	for _, id := range ids {
		if _, err := t.Device(id); id == "poison" {
			return nil, err
		}
	}
	return t.Tx.DevicesIn(ids)
}

func TestOneUnreadableRowSilencesOneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: poisoned{store.NewMemory()}, slow: time.Millisecond}
		f := newFleet(t, fleet.Config{Store: s})
		stop := start(t, f, newOutbox())
		defer stop()
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() {
				id := fmt.Sprintf("d%d", n)
				if n == 25 {
					id = "poison"
				}
				err := f.Fold(t.Context(), id, false, payload(t, status("b", 1, protocol.PhaseIdle)))
				if (err != nil) != (id == "poison") {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestSeedFirmwareIsHeardOnTheSharedTopicWhenAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t, fleet.Config{AcceptSeedStatus: true})
		stop := start(t, s.Fleet, newOutbox())
		defer stop()
		synctest.Wait()
		say := func(code int, version string) {
			t.Helper()
			text := fmt.Sprintf(`{"timestamp_us":%d,"uptime_sec":1,"status":%d,"progress_pct":0,"message":"","current_version":%q,"available_version":"","rollback_pending":false,"free_heap":1}`, time.Now().UnixMicro(), code, version)
			if err := s.Fold(t.Context(), "old-one", true, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		say(0, "1.0.0")
		order(t, s.Fleet, "", `{"action":"update","force":false}`)
		for i, code := range []int{1, 2, 3} {
			say(code, "1.0.0")
			if a := newest(t, s.Fleet, "old-one"); a.State != fleet.AttemptOpen || a.Phase != []protocol.Phase{protocol.PhaseChecking, protocol.PhaseDownloading, protocol.PhaseVerifying}[i] {
				t.Errorf("after code %d: %+v", code, a)
			}
		}
		say(4, "1.1.0")
		if a := newest(t, s.Fleet, "old-one"); a.State != fleet.AttemptSucceeded {
			t.Errorf("after success: %+v", a)
		}
	})
}

// Sessions end with the login that they were opened under. The first login has none before it: what it opens is not ended for it.
func TestTheFirstLoginEndsNoSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, out := newFleet(t, fleet.Config{}), newOutbox()
		stop := start(t, f, out)
		synctest.Wait()
		for _, want := range []int{0, 1} {
			if _, err := f.Enroll(t.Context(), anna, "d1"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if len(out.drops) != want {
				t.Errorf("dropped sessions: %v, want %d", out.drops, want)
			}
		}
		stop()
	})
}
