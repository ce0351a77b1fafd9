package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"bmsota/server/internal/fleet"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations
var migrations embed.FS

// readers is how many views run beside each other and beside the one writer.
const readers = 4

// DB is a fleet.Store in one SQLite file. It is made for one process.
type DB struct {
	write, read   *sql.DB // write has one connection, so Updates wait for each other there
	writes, reads [queryCount]*sql.Stmt
	bulkWrites    bulk
	bulkReads     bulk
}

// OpenSQLite opens the database file at path, makes it when it is not there (readable by its owner only), and brings
// its tables up to date. A file that a newer version has migrated is refused, and one that another program is writing to.
//
// journal_mode=WAL lets views run beside an update; synchronous=FULL syncs the log at every commit, without which a
// power loss takes back commits that were acknowledged.
func OpenSQLite(ctx context.Context, path string) (*DB, error) {
	db, err := openSQLite(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return db, nil
}

func openSQLite(ctx context.Context, path string) (_ *DB, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// SQLite would make the file readable for everyone, and it holds who may log in.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fleet.ErrStorage, err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", fleet.ErrStorage, err)
	}
	db := &DB{}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	// Writers begin IMMEDIATE, so that none finds out at its first write that another was faster.
	if db.write, err = sql.Open("sqlite", dsn(path, "immediate", "journal_mode(WAL)", "synchronous(FULL)")); err != nil {
		return nil, err
	}
	db.write.SetMaxOpenConns(1)
	// Who cannot write now would find out at the first status.
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, fault(err)
	}
	if err := tx.Rollback(); err != nil {
		return nil, fault(err)
	}
	if err := migrate(ctx, db.write); err != nil {
		return nil, fmt.Errorf("migrate: %w", fault(err))
	}
	if db.read, err = sql.Open("sqlite", dsn(path, "deferred", "query_only(1)")); err != nil {
		return nil, err
	}
	db.read.SetMaxOpenConns(readers)
	db.read.SetMaxIdleConns(readers)
	for q, text := range queries {
		text = unnumbered(text)
		if db.writes[q], err = db.write.PrepareContext(ctx, text); err != nil {
			return nil, fmt.Errorf("prepare query %d: %w", q, fault(err))
		}
		if db.reads[q], err = db.read.PrepareContext(ctx, text); err != nil {
			return nil, fmt.Errorf("prepare query %d: %w", q, fault(err))
		}
	}
	if db.bulkWrites, err = prepareBulk(ctx, db.write); err != nil {
		return nil, err
	}
	if db.bulkReads, err = prepareBulk(ctx, db.read); err != nil {
		return nil, err
	}
	return db, nil
}

// dsn is the driver's name of a file, with how transactions begin and the pragmas of every connection.
func dsn(path, begin string, pragmas ...string) string {
	q := url.Values{"_txlock": {begin}, "_pragma": append(pragmas, "foreign_keys(1)", "busy_timeout(5000)")}
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	return u.String()
}

// migrationsOf are the files that make the tables of a kind of database.
func migrationsOf(kind string) (fs.FS, error) { return fs.Sub(migrations, "migrations/"+kind) }

func migrate(ctx context.Context, db *sql.DB) error {
	p, err := provider(goose.DialectSQLite3, db, "sqlite")
	if err != nil {
		return err
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	sources := p.ListSources()
	if newest := sources[len(sources)-1].Version; have > newest {
		return refuse("its tables are of version %d and this program knows %d: use the newer program", have, newest)
	}
	_, err = p.Up(ctx)
	return err
}

// Update implements fleet.Store. Nothing of fn is there unless Update returns nil.
func (db *DB) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	fault := faultIn(ctx)
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return fault(err)
	}
	defer tx.Rollback() // no effect after Commit
	t := &sqlTx{ctx: ctx, tx: tx, prepared: &db.writes, many: db.bulkWrites, fault: fault, advised: true}
	if err := fn(t); err != nil {
		return err
	}
	if t.failed != nil {
		return t.failed
	}
	if err := tx.Commit(); err != nil {
		return fault(err)
	}
	return nil
}

// View implements fleet.Store.
func (db *DB) View(ctx context.Context, fn func(fleet.Tx) error) error {
	fault := faultIn(ctx)
	tx, err := db.read.BeginTx(ctx, nil)
	if err != nil {
		return fault(err)
	}
	defer tx.Rollback()
	return fn(&sqlTx{ctx: ctx, tx: tx, prepared: &db.reads, many: db.bulkReads, fault: fault, advised: true, readOnly: true})
}

// Probe says whether the database can be written and synced now: it writes what stands there already. An Update that
// puts nothing asks the disk nothing.
func (db *DB) Probe(ctx context.Context) error {
	if _, err := db.write.ExecContext(ctx, "PRAGMA application_id = 0"); err != nil {
		return faultIn(ctx)(err)
	}
	return nil
}

// Close ends every connection; the last one folds the log into the file.
func (db *DB) Close() error {
	var errs []error
	for _, part := range []*sql.DB{db.read, db.write} {
		if part != nil {
			errs = append(errs, part.Close())
		}
	}
	return errors.Join(errs...)
}

// faultIn is fault for what runs in ctx. When ctx ends the driver interrupts the statement and undoes the transaction,
// and whoever uses either after that is told so in the driver's words: it is the end of ctx all the same.
func faultIn(ctx context.Context) func(error) error {
	return func(err error) error {
		var e *sqlite.Error
		interrupted := errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_INTERRUPT
		if ctx.Err() != nil && (interrupted || errors.Is(err, sql.ErrTxDone)) {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return fault(err)
	}
}

// fault wraps an error of the driver: a broken rule of the tables is ErrConflict, the end of a context stays what it
// is, everything else is ErrStorage; with ENOSPC, as for files, where the disk is full.
func fault(err error) error {
	var e *sqlite.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, fleet.ErrStorage), errors.Is(err, ErrDatabaseRefused):
		return err
	case errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT:
		return fmt.Errorf("%w: %w", fleet.ErrConflict, err)
	case errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w: %w", fleet.ErrStorage, syscall.ENOSPC, err)
	case errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_BUSY:
		return fmt.Errorf("%w: another program is writing to the database (a shell that was left open, a backup): end it: %w", fleet.ErrStorage, err)
	}
	return fmt.Errorf("%w: %w", fleet.ErrStorage, err)
}
