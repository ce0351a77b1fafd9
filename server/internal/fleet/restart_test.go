package fleet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/manifest"
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

// TestOrderedVersionIsReachedThroughAnother: the command is at the device again after the step, and only what it names
// ends the attempt.
func TestOrderedVersionIsReachedThroughAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		images := map[string]string{}
		for _, v := range []string{"1.0.0", "1.5.0", "2.0.0"} {
			r := s.publish(t, build(t, version(v)), func(m *manifest.Manifest) {
				if v == "2.0.0" {
					m.MinVersion = "1.5.0"
				}
			})
			images[v] = r.SHA256
		}
		boot, seq := 0, uint64(0)
		var c protocol.Command
		say := func(phase protocol.Phase, runs string) {
			t.Helper()
			seq++
			hear(t, s.Fleet, "d1", status(fmt.Sprint("b", boot), seq, phase), func(s *protocol.Status) {
				s.CurrentVersion, s.ImageSHA256, s.CommandID = runs, images[runs], c.ID
			})
			time.Sleep(time.Second)
		}
		say(protocol.PhaseIdle, "1.0.0")
		c = order(t, s.Fleet, "d1", `{"action":"update","version":"2.0.0"}`)
		for _, step := range []struct{ from, to string }{{"1.0.0", "1.5.0"}, {"1.5.0", "2.0.0"}} {
			if o, err := s.Offer(t.Context(), fleet.Query{Device: "d1"}); err != nil || o.File.Version != step.to {
				t.Fatalf("%s is offered %q (%v), want %s", step.from, o.File.Version, err, step.to)
			}
			for _, p := range []protocol.Phase{protocol.PhaseChecking, protocol.PhaseDownloading, protocol.PhaseVerifying, protocol.PhaseSwitching, protocol.PhaseRebooting} {
				say(p, step.from)
			}
			boot, seq = boot+1, 0
			say(protocol.PhaseTrial, step.to)
			say(protocol.PhaseConfirmed, step.to)
			if step.to == "2.0.0" {
				break
			}
			if a := newest(t, s.Fleet, "d1"); a.State != fleet.AttemptOpen {
				t.Fatalf("the attempt is %s after the step", a.State)
			}
			say(protocol.PhaseIdle, step.to)
			time.Sleep(patienceAndAPass)
			if cmd, retained, _ := out.get("d1"); !retained || cmd.ID != c.ID || cmd.Version != "2.0.0" {
				t.Errorf("after the step the device has %+v", cmd)
			}
		}
		if a := newest(t, s.Fleet, "d1"); a.State != fleet.AttemptSucceeded {
			t.Errorf("the attempt is %s at the end", a.State)
		}
		synctest.Wait()
		if _, retained, _ := out.get("d1"); retained {
			t.Error("the command is still retained at the end")
		}
	})
}

// patienceAndAPass is how long a device that does not take its command up waits for it to be sent again, at most.
const patienceAndAPass = 45 * time.Second

// TestRollbackToNowhereLeavesNoOlderCommand: a rollback that names no version is not retained, and what was retained
// before it, by another process or by an operator's own client, must not undo it.
func TestRollbackToNowhereLeavesNoOlderCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, out := newShop(t, fleet.Config{}), newOutbox()
		stop := start(t, s.Fleet, out)
		defer stop()
		synctest.Wait()
		hear(t, s.Fleet, "d1", status("b", 1, protocol.PhaseIdle))
		b, err := s.Order(t.Context(), anna, "d1", true, []byte(`{"action":"update"}`))
		if err != nil {
			t.Fatal(err)
		}
		update, err := protocol.ParseCommand(b)
		if err != nil {
			t.Fatal(err)
		}
		out.mu.Lock()
		out.retained["d1"] = update // the broker retains what Order passed on
		out.mu.Unlock()
		time.Sleep(time.Second)
		order(t, s.Fleet, "d1", `{"action":"rollback"}`)
		synctest.Wait()
		if cmd, retained, _ := out.get("d1"); retained {
			t.Errorf("retained is %+v, which the device meets when it has gone back", cmd)
		}
		out.mu.Lock()
		clears := out.clears["d1"]
		out.mu.Unlock()
		time.Sleep(time.Hour)
		out.mu.Lock()
		defer out.mu.Unlock()
		if out.clears["d1"] != clears {
			t.Errorf("taken back %d times more", out.clears["d1"]-clears)
		}
	})
}

// TestRestartDoesNotShowDevicesOfAnotherBrokerAsGone: its sessions have not ended with ours, and a device that stays
// connected has nothing new to say.
func TestRestartDoesNotShowDevicesOfAnotherBrokerAsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := fleet.Config{Store: store.NewMemory(), ForeignSessions: true}
		for n, want := range []bool{false, true, false} {
			f := newFleet(t, cfg)
			stop := start(t, f, newOutbox())
			synctest.Wait()
			if n > 0 {
				if d, err := f.Device(t.Context(), "d1"); err != nil || d.Online != want {
					t.Errorf("start %d: online is %v (%v), want %v", n, d.Online, err, want)
				}
			}
			hear(t, f, "d1", status("b", 1, protocol.PhaseIdle)) // what the broker retains for it, again
			if n == 1 {
				hear(t, f, "d1", status("b", 1, protocol.PhaseOffline)) // its will
			}
			stop()
		}
	})
}

// TestBrokerThatIsAwayIsOneLineAPass: not one for each of the devices that wait for it.
func TestBrokerThatIsAwayIsOneLineAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer // written by Run's goroutine only, read when it is blocked
		f, out := newFleet(t, fleet.Config{Log: slog.New(slog.NewTextHandler(&text, nil))}), newOutbox()
		stop := start(t, f, out)
		defer stop()
		synctest.Wait()
		for n := range 100 {
			id := fmt.Sprintf("d%d", n)
			hear(t, f, id, status("b", 1, protocol.PhaseIdle))
			hear(t, f, id, protocol.Status{Phase: protocol.PhaseOffline})
		}
		out.setBroken(errors.New("broker is down"))
		order(t, f, "", `{"action":"update"}`)
		time.Sleep(time.Minute)
		synctest.Wait()
		lines := strings.Count(text.String(), "\n")
		if lines < 2 || lines > 10 || !strings.Contains(text.String(), "broker is down") || !strings.Contains(text.String(), "devices=100") {
			t.Errorf("%d lines in a minute:\n%.500s", lines, text.String())
		}
	})
}
