//go:build unix

package store_test

import (
	"sync"
	"testing"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
	"bmsota/server/pgtest"
)

// One PostgreSQL serves all tests of this package; each has a database of its own, copied from one with the tables.
var postgres struct {
	once   sync.Once
	server *pgtest.Server
	tables string
	err    error
}

func init() {
	stores = append(stores, struct {
		name string
		open func(t *testing.T) fleet.Store
	}{"postgres", emptyPostgres})
	atEnd = append(atEnd, func() error {
		if postgres.server == nil {
			return nil
		}
		return postgres.server.Stop()
	})
}

func startPostgres(t testing.TB) *pgtest.Server {
	t.Helper()
	postgres.once.Do(func() {
		if postgres.server, postgres.err = pgtest.Start(); postgres.err != nil {
			return
		}
		if postgres.tables, postgres.err = postgres.server.New("template0"); postgres.err != nil {
			return
		}
		var db *store.Postgres
		if db, postgres.err = store.OpenPostgres(t.Context(), store.PostgresConfig{URL: postgres.server.URL(postgres.tables, pgtest.Superuser)}); postgres.err == nil {
			postgres.err = db.Close()
		}
	})
	if postgres.err != nil {
		pgtest.Missing(t, postgres.err)
	}
	return postgres.server
}

// newPostgres is an empty database with its tables.
func newPostgres(t testing.TB) (s *pgtest.Server, database string) {
	t.Helper()
	s = startPostgres(t)
	database, err := s.New(postgres.tables)
	if err != nil {
		t.Fatal(err)
	}
	return s, database
}

func openPostgres(t testing.TB, url string) *store.Postgres {
	t.Helper()
	db, err := store.OpenPostgres(t.Context(), store.PostgresConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func emptyPostgres(t *testing.T) fleet.Store {
	s, database := newPostgres(t)
	return openPostgres(t, s.URL(database, pgtest.Superuser))
}

// TestManyRowsWithoutPreparedStatements: behind a pooler that deals out transactions, many rows leave none behind either.
func TestManyRowsWithoutPreparedStatements(t *testing.T) {
	s, database := newPostgres(t)
	for mode, want := range map[string]bool{"cache_statement": true, "exec": false} {
		db := openPostgres(t, s.URL(database, pgtest.Superuser)+"&default_query_exec_mode="+mode)
		if !want {
			manyAreMany(t, db)
		}
		devices := []fleet.Device{device("one"), device("two")}
		update(t, db, func(tx fleet.Tx) error { return tx.PutDevices(devices) })
		if got, err := db.PreparedStatements(); err != nil || got > 0 != want {
			t.Errorf("%s: %d prepared statements (%v)", mode, got, err)
		}
	}
}
