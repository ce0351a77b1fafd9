package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"strings"

	"bmsota/server/internal/fleet"

	"github.com/pressly/goose/v3"
)

// SetStep has fn called before each step of every Put of f, with the step's name; its error fails the step.
func (f *Folder) SetStep(fn func(name string) error) { f.step = fn }

// Pragma is the value of a pragma on the connection that writes, and on one that reads.
func (db *DB) Pragma(name string) (write, read string, err error) {
	if err := db.write.QueryRow("PRAGMA " + name).Scan(&write); err != nil {
		return "", "", err
	}
	err = db.read.QueryRow("PRAGMA " + name).Scan(&read)
	return write, read, err
}

// PretendVersion has the file say that its tables are of a version this program does not know.
func (db *DB) PretendVersion(v int) error {
	_, err := db.write.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, 1)", v)
	return err
}

// Plan is how SQLite finds the ids of a page.
func (db *DB) Plan(q fleet.DeviceQuery) (string, error) {
	text, args := pageQuery(q)
	rows, err := db.read.Query("EXPLAIN QUERY PLAN "+text, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			return "", err
		}
		plan.WriteString(detail + "\n")
	}
	return plan.String(), rows.Err()
}

// MakeVersion1 makes a database with the first tables alone, and runs statements on it.
func MakeVersion1(ctx context.Context, path string, statements ...string) error {
	db, err := sql.Open("sqlite", dsn(path, "immediate"))
	if err != nil {
		return err
	}
	files, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = p.UpTo(ctx, 1)
	for _, text := range statements {
		if err == nil {
			_, err = db.ExecContext(ctx, text)
		}
	}
	return errors.Join(err, db.Close())
}

// Tamper runs a statement on the database as somebody with a shell on the server would.
func (db *DB) Tamper(text string, args ...any) error {
	_, err := db.write.Exec(text, args...)
	return err
}
