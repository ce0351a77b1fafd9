package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// auditRows are n rows behind head.
func auditRows(head audit.Head, n int) []audit.Entry {
	rows := make([]audit.Entry, n)
	for i := range rows {
		seq := head.Seq + 1
		e := audit.Entry{At: at(seq), Who: "server", Role: "server", What: audit.AttemptEnd, About: fmt.Sprint("c", seq), Device: fmt.Sprint("d", seq%3),
			Rollout: "r-1", Details: audit.Of("state", "succeeded", "message", "\"ß\"\n<>")}
		if seq%2 == 0 {
			e = audit.Entry{At: at(seq), Who: "anna", Role: "admin", What: audit.ChannelSet}
		}
		rows[i] = e.Seal(head)
		head = rows[i].Head()
	}
	return rows
}

func auditFollows(t *testing.T, s fleet.Store) {
	rows := auditRows(audit.Genesis, 6)
	view(t, s, func(tx fleet.Tx) error {
		same(t, audit.Genesis)(tx.AuditHead())
		if err := tx.AppendAudit(rows[:1]); err == nil {
			t.Error("a view has written")
		}
		return nil
	})
	update(t, s, func(tx fleet.Tx) error {
		if err := tx.AppendAudit(rows[:2]); err != nil {
			return err
		}
		same(t, rows[1].Head())(tx.AuditHead())
		return tx.AppendAudit(rows[2:3])
	})
	elsewhere := auditRows(audit.Head{Seq: 3, Hash: strings.Repeat("1", 64)}, 1)
	later := auditRows(audit.Head{Seq: 4, Hash: strings.Repeat("1", 64)}, 1)
	for name, bad := range map[string][]audit.Entry{"gap": rows[4:5], "again": rows[2:3], "row 1": rows[:1], "another log": elsewhere,
		"gap among rows": {rows[3], rows[5]}, "again among rows": {rows[3], rows[3]}, "row 1 among rows": {rows[3], rows[0]}, "another log among rows": {rows[3], later[0]}} {
		if err := s.Update(t.Context(), func(tx fleet.Tx) error { _ = tx.AppendAudit(bad); return nil }); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := s.Update(t.Context(), func(tx fleet.Tx) error { return all(tx.AppendAudit(rows[3:]), errGiveUp) })
	if !errors.Is(err, errGiveUp) {
		t.Fatal(err)
	}
	update(t, s, func(tx fleet.Tx) error { return tx.AppendAudit(rows[3:]) })
	view(t, s, func(tx fleet.Tx) error {
		same(t, rows)(tx.AuditPage(fleet.AuditQuery{Limit: 10}))
		return nil
	})
}

func auditIsFound(t *testing.T, s fleet.Store) {
	rows := auditRows(audit.Genesis, 40)
	update(t, s, func(tx fleet.Tx) error { return tx.AppendAudit(rows) })
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 500 {
		q := fleet.AuditQuery{Who: pick("", "", "anna", "carl"), Device: pick("", "", "d1", "d2"), Rollout: pick("", "r-1", "r"), NewestFirst: r.IntN(2) == 0,
			What: audit.Action(pick("", "", "attempt.", "attempt.end", "channel.set", "channel.", "login.")), Limit: 1 + r.IntN(45)}
		if r.IntN(3) == 0 {
			q.After = int64(r.IntN(45))
		}
		if r.IntN(3) == 0 {
			q.Before = int64(r.IntN(45))
		}
		if r.IntN(3) == 0 {
			q.Since = at(int64(r.IntN(45)))
		}
		if r.IntN(3) == 0 {
			q.Until = at(int64(r.IntN(45)))
		}
		var want []audit.Entry
		for i := range rows {
			e := rows[i]
			if q.NewestFirst {
				e = rows[len(rows)-1-i]
			}
			if q.Matches(e) && len(want) < q.Limit {
				want = append(want, e)
			}
		}
		view(t, s, func(tx fleet.Tx) error {
			same(t, want)(tx.AuditPage(q))
			return nil
		})
		if t.Failed() {
			t.Fatalf("%+v", q)
		}
	}
}

// openAudited is a database with rows in its log.
func openAudited(t *testing.T, n int) (*store.DB, []audit.Entry) {
	t.Helper()
	db := openDB(t, filepath.Join(t.TempDir(), "bmsota.db"))
	rows := auditRows(audit.Genesis, n)
	update(t, db, func(tx fleet.Tx) error { return tx.AppendAudit(rows) })
	return db, rows
}

func verifyAudit(t *testing.T, s fleet.Store, heads ...audit.Head) error {
	t.Helper()
	c := &audit.Chain{Expect: heads}
	var b bytes.Buffer
	view(t, s, func(tx fleet.Tx) error {
		page, err := tx.AuditPage(fleet.AuditQuery{Limit: 1000})
		for _, e := range page {
			b.Write(append(e.Line(), '\n'))
		}
		return err
	})
	return c.Verify(&b)
}

func TestTheDatabaseRefusesToChangeTheAuditLog(t *testing.T) {
	db, rows := openAudited(t, 4)
	for _, statement := range []string{
		"UPDATE audit SET who = 'carl' WHERE seq = 2", "UPDATE audit SET seq = 9 WHERE seq = 4", "DELETE FROM audit WHERE seq = 4", "DELETE FROM audit",
		"REPLACE INTO audit SELECT seq, at, 'carl', role, what, about, device, rollout, details, prev, hash FROM audit WHERE seq = 2",
		"INSERT INTO audit SELECT 9, at, who, role, what, about, device, rollout, details, hash, hash FROM audit WHERE seq = 4",
		"INSERT INTO audit SELECT 5, at, who, role, what, about, device, rollout, details, prev, hash FROM audit WHERE seq = 4",
	} {
		if err := db.Tamper(statement); err == nil || !strings.Contains(err.Error(), "appended to only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if err := verifyAudit(t, db, rows[3].Head()); err != nil {
		t.Error(err)
	}
}

// Somebody with a shell drops the triggers first. Every column of a row is held by its hash, and every row by its number.
func TestTamperingWithTheDatabaseIsNamed(t *testing.T) {
	columns := reflect.TypeFor[audit.Entry]().NumField()
	statements := map[string]int64{
		"UPDATE audit SET at = at + 1 WHERE seq = 5": 5, "UPDATE audit SET who = 'carl' WHERE seq = 5": 5, "UPDATE audit SET role = 'viewer' WHERE seq = 5": 5,
		"UPDATE audit SET what = 'channel.set' WHERE seq = 5": 5, "UPDATE audit SET about = '' WHERE seq = 5": 5, "UPDATE audit SET device = 'd9' WHERE seq = 5": 5,
		"UPDATE audit SET rollout = '' WHERE seq = 5": 5, "UPDATE audit SET details = replace(details, 'succeeded', 'failed') WHERE seq = 5": 5,
		"UPDATE audit SET prev = replace(prev, substr(prev, 1, 1), 'g') WHERE seq = 5": 5, "UPDATE audit SET hash = replace(hash, substr(hash, 1, 1), 'g') WHERE seq = 5": 5,
		"UPDATE audit SET seq = 500 WHERE seq = 5": 5,
	}
	if len(statements) != columns {
		t.Errorf("%d columns are altered, a row has %d", len(statements), columns)
	}
	statements["UPDATE audit SET details = '' WHERE seq = 5"] = 5
	statements["UPDATE audit SET details = 'no JSON' WHERE seq = 5"] = 5
	statements["DELETE FROM audit WHERE seq = 5"] = 5
	statements["DELETE FROM audit WHERE seq = 1"] = 1
	statements["UPDATE audit SET seq = CASE seq WHEN 5 THEN -6 WHEN 6 THEN -5 ELSE seq END; UPDATE audit SET seq = -seq WHERE seq < 0"] = 5
	statements["DELETE FROM audit WHERE seq > 7"] = 8 // its tail: only with a head
	for text, row := range statements {
		t.Run(text, func(t *testing.T) {
			db, rows := openAudited(t, 9)
			for _, statement := range append([]string{"DROP TRIGGER audit_appends", "DROP TRIGGER audit_keeps", "DROP TRIGGER audit_holds"}, strings.Split(text, "; ")...) {
				if err := db.Tamper(statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			if row == 8 {
				if err := verifyAudit(t, db); err != nil {
					t.Errorf("a log that ends earlier is not whole in itself: %v", err)
				}
			}
			var broken *audit.Broken
			if err := verifyAudit(t, db, rows[8].Head()); !errors.As(err, &broken) || broken.Seq != row {
				t.Errorf("%v, want row %d", err, row)
			}
		})
	}
}

// A reader pages while rows are written, and sees each once, in order, without a gap.
func TestAuditIsReadWhileItIsWritten(t *testing.T) {
	for _, impl := range stores {
		t.Run(impl.name, func(t *testing.T) {
			s := impl.open(t)
			const n = 300
			rows := auditRows(audit.Genesis, n)
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range rows {
					if err := s.Update(t.Context(), func(tx fleet.Tx) error { return tx.AppendAudit(rows[i : i+1]) }); err != nil {
						t.Error(err)
						return
					}
				}
			})
			c := &audit.Chain{}
			for c.Rows < n && !t.Failed() {
				view(t, s, func(tx fleet.Tx) error {
					page, err := tx.AuditPage(fleet.AuditQuery{After: c.Rows, Limit: 7})
					for _, e := range page {
						err = errors.Join(err, c.Next(e.Line()))
					}
					return err
				})
			}
			wg.Wait()
		})
	}
}

// BenchmarkAppendAudit is what the rows of a transaction cost, in groups as a command to many devices makes them.
func BenchmarkAppendAudit(b *testing.B) {
	db := openBench(b)
	head := audit.Genesis
	const group = 1000
	for b.Loop() {
		rows := auditRows(head, group)
		head = rows[group-1].Head()
		if err := db.Update(b.Context(), func(tx fleet.Tx) error { return tx.AppendAudit(rows) }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*group), "us/row")
}
