//go:build unix

package store_test

import (
	"errors"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
	"bmsota/server/pgtest"
)

// TestAnOlderProgramGoesOnBesideANewer: a newer one has migrated, by adding alone, while this one was at work and before it is
// started again. What takes something away is refused to the newer one while this one works, and this one afterwards.
func TestAnOlderProgramGoesOnBesideANewer(t *testing.T) {
	s, database := newPostgres(t)
	open := func() (*store.Postgres, error) {
		return store.OpenPostgres(t.Context(), store.PostgresConfig{URL: s.URL(database, pgtest.Superuser)})
	}
	db, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	seen := func() error {
		return db.Update(t.Context(), func(tx fleet.Tx) error {
			now, err := tx.Clock()
			if err != nil {
				return err
			}
			if err := tx.PutDevice(device("d1")); err != nil {
				return err
			}
			return tx.PutPeer(fleet.Peer{Place: "p", Name: "old", Seen: now})
		})
	}
	if err := seen(); err != nil {
		t.Fatal(err)
	}
	// As a migration of a later program that only adds.
	if err := s.SQL(database, "BEGIN", "ALTER TABLE devices ADD COLUMN shape TEXT NOT NULL DEFAULT 'round'", "CREATE TABLE wings (id INT)",
		"INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, true)", "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := seen(); err != nil {
		t.Errorf("the older program, at work: %v", err)
	}
	if err := db.View(t.Context(), func(tx fleet.Tx) error { _, err := tx.Devices(); return err }); err != nil {
		t.Errorf("the older program reads: %v", err)
	}
	again, err := open()
	if err != nil {
		t.Fatalf("the older program, started anew: %v", err)
	}
	defer again.Close()

	// As one that takes away.
	err = s.SQL(database, "UPDATE compatible SET oldest = 9999")
	if err == nil || !strings.Contains(err.Error(), `server "old" works here and knows tables of version`) {
		t.Errorf("a migration that takes away, beside a server that is at work: %v", err)
	}
	if err := db.Update(t.Context(), func(tx fleet.Tx) error { return tx.DeletePeer("p") }); err != nil {
		t.Fatal(err)
	}
	if err := s.SQL(database, "UPDATE compatible SET oldest = 9999"); err != nil {
		t.Fatalf("… when it has ended: %v", err)
	}
	if third, err := open(); err == nil {
		third.Close()
		t.Error("the older program opens tables that it cannot work on")
	} else if text := err.Error(); !strings.Contains(text, "while they want 9999 at least: use the newer program") || strings.Contains(text, "\n") {
		t.Errorf("the older program is told %q", text)
	}
	// It slept, and was taken for dead: awake again it writes nothing.
	if err := seen(); !errors.Is(err, fleet.ErrOutdated) {
		t.Errorf("the older program, at work on tables that want a newer one: %v", err)
	}
	if err := again.View(t.Context(), func(tx fleet.Tx) error {
		if peers, err := tx.Peers(); err != nil || len(peers) != 0 {
			t.Errorf("it has written: %+v, %v", peers, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
