package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

func TestWhoComesAndLeavesIsNotedInGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: store.NewMemory()}
		f := newFleet(t, fleet.Config{Store: s})
		defer start(t, f, newOutbox())()
		synctest.Wait()
		before, began := s.updates.Load(), time.Now()
		for n := range 300 {
			if err := f.Connected(t.Context(), fmt.Sprintf("d%d", n)); err != nil {
				t.Fatal(err)
			}
		}
		if !time.Now().Equal(began) || s.updates.Load() != before {
			t.Errorf("%d commits in %v before the last had come", s.updates.Load()-before, time.Since(began))
		}
		time.Sleep(fleet.PresenceWait)
		synctest.Wait()
		if n := s.updates.Load() - before; n != 1 {
			t.Errorf("300 devices took %d commits", n)
		}
		devices, err := f.Devices(t.Context())
		if err != nil || len(devices) != 300 {
			t.Fatalf("%d devices (%v)", len(devices), err)
		}
		for _, d := range devices {
			if !d.Online || !d.LastSeen.Equal(began.Add(fleet.PresenceWait)) {
				t.Errorf("%s: online %v, seen %v", d.ID, d.Online, d.LastSeen)
			}
		}
		// A status is waited for, and who came before it is noted with it.
		before, began = s.updates.Load(), time.Now()
		if err := f.Disconnected(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is being gathered
		hear(t, f, "d2", status("b", 1, protocol.PhaseIdle))
		if d, err := f.Device(t.Context(), "d1"); err != nil || d.Online || !time.Now().Equal(began) || s.updates.Load() != before+1 {
			t.Errorf("d1 is online: %v (%v), after %v and %d commits", d.Online, err, time.Since(began), s.updates.Load()-before)
		}
		// More than a group holds does not wait.
		before = s.updates.Load()
		for n := range 501 {
			if err := f.Connected(t.Context(), fmt.Sprintf("d%d", n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := s.updates.Load() - before; n != 1 {
			t.Errorf("%d commits of a full group", n)
		}
	})
}

// A command that is not kept goes to whoever has a session here, also before his row says so.
func TestWhoHasJustComeCanBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, out := newFleet(t, fleet.Config{}), newOutbox()
		defer start(t, f, out)()
		synctest.Wait()
		hear(t, f, "d1", status("b", 1, protocol.PhaseIdle))
		tell := func() error {
			_, err := f.Command(t.Context(), teller{out}, anna, "d1", protocol.Command{Action: protocol.ActionStatus})
			return err
		}
		if err := f.Disconnected(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fleet.PresenceWait)
		synctest.Wait()
		if err := tell(); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("a device that is away: %v", err)
		}
		if err := f.Connected(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		if err := tell(); err != nil {
			t.Errorf("a device that has just come: %v", err)
		}
	})
}

// TestWhoCameLastIsWhatIsNoted has devices come, leave and speak in any order, and Run end in the middle of it: each row says what
// was last said of its device.
func TestWhoCameLastIsWhatIsNoted(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := &countingStore{Store: store.NewMemory(), slow: time.Duration(r.IntN(3)) * 10 * time.Millisecond}
			f := newFleet(t, fleet.Config{Store: s})
			if r.IntN(2) == 0 {
				s.slow = 0
			}
			stop := start(t, f, newOutbox())
			synctest.Wait()
			online := make([]bool, 20)
			var wg sync.WaitGroup
			for n := range online {
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				wg.Go(func() {
					id := fmt.Sprintf("d%d", n)
					for seq := range uint64(1 + r.IntN(40)) {
						var err error
						if online[n] = !online[n]; online[n] {
							err = f.Connected(t.Context(), id)
						} else {
							err = f.Disconnected(t.Context(), id)
						}
						if err != nil {
							t.Errorf("seed %d: %s: %v", seed, id, err)
						}
						if online[n] && r.IntN(3) == 0 {
							err := f.Fold(t.Context(), id, false, payload(t, status("b", seq+1, protocol.PhaseIdle)))
							if err != nil && !errors.Is(err, fleet.ErrStopped) {
								t.Errorf("seed %d: %s: %v", seed, id, err)
							}
						}
						if r.IntN(3) == 0 {
							time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
						}
					}
				})
			}
			time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
			stop()
			wg.Wait()
			devices, err := f.Devices(t.Context())
			if err != nil || len(devices) != len(online) {
				t.Fatalf("seed %d: %d devices (%v)", seed, len(devices), err)
			}
			for _, d := range devices {
				var n int
				if _, err := fmt.Sscanf(d.ID, "d%d", &n); err != nil || d.Online != online[n] {
					t.Errorf("seed %d: %s is online by its row: %v", seed, d.ID, d.Online)
				}
			}
		})
	}
}

// steps is a store whose next updates take so long.
type steps struct {
	fleet.Store
	next chan time.Duration
}

func (s steps) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	select {
	case d := <-s.next:
		time.Sleep(d)
	default:
	}
	return s.Store.Update(ctx, fn)
}

// TestWhoLeavesAfterRunIsNotedAfterHowHeCame: how he came waits for its commit when Run ends, and that he leaves needs no group.
func TestWhoLeavesAfterRunIsNotedAfterHowHeCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := steps{store.NewMemory(), make(chan time.Duration, 2)}
		f := newFleet(t, fleet.Config{Store: s})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		must(f.Connected(t.Context(), "d1"))
		s.next <- 10 * time.Millisecond
		s.next <- 50 * time.Millisecond
		time.Sleep(fleet.PresenceWait)
		synctest.Wait()
		must(f.Connected(t.Context(), "d2"))
		ended := make(chan struct{})
		go func() {
			stop()
			close(ended)
		}()
		time.Sleep(20 * time.Millisecond)
		must(f.Disconnected(t.Context(), "d2"))
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("Run does not end")
		}
		if d, err := f.Device(t.Context(), "d2"); err != nil || d.Online || len(s.next) != 0 {
			t.Errorf("online is %v (%v), %d steps not taken", d.Online, err, len(s.next))
		}
	})
}

// TestWhoComesWhileTheStoreIsAwayIsNotWaitedFor: nobody is told, so it is logged; and who leaves after it is noted.
func TestWhoComesWhileTheStoreIsAwayIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingStore{Store: store.NewMemory()}
		f := newFleet(t, fleet.Config{Store: s})
		defer start(t, f, newOutbox())()
		synctest.Wait()
		full := fmt.Errorf("disk full: %w", fleet.ErrStorage)
		s.fail.Store(&full)
		if err := f.Connected(t.Context(), "d1"); err != nil {
			t.Error(err)
		}
		time.Sleep(fleet.PresenceWait)
		synctest.Wait()
		s.fail.Store(nil)
		if err := errors.Join(f.Disconnected(t.Context(), "d1"), f.Connected(t.Context(), "d1")); err != nil {
			t.Error(err)
		}
		time.Sleep(fleet.PresenceWait)
		synctest.Wait()
		if d, err := f.Device(t.Context(), "d1"); err != nil || !d.Online {
			t.Errorf("online is %v (%v)", d.Online, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.Disconnected(ctx, "d1"); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
