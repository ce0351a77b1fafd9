package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// sleeper is a store that a process on it can be stopped at, as by SIGSTOP: while it is, its transactions wait to begin.
type sleeper struct {
	fleet.Store
	mu    sync.Mutex
	awake chan struct{} // closed while it runs
}

func newSleeper(s fleet.Store) *sleeper {
	awake := make(chan struct{})
	close(awake)
	return &sleeper{Store: s, awake: awake}
}

func (s *sleeper) stop() (wake func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awake = make(chan struct{})
	return sync.OnceFunc(func() { close(s.awake) })
}

func (s *sleeper) wait() {
	s.mu.Lock()
	awake := s.awake
	s.mu.Unlock()
	<-awake
}

func (s *sleeper) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	s.wait()
	return s.Store.Update(context.WithoutCancel(ctx), fn)
}

func (s *sleeper) View(ctx context.Context, fn func(fleet.Tx) error) error {
	s.wait()
	return s.Store.View(context.WithoutCancel(ctx), fn)
}

func member(t *testing.T, s fleet.Store, name string, set ...func(*fleet.Config)) *fleet.Fleet {
	t.Helper()
	me := &fleet.Share{Place: "place of " + name, Name: name}
	if err := fleet.Join(t.Context(), s, *me); err != nil {
		t.Fatal(err)
	}
	cfg := fleet.Config{Store: s, Share: me, AllowUnsigned: true}
	for _, change := range set {
		change(&cfg)
	}
	return newFleet(t, cfg)
}

// TestAPlannerThatSleptWritesNothing: its lease runs out while it is stopped, another takes over, and what it goes on with when it
// wakes up is refused by the number of the lease in the same transaction. Without the number it is written: that is the mutant.
func TestAPlannerThatSleptWritesNothing(t *testing.T) {
	for _, unfenced := range []bool{false, true} {
		t.Run(fmt.Sprintf("unfenced=%v", unfenced), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := store.NewMemory()
				slow := newSleeper(memory)
				a := member(t, slow, "a")
				if unfenced {
					fleet.Unfence(a)
				}
				defer start(t, a, newOutbox())()
				time.Sleep(5 * time.Second)
				b := member(t, memory, "b")
				defer start(t, b, newOutbox())()
				time.Sleep(5 * time.Second)
				if !fleet.Plans(a) || fleet.Plans(b) {
					t.Fatalf("a plans %v, b plans %v", fleet.Plans(a), fleet.Plans(b))
				}
				wake := slow.stop()
				late := make(chan error, 1)
				wrote := false
				go func() { // it has read its number, and is about to write
					late <- fleet.Planned(t.Context(), a, func(tx fleet.Tx) error {
						wrote = true
						return tx.PutDevice(fleet.Device{ID: "late", FirstSeen: time.Now()})
					})
				}()
				time.Sleep(time.Minute)
				if !fleet.Plans(b) || fleet.Plans(a) {
					t.Fatalf("after a minute: a plans %v, b plans %v", fleet.Plans(a), fleet.Plans(b))
				}
				wake()
				err := <-late
				var there error
				if viewErr := memory.View(t.Context(), func(tx fleet.Tx) error { _, there = tx.Device("late"); return nil }); viewErr != nil {
					t.Fatal(viewErr)
				}
				if refused := errors.Is(err, fleet.ErrNotPlanner) && !wrote && errors.Is(there, fleet.ErrNotFound); refused == unfenced {
					t.Errorf("the late change: %v, ran %v, row %v", err, wrote, there)
				}
				time.Sleep(time.Minute)
				if fleet.Plans(a) || !fleet.Plans(b) {
					t.Errorf("in the end a plans %v, b plans %v", fleet.Plans(a), fleet.Plans(b))
				}
			})
		})
	}
}

// TestTheLeaseIsHandedOn: at once by a server that ends, and there is never more than one planner.
func TestTheLeaseIsHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		a, b := member(t, memory, "a"), member(t, memory, "b")
		stop := start(t, a, newOutbox())
		time.Sleep(time.Second)
		defer start(t, b, newOutbox())()
		for range 100 {
			time.Sleep(time.Second)
			if fleet.Plans(b) {
				t.Fatal("b plans beside a")
			}
		}
		stop()
		time.Sleep(3 * time.Second)
		if !fleet.Plans(b) {
			t.Error("b does not plan 3 s after a has ended")
		}
	})
}

func TestWhoDoesNotBelongIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			there, comes fleet.Share
			want         string // "" = it may
		}{
			{fleet.Share{Place: "1", Name: "a"}, fleet.Share{Place: "2", Name: "b"}, ""},
			{fleet.Share{Place: "1", Name: "a"}, fleet.Share{Place: "1", Name: "a"}, ""},
			{fleet.Share{Place: "1"}, fleet.Share{Place: "1"}, ""},
			{fleet.Share{Place: "1", Name: "a"}, fleet.Share{Place: "2", Name: "a"}, `a server of the name "a" works on this database`},
			{fleet.Share{Place: "1", Name: "a"}, fleet.Share{Place: "2"}, "set replicas.name"},
			{fleet.Share{Place: "1"}, fleet.Share{Place: "2", Name: "b"}, "a server without replicas.name works on this database"},
			{fleet.Share{Place: "1"}, fleet.Share{Place: "2"}, "a server without replicas.name works on this database"},
		} {
			memory := store.NewMemory()
			if err := fleet.Join(t.Context(), memory, c.there); err != nil {
				t.Fatal(err)
			}
			err := fleet.Join(t.Context(), memory, c.comes)
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, fleet.ErrRefused) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%+v beside %+v: %v, want %q", c.comes, c.there, err, c.want)
			}
			time.Sleep(11 * time.Second)
			if err := fleet.Join(t.Context(), memory, c.comes); err != nil {
				t.Errorf("%+v after %+v was silent: %v", c.comes, c.there, err)
			}
		}
	})
}

// TestWhatOneServerIsToldHoldsAtTheOther: releases, logins and who watches, within a second.
func TestWhatOneServerIsToldHoldsAtTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		blobs, err := store.OpenFolder(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer blobs.Close()
		one := func(c *fleet.Config) { c.Blobs = blobs }
		a, b := member(t, memory, "a", one), member(t, memory, "b", one)
		outA, outB := newOutbox(), newOutbox()
		defer start(t, a, outA)()
		defer start(t, b, outB)()
		synctest.Wait()
		if _, err := b.Offer(t.Context(), fleet.Query{}); !errors.Is(err, fleet.ErrNotFound) {
			t.Fatalf("before anything is published: %v", err)
		}
		if err := fleet.UpdateAs(t.Context(), a, anna, func(tx fleet.Tx) error {
			r := fleet.Release{SHA256: strings.Repeat("1", 64), Project: "bms", Chip: "esp32c3", Version: "1.0.0", PublishedAt: time.Now()}
			return errors.Join(tx.PutRelease(r), tx.PutChannel(fleet.Channel{Project: r.Project, Chip: r.Chip, Name: fleet.DefaultChannel, SHA256: r.SHA256}))
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if o, err := b.Offer(t.Context(), fleet.Query{}); err != nil || o.Release.Version != "1.0.0" {
			t.Errorf("b offers %q, %v", o.Release.Version, err)
		}
		// Who signs out at one is out at the other.
		watching, leave := b.Watch()
		defer leave()
		if err := fleet.UpdateAs(t.Context(), a, anna, func(tx fleet.Tx) error { return tx.PutAccount(fleet.Account{Name: "anna", Password: "x"}) }); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(fleet.UpdateAs(t.Context(), a, anna, func(tx fleet.Tx) error {
			return tx.PutSession(fleet.Session{SHA256: fleet.TokenDigest("cookie"), Account: "anna", ExpiresAt: time.Now().Add(time.Hour), SeenAt: time.Now()})
		}), a.Logout(t.Context(), "nobody's")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if ended(watching) {
			t.Fatal("b's watchers are ended by whoever is not signed in")
		}
		if err := a.Logout(t.Context(), "cookie"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if !ended(watching) {
			t.Error("a second after the logout at a, b's watchers are not ended")
		}
		// A device is at b's broker, and its login is taken away at a.
		changes, stop := b.Watch()
		defer stop()
		if err := b.Connected(t.Context(), "d1"); err != nil {
			t.Fatal(err)
		}
		hear(t, b, "d1", status("b1", 1, protocol.PhaseIdle))
		if err := a.Revoke(t.Context(), anna, "d1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Contains(outB.drops, "d1") {
			t.Error("b has not ended the session of d1 a second after a has revoked it")
		}
		if !ended(changes) { // whoever watches is asked again who he is
			t.Error("b's watchers are not ended")
		}
	})
}

// ended says whether a watcher's channel is closed.
func ended(changes <-chan string) bool {
	for {
		select {
		case _, open := <-changes:
			if !open {
				return true
			}
		default:
			return false
		}
	}
}

// dozer is a connection to a broker at which a process can be stopped in the middle of sending.
type dozer struct {
	*outbox
	mu     sync.Mutex
	asleep chan struct{} // nil: it runs
	dozes  chan struct{} // closed when it has begun to send
}

func (d *dozer) Send(ctx context.Context, device string, cmd protocol.Command) error {
	d.mu.Lock()
	asleep := d.asleep
	d.mu.Unlock()
	if asleep != nil {
		close(d.dozes)
		<-asleep
	}
	return d.outbox.Send(ctx, device, cmd)
}

// TestAServerThatSleptWhileItSentIsCorrected: it has read a row and is about to publish; it wakes up when another plans and has
// published what is newer. Its old command lies at the broker then, and the planner puts the right one in its place, at once,
// because it is told. Where it is not told, that is the mutant, the old one lies there until the device has been silent for long.
func TestAServerThatSleptWhileItSentIsCorrected(t *testing.T) {
	for _, mute := range []bool{false, true} {
		t.Run(fmt.Sprintf("mute=%v", mute), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := func(c *fleet.Config) { c.ForeignSessions = true }
				memory := store.NewMemory()
				slow := newSleeper(memory)
				atBroker := newOutbox()
				doze := &dozer{outbox: atBroker, asleep: make(chan struct{}), dozes: make(chan struct{})}
				a, b := member(t, slow, "a", one), member(t, memory, "b", one)
				if mute {
					fleet.Mute(a)
				}
				defer start(t, a, doze)()
				time.Sleep(time.Second)
				defer start(t, b, atBroker)()
				hear(t, a, "d1", status("b1", 1, protocol.PhaseIdle))
				order := func(f *fleet.Fleet, version string) {
					t.Helper()
					if _, err := f.Order(t.Context(), anna, "d1", true, []byte(`{"action":"update","version":"`+version+`"}`)); err != nil {
						t.Fatal(err)
					}
				}
				order(a, "1.1.0")
				select {
				case <-doze.dozes:
				case <-time.After(2 * time.Minute):
					t.Fatal("a sends nothing")
				}
				wake := slow.stop()
				time.Sleep(time.Minute)
				if !fleet.Plans(b) {
					t.Fatal("b does not plan")
				}
				order(b, "1.2.0")
				said := func() string { cmd, _, _ := atBroker.get("d1"); return cmd.Version }
				for range 600 {
					if time.Sleep(100 * time.Millisecond); said() == "1.2.0" {
						break
					}
				}
				if got := said(); got != "1.2.0" {
					t.Fatalf("b has sent %q", got)
				}
				doze.mu.Lock()
				close(doze.asleep)
				doze.asleep = nil
				doze.mu.Unlock()
				wake()
				time.Sleep(2 * time.Second)
				if got := said(); (got == "1.2.0") == mute {
					t.Errorf("two seconds after a woke up the broker has %q", got)
				}
			})
		})
	}
}

// TestADeviceThatMovesIsOneDevice: what ends late at the broker it has left does not make it offline, and what died with a server
// does.
func TestADeviceThatMovesIsOneDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		slow := newSleeper(memory)
		a, b := member(t, slow, "a"), member(t, memory, "b")
		defer start(t, a, newOutbox())()
		defer start(t, b, newOutbox())()
		synctest.Wait()
		online := func() bool {
			d, err := b.Device(t.Context(), "d1")
			if err != nil {
				t.Fatal(err)
			}
			return d.Online
		}
		if err := errors.Join(a.Connected(t.Context(), "d1"), b.Connected(t.Context(), "d1"), a.Disconnected(t.Context(), "d1")); err != nil {
			t.Fatal(err)
		}
		hear(t, a, "d1", status("b1", 1, protocol.PhaseOffline)) // its will
		if !online() {
			t.Error("d1 is at b, and said to be gone because a's connection ended")
		}
		if err := errors.Join(a.Connected(t.Context(), "d1"), b.Disconnected(t.Context(), "d1")); err != nil {
			t.Fatal(err)
		}
		if !online() {
			t.Error("d1 is back at a, and said to be gone")
		}
		wake := slow.stop()
		time.Sleep(time.Minute)
		if online() {
			t.Error("a is dead for a minute, and d1 is said to be connected there")
		}
		wake()
	})
}

// TestAServerThatWorksAloneEndsWhenAnotherHasTakenItsPlace: it slept, and what it remembers is nobody's truth any more. Until it knows,
// it gives no answer from memory.
func TestAServerThatWorksAloneEndsWhenAnotherHasTakenItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		slow := newSleeper(memory)
		alone := func(s fleet.Store, place string) *fleet.Fleet {
			me := &fleet.Share{Place: place}
			if err := fleet.Join(t.Context(), s, *me); err != nil {
				t.Fatal(err)
			}
			return newFleet(t, fleet.Config{Store: s, Share: me, AllowUnsigned: true})
		}
		a := alone(slow, "a")
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { ended <- a.Run(ctx, newOutbox()) }()
		time.Sleep(5 * time.Second)
		revoke := func(f *fleet.Fleet, revoked bool) {
			if err := fleet.ChangeRows(t.Context(), f, func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "d1", Revoked: revoked}) }); err != nil {
				t.Fatal(err)
			}
		}
		revoke(a, false)
		ask := func() error { _, err := a.Offer(t.Context(), fleet.Query{Device: "d1"}); return err }
		if err := ask(); !errors.Is(err, fleet.ErrNotFound) {
			t.Fatalf("nothing is published: %v", err)
		}
		wake := slow.stop()
		time.Sleep(time.Minute)
		b := alone(memory, "b")
		defer start(t, b, newOutbox())()
		time.Sleep(time.Second)
		revoke(b, true)
		wake()
		if err := ask(); !errors.Is(err, fleet.ErrDenied) {
			t.Errorf("awake again, it answers a device that was revoked: %v", err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, fleet.ErrOusted) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("it goes on")
		}
	})
}

// changing is a store whose tables are of a newer version from some moment on.
type changing struct {
	fleet.Store
	outdated atomic.Bool
}

func (s *changing) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	if s.outdated.Load() {
		return fleet.ErrOutdated
	}
	return s.Store.Update(ctx, fn)
}

// TestAServerEndsWhenItsTablesAreOfANewerVersion: with one sentence, and within a beat.
func TestAServerEndsWhenItsTablesAreOfANewerVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &changing{Store: store.NewMemory()}
		f := member(t, s, "a")
		ended := make(chan error, 1)
		go func() { ended <- f.Run(t.Context(), newOutbox()) }()
		time.Sleep(5 * time.Second)
		s.outdated.Store(true)
		select {
		case err := <-ended:
			if !errors.Is(err, fleet.ErrOutdated) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("it goes on")
		}
	})
}

// TestStatusesThatServersShareMayOvertakeEachOther: a boot that is over may speak on for a minute where what it said was dealt to
// another server; the same a minute later, or where one server hears everything, is two boards.
func TestStatusesThatServersShareMayOvertakeEachOther(t *testing.T) {
	for _, c := range []struct {
		name    string
		foreign bool // one broker for all servers
		pause   time.Duration
		doubted bool
	}{
		{"at once", true, time.Second, false},
		{"a minute later", true, 61 * time.Second, true},
		{"a broker each", false, time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := member(t, store.NewMemory(), "a", func(cfg *fleet.Config) { cfg.ForeignSessions = c.foreign })
				defer start(t, f, newOutbox())()
				synctest.Wait()
				for _, said := range []struct {
					boot string
					seq  uint64
				}{{"b1", 1}, {"b2", 1}, {"b1", 2}, {"b2", 2}, {"b1", 3}} {
					hear(t, f, "d1", status(said.boot, said.seq, protocol.PhaseIdle))
					time.Sleep(c.pause)
				}
				d, err := f.Device(t.Context(), "d1")
				if err != nil {
					t.Fatal(err)
				}
				if doubted := len(d.Suspicions()) > 0; doubted != c.doubted {
					t.Errorf("suspicions: %+v", d.Suspicions())
				}
			})
		})
	}
}
