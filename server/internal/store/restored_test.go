package store_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/durable/crashdisk"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// TestRestoreAtEveryCommitStartsNothing: a backup of every moment of a server's life is restored after its end. Nothing is
// sent to any device until an operator says so, whatever ran then; and what is sent after he has never carries a command's
// id that the first life has given out.
func TestRestoreAtEveryCommitStartsNothing(t *testing.T) {
	s := live(t, newSweep(t).seed, nil)
	given := map[string]bool{}
	db := openDB(t, filepath.Join(s.dir, "bmsota.db"))
	view(t, db, func(tx fleet.Tx) error {
		for _, id := range monitors {
			list, err := tx.AttemptsOf(id, 100)
			if err != nil {
				return err
			}
			for _, a := range list {
				given[a.CommandID] = true
			}
		}
		return nil
	})
	var total fleet.Restoration
	resumed := 0
	disk, applied, last := crashdisk.NewReplay(), 0, ""
	for _, a := range s.acks {
		for ; applied < a.ops; applied++ {
			if err := disk.Apply(s.log.Ops()[applied]); err != nil {
				t.Fatal(err)
			}
		}
		if a.dump == last || a.dump == "" {
			continue
		}
		last = a.dump
		dir := t.TempDir()
		if err := disk.Lose(crashdisk.Kept, rand.New(rand.NewPCG(1, 1))).WriteTo(dir); err != nil {
			t.Fatal(err)
		}
		watch(t, dir, nil)
		synctest.Test(t, func(t *testing.T) {
			done, n := restoredLife(t, dir, a.step, given)
			total.Paused += done.Paused
			total.Ended += done.Ended
			resumed += n
		})
	}
	t.Logf("%d acknowledgements; in all %d rollouts paused, %d commands ended, %d commands given after a resume", len(s.acks), total.Paused, total.Ended, resumed)
	if total.Paused == 0 || total.Ended == 0 || resumed == 0 {
		t.Error("nothing was put to the test")
	}
}

// told is a Commander that keeps what it is given.
type told struct {
	nobody
	updates chan protocol.Command
}

func (o told) Send(_ context.Context, _ string, cmd protocol.Command) error {
	if cmd.Action != protocol.ActionStatus {
		o.updates <- cmd
	}
	return nil
}

// restoredLife restores what is in dir, lets it run, and resumes what is paused. It returns how many commands went out
// after that.
func restoredLife(t *testing.T, dir, step string, given map[string]bool) (done fleet.Restoration, commands int) {
	ctx, cancel := context.WithCancel(t.Context())
	db, err := store.OpenSQLite(ctx, filepath.Join(dir, "bmsota.db"))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := store.OpenFolder(filepath.Join(dir, "firmware"))
	if err != nil {
		t.Fatal(err)
	}
	// The life took place within minutes of the bubble's first moment.
	time.Sleep(10 * time.Minute)
	if done, err = fleet.Restored(ctx, db, time.Now().Add(-5*time.Minute), time.Now(), "0badcafe"); err != nil {
		t.Fatal(err)
	}
	f, err := fleet.New(fleet.Config{Store: db, Blobs: folder, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	out := told{updates: make(chan protocol.Command, 100)}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, out) }()
	synctest.Wait()
	devices, err := f.Devices(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		// What a device says that has gone on meanwhile: of a later boot, and about a command nobody here remembers.
		s := protocol.Status{BootID: "later", Seq: 1, Phase: protocol.PhaseIdle, CurrentVersion: d.Version, CommandID: "unheard-of",
			Project: "bms", Chip: "esp32c3", RollbackProtected: true, SlotSize: 1536 << 10, Battery: &protocol.Battery{SOCPct: 80}}
		text, err := s.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Fold(ctx, d.ID, false, text); err != nil {
			t.Errorf("%s: a status after the restore: %v", step, err)
		}
		if err := f.Connected(ctx, d.ID); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	for len(out.updates) > 0 {
		t.Errorf("%s: %+v goes out and nobody has said so", step, <-out.updates)
	}
	rollouts, err := f.OpenRollouts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rollouts {
		if r.State == fleet.RolloutRunning {
			t.Errorf("%s: a rollout runs", step)
		}
		if r.State == fleet.RolloutPaused {
			if _, err := f.Resume(ctx, root, r.ID); err != nil {
				t.Errorf("%s: resume: %v", step, err)
			}
		}
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	for commands = len(out.updates); len(out.updates) > 0; {
		if cmd := <-out.updates; given[cmd.ID] {
			t.Errorf("%s: the id of %+v was given before", step, cmd)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if err := folder.Close(); err != nil {
		t.Error(err)
	}
	return done, commands
}
