//go:build unix

package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"bmsota/audit"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
	"bmsota/server/pgtest"
)

// TestAnotherProgramInTheWay: a psql on the same database makes an Update fail with a serialisation failure, or is its
// deadlock. The Update runs again and does what it should, once.
func TestAnotherProgramInTheWay(t *testing.T) {
	for _, c := range []struct {
		name    string
		meddle  func(t *testing.T, other *store.Postgres) (wait func() error)
		version string // that the other has written, which must not be lost
	}{
		{"it changes a row that was read", func(_ *testing.T, other *store.Postgres) func() error {
			err := other.Tamper("UPDATE devices SET version = 'theirs' WHERE id = 'd'")
			return func() error { return err }
		}, "theirs"},
		{"deadlock", func(t *testing.T, other *store.Postgres) func() error {
			done := make(chan error, 1)
			go func() {
				done <- other.Tamper("BEGIN; SET LOCAL deadlock_timeout = '1h'; UPDATE devices SET version = 'theirs' WHERE id = 'd'; LOCK TABLE writing IN EXCLUSIVE MODE; COMMIT")
			}()
			for waiting := false; !waiting; {
				var err error
				if waiting, err = other.SomebodyWaits(); err != nil {
					t.Fatal(err)
				}
			}
			return func() error { return <-done }
		}, "theirs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, database := newPostgres(t)
			db, other := openPostgres(t, s.URL(database, pgtest.Superuser)), openPostgres(t, s.URL(database, pgtest.Superuser))
			update(t, db, func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "d"}) })
			runs, wait := 0, func() error { return nil }
			update(t, db, func(tx fleet.Tx) error {
				d, err := tx.Device("d")
				if err != nil {
					return err
				}
				if runs++; runs == 1 {
					wait = c.meddle(t, other)
				}
				d.Seq++
				return tx.PutDevice(d)
			})
			if err := wait(); err != nil {
				t.Error(err)
			}
			if runs != 2 {
				t.Errorf("%d runs, want 2", runs)
			}
			view(t, db, func(tx fleet.Tx) error {
				same(t, fleet.Device{ID: "d", Seq: 1, Version: c.version})(tx.Device("d"))
				return nil
			})
		})
	}
}

// TestServersThatShareADatabaseTakeTurns: what updates of one process may rely on holds between two.
func TestServersThatShareADatabaseTakeTurns(t *testing.T) {
	s, database := newPostgres(t)
	var servers []*store.Postgres
	for range 3 {
		servers = append(servers, openPostgres(t, s.URL(database, pgtest.Superuser)))
	}
	update(t, servers[0], func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "n"}) })
	runs := make([]int, len(servers))
	var wg sync.WaitGroup
	for i, db := range servers {
		wg.Go(func() {
			for range 30 {
				if err := db.Update(t.Context(), func(tx fleet.Tx) error {
					runs[i]++
					d, err := tx.Device("n")
					d.Seq++
					return errors.Join(err, tx.PutDevice(d))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, servers[1], func(tx fleet.Tx) error {
		same(t, fleet.Device{ID: "n", Seq: 90})(tx.Device("n"))
		return nil
	})
	for i, n := range runs {
		if n != 30 {
			t.Errorf("server %d ran its 30 updates %d times: they got into each other's way", i, n)
		}
	}
}

// TestPostgresKilledLosesNothingAcknowledged kills PostgreSQL at moments that chance decides, and starts it again. Updates
// under way wait for it; every one that was acknowledged is there, once.
func TestPostgresKilledLosesNothingAcknowledged(t *testing.T) {
	w := newSweep(t)
	t.Logf("seed %d", w.seed)
	rng := rand.New(rand.NewPCG(w.seed, 3))
	startPostgres(t) // says so where there is none
	s, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	database, err := s.New("template0")
	if err != nil {
		t.Fatal(err)
	}
	db := openPostgres(t, s.URL(database, pgtest.Superuser))
	update(t, db, func(tx fleet.Tx) error { return tx.PutDevice(fleet.Device{ID: "n"}) })
	acknowledged, failed := uint64(0), 0
	for round := range 3 * w.rounds {
		acks := make(chan bool)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(acks)
			for {
				select {
				case <-stop:
					return
				default:
				}
				acks <- db.Update(t.Context(), func(tx fleet.Tx) error {
					d, err := tx.Device("n")
					if err != nil {
						return err
					}
					d.Seq++
					return tx.PutDevice(d)
				}) == nil
			}
		})
		killed := make(chan error, 1)
		after, back := rng.IntN(300), 0
		for ok := range acks {
			if ok {
				acknowledged++
			} else {
				failed++
			}
			if after--; after == 0 {
				go func() { killed <- s.Kill() }()
			}
			if after < 0 {
				select {
				case err := <-killed:
					if err != nil {
						t.Fatal(err)
					}
					back = 20
					killed = make(chan error)
				default:
				}
				if back > 0 {
					if back--; back == 0 {
						close(stop)
						for ok := range acks {
							if ok {
								acknowledged++
							}
						}
						break
					}
				}
			}
		}
		wg.Wait()
		view(t, db, func(tx fleet.Tx) error {
			d, err := tx.Device("n")
			if d.Seq != acknowledged {
				t.Errorf("round %d: %d updates are there, %d were acknowledged", round, d.Seq, acknowledged)
			}
			return err
		})
	}
	t.Logf("%d acknowledged, %d refused", acknowledged, failed)
}

// TestPostgresThatCannotBeUsedIsRefused: one sentence that names what to do, and nothing is written.
func TestPostgresThatCannotBeUsedIsRefused(t *testing.T) {
	s, tables := newPostgres(t)
	empty, err := s.New("template0")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := s.New("template0")
	if err != nil {
		t.Fatal(err)
	}
	latin, newer, reading := "latin_"+empty, "newer_"+empty, "reading_"+empty
	sql := func(database string, statements ...string) {
		t.Helper()
		if err := s.SQL(database, statements...); err != nil {
			t.Fatal(err)
		}
	}
	sql("postgres", "CREATE ROLE weak LOGIN", "CREATE ROLE hasty LOGIN SUPERUSER", "ALTER ROLE hasty SET synchronous_commit = off",
		"CREATE DATABASE "+latin+" TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'", "CREATE DATABASE "+newer+" TEMPLATE "+tables, "CREATE DATABASE "+reading+" TEMPLATE "+tables)
	sql(reading, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO weak")
	sql(theirs, "CREATE TABLE customers (id int)")
	sql(newer, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, true)", "UPDATE compatible SET oldest = 9999")
	address := func(database, role string) string { return s.URL(database, role) }
	secret := "hunter2"
	for _, c := range []struct{ name, url, want string }{
		{"no URL", "host=localhost dbname=x password=" + secret, "it is not postgres://"},
		{"another kind", "mysql://localhost/x", "it is not postgres://"},
		{"no database", "postgres://localhost", "it is not postgres://"},
		{"a password", "postgres://anna:" + secret + "@localhost/x", "it holds a password"},
		{"a password behind it", "postgres://anna@localhost/x?password=" + secret, "it holds a password"},
		{"a parameter that is none", "postgres://anna@localhost/x?sslmode=maybe", "sslmode is invalid"},
		{"no server", "postgres://anna@/x?host=/nowhere", "no such file or directory"},
		{"no such database", address("nowhere", pgtest.Superuser), "make it (CREATE DATABASE"},
		{"no such role", address(empty, "nobody"), `role "nobody" does not exist`},
		{"may make no tables", address(empty, "weak"), "role weak may not make tables in schema public"},
		{"may change no tables", address(tables, "weak"), "permission denied for table goose_db_version: let the server be the role"},
		{"may only read", address(reading, "weak"), "role weak may not read and change table"},
		{"tables of something else", address(theirs, pgtest.Superuser), "holds tables of something else"},
		{"another encoding", address(latin, pgtest.Superuser), "encoding is LATIN1"},
		{"a newer version", address(newer, pgtest.Superuser), "use the newer program"},
		{"commits that are not synced", address(tables, "hasty"), "would not survive a loss of power"},
	} {
		before, beforeErr := schema(s, empty, tables, theirs, newer, reading)
		db, err := store.OpenPostgres(t.Context(), store.PostgresConfig{URL: c.url, Password: secret})
		if err == nil {
			t.Errorf("%s: it opens", c.name)
			db.Close()
			continue
		}
		text := err.Error()
		if !strings.Contains(text, c.want) || strings.Contains(text, secret) || strings.Contains(text, "\n") {
			t.Errorf("%s: %q, want one line with %q", c.name, text, c.want)
		}
		t.Logf("%s: %s", c.name, text)
		if after, afterErr := schema(s, empty, tables, theirs, newer, reading); after != before || beforeErr != nil || afterErr != nil {
			t.Errorf("%s: something was written (%v, %v)", c.name, beforeErr, afterErr)
		}
	}
}

// schema is what there is in databases, with the number of rows that were written.
func schema(s *pgtest.Server, databases ...string) (string, error) {
	var b strings.Builder
	for _, database := range databases {
		out, err := s.Ask(database, "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
			"SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables ORDER BY 1")
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&b, database, out)
	}
	return b.String(), nil
}

// TestTextsThatPostgresCannotHold: a zero byte, and bytes that are no UTF-8, void no transaction, and the audit log stays whole.
func TestTextsThatPostgresCannotHold(t *testing.T) {
	s, database := newPostgres(t)
	db := openPostgres(t, s.URL(database, pgtest.Superuser))
	text := "a\x00b\xff"
	update(t, db, func(tx fleet.Tx) error {
		a := attempt("a1", "d", 1, fleet.AttemptOpen)
		a.Message = text
		row := audit.Entry{What: audit.CommandSend, Who: text, About: text, Details: audit.Of("to", text)}.Seal(audit.Genesis)
		return all(tx.PutDevice(fleet.Device{ID: "d", Version: text}), tx.PutAttempt(a), tx.AppendAudit([]audit.Entry{row}))
	})
	view(t, db, func(tx fleet.Tx) error {
		same(t, fleet.Device{ID: "d", Version: "a\uFFFDb\uFFFD"})(tx.Device("d"))
		list, err := tx.AuditPage(fleet.AuditQuery{Limit: 2})
		if err == nil && (len(list) != 1 || list[0].Hash != list[0].Sum()) {
			t.Errorf("the row has another hash than its text: %+v", list)
		}
		return err
	})
}
