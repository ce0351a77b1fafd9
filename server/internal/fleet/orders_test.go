package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// many is how many devices these tests have: an order to them has several parts, and the last is not a whole one.
const many = 1700

func nth(i int) string { return fmt.Sprintf("d%04d", i) }

// crowd is a store with many devices that are away, each with an older command open: one that is not sent again.
func crowd(t *testing.T) *store.Memory {
	t.Helper()
	memory := store.NewMemory()
	old := time.Now().Add(-time.Hour)
	err := memory.Update(t.Context(), func(tx fleet.Tx) error {
		for i := range many {
			d := fleet.Device{ID: nth(i), FirstSeen: old, Status: status("b", 1, protocol.PhaseIdle)}
			a := fleet.Attempt{ID: "old/" + d.ID, CommandID: "old", DeviceID: d.ID, Action: protocol.ActionRollback, State: fleet.AttemptOpen, CreatedAt: old, ExpiresAt: old.Add(1000 * time.Hour)}
			if err := errors.Join(tx.PutDevice(d), tx.PutAttempt(a)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return memory
}

func underWay(t *testing.T, s fleet.Store) (list []fleet.Order) {
	t.Helper()
	if err := s.View(t.Context(), func(tx fleet.Tx) (err error) { list, err = tx.Orders(); return err }); err != nil {
		t.Fatal(err)
	}
	return list
}

// attemptsAt are the attempts of all devices at a command, by device.
func attemptsAt(t *testing.T, s fleet.Store, command string) map[string][]fleet.Attempt {
	t.Helper()
	of := make(map[string][]fleet.Attempt)
	if err := s.View(t.Context(), func(tx fleet.Tx) error {
		for i := range many {
			list, err := tx.AttemptsIn([]string{command + "/" + nth(i)})
			if err != nil {
				return err
			}
			if len(list) > 0 {
				of[nth(i)] = list
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return of
}

// commands counts the open attempts by command, and the rows of the log that an attempt at one was begun.
func commands(t *testing.T, s fleet.Store) (open, begun map[string]int) {
	t.Helper()
	open, begun = make(map[string]int), make(map[string]int)
	if err := s.View(t.Context(), func(tx fleet.Tx) error {
		list, err := tx.OpenAttempts()
		if err != nil {
			return err
		}
		for _, a := range list {
			open[a.CommandID]++
		}
		rows, err := tx.AuditPage(fleet.AuditQuery{What: audit.AttemptBegin, Limit: 100 * many})
		for _, e := range rows {
			begun[e.Details.Get("command")]++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return open, begun
}

func equal[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// dying is a store at which its process dies: after some changes there are no others.
type dying struct {
	fleet.Store
	left  atomic.Int64
	apart bool // the mutant: how far an order is is a change of its own, before the rows
}

func newDying(s fleet.Store, changes int64) *dying {
	d := &dying{Store: s}
	d.left.Store(changes)
	return d
}

var errDead = fmt.Errorf("%w: the process is dead", fleet.ErrStorage)

func (s *dying) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	left := s.left.Add(-1)
	if left >= 0 {
		return s.Store.Update(ctx, fn)
	}
	if left == -1 && s.apart {
		var moves []func(fleet.Tx) error
		err := s.Store.Update(ctx, func(tx fleet.Tx) error {
			moves = nil
			return errors.Join(fn(&apartTx{tx, &moves}), errUndone)
		})
		if !errors.Is(err, errUndone) {
			return err
		}
		if err := s.Store.Update(ctx, func(tx fleet.Tx) error {
			for _, move := range moves {
				if err := move(tx); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return errDead
}

// apartTx keeps what is said of orders for another transaction.
type apartTx struct {
	fleet.Tx
	moves *[]func(fleet.Tx) error
}

func (t *apartTx) PutOrder(o fleet.Order) error {
	*t.moves = append(*t.moves, func(tx fleet.Tx) error { return tx.PutOrder(o) })
	return nil
}

func (t *apartTx) DeleteOrder(command string) error {
	*t.moves = append(*t.moves, func(tx fleet.Tx) error { return tx.DeleteOrder(command) })
	return nil
}

// TestOrderThatIsKilledBetweenItsPartsIsMadeOnceForEveryDevice: whoever runs next goes on with it, and sends each device its command
// once. Given again under its id it is the same order, while it is under way and after. With the point that it has reached in
// another transaction than the rows up to there, devices have none: that is the mutant.
func TestOrderThatIsKilledBetweenItsPartsIsMadeOnceForEveryDevice(t *testing.T) {
	const text = `{"action":"update","id":"u1"}`
	for _, c := range []struct {
		parts         int64
		again, mutant bool
	}{{1, false, false}, {2, false, false}, {3, false, false}, {1, true, false}, {3, true, false}, {2, false, true}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := crowd(t)
				dead := newDying(twice{memory}, c.parts)
				dead.apart = c.mutant
				if _, err := newFleet(t, fleet.Config{Store: dead}).Order(t.Context(), anna, "", false, []byte(text)); !errors.Is(err, fleet.ErrUnderWay) || errors.Is(err, fleet.ErrStorage) {
					t.Fatalf("killed after %d parts: %v", c.parts, err)
				}
				if list := underWay(t, memory); len(list) != 1 || list[0].Command.ID != "u1" || list[0].By != anna {
					t.Fatalf("under way: %+v", list)
				}
				f, out := newFleet(t, fleet.Config{Store: memory}), newOutbox()
				if c.again { // before it has gone on by itself
					equal(t, "goes out as", order(t, f, "", text).ID, "u1")
				}
				time.Sleep(10 * time.Second)
				stop := start(t, f, out)
				defer stop()
				time.Sleep(20 * time.Second)
				synctest.Wait()
				open, begun := commands(t, memory)
				if c.mutant {
					if open["u1"] == many {
						t.Error("the mutant is not noticed")
					}
					return
				}
				equal(t, "open attempts at it", open["u1"], many)
				equal(t, "that were begun", begun["u1"], many)
				equal(t, "open attempts at the older one", open["old"], 0)
				equal(t, "orders under way", len(underWay(t, memory)), 0)
				for i := range many {
					if cmd, retained, sends := out.get(nth(i)); cmd.ID != "u1" || !retained || sends != 1 {
						t.Fatalf("%s was sent %+v, %d times", nth(i), cmd, sends)
					}
				}
				before := attemptsAt(t, memory, "u1")
				equal(t, "goes out as", order(t, f, "", text).ID, "u1")
				_, begun = commands(t, memory)
				equal(t, "begun when it is given again", begun["u1"], many)
				for id, list := range attemptsAt(t, memory, "u1") {
					if !slices.Equal(list, before[id]) {
						t.Fatalf("%s: given again: %+v, before %+v", id, list, before[id])
					}
				}
			})
		})
	}
}

// TestOrderThatWasNotBegunLeavesNothing: it fails whole, and is not answered with "under way".
func TestOrderThatWasNotBegunLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		_, err := newFleet(t, fleet.Config{Store: newDying(twice{memory}, 0)}).Order(t.Context(), anna, "", false, []byte(`{"action":"update","id":"u1"}`))
		if !errors.Is(err, fleet.ErrStorage) || errors.Is(err, fleet.ErrUnderWay) {
			t.Errorf("%v", err)
		}
		open, _ := commands(t, memory)
		equal(t, "open attempts at it", open["u1"], 0)
		equal(t, "orders under way", len(underWay(t, memory)), 0)
	})
}

// between is a store that does something between two parts of an order, once: before the change that is the nth.
type between struct {
	fleet.Store
	nth int64
	do  func()
}

func (s *between) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	if s.nth--; s.nth == 0 {
		s.do()
	}
	return s.Store.Update(ctx, fn)
}

// orderWith gives an order to all and does something after its first part.
func orderWith(t *testing.T, cfg fleet.Config, memory *store.Memory, do func()) error {
	t.Helper()
	cfg.Store = &between{Store: twice{memory}, nth: 2, do: do}
	_, err := newFleet(t, cfg).Order(t.Context(), anna, "", false, []byte(`{"action":"update","id":"u1"}`))
	return err
}

// TestStatusesGetTheirTurnBetweenThePartsOfAnOrder: one that comes in the middle is durable before the order is at its end, of a device
// that has its row as of one that has not.
func TestStatusesGetTheirTurnBetweenThePartsOfAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory, asked := crowd(t), false
		f := newFleet(t, fleet.Config{Store: memory})
		defer start(t, f, newOutbox())()
		synctest.Wait()
		err := orderWith(t, fleet.Config{}, memory, func() {
			asked = true
			for _, id := range []string{nth(0), nth(many - 1)} {
				hear(t, f, id, status("b", 2, protocol.PhaseChecking))
				if d, err := f.Device(t.Context(), id); err != nil || d.Status.Phase != protocol.PhaseChecking {
					t.Errorf("%s: %q (%v)", id, d.Status.Phase, err)
				}
			}
			if list := underWay(t, memory); len(list) != 1 || list[0].Reached == "" || list[0].Reached >= nth(many-1) {
				t.Errorf("under way: %+v", list)
			}
		})
		if err != nil || !asked {
			t.Fatalf("%v, asked %v", err, asked)
		}
		open, _ := commands(t, memory)
		equal(t, "open attempts", open["u1"], many)
	})
}

// TestALaterCommandIsNotUndoneByAnOrderUnderWay: by the order in which they were given, whatever the clocks of two servers say.
func TestALaterCommandIsNotUndoneByAnOrderUnderWay(t *testing.T) {
	for _, slow := range []time.Duration{0, time.Hour} {
		t.Run(fmt.Sprint("clock behind by ", slow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := crowd(t)
				other := newFleet(t, fleet.Config{Store: memory, Now: func() time.Time { return time.Now().Add(-slow) }})
				last, back := nth(many-1), nth(many-2)
				if err := orderWith(t, fleet.Config{}, memory, func() {
					order(t, other, last, `{"action":"update","id":"later"}`)
					if _, err := other.Order(t.Context(), anna, back, true, nil); err != nil {
						t.Error(err)
					}
				}); err != nil {
					t.Fatal(err)
				}
				for id, want := range map[string]string{last: "a later command took its place", back: "taken back by anna"} {
					list := attemptsAt(t, memory, "u1")[id]
					if len(list) != 1 || list[0].State != fleet.AttemptSuperseded || list[0].Message != want {
						t.Errorf("%s: %+v, want it superseded: %s", id, list, want)
					}
				}
				open, _ := commands(t, memory)
				equal(t, "open attempts at the later one", open["later"], 1)
				equal(t, "open attempts at the order", open["u1"], many-2)
				equal(t, "open attempts at the older one", open["old"], 0)
			})
		})
	}
}

// TestACallerThatStopsWaitingHasGivenTheOrder: a broker whose patience ends acknowledges it, and the server that runs makes the rest.
func TestACallerThatStopsWaitingHasGivenTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory, out := crowd(t), newOutbox()
		ctx, leave := context.WithCancel(t.Context())
		f := newFleet(t, fleet.Config{Store: &between{Store: twice{memory}, nth: 2, do: leave}})
		b, err := f.Order(ctx, anna, "", false, []byte(`{"action":"update","id":"u1"}`))
		if b != nil || !errors.Is(err, fleet.ErrUnderWay) || errors.Is(err, context.Canceled) {
			t.Fatalf("%q, %v", b, err)
		}
		defer start(t, f, out)()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		open, _ := commands(t, memory)
		equal(t, "open attempts", open["u1"], many)
		if cmd, _, sends := out.get(nth(many - 1)); cmd.ID != "u1" || sends != 1 {
			t.Errorf("the last one was sent %+v, %d times", cmd, sends)
		}
	})
}

// TestALaterOrderToAllTakesThePlaceOfTheOneUnderWay: which is not sent on any more.
func TestALaterOrderToAllTakesThePlaceOfTheOneUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		other := newFleet(t, fleet.Config{Store: memory})
		err := orderWith(t, fleet.Config{}, memory, func() { order(t, other, "", `{"action":"update","id":"u2"}`) })
		if !errors.Is(err, fleet.ErrUnderWay) {
			t.Errorf("the one whose place was taken: %v", err)
		}
		open, _ := commands(t, memory)
		equal(t, "open attempts at the second", open["u2"], many)
		equal(t, "open attempts at all", len(open), 1)
		rows, err := other.Audit(t.Context(), anna, fleet.AuditQuery{What: audit.CommandSend})
		if err != nil || len(rows) != 2 || rows[1].Details.Get("in_place_of") != "u1" {
			t.Errorf("log: %+v (%v)", rows, err)
		}
	})
}

// TestThePlannerGoesOnWithAnOrder: where the server that was given it stands still, and that one doubles nothing when it wakes up.
func TestThePlannerGoesOnWithAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		slow := newSleeper(memory)
		cut := &between{Store: slow, nth: -1}
		a := member(t, cut, "a")
		b := member(t, memory, "b")
		defer start(t, b, newOutbox())()
		time.Sleep(time.Second)
		var wake func()
		cut.nth, cut.do = 2, func() { wake = slow.stop() }
		late := make(chan error, 1)
		go func() {
			_, err := a.Order(t.Context(), anna, "", false, []byte(`{"action":"update","id":"u1"}`))
			late <- err
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if list := underWay(t, memory); len(list) != 1 {
			t.Fatalf("under way: %+v", list)
		}
		time.Sleep(time.Minute)
		open, _ := commands(t, memory)
		equal(t, "open attempts while the first one sleeps", open["u1"], many)
		wake()
		select {
		case err := <-late:
			if !errors.Is(err, fleet.ErrUnderWay) {
				t.Errorf("the one that slept: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the one that slept goes on sleeping")
		}
		open, begun := commands(t, memory)
		equal(t, "open attempts in the end", open["u1"], many)
		equal(t, "begun", begun["u1"], many)
	})
}

// TestAnOrderEndsWithItsCommand: a server that was away for longer than the command lives orders nothing that nobody would do.
func TestAnOrderEndsWithItsCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		cfg := fleet.Config{Store: newDying(twice{memory}, 1), Expiry: time.Hour}
		if _, err := newFleet(t, cfg).Order(t.Context(), anna, "", false, []byte(`{"action":"rollback","id":"r1"}`)); !errors.Is(err, fleet.ErrUnderWay) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		cfg.Store = memory
		defer start(t, newFleet(t, cfg), newOutbox())()
		time.Sleep(time.Minute)
		_, begun := commands(t, memory)
		equal(t, "begun", begun["r1"], 500)
		equal(t, "under way", len(underWay(t, memory)), 0)
	})
}

// TestAnOrderStopsAtAQuarantine: what is put there while it is under way is ordered to nobody else, but for the part that has begun.
func TestAnOrderStopsAtAQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		f := newFleet(t, fleet.Config{Store: memory})
		bad := fleet.Release{SHA256: "bad", Project: "bms", Chip: "esp32c3", Version: "2.0.0"}
		if err := fleet.ChangeRows(t.Context(), f, func(tx fleet.Tx) error { return tx.PutRelease(bad) }); err != nil {
			t.Fatal(err)
		}
		cut := &between{Store: twice{memory}, nth: 3}
		g := newFleet(t, fleet.Config{Store: cut})
		cut.do = func() {
			if err := fleet.Quarantined(t.Context(), g, bad.SHA256); err != nil {
				t.Error(err)
			}
		}
		order := func(id string) error {
			_, err := g.Order(t.Context(), anna, "", false, fmt.Appendf(nil, `{"action":"update","id":%q,"version":"2.0.0"}`, id))
			return err
		}
		if err := order("u1"); err != nil {
			t.Fatal(err)
		}
		_, begun := commands(t, memory)
		equal(t, "begun before it was in quarantine", begun["u1"], 1500)
		if err := order("u2"); !errors.Is(err, fleet.ErrRefused) {
			t.Errorf("in quarantine: %v", err)
		}
		_, begun = commands(t, memory)
		equal(t, "begun after it was refused", begun["u2"], 0)
	})
}

// TestARestoredOrderIsNotGoneOnWith: as what was open in a backup is ended.
func TestARestoredOrderIsNotGoneOnWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := crowd(t)
		if _, err := newFleet(t, fleet.Config{Store: newDying(twice{memory}, 2)}).Order(t.Context(), anna, "", false, []byte(`{"action":"update","id":"u1"}`)); !errors.Is(err, fleet.ErrUnderWay) {
			t.Fatal(err)
		}
		if _, err := fleet.Restored(t.Context(), memory, time.Now(), time.Now(), "life"); err != nil {
			t.Fatal(err)
		}
		defer start(t, newFleet(t, fleet.Config{Store: memory}), newOutbox())()
		time.Sleep(time.Minute)
		open, begun := commands(t, memory)
		equal(t, "open", len(open), 0)
		equal(t, "begun", begun["u1"], 1000)
	})
}

// TestNoRolloutBeginsWhileAnOrderIsUnderWay: its devices have a command open, or are about to.
func TestNoRolloutBeginsWhileAnOrderIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYard(t, 3, func(int) fleet.Fate { return fleet.FateGood })
		defer y.stop()
		o := fleet.Order{Command: protocol.Command{Action: protocol.ActionUpdate, ID: "u1"}, By: anna, CreatedAt: time.Now(), Moved: time.Now().Add(time.Hour)}
		change := func(fn func(tx fleet.Tx) error) {
			t.Helper()
			if err := fleet.ChangeRows(t.Context(), y.Fleet, fn); err != nil {
				t.Fatal(err)
			}
		}
		change(func(tx fleet.Tx) error { return tx.PutOrder(o) })
		r := y.create(fleet.Policy{Selector: fleet.Selector{All: true}, Waves: []fleet.Wave{{Percent: 100}}})
		sent := func() (n int) {
			for i := range 3 {
				if _, there, _ := y.out.get(fmt.Sprintf("d%02d", i)); there {
					n++
				}
			}
			return n
		}
		time.Sleep(time.Minute)
		equal(t, "devices that have a command of the rollout", sent(), 0)
		change(func(tx fleet.Tx) error { return tx.DeleteOrder("u1") })
		y.pass(r.ID, time.Hour, fleet.RolloutDone)
	})
}
