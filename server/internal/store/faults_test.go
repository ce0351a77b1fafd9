package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/durable/crashdisk"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// fault is what happens to the disk of a site.
type fault struct {
	name  string
	err   error
	stays bool // until it is repaired; else one operation fails
	// folds has the log folded into the database after nearly every commit. That may fail behind a commit that stands.
	folds bool
}

var faults = []fault{
	{"disk full", syscall.ENOSPC, true, false}, {"one I/O error", syscall.EIO, false, false}, {"I/O errors", syscall.EIO, true, false},
	{"disk full while the log is folded in", syscall.ENOSPC, true, true}, {"I/O errors while the log is folded in", syscall.EIO, true, true},
}

// strike lets the nth operation from now fail, and all after it where the fault stays. failed says what has.
func (s *site) strike(f fault, n int) (failed func() []crashdisk.Op, repair func()) {
	var mu sync.Mutex
	var list []crashdisk.Op
	begin := -1
	s.log.SetBefore(func(at int, op crashdisk.Op) error {
		if begin < 0 {
			begin = at
		}
		// What gives space back, or was written before, works on a full disk.
		if f.err == syscall.ENOSPC && (op.Kind == crashdisk.Remove || op.Kind == crashdisk.Close || op.Kind == crashdisk.Truncate) {
			return nil
		}
		if at-begin == n || f.stays && at-begin > n {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, op)
			return f.err
		}
		return nil
	})
	failed = func() []crashdisk.Op {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
	return failed, func() { s.log.SetBefore(nil) }
}

// TestFaultAtEveryOperationFailsTheRequestWhole lets every operation of every kind of request fail in turn. The request
// fails whole and says why; reading goes on meanwhile; when the disk is well again everything works, without a restart.
func TestFaultAtEveryOperationFailsTheRequestWhole(t *testing.T) {
	for _, kind := range faults {
		t.Run(kind.name, func(t *testing.T) {
			s := newSite(t, newDir(t))
			if kind.folds {
				pragma("wal_autocheckpoint", "4")(s)
			}
			synctest.Test(t, func(t *testing.T) {
				s.t = t
				s.failEverywhere(kind)
			})
		})
	}
}

func (s *site) failEverywhere(kind fault) {
	t, ctx := s.t, s.t.Context()
	f, b, stop := s.serve()
	defer stop()
	published := 0
	publish := func() error {
		published++
		return publishBy(ctx, f, s.dir, fmt.Sprintf("1.0.%d", published), 40<<10)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(publish())
	must(publish())
	for _, id := range []string{"d1", "d2"} {
		b.say(id, protocol.PhaseIdle, "1.0.0", "", protocol.ReasonNone)
	}
	releases, err := f.Releases(ctx)
	must(err)
	even, rollouts := false, 0
	var rollout fleet.Rollout
	create := func() (err error) {
		rollouts++
		rollout, err = f.CreateRollout(ctx, root, fleet.RolloutRequest{Version: "1.0.1", Key: fmt.Sprint(rollouts),
			Policy: fleet.Policy{Selector: fleet.Selector{IDs: []string{"d1", "d2"}}, Waves: []fleet.Wave{{Count: 2}}}})
		return err
	}
	must(create())
	for _, c := range []struct {
		name string
		do   func() error // a new request at every call
	}{
		{"publish", publish},
		{"channel", func() error {
			even = !even
			_, err := f.SetChannel(ctx, root, "bms", "esp32c3", "beta", map[bool]string{true: "1.0.1", false: "1.0.2"}[even])
			return err
		}},
		{"start", func() error {
			_, err := f.Order(ctx, root, "d1", false, []byte(`{"action":"update","version":"1.0.1"}`))
			return err
		}},
		{"fold", func() error { return b.tell("d2", protocol.PhaseIdle, "1.0.0", "", protocol.ReasonNone) }},
		{"rollout create", create},
		{"rollout pause", func() error {
			_, err := f.Pause(ctx, root, rollout.ID)
			if err == nil {
				s.log.SetBefore(nil)
				_, err = f.Resume(ctx, root, rollout.ID)
			}
			return err
		}},
	} {
		tried := 0
		for ; ; tried++ {
			synctest.Wait()
			before, err := s.db.Dump(ctx)
			must(err)
			failed, repair := s.strike(kind, tried)
			answer := c.do()
			what := fmt.Sprintf("%s, %s from operation %d", c.name, kind.name, tried)
			if len(failed()) == 0 && answer == nil {
				repair()
				break
			}
			if len(failed()) == 0 {
				t.Fatalf("%s: nothing failed, and the answer is %v", what, answer)
			}
			first := failed()[0]
			what += fmt.Sprintf(" (%s %s)", first.Kind, first.Name)
			after, err := s.db.Dump(ctx)
			must(err)
			switch {
			case answer == nil && !kind.folds:
				t.Errorf("%s: the answer is that it went well", what)
			case answer == nil && after == before:
				t.Errorf("%s: the answer is that it went well, and nothing is there", what)
			case answer != nil && after != before:
				t.Errorf("%s: refused, and yet there is a change: %s", what, difference(before, after))
			case answer != nil && !errors.Is(answer, fleet.ErrStorage):
				t.Errorf("%s: %v, want ErrStorage", what, answer)
			case answer != nil && kind.err == syscall.ENOSPC && first.Kind == crashdisk.Write && !errors.Is(answer, syscall.ENOSPC):
				t.Errorf("%s: %v does not say that the disk is full", what, answer)
			}
			for _, r := range releases {
				if err := whole(s.t.Context(), s.folder, r.SHA256); err != nil {
					t.Errorf("%s: meanwhile: %v", what, err)
				}
			}
			repair()
			if err := c.do(); err != nil {
				t.Fatalf("%s, and when it is repaired: %v", what, err)
			}
			if tried > 500 {
				t.Fatalf("%s: no end", what)
			}
		}
		t.Logf("%s: %d operations failed in turn", c.name, tried)
	}
	if wrong, err := s.db.Check(ctx); err != nil || len(wrong) > 0 {
		t.Errorf("at the end the database is damaged: %v %v", wrong, err)
	}
}

// TestProbeAsksTheDisk: what says that a server is ready must not say so of a database that only reads.
func TestProbeAsksTheDisk(t *testing.T) {
	s := newSite(t, t.TempDir())
	db := openDB(t, filepath.Join(s.dir, "bmsota.db"))
	for _, kind := range faults {
		for n := 0; ; n++ {
			failed, repair := s.strike(kind, n)
			err := db.Probe(t.Context())
			repair()
			if len(failed()) == 0 {
				if err != nil || n == 0 {
					t.Errorf("a disk that is well: %v after %d operations", err, n)
				}
				break
			}
			if !errors.Is(err, fleet.ErrStorage) {
				t.Errorf("%s at %s: %v, want ErrStorage", kind.name, failed()[0].Kind, err)
			}
		}
	}
}

// TestFaultWhileOpeningLeavesADatabaseThatOpens: a first start and one after an update of the program, each of their
// operations failing in turn. The bubble is for goose, which tries some of its work again after a second.
func TestFaultWhileOpeningLeavesADatabaseThatOpens(t *testing.T) {
	for i, old := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			for ; openThrough(t, faults[i], n, old); n++ {
			}
			if n < 20 {
				t.Errorf("%d operations", n)
			}
			t.Logf("tables of an old version: %v, %s: %d operations failed in turn", old, faults[i].name, n)
		})
	}
}

// openThrough opens a database while the nth operation fails, and once more; it says whether there was such an operation.
func openThrough(t *testing.T, kind fault, n int, old bool) (struck bool) {
	t.Helper()
	s := newSite(t, t.TempDir())
	path := filepath.Join(s.dir, "bmsota.db")
	if old {
		const operator = `INSERT INTO operators (name, token_sha256, created_at, revoked) VALUES ('operator', 't1', 1, 0)`
		if err := store.MakeVersion1(t.Context(), path, operator); err != nil {
			t.Fatal(err)
		}
	}
	failed, repair := s.strike(kind, n)
	db, err := store.OpenSQLite(t.Context(), path)
	repair()
	if err == nil {
		err = db.Close()
	}
	struck = len(failed()) > 0
	what := fmt.Sprintf("tables of an old version: %v, %s from operation %d %v", old, kind.name, n, failed())
	if err != nil && (!struck || !errors.Is(err, fleet.ErrStorage)) {
		t.Errorf("%s: %v, want ErrStorage", what, err)
	}
	if db, err = store.OpenSQLite(t.Context(), path); err != nil {
		t.Errorf("%s, and when it is repaired: %v", what, err)
		return struck
	}
	if wrong, err := db.Check(t.Context()); err != nil || len(wrong) > 0 {
		t.Errorf("%s: damaged: %v %v", what, wrong, err)
	}
	if old {
		view(t, db, func(tx fleet.Tx) error {
			_, err := tx.Operator("operator")
			return err
		})
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	return struck
}

// TestRolloutGoesOnWhenTheDiskIsWellAgain: what the server does by itself has nobody to refuse, and is done later.
func TestRolloutGoesOnWhenTheDiskIsWellAgain(t *testing.T) {
	for _, kind := range faults[:3] {
		t.Run(kind.name, func(t *testing.T) {
			s := newSite(t, newDir(t))
			synctest.Test(t, func(t *testing.T) {
				s.t = t
				f, b, stop := s.serve()
				defer stop()
				for _, v := range []string{"1.0.0", "2.0.0"} {
					if err := publishBy(t.Context(), f, s.dir, v, 40<<10); err != nil {
						t.Fatal(err)
					}
				}
				for _, id := range []string{"d1", "d2", "d3"} {
					b.say(id, protocol.PhaseIdle, "1.0.0", "", protocol.ReasonNone)
					if err := f.Connected(t.Context(), id); err != nil {
						t.Fatal(err)
					}
				}
				r, err := f.CreateRollout(t.Context(), root, fleet.RolloutRequest{Version: "2.0.0", Policy: fleet.Policy{
					Selector: fleet.Selector{IDs: []string{"d1", "d2", "d3"}}, Waves: []fleet.Wave{{Count: 1, Soak: time.Minute}, {Count: 3}}}})
				if err != nil {
					t.Fatal(err)
				}
				struck := 0
				for n := 0; n < 300; n++ {
					failed, repair := s.strike(kind, n%7)
					time.Sleep(1500 * time.Millisecond)
					struck += min(1, len(failed()))
					repair()
					if n%3 == 2 { // twice nothing is well for long enough
						time.Sleep(2 * time.Second)
						b.work("2.0.0")
					}
					v, err := f.Rollout(t.Context(), r.ID)
					if err != nil {
						t.Fatal(err)
					}
					if v.State == fleet.RolloutDone {
						if struck == 0 || v.Figures.Succeeded != 3 {
							t.Errorf("%d faults, %+v", struck, v.Figures)
						}
						t.Logf("done through %d faults", struck)
						return
					}
				}
				t.Error("the rollout does not go on")
			})
		})
	}
}
