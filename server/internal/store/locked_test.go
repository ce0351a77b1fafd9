package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// holder is another program that has begun to write to the database, such as a shell somebody has left open.
func holder(t *testing.T, path string) (release func()) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	return func() {
		_, err := conn.ExecContext(context.WithoutCancel(t.Context()), "ROLLBACK")
		if err := errors.Join(err, conn.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestDatabaseThatAnotherProgramHolds: the bubble is for the time that SQLite waits.
func TestDatabaseThatAnotherProgramHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		watch(t, dir, nil)
		path := filepath.Join(dir, "bmsota.db")
		db, err := store.OpenSQLite(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		update(t, db, seed)
		before := dump(t, db)

		// While it runs: a short hold is waited for, a long one fails the request, and reading goes on.
		letGo := holder(t, path)
		go func() {
			time.Sleep(3 * time.Second)
			letGo()
		}()
		update(t, db, func(tx fleet.Tx) error { return tx.PutRelease(release(22)) })
		after := dump(t, db)
		if after == before {
			t.Error("nothing was written")
		}
		letGo = holder(t, path)
		err = db.Update(t.Context(), func(tx fleet.Tx) error { return tx.PutRelease(release(23)) })
		if !errors.Is(err, fleet.ErrStorage) || !strings.Contains(err.Error(), "another program") {
			t.Errorf("%v, want ErrStorage that says who is to blame", err)
		}
		if got := dump(t, db); got != after {
			t.Error("there is a change")
		}
		letGo()
		update(t, db, func(tx fleet.Tx) error { return tx.PutRelease(release(23)) })
		after = dump(t, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}

		// Before it runs: it does not start, says why, and writes nothing.
		for _, tables := range []string{"there", "missing"} {
			if tables == "missing" {
				path = filepath.Join(dir, "new.db")
			}
			letGo = holder(t, path)
			bytes, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			db, err := store.OpenSQLite(t.Context(), path)
			if err == nil {
				t.Errorf("tables %s: it starts", tables)
				db.Close()
			} else if !errors.Is(err, fleet.ErrStorage) || !strings.Contains(err.Error(), "another program") {
				t.Errorf("tables %s: %v, want ErrStorage that says who is to blame", tables, err)
			}
			t.Logf("after %v: %v", time.Since(began), err)
			if got, err := os.ReadFile(path); err != nil || string(got) != string(bytes) {
				t.Errorf("tables %s: the file was changed (%v)", tables, err)
			}
			letGo()
			if db, err = store.OpenSQLite(t.Context(), path); err != nil {
				t.Fatalf("tables %s, and when it is released: %v", tables, err)
			}
			if tables == "there" {
				if got := dump(t, db); got != after {
					t.Error("there is a change")
				}
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
