package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"bmsota/server/internal/fleet"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	tries      = 10 // of an Update that met another writer, or lost its connection
	firstPause = 10 * time.Millisecond
	maxPause   = 2 * time.Second
	commitWait = 40 * time.Second // for the answer to COMMIT; the server gives up on a statement before that
	searchWait = 30 * time.Second // for a database that is away to come back and say what became of a COMMIT
)

// Postgres is a fleet.Store in a PostgreSQL database, which several servers may share.
//
// Updates go one at a time, in all servers together: each begins by locking the table "writing", then takes its snapshot.
// So what holds with the one writer of SQLite holds here, the log of what was done grows by one row after the other, and two
// Updates cannot be each other's deadlock. Somebody else's program can: then, after a serialisation failure, and when the
// connection is lost, fn runs again from the start, at most ten times. Views run beside all of it, each on one snapshot.
//
// A connection that is lost between COMMIT and its answer leaves open whether the change is there. So every Update writes
// its number into the table "operations" with its change, and looks for it there over another connection, under the same
// lock: while the old connection can still commit, it holds it.
type Postgres struct {
	write, read *sql.DB       // write has one connection
	turn        chan struct{} // held by the Update that runs, also while it looks for its number
	writer      string        // this opening of the database, in operations
	number      int64         // of the last Update that had something to commit
	tables      int64         // the version of them that this program knows
	prepares    bool          // a connection keeps prepared statements, as the URL has it
	jitter      func() float64
	forgetful   bool // for tests: does not look for its number
}

// Update implements fleet.Store. fn may run more than once; nothing of a run is there unless it is the last and Update
// returns nil.
func (db *Postgres) Update(ctx context.Context, fn func(fleet.Tx) error) error {
	select {
	case db.turn <- struct{}{}:
		defer func() { <-db.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for try := 1; ; try++ {
		again, err := db.updateOnce(ctx, fn)
		if again && try < tries && db.pause(ctx, try) {
			continue
		}
		return err
	}
}

// pause waits before the next try, longer each time; it says whether ctx still runs.
func (db *Postgres) pause(ctx context.Context, try int) bool {
	d := min(firstPause<<min(try-1, 10), maxPause)
	timer := time.NewTimer(time.Duration(float64(d) * (0.5 + db.jitter()/2)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// updateOnce runs fn once; again says that nothing of it is there and that another run may fare better.
func (db *Postgres) updateOnce(ctx context.Context, fn func(fleet.Tx) error) (again bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	var passing error // the first failure that another run may not meet, whatever fn makes of it
	fault := func(err error) error {
		if passing == nil && (lost(err) || met(err)) {
			passing = err
		}
		return faultOf(ctx, err)
	}
	// ctx ends everything but the commit, which is waited for once it is under way.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	conn, err := db.write.Conn(own)
	if err != nil {
		err = fault(err)
		return passing != nil, err
	}
	defer conn.Close() // no effect the second time
	tx, err := conn.BeginTx(own, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err == nil {
		defer tx.Rollback() // no effect after Commit
		_, err = tx.ExecContext(own, "LOCK TABLE writing IN EXCLUSIVE MODE")
	}
	if err != nil {
		err = fault(err)
		return passing != nil, err
	}
	t := &sqlTx{ctx: own, tx: tx, conn: conn, prepares: db.prepares, fault: fault, bind: bind, clock: postgresClock, tables: db.tables}
	if err = fn(t); err == nil {
		err = t.failed
	}
	if passing != nil {
		return true, faultOf(ctx, passing)
	}
	if err != nil {
		return false, err
	}
	if !t.wrote {
		return false, ctx.Err()
	}
	if t.members {
		if _, err := tx.ExecContext(own, "SELECT sum_members()"); err != nil {
			err = fault(err)
			return passing != nil, err
		}
	}
	db.number++
	done, err := tx.ExecContext(own, putOperation, db.writer, db.number, db.tables)
	if err != nil {
		err = fault(err)
		return passing != nil, err
	}
	if n, err := done.RowsAffected(); err == nil && n == 0 {
		return false, fmt.Errorf("%w: this one knows tables of version %d", fleet.ErrOutdated, db.tables)
	}
	if !stop() {
		return false, ctx.Err()
	}
	limit := time.AfterFunc(commitWait, cancel)
	defer limit.Stop()
	err = tx.Commit()
	if err == nil {
		return false, nil
	}
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Severity == "ERROR" { // it says that it has not
		return met(err), faultOf(ctx, err)
	}
	if db.forgetful {
		return true, faultOf(ctx, err)
	}
	_ = conn.Close() // it is broken; the search has the place of it
	there, searchErr := db.committed(ctx)
	switch {
	case searchErr != nil:
		return false, fmt.Errorf("%w: the connection to the database was lost during COMMIT, and it did not come back within %s to say whether the change is there: %w", fleet.ErrStorage, searchWait, errors.Join(err, searchErr))
	case there:
		return false, nil
	}
	return true, faultOf(ctx, err)
}

// putOperation puts nothing where the tables are of a newer program by now, which took something away while this one slept.
const putOperation = `INSERT INTO operations (writer, number, at) SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)
WHERE NOT EXISTS (SELECT 1 FROM compatible WHERE oldest > CAST($3 AS BIGINT))
ON CONFLICT (writer) DO UPDATE SET number = excluded.number, at = excluded.at`

// committed says whether the Update of the number db.number is in the database. The end of ctx does not end the search.
func (db *Postgres) committed(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), searchWait)
	defer cancel()
	for try := 1; ; try++ {
		number, err := db.lastNumber(ctx)
		if err == nil || !db.pause(ctx, try) {
			return number == db.number, err
		}
	}
}

func (db *Postgres) lastNumber(ctx context.Context) (number int64, err error) {
	tx, err := db.write.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "LOCK TABLE writing IN EXCLUSIVE MODE"); err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, "SELECT number FROM operations WHERE writer = $1", db.writer).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil // numbers begin with 1
	}
	return number, err
}

// View implements fleet.Store. fn runs once: what is tried again is to begin.
func (db *Postgres) View(ctx context.Context, fn func(fleet.Tx) error) error {
	var tx *sql.Tx
	for try := 1; ; try++ {
		var err error
		if tx, err = db.read.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}); err == nil {
			break
		}
		if !lost(err) || try == tries || !db.pause(ctx, try) {
			return faultOf(ctx, err)
		}
	}
	defer tx.Rollback()
	return fn(&sqlTx{ctx: ctx, tx: tx, fault: func(err error) error { return faultOf(ctx, err) }, bind: bind, clock: postgresClock, tables: db.tables, readOnly: true})
}

// Probe says whether the database can be written and synced now: it commits a number.
func (db *Postgres) Probe(ctx context.Context) error {
	return db.Update(ctx, func(tx fleet.Tx) error {
		tx.(*sqlTx).wrote = true
		return nil
	})
}

// Close ends every connection.
func (db *Postgres) Close() error {
	var errs []error
	for _, part := range []*sql.DB{db.read, db.write} {
		if part != nil {
			errs = append(errs, part.Close())
		}
	}
	return errors.Join(errs...)
}

// bind makes of values what PostgreSQL takes: yes and no as the numbers that they are in the shared queries, and texts
// without what its texts cannot hold.
func bind(args []any) []any {
	bound := slices.Clone(args)
	for i, v := range bound {
		switch v := v.(type) {
		case bool:
			bound[i] = int64(0)
			if v {
				bound[i] = int64(1)
			}
		case string:
			if text := textOf(v); text != v {
				bound[i] = text
			}
		}
	}
	return bound
}

// textOf is a text as PostgreSQL can hold it.
func textOf(v string) string {
	if strings.IndexByte(v, 0) < 0 && utf8.ValidString(v) {
		return v
	}
	return strings.ToValidUTF8(strings.ReplaceAll(v, "\x00", "\uFFFD"), "\uFFFD")
}

func code(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// met says that another transaction was in the way and this one is undone: serialisation failure, deadlock, and a
// statement whose tables were changed under it.
func met(err error) bool {
	switch code(err) {
	case "40001", "40P01", "0A000":
		return true
	}
	return false
}

// lost says that there is no connection, or no server behind it yet or any more.
func lost(err error) bool {
	switch code := code(err); {
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), code == "53300":
		return true
	case code != "":
		return false
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.As(err, new(*net.OpError)) || errors.As(err, new(syscall.Errno)) || errors.As(err, new(*pgconn.ConnectError))
}

// faultOf names the sentinel of an error of the driver, as fault does for SQLite.
func faultOf(ctx context.Context, err error) error {
	switch code := code(err); {
	case strings.HasPrefix(code, "23"):
		return fmt.Errorf("%w: %w", fleet.ErrConflict, err)
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case code == "53100":
		return fmt.Errorf("%w: %w: %w", fleet.ErrStorage, syscall.ENOSPC, err)
	}
	return fmt.Errorf("%w: %w", fleet.ErrStorage, err)
}

func newWriter() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
