package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// settings are what a connection sets for itself, where the URL does not. They are set after it stands: a pooler refuses a connection
// that asks for them at once.
var settings = []struct{ name, value string }{
	{"statement_timeout", "30s"},
	// A server that is gone must not hold the lock of the writers.
	{"idle_in_transaction_session_timeout", "60s"},
	// As on a disk that does not turn: indexes that hold all that is asked are read, and not the rows beside them.
	{"random_page_cost", "1.1"},
}

// settled has every connection of conf begin with the settings.
func settled(conf *pgx.ConnConfig) stdlib.OptionOpenDB {
	var text strings.Builder
	for _, s := range settings {
		if _, set := conf.RuntimeParams[s.name]; !set {
			fmt.Fprintf(&text, "SET %s = '%s';", s.name, s.value)
		}
	}
	return stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		return c.PgConn().Exec(ctx, text.String()).Close()
	})
}

// poolLooks is how often dealt looks: between two looks somebody else's statement may take the connection that would tell.
const poolLooks = 5

// dealt says whether a pooler gives the statements of one connection to several of its own (PgBouncer with pool_mode transaction): what
// belongs to a session is then lost. A pooler that forgets prepared statements is an error of the codes that noStatements knows.
func (db *Postgres) dealt(ctx context.Context) (dealt bool, err error) {
	one, err := db.read.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer one.Close()
	type asked interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}
	process := func(of asked) (pid int, err error) {
		return pid, of.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid)
	}
	look := func() (dealt bool, err error) {
		before, err := process(one)
		if err != nil {
			return false, err
		}
		tx, err := db.write.BeginTx(ctx, nil) // it holds what it is given
		if err != nil {
			return false, err
		}
		defer tx.Rollback()
		other, err := process(tx)
		if err != nil {
			return false, err
		}
		after, err := process(one)
		return before == other || before != after, err
	}
	for range poolLooks {
		if dealt, err = look(); dealt || err != nil {
			break
		}
	}
	return dealt, err
}

// noStatements says that a prepared statement is not where it was prepared, or is there already from somebody else: codes of
// PostgreSQL behind a pooler that does not know of them.
func noStatements(code string) bool { return code == "26000" || code == "42P05" }
