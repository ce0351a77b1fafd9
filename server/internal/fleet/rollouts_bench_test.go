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
