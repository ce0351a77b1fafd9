package fleet_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

func TestRunThatIsEndedWhileItStartsIsNoFault(t *testing.T) {
	db, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 20 {
		f := newFleet(t, fleet.Config{Store: db})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx, newOutbox()) }()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestSilenceIsCountedWhileTheServerListens: nobody could be heard while the server was away.
func TestSilenceIsCountedWhileTheServerListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		f := newFleet(t, fleet.Config{Store: memory})
		stop := start(t, f, newOutbox())
		synctest.Wait()
		for _, id := range []string{"d1", "d2"} {
			hear(t, f, id, status("b", 1, protocol.PhaseIdle))
		}
		c := order(t, f, "", `{"action":"update"}`)
		byID := func(s *protocol.Status) { s.CommandID = c.ID }
		for _, id := range []string{"d1", "d2"} {
			hear(t, f, id, status("b", 2, protocol.PhaseDownloading), byID)
		}
		stop()
		time.Sleep(2 * time.Hour)

		f = newFleet(t, fleet.Config{Store: memory})
		stop = start(t, f, newOutbox())
		defer stop()
		time.Sleep(time.Minute)
		hear(t, f, "d1", status("b2", 1, protocol.PhaseConfirmed), byID)
		if a := newest(t, f, "d1"); a.State != fleet.AttemptSucceeded {
			t.Errorf("%s for %q: the device finished while the server was away, and said so as soon as it could", a.State, a.Reason)
		}
		time.Sleep(28 * time.Minute)
		if a := newest(t, f, "d2"); a.State != fleet.AttemptOpen {
			t.Errorf("%s for %q before the time of silence was over", a.State, a.Reason)
		}
		time.Sleep(2 * time.Minute)
		if a := newest(t, f, "d2"); a.State != fleet.AttemptFailed || a.Reason != protocol.ReasonSilent {
			t.Errorf("%s for %q, want failed by silence", a.State, a.Reason)
		}
	})
}
