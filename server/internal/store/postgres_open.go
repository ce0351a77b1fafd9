package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"time"

	"bmsota/server/internal/fleet"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// oldestPostgres is the oldest major version that is tried.
const oldestPostgres = 13

// connectWait is for one connection where the URL has no connect_timeout.
const connectWait = 10 * time.Second

// PostgresConfig says where a PostgreSQL database is.
type PostgresConfig struct {
	URL         string         // postgres://user@host/database?sslmode=verify-full
	Password    string         // empty: PGPASSWORD, or the file of PGPASSFILE, as with psql
	Connections int            // for views, beside the one that writes; 0 = 8
	Jitter      func() float64 // 0 to 1, for the pauses between tries; nil = random
}

// CheckPostgresURL says what is wrong with a URL, without repeating it: it may hold a password, which is refused.
func CheckPostgresURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || len(u.Path) < 2 {
		return errors.New("it is not postgres://user@host:port/database?sslmode=verify-full")
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") || u.Query().Has("sslpassword") {
		return errors.New("it holds a password: put that into password_file, or into a file that PGPASSFILE names")
	}
	return nil
}

// OpenPostgres opens a database and brings its tables up to date. What cannot be used is refused with a sentence, before
// anything is written: a database that other tables are in or that a newer version has migrated so that this one cannot work on
// it (table compatible; ADR 31), a role that may not do
// what is needed, a standby, and a server that acknowledges what is not on its disk yet.
func OpenPostgres(ctx context.Context, c PostgresConfig) (*Postgres, error) {
	return openPostgres(ctx, c, (*Postgres).ready)
}

// InspectPostgres says why OpenPostgres would refuse a database, or not reach it, and whether it has tables. It changes nothing.
func InspectPostgres(ctx context.Context, c PostgresConfig) (tables bool, err error) {
	db, err := openPostgres(ctx, c, func(db *Postgres, ctx context.Context) error {
		if _, err := db.inspect(ctx); err != nil {
			return err
		}
		have, err := db.version(ctx, "")
		tables = have > 0
		return err
	})
	if err != nil {
		return false, err
	}
	return tables, db.Close()
}

func openPostgres(ctx context.Context, c PostgresConfig, ready func(*Postgres, context.Context) error) (_ *Postgres, err error) {
	if err := CheckPostgresURL(c.URL); err != nil {
		return nil, fmt.Errorf("address of the database: %w", err)
	}
	conf, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("address of the database: %w", parseFault(err))
	}
	if c.Password != "" {
		conf.Password = c.Password
	}
	if u, err := url.Parse(c.URL); err == nil && !u.Query().Has("connect_timeout") {
		conf.ConnectTimeout = connectWait
	}
	if _, set := conf.RuntimeParams["application_name"]; !set {
		conf.RuntimeParams["application_name"] = "bmsota"
	}
	db := &Postgres{turn: make(chan struct{}, 1), writer: newWriter(), jitter: c.Jitter,
		prepares: conf.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement}
	if db.jitter == nil {
		db.jitter = rand.Float64
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open database %s of PostgreSQL at %s: %w", conf.Database, conf.Host, err), db.Close())
		}
	}()
	if c.Connections == 0 {
		c.Connections = 8
	}
	db.write, db.read = stdlib.OpenDB(*conf, settled(conf)), stdlib.OpenDB(*conf, settled(conf))
	db.write.SetMaxOpenConns(1)
	db.read.SetMaxOpenConns(c.Connections)
	db.read.SetMaxIdleConns(c.Connections)
	if err := ready(db, ctx); err != nil {
		return nil, err
	}
	return db, nil
}

// ready brings the tables up to date.
func (db *Postgres) ready(ctx context.Context) error {
	p, err := db.inspect(ctx)
	if err != nil {
		return err
	}
	if p != nil {
		if _, err := p.Up(ctx); err != nil {
			return fmt.Errorf("migrate: %w", openFault(ctx, err))
		}
	}
	if err := db.mayUse(ctx); err != nil {
		return err
	}
	// Numbers of servers that ended long ago.
	if _, err := db.write.ExecContext(ctx, "DELETE FROM operations WHERE at < CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - 2592000000"); err != nil {
		return openFault(ctx, err)
	}
	return nil
}

// refuse is a fault that a person has to mend.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDatabaseRefused}, args...)...)
}

// inspect says what is wrong with the server and the database. Where the tables are not of this version it answers with what makes
// them so, and the role may do that.
func (db *Postgres) inspect(ctx context.Context) (*goose.Provider, error) {
	var version int
	var standby bool
	var encoding, fsync, commit, role string
	var schema sql.NullString
	if err := db.read.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('server_encoding'),
 current_setting('fsync'), current_setting('synchronous_commit'), current_user, current_schema()`).
		Scan(&version, &standby, &encoding, &fsync, &commit, &role, &schema); err != nil {
		return nil, openFault(ctx, err)
	}
	switch {
	case version/10000 < oldestPostgres:
		return nil, refuse("it is PostgreSQL %d, and %d is the oldest that will do", version/10000, oldestPostgres)
	case standby:
		return nil, refuse("it is a standby, which cannot be written: name the primary")
	case encoding != "UTF8":
		return nil, refuse("its encoding is %s: make one with ENCODING 'UTF8' TEMPLATE template0", encoding)
	case fsync == "off" || commit == "off":
		return nil, refuse("fsync or synchronous_commit is off there: what is acknowledged would not survive a loss of power; switch both on")
	case !schema.Valid:
		return nil, refuse("role %s may use no schema of its search_path", role)
	}
	dealt, err := db.dealt(ctx)
	if err != nil {
		return nil, openFault(ctx, err)
	}
	have, err := db.version(ctx, schema.String)
	if err != nil {
		return nil, err
	}
	p, err := provider(goose.DialectPostgres, db.write, "postgres")
	if err != nil {
		return nil, err
	}
	sources := p.ListSources()
	newest := sources[len(sources)-1].Version
	db.tables = newest
	switch {
	case have > newest:
		oldest, err := db.oldest(ctx)
		if err != nil {
			return nil, err
		}
		if oldest > newest {
			return nil, refuse("its tables are of version %d and this program knows %d, while they want %d at least: use the newer program", have, newest, oldest)
		}
	case have < newest && dealt:
		return nil, refuse("its tables are of version %d and are to be of %d, which takes a lock of a session, and a pooler that deals out transactions stands before it (PgBouncer, pool_mode transaction): start this version once with the address of the database itself", have, newest)
	case have < newest:
		return p, db.mayMake(ctx, schema.String, role, have)
	}
	return nil, db.mayUse(ctx)
}

// mayUse says whether the tables may be read and changed.
func (db *Postgres) mayUse(ctx context.Context) error {
	var table, role string
	err := db.read.QueryRowContext(ctx, `SELECT c.relname, current_user FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
 AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')) LIMIT 1`).Scan(&table, &role)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return openFault(ctx, err)
	}
	return refuse("role %s may not read and change table %s: let the server be the role that made the tables", role, table)
}

// version is of which version the tables are; 0 in an empty schema. It makes nothing.
func (db *Postgres) version(ctx context.Context, schema string) (have int64, err error) {
	var ours, others bool
	if err := db.read.QueryRowContext(ctx, `SELECT coalesce(bool_or(relname = 'goose_db_version'), false), coalesce(bool_or(relname <> 'goose_db_version'), false)
 FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')`).Scan(&ours, &others); err != nil {
		return 0, openFault(ctx, err)
	}
	if !ours && others {
		return 0, refuse("schema %s holds tables of something else: give bmsota a database of its own", schema)
	}
	if !ours {
		return 0, nil
	}
	err = db.read.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied").Scan(&have)
	if err != nil {
		return 0, openFault(ctx, err)
	}
	return have, nil
}

// oldest is the version of the tables that a program must know at least to work on those that are there.
func (db *Postgres) oldest(ctx context.Context) (oldest int64, err error) {
	if err := db.read.QueryRowContext(ctx, "SELECT oldest FROM compatible WHERE id = 1").Scan(&oldest); err != nil {
		return 0, openFault(ctx, err)
	}
	return oldest, nil
}

// mayMake says whether the tables can be made, or changed.
func (db *Postgres) mayMake(ctx context.Context, schema, role string, have int64) error {
	var may, owns bool
	if err := db.read.QueryRowContext(ctx, `SELECT has_schema_privilege(current_schema(), 'CREATE'),
 NOT EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND NOT pg_has_role(relowner, 'USAGE'))`).Scan(&may, &owns); err != nil {
		return openFault(ctx, err)
	}
	if !may || !owns {
		return refuse("role %s may not make tables in schema %s, or change those of version %d that are there: give it a database that it owns (CREATE DATABASE … OWNER %s)", role, schema, have, role)
	}
	return nil
}

// provider knows the migrations of a kind of database. Those of PostgreSQL are made by one server at a time.
func provider(dialect goose.Dialect, db *sql.DB, folder string) (*goose.Provider, error) {
	files, err := migrationsOf(folder)
	if err != nil {
		return nil, err
	}
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if dialect == goose.DialectPostgres {
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
		if err != nil {
			return nil, err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	return goose.NewProvider(dialect, db, files, options...)
}

// parseFault is an error of the URL without the URL.
func parseFault(err error) error {
	if e := (*pgconn.ParseConfigError)(nil); errors.As(err, &e) {
		if inner := e.Unwrap(); inner != nil {
			return inner
		}
	}
	return err
}

// Errors of OpenPostgres, beside what is wrong with the configuration: a database that does not let this program in, or that it
// must not use, and one that is not reached. OpenSQLite refuses likewise.
var (
	ErrDatabaseRefused = errors.New("database refused")
	ErrDatabaseAway    = errors.New("database not reached")
)

// openFault says in one line why a database cannot be opened.
func openFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	why := strings.Join(strings.Fields(err.Error()), " ")
	kind := ErrDatabaseRefused
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		why = e.Message
		switch e.Code {
		case "28P01", "28000":
			why += ": look at password_file, and at pg_hba.conf of the server"
		case "42501":
			why += ": let the server be the role that made the tables"
		case "55006": // of the trigger compatible_waits
			return fmt.Errorf("%w: %s", ErrDatabaseRefused, why)
		case "3D000":
			why += ": make it (CREATE DATABASE … OWNER …)"
		}
		switch {
		case noStatements(e.Code):
			why = "a pooler that deals out transactions stands before it (PgBouncer, pool_mode transaction) and does not know prepared statements: set pool_mode session there, or add default_query_exec_mode=exec to database.url"
		case strings.HasPrefix(why, "unsupported startup parameter"): // PgBouncer's words
			why += ": leave it out of database.url, or have the pooler ignore it (ignore_startup_parameters)"
		case lost(err): // it starts, it ends, it has no connection left
			kind = ErrDatabaseAway
		case strings.HasPrefix(e.Code, "5"), strings.HasPrefix(e.Code, "X"): // its disk, its memory, its own fault
			kind = fleet.ErrStorage
		}
	} else if e := (*net.OpError)(nil); errors.As(err, &e) {
		kind, why = ErrDatabaseAway, e.Error()
	} else if e := (*net.DNSError)(nil); errors.As(err, &e) {
		kind, why = ErrDatabaseAway, e.Error()
	} else if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		kind = ErrDatabaseAway
	}
	return fmt.Errorf("%w: %s", kind, why)
}
