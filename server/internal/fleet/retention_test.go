package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/audit"
	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// A fleet is updated every day. What is older than the limits goes within a day, in every batch with a row that says so;
// the newest attempt of a device stays, and the log is whole at every step. A server that keeps all forgets nothing.
func TestWhatIsOldIsForgottenAndTheLogSaysSo(t *testing.T) {
	for _, keep := range []time.Duration{0, 4 * 24 * time.Hour} {
		t.Run(keep.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				memory := store.NewMemory()
				f := newFleet(t, fleet.Config{Store: memory, KeepAttempts: keep, KeepAudit: keep, Expiry: 24 * time.Hour})
				stop := start(t, f, newOutbox())
				defer func() { stop() }()
				synctest.Wait()
				began := time.Now()
				hear(t, f, "idle", status("b", 1, protocol.PhaseIdle))
				first := order(t, f, "", `{"action":"update"}`)
				seq := uint64(1)
				attempts := 0
				head := audit.Genesis
				for round := range 12 {
					seq++
					hear(t, f, "busy", status("b", seq, protocol.PhaseIdle))
					c := order(t, f, "busy", `{"action":"update"}`)
					attempts++
					seq++
					hear(t, f, "busy", status("b", seq, protocol.PhaseFailed), func(s *protocol.Status) { s.CommandID = c.ID })
					if rows := auditLog(t, memory); round == 1 {
						head = rows[len(rows)-1].Head()
					}
					time.Sleep(24 * time.Hour)
					if round == 6 { // what a restart forgets is nothing
						stop()
						f = newFleet(t, fleet.Config{Store: memory, KeepAttempts: keep, KeepAudit: keep, Expiry: 24 * time.Hour})
						stop = start(t, f, newOutbox())
						synctest.Wait()
					}
				}
				list, err := f.Attempts(t.Context(), "busy", 1000)
				if err != nil {
					t.Fatal(err)
				}
				rows := auditLog(t, memory)
				if keep == 0 {
					if len(list) != attempts || rows[0].Seq != 1 || head == audit.Genesis {
						t.Errorf("%d of %d attempts, log from row %d on", len(list), attempts, rows[0].Seq)
					}
					return
				}
				oldest := time.Now().Add(-keep - 24*time.Hour)
				if len(list) < 4 || len(list) > 6 {
					t.Errorf("%d attempts are left of %d in %s", len(list), attempts, time.Since(began))
				}
				for _, a := range list {
					if a.EndedAt.Before(oldest) {
						t.Errorf("%s ended %s and is still there", a.ID, a.EndedAt)
					}
				}
				if a := newest(t, f, "idle"); a.CommandID != first.ID || !a.EndedAt.Before(oldest) {
					t.Errorf("the newest attempt of a device is %+v", a)
				}
				if rows[0].Seq == 1 || rows[0].At.Before(oldest) {
					t.Errorf("the log begins with row %d of %s", rows[0].Seq, rows[0].At)
				}
				said, gone := 0, 0
				for _, e := range rows {
					if e.What == audit.AttemptPrune {
						said++
					}
					if e.What == audit.LogPrune {
						gone++
					}
					if (e.What == audit.AttemptPrune || e.What == audit.LogPrune) && e.Who != "server" {
						t.Errorf("%s", e.Line())
					}
				}
				if said < 3 || gone < 3 || gone > 12 {
					t.Errorf("%d rows about attempts, %d about the log", said, gone)
				}
			})
		})
	}
}

// A backlog goes in batches: each of a bounded number of rows, and the log is whole after each.
func TestABacklogIsForgottenInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := store.NewMemory()
		const devices, each = 3, 700
		long := time.Now()
		err := memory.Update(t.Context(), func(tx fleet.Tx) error {
			head := audit.Genesis
			for i := range devices {
				d := fleet.Device{ID: fmt.Sprint("d", i)}
				if err := tx.PutDevice(d); err != nil {
					return err
				}
				for n := range each {
					at := long.Add(time.Duration(n) * time.Second)
					if err := tx.PutAttempt(fleet.Attempt{ID: fmt.Sprint(i, "/", n), DeviceID: d.ID, State: fleet.AttemptSucceeded, CreatedAt: at, EndedAt: at}); err != nil {
						return err
					}
					e := audit.Entry{At: long, Who: "server", What: audit.AttemptEnd}.Seal(head)
					if head = e.Head(); tx.AppendAudit([]audit.Entry{e}) != nil {
						return fleet.ErrConflict
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * 24 * time.Hour)
		f := newFleet(t, fleet.Config{Store: memory, KeepAttempts: 50 * 24 * time.Hour, KeepAudit: 50 * 24 * time.Hour})
		stop := start(t, f, newOutbox())
		defer stop()
		time.Sleep(time.Minute)
		for i := range devices {
			if list, err := f.Attempts(t.Context(), fmt.Sprint("d", i), 5000); err != nil || len(list) != 1 {
				t.Errorf("device %d has %d attempts: %v", i, len(list), err)
			}
		}
		forgotten := map[audit.Action]map[string]int{audit.AttemptPrune: {}, audit.LogPrune: {}}
		for _, e := range auditLog(t, memory) {
			if counts := forgotten[e.What]; counts != nil {
				through, _, _ := strings.Cut(e.About, ":")
				counts[e.Details.Get("attempts")+through]++
			}
		}
		// 2100 attempts but the newest of each device, a thousand looked at each time; as many rows of the log.
		if got, want := fmt.Sprint(forgotten), "map[attempt.prune:map[1000:2 97:1] audit.prune:map[1000:1 2000:1 2100:1]]"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}
