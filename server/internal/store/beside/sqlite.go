package beside

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"path/filepath"
	"strings"

	"bmsota/server/internal/store"
)

// SQLite are the pieces of work in files of dir, which is empty.
func SQLite(ctx context.Context, dir string) (_ *Pairs, err error) {
	p := &Pairs{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	ours, bare := filepath.Join(dir, "ours.db"), filepath.Join(dir, "bare.db")
	s, err := store.OpenSQLite(ctx, ours)
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, s.Close)
	made, err := store.OpenSQLite(ctx, bare)
	if err != nil {
		return nil, err
	}
	err = errors.Join(seed(ctx, s), seed(ctx, made), made.Close())
	if err != nil {
		return nil, err
	}
	read, err := sql.Open("sqlite", file(ours, "query_only(1)"))
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, read.Close)
	write, err := sql.Open("sqlite", file(bare, "journal_mode(WAL)", "synchronous(FULL)"))
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, write.Close)
	conn, err := write.Conn(ctx)
	if err != nil {
		return nil, err
	}
	p.closes = append(p.closes, conn.Close)
	b := &bareSQLite{conn: conn, stmts: make(map[string]*sql.Stmt)}
	p.closes = append(p.closes, b.close)
	w := &pair{store: s, read: read, raw: b.put, turn: statuses, written: []question{ofDevices, ofAttempts, ofLog}}
	p.List = []Pair{{Name: "statuses in SQLite: rows of devices, attempts and log, 500 statuses a commit", Peer: "prepared statements", Ours: w.ours, Raw: w.bare}}
	return p, nil
}

// file is the driver's name of a database with the pragmas of its connections, those of the store among them.
func file(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append(pragmas, "foreign_keys(1)", "busy_timeout(5000)")}
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	return u.String()
}

// bareSQLite writes with statements of one row that are prepared once, on one connection.
type bareSQLite struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt // by the table
}

func (b *bareSQLite) close() error {
	var errs []error
	for _, s := range b.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (b *bareSQLite) put(ctx context.Context, tables []table) (err error) {
	if _, err := b.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, undo := b.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			err = errors.Join(err, undo)
		}
	}()
	for _, t := range tables {
		stmt := b.stmts[t.name]
		if stmt == nil {
			if stmt, err = b.conn.PrepareContext(ctx, statement(t)); err != nil {
				return err
			}
			b.stmts[t.name] = stmt
		}
		for _, row := range t.rows {
			if _, err := stmt.ExecContext(ctx, row...); err != nil {
				return err
			}
		}
	}
	_, err = b.conn.ExecContext(ctx, "COMMIT")
	return err
}

// statement is what puts a row of t: rows of the log are new, of others there may be one with the id.
func statement(t table) string {
	text := "INSERT INTO " + t.name + " (" + strings.Join(t.columns, ", ") + ") VALUES (?" + strings.Repeat(", ?", len(t.columns)-1) + ")"
	if t.name == "audit" {
		return text
	}
	return text + " ON CONFLICT (id) DO UPDATE SET " + excluded(t.columns)
}

// excluded are the columns behind the id, each as the new row has it.
func excluded(columns []string) string {
	var set []string
	for _, c := range columns {
		if c != "id" {
			set = append(set, c+" = excluded."+c)
		}
	}
	return strings.Join(set, ", ")
}
