package fleet_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// timed is a store that knows how long its longest change was, without the waiting for its turn.
type timed struct {
	fleet.Store
	longest atomic.Int64 // nanoseconds
}

func (s *timed) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	var began time.Time
	err := s.Store.Update(ctx, func(tx fleet.Tx) error {
		began = time.Now()
		return fn(tx)
	})
	s.longest.Store(max(s.longest.Load(), int64(time.Since(began))))
	return err
}

// BenchmarkOrderToAll is one command to all devices, each of which has an older one open: all of it, and the longest of its
// transactions, for which statuses wait.
func BenchmarkOrderToAll(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("devices=%d", n), func(b *testing.B) {
			db, err := store.OpenSQLite(b.Context(), b.TempDir()+"/db")
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			watched := &timed{Store: db}
			f := newFleet(b, fleet.Config{Store: watched})
			devices := make([]fleet.Device, n)
			for i := range devices {
				devices[i] = fleet.Device{ID: fmt.Sprintf("bms-%06x", i), Status: status("b", 1, protocol.PhaseIdle)}
			}
			if err := db.Update(b.Context(), func(tx fleet.Tx) error { return tx.PutDevices(devices) }); err != nil {
				b.Fatal(err)
			}
			order(b, f, "", `{"action":"update"}`)
			watched.longest.Store(0)
			for b.Loop() {
				order(b, f, "", `{"action":"update"}`)
			}
			b.ReportMetric(float64(watched.longest.Load())/1e6, "ms-longest")
		})
	}
}
