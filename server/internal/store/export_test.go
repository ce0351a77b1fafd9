package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bmsota/durable"
	"bmsota/server/internal/fleet"

	"github.com/pressly/goose/v3"
)

// SetFiles puts other files between f and the disk.
func (f *Folder) SetFiles(wrap func(durable.Files) durable.Files) { f.files = wrap(f.files) }

// Pragma is the value of a pragma on the connection that writes, and on one that reads.
func (db *DB) Pragma(name string) (write, read string, err error) {
	if err := db.write.QueryRow("PRAGMA " + name).Scan(&write); err != nil {
		return "", "", err
	}
	err = db.read.QueryRow("PRAGMA " + name).Scan(&read)
	return write, read, err
}

// Set sets a pragma on the connection that writes.
func (db *DB) Set(name, value string) error {
	_, err := db.write.Exec("PRAGMA " + name + " = " + value)
	return err
}

// Dump is every row of every table, but for the times of the migrations.
func (db *DB) Dump(ctx context.Context) (string, error) {
	tx, err := db.read.BeginTx(ctx, nil) // one state for all tables
	if err != nil {
		return "", err
	}
	defer tx.Rollback()
	return dumpRows(ctx, tx)
}

// DumpTx is the Dump that there will be when tx is committed.
func DumpTx(ctx context.Context, tx fleet.Tx) (string, error) { return dumpRows(ctx, tx.(*sqlTx).tx) }

func dumpRows(ctx context.Context, tx *sql.Tx) (string, error) {
	tables, err := lines(tx.QueryContext(ctx, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"))
	var dump strings.Builder
	for _, table := range tables {
		columns := "*"
		if table == "goose_db_version" {
			columns = "version_id, is_applied"
		}
		rows, rowsErr := lines(tx.QueryContext(ctx, "SELECT "+columns+" FROM "+table))
		err = errors.Join(err, rowsErr)
		slices.Sort(rows)
		dump.WriteString(table + "\n\t" + strings.Join(rows, "\n\t") + "\n")
	}
	return dump.String(), err
}

// lines are rows as text.
func lines(rows *sql.Rows, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	values, fields := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		fields[i] = &values[i]
	}
	var list []string
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return nil, err
		}
		list = append(list, strings.TrimSuffix(fmt.Sprintln(values...), "\n"))
	}
	return list, rows.Err()
}

// PretendVersion has the file say that its tables are of a version this program does not know.
func (db *DB) PretendVersion(v int) error {
	_, err := db.write.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, 1)", v)
	return err
}

// Plan is how SQLite finds the ids of a page.
func (db *DB) Plan(q fleet.DeviceQuery) (string, error) {
	text, args := pageQuery(q, true)
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
	p, err := provider(goose.DialectSQLite3, db, "sqlite")
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

// Forgetful has the store take a COMMIT without an answer for one that did not happen.
func (db *Postgres) Forgetful() { db.forgetful = true }

// Tamper runs a statement as another program on the same database would.
func (db *Postgres) Tamper(text string, args ...any) error {
	_, err := db.read.Exec(text, args...)
	return err
}

// PreparedStatements is how many the connection that writes has at the server.
func (db *Postgres) PreparedStatements() (n int, err error) {
	err = db.write.QueryRow("SELECT COUNT(*) FROM pg_prepared_statements WHERE NOT from_sql AND statement NOT LIKE '%pg_prepared_statements%'").Scan(&n)
	return n, err
}

// SomebodyWaits says whether a session of the server waits for a lock.
func (db *Postgres) SomebodyWaits() (waits bool, err error) {
	err = db.read.QueryRow("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)").Scan(&waits)
	return waits, err
}

// NewBucket is a bucket that nobody was asked about.
var NewBucket = newBucket

// SignedUntil is until when the address that is given out is good.
func (b *Bucket) SignedUntil(digest string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.signed[digest].until
}
