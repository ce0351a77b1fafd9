package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"bmsota/server/internal/fleet"
)

// Snapshot copies the database file at path, as it is at one moment, into a new file at to. A server may be at work on it.
// What Update has acknowledged before the call is in the copy.
func Snapshot(ctx context.Context, path, to string) (err error) {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("copy database: %w: %w", fleet.ErrStorage, err)
	}
	db, err := sql.Open("sqlite", dsn(path, "deferred"))
	if err != nil {
		return fmt.Errorf("copy database %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "VACUUM INTO $1", to); err != nil {
		return fmt.Errorf("copy database %s: %w", path, fault(err))
	}
	return nil
}

// Check is what SQLite finds wrong with the file; nothing when it is whole.
func (db *DB) Check(ctx context.Context) ([]string, error) {
	var wrong []string
	for _, pragma := range []string{"integrity_check", "foreign_key_check"} {
		rows, err := db.read.QueryContext(ctx, "SELECT * FROM pragma_"+pragma)
		if err != nil {
			return nil, fault(err)
		}
		text := func(s scanner) (string, error) {
			if pragma == "integrity_check" {
				var line string
				return line, s.Scan(&line)
			}
			var table, parent string
			var row, key sql.NullInt64
			err := s.Scan(&table, &row, &parent, &key)
			return fmt.Sprintf("row %d of %s has no row in %s", row.Int64, table, parent), err
		}
		lines, err := collect(&sqlTx{fault: fault}, rows, text)
		if err != nil {
			return nil, err
		}
		if len(lines) == 1 && lines[0] == "ok" {
			continue
		}
		wrong = append(wrong, lines...)
	}
	return wrong, nil
}
