package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// TestAcknowledgedCommitsAreSynced holds the settings that a kill cannot test and a power cut would: with
// synchronous=NORMAL the log is not synced at a commit, and acknowledged commits are lost with the power.
func TestAcknowledgedCommitsAreSynced(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "bmsota.db"))
	for _, c := range []struct{ name, write, read string }{
		{"synchronous", "2", ""}, {"journal_mode", "wal", "wal"}, {"foreign_keys", "1", "1"}, {"query_only", "0", "1"}, {"busy_timeout", "5000", "5000"},
	} {
		write, read, err := db.Pragma(c.name)
		if err != nil || write != c.write || c.read != "" && read != c.read {
			t.Errorf("%s is %q and %q (%v), want %q and %q", c.name, write, read, err, c.write, c.read)
		}
	}
}

func TestDatabaseIsReopenedWithItsRowsAndForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd name?#%20.db")
	db, err := store.OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	update(t, db, seed)
	before := dump(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o, want 600", info.Mode().Perm())
	}
	if after := dump(t, openDB(t, path)); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestDatabaseThatCannotBeUsedIsRefused(t *testing.T) {
	dir := t.TempDir()
	newer := filepath.Join(dir, "newer.db")
	db, err := store.OpenSQLite(t.Context(), newer)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.PretendVersion(9999), db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenSQLite(t.Context(), newer); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("tables of a newer version: %v", err)
	}
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is no database ", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{garbage, dir, filepath.Join(dir, "no", "such", "folder.db")} {
		if _, err := store.OpenSQLite(t.Context(), path); !errors.Is(err, fleet.ErrStorage) {
			t.Errorf("%s: %v, want ErrStorage", path, err)
		}
	}
	if got, err := os.ReadFile(garbage); err != nil || !strings.HasPrefix(string(got), "this is no database") {
		t.Errorf("the file that is no database was changed (%v)", err)
	}
}

// A database from before there were roles: its operators keep every right, and its devices are found by what they said.
func TestOldDatabaseIsBroughtUpToDate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.db")
	if err := store.MakeVersion1(t.Context(), path,
		`INSERT INTO operators (name, token_sha256, created_at, revoked) VALUES ('operator', 't1', 1, 0)`,
		`INSERT INTO devices VALUES ('d1', '', 0, 0, '', 1, 1, 1, 1, 'failed', '1.0.0', '', '', '', 0, '',
		  '{"phase":"failed","reason":"stalled","project":"bms","chip":"esp32","rollback_protected":true,"signed_only":true}')`,
		`INSERT INTO devices VALUES ('d2', '', 0, 0, '', 0, 0, 0, 0, '', '', '', '', '', 0, '', '')`,
	); err != nil {
		t.Fatal(err)
	}
	db := openDB(t, path)
	view(t, db, func(tx fleet.Tx) error {
		o, err := tx.Operator("operator")
		if err != nil || o.Role != fleet.RoleAdmin || !o.ExpiresAt.IsZero() {
			t.Errorf("%+v, %v", o, err)
		}
		for _, q := range []fleet.DeviceQuery{{Project: "bms", Chip: "esp32", Reason: "stalled"}, {State: fleet.StateFailed}} {
			if n, err := tx.DeviceCount(q); err != nil || n != 1 {
				t.Errorf("%+v: %d, %v", q, n, err)
			}
		}
		if n, err := tx.DeviceCount(fleet.DeviceQuery{State: fleet.StateUnprotected}); err != nil || n != 0 {
			t.Errorf("%d unprotected, %v", n, err)
		}
		return nil
	})
}
