package fleet_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// BenchmarkRolloutOver100000Devices is what an operator waits for, and what one look of the planner costs afterwards,
// with all members connected, half of them through and the rest held by a gate.
func BenchmarkRolloutOver100000Devices(b *testing.B) {
	const devices = 100_000
	db, err := store.OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	s := newShop(b, fleet.Config{})
	s.Fleet = newFleet(b, fleet.Config{Store: db})
	r := s.publish(b, build(b, version("1.1.0")))
	now := time.Now()
	err = db.Update(b.Context(), func(tx fleet.Tx) error {
		for i := range devices {
			d := fleet.Device{ID: fmt.Sprintf("bms-%06x", i), Online: true, FirstSeen: now, LastSeen: now.Add(time.Hour), Version: "1.0.0", Status: status("b", 1, protocol.PhaseIdle)}
			d.Status.RollbackProtected, d.Status.SlotSize = true, 1536<<10
			d.Status.Battery = &protocol.Battery{SOCPct: 80, Charging: true}
			if err := tx.PutDevice(d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	req := fleet.RolloutRequest{Version: r.Version, Policy: fleet.Policy{Selector: fleet.Selector{All: true}, Waves: []fleet.Wave{{Percent: 100}},
		Gate: fleet.Gate{NotWhileCharging: true}}}
	b.Run("dry run", func(b *testing.B) {
		for b.Loop() {
			if d, err := s.PlanRollout(b.Context(), anna, req); err != nil || d.Rollout.Members != devices {
				b.Fatalf("%d members (%v)", d.Rollout.Members, err)
			}
		}
	})
	b.Run("rehearse", func(b *testing.B) {
		for b.Loop() {
			open := req
			open.Policy.Gate, open.Policy.Concurrency = fleet.Gate{}, 500
			if _, err := s.Rehearse(b.Context(), anna, fleet.RehearsalRequest{Rollout: open, Mix: fleet.Mix{fleet.FateGood: 0.9, fleet.FateCrash: 0.1}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	var made fleet.Rollout
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			if made, err = s.CreateRollout(b.Context(), anna, req); err != nil {
				b.Fatal(err)
			}
		}
	})
	if made.ID == "" {
		return // a benchmark of another part
	}
	err = db.Update(b.Context(), func(tx fleet.Tx) error {
		for i := 0; i < devices; i += 2 {
			m, err := tx.Member(made.ID, fmt.Sprintf("bms-%06x", i))
			if err != nil {
				return err
			}
			m.State = fleet.MemberSucceeded
			if err := tx.PutMember(m); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			if err := fleet.LookAt(context.WithoutCancel(b.Context()), s.Fleet, made.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("show", func(b *testing.B) {
		for b.Loop() {
			if v, err := s.Rollout(b.Context(), made.ID); err != nil || v.Figures.Succeeded != devices/2 {
				b.Fatalf("%+v (%v)", v.Figures, err)
			}
		}
	})
}

// BenchmarkListOf100Rollouts lists rollouts of which three have 100,000 members, as the API, the dashboard and a scrape do.
func BenchmarkListOf100Rollouts(b *testing.B) {
	const devices = 100_000
	db, err := store.OpenSQLite(b.Context(), filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	f := newFleet(b, fleet.Config{Store: db})
	now := time.Now()
	err = db.Update(b.Context(), func(tx fleet.Tx) error {
		for i := range devices {
			if err := tx.PutDevice(fleet.Device{ID: fmt.Sprintf("bms-%06x", i), Online: i%20 > 0, LastSeen: now, Status: status("b", 1, protocol.PhaseIdle)}); err != nil {
				return err
			}
		}
		for n := range 100 {
			r := fleet.Rollout{ID: fmt.Sprint("r-", n), State: fleet.RolloutDone, CreatedAt: now, Limits: []int{10, 100}, Soaks: make([]time.Duration, 2)}
			r.Members = 100
			if n < 3 {
				r.State, r.Members, r.Limits[1] = fleet.RolloutRunning, devices, devices
			}
			if err := tx.PutRollout(r); err != nil {
				return err
			}
			for i := range r.Members {
				m := fleet.Member{RolloutID: r.ID, DeviceID: fmt.Sprintf("bms-%06x", i), Rank: i, State: fleet.MemberSucceeded}
				if err := tx.PutMember(m); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		list func(context.Context) ([]fleet.RolloutView, error)
		n    int
	}{{"all", f.Rollouts, 100}, {"open", f.OpenRollouts, 3}, {"open by wave", f.OpenRolloutsByWave, 3}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if list, err := c.list(b.Context()); err != nil || len(list) != c.n || list[c.n-1].Figures.Succeeded != list[c.n-1].Members {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}
