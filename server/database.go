package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bmsota/durable"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/store"
)

// database is a store that says whether it can be written.
type database interface {
	fleet.Store
	Probe(ctx context.Context) error
}

// What stands in the data folder of a server whose rows are in PostgreSQL. The first says so: such a folder is never started
// with an empty database of its own by mistake, and a backup of it says what is not in it. The second is there after a
// restore until the server has been started: what ran when the backup was made does not run on.
const (
	elsewhereName = "database.json"
	restoredName  = "restored.json"
)

// maxPassword is the most that a file with a password may hold, in bytes.
const maxPassword = 4096

// elsewhere is database.json.
type elsewhere struct {
	Postgres string `json:"postgres"` // host and database, for people
	Place    string `json:"place"`    // of this data folder, by which the servers on a database know each other
}

// placeID is the id of a data folder whose rows are elsewhere.
func placeID(dataDir string) (string, error) {
	var e elsewhere
	err := readSmall(filepath.Join(dataDir, elsewhereName), &e)
	return e.Place, err
}

// DatabaseElsewhere is the PostgreSQL database that holds the rows of a data folder, as host and name; empty where they are in
// the folder. A backup of the folder does not hold them.
func DatabaseElsewhere(dataDir string) (string, error) {
	var e elsewhere
	switch err := readSmall(filepath.Join(dataDir, elsewhereName), &e); {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case e.Postgres == "":
		return "", fmt.Errorf("%s names no database", elsewhereName)
	}
	return e.Postgres, nil
}

func readSmall(path string, to any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeSmall(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), private)
}

// Errors of Open: the database does not let this server in or must not be used, or is not reached.
var (
	ErrDatabaseRefused = store.ErrDatabaseRefused
	ErrDatabaseAway    = store.ErrDatabaseAway
)

// inspectDatabase says why the database that cfg names cannot be opened, while nothing is written there or here.
func inspectDatabase(ctx context.Context, cfg Config) error {
	had, err := DatabaseElsewhere(cfg.DataDir)
	switch {
	case err != nil:
		return fmt.Errorf("data folder: %w", err)
	case cfg.Database.URL == "" && had != "":
		return fmt.Errorf("the rows of data folder %s are in PostgreSQL, in %s: set database.url, or remove %s to begin with none", cfg.DataDir, had, elsewhereName)
	case cfg.Database.URL == "":
		return nil
	}
	where, err := postgresConfig(cfg)
	if err != nil {
		return err
	}
	tables, err := store.InspectPostgres(ctx, where)
	if err == nil && had != "" && !tables {
		// Another database than before, or one that waits for its dump: a start would make a fleet without devices of it.
		return fmt.Errorf("%w: the rows of data folder %s are in PostgreSQL, in %s, and %s holds none: restore the dump of them (pg_restore), or remove %s to begin with none",
			ErrDatabaseRefused, cfg.DataDir, had, placeOf(cfg.Database.URL), elsewhereName)
	}
	return err
}

func postgresConfig(cfg Config) (store.PostgresConfig, error) {
	password, err := readPassword(cfg.Database.PasswordFile)
	if err != nil {
		return store.PostgresConfig{}, fmt.Errorf("database.password_file: %w", err)
	}
	return store.PostgresConfig{URL: cfg.Database.URL, Password: password, Connections: int(cfg.Database.MaxConnections) - 1}, nil
}

// openDatabase opens the database that cfg names, which was inspected.
func openDatabase(ctx context.Context, cfg Config, log *slog.Logger) (database, error) {
	if cfg.Database.URL == "" {
		return store.OpenSQLite(ctx, filepath.Join(cfg.DataDir, databaseName))
	}
	where, err := postgresConfig(cfg)
	if err != nil {
		return nil, err
	}
	db, err := store.OpenPostgres(ctx, where)
	if err != nil {
		return nil, err
	}
	err = settle(ctx, cfg, db, log)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// settle has the data folder say where its rows are, and pays what a restore has left.
func settle(ctx context.Context, cfg Config, db *store.Postgres, log *slog.Logger) error {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, databaseName)); err == nil {
		log.Warn("the data folder holds a database that is not used: its devices and releases are not in PostgreSQL", "file", databaseName)
	}
	place, err := placeID(cfg.DataDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := writeSmall(filepath.Join(cfg.DataDir, elsewhereName), elsewhere{placeOf(cfg.Database.URL), cmp.Or(place, newOwner())}); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	owed := filepath.Join(cfg.DataDir, restoredName)
	var info backupInfo
	switch err := readSmall(owed, &info); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("data folder: %w", err)
	}
	done, err := fleet.Restored(ctx, db, info.Taken, time.Now(), newLife())
	if err != nil {
		return fmt.Errorf("after the restore: %w", err)
	}
	log.Warn("a backup was restored: what ran then does not run on", "taken", info.Taken, "rollouts_paused", done.Paused, "commands_ended", done.Ended)
	if err := os.Remove(owed); err != nil {
		return err
	}
	return durable.SyncFolder(cfg.DataDir)
}

// owe has the next start of a server on dir treat its database as restored.
func owe(dir string, taken time.Time) error {
	return writeSmall(filepath.Join(dir, restoredName), backupInfo{Version: backupVersion, Taken: taken})
}

// placeOf is the host and the name of a database, and nothing else of its URL.
func placeOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "PostgreSQL"
	}
	host := u.Host
	if host == "" {
		host = u.Query().Get("host")
	}
	return host + u.Path
}

func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", errors.New("it is empty")
	}
	return line, nil
}
